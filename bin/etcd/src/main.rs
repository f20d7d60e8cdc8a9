//! `etcd`: flags in, parts wired, nothing else.

use std::process::ExitCode;

use server::config::{self, Surroundings, Wish};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let around = Surroundings {
        environment: std::env::vars().collect(),
        read_file: &|path| std::fs::read_to_string(path),
        default_host: &|| Err(std::io::ErrorKind::Unsupported.into()),
    };
    let loaded = config::load(&arguments, &around);
    match loaded.wish {
        Wish::Version => {
            print!("{}", config::version());
            ExitCode::SUCCESS
        }
        Wish::Help => {
            eprint!("{}", config::USAGE);
            print!("{}", config::help());
            ExitCode::SUCCESS
        }
        Wish::Usage(text) => {
            eprintln!("{text}");
            eprint!("{}", config::USAGE);
            ExitCode::from(2)
        }
        Wish::Fail(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
        Wish::Run(config) => {
            if let Err(error) = server::logging::init(&loaded.log) {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
            match server::run(*config) {
                Ok(_) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!(error = %error, "failed to run");
                    ExitCode::FAILURE
                }
            }
        }
    }
}
