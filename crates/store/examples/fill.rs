//! Measures a store on the real disk: what a put, a get, a scanned key, an open and a compaction cost.
//!
//! `cargo run --release -p keelson-store --example fill [keys] [directory]`. Times are this thread's CPU time unless
//! said otherwise, so that a busy machine does not spoil them.

use std::error::Error;
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use disk::RealDisk;
use keelson_store::{KeyRange, Mark, Options, RangeEnd, Store, Writer};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

type Outcome<T> = Result<T, Box<dyn Error>>;

const VALUE_BYTES: usize = 256;

/// Nanoseconds this thread has spent on a CPU.
fn cpu() -> u64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(0)
}

/// Bytes of memory in use by the process that no file stands behind.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn per(what: &str, count: usize, run: impl FnOnce() -> Outcome<()>) -> Outcome<()> {
    let (before, start) = (cpu(), Instant::now());
    run()?;
    let (used, wall) = (cpu() - before, start.elapsed());
    println!("{what:<44} {:>8} ns each, {:>7.3} s wall", used / count.max(1) as u64, wall.as_secs_f64());
    Ok(())
}

fn key(number: usize) -> Bytes {
    format!("/registry/pods/namespace-{:03}/pod-{number:08}", number / 5000).into()
}

fn open(dir: &Path) -> Outcome<(Store, Writer)> {
    let (store, writer, _) = Store::open(Arc::new(RealDisk), dir, Options::default())?;
    Ok((store, writer))
}

/// Opens the store where the memory of nothing else is in the way.
fn open_in_another_process(dir: &Path) -> Outcome<()> {
    let status = Command::new(std::env::current_exe()?).arg("--open").arg(dir).status()?;
    if status.success() { Ok(()) } else { Err("the other process failed".into()) }
}

fn measure_open(dir: &Path) -> Outcome<()> {
    let before = memory();
    let mut opened = None;
    per("open", 1, || {
        opened = Some(open(dir)?);
        Ok(())
    })?;
    let (store, _writer) = opened.ok_or("not open")?;
    let keys = store.indexed_keys();
    let used = (memory() - before) as usize;
    println!("memory: {} bytes a key beside the key's {}", used / keys - key(0).len(), key(0).len());
    Ok(())
}

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1).peekable();
    if args.next_if_eq("--open").is_some() {
        return measure_open(Path::new(&args.next().ok_or("which directory?")?));
    }
    let count: usize = args.next().map_or(Ok(1_000_000), |keys| keys.parse())?;
    let parent = args.next().unwrap_or_else(|| ".".to_owned());
    let dir = tempfile::tempdir_in(parent)?;
    let dir = dir.path();
    let value = vec![0x5a; VALUE_BYTES];
    let mut random = StdRng::seed_from_u64(1);
    let mut order: Vec<usize> = (0..count).collect();
    let key_bytes = key(0).len();
    let mut index = 0;
    let mut mark = |writer: &mut Writer| {
        index += 1;
        writer.commit();
        writer.mark(Mark { index, term: 1, conf_state: Bytes::new() });
    };
    println!("{count} keys of {key_bytes} bytes, values of {VALUE_BYTES} bytes");

    let (store, mut writer) = open(dir)?;
    per("put, keys in order", count, || {
        for number in &order {
            writer.put(&key(*number), &value, 0)?;
            mark(&mut writer);
        }
        Ok(())
    })?;
    order.shuffle(&mut random);
    per("put again, keys in random order", count, || {
        for number in &order {
            writer.put(&key(*number), &value, 0)?;
            mark(&mut writer);
        }
        Ok(())
    })?;
    per("sync", 1, || {
        writer.sync()?;
        Ok(())
    })?;
    per("get, random", count, || {
        for number in &order {
            assert!(store.get(&key(*number), i64::MAX).is_some());
        }
        Ok(())
    })?;
    let some = &order[..count / 10];
    per("get and read, random", some.len(), || {
        for number in some {
            let found = store.get(&key(*number), i64::MAX).ok_or("a key is missing")?;
            store.read(found.location)?;
        }
        Ok(())
    })?;
    let everything = KeyRange { start: Bytes::new(), end: RangeEnd::Unbounded };
    let mut locations = Vec::new();
    per("scan", count, || {
        store.scan(&everything, store.revision(), &mut |_, found| {
            locations.push(found.location);
            ControlFlow::Continue(())
        });
        Ok(())
    })?;
    per("count", count, || {
        assert_eq!(store.count(&everything, store.revision()), count as i64);
        Ok(())
    })?;
    per("read_many in key order, 1000 at a time", count / 10, || {
        locations[..count / 10].chunks(1000).try_for_each(|some| Ok(store.read_many(some, &mut |_| {})?))
    })?;
    per("hash of all versions", 2 * count, || {
        println!("HashKV {:08x}", store.hash_kv(0)?.hash);
        Ok(())
    })?;

    let revision = store.revision();
    writer.compact(revision)?;
    mark(&mut writer);
    writer.flush()?;
    per("compaction of the index, per key", count, || {
        while !store.compaction_done() {
            store.maintain()?;
        }
        Ok(())
    })?;
    settle("reclaim half, while putting", &store, &mut writer, &mut mark, &value)?;
    per("close, with checkpoint", 1, || Ok(writer.close()?))?;
    drop(store);

    println!("from a checkpoint:");
    open_in_another_process(dir)?;
    fs::remove_dir_all(dir)?;

    // By scan: a log without a checkpoint.
    fs::create_dir_all(dir)?;
    let (store, mut writer) = open(dir)?;
    order.shuffle(&mut random);
    per("put, new keys in random order", count, || {
        for number in &order {
            writer.put(&key(*number), &value, 0)?;
            mark(&mut writer);
        }
        Ok(())
    })?;
    writer.sync()?;
    drop((store, writer));
    println!("by reading the whole log, keys in random order:");
    open_in_another_process(dir)?;
    let (store, mut writer) = open(dir)?;
    still("no background work, for comparison", &store, &mut writer, &mut mark, &value)?;

    per("delete 90 %, per key", count * 9 / 10, || {
        for number in &order[..count * 9 / 10] {
            writer.delete(&key(*number))?;
            mark(&mut writer);
        }
        Ok(())
    })?;
    writer.compact(store.revision())?;
    mark(&mut writer);
    writer.flush()?;
    settle("reclaim 90 %, while putting", &store, &mut writer, &mut mark, &value)?;
    Ok(())
}

/// Puts now and then for two seconds, which shows how often this machine itself is late.
fn still(
    what: &str,
    store: &Store,
    writer: &mut Writer,
    mark: &mut dyn FnMut(&mut Writer),
    value: &[u8],
) -> Outcome<()> {
    beside(what, store, writer, mark, value, || std::thread::sleep(Duration::from_secs(2)))
}

/// Runs background work on its own thread until there is none left, while this thread keeps putting.
fn settle(
    what: &str,
    store: &Store,
    writer: &mut Writer,
    mark: &mut dyn FnMut(&mut Writer),
    value: &[u8],
) -> Outcome<()> {
    beside(what, store, writer, mark, value, || {
        let mut idle = 0;
        while idle < 50 {
            match store.maintain() {
                Ok(true) => {
                    idle = 0;
                    // As a server does: whoever holds a lock may be put to sleep by the scheduler, so hold it seldom.
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(false) => {
                    idle += 1;
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => {
                    println!("maintain: {error}");
                    break;
                }
            }
        }
    })
}

/// How long calls took.
#[derive(Default)]
struct Late {
    count: usize,
    late: usize,
    slowest: Duration,
}

impl Late {
    fn note(&mut self, begin: Instant) {
        let took = begin.elapsed();
        self.count += 1;
        self.late += usize::from(took > Duration::from_millis(2));
        self.slowest = self.slowest.max(took);
    }
}

impl Display for Late {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { count, late, slowest } = self;
        write!(f, "{count}, slowest {:.2} ms, {late} above 2 ms", slowest.as_secs_f64() * 1e3)
    }
}

fn beside(
    what: &str,
    store: &Store,
    writer: &mut Writer,
    mark: &mut dyn FnMut(&mut Writer),
    value: &[u8],
    work: impl FnOnce() + Send,
) -> Outcome<()> {
    let done = AtomicBool::new(false);
    let start = Instant::now();
    let (mut puts, mut flushes) = (Late::default(), Late::default());
    let mut random = StdRng::seed_from_u64(2);
    std::thread::scope(|scope| -> Outcome<()> {
        let work = scope.spawn(|| {
            let before = cpu();
            work();
            done.store(true, Ordering::Release);
            cpu() - before
        });
        while !done.load(Ordering::Acquire) {
            let begin = Instant::now();
            writer.put(&key(random.random_range(0..1000)), value, 0)?;
            mark(writer);
            puts.note(begin);
            if puts.count % 64 == 0 {
                let begin = Instant::now();
                writer.flush()?;
                flushes.note(begin);
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        let used = work.join().map_err(|_| "the background thread panicked")?;
        let size = store.size();
        println!(
            "{what}: {:.2} s wall, {:.2} s cpu; total {} MiB, live {} MiB, ratio {:.2}",
            start.elapsed().as_secs_f64(),
            used as f64 / 1e9,
            size.total >> 20,
            size.live >> 20,
            size.total as f64 / size.live as f64,
        );
        println!("    beside it puts: {puts}; flushes: {flushes}");
        Ok(())
    })
}
