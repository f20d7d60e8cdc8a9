//! A value made of files, made anew when they have changed.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use crate::TlsError;

/// A file that was written so recently may be written again without its time changing: clocks of file systems tick.
const CLOCK_TICK: Duration = Duration::from_secs(2);

/// What tells a file from its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The contents of files, in the order of their paths.
pub(crate) type Contents = Vec<Vec<u8>>;

type Build<T> = Box<dyn Fn(&Contents) -> Result<T, TlsError> + Send + Sync>;

/// A value made of files. [`Watched::get`] gives it as the files are now.
pub(crate) struct Watched<T> {
    paths: Vec<String>,
    build: Build<T>,
    state: Mutex<State<T>>,
}

struct State<T> {
    value: Arc<T>,
    /// What was read last, be it any good or not.
    contents: Contents,
    /// The files when that was read; none for one that was not there.
    stamps: Vec<Option<Stamp>>,
    /// The stamps can be relied on: all files were old enough.
    is_settled: bool,
}

impl<T> Watched<T> {
    /// Reads the files and makes the value.
    ///
    /// # Errors
    /// When a file cannot be read or used.
    pub(crate) fn new(
        paths: Vec<String>,
        build: impl Fn(&Contents) -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        let (stamps, is_settled) = look(&paths);
        let contents = read(&paths)?;
        let value = Arc::new(build(&contents)?);
        let state = Mutex::new(State { value, contents, stamps, is_settled });
        Ok(Self { paths, build: Box::new(build), state })
    }

    /// The value. Costs a `stat` of each file as long as none has changed; they are local files, so the calling thread waits.
    /// If the files have become unusable, it is what they were before, and a line in the log says so.
    pub(crate) fn get(&self) -> Arc<T> {
        // Who looks before it reads sees a change that comes in between at the next look.
        let (stamps, is_settled) = look(&self.paths);
        let mut state = self.state.lock();
        if state.is_settled && state.stamps == stamps {
            return Arc::clone(&state.value);
        }
        let has_changed = state.stamps != stamps;
        (state.stamps, state.is_settled) = (stamps, is_settled);
        match read(&self.paths) {
            Ok(contents) if contents == state.contents => {}
            Ok(contents) => {
                match (self.build)(&contents) {
                    Ok(value) => {
                        state.value = Arc::new(value);
                        tracing::info!(files = ?self.paths, "TLS files have changed and count from now on");
                    }
                    Err(error) => self.complain(&error),
                }
                state.contents = contents;
            }
            Err(error) if has_changed => self.complain(&error),
            Err(_) => {}
        }
        Arc::clone(&state.value)
    }

    fn complain(&self, error: &TlsError) {
        tracing::warn!(
            files = ?self.paths,
            %error,
            "TLS files have changed and cannot be used; what was loaded before stays in force until they can"
        );
    }
}

fn look(paths: &[String]) -> (Vec<Option<Stamp>>, bool) {
    let now = SystemTime::now();
    let mut is_settled = true;
    let stamps = paths.iter().map(|path| {
        let metadata = fs::metadata(path).ok();
        let is_old = |metadata: &Metadata| {
            let age = metadata.modified().ok().and_then(|time| now.duration_since(time).ok());
            age.is_some_and(|age| age > CLOCK_TICK)
        };
        is_settled &= metadata.as_ref().is_none_or(is_old);
        metadata.as_ref().map(Stamp::of)
    });
    (stamps.collect(), is_settled)
}

fn read(paths: &[String]) -> Result<Contents, TlsError> {
    let read = |path: &String| fs::read(path).map_err(|source| TlsError::Read { path: path.clone(), source });
    paths.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(contents: &Contents) -> Result<i32, TlsError> {
        let text = String::from_utf8_lossy(&contents[0]).into_owned();
        text.trim().parse().map_err(|error| TlsError::Make(format!("{error}")))
    }

    #[test]
    fn a_change_counts_at_the_next_look_even_within_a_tick_of_the_clock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file").display().to_string();
        fs::write(&path, "0").unwrap();
        let watched = Watched::new(vec![path.clone()], number).unwrap();
        for value in 0..10 {
            fs::write(&path, value.to_string()).unwrap(); // of the same length
            assert_eq!(*watched.get(), value);
        }
    }

    #[test]
    fn a_file_that_cannot_be_used_leaves_the_old_value_until_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file").display().to_string();
        assert!(Watched::new(vec![path.clone()], number).is_err(), "at the start there is nothing to stay with");
        fs::write(&path, "1").unwrap();
        let watched = Watched::new(vec![path.clone()], number).unwrap();
        fs::write(&path, "half of").unwrap();
        assert_eq!(*watched.get(), 1);
        fs::remove_file(&path).unwrap();
        assert_eq!(*watched.get(), 1);
        fs::write(&path, "2").unwrap();
        assert_eq!(*watched.get(), 2);
    }

    #[test]
    fn files_that_were_not_touched_for_long_are_not_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file").display().to_string();
        fs::write(&path, "1").unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(3600);
        fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
        let watched = Watched::new(vec![path.clone()], number).unwrap();
        assert!(watched.state.lock().is_settled);
        assert!(Arc::ptr_eq(&watched.get(), &watched.get()));
        let next = dir.path().join("next");
        fs::write(&next, "2").unwrap();
        fs::rename(&next, &path).unwrap();
        assert_eq!(*watched.get(), 2);
    }
}
