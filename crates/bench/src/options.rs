//! The command line.

use crate::place::Place;
use crate::process::ServerSpec;
use crate::workload::Settings;
use std::path::PathBuf;
use std::time::Duration;

/// What `--help` prints.
pub const HELP: &str = "\
Measures an etcd server, or compares several side by side.

keelson-bench compare --server NAME=PATH --server NAME=PATH ... [options]
    Starts each server in turn on a fresh directory for every workload and round. The first one named is judged
    against the better of the others. PATH may be followed by flags for that server: 'a=/usr/bin/etcd --max-wals=2'.
    With --auto-tls or --cert-file among them, clients and that server speak TLS; with --peer-auto-tls or
    --peer-cert-file, members do.
    --rounds N          rounds of each workload (3)
    --large-rounds N    rounds of the workloads that fill 1,000,000 keys (1)
    --dir DIR           where fresh data directories are made (the system's temporary directory)
    --json FILE         also write every figure of every round
    --judged            show only what has a floor and a goal

keelson-bench cluster --server NAME=PATH --server NAME=PATH ... [options of compare]
    The same with three members of each server, on the workloads of clusters.

keelson-bench run --endpoint [https://]HOST:PORT [--pid PID] [options]
    Runs workloads once against a server that runs already; with its process ID also CPU and memory.

keelson-bench list
    Names the workloads.

Options of both
    --workload PATTERN  only workloads whose name holds PATTERN; with '*' the whole name must match; may be repeated.
                        Those of the v2 API only run if a PATTERN begins with v2
    --seconds S         measured time of workloads bounded by time (3)
    --scale F           factor on the number of keys of the large workloads (1)
";

/// What was asked for.
#[derive(Debug)]
pub enum Command {
    /// Print the help.
    Help,
    /// Name the workloads.
    List,
    /// Several servers in alternation.
    Compare(Compare),
    /// One that runs.
    Run(Run),
}

/// How many members each server of a comparison has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Members {
    /// Itself alone.
    One,
    /// Three of a cluster.
    Three,
}

/// `compare`.
#[derive(Debug)]
pub struct Compare {
    /// The first is judged against the others.
    pub servers: Vec<ServerSpec>,
    /// How many of each.
    pub members: Members,
    /// Rounds of ordinary workloads.
    pub rounds: usize,
    /// Rounds of large ones.
    pub large_rounds: usize,
    /// Where data directories go.
    pub dir: PathBuf,
    /// Where figures go.
    pub json: Option<PathBuf>,
    /// Leave figures without a bound out of the table.
    pub judged: bool,
    /// Which workloads.
    pub workloads: Vec<String>,
    /// How long and large.
    pub settings: Settings,
}

/// `run`.
#[derive(Debug)]
pub struct Run {
    /// The server.
    pub endpoint: Place,
    /// Its process.
    pub pid: Option<u32>,
    /// Which workloads.
    pub workloads: Vec<String>,
    /// How long and large.
    pub settings: Settings,
}

/// Reads the arguments (without the program's name); the error is a sentence for the user.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Command, String> {
    let mut arguments = arguments.into_iter();
    let command = arguments.next().unwrap_or_default();
    let mut compare = Compare {
        servers: Vec::new(),
        members: if command == "cluster" { Members::Three } else { Members::One },
        rounds: 3,
        large_rounds: 1,
        dir: std::env::temp_dir(),
        json: None,
        judged: false,
        workloads: Vec::new(),
        settings: Settings { measured: Duration::from_secs(3), scale: 1.0 },
    };
    let (mut endpoint, mut pid) = (None, None);
    while let Some(argument) = arguments.next() {
        let (flag, attached) = match argument.split_once('=') {
            Some((flag, value)) if flag.starts_with("--") => (flag.to_owned(), Some(value.to_owned())),
            _ => (argument, None),
        };
        if flag == "--help" || flag == "-h" {
            return Ok(Command::Help);
        }
        if flag == "--judged" {
            compare.judged = true;
            continue;
        }
        let value = attached.or_else(|| arguments.next()).ok_or_else(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--server" => compare.servers.push(ServerSpec::parse(&value)?),
            "--rounds" => compare.rounds = number(&flag, &value, 1.0, 1000.0)? as usize,
            "--large-rounds" => compare.large_rounds = number(&flag, &value, 1.0, 1000.0)? as usize,
            "--dir" => compare.dir = value.into(),
            "--json" => compare.json = Some(value.into()),
            "--workload" => compare.workloads.push(value),
            "--seconds" => compare.settings.measured = Duration::from_secs_f64(number(&flag, &value, 0.1, 600.0)?),
            "--scale" => compare.settings.scale = number(&flag, &value, 0.001, 10.0)?,
            "--endpoint" => {
                let (is_secure, address) = match value.split_once("://") {
                    Some((scheme, address)) => (scheme == "https", address),
                    None => (false, value.as_str()),
                };
                let address =
                    address.parse().map_err(|_| format!("--endpoint {value}: not an address like 127.0.0.1:2379"));
                endpoint = Some(Place { address: address?, is_secure });
            }
            "--pid" => pid = Some(number(&flag, &value, 1.0, f64::from(u32::MAX))? as u32),
            _ => return Err(format!("unknown option {flag}")),
        }
    }
    match command.as_str() {
        "compare" | "cluster" if compare.servers.is_empty() => {
            Err(format!("{command} needs at least one --server NAME=PATH"))
        }
        "compare" | "cluster" => Ok(Command::Compare(compare)),
        "run" => {
            let endpoint = endpoint.ok_or("run needs --endpoint HOST:PORT")?;
            Ok(Command::Run(Run { endpoint, pid, workloads: compare.workloads, settings: compare.settings }))
        }
        "list" => Ok(Command::List),
        "" | "help" | "--help" | "-h" => Ok(Command::Help),
        _ => Err(format!("unknown command {command}")),
    }
}

fn number(flag: &str, value: &str, least: f64, most: f64) -> Result<f64, String> {
    match value.parse::<f64>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("{flag} {value}: a number from {least} to {most} is needed")),
    }
}

/// Whether `name` is asked for by one of `patterns`; all are if there is none.
pub fn selected(name: &str, patterns: &[String]) -> bool {
    patterns.is_empty()
        || patterns
            .iter()
            .any(|pattern| if pattern.contains('*') { glob(pattern, name) } else { name.contains(pattern) })
}

/// Matches the whole of `name`, `*` standing for anything.
fn glob(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => {
            let Some(rest) = name.strip_prefix(before) else { return false };
            (0..=rest.len()).any(|skip| rest.is_char_boundary(skip) && glob(after, &rest[skip..]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split(' ').map(str::to_owned))
    }

    #[test]
    fn a_comparison_has_servers_and_bounds() {
        let line = "compare --server=a=/x --server b=/y --rounds 5 --seconds 0.5 --scale 0.1 --workload put";
        let Ok(Command::Compare(compare)) = parsed(line) else { panic!("not a comparison") };
        assert_eq!(compare.servers.len(), 2);
        assert_eq!((compare.rounds, compare.settings.scale), (5, 0.1));
        assert_eq!(compare.settings.measured, Duration::from_millis(500));
    }

    #[test]
    fn nonsense_is_refused_with_a_sentence() {
        for (line, text) in [
            ("compare", "at least one --server"),
            ("run", "--endpoint"),
            ("walk", "unknown command"),
            ("compare --server x", "not NAME=PATH"),
            ("compare --rounds 0", "from 1 to"),
            ("compare --sever a=b", "unknown option"),
            ("compare --rounds", "needs a value"),
        ] {
            let error = parsed(line).expect_err(line);
            assert!(error.contains(text), "{line}: {error}");
        }
    }

    #[test]
    fn patterns_select_workloads() {
        assert!(selected("put_256b_64", &[]));
        assert!(selected("put_256b_64", &["put".to_owned()]));
        assert!(!selected("put_256b_64", &["range".to_owned()]));
        assert!(selected("put_256b_64", &["*_64".to_owned()]));
        assert!(!selected("put_256b_640", &["*_64".to_owned()]));
    }
}
