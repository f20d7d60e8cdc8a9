//! Feature gates: `--feature-gates Name=true,Other=false`.

/// Behaviour that can be switched on or off, under etcd's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeatureGates {
    /// `CompactHashCheck`: the leader compares hashes taken at compactions.
    pub compact_hash_check: bool,
    /// `InitialCorruptCheck`: compare with the peers before serving. On by default here, off in etcd.
    pub initial_corrupt_check: bool,
    /// `LeaseCheckpoint`: the remaining time of leases survives a change of leader. On by default here, off in etcd:
    /// without it a long lease can live for ever while leaders change.
    pub lease_checkpoint: bool,
    /// `LeaseCheckpointPersist`: kept for its name; checkpoints are persisted as soon as all members are of 3.6 or later.
    pub lease_checkpoint_persist: bool,
    /// `SetMemberLocalAddr`: connect to peers from the advertised address.
    pub set_member_local_addr: bool,
    /// `StopGRPCServiceOnDefrag`: answer NOT_SERVING to health checks while defragmenting.
    pub stop_grpc_service_on_defrag: bool,
    /// `TxnModeWriteWithSharedBuffer`: an optimization inside etcd's backend that has no counterpart here.
    pub txn_mode_write_with_shared_buffer: bool,
    /// `FastLeaseKeepAlive`: a leader answers keep-alives without waiting for what has been committed to be applied.
    pub fast_lease_keep_alive: bool,
    /// `PriorityRequest`: requests that keep the cluster alive go first.
    pub priority_request: bool,
}

impl Default for FeatureGates {
    fn default() -> Self {
        FeatureGates {
            compact_hash_check: false,
            initial_corrupt_check: true,
            lease_checkpoint: true,
            lease_checkpoint_persist: false,
            set_member_local_addr: false,
            stop_grpc_service_on_defrag: false,
            txn_mode_write_with_shared_buffer: true,
            fast_lease_keep_alive: true,
            priority_request: false,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Alpha,
    Beta,
}

type Gate = (&'static str, Stage, fn(&mut FeatureGates) -> &mut bool);

const GATES: &[Gate] = &[
    ("CompactHashCheck", Stage::Alpha, |gates| &mut gates.compact_hash_check),
    ("InitialCorruptCheck", Stage::Alpha, |gates| &mut gates.initial_corrupt_check),
    ("LeaseCheckpoint", Stage::Alpha, |gates| &mut gates.lease_checkpoint),
    ("LeaseCheckpointPersist", Stage::Alpha, |gates| &mut gates.lease_checkpoint_persist),
    ("SetMemberLocalAddr", Stage::Alpha, |gates| &mut gates.set_member_local_addr),
    ("StopGRPCServiceOnDefrag", Stage::Alpha, |gates| &mut gates.stop_grpc_service_on_defrag),
    ("TxnModeWriteWithSharedBuffer", Stage::Beta, |gates| &mut gates.txn_mode_write_with_shared_buffer),
    ("FastLeaseKeepAlive", Stage::Beta, |gates| &mut gates.fast_lease_keep_alive),
    ("PriorityRequest", Stage::Alpha, |gates| &mut gates.priority_request),
];

impl FeatureGates {
    /// Every gate: its name, its stage in capitals, and whether it is on.
    pub(crate) fn list(mut self) -> impl Iterator<Item = (&'static str, &'static str, bool)> {
        GATES.iter().map(move |(name, stage, field)| {
            let stage = if *stage == Stage::Alpha { "ALPHA" } else { "BETA" };
            (*name, stage, *field(&mut self))
        })
    }
}

/// Names that can be given to `--feature-gates`, for the help.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    GATES.iter().map(|(name, ..)| *name)
}

impl FeatureGates {
    /// Applies a list such as `A=true,B=false`. A gate that is named wins over `AllAlpha` and `AllBeta`, in any order.
    pub fn set_list(&mut self, list: &str) -> Result<(), String> {
        let mut named = Vec::new();
        for pair in list.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(|| format!("missing bool value for {pair}"))?;
            let (name, value) = (name.trim(), value.trim());
            let value = super::argv::parse_bool(value)
                .ok_or_else(|| format!("invalid value of {name}: {value}, err: not a boolean"))?;
            match name {
                "AllAlpha" => self.set_stage(Stage::Alpha, value),
                "AllBeta" => self.set_stage(Stage::Beta, value),
                _ => named.push((name, value)),
            }
        }
        for (name, value) in named {
            let gate = GATES.iter().find(|(known, ..)| *known == name);
            let (_, _, field) = gate.ok_or_else(|| format!("unrecognized feature gate: {name}"))?;
            *field(self) = value;
        }
        Ok(())
    }

    fn set_stage(&mut self, stage: Stage, value: bool) {
        for (_, _, field) in GATES.iter().filter(|(_, of, _)| *of == stage) {
            *field(self) = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_set_by_name_and_by_stage() {
        let mut gates = FeatureGates::default();
        gates.set_list("PriorityRequest=true, FastLeaseKeepAlive=false").unwrap();
        assert!(gates.priority_request && !gates.fast_lease_keep_alive);
        gates.set_list("CompactHashCheck=false,AllAlpha=true").unwrap();
        assert!(gates.initial_corrupt_check && !gates.compact_hash_check && !gates.fast_lease_keep_alive);
    }

    #[test]
    fn unknown_gates_are_refused() {
        let mut gates = FeatureGates::default();
        assert_eq!(gates.set_list("Nope=true"), Err("unrecognized feature gate: Nope".into()));
        assert_eq!(gates.set_list("LeaseCheckpoint"), Err("missing bool value for LeaseCheckpoint".into()));
        assert!(gates.set_list("LeaseCheckpoint=maybe").is_err());
    }
}
