//! What can go wrong with a cluster.

use std::fmt;
use std::time::Duration;

use rand::Rng as _;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;

use crate::harness::{Cluster, ClusterError};

/// One thing that goes wrong with one member, until it is healed. The kind of a fault is chosen by weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `kill -9`, and a start when it is healed.
    Killed,
    /// It and the others do not hear each other.
    CutOff,
    /// The others do not hear it.
    Mute,
    /// It does not hear the others.
    Deaf,
    /// It and one other do not hear each other; the third hears both.
    Bridge,
    /// Its link is slow.
    Slow,
    /// Its link loses packets.
    Lossy,
    /// SIGSTOP, and SIGCONT when it is healed.
    Paused,
    /// Its disk hangs.
    DiskHangs,
}

impl Kind {
    /// Those that need a network of our own.
    const OF_LINKS: [Kind; 6] = [Kind::CutOff, Kind::Mute, Kind::Deaf, Kind::Bridge, Kind::Slow, Kind::Lossy];

    /// What can be done to a cluster with or without a network of its own, and disks that can hang.
    pub fn possible(network: bool, disks: bool) -> Vec<Kind> {
        // A kill is the most frequent fault of all, and the one whose outage is measured.
        let mut kinds = vec![Kind::Killed, Kind::Killed, Kind::Killed, Kind::Paused];
        kinds.extend(Kind::OF_LINKS.iter().filter(|_| network));
        kinds.extend([Kind::DiskHangs].iter().filter(|_| disks));
        kinds
    }
}

/// A fault of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub kind: Kind,
    /// Whose.
    pub member: usize,
    /// Whether that member led when it happened.
    pub leads: bool,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", if self.leads { "leader" } else { "follower" }, self.kind)
    }
}

impl Fault {
    /// A fault of one member or two, the leader being one of them half of the time.
    pub fn choose(random: &mut SmallRng, possible: &[Kind], members: usize, leader: usize) -> Vec<Fault> {
        let mut hit = vec![];
        let others: Vec<usize> = (0..members).filter(|member| *member != leader).collect();
        hit.extend(if random.random_ratio(1, 2) { Some(leader) } else { others.choose(random).copied() });
        if random.random_ratio(3, 10) {
            hit.extend(others.choose(random).copied().filter(|member| hit[0] != *member));
        }
        let mut fault = |member| Fault {
            kind: *possible.choose(random).expect("a kill is always possible"),
            member,
            leads: member == leader,
        };
        hit.into_iter().map(&mut fault).collect()
    }

    /// Lets it happen, for `time` if it ends by itself.
    pub fn strike(self, cluster: &mut Cluster, time: Duration) -> Result<(), ClusterError> {
        let Fault { kind, member, .. } = self;
        let others: Vec<usize> = (0..cluster.len()).filter(|other| *other != member).collect();
        match kind {
            Kind::Killed => cluster.member(member).kill()?,
            Kind::Paused => cluster.member(member).pause()?,
            Kind::DiskHangs => cluster.disk(member).stall(time).map_err(ClusterError::Disk)?,
            Kind::Slow => cluster.network().slow(member)?,
            Kind::Lossy => cluster.network().lose(member)?,
            Kind::Bridge => cluster.network().cut_both(member, others[0])?,
            Kind::CutOff | Kind::Mute | Kind::Deaf => {
                for other in others {
                    if kind != Kind::Deaf {
                        cluster.network().cut(member, other)?;
                    }
                    if kind != Kind::Mute {
                        cluster.network().cut(other, member)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends it, without waiting for the member; links are healed all at once.
    pub fn heal(self, cluster: &mut Cluster) -> Result<(), ClusterError> {
        match self.kind {
            Kind::Killed => cluster.spawn(self.member),
            Kind::Paused => Ok(cluster.member(self.member).resume()?),
            _ => Ok(()),
        }
    }
}
