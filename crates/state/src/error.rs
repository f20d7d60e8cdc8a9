//! Everything a request can be refused with.
//!
//! The text of a variant is the message a client sees, to the letter; which gRPC code goes with it is decided in one
//! place, `api`'s status table. Errors that a member gives while applying a log entry are the same on every member:
//! nothing in them may depend on local circumstances.

/// Why a request was refused. Its text is etcd's wire message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// InvalidArgument.
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// InvalidArgument.
    #[error("etcdserver: key not found")]
    KeyNotFound,
    /// InvalidArgument.
    #[error("etcdserver: value is provided")]
    ValueProvided,
    /// InvalidArgument.
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    /// InvalidArgument.
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    /// InvalidArgument.
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    /// InvalidArgument.
    #[error("etcdserver: invalid client api version")]
    InvalidClientAPIVersion,
    /// InvalidArgument.
    #[error("etcdserver: invalid sort option")]
    InvalidSortOption,
    /// OutOfRange.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    /// OutOfRange.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRev,
    /// ResourceExhausted.
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    /// NotFound.
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    /// FailedPrecondition.
    #[error("etcdserver: lease already exists")]
    LeaseExist,
    /// OutOfRange.
    #[error("etcdserver: too large lease TTL")]
    LeaseTTLTooLarge,
    /// Canceled.
    #[error("etcdserver: watch canceled")]
    WatchCanceled,
    /// FailedPrecondition.
    #[error("etcdserver: member ID already exist")]
    MemberExist,
    /// FailedPrecondition.
    #[error("etcdserver: Peer URLs already exists")]
    PeerURLExist,
    /// FailedPrecondition.
    #[error("etcdserver: re-configuration failed due to not enough started members")]
    MemberNotEnoughStarted,
    /// InvalidArgument.
    #[error("etcdserver: given member URLs are invalid")]
    MemberBadURLs,
    /// NotFound.
    #[error("etcdserver: member not found")]
    MemberNotFound,
    /// FailedPrecondition.
    #[error("etcdserver: can only promote a learner member")]
    MemberNotLearner,
    /// FailedPrecondition.
    #[error("etcdserver: can only promote a learner member which is in sync with leader")]
    LearnerNotReady,
    /// FailedPrecondition.
    #[error("etcdserver: too many learner members in cluster")]
    TooManyLearners,
    /// FailedPrecondition.
    #[error("etcdserver: cluster ID mismatch")]
    ClusterIDMismatch,
    /// InvalidArgument.
    #[error("etcdserver: request is too large")]
    RequestTooLarge,
    /// ResourceExhausted.
    #[error("etcdserver: too many requests")]
    RequestTooManyRequests,
    /// FailedPrecondition.
    #[error("etcdserver: root user does not exist")]
    RootUserNotExist,
    /// FailedPrecondition.
    #[error("etcdserver: root user does not have root role")]
    RootRoleNotExist,
    /// FailedPrecondition.
    #[error("etcdserver: user name already exists")]
    UserAlreadyExist,
    /// InvalidArgument.
    #[error("etcdserver: user name is empty")]
    UserEmpty,
    /// FailedPrecondition.
    #[error("etcdserver: user name not found")]
    UserNotFound,
    /// FailedPrecondition.
    #[error("etcdserver: role name already exists")]
    RoleAlreadyExist,
    /// FailedPrecondition.
    #[error("etcdserver: role name not found")]
    RoleNotFound,
    /// InvalidArgument.
    #[error("etcdserver: role name is empty")]
    RoleEmpty,
    /// InvalidArgument.
    #[error("etcdserver: authentication failed, invalid user ID or password")]
    AuthFailed,
    /// Unknown: etcd has no text of the wire for it.
    #[error("auth: authentication failed, password was given for no password user")]
    NoPasswordUser,
    /// InvalidArgument.
    #[error("etcdserver: permission not given")]
    PermissionNotGiven,
    /// PermissionDenied.
    #[error("etcdserver: permission denied")]
    PermissionDenied,
    /// FailedPrecondition.
    #[error("etcdserver: role is not granted to the user")]
    RoleNotGranted,
    /// FailedPrecondition.
    #[error("etcdserver: permission is not granted to the role")]
    PermissionNotGranted,
    /// FailedPrecondition.
    #[error("etcdserver: authentication is not enabled")]
    AuthNotEnabled,
    /// Unauthenticated.
    #[error("etcdserver: invalid auth token")]
    InvalidAuthToken,
    /// InvalidArgument.
    #[error("etcdserver: invalid auth management")]
    InvalidAuthMgmt,
    /// InvalidArgument.
    #[error("etcdserver: revision of auth store is old")]
    AuthOldRevision,
    /// Unavailable.
    #[error("etcdserver: no leader")]
    NoLeader,
    /// FailedPrecondition.
    #[error("etcdserver: not leader")]
    NotLeader,
    /// Unavailable.
    #[error("etcdserver: leader changed")]
    LeaderChanged,
    /// FailedPrecondition.
    #[error("etcdserver: not capable")]
    NotCapable,
    /// Unavailable.
    #[error("etcdserver: server stopped")]
    Stopped,
    /// Unavailable.
    #[error("etcdserver: request timed out")]
    Timeout,
    /// Unavailable.
    #[error("etcdserver: request timed out, possibly due to previous leader failure")]
    TimeoutDueToLeaderFail,
    /// Unavailable.
    #[error("etcdserver: request timed out, possibly due to connection lost")]
    TimeoutDueToConnectionLost,
    /// Unavailable.
    #[error("etcdserver: request timed out, waiting for the applied index took too long")]
    TimeoutWaitAppliedIndex,
    /// Unavailable.
    #[error("etcdserver: unhealthy cluster")]
    Unhealthy,
    /// DataLoss.
    #[error("etcdserver: corrupt cluster")]
    Corrupt,
    /// FailedPrecondition.
    #[error("etcdserver: rpc not supported for learner")]
    NotSupportedForLearner,
    /// FailedPrecondition.
    #[error("etcdserver: bad leader transferee")]
    BadLeaderTransferee,
    /// InvalidArgument.
    #[error("etcdserver: wrong downgrade target version format")]
    WrongDowngradeVersionFormat,
    /// InvalidArgument.
    #[error("etcdserver: invalid downgrade target version")]
    InvalidDowngradeTargetVersion,
    /// FailedPrecondition.
    #[error("etcdserver: cluster version not found during downgrade")]
    ClusterVersionUnavailable,
    /// FailedPrecondition.
    #[error("etcdserver: cluster has a downgrade job in progress")]
    DowngradeInProcess,
    /// FailedPrecondition.
    #[error("etcdserver: no inflight downgrade job")]
    NoInflightDowngrade,
    /// Canceled.
    #[error("etcdserver: request canceled")]
    Canceled,
    /// DeadlineExceeded.
    #[error("etcdserver: context deadline exceeded")]
    DeadlineExceeded,
    /// A method or option that this server does not offer; the text is the whole message.
    #[error("{0}")]
    Unimplemented(String),
    /// Anything that has no row in etcd's table; the text is the whole message. Code Unknown.
    #[error("{0}")]
    Internal(String),
}
