//! The commands.

mod auth;
mod check;
mod endpoint;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod member;
mod mirror;
mod misc;
mod snapshot;
mod txn;
mod watch;
mod words;

use crate::call::{Call, GLOBAL_FLAGS};

/// A command of this tool.
pub type Command = cli::Command<Call>;

/// The program. The order is that of etcdctl, which decides in what order similar names are suggested.
pub static ROOT: Command = Command {
    name: "etcdctl",
    about: "A simple command line client for etcd3.",
    flags: GLOBAL_FLAGS,
    commands: &[
        kv::GET,
        kv::PUT,
        kv::DEL,
        txn::TXN,
        kv::COMPACTION,
        maintenance::ALARM,
        maintenance::DEFRAG,
        endpoint::ENDPOINT,
        maintenance::MOVE_LEADER,
        watch::WATCH,
        misc::VERSION_COMMAND,
        lease::LEASE,
        member::MEMBER,
        snapshot::SNAPSHOT,
        mirror::MAKE_MIRROR,
        lock::LOCK,
        lock::ELECT,
        auth::AUTH,
        auth::USER,
        auth::ROLE,
        check::CHECK,
        misc::COMPLETION,
        maintenance::DOWNGRADE,
        misc::OPTIONS,
        misc::COMPLETE,
    ],
    ..Command::NONE
};

#[cfg(test)]
mod tests {
    use super::*;
    use cli::{Asked, Group, find};

    fn ask(line: &str) -> (String, Asked<Call>) {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let found = find(&ROOT, &words);
        (found.name(), found.ask())
    }

    fn mistake(line: &str) -> String {
        match ask(line).1 {
            Asked::Mistake(text) => text,
            _ => panic!("{line} is no mistake"),
        }
    }

    #[test]
    fn a_command_is_found_between_its_flags_and_by_a_clear_beginning() {
        assert_eq!(ask("-w json get --prefix a").0, "etcdctl get");
        assert_eq!(ask("--endpoints x member list").0, "etcdctl member list");
        assert_eq!(ask("mem li").0, "etcdctl member list");
        assert_eq!(ask("endpoint --cluster health").0, "etcdctl endpoint health");
        assert_eq!(ask("compact 3").0, "etcdctl compaction");
        assert_eq!(ask("-- get").0, "etcdctl");
    }

    #[test]
    fn an_unknown_command_is_answered_with_what_is_close_to_it() {
        assert_eq!(
            mistake("set a b"),
            "Error: unknown command \"set\" for \"etcdctl\"\n\nDid you mean this?\n\tget\n\tput\n\tdel\n\tuser\n\nRun 'etcdctl --help' for usage.\n"
        );
        assert_eq!(mistake("ls"), "Error: unknown command \"ls\" for \"etcdctl\"\nRun 'etcdctl --help' for usage.\n");
        assert!(mistake("--bogus get a").contains("\"a\" for"), "an unknown flag is taken to have a value");
    }

    #[test]
    fn a_group_alone_shows_its_help_and_a_wrong_flag_the_usage() {
        assert!(matches!(ask("member nosuch").1, Asked::Help(text) if text.contains("promote")));
        assert!(mistake("put a --bogus").starts_with("Error: unknown flag: --bogus\nUsage:\n  etcdctl put "));
    }

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
