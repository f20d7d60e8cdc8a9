//! From what a call says of itself to what it may do.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use proto::etcdserverpb::{InternalRaftRequest, RequestHeader};
use state::Error;
use state::auth::{Action, Place, Policy, Subject, Token};

use super::TokenKind;
use super::jwt::Claims;
use crate::caller::Caller;
use crate::worker::Worker;

/// Tokens that a worker remembers to have seen. Beyond that it begins anew.
const SEEN: usize = 4096;

/// Who a call is from. Made by a [`Worker`] alone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    user: Option<Arc<str>>,
    /// 0: from nobody, or permissions do not count.
    revision: u64,
}

impl Access {
    pub(crate) fn subject(&self) -> Subject<'_> {
        Subject { user: self.user.as_deref().unwrap_or_default(), revision: self.revision }
    }

    /// Whose it is, if anybody's.
    pub(crate) fn user(&self) -> Option<&Arc<str>> {
        self.user.as_ref()
    }

    /// Says in an entry's header who asks for it: whether it may is decided when the entry is applied.
    pub(crate) fn sign(&self, entry: &mut InternalRaftRequest) {
        if self.revision != 0 {
            let header = entry.header.get_or_insert_default();
            *header =
                RequestHeader { username: self.subject().user.into(), auth_revision: self.revision, ..header.clone() };
        }
    }
}

/// Why there is no access, at least not now.
#[derive(Debug)]
pub(crate) enum Denied {
    /// For good.
    Refused(Error),
    /// The token may have been given by a log entry that this member has not applied yet.
    Behind,
}

/// What a worker knows already, so that asking again takes no lock.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The version of `policy`; 0 = none yet.
    version: u64,
    policy: Arc<Policy>,
    tokens: HashMap<Box<str>, Seen>,
}

#[derive(Debug)]
enum Seen {
    Simple(Arc<Token>),
    /// The number of the keys that it was verified with, and what it says.
    Signed(u64, Arc<Claims>),
}

impl Worker {
    /// Finds out who calls.
    pub(crate) fn identify(&self, caller: &Caller) -> Result<Access, Denied> {
        let auth = self.member().state().auth();
        if !auth.is_enabled() {
            return Ok(Access::default());
        }
        if let Some(token) = caller.token() {
            return self.of_token(token);
        }
        Ok(match caller.common_name() {
            Some(name) => Access { user: Some(name.clone()), revision: auth.revision() },
            None => Access::default(),
        })
    }

    fn of_token(&self, token: &str) -> Result<Access, Denied> {
        let invalid = Denied::Refused(Error::InvalidAuthToken);
        let auth = self.member().state().auth();
        let mut known = self.known.borrow_mut();
        if known.tokens.len() >= SEEN {
            known.tokens.clear();
        }
        match &self.shared.auth.tokens {
            TokenKind::None => Err(invalid),
            TokenKind::Simple => {
                let (now_ms, ttl_ms) = (self.member().now_ms(), self.shared.auth.token_ttl_ms);
                let found = match known.tokens.get(token) {
                    Some(Seen::Simple(found)) if found.is_good(now_ms, ttl_ms) => found.clone(),
                    _ => {
                        known.tokens.remove(token);
                        let Some(found) = auth.tokens().find(token).filter(|found| found.is_good(now_ms, ttl_ms))
                        else {
                            drop(known);
                            return Err(if self.may_be_to_come(token) { Denied::Behind } else { invalid });
                        };
                        known.tokens.insert(token.into(), Seen::Simple(found.clone()));
                        found
                    }
                };
                Ok(Access { user: Some(found.user().clone()), revision: auth.revision() })
            }
            TokenKind::Jwt(jwt) => {
                let keys = jwt.generation();
                let claims = match known.tokens.get(token) {
                    Some(Seen::Signed(with, claims)) if *with == keys => claims.clone(),
                    _ => {
                        let claims =
                            Arc::new(jwt.verify(token).map_err(|()| Denied::Refused(Error::InvalidAuthToken))?);
                        known.tokens.insert(token.into(), Seen::Signed(keys, claims.clone()));
                        claims
                    }
                };
                if !claims.are_good_at(seconds_since_1970()) {
                    known.tokens.remove(token);
                    return Err(invalid);
                }
                Ok(Access { user: Some(claims.user.clone()), revision: claims.revision })
            }
        }
    }

    /// Whether a simple token names a log entry that is still to be applied here.
    fn may_be_to_come(&self, token: &str) -> bool {
        let index = token.split_once('.').and_then(|(_, index)| index.parse::<u64>().ok());
        index.is_some_and(|index| index > self.member().applied_index())
    }

    /// Whether the caller may do this here and now.
    pub(crate) fn authorise(&self, caller: &Caller, action: &Action<'_>) -> Result<Access, Denied> {
        if action.is_for_everybody() {
            return Ok(Access::default());
        }
        let access = self.identify(caller)?;
        self.permits(&access, action).map_err(Denied::Refused)?;
        Ok(access)
    }

    /// The same for a task, which can wait for a token that is still to come.
    pub(crate) async fn authorise_soon(&self, caller: &Caller, action: &Action<'_>) -> Result<Access, Error> {
        match self.authorise(caller, action) {
            Ok(access) => return Ok(access),
            Err(Denied::Refused(error)) => return Err(error),
            Err(Denied::Behind) => self.barrier().await?,
        }
        self.authorise(caller, action).map_err(|denied| match denied {
            Denied::Refused(error) => error,
            // It names an entry that there is not.
            Denied::Behind => Error::InvalidAuthToken,
        })
    }

    /// Whether an access is enough for this.
    pub(crate) fn permits(&self, access: &Access, action: &Action<'_>) -> Result<(), Error> {
        let reader = self.member().state();
        if !reader.auth().is_enabled() {
            return Ok(());
        }
        self.policy().permits(access.subject(), action, Place::Member, reader.lessor())
    }

    /// What is in force now.
    pub(crate) fn policy(&self) -> Arc<Policy> {
        let auth = self.member().state().auth();
        // Before the policy: of two that change places meanwhile the older number only means that it is asked for again.
        let version = auth.version();
        let mut known = self.known.borrow_mut();
        if known.version != version {
            (known.version, known.policy) = (version, auth.policy());
        }
        known.policy.clone()
    }

    /// Whether what was read with this access may still be handed out: if users or roles have changed meanwhile, something may
    /// have been read that was written behind the change.
    pub(crate) fn holds(&self, access: &Access) -> Result<(), Error> {
        if access.revision != 0 && access.revision != self.member().state().auth().revision() {
            return Err(Error::AuthOldRevision);
        }
        Ok(())
    }
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
