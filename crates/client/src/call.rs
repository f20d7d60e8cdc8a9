//! How a call is made: endpoints, retries, timeouts and tokens; and the table of all plain calls.

use crate::balance::{Picked, Pool};
use crate::{Config, Error};
use proto::etcdserverpb::{self as pb, auth_client, cluster_client, kv_client, lease_client, maintenance_client};
use std::error::Error as _;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, ConnectError, Request, Response, Status, Streaming};

/// How long a call waits before it is made again, as in etcd's client.
const PAUSE: Duration = Duration::from_millis(25);
/// How often a call that was answered with `Unavailable` is made again, as in etcd's client.
const MAX_REPEATS: u32 = 100;

/// Whether a call that may have arrived can be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Changes nothing, or nothing more the second time.
    Repeatable,
    /// Counts.
    Once,
}

/// A handle on a cluster. Cloning is cheap and shares the connections.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    timeout: Option<Duration>,
}

struct Shared {
    config: Arc<Config>,
    pool: Pool,
    token: Mutex<Option<MetadataValue<Ascii>>>,
}

/// What every request of a call carries.
#[derive(Clone)]
pub(crate) struct Envelope {
    token: Option<MetadataValue<Ascii>>,
    deadline: Option<Instant>,
}

impl Envelope {
    /// A request whose answer is a stream that goes on: the deadline is only for opening it, so the server is not told.
    pub fn stream<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }

    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.stream(message);
        if let Some(deadline) = self.deadline {
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        }
        request
    }
}

impl Client {
    /// A client that has not connected yet; calls do. Fails if there is no endpoint.
    pub fn new(config: Config) -> Result<Self, Error> {
        if config.endpoints.is_empty() {
            return Err(Error::NoEndpoints);
        }
        let token = config.token.as_deref().and_then(|token| token.parse().ok());
        let config = Arc::new(config);
        let shared = Shared { pool: Pool::new(config.clone())?, config, token: Mutex::new(token) };
        Ok(Client { shared: Arc::new(shared), timeout: None })
    }

    /// The same client, whose calls end after `timeout` (`None`: wait for ever). Streams are only opened within it.
    pub fn with_timeout(&self, timeout: Option<Duration>) -> Self {
        Client { shared: self.shared.clone(), timeout }
    }

    /// The endpoints, as they were given.
    pub fn endpoints(&self) -> &[String] {
        &self.shared.config.endpoints
    }

    /// A client of only this endpoint, with everything else the same, and the token that this one holds.
    pub fn only(&self, endpoint: &str) -> Result<Self, Error> {
        let config = Config { endpoints: vec![endpoint.to_owned()], ..(*self.shared.config).clone() };
        let client = Client::new(config)?.with_timeout(self.timeout);
        client.set_token(self.token());
        Ok(client)
    }

    /// Exchanges the configured credentials for a token. Does nothing without credentials, or where authentication is off.
    pub async fn log_in(&self) -> Result<(), Error> {
        let Some(credentials) = self.shared.config.credentials.as_ref().filter(|_| self.shared.config.token.is_none())
        else {
            return Ok(());
        };
        self.set_token(None);
        let request =
            pb::AuthenticateRequest { name: credentials.name.clone(), password: credentials.password.clone() };
        let call = self.run_once_authenticated(Class::Repeatable, false, |channel, envelope: Envelope| {
            let request = envelope.request(request.clone());
            async move { auth_client::AuthClient::new(channel).authenticate(request).await }
        });
        match call.await {
            Ok(answer) => {
                self.set_token(answer.token.parse().ok());
                Ok(())
            }
            Err(error) if error.is("etcdserver: authentication is not enabled") => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn token(&self) -> Option<MetadataValue<Ascii>> {
        self.shared.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_token(&self, token: Option<MetadataValue<Ascii>>) {
        *self.shared.token.lock().unwrap_or_else(PoisonError::into_inner) = token;
    }

    pub(crate) fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Makes a call as often as `class` allows until it is answered. Gets a new token once if the old one is refused.
    pub(crate) async fn run<R, F, Fut>(&self, class: Class, method: F) -> Result<R, Error>
    where
        R: Send,
        F: Fn(Channel, Envelope) -> Fut + Send + Sync,
        Fut: Future<Output = Result<Response<R>, Status>> + Send,
    {
        match self.run_once_authenticated(class, true, &method).await {
            Err(error) if self.shared.config.credentials.is_some() && is_about_the_token(&error) => {
                self.log_in().await?;
                self.run_once_authenticated(class, true, &method).await
            }
            outcome => outcome,
        }
    }

    /// [`Client::run`] with the token as it is, or without any.
    async fn run_once_authenticated<R, F, Fut>(&self, class: Class, with_token: bool, method: F) -> Result<R, Error>
    where
        F: Fn(Channel, Envelope) -> Fut,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        let envelope = Envelope { token: self.token().filter(|_| with_token), deadline };
        let cause = Mutex::new(None);
        let attempts = self.attempts(class, &envelope, &cause, method);
        let outcome = match deadline {
            None => attempts.await,
            Some(deadline) => tokio::time::timeout_at(deadline.into(), attempts)
                .await
                .unwrap_or(Err(Error::DeadlineExceeded { cause: None })),
        };
        let is_late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        match outcome {
            // Whichever of the three clocks was first: ours, the transport's, the server's.
            Err(Error::DeadlineExceeded { .. } | Error::Server { code: Code::DeadlineExceeded, .. }) => {
                Err(Error::DeadlineExceeded { cause: cause.into_inner().unwrap_or_else(PoisonError::into_inner) })
            }
            Err(Error::Server { code: Code::Cancelled, .. }) if is_late => {
                Err(Error::DeadlineExceeded { cause: cause.into_inner().unwrap_or_else(PoisonError::into_inner) })
            }
            outcome => outcome,
        }
    }

    async fn attempts<R, F, Fut>(
        &self,
        class: Class,
        envelope: &Envelope,
        cause: &Mutex<Option<String>>,
        method: F,
    ) -> Result<R, Error>
    where
        F: Fn(Channel, Envelope) -> Fut,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        let note = |text: String| *cause.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        let mut repeats = 0;
        loop {
            let picked = match self.shared.pool.pick().await {
                Ok(picked) => picked,
                Err(reason) => {
                    note(reason);
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let status = match method(picked.channel.clone(), envelope.clone()).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            note(format!("{}: {}", picked.endpoint(), innermost(&status)));
            let never_sent = note_trouble(&picked, &status);
            let may_repeat = class == Class::Repeatable && status.code() == Code::Unavailable && repeats < MAX_REPEATS;
            if !never_sent && !may_repeat {
                return Err(status.into());
            }
            repeats += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Gives a broken connection up. True if the request surely did not arrive.
fn note_trouble(picked: &Picked, status: &Status) -> bool {
    // Of a connection that could not be made again nothing but the words is left in some cases.
    let never_sent = has_source(status, |_: &ConnectError| true)
        || status.message().starts_with("Service was not ready")
        // It waited for its turn on a connection that was closed meanwhile.
        || has_source(status, hyper::Error::is_canceled);
    if never_sent
        || has_source(status, |_: &tonic::transport::Error| true)
        || has_source(status, |_: &std::io::Error| true)
    {
        picked.give_up();
    }
    never_sent
}

/// The words of the innermost error behind a status.
pub(crate) fn innermost(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        text = error.to_string();
        source = error.source();
    }
    text
}

fn has_source<E: std::error::Error + 'static>(status: &Status, is_it: impl Fn(&E) -> bool) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.downcast_ref().is_some_and(&is_it) {
            return true;
        }
        source = error.source();
    }
    false
}

fn is_about_the_token(error: &Error) -> bool {
    error.is("etcdserver: invalid auth token")
        || error.is("etcdserver: revision of auth store is old")
        || error.is("etcdserver: user name is empty")
}

/// Answers that come one after another.
#[derive(Debug)]
pub struct Answers<T>(pub(crate) Streaming<T>);

impl<T> Answers<T> {
    /// The next answer, or `None` at the end.
    pub async fn next(&mut self) -> Result<Option<T>, Error> {
        Ok(self.0.message().await?)
    }
}

/// The plain calls: one request, one answer (or a stream of answers).
macro_rules! calls {
    ($($stub:path { $($(#[$doc:meta])* $name:ident as $method:ident ($request:ty) -> $answer:ty, $class:ident;)* })*) => {
        impl Client {
            $($(
                $(#[$doc])*
                pub async fn $name(&self, request: impl Into<$request>) -> Result<$answer, Error> {
                    let request: $request = request.into();
                    let (largest_request, largest_answer) =
                        (self.config().max_request_bytes, self.config().max_response_bytes);
                    self.run(Class::$class, |channel, envelope: Envelope| {
                        let request = envelope.request(request.clone());
                        async move {
                            <$stub>::new(channel)
                                .max_encoding_message_size(largest_request)
                                .max_decoding_message_size(largest_answer)
                                .$method(request)
                                .await
                        }
                    })
                    .await
                }
            )*)*
        }
    };
}

calls! {
    kv_client::KvClient<Channel> {
        /// Reads keys.
        range as range(pb::RangeRequest) -> pb::RangeResponse, Repeatable;
        /// Stores a value under a key.
        put as put(pb::PutRequest) -> pb::PutResponse, Once;
        /// Deletes keys.
        delete as delete_range(pb::DeleteRangeRequest) -> pb::DeleteRangeResponse, Once;
        /// Compares, and does one of two things, at once.
        txn as txn(pb::TxnRequest) -> pb::TxnResponse, Once;
        /// Forgets the history up to a revision.
        compact as compact(pb::CompactionRequest) -> pb::CompactionResponse, Once;
    }
    lease_client::LeaseClient<Channel> {
        /// Creates a lease.
        lease_grant as lease_grant(pb::LeaseGrantRequest) -> pb::LeaseGrantResponse, Once;
        /// Ends a lease; its keys go with it.
        lease_revoke as lease_revoke(pb::LeaseRevokeRequest) -> pb::LeaseRevokeResponse, Once;
        /// What is left of a lease. A lease that does not exist has a TTL of -1.
        lease_time_to_live as lease_time_to_live(pb::LeaseTimeToLiveRequest) -> pb::LeaseTimeToLiveResponse, Repeatable;
        /// All leases.
        lease_leases as lease_leases(pb::LeaseLeasesRequest) -> pb::LeaseLeasesResponse, Repeatable;
    }
    cluster_client::ClusterClient<Channel> {
        /// Adds a member.
        member_add as member_add(pb::MemberAddRequest) -> pb::MemberAddResponse, Once;
        /// Removes a member.
        member_remove as member_remove(pb::MemberRemoveRequest) -> pb::MemberRemoveResponse, Once;
        /// Changes where a member's peers find it.
        member_update as member_update(pb::MemberUpdateRequest) -> pb::MemberUpdateResponse, Once;
        /// All members.
        member_list as member_list(pb::MemberListRequest) -> pb::MemberListResponse, Repeatable;
        /// Makes a learner a voter.
        member_promote as member_promote(pb::MemberPromoteRequest) -> pb::MemberPromoteResponse, Once;
    }
    maintenance_client::MaintenanceClient<Channel> {
        /// Lists, raises or clears alarms.
        alarm as alarm(pb::AlarmRequest) -> pb::AlarmResponse, Repeatable;
        /// How the answering member is.
        status as status(pb::StatusRequest) -> pb::StatusResponse, Repeatable;
        /// Asks the answering member to give space back.
        defragment as defragment(pb::DefragmentRequest) -> pb::DefragmentResponse, Once;
        /// The answering member's sum over its keys.
        hash_kv as hash_kv(pb::HashKvRequest) -> pb::HashKvResponse, Repeatable;
        /// Hands the leadership over.
        move_leader as move_leader(pb::MoveLeaderRequest) -> pb::MoveLeaderResponse, Repeatable;
        /// Asks for, begins or gives up a downgrade of the cluster.
        downgrade as downgrade(pb::DowngradeRequest) -> pb::DowngradeResponse, Once;
    }
    auth_client::AuthClient<Channel> {
        /// Switches authentication on.
        auth_enable as auth_enable(pb::AuthEnableRequest) -> pb::AuthEnableResponse, Once;
        /// Switches authentication off.
        auth_disable as auth_disable(pb::AuthDisableRequest) -> pb::AuthDisableResponse, Once;
        /// Whether authentication is on.
        auth_status as auth_status(pb::AuthStatusRequest) -> pb::AuthStatusResponse, Repeatable;
        /// Creates a user.
        user_add as user_add(pb::AuthUserAddRequest) -> pb::AuthUserAddResponse, Once;
        /// A user's roles.
        user_get as user_get(pb::AuthUserGetRequest) -> pb::AuthUserGetResponse, Repeatable;
        /// All users.
        user_list as user_list(pb::AuthUserListRequest) -> pb::AuthUserListResponse, Repeatable;
        /// Deletes a user.
        user_delete as user_delete(pb::AuthUserDeleteRequest) -> pb::AuthUserDeleteResponse, Once;
        /// Gives a user another password.
        user_change_password as user_change_password(pb::AuthUserChangePasswordRequest)
            -> pb::AuthUserChangePasswordResponse, Once;
        /// Gives a user a role.
        user_grant_role as user_grant_role(pb::AuthUserGrantRoleRequest) -> pb::AuthUserGrantRoleResponse, Once;
        /// Takes a role from a user.
        user_revoke_role as user_revoke_role(pb::AuthUserRevokeRoleRequest) -> pb::AuthUserRevokeRoleResponse, Once;
        /// Creates a role.
        role_add as role_add(pb::AuthRoleAddRequest) -> pb::AuthRoleAddResponse, Once;
        /// What a role may do.
        role_get as role_get(pb::AuthRoleGetRequest) -> pb::AuthRoleGetResponse, Repeatable;
        /// All roles.
        role_list as role_list(pb::AuthRoleListRequest) -> pb::AuthRoleListResponse, Repeatable;
        /// Deletes a role.
        role_delete as role_delete(pb::AuthRoleDeleteRequest) -> pb::AuthRoleDeleteResponse, Once;
        /// Allows a role something.
        role_grant_permission as role_grant_permission(pb::AuthRoleGrantPermissionRequest)
            -> pb::AuthRoleGrantPermissionResponse, Once;
        /// Forbids it again.
        role_revoke_permission as role_revoke_permission(pb::AuthRoleRevokePermissionRequest)
            -> pb::AuthRoleRevokePermissionResponse, Once;
    }
}

impl Client {
    /// Reads keys, a part of the answer at a time (etcd 3.7).
    pub async fn range_stream(
        &self,
        request: impl Into<pb::RangeRequest>,
    ) -> Result<Answers<pb::RangeStreamResponse>, Error> {
        let request = request.into();
        let largest_answer = self.config().max_response_bytes;
        let stream = self.run(Class::Repeatable, |channel, envelope: Envelope| {
            let request = envelope.request(request.clone());
            let mut stub = kv_client::KvClient::new(channel).max_decoding_message_size(largest_answer);
            async move { stub.range_stream(request).await }
        });
        Ok(Answers(stream.await?))
    }

    /// The whole state of the answering member, as the pieces of a bbolt file with a SHA-256 sum at its end.
    pub async fn snapshot(&self) -> Result<Answers<pb::SnapshotResponse>, Error> {
        let largest_answer = self.config().max_response_bytes;
        let stream = self.run(Class::Repeatable, |channel, envelope: Envelope| {
            let request = envelope.request(pb::SnapshotRequest {});
            let mut stub =
                maintenance_client::MaintenanceClient::new(channel).max_decoding_message_size(largest_answer);
            async move { stub.snapshot(request).await }
        });
        Ok(Answers(stream.await?))
    }
}
