//! The life of one cluster: trouble for a while, then peace, in which it must recover; and again.

use crate::cluster::{Cluster, Tally};
use crate::ledger::Violation;
use crate::options::{Options, Settings};
use crate::random::Random;
use crate::troubles::Troubles;

/// How long trouble lasts at most before the cluster gets peace, in microseconds.
const TROUBLE_US: u64 = 240_000_000;
/// How long a cluster may take to recover in peace, in microseconds.
const PEACE_US: u64 = 60_000_000;
/// How long the last requests may take after that, in microseconds.
const QUIET_US: u64 = 30_000_000;

/// How long all leases need at most to end, in microseconds: the longest TTL there is, and a little more.
const LEASES_US: u64 = 24_000_000;

/// What came of a life.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Its seed.
    pub seed: u64,
    /// Stands for everything that happened.
    pub trace_hash: u64,
    /// Simulated time, in microseconds.
    pub simulated_us: u64,
    /// Members at the beginning.
    pub members: u64,
    /// What happened.
    pub tally: Tally,
    /// Entries of the log that all agreed on.
    pub entries: u64,
    /// Answers that were compared with the model's.
    pub compared: u64,
    /// The promise that was broken, if one was.
    pub violation: Option<Violation>,
}

/// Lives the life of a seed.
pub fn live(options: &Options, seed: u64) -> Verdict {
    let mut random = Random::new(seed);
    let mut settings = Settings::draw(options, &mut random);
    options.without.take_from(&mut settings);
    let members = settings.members;
    let mut troubles = Troubles::new(random.fork(), &settings, &options.without);
    let mut cluster = Cluster::new(settings, random, options.without.clone());
    cluster.trace.aloud = options.trace;
    let violation = rounds(&mut cluster, &mut troubles, options.seconds * 1_000_000).err();
    Verdict {
        seed,
        trace_hash: cluster.trace.hash(),
        simulated_us: cluster.now_us,
        members,
        tally: cluster.tally.clone(),
        entries: cluster.ledger.last_index(),
        compared: cluster.ledger.compared,
        violation,
    }
}

fn rounds(cluster: &mut Cluster, troubles: &mut Troubles, until_us: u64) -> Result<(), Violation> {
    cluster.begin()?;
    troubles.plan(cluster);
    while cluster.now_us < until_us {
        troubles.active = true;
        cluster.asking = true;
        cluster.is_calm = false;
        let trouble_until = until_us.min(cluster.now_us + TROUBLE_US);
        cluster.run_until(trouble_until, &mut |cluster, when| troubles.strike(cluster, when))?;
        recover(cluster, troubles)?;
    }
    Ok(())
}

/// In peace, everybody must come back, catch up, and agree.
fn recover(cluster: &mut Cluster, troubles: &mut Troubles) -> Result<(), Violation> {
    cluster.say(format_args!("peace"));
    troubles.cease(cluster);
    let answered = cluster.tally.answered;
    settle(cluster, troubles, PEACE_US, |cluster| cluster.tally.answered > answered + 10 && cluster.is_as_wished())?;
    cluster.asking = false;
    let asked_us = cluster.now_us + 1_000_000;
    settle(cluster, troubles, QUIET_US, |cluster| cluster.is_done())?;
    cluster.compare()?;
    let until_us = asked_us + LEASES_US;
    cluster.run_until(until_us, &mut |cluster, when| troubles.strike(cluster, when))?;
    cluster.leases_ended(asked_us)
}

/// Waits until something holds.
fn settle(
    cluster: &mut Cluster,
    troubles: &mut Troubles,
    patience_us: u64,
    holds: impl Fn(&Cluster) -> bool,
) -> Result<(), Violation> {
    let until_us = cluster.now_us + patience_us;
    while cluster.now_us < until_us {
        // Not in step with what members do twice a second: while nodes of v2 wait to expire, their leader proposes that often.
        let step = cluster.now_us + 387_000;
        cluster.run_until(step, &mut |cluster, when| troubles.strike(cluster, when))?;
        if holds(cluster) {
            return Ok(());
        }
    }
    Err(Violation(format!(
        "the cluster has not recovered in {} s of peace: {}",
        patience_us / 1_000_000,
        cluster.seen()
    )))
}
