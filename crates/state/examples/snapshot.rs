//! Measures how a whole state travels, on the real disk: taking an image, writing it out while the applying side goes on, and
//! installing it in another member.
//!
//! `cargo run --release -p keelson-state --example snapshot [keys] [value bytes] [directory]`

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use disk::{Disk, Open, RealDisk};
use keelson_state::{Config, Image, Incoming, Reader, State};
use prost::Message;
use proto::etcdserverpb as pb;
use proto::raftpb;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use store::{Options, Store};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn open(dir: &Path) -> Outcome<(State, Reader)> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let (store, writer, mark) = Store::open(disk, dir, Options::default())?;
    let config = Config { quota_bytes: -1, heartbeat_ms: 100, election_timeout_ms: 1_000 };
    Ok(State::open(store, writer, &mark, config)?)
}

/// Mebibytes of memory that no file stands behind.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Runs something and says how much more memory was in use meanwhile, in mebibytes.
fn watched<T>(run: impl FnOnce() -> T) -> (T, u64) {
    let before = memory();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Acquire) {
                most = memory().max(most);
                std::thread::sleep(Duration::from_millis(5));
            }
            most
        });
        let result = run();
        done.store(true, Ordering::Release);
        (result, watcher.join().map_or(0, |most| most.saturating_sub(before)))
    })
}

struct Filler {
    state: State,
    index: u64,
    random: StdRng,
    value_bytes: usize,
}

impl Filler {
    fn put(&mut self, number: usize) -> Outcome<Duration> {
        let mut value = vec![0; self.value_bytes];
        self.random.fill_bytes(&mut value);
        let key = format!("/registry/pods/namespace-{:03}/pod-{number:08}", number / 5000).into();
        let put = pb::PutRequest { key, value: value.into(), ..Default::default() };
        let data = pb::InternalRaftRequest { put: Some(put), ..Default::default() }.encode_to_vec().into();
        self.index += 1;
        let begun = Instant::now();
        self.state.apply(self.index, 1, &data)?;
        Ok(begun.elapsed())
    }

    /// The latencies of puts, ten to a millisecond and then a pause, until told to stop: median, 99.9 % and worst.
    fn go_on(&mut self, keys: usize, stop: &dyn Fn(usize) -> bool) -> Outcome<[Duration; 3]> {
        let mut times = Vec::new();
        while !stop(times.len()) {
            for _ in 0..10 {
                let number = self.random.random_range(0..keys);
                times.push(self.put(number)?);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        times.sort_unstable();
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
        Ok([at(0.5), at(0.999), at(1.0)])
    }
}

fn write(image: Image, path: &Path) -> Outcome<u64> {
    let file = RealDisk.open(path, Open::Truncate)?;
    let mut end = 0;
    for piece in image.into_pieces() {
        let piece = piece?;
        file.write_at(&piece, end)?;
        end += piece.len() as u64;
    }
    file.sync()?;
    Ok(end)
}

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let keys: usize = arguments.next().map_or(Ok(1_000_000), |text| text.parse())?;
    let value_bytes: usize = arguments.next().map_or(Ok(1_000), |text| text.parse())?;
    let dir = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from).join("keelson-snapshot-example");
    fs::create_dir_all(&dir)?;
    let (state, reader) = open(&dir.join("leader"))?;
    let mut filler = Filler { state, index: 0, random: StdRng::seed_from_u64(1), value_bytes };
    for number in 0..keys {
        filler.put(number)?;
    }
    filler.state.sync()?;
    println!("{keys} keys with values of {value_bytes} bytes; {} MiB of memory", memory());

    let conf_state = raftpb::ConfState { voters: vec![1, 2, 3], ..Default::default() };
    let quiet = filler.go_on(keys, &|count| count >= 20_000)?;
    let begun = Instant::now();
    let image = Image::take(&reader, filler.index, &conf_state);
    println!("taking an image holds the applying side up for {:?}", begun.elapsed());

    let path = dir.join("image.db");
    let (index, term, v2_json) = (image.index(), image.term(), image.v2_json().clone());
    let ((written, busy), more) = watched(|| {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let begun = Instant::now();
                let written = write(image, &path).map_err(|error| error.to_string());
                done.store(true, Ordering::Release);
                (written, begun.elapsed())
            });
            let busy = filler.go_on(keys, &|count| count > 0 && done.load(Ordering::Acquire));
            (writer.join().unwrap_or((Err("panicked".into()), Duration::ZERO)), busy)
        })
    });
    let (bytes, took) = (written.0?, written.1);
    let rate = |took: Duration| bytes as f64 / 1e6 / took.as_secs_f64();
    println!("written out: {} MB in {took:.2?}, {:.0} MB/s, {more} MiB more memory", bytes / 1_000_000, rate(took));
    println!("an apply took (median, 99.9 %, worst) {quiet:.1?} before and {:.1?} meanwhile", busy?);

    drop((filler, reader));
    let (mut state, reader) = open(&dir.join("follower"))?;
    let file = RealDisk.open(&path, Open::Read)?;
    let incoming = Incoming { name: "image.db", file, v2_json: &v2_json, index, term };
    let begun = Instant::now();
    let (installed, more) = watched(|| state.install(&incoming, &conf_state));
    let took = begun.elapsed();
    let revision = installed?.revision;
    println!("installed: {took:.2?}, {:.0} MB/s, {more} MiB more memory, now at revision {revision}", rate(took));
    println!("its index has {} keys", reader.store().indexed_keys());
    drop((state, reader));
    fs::remove_dir_all(&dir)?;
    Ok(())
}
