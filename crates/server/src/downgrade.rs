//! The way back to an older minor version, while all members still run the newer one.
//!
//! A downgrade is a fact in the log. While it is under way the cluster version is the older one, so that nothing newer is
//! used any more and members may be restarted with the older program; when all have been, the leader ends it.

use std::sync::Arc;
use std::time::Duration;

use api::{Answer, Member as _, Outcome, Reply};
use proto::etcdserverpb::downgrade_request::DowngradeAction;
use proto::{etcdserverpb as pb, membershippb};
use state::Error;

use crate::member::Node;
use crate::peers::ask;
use crate::versions::parse;

/// Members before this version stop when they meet a downgrade in the log.
const KNOWN_SINCE: (u64, u64) = (3, 5);

/// The version that a cluster of this version may go back to.
pub(crate) fn one_below((major, minor): (u64, u64)) -> Option<(u64, u64)> {
    Some((major, minor.checked_sub(1)?))
}

/// `X.Y` or a full semantic version; what comes after the minor version does not matter.
fn parse_target(text: &str) -> Result<(u64, u64), Error> {
    let core = text.split(['-', '+']).next().unwrap_or(text);
    let parts: Vec<&str> = core.split('.').collect();
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    // What follows a hyphen or a plus belongs to a patch version.
    let is_long_enough = if core.len() == text.len() { parts.len() == 2 || parts.len() == 3 } else { parts.len() == 3 };
    if !is_long_enough || !parts.iter().all(is_number) {
        return Err(Error::WrongDowngradeVersionFormat);
    }
    parse(core).ok_or(Error::WrongDowngradeVersionFormat)
}

impl Node {
    /// See [`api::Member::downgrade`].
    pub(crate) fn begin_downgrade(&self, action: i32, version: String, reply: Reply) {
        self.in_background(reply, move |node| async move { node.downgrade_as_asked(action, &version).await });
    }

    async fn downgrade_as_asked(&self, action: i32, version: &str) -> Outcome {
        match DowngradeAction::try_from(action) {
            Ok(DowngradeAction::Validate) => {
                self.validate_downgrade(parse_target(version)?).await?;
            }
            Ok(DowngradeAction::Enable) => {
                let target = parse_target(version)?;
                let (major, minor) = target;
                let begun = match self.validate_downgrade(target).await {
                    Ok(()) => self.set_downgrade(true, format!("{major}.{minor}.0")).await,
                    refused => refused,
                };
                begun.inspect_err(|error| tracing::warn!(%error, "reject downgrade request"))?;
            }
            Ok(DowngradeAction::Cancel) => {
                // As in etcd, where whoever asks is not told.
                if let Err(error) = self.cancel_downgrade().await {
                    tracing::error!(%error, "failed to cancel downgrade");
                }
            }
            Err(_) => return Err(Error::Internal("etcdserver: unknown method".into())),
        }
        let (major, minor) = self.decided_version()?;
        Ok(Answer::Version(format!("{major}.{minor}")))
    }

    fn decided_version(&self) -> Result<(u64, u64), Error> {
        self.state().cluster_version().and_then(|version| parse(&version)).ok_or(Error::ClusterVersionUnavailable)
    }

    async fn validate_downgrade(&self, target: (u64, u64)) -> Result<(), Error> {
        self.decided_version()?;
        ask(|reply| self.read_index(reply)).await?;
        let decided = self.decided_version()?;
        if one_below(decided) != Some(target) || decided < KNOWN_SINCE {
            return Err(Error::InvalidDowngradeTargetVersion);
        }
        if self.state().downgrade().enabled {
            return Err(Error::DowngradeInProcess);
        }
        Ok(())
    }

    async fn cancel_downgrade(&self) -> Result<(), Error> {
        ask(|reply| self.read_index(reply)).await?;
        if !self.state().downgrade().enabled {
            return Err(Error::NoInflightDowngrade);
        }
        self.set_downgrade(false, String::new()).await
    }

    async fn set_downgrade(&self, enabled: bool, ver: String) -> Result<(), Error> {
        let request = pb::InternalRaftRequest {
            downgrade_info_set: Some(membershippb::DowngradeInfoSetRequest { enabled, ver }),
            ..Default::default()
        };
        let applied = ask(|reply| {
            self.propose(request, reply);
            self.submit();
        });
        applied.await.map(drop)
    }
}

/// Ends a downgrade whose members all run the target version, while this member leads, until the task is dropped.
pub(crate) async fn watch(node: Arc<Node>, every: Duration) {
    loop {
        node.host.sleep(every).await;
        let downgrade = node.state().downgrade();
        if !node.is_leader() || !downgrade.enabled || !node.all_run(&downgrade.target_version) {
            continue;
        }
        tracing::info!("cluster-version" = downgrade.target_version.as_str(), "the cluster has been downgraded");
        if let Err(error) = node.cancel_downgrade().await {
            tracing::warn!(%error, "failed to cancel downgrade");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_minor_version_or_a_full_one() {
        assert!(matches!(parse_target("3.6"), Ok((3, 6))));
        assert!(matches!(parse_target("3.6.12"), Ok((3, 6))));
        assert!(matches!(parse_target("3.6.0-rc.1+build"), Ok((3, 6))));
        for text in ["", "3", "3.", "3.x", "3.6-rc.1", "3.6.1.2", "v3.6", "-3.6", "3..6", " 3.6"] {
            assert!(matches!(parse_target(text), Err(Error::WrongDowngradeVersionFormat)), "{text:?}");
        }
    }

    #[test]
    fn the_way_back_is_one_minor_version() {
        assert_eq!(one_below((3, 7)), Some((3, 6)));
        assert_eq!(one_below((4, 0)), None, "nobody knows yet which version comes before it");
    }
}
