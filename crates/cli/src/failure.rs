//! How a command ends that does not end well.

use std::fmt::Display;

/// etcd's exit codes.
pub mod exit {
    /// A command or a call failed.
    pub const ERROR: u8 = 1;
    /// No connection, or no client.
    pub const BAD_CONNECTION: u8 = 2;
    /// What was read makes no sense.
    pub const INVALID_INPUT: u8 = 3;
    /// There is no such thing here.
    pub const BAD_FEATURE: u8 = 4;
    /// Ended from outside.
    pub const INTERRUPTED: u8 = 5;
    /// Reading or writing failed.
    pub const IO: u8 = 6;
    /// The arguments make no sense.
    pub const BAD_ARGUMENTS: u8 = 128;
}

/// How a command ended that did not end well.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// What to say after `Error: `; nothing if all is said.
    pub text: Option<String>,
}

impl Failure {
    /// With this exit code and text.
    pub fn new(code: u8, text: impl Display) -> Self {
        Failure { code, text: Some(text.to_string()) }
    }

    /// The arguments make no sense.
    pub fn arguments(text: impl Display) -> Self {
        Failure::new(exit::BAD_ARGUMENTS, text)
    }

    /// All has been said already.
    pub fn silent(code: u8) -> Self {
        Failure { code, text: None }
    }
}

/// What fails without more being said about it is an error.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::new(exit::ERROR, error)
    }
}
