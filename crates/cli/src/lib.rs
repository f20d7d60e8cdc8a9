//! What the command line tools share: commands and flags by the rules of Go's `cobra` and `pflag`, output in etcd's five
//! formats, and texts as Go writes them. Scripts depend on all of it.
//!
//! Knows no command: a tool brings its tree of [`Command`]s, whose functions are given a value of the tool's own type.

mod command;
pub mod completion;
mod failure;
pub mod flags;
mod format;
pub mod go;
pub mod json;
pub mod raw;
pub mod table;
pub mod terminal;

pub use command::{Asked, Command, Found, Group, Run, find, list_flags};
pub use failure::{Failure, exit};
pub use format::Format;
