//! What a client sees when a request is refused: the one place that knows gRPC status codes.
//!
//! The text of a refusal is the error's own; etcd's clients compare it to the letter, so nothing here may change it.

use std::borrow::Cow;

use http::HeaderValue;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use state::Error;

/// A gRPC status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Code {
    Ok = 0,
    Canceled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl Code {
    /// All codes, in the order of their numbers.
    pub const ALL: [Code; 17] = [
        Code::Ok,
        Code::Canceled,
        Code::Unknown,
        Code::InvalidArgument,
        Code::DeadlineExceeded,
        Code::NotFound,
        Code::AlreadyExists,
        Code::PermissionDenied,
        Code::ResourceExhausted,
        Code::FailedPrecondition,
        Code::Aborted,
        Code::OutOfRange,
        Code::Unimplemented,
        Code::Internal,
        Code::Unavailable,
        Code::DataLoss,
        Code::Unauthenticated,
    ];

    /// The name that gRPC libraries and the `grpc_code` label use.
    pub fn name(self) -> &'static str {
        match self {
            Code::Ok => "OK",
            Code::Canceled => "Canceled",
            Code::Unknown => "Unknown",
            Code::InvalidArgument => "InvalidArgument",
            Code::DeadlineExceeded => "DeadlineExceeded",
            Code::NotFound => "NotFound",
            Code::AlreadyExists => "AlreadyExists",
            Code::PermissionDenied => "PermissionDenied",
            Code::ResourceExhausted => "ResourceExhausted",
            Code::FailedPrecondition => "FailedPrecondition",
            Code::Aborted => "Aborted",
            Code::OutOfRange => "OutOfRange",
            Code::Unimplemented => "Unimplemented",
            Code::Internal => "Internal",
            Code::Unavailable => "Unavailable",
            Code::DataLoss => "DataLoss",
            Code::Unauthenticated => "Unauthenticated",
        }
    }

    /// The number as it stands in the `grpc-status` trailer.
    pub(crate) fn header(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Code::Ok => "0",
            Code::Canceled => "1",
            Code::Unknown => "2",
            Code::InvalidArgument => "3",
            Code::DeadlineExceeded => "4",
            Code::NotFound => "5",
            Code::AlreadyExists => "6",
            Code::PermissionDenied => "7",
            Code::ResourceExhausted => "8",
            Code::FailedPrecondition => "9",
            Code::Aborted => "10",
            Code::OutOfRange => "11",
            Code::Unimplemented => "12",
            Code::Internal => "13",
            Code::Unavailable => "14",
            Code::DataLoss => "15",
            Code::Unauthenticated => "16",
        })
    }
}

/// Why a call was refused, as it goes on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The code.
    pub code: Code,
    /// The `grpc-message`, not yet percent-encoded.
    pub message: Cow<'static, str>,
}

impl Refusal {
    /// A refusal of our own that is no error of the member (framing, metadata, unknown methods).
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into() }
    }

    /// How Go's clients print it; etcd puts this text into a watch's cancel reason.
    pub fn describe(&self) -> String {
        format!("rpc error: code = {} desc = {}", self.code.name(), self.message)
    }
}

impl From<&Error> for Refusal {
    fn from(error: &Error) -> Self {
        if let Error::Internal(what) = error {
            // The client's operator cannot do anything about it; ours can.
            tracing::error!(error = what.as_str(), "failed to serve a request");
        }
        Self { code: code(error), message: error.to_string().into() }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

/// The code of an error. No wildcard arm, so that a new error does not compile until someone has decided what a client
/// sees.
pub fn code(error: &Error) -> Code {
    match error {
        Error::EmptyKey
        | Error::KeyNotFound
        | Error::ValueProvided
        | Error::LeaseProvided
        | Error::TooManyOps
        | Error::DuplicateKey
        | Error::InvalidClientAPIVersion
        | Error::InvalidSortOption
        | Error::MemberBadURLs
        | Error::RequestTooLarge
        | Error::UserEmpty
        | Error::RoleEmpty
        | Error::AuthFailed
        | Error::PermissionNotGiven
        | Error::InvalidAuthMgmt
        | Error::AuthOldRevision
        | Error::WrongDowngradeVersionFormat
        | Error::InvalidDowngradeTargetVersion => Code::InvalidArgument,
        Error::Compacted | Error::FutureRev | Error::LeaseTTLTooLarge => Code::OutOfRange,
        Error::NoSpace => Code::ResourceExhausted,
        Error::LeaseNotFound | Error::MemberNotFound => Code::NotFound,
        Error::LeaseExist
        | Error::MemberExist
        | Error::PeerURLExist
        | Error::MemberNotLearner
        | Error::LearnerNotReady
        | Error::TooManyLearners
        | Error::ClusterIDMismatch
        | Error::RootUserNotExist
        | Error::RootRoleNotExist
        | Error::UserAlreadyExist
        | Error::UserNotFound
        | Error::RoleAlreadyExist
        | Error::RoleNotFound
        | Error::RoleNotGranted
        | Error::PermissionNotGranted
        | Error::AuthNotEnabled
        | Error::NotLeader
        | Error::NotCapable
        | Error::NotSupportedForLearner
        | Error::BadLeaderTransferee
        | Error::ClusterVersionUnavailable
        | Error::DowngradeInProcess
        | Error::NoInflightDowngrade => Code::FailedPrecondition,
        Error::WatchCanceled | Error::Canceled => Code::Canceled,
        Error::PermissionDenied => Code::PermissionDenied,
        Error::InvalidAuthToken => Code::Unauthenticated,
        Error::NoLeader
        | Error::LeaderChanged
        | Error::Stopped
        | Error::Timeout
        | Error::TimeoutDueToLeaderFail
        | Error::TimeoutDueToConnectionLost
        | Error::TimeoutWaitAppliedIndex
        | Error::Unhealthy => Code::Unavailable,
        Error::Corrupt => Code::DataLoss,
        Error::DeadlineExceeded => Code::DeadlineExceeded,
        // etcd never mapped these two, though it has codes for them; clients have learnt to live with Unknown.
        Error::MemberNotEnoughStarted | Error::RequestTooManyRequests => Code::Unknown,
        Error::NoPasswordUser => Code::Unknown,
        Error::Unimplemented(_) => Code::Unimplemented,
        Error::Internal(_) => Code::Unknown,
    }
}

/// `message` as a `grpc-message` trailer: every byte outside printable ASCII, and `%` itself, percent-encoded.
pub(crate) fn message_header(message: &str) -> HeaderValue {
    const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');
    HeaderValue::from_str(&utf8_percent_encode(message, ESCAPED).to_string()).expect("only printable ASCII is left")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_the_code_that_etcd_gives_it() {
        let table = [
            (Error::EmptyKey, Code::InvalidArgument),
            (Error::KeyNotFound, Code::InvalidArgument),
            (Error::ValueProvided, Code::InvalidArgument),
            (Error::LeaseProvided, Code::InvalidArgument),
            (Error::TooManyOps, Code::InvalidArgument),
            (Error::DuplicateKey, Code::InvalidArgument),
            (Error::InvalidClientAPIVersion, Code::InvalidArgument),
            (Error::InvalidSortOption, Code::InvalidArgument),
            (Error::Compacted, Code::OutOfRange),
            (Error::FutureRev, Code::OutOfRange),
            (Error::NoSpace, Code::ResourceExhausted),
            (Error::LeaseNotFound, Code::NotFound),
            (Error::LeaseExist, Code::FailedPrecondition),
            (Error::LeaseTTLTooLarge, Code::OutOfRange),
            (Error::WatchCanceled, Code::Canceled),
            (Error::MemberExist, Code::FailedPrecondition),
            (Error::PeerURLExist, Code::FailedPrecondition),
            (Error::MemberNotEnoughStarted, Code::Unknown),
            (Error::MemberBadURLs, Code::InvalidArgument),
            (Error::MemberNotFound, Code::NotFound),
            (Error::MemberNotLearner, Code::FailedPrecondition),
            (Error::LearnerNotReady, Code::FailedPrecondition),
            (Error::TooManyLearners, Code::FailedPrecondition),
            (Error::ClusterIDMismatch, Code::FailedPrecondition),
            (Error::RequestTooLarge, Code::InvalidArgument),
            (Error::RequestTooManyRequests, Code::Unknown),
            (Error::RootUserNotExist, Code::FailedPrecondition),
            (Error::RootRoleNotExist, Code::FailedPrecondition),
            (Error::UserAlreadyExist, Code::FailedPrecondition),
            (Error::UserEmpty, Code::InvalidArgument),
            (Error::UserNotFound, Code::FailedPrecondition),
            (Error::RoleAlreadyExist, Code::FailedPrecondition),
            (Error::RoleNotFound, Code::FailedPrecondition),
            (Error::RoleEmpty, Code::InvalidArgument),
            (Error::AuthFailed, Code::InvalidArgument),
            (Error::NoPasswordUser, Code::Unknown),
            (Error::PermissionNotGiven, Code::InvalidArgument),
            (Error::PermissionDenied, Code::PermissionDenied),
            (Error::RoleNotGranted, Code::FailedPrecondition),
            (Error::PermissionNotGranted, Code::FailedPrecondition),
            (Error::AuthNotEnabled, Code::FailedPrecondition),
            (Error::InvalidAuthToken, Code::Unauthenticated),
            (Error::InvalidAuthMgmt, Code::InvalidArgument),
            (Error::AuthOldRevision, Code::InvalidArgument),
            (Error::NoLeader, Code::Unavailable),
            (Error::NotLeader, Code::FailedPrecondition),
            (Error::LeaderChanged, Code::Unavailable),
            (Error::NotCapable, Code::FailedPrecondition),
            (Error::Stopped, Code::Unavailable),
            (Error::Timeout, Code::Unavailable),
            (Error::TimeoutDueToLeaderFail, Code::Unavailable),
            (Error::TimeoutDueToConnectionLost, Code::Unavailable),
            (Error::TimeoutWaitAppliedIndex, Code::Unavailable),
            (Error::Unhealthy, Code::Unavailable),
            (Error::Corrupt, Code::DataLoss),
            (Error::NotSupportedForLearner, Code::FailedPrecondition),
            (Error::BadLeaderTransferee, Code::FailedPrecondition),
            (Error::WrongDowngradeVersionFormat, Code::InvalidArgument),
            (Error::InvalidDowngradeTargetVersion, Code::InvalidArgument),
            (Error::ClusterVersionUnavailable, Code::FailedPrecondition),
            (Error::DowngradeInProcess, Code::FailedPrecondition),
            (Error::NoInflightDowngrade, Code::FailedPrecondition),
            (Error::Canceled, Code::Canceled),
            (Error::DeadlineExceeded, Code::DeadlineExceeded),
        ];
        for (error, expected) in table {
            assert_eq!(code(&error), expected, "{error}");
        }
    }

    #[test]
    fn a_message_is_percent_encoded_where_it_must_be() {
        assert_eq!(message_header("100% of «it»\n"), "100%25 of %C2%ABit%C2%BB%0A");
        assert_eq!(message_header("etcdserver: no leader"), "etcdserver: no leader");
    }

    #[test]
    fn codes_are_listed_by_number() {
        for (number, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, number);
            assert_eq!(code.header(), number.to_string().as_str());
        }
    }
}
