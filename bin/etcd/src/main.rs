//! The `etcd` program: flags in, a member out. Everything of interest is in the `server` crate.

use server::config::{self, ConfigError, Loaded, Stage, Surroundings, Wish};
use server::{Exit, StartError, logging};
use std::io::Write;
use std::net::{IpAddr, UdpSocket};
use std::process::ExitCode;

/// Deliberate bugs are for the simulator.
const _: () = assert!(!mutant::ACTIVE, "built with a feature that is for the simulator's tests only");

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What Go's programs end with after a panic or a flag that cannot be read.
const EXIT_USAGE: u8 = 2;
const EXIT_FAILURE: u8 = 1;

/// `mi_option_purge_delay`, which the bindings leave out.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Has freed memory given back to the system at once and not after a second: after a list of 100,000 keys 80 MB stayed
/// resident instead of 210, at no more CPU per request (measured).
#[allow(unsafe_code)]
fn return_memory_at_once() {
    // SAFETY: sets a number inside the allocator; the call has no other requirement.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, 0) }
}

/// A thread that panics takes the process with it. What it worked on is half changed, and the others would go on with
/// that; a restart goes on from what is on disk.
fn abort_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}

fn main() -> ExitCode {
    abort_on_panic();
    return_memory_at_once();
    let command: Vec<String> = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    match command.get(1).map(String::as_str) {
        Some("gateway") => return gateway(&command[1..]),
        Some("grpc-proxy") => {
            eprintln!("etcd grpc-proxy is not part of this version; etcd gateway passes connections on");
            return ExitCode::from(EXIT_FAILURE);
        }
        _ => {}
    }
    let around = Surroundings {
        environment: std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .collect(),
        read_file: &|path| std::fs::read_to_string(path),
        default_host: &default_host,
    };
    let loaded = config::load(&command, &around);
    match &loaded.wish {
        Wish::Help => {
            eprintln!("{}", config::USAGE);
            return print(&config::help());
        }
        Wish::Version => {
            return print(&config::version());
        }
        Wish::Usage(text) => {
            eprintln!("{text}\n{}", config::USAGE);
            return ExitCode::from(EXIT_USAGE);
        }
        Wish::Fail(error) if error.stage() == Stage::Bare => {
            eprintln!("{error}");
            return ExitCode::from(EXIT_FAILURE);
        }
        Wish::Fail(error) if error.stage() == Stage::Panic => {
            eprintln!("panic: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
        Wish::Fail(_) | Wish::Run(_) => {}
    }
    if let Err(error) = logging::init(&loaded.log) {
        // Told where lines go when nothing is said about it.
        if let Err(worse) = logging::init(&logging::LogConfig::default()) {
            eprintln!("etcd: {worse}");
        }
        tracing::warn!(error = %error, "failed to verify flags");
        return ExitCode::from(EXIT_FAILURE);
    }
    start(loaded)
}

/// Runs the gateway, whose log has no flags of its own.
fn gateway(words: &[String]) -> ExitCode {
    if let Err(error) = logging::init(&logging::LogConfig::default()) {
        eprintln!("etcd: {error}");
    }
    let (code, stdout, stderr) = proxy::run(words, server::notify::ready);
    eprint!("{stderr}");
    match print(&stdout) {
        ExitCode::SUCCESS => ExitCode::from(code),
        failure => failure,
    }
}

/// Writes to stdout. Whoever has read enough may close the pipe.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::from(EXIT_FAILURE),
        _ => ExitCode::SUCCESS,
    }
}

/// Runs the member, or says why not.
fn start(loaded: Loaded) -> ExitCode {
    for notice in &loaded.notices {
        notice.log();
    }
    let config = match loaded.wish {
        Wish::Run(config) => config,
        Wish::Fail(error) => return refuse(&error),
        // Handled before there was a log.
        Wish::Help | Wish::Version | Wish::Usage(_) => return ExitCode::SUCCESS,
    };
    if let Err(text) = check_architecture() {
        tracing::error!(fatal = true, "{text}");
        return ExitCode::from(EXIT_FAILURE);
    }
    config.log_start();
    if let Err(error) = config.check_supported() {
        return failed_to_start(&error.to_string());
    }
    match server::run(*config) {
        Ok(Exit::Signal(signal)) => end_by(signal),
        Err(StartError::Failed(reason)) => {
            tracing::error!(fatal = true, error = reason.as_str(), "the member had to stop");
            ExitCode::from(EXIT_FAILURE)
        }
        Err(error) => failed_to_start(&error.to_string()),
    }
}

fn refuse(error: &ConfigError) -> ExitCode {
    let text = error.to_string();
    match error.stage() {
        Stage::Start => return failed_to_start(&text),
        Stage::Fatal => match error {
            ConfigError::ShadowedVariable(name) => {
                tracing::error!(fatal = true, "environment-variable" = name.as_str(), "{text}");
            }
            _ => tracing::error!(fatal = true, "{text}"),
        },
        Stage::Verify | Stage::Bare | Stage::Panic => {
            tracing::warn!(error = text.as_str(), "failed to verify flags");
            if *error == ConfigError::NoAdvertisedClientUrls {
                tracing::warn!(error = text.as_str(), "advertise client URLs are not set");
            }
        }
    }
    ExitCode::from(EXIT_FAILURE)
}

/// etcd's last two lines when it cannot start; tools look for the second.
fn failed_to_start(error: &str) -> ExitCode {
    tracing::warn!(error, "failed to start etcd");
    tracing::error!(fatal = true, error, "discovery failed");
    ExitCode::from(EXIT_FAILURE)
}

/// Ends as the signal would have ended the process, so that whoever waits for it sees the signal. The first process of a
/// container cannot end by a signal of its own, and ends with 0.
fn end_by(signal: i32) -> ExitCode {
    if signal != 0
        && std::process::id() != 1
        && let Err(error) = signal_hook::low_level::emulate_default_handler(signal)
    {
        tracing::warn!(error = %error, "cannot end by the signal");
    }
    ExitCode::SUCCESS
}

/// etcd refuses to run on processors that nobody tests it on, unless told to.
fn check_architecture() -> Result<(), String> {
    let go_name = config::architecture();
    let is_tested = matches!(go_name, "amd64" | "arm64" | "ppc64le" | "s390x");
    if is_tested || std::env::var("ETCD_UNSUPPORTED_ARCH").is_ok_and(|allowed| allowed == go_name) {
        return Ok(());
    }
    Err(format!("running etcd on unsupported architecture {go_name:?}: set ETCD_UNSUPPORTED_ARCH={go_name}"))
}

/// This host's address on the way to others. Nothing is sent: connecting a UDP socket only looks up the route.
fn default_host() -> std::io::Result<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect("192.0.2.1:9")?; // an address that belongs to nobody (RFC 5737), so it takes the default route
    Ok(socket.local_addr()?.ip())
}
