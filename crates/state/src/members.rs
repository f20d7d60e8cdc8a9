//! Who belongs to the cluster.

/// A member as the cluster knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Its ID, never 0 and never used again after its removal.
    pub id: u64,
    /// Its name; empty until it has published its attributes.
    pub name: String,
    /// Where its peers reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it; empty until it has published its attributes.
    pub client_urls: Vec<String>,
    /// Whether it only learns and does not vote.
    pub is_learner: bool,
}

/// The ID of a member of the initial cluster: its peer URLs and the cluster token decide it.
pub fn member_id(_peer_urls: &[String], _token: &str) -> u64 {
    todo!()
}
/// The ID of a member that is added at run time, at `unix_seconds`.
pub fn added_member_id(_peer_urls: &[String], _unix_seconds: i64) -> u64 {
    todo!()
}
/// The ID of a cluster with these initial members.
pub fn cluster_id(_member_ids: &[u64]) -> u64 {
    todo!()
}
/// The context of the configuration change that adds a member (to a new cluster, or at run time).
pub fn add_context(_member: &Member) -> Vec<u8> {
    todo!()
}
