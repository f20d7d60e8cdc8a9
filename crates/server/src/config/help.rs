//! `--help` and `--version`.

use super::flags::{FLAGS, Life, Section};
use super::gates;
use std::fmt::Write as _;

/// What to type, in short; stderr gets this with every mistake.
pub const USAGE: &str = "Usage:

  etcd [flags]
    Start a member.

  etcd --version
    Show the version.

  etcd -h | --help
    Show all flags.

  etcd --config-file FILE
    Start a member with the settings of a YAML or JSON file. Other flags and the environment are ignored then.
";

/// All flags, by section, with their defaults.
pub fn help() -> String {
    let mut text = String::new();
    for section in Section::ALL {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\n{}:", section.title());
        for flag in FLAGS.iter().filter(|flag| flag.section == section) {
            match flag.life {
                Life::Current => {
                    let _ = writeln!(text, "  --{} '{}'\n    {}", flag.name, flag.default_text(), flag.help);
                }
                Life::Replaced(by) => {
                    let _ = writeln!(text, "  --{}\n    Now {by}.", flag.name);
                }
                Life::Ignored => {
                    let _ = writeln!(text, "  --{}\n    Has no effect.", flag.name);
                }
            }
        }
        if section == Section::Features {
            let names: Vec<_> = gates::names().collect();
            let _ = writeln!(text, "    Names: {}, AllAlpha, AllBeta.", names.join(", "));
        }
    }
    text.push_str(
        "\nEach flag can also be set by an environment variable: --data-dir by ETCD_DATA_DIR. To set both is an error.\n",
    );
    text
}

/// The four lines of etcd's `--version`, and one of our own.
pub fn version() -> String {
    let arch = architecture();
    format!(
        "etcd Version: {}\nGit SHA: Not provided\nGo Version: none (written in Rust)\nGo OS/Arch: {}/{arch}\nkeelson Version: {}\n",
        crate::ETCD_VERSION,
        std::env::consts::OS,
        env!("CARGO_PKG_VERSION"),
    )
}

/// The processor under Go's name.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}
