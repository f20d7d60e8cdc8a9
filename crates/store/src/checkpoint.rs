//! Index checkpoints: `NNNN.idx`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use disk::Disk;

use crate::StoreError;
use crate::open::Recovered;
use crate::segment::Segment;

/// The file name of checkpoint `id`.
pub(crate) fn checkpoint_name(id: u32) -> String {
    format!("{id:08}.idx")
}

/// The id in a checkpoint's file name.
pub(crate) fn checkpoint_id(name: &str) -> Option<u32> {
    let id = name.strip_suffix(".idx")?.parse().ok()?;
    (checkpoint_name(id) == name).then_some(id)
}

/// Loads a checkpoint.
pub(crate) fn read(
    _disk: &dyn Disk,
    _dir: &Path,
    id: u32,
    _segments: &BTreeMap<u32, Arc<Segment>>,
) -> Result<Recovered, StoreError> {
    Err(StoreError::corrupt(&checkpoint_name(id), 0, "checkpoints are not written yet"))
}
