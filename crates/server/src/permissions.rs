//! Who can get at a member's data.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// What a member's directories are made with.
const PRIVATE: u32 = 0o700;

/// Warns of those of the directories that are there and open to other users, or not open enough to this one. That is all that
/// etcd does about it (CVE-2020-15113): somebody may have opened them on purpose.
pub(crate) fn check(dirs: &[&Path]) {
    for dir in dirs {
        let Ok(metadata) = fs::metadata(dir) else { continue };
        let mode = metadata.permissions().mode() & 0o777;
        if metadata.is_dir() && mode != PRIVATE {
            tracing::warn!(error = complaint(dir, mode), "check file permission");
        }
    }
}

fn complaint(dir: &Path, mode: u32) -> String {
    format!(
        "directory {:?} exist, but the permission is \"d{}\". The recommended permission is \"-{}\" to prevent possible \
         unprivileged access to the data",
        dir.display().to_string(),
        letters(mode),
        letters(PRIVATE)
    )
}

/// `rwxr-x---`
fn letters(mode: u32) -> String {
    let bits = (0..9).rev().zip("rwxrwxrwx".chars());
    bits.map(|(bit, letter)| if mode >> bit & 1 == 1 { letter } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_warning_is_etcds() {
        assert_eq!(
            complaint(Path::new("/var/lib/etcd"), 0o755),
            "directory \"/var/lib/etcd\" exist, but the permission is \"drwxr-xr-x\". The recommended permission is \
             \"-rwx------\" to prevent possible unprivileged access to the data"
        );
    }
}
