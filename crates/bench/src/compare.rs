//! Side by side: every workload on every server in turn, round after round, each time on a fresh directory.

use crate::error::BenchError;
use crate::metric::Measured;
use crate::options::{Compare, Members, Run, selected};
use crate::process::{Server, ServerSpec};
use crate::report::{self, Rows};
use crate::workload::{Settings, Target, Workload, all, of_clusters, of_v2};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Runs the comparison, prints the table; returns whether every run gave figures.
pub async fn compare(options: &Compare) -> Result<bool, BenchError> {
    let workloads = match options.members {
        Members::One => chosen(of_single_servers(&options.workloads), &options.workloads),
        Members::Three => chosen(of_clusters(), &options.workloads),
    };
    let names: Vec<&str> = options.servers.iter().map(|server| server.name.as_str()).collect();
    let scratch = Scratch::new(&options.dir)?;
    let mut rows = Vec::new();
    for (number, workload) in workloads.iter().enumerate() {
        let rounds = if workload.large { options.large_rounds } else { options.rounds };
        let mut row = Rows { workload: workload.name, servers: vec![Vec::new(); options.servers.len()] };
        for round in 0..rounds {
            for (index, spec) in options.servers.iter().enumerate() {
                let begun = Instant::now();
                let result = run_once(workload, spec, &options.settings, &scratch.0).await;
                let brief = match &result {
                    Ok(figures) => in_brief(figures),
                    Err(error) => format!("FAILED: {error}"),
                };
                eprintln!(
                    "[{}/{}] {} round {}/{rounds} {}: {brief} ({:.1} s)",
                    number + 1,
                    workloads.len(),
                    workload.name,
                    round + 1,
                    spec.name,
                    begun.elapsed().as_secs_f64(),
                );
                row.servers[index].push(result.map_err(|error| error.to_string()));
            }
        }
        rows.push(row);
        if let Some(path) = &options.json {
            // After every workload, so that a long comparison that is cut short has not been for nothing.
            let text = format!("{:#}\n", report::json(&names, &rows));
            fs::write(path, text).map_err(|source| BenchError::File { path: path.clone(), source })?;
        }
    }
    print!("{}", report::table(&names, &rows, options.judged));
    let (missed, failed) = report::misses(&names, &rows);
    println!("{missed} floors missed, {failed} runs failed");
    Ok(failed == 0)
}

/// Runs the workloads once against a server that runs already.
pub async fn run(options: &Run) -> Result<bool, BenchError> {
    let mut rows = Vec::new();
    for workload in chosen(of_single_servers(&options.workloads), &options.workloads) {
        let mut target = Target { address: options.endpoint, pid: options.pid, server: None };
        let result = workload.run(&mut target, &options.settings).await.map_err(|error| error.to_string());
        eprintln!("{}: {}", workload.name, result.as_ref().map_or_else(Clone::clone, in_brief));
        rows.push(Rows { workload: workload.name, servers: vec![vec![result]] });
    }
    let names = ["server"];
    print!("{}", report::table(&names, &rows, false));
    Ok(report::misses(&names, &rows).1 == 0)
}

/// Those of the v2 API are among them if that was asked for: servers need a flag for it, and not every etcd has it.
fn of_single_servers(patterns: &[String]) -> Vec<Workload> {
    let mut workloads = all();
    if patterns.iter().any(|pattern| pattern.starts_with("v2")) {
        workloads.extend(of_v2());
    }
    workloads
}

fn chosen(workloads: Vec<Workload>, patterns: &[String]) -> Vec<Workload> {
    workloads.into_iter().filter(|workload| selected(workload.name, patterns)).collect()
}

async fn run_once(
    workload: &Workload,
    spec: &ServerSpec,
    settings: &Settings,
    scratch: &Path,
) -> Result<Measured, BenchError> {
    let dir = scratch.join(format!("{}-{}", workload.name, spec.name.replace('/', "_")));
    let cleared = || match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(BenchError::File { path: dir.clone(), source: error })
        }
        _ => Ok(()),
    };
    cleared()?;
    if workload.is_of_clusters() {
        let result = workload.run_on_cluster(spec, &dir, settings).await;
        cleared()?;
        return result;
    }
    let (mut server, _) = Server::start(spec, &dir).await?;
    let mut target = Target { address: server.address(), pid: server.pid(), server: Some(&mut server) };
    let result = workload.run(&mut target, settings).await;
    // A server that died explains a broken connection better than the connection does.
    let alive = server.check_alive();
    drop(server);
    cleared()?;
    alive.and(result)
}

/// The first few figures, for the progress line.
fn in_brief(figures: &Measured) -> String {
    let shown = figures.iter().take(4).map(|(metric, value)| format!("{} {value:.1} {}", metric.name, metric.unit));
    shown.collect::<Vec<_>>().join(", ")
}

/// A directory of this process alone, removed with all that is in it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(parent: &Path) -> Result<Scratch, BenchError> {
        let path = parent.join(format!("keelson-bench-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(|source| BenchError::File { path: path.clone(), source })?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} is left behind: {error}", self.0.display());
        }
    }
}
