//! From the figures of all rounds to one table, and to JSON.

use crate::metric::{Better, Bound, Measured, Metric, Verdict, bound};
use serde_json::{Value, json};
use std::fmt::Write;

/// All rounds of one workload, for the servers in the order of the command line.
pub struct Rows {
    /// The workload's name.
    pub workload: &'static str,
    /// For each server its rounds: the figures, or why there are none.
    pub servers: Vec<Vec<Result<Measured, String>>>,
}

impl Rows {
    /// The metrics that any round has, in the order in which they first come.
    fn metrics(&self) -> Vec<&'static Metric> {
        let mut metrics: Vec<&'static Metric> = Vec::new();
        for (metric, _) in self.servers.iter().flatten().flatten().flatten() {
            if !metrics.iter().any(|known| known.name == metric.name) {
                metrics.push(metric);
            }
        }
        metrics
    }

    /// The values of `metric` in all rounds of server number `server`, sorted.
    fn values(&self, server: usize, metric: &Metric) -> Vec<f64> {
        let measured = self.servers[server].iter().flatten().flatten();
        let mut values: Vec<f64> = measured.filter(|(other, _)| other.name == metric.name).map(|(_, v)| *v).collect();
        values.sort_by(f64::total_cmp);
        values
    }
}

/// The middle value, or the mean of the middle two.
fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// The first value by the better of the others; `None` without one, or against zero.
fn ratio(medians: &[Option<f64>], better: Better) -> Option<f64> {
    let (first, others) = medians.split_first()?;
    let others = others.iter().flatten().copied();
    let best = if better == Better::Higher { others.reduce(f64::max) } else { others.reduce(f64::min) };
    best.filter(|best| *best > 0.0).and_then(|best| first.map(|first| first / best))
}

/// The table: per workload and metric each server's median, the first one's ratio to the better of the others, and
/// what is demanded; with `judged_only`, no other rows.
pub fn table(names: &[&str], rows: &[Rows], judged_only: bool) -> String {
    let mut lines: Vec<Vec<String>> = Vec::new();
    let mut heading = vec!["workload".to_owned(), "metric".to_owned(), "unit".to_owned()];
    heading.extend(names.iter().map(|name| (*name).to_owned()));
    heading.extend(["ratio", "floor", "goal", ""].map(str::to_owned));
    lines.push(heading);
    let mut failures = String::new();
    for row in rows {
        for metric in row.metrics() {
            let medians: Vec<Option<f64>> =
                (0..names.len()).map(|server| median(&row.values(server, metric))).collect();
            let ratio = if metric.better == Better::Told { None } else { ratio(&medians, metric.better) };
            let bound = bound(row.workload, metric);
            if judged_only && bound.is_none() {
                continue;
            }
            let (floor, goal, verdict) = match bound {
                Some(Bound::Ratio { floor, goal }) => {
                    (format!("{floor}x"), format!("{goal}x"), ratio.map(|r| Verdict::of(r, floor, goal, metric.better)))
                }
                Some(Bound::Absolute { floor, goal }) => {
                    let verdict = medians[0].map(|value| Verdict::of(value, floor, goal, metric.better));
                    (floor.to_string(), goal.to_string(), verdict)
                }
                None => Default::default(),
            };
            let mut line = vec![row.workload.to_owned(), metric.name.to_owned(), metric.unit.to_owned()];
            line.extend(medians.into_iter().map(|median| median.map_or("-".to_owned(), figure)));
            line.push(ratio.map_or(String::new(), |ratio| format!("{ratio:.2}x")));
            line.extend([floor, goal, verdict.map_or("", Verdict::word).to_owned()]);
            lines.push(line);
        }
        for (name, rounds) in names.iter().zip(&row.servers) {
            for error in rounds.iter().filter_map(|round| round.as_ref().err()) {
                // Writing to a String cannot fail.
                writeln!(failures, "FAILED {} on {name}: {error}", row.workload).ok();
            }
        }
    }
    align(&lines) + &failures
}

/// Three significant digits where that matters.
fn figure(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        middle if middle >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Columns as wide as their widest cell; words left, numbers right.
fn align(lines: &[Vec<String>]) -> String {
    const WORDS: usize = 3;
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (column, cell) in line.iter().enumerate() {
            let width = widths[column];
            let cell = if column < WORDS { format!("{cell:<width$}  ") } else { format!("{cell:>width$}  ") };
            row.push_str(&cell);
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

/// Every figure of every round with medians, and the bounds that were missed.
pub fn json(names: &[&str], rows: &[Rows]) -> Value {
    let workloads = rows.iter().map(|row| {
        let metrics = row.metrics().into_iter().map(|metric| {
            let rounds: Vec<Vec<f64>> = (0..names.len()).map(|server| row.values(server, metric)).collect();
            let medians: Vec<Option<f64>> = rounds.iter().map(|values| median(values)).collect();
            let ratio = ratio(&medians, metric.better);
            let servers = names.iter().zip(&rounds).zip(&medians);
            let servers: serde_json::Map<String, Value> = servers
                .map(|((name, values), median)| ((*name).to_owned(), json!({ "median": median, "rounds": values })))
                .collect();
            let (kind, floor, goal, judged) = match bound(row.workload, metric) {
                Some(Bound::Ratio { floor, goal }) => (Some("ratio"), Some(floor), Some(goal), ratio),
                Some(Bound::Absolute { floor, goal }) => (Some("absolute"), Some(floor), Some(goal), medians[0]),
                None => (None, None, None, None),
            };
            let verdict = judged
                .zip(floor.zip(goal))
                .map(|(value, (floor, goal))| Verdict::of(value, floor, goal, metric.better).word());
            json!({ "metric": metric.name, "unit": metric.unit, "servers": servers, "ratio": ratio,
                    "bound": kind, "floor": floor, "goal": goal, "verdict": verdict })
        });
        let metrics: Vec<Value> = metrics.collect();
        let failures: Vec<Value> = names
            .iter()
            .zip(&row.servers)
            .flat_map(|(name, rounds)| {
                let errors = rounds.iter().filter_map(|round| round.as_ref().err());
                errors.map(move |error| json!({ "server": name, "error": error }))
            })
            .collect();
        json!({ "workload": row.workload, "metrics": metrics, "failures": failures })
    });
    json!({ "servers": names, "workloads": workloads.collect::<Vec<_>>() })
}

/// How many floors were missed and how many runs failed.
pub fn misses(names: &[&str], rows: &[Rows]) -> (usize, usize) {
    let failed = rows.iter().flat_map(|row| row.servers.iter().flatten()).filter(|round| round.is_err()).count();
    let text = table(names, rows, true);
    (text.lines().filter(|line| line.ends_with(Verdict::Miss.word())).count(), failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::{CPU, THROUGHPUT};

    fn rounds(cpu: &[f64], throughput: f64) -> Vec<Result<Measured, String>> {
        cpu.iter().map(|cpu| Ok(vec![(&CPU, *cpu), (&THROUGHPUT, throughput)])).collect()
    }

    /// The better of the others differs from metric to metric: A needs less CPU, B answers more.
    #[test]
    fn the_first_server_is_held_against_the_better_of_the_others_in_each_metric() {
        let servers = vec![rounds(&[9.0, 30.0, 10.0], 300.0), rounds(&[40.0], 100.0), rounds(&[50.0], 200.0)];
        let rows = [Rows { workload: "put_256b_64", servers }];
        let table = table(&["ours", "a", "b"], &rows, false);
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let lines: Vec<Vec<String>> = table.lines().map(words).collect();
        assert_eq!(lines[1][1..], ["server", "cpu", "us/op", "10.0", "40.0", "50.0", "0.25x", "0.45x", "0.3x", "GOAL"]);
        assert_eq!(lines[2][1..], ["throughput", "/s", "300", "100", "200", "1.50x", "1.6x", "2.5x", "MISS"]);
        assert_eq!(misses(&["ours", "a", "b"], &rows), (1, 0));
    }

    #[test]
    fn a_failed_run_is_told_and_leaves_the_others() {
        let rows = [Rows { workload: "put_256b_1", servers: vec![vec![Err("no".to_owned())], rounds(&[4.0], 1.0)] }];
        let table = table(&["ours", "etcd"], &rows, true);
        assert!(table.contains("FAILED put_256b_1 on ours: no"), "{table}");
        assert_eq!(json(&["ours", "etcd"], &rows)["workloads"][0]["failures"][0]["server"], "ours");
    }

    #[test]
    fn the_median_of_an_even_number_is_the_mean_of_the_middle() {
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), Some(3.0));
        assert_eq!(median(&[]), None);
    }
}
