//! What can go wrong while measuring.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a workload has no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The program could not be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// The server's binary.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The server ended by itself.
    #[error("the server exited ({status}); end of its log:\n{log}")]
    Exited {
        /// Its exit status.
        status: String,
        /// The last lines of its log.
        log: String,
    },
    /// The server was started and does not answer a linearizable read.
    #[error("no answer to a linearizable read within {0:?} of the start; end of the server's log:\n{1}")]
    NotReady(Duration, String),
    /// The server got SIGTERM and is still there.
    #[error("the server did not stop within {0:?} of SIGTERM")]
    NotStopped(Duration),
    /// A file or directory of the run.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The load connection broke.
    #[error("load connection: {0}")]
    Wire(#[from] crate::wire::WireError),
    /// A call of the control connection failed.
    #[error("{0}")]
    Call(#[from] crate::control::CallError),
    /// Requests under load were refused or answered wrongly.
    #[error("{failed} of {total} requests failed ({example})")]
    Failed {
        /// How many.
        failed: u64,
        /// Of how many.
        total: u64,
        /// What one such request gets.
        example: String,
    },
    /// An answer that cannot be right.
    #[error("wrong answer: {0}")]
    Wrong(String),
    /// Not one request ended while it counted.
    #[error("nothing was answered within the measured time")]
    NothingMeasured,
    /// A step took longer than its bound.
    #[error("{0} did not end within {1:?}")]
    TimedOut(&'static str, Duration),
}
