//! What to simulate: what the command line says, and what each seed makes of it.

use std::ops::Range;

use mutant::Mutant;
use server::simulated::Flags;

use crate::cluster::data_dir;
use crate::random::Random;
use crate::without::Without;

/// What the command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The seeds to run.
    pub seeds: Range<u64>,
    /// Simulated time of each, in seconds.
    pub seconds: u64,
    /// Members of the cluster; `None`: the seed decides.
    pub members: Option<u64>,
    /// Runs side by side.
    pub jobs: usize,
    /// Prints everything that happens.
    pub trace: bool,
    /// Runs each seed twice and compares.
    pub twice: bool,
    /// Lives with these deliberate bugs until they are found.
    pub mutants: Option<Vec<Mutant>>,
    /// What lives go without.
    pub without: Without,
    /// Looks for a smaller life that goes wrong.
    pub shrinks: bool,
}

/// How to call the program.
pub const USAGE: &str = "\
usage: sim [--seed N | --seeds A..B] [--hours H | --minutes M | --seconds S] [--members 1|3|5|7] [--jobs J] [--trace] [--twice]
           [--without LIST]
       sim --shrink --seed N [the options with which it fails]
       sim --mutants all|NAME,... [--seeds A..B] [--minutes M] [--jobs J]

  --seed N         simulate the life of one cluster
  --seeds A..B     simulate many, from A up to and not with B
  --hours H        simulated time of each (default: 5 minutes)
  --minutes M      the same in minutes
  --seconds S      or in seconds
  --members N      members of the cluster (default: the seed decides)
  --jobs J         clusters that are simulated side by side (default: one per processor)
  --trace          print what happens
  --twice          run each seed twice and compare the traces
  --shrink         look for a smaller life that goes wrong: shorter, with fewer kinds of trouble, fewer troubles and requests;
                   prints the command that lives it again
  --without LIST   go without what --shrink has found to be unnecessary
  --mutants NAMES  see whether deliberate bugs are found: live the seeds (default: 1..400, 2 minutes each) with each of them
                   until a promise is broken, and print which seed did it and how long it took; needs a build with
                   `--features mutants`";

/// Simulated time of a seed, unless told otherwise, in seconds.
const SECONDS: u64 = 300;

impl Options {
    /// Understands the arguments after the program's name.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let mut options = Self {
            seeds: 1..2,
            seconds: SECONDS,
            members: None,
            jobs,
            trace: false,
            twice: false,
            mutants: None,
            without: Without::default(),
            shrinks: false,
        };
        let (mut seeds, mut seconds) = (None, None);
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--seed" => {
                    let seed: u64 = number(&value()?)?;
                    seeds = Some(seed..seed.checked_add(1).ok_or("the seed is too large")?);
                }
                "--seeds" => {
                    let value = value()?;
                    let (from, to) = value.split_once("..").ok_or("--seeds wants A..B")?;
                    seeds = Some(number(from)?..number(to)?);
                }
                "--hours" => seconds = Some((value()?.parse::<f64>().map_err(|e| e.to_string())? * 3600.0) as u64),
                "--seconds" => seconds = Some(number(&value()?)?),
                "--minutes" => seconds = Some(60 * number(&value()?)?),
                "--members" => match number(&value()?)? {
                    members @ (1 | 3 | 5 | 7) => options.members = Some(members),
                    members => return Err(format!("{members} members: it can be 1, 3, 5 or 7")),
                },
                "--jobs" => options.jobs = number(&value()?)?.max(1) as usize,
                "--trace" => options.trace = true,
                "--without" => options.without = value()?.parse()?,
                "--shrink" => options.shrinks = true,
                "--twice" => options.twice = true,
                "--mutants" => options.mutants = Some(mutants(&value()?)?),
                other => return Err(format!("unknown argument {other}")),
            }
        }
        let usual = if options.mutants.is_some() { (1..401, 120) } else { (1..2, SECONDS) };
        (options.seeds, options.seconds) = (seeds.unwrap_or(usual.0), seconds.unwrap_or(usual.1));
        Ok(options)
    }
}

fn mutants(names: &str) -> Result<Vec<Mutant>, String> {
    if names == "all" {
        return Ok(Mutant::ALL.to_vec());
    }
    let named = |name: &str| Mutant::ALL.iter().copied().find(|mutant| format!("{mutant:?}") == name);
    names.split(',').map(|name| named(name).ok_or_else(|| format!("no deliberate bug is called {name}"))).collect()
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|error| format!("{text}: {error}"))
}

/// `--snapshot-count`: snapshots often, now and then, never.
const SNAPSHOT_COUNTS: [u64; 3] = [50, 300, 10_000];

/// What a seed makes of the options.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Members that found the cluster.
    pub members: u64,
    /// Clients, each with one request under way.
    pub clients: usize,
    /// How many of them lock something.
    pub lockers: usize,
    /// Clients that watch.
    pub watchers: usize,
    /// How long a client thinks between two requests, in microseconds.
    pub pause_us: u64,
    /// `--heartbeat-interval`.
    pub heartbeat_ms: u64,
    /// `--election-timeout`.
    pub election_ms: u64,
    /// `--snapshot-count`.
    pub snapshot_count: u64,
    /// `--snapshot-catchup-entries`.
    pub snapshot_catchup_entries: u64,
    /// `--max-wals`, and `--max-snapshots`.
    pub max_files: usize,
    /// Sizes of the log's and the store's segments, in bytes.
    pub segment_bytes: u32,
    /// Whether disks have faults, so that a member may stop because of one.
    pub disks_fail: bool,
    /// `--quota-backend-bytes`; 0 = plenty.
    pub quota_bytes: i64,
    /// Whether disks go bad where nobody writes any more.
    pub disks_rot: bool,
    /// Whether members are started again with other flags.
    pub retunes: bool,
    /// Whether members come and go.
    pub reconfigures: bool,
    /// Whether clients use the v2 API as well.
    pub speaks_v2: bool,
}

impl Settings {
    /// Draws them.
    pub fn draw(options: &Options, random: &mut Random) -> Self {
        let drawn = *random.pick(&[1, 3, 3, 3, 3, 5, 5, 7]).unwrap_or(&3);
        Self {
            members: options.members.unwrap_or(drawn),
            clients: random.between(2, 8) as usize,
            lockers: *random.pick(&[0, 0, 2, 3]).unwrap_or(&0),
            watchers: random.below(5) as usize,
            pause_us: *random.pick(&[20_000, 100_000, 400_000]).unwrap_or(&100_000),
            heartbeat_ms: 100,
            election_ms: 1_000,
            snapshot_count: *random.pick(&SNAPSHOT_COUNTS).unwrap_or(&300),
            snapshot_catchup_entries: *random.pick(&[5, 50, 5_000]).unwrap_or(&50),
            segment_bytes: *random.pick(&[32 << 10, 256 << 10, 8 << 20]).unwrap_or(&(256 << 10)),
            max_files: *random.pick(&[1, 5]).unwrap_or(&5),
            disks_fail: random.chance(500),
            quota_bytes: *random.pick(&[0, 0, 0, 100_000, 400_000]).unwrap_or(&0),
            disks_rot: random.chance(300),
            retunes: random.chance(300),
            reconfigures: random.chance(500),
            speaks_v2: random.chance(500),
        }
    }

    /// Draws another `--snapshot-count`.
    pub fn draw_snapshot_count(&self, random: &mut Random) -> u64 {
        random.pick(&SNAPSHOT_COUNTS).copied().unwrap_or(self.snapshot_count)
    }

    /// The least TTL of a lease, in seconds: one and a half election timeouts, rounded up.
    pub fn min_lease_ttl(&self) -> i64 {
        (3 * self.election_ms / 2).div_ceil(1000) as i64
    }

    /// The flags of a member.
    pub fn flags(&self, name: &str, initial_cluster: Vec<(String, Vec<String>)>, joins: bool) -> Flags {
        Flags {
            name: name.to_owned(),
            data_dir: data_dir(),
            initial_cluster,
            joins,
            heartbeat_ms: self.heartbeat_ms,
            election_ms: self.election_ms,
            pre_vote: true,
            snapshot_count: self.snapshot_count,
            snapshot_catchup_entries: self.snapshot_catchup_entries,
            max_files: self.max_files,
            quota_bytes: self.quota_bytes,
            compact_keeping: None,
            strict_reconfig_check: true,
            log_segment_bytes: u64::from(self.segment_bytes),
            store: store::Options {
                segment_bytes: self.segment_bytes,
                flush_bytes: 16 << 10,
                recent_bytes: 64 << 10,
                checkpoint_bytes: 4 * u64::from(self.segment_bytes),
            },
        }
    }
}
