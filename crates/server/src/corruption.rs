//! Whether all members hold the same data: their hashes of all keys, compared at one revision.
//!
//! Three occasions, as in etcd. *Initially*, before a restarted member takes part in anything, it asks the others; one that
//! differs does not start. *Periodically*, and *after compactions*, the leader asks the others, and has the alarm CORRUPT
//! raised for those that differ from the majority; the whole cluster refuses writes then, so that nothing is built on wrong
//! data.
//!
//! etcd compares after a compaction a value that each member noted while compacting. Here a hash at any revision that is
//! not compacted can be worked out at any time, and covers all that such a value covers; so that occasion only means that
//! the comparison is due sooner.
//!
//! The v2 tree is compared as well, on the first two occasions: by a number that is kept up with every change, so that
//! it is known what the tree was like at a log entry of the near past. Members that are real etcds do not tell (404), and
//! where there is such a one, a difference among the others is logged, but raises no alarm: it would stop that member,
//! too, whose tree nobody knows.
//!
//! Hashing reads everything. A member that serves gives it a quarter of one processor's time at most; one that does
//! not serve yet has nobody to disturb.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use api::Member as _;
use peer::{CallError, HashKv};
use proto::etcdserverpb as pb;
use state::{Error, Member};
use tokio::task::JoinSet;

use crate::member::Node;
use crate::peers::ask;
use crate::versions;

/// Hashing goes on for about so many bytes between two looks at the clock.
const STEP_BYTES: usize = 64 << 10;
/// What a version costs besides its bytes.
const VERSION_BYTES: usize = 64;
/// It rests when it has been busy for so long, ...
const BUSY: Duration = Duration::from_millis(2);
/// ... for so many times as long, which leaves it a quarter of a processor; ...
const REST_FACTOR: u32 = 3;
/// ... but not for ever because the machine slept.
const MAX_REST: Duration = Duration::from_millis(50);
/// A member that does not say its version within this time is not asked for its hash while this one starts: it may have
/// bound its address and not answer yet, because it is starting as well.
const REACHABLE: Duration = Duration::from_secs(1);
/// How long another member may take to hash everything, in the background and beside its other work.
const HASHING: Duration = Duration::from_secs(600);
/// How long a member may take to apply a log entry that another one has applied.
const APPLYING: Duration = Duration::from_secs(1);
/// Between two looks at it.
const APPLYING_LOOK: Duration = Duration::from_millis(10);
/// A comparison that met a compaction is made again at once, this often.
const ATTEMPTS: usize = 3;

/// This member and some others differ.
#[derive(Debug, thiserror::Error)]
#[error("{0:x} found data inconsistency with peers")]
pub struct Inconsistent(u64);

/// What another member answered.
#[derive(Debug)]
enum Asked {
    Hash(HashKv),
    /// It has not got that far.
    Behind,
    /// It has compacted that revision.
    Compacted,
    /// It is in another cluster.
    Stranger,
    Silent,
}

impl Node {
    /// HashKV, taking its time if this member serves, and not at all if it stops.
    pub(crate) fn hash_kv_slowly(&self, revision: i64) -> Result<Option<store::HashKv>, Error> {
        // One at a time, so that together they stay within their share of the processor.
        let mut last = self.hashing.lock();
        if self.is_starting()
            && let Some(known) = *last
            && known.hash_revision == revision
            && known.compact_revision == self.state().compact_revision()
        {
            // All members start at once: each is asked by all others for the same.
            return Ok(Some(known));
        }
        let (mut since, mut bytes) = (Instant::now(), 0);
        let found = self.state().hash_kv_in_steps(revision, &mut |more| {
            bytes += more + VERSION_BYTES;
            if bytes < STEP_BYTES {
                return ControlFlow::Continue(());
            }
            bytes = 0;
            if self.is_stopping_by(Instant::now()) {
                return ControlFlow::Break(());
            }
            let busy = since.elapsed();
            if busy >= BUSY && !self.is_starting() {
                std::thread::sleep((busy * REST_FACTOR).min(MAX_REST));
                since = Instant::now();
            }
            ControlFlow::Continue(())
        })?;
        *last = found;
        Ok(found)
    }

    fn others(&self) -> Vec<Member> {
        let own = self.identity.member_id;
        self.state().members().into_iter().filter(|member| member.id != own).collect()
    }
}

/// The same for whoever must not block. `None`: the member stops.
async fn own_hash(node: &Arc<Node>, revision: i64) -> Result<Option<store::HashKv>, Error> {
    let node = Arc::clone(node);
    tokio::task::spawn_blocking(move || node.hash_kv_slowly(revision)).await.map_err(|_| Error::Stopped)?
}

/// Asks another member for its hash.
async fn hash_of(node: &Node, member: &Member, revision: i64, patience: Duration) -> Asked {
    let mut asked = Asked::Silent;
    for url in &member.peer_urls {
        let error = match node.caller(patience).hash_kv(url, node.identity.cluster_id, revision).await {
            Ok(hash) => return Asked::Hash(hash),
            Err(error) => error,
        };
        tracing::warn!(
            "local-member-id" = %hex(node.identity.member_id),
            "requested-revision" = revision,
            "remote-peer-endpoint" = url.as_str(),
            %error,
            "failed hash kv request"
        );
        asked = match error {
            CallError::Refused { status: 400, text } if text.contains("future revision") => Asked::Behind,
            CallError::Refused { status: 400, text } if text.contains("compacted") => Asked::Compacted,
            CallError::Refused { status: 412, .. } => Asked::Stranger,
            _ => asked,
        };
    }
    asked
}

/// What users had in the v2 tree after this entry of the log. A member that serves waits a moment for the entry.
pub(crate) async fn v2_digest(node: &Node, log_index: u64) -> Option<u64> {
    let until = tokio::time::Instant::now() + APPLYING;
    while node.applied.load(Ordering::Acquire) < log_index {
        if node.is_starting() || tokio::time::Instant::now() >= until {
            return None;
        }
        tokio::time::sleep(APPLYING_LOOK).await;
    }
    node.state().v2().digest_at(log_index)
}

/// What another member said of its v2 tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum V2Asked {
    Digest(u64),
    /// It is a real etcd.
    Etcd,
    /// It is away, or does not know that of this log entry.
    Nothing,
}

/// Asks another member for the digest of its v2 tree.
async fn v2_digest_of(node: &Node, member: &Member, log_index: u64, patience: Duration) -> V2Asked {
    let mut asked = V2Asked::Nothing;
    for url in &member.peer_urls {
        match node.caller(patience).v2_digest(url, node.identity.cluster_id, log_index).await {
            Ok(digest) => return V2Asked::Digest(digest),
            Err(CallError::Refused { status: 404, .. }) => asked = V2Asked::Etcd,
            Err(error) => tracing::debug!("remote-peer-endpoint" = url.as_str(), %error, "no digest of the v2 tree"),
        }
    }
    asked
}

/// This member's v2 tree beside those of all others, which are asked one after the other. None if this member's own is
/// not known.
async fn compare_v2(node: &Node, others: &[Member], patience: Duration) -> Option<Compared> {
    let log_index = node.applied.load(Ordering::Acquire);
    let own = node.state().v2().digest_at(log_index)?;
    let mut compared = Compared { own, others: Vec::new() };
    for member in others {
        compared.others.push((member.id, v2_digest_of(node, member, log_index, patience).await));
    }
    let differing = compared.differing();
    if !differing.is_empty() {
        tracing::error!(
            "local-member-id" = %hex(node.identity.member_id),
            "log-index" = log_index,
            "local-member-digest" = %hex(own),
            "peer-ids" = ?differing.iter().copied().map(hex).collect::<Vec<_>>(),
            "found different v2 trees"
        );
    }
    Some(compared)
}

/// The v2 trees of a cluster at one log entry.
#[derive(Debug)]
struct Compared {
    own: u64,
    others: Vec<(u64, V2Asked)>,
}

impl Compared {
    /// The members whose tree is not this member's.
    fn differing(&self) -> Vec<u64> {
        let differs = |asked: &V2Asked| matches!(asked, V2Asked::Digest(digest) if *digest != self.own);
        self.others.iter().filter(|(_, asked)| differs(asked)).map(|(id, _)| *id).collect()
    }

    /// The members to raise the alarm for, if `own` is this one.
    fn corrupt(&self, own: u64) -> Vec<u64> {
        if self.others.iter().any(|(_, asked)| *asked == V2Asked::Etcd) {
            return Vec::new();
        }
        let mut by_digest = BTreeMap::from([(self.own, vec![own])]);
        for (id, asked) in &self.others {
            if let V2Asked::Digest(digest) = asked {
                by_digest.entry(*digest).or_default().push(*id);
            }
        }
        minority(&by_digest, self.others.len() + 1)
    }
}

/// Who does not hold what most of all members hold; 0 if that is not clear.
fn minority<H: Ord>(by_content: &BTreeMap<H, Vec<u64>>, members: usize) -> Vec<u64> {
    if by_content.len() == 1 {
        return Vec::new();
    }
    if !by_content.values().any(|ids| ids.len() > members / 2) {
        return vec![0];
    }
    by_content.values().filter(|ids| ids.len() <= members / 2).flatten().copied().collect()
}

fn hex(id: u64) -> String {
    format!("{id:x}")
}

/// Compares this member's data with the others', before it takes part in anything. Who cannot be asked is left out: a
/// cluster must be able to start.
///
/// # Errors
/// When another member's data differs.
pub(crate) async fn check_initially(node: &Arc<Node>) -> Result<(), Inconsistent> {
    let others = node.others();
    if others.is_empty() {
        return Ok(());
    }
    let own = node.identity.member_id;
    let patience = Duration::from_millis(node.settings.limits.request_timeout_ms);
    tracing::info!("local-member-id" = %hex(own), timeout = ?patience, "starting initial corruption check");
    let mut probes: JoinSet<Option<Member>> = JoinSet::new();
    for member in others {
        let node = Arc::clone(node);
        probes.spawn(async move { is_comparable(&node, &member).await.then_some(member) });
    }
    let reachable: Vec<Member> = probes.join_all().await.into_iter().flatten().collect();
    if let Some(compared) = compare_v2(node, &reachable, patience).await
        && !compared.differing().is_empty()
    {
        return Err(Inconsistent(own));
    }
    let revision = node.state().revision();
    let mut asking: JoinSet<(Member, Asked)> = JoinSet::new();
    for member in reachable {
        let node = Arc::clone(node);
        asking.spawn(async move {
            let asked = hash_of(&node, &member, revision, patience).await;
            (member, asked)
        });
    }
    // Without anybody to compare with, there is no need to read everything.
    if asking.is_empty() {
        tracing::info!("local-member-id" = %hex(own), "no member to compare with; skipped the initial corruption check");
        return Ok(());
    }
    let hash = match own_hash(node, revision).await {
        Ok(Some(hash)) => hash,
        // It stops; it will not serve.
        Ok(None) => return Ok(()),
        Err(error) => {
            tracing::error!("local-member-id" = %hex(own), %error, "failed to fetch hash");
            return Err(Inconsistent(own));
        }
    };
    let mut differs = false;
    for (member, asked) in asking.join_all().await {
        differs |= differs_initially(own, &hash, &member, &asked);
    }
    if differs {
        return Err(Inconsistent(own));
    }
    tracing::info!("local-member-id" = %hex(own), "initial corruption checking passed; no corruption");
    Ok(())
}

/// Whether a member answers, and hashes as this one does.
async fn is_comparable(node: &Node, member: &Member) -> bool {
    for url in &member.peer_urls {
        match node.caller(REACHABLE).version(url).await {
            Ok(version) => return versions::hashes_alike(&version.server),
            Err(error) => tracing::debug!("remote-peer-endpoint" = url.as_str(), %error, "failed to get version"),
        }
    }
    false
}

fn differs_initially(own: u64, hash: &store::HashKv, member: &Member, asked: &Asked) -> bool {
    let skipped = |why: &str| {
        tracing::warn!(
            "local-member-id" = %hex(own),
            "local-member-revision" = hash.hash_revision,
            "local-member-compact-revision" = hash.compact_revision,
            "local-member-hash" = hash.hash,
            "remote-peer-id" = %hex(member.id),
            "remote-peer-endpoints" = ?member.peer_urls,
            "{why}"
        );
        false
    };
    match asked {
        Asked::Silent => false,
        Asked::Behind => skipped("cannot fetch hash from slow remote peer"),
        Asked::Compacted => skipped("cannot fetch hash from remote peer; local member is behind"),
        Asked::Stranger => skipped("cluster ID mismatch"),
        Asked::Hash(theirs) if theirs.hash == hash.hash => false,
        Asked::Hash(theirs) => {
            let alike = theirs.compact_revision == hash.compact_revision;
            tracing::warn!(
                "local-member-id" = %hex(own),
                "local-member-revision" = hash.hash_revision,
                "local-member-compact-revision" = hash.compact_revision,
                "local-member-hash" = hash.hash,
                "remote-peer-id" = %hex(member.id),
                "remote-peer-endpoints" = ?member.peer_urls,
                "remote-peer-revision" = theirs.revision,
                "remote-peer-compact-revision" = theirs.compact_revision,
                "remote-peer-hash" = theirs.hash,
                "found different {} values from remote peer",
                if alike { "hash" } else { "compact revision" }
            );
            alike
        }
    }
}

/// When the leader compares.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    /// `--corrupt-check-time`.
    pub(crate) every: Option<Duration>,
    /// `--compact-hash-check-time`, if the gate `CompactHashCheck` is open.
    pub(crate) after_compaction: Option<Duration>,
}

/// Compares whenever it is time, while this member leads, until the task is dropped.
pub(crate) async fn watch(node: Arc<Node>, schedule: Schedule) {
    let now = tokio::time::Instant::now();
    // The same for both: a comparison that is made for one reason is not made again for the other.
    let mut compared_at_compaction = None;
    let mut next = schedule.every.map(|every| now + every);
    let mut next_look = schedule.after_compaction.map(|every| now + every);
    while let Some(wake) = next.into_iter().chain(next_look).min() {
        tokio::time::sleep_until(wake).await;
        let now = tokio::time::Instant::now();
        let compacted = node.state().compact_revision();
        let is_due = next.is_some_and(|at| at <= now);
        let is_compacted = next_look.is_some_and(|at| at <= now) && compared_at_compaction != Some(compacted);
        if node.is_leader() && (is_due || (is_compacted && compacted > 0)) {
            compared_at_compaction = compare(&node).await.or(compared_at_compaction);
        }
        let after = |at: Option<tokio::time::Instant>, every: Option<Duration>| {
            let (at, every) = (at?, every?);
            Some(if at > now { at } else { tokio::time::Instant::now() + every })
        };
        next = after(next, schedule.every);
        next_look = after(next_look, schedule.after_compaction);
    }
}

/// Compares all members' data with this leader's. Gives the compaction that all members have been found equal at.
async fn compare(node: &Arc<Node>) -> Option<i64> {
    for _ in 0..ATTEMPTS {
        let compaction = node.state().compact_revision();
        match compare_once(node).await {
            Ok(true) => return Some(compaction),
            // Not everybody was at the same compaction. If there was one meanwhile, that is why.
            Ok(false) if node.state().compact_revision() != compaction => {}
            Ok(false) => return None,
            Err(error) => {
                tracing::warn!("local-member-id" = %hex(node.identity.member_id), %error, "failed to run periodic check");
                return None;
            }
        }
    }
    None
}

/// Whether all members could be compared; what is wrong with them has been seen to.
async fn compare_once(node: &Arc<Node>) -> Result<bool, Error> {
    let (own, term) = (node.identity.member_id, node.term());
    let Some(hash) = own_hash(node, node.state().revision()).await? else { return Ok(false) };
    let others = node.others();
    let mut answers = Vec::new();
    // One after the other: while one is busy with its hash, the others carry the writes.
    for member in &others {
        match hash_of(node, member, hash.hash_revision, HASHING).await {
            Asked::Hash(theirs) => {
                answers.push(Theirs { id: member.id, alike: node.hashes_alike(member.id), hash: theirs })
            }
            reason => tracing::warn!(
                "number-of-peers" = others.len(),
                "leader-id" = %hex(own),
                "peer-id" = %hex(member.id),
                reason = ?reason,
                "Skipped peer's hash"
            ),
        }
    }
    let v2 = compare_v2(node, &others, Duration::from_millis(node.settings.limits.request_timeout_ms)).await;
    // What the others have applied by now is committed, and after this this member has applied it too.
    ask(|reply| node.read_index(reply)).await?;
    if !node.is_leader() || node.term() != term {
        return Ok(false);
    }
    let found = judge(own, others.len() + 1, &hash, &answers, node.state().revision(), node.state().compact_revision());
    let v2_corrupt = v2.map_or_else(Vec::new, |compared| compared.corrupt(own));
    for id in found.corrupt.iter().chain(&v2_corrupt) {
        raise_alarm(node, *id);
    }
    tracing::info!(
        revision = hash.hash_revision,
        "compact-revision" = hash.compact_revision,
        "number-of-peers-checked" = found.compared,
        "finished peer corruption check"
    );
    Ok(found.compared == others.len())
}

fn raise_alarm(node: &Node, member_id: u64) {
    let kind = pb::AlarmType::Corrupt;
    if node.state().alarms(kind as i32).iter().any(|alarm| alarm.member_id == member_id) {
        return;
    }
    let action = pb::alarm_request::AlarmAction::Activate as i32;
    let alarm = Some(pb::AlarmRequest { action, member_id, alarm: kind as i32 });
    node.propose_as_leader(node.term(), pb::InternalRaftRequest { alarm, ..Default::default() });
}

/// Another member's answer.
#[derive(Clone, Copy, Debug)]
struct Theirs {
    id: u64,
    /// Its version is known to hash as this one does.
    alike: bool,
    hash: HashKv,
}

/// What a comparison has brought to light.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// Members whose data is wrong; 0 = of some, and it cannot be said of which.
    corrupt: Vec<u64>,
    /// How many others were compared.
    compared: usize,
}

/// Draws the conclusions. `revision` and `compacted` are the leader's, after everything that the others can have applied
/// when they answered.
fn judge(leader: u64, members: usize, own: &store::HashKv, answers: &[Theirs], revision: i64, compacted: i64) -> Found {
    let mut found = Found::default();
    let mut by_hash = BTreeMap::from([(own.hash, vec![leader])]);
    for Theirs { id, alike, hash } in answers {
        // A follower has nothing that its leader has not.
        if hash.revision > revision || hash.compact_revision > compacted {
            tracing::warn!(
                "leader-revision" = revision,
                "leader-compact-revision" = compacted,
                "follower-revision" = hash.revision,
                "follower-compact-revision" = hash.compact_revision,
                "follower-peer-id" = %hex(*id),
                "revision from follower must be less than or equal to leader's"
            );
            found.corrupt.push(*id);
        } else if hash.compact_revision != own.compact_revision
            || hash.hash_revision.is_some_and(|at| at != own.hash_revision)
        {
            tracing::warn!(
                "leader-id" = %hex(leader),
                "peer-id" = %hex(*id),
                "leader-compact-revision" = own.compact_revision,
                "peer-compact-revision" = hash.compact_revision,
                reason = "the peer's compact revision is another one",
                "Skipped peer's hash"
            );
        } else if !alike && hash.hash != own.hash {
            // etcd has changed what exactly is hashed from version to version: a cluster must not stop for that.
            tracing::warn!(
                "leader-id" = %hex(leader),
                "peer-id" = %hex(*id),
                "leader-hash" = own.hash,
                "peer-hash" = hash.hash,
                reason = "the peer runs another version, which may hash differently",
                "Skipped peer's hash"
            );
        } else {
            found.compared += 1;
            by_hash.entry(hash.hash).or_default().push(*id);
        }
    }
    let wrong = minority(&by_hash, members);
    if !wrong.is_empty() {
        for (hash, ids) in by_hash.iter().filter(|(_, ids)| ids.len() <= members / 2) {
            let peers: Vec<String> = ids.iter().map(|id| hex(*id)).collect();
            tracing::error!(
                "leader-id" = %hex(leader),
                "leader-revision" = own.hash_revision,
                "leader-compact-revision" = own.compact_revision,
                "leader-hash" = own.hash,
                "peer-ids" = ?peers,
                "peer-hash" = *hash,
                "quorum-exist" = wrong != [0],
                "Detected hash mismatch"
            );
        }
    }
    if wrong == [0] {
        tracing::error!(
            "leader-id" = %hex(leader),
            "cannot identify the corrupted members, so intentionally set the memberID as 0"
        );
    }
    found.corrupt.extend(wrong);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEADER: u64 = 1;
    const OWN: store::HashKv = store::HashKv { hash: 7, compact_revision: 3, hash_revision: 10 };

    fn answer(id: u64, hash: u32) -> Theirs {
        let hash = HashKv { revision: 10, hash, compact_revision: 3, hash_revision: Some(10) };
        Theirs { id, alike: true, hash }
    }

    /// The conclusions about a cluster of `members` whose leader is at revision 12 when it draws them.
    fn corrupt(members: usize, answers: &[Theirs]) -> Vec<u64> {
        judge(LEADER, members, &OWN, answers, 12, 3).corrupt
    }

    #[test]
    fn equal_members_are_compared_and_left_alone() {
        let found = judge(LEADER, 3, &OWN, &[answer(2, 7), answer(3, 7)], 12, 3);
        assert_eq!(found, Found { corrupt: vec![], compared: 2 });
    }

    #[test]
    fn whoever_differs_from_the_majority_is_corrupt_be_it_the_leader() {
        assert_eq!(corrupt(3, &[answer(2, 7), answer(3, 8)]), [3]);
        assert_eq!(corrupt(3, &[answer(2, 8), answer(3, 8)]), [LEADER]);
        assert_eq!(corrupt(5, &[answer(2, 7), answer(3, 8), answer(4, 9), answer(5, 7)]), [3, 4]);
    }

    #[test]
    fn without_a_majority_the_alarm_is_everybodys() {
        assert_eq!(corrupt(2, &[answer(2, 8)]), [0]);
        assert_eq!(corrupt(3, &[answer(2, 8), answer(3, 9)]), [0]);
        // The third did not answer: who knows whose side it is on.
        assert_eq!(corrupt(3, &[answer(2, 8)]), [0]);
    }

    #[test]
    fn a_follower_that_is_ahead_of_its_leader_is_corrupt() {
        let mut ahead = answer(2, 7);
        ahead.hash.revision = 13;
        assert_eq!(corrupt(3, &[ahead, answer(3, 7)]), [2]);
        let mut ahead = answer(2, 7);
        ahead.hash.compact_revision = 4;
        assert_eq!(corrupt(3, &[ahead, answer(3, 7)]), [2]);
    }

    #[test]
    fn a_v2_tree_is_judged_by_the_majority_unless_a_real_etcd_keeps_its_own_to_itself() {
        use V2Asked::{Digest, Etcd, Nothing};
        const NOBODY: [u64; 0] = [];
        let corrupt = |others: &[V2Asked]| {
            let others = (2..).zip(others.iter().copied()).collect();
            Compared { own: 7, others }.corrupt(LEADER)
        };
        assert_eq!(corrupt(&[Digest(7), Digest(7)]), NOBODY);
        assert_eq!(corrupt(&[Digest(7), Digest(8)]), [3]);
        assert_eq!(corrupt(&[Digest(8), Digest(8)]), [LEADER]);
        assert_eq!(corrupt(&[Nothing, Digest(8)]), [0]);
        assert_eq!(corrupt(&[Nothing, Nothing]), NOBODY);
        assert_eq!(corrupt(&[Etcd, Digest(8)]), NOBODY);
    }

    #[test]
    fn hashes_of_different_things_say_nothing() {
        let mut behind = answer(2, 8);
        behind.hash.compact_revision = 2;
        let mut noted = answer(3, 8);
        noted.hash.hash_revision = Some(9);
        let mut foreign = answer(4, 8);
        foreign.alike = false;
        let found = judge(LEADER, 4, &OWN, &[behind, noted, foreign], 12, 3);
        assert_eq!(found, Found::default());
    }
}
