//! A disk that can be made to hang: a small file system in a file, frozen for a while.
//!
//! Freezing holds every write, whoever makes it and however: a server that calls the kernel without the C library, as
//! Go programs do, cannot escape it as it would escape a preloaded library.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

/// The size of the file system; the file is sparse, so that only what is written takes space.
const SIZE: &str = "4G";

/// A mounted file system for one data directory. Dropping it unmounts and removes it; nothing may use it any more.
#[derive(Debug)]
pub struct StallingDisk {
    home: TempDir,
}

impl StallingDisk {
    /// Makes one, or says why there can be none here: it takes root, loop devices, `mkfs.ext4` and `fsfreeze`.
    pub fn create() -> Result<StallingDisk, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("mounting a file system needs root".into());
        }
        let home = tempfile::Builder::new().prefix("keelson-disk-").tempdir().map_err(|problem| problem.to_string())?;
        let disk = StallingDisk { home };
        let image = disk.home.path().join("image");
        std::fs::create_dir(disk.path()).map_err(|problem| problem.to_string())?;
        run(Command::new("truncate").args(["-s", SIZE]).arg(&image))?;
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.path()))?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.home.path().join("disk")
    }

    /// Holds every write for `time`, and returns when that has begun. The process that does it ends the stall even if
    /// this one is killed: what waits for a frozen disk cannot be killed.
    pub fn stall(&self, time: Duration) -> Result<(), String> {
        let script = r#"fsfreeze -f "$0" && echo && (sleep "$1"; fsfreeze -u "$0")"#;
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(self.path()).arg(time.as_secs_f64().to_string());
        let mut child = command.stdout(std::process::Stdio::piped()).spawn().map_err(|problem| problem.to_string())?;
        // One byte comes when it is frozen, the end of the file if it could not be.
        let mut frozen = [0];
        let stdout = child.stdout.as_mut().ok_or("no output to wait for")?;
        let outcome = std::io::Read::read_exact(stdout, &mut frozen).map_err(|_| "fsfreeze failed".to_owned());
        // It ends by itself after `time`.
        std::thread::spawn(move || child.wait());
        outcome
    }
}

impl Drop for StallingDisk {
    fn drop(&mut self) {
        let mount: &Path = &self.path();
        // Fails if it is not frozen. The lazy kind of unmounting copes with what is still open for a moment.
        run(Command::new("fsfreeze").arg("-u").arg(mount)).ok();
        run(Command::new("umount").arg("-l").arg(mount)).ok();
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|problem| format!("{command:?}: {problem}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
