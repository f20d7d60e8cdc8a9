//! What stands between clients and a cluster without being a member: `etcd gateway start`.
//!
//! [`gateway`] passes connections on and looks at nothing in them.

pub mod gateway;

use cli::flags::Parsed;
use cli::{Asked, Command, Failure};

/// What is called when the proxy can be reached.
pub type Ready = fn();

/// The programs inside of `etcd` that are no member.
static ROOT: Command<Parsed> =
    Command { name: "etcd", about: "etcd as a proxy.", commands: &[gateway::GATEWAY], ..Command::NONE };

/// Runs what the words behind `etcd` ask for. Comes back only when it could not be done, or was a question.
///
/// The exit code, what belongs on stdout and what on stderr.
pub fn run(words: &[String], ready: Ready) -> (u8, String, String) {
    match cli::find(&ROOT, words).ask() {
        Asked::Help(text) => (0, text, String::new()),
        Asked::Mistake(text) => (cli::exit::ERROR, String::new(), text),
        Asked::Run(_, parsed) => {
            let Err(Failure { code, text }) = gateway::run(&parsed, ready);
            // etcd's gateway says on stdout why it does not start.
            (code, text.map_or_else(String::new, |text| text + "\n"), String::new())
        }
    }
}
