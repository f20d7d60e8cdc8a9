//! The commands and their flags.

use crate::{defrag, hashkv, migrate, restore, status};
use cli::completion::{self, Shell};
use cli::flags::{self, Flag, Parsed, number, switch, text, unsigned};
use cli::{Failure, Format, Group, exit, terminal};
use proto::{API_VERSION, ETCD_VERSION};
use std::time::Duration;

/// A command of this tool.
pub type Command = cli::Command<Parsed>;

/// The program.
pub static ROOT: Command = Command {
    name: "etcdutl",
    about: "An administrative command line tool for etcd3.",
    flags: &[
        text("write-out", "simple", "Output format: fields, json, protobuf, simple or table.").or('w'),
        flags::duration("timeout", "10s", "How long to wait for a file that another process uses; 0 is for ever."),
    ],
    commands: &[DEFRAG, SNAPSHOT, HASHKV, VERSION, COMPLETION, MIGRATE, COMPLETE],
    ..Command::NONE
};

const DATA_DIR: Flag = text("data-dir", "", "Required. A data directory that is not in use by etcd.");

const DEFRAG: Command = Command {
    name: "defrag",
    about: "Defragments the storage of the etcd",
    example: "etcdutl defrag --data-dir /var/lib/etcd",
    flags: &[DATA_DIR],
    required: &["data-dir"],
    run: Some(defrag::run),
    ..Command::NONE
};

const SNAPSHOT: Command = Command {
    name: "snapshot",
    about: "Manages etcd node snapshots",
    commands: &[RESTORE, STATUS, SAVE],
    ..Command::NONE
};

const RESTORE: Command = Command {
    name: "restore",
    usage: "<filename> --data-dir {output dir} [options]",
    about: "Restores an etcd member snapshot to an etcd directory",
    example: "\
etcdutl snapshot restore backup.db --data-dir /var/lib/etcd
etcdutl snapshot restore backup.db --data-dir /var/lib/etcd --name m1 \\
    --initial-cluster m1=http://10.0.0.1:2380,m2=http://10.0.0.2:2380 \\
    --initial-advertise-peer-urls http://10.0.0.1:2380",
    flags: &[
        text("data-dir", "", "The data directory to make; <name>.etcd if none is given."),
        text("wal-dir", "", "Where to put the write-ahead log; in the data directory if none is given."),
        text("initial-cluster", "default=http://localhost:2380", "The members of the new cluster."),
        text("initial-cluster-token", "etcd-cluster", "What tells this cluster from others with the same members."),
        text("initial-advertise-peer-urls", "http://localhost:2380", "Where the other members reach this one."),
        text("name", "default", "This member's name."),
        switch(
            "skip-hash-check",
            "Do without the sum at the end of a snapshot (a file out of a data directory has none).",
        ),
        unsigned("initial-memory-map-size", "10737418240", "Accepted; nothing is mapped here."),
        unsigned("bump-revision", "0", "By how much to raise the newest revision."),
        switch("mark-compacted", "Mark the raised revision as compacted, so that watchers of the old cluster notice."),
    ],
    run: Some(restore::run),
    ..Command::NONE
};

const STATUS: Command = Command {
    name: "status",
    usage: "<filename>",
    about: "Gets backend snapshot status of a given file",
    example: "etcdutl snapshot status backup.db -w table",
    run: Some(status::run),
    ..Command::NONE
};

const SAVE: Command = Command {
    name: "save",
    group: Group::Hidden,
    usage: "<filename>",
    about: "Says that etcdctl does this",
    run: Some(|_| Err(Failure::arguments("In order to download snapshot use: `etcdctl snapshot save ...`"))),
    ..Command::NONE
};

const HASHKV: Command = Command {
    name: "hashkv",
    usage: "<filename>",
    about: "Prints the KV history hash of a given file",
    example: "etcdutl hashkv backup.db\netcdutl hashkv /var/lib/etcd",
    flags: &[number("rev", "0", "The newest revision to hash; 0 is all of them.")],
    run: Some(hashkv::run),
    ..Command::NONE
};

const MIGRATE: Command = Command {
    name: "migrate",
    about: "Migrates schema of etcd data dir files to make them compatible with different etcd version",
    example: "etcdutl migrate --data-dir /var/lib/etcd --target-version 3.5",
    flags: &[
        DATA_DIR,
        text("target-version", "", "Required. The version to fit, as X.Y; 3.5 at least."),
        switch("force", "Write the version even if the data does not fit it."),
    ],
    required: &["data-dir", "target-version"],
    run: Some(migrate::run),
    ..Command::NONE
};

const VERSION: Command = Command {
    name: "version",
    about: "Prints the version of etcdutl",
    example: "etcdutl version",
    run: Some(|_| {
        terminal::say(&format!("etcdutl version: {ETCD_VERSION}\nAPI version: {API_VERSION}"));
        Ok(())
    }),
    ..Command::NONE
};

const COMPLETION: Command = Command {
    name: "completion",
    about: "Generate completion script",
    commands: &[
        shell("bash", "Generate the script for bash", "source <(etcdutl completion bash)", |_| script(Shell::Bash)),
        shell("zsh", "Generate the script for zsh", "source <(etcdutl completion zsh)", |_| script(Shell::Zsh)),
        shell("fish", "Generate the script for fish", "etcdutl completion fish | source", |_| script(Shell::Fish)),
        shell(
            "powershell",
            "Generate the script for powershell",
            "etcdutl completion powershell | Out-String | Invoke-Expression",
            |_| script(Shell::PowerShell),
        ),
    ],
    ..Command::NONE
};

const fn shell(
    name: &'static str,
    about: &'static str,
    example: &'static str,
    run: fn(&Parsed) -> Result<(), Failure>,
) -> Command {
    Command { name, about, example, run: Some(run), ..Command::NONE }
}

fn script(shell: Shell) -> Result<(), Failure> {
    terminal::print(completion::script(shell, "etcdutl").as_bytes());
    Ok(())
}

const COMPLETE: Command = Command {
    name: "__complete",
    group: Group::Hidden,
    about: "Says what may come next, for the completion scripts",
    run: Some(|call| {
        completion::candidates(&ROOT, &call.args).iter().for_each(|candidate| terminal::say(candidate));
        Ok(())
    }),
    ..Command::NONE
};

/// The format that `-w` names.
pub fn format(call: &Parsed) -> Result<Format, Failure> {
    Format::named(call.text("write-out")).ok_or_else(|| Failure::new(exit::BAD_FEATURE, "unsupported output format"))
}

/// For a format in which there is no answer.
pub fn unsupported(format: Format) -> Failure {
    Failure::new(exit::BAD_FEATURE, format!("{} not supported as output format", format.name()))
}

/// How long a lock is waited for; `None` for ever.
pub fn lock_timeout(call: &Parsed) -> Option<Duration> {
    Some(call.duration("timeout")).filter(|timeout| !timeout.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every command can be explained: it says what it does, and shows an example.
    #[test]
    fn every_command_has_help_with_an_example() {
        fn walk(command: &Command) {
            for member in command.commands {
                assert!(!member.about.is_empty(), "{}", member.name);
                let is_hidden = member.group == Group::Hidden;
                assert!(member.run.is_none() || is_hidden || !member.example.is_empty(), "{}", member.name);
                walk(member);
            }
        }
        walk(&ROOT);
    }
}
