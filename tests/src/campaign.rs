//! The release counts: every experiment as often as a release asks, in parts of bounded time, each of
//! which appends one line to a ledger that is committed. A campaign that was cut off goes on where its
//! ledger ends, as long as the sources are the same.
//!
//! `tests/faults/campaign` builds what is needed and starts it.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use kit::clock::{Clock as _, SystemClock};
use serde::{Deserialize, Serialize};

use crate::binaries::repository;
use crate::experiment::{Experiment, base_seed, say};

/// A part takes about this long, so that a campaign that is cut off loses little.
const PART_SECONDS: f64 = 600.0;
/// What the promise rests on: the ledger of other sources says nothing about these.
const SOURCES: [&str; 3] = ["sidecars", "Cargo.lock", ".cargo"];

/// One part of one experiment.
#[derive(Debug, Deserialize, Serialize)]
struct Part {
    at: String,
    commit: String,
    sources: String,
    id: String,
    experiment: String,
    seed: u64,
    /// Repetitions of this part, and of all parts before it.
    n: u32,
    offset: u32,
    failures: u32,
    seconds: f64,
    note: String,
}

/// Runs what is missing in the ledger; true when nothing failed.
pub(crate) fn run(experiments: &[Experiment], wanted: &[String], ledger: &Path) -> Result<bool> {
    let (commit, sources) = (git(&["rev-parse", "--short=10", "HEAD"])?, sources()?);
    let mut done = done(ledger, &sources)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    say(&format!("campaign into {}, commit {commit}, sources {sources}\n", ledger.display()));
    let (mut held, mut failed, mut skipped) = (0, 0, 0);
    for experiment in experiments {
        if !wanted.is_empty() && !wanted.iter().any(|word| experiment.is_meant(word)) {
            continue;
        }
        let mut offset = done.remove(&(experiment.id.to_owned(), experiment.name.to_owned())).unwrap_or(0);
        let mut count = experiment.pr;
        let mut holds = true;
        while holds && offset < experiment.release {
            count = count.clamp(1, experiment.release - offset);
            let seed = base_seed()?;
            let begin = Instant::now();
            let result = runtime.block_on(experiment.once(seed, count, offset));
            let seconds = begin.elapsed().as_secs_f64();
            let (note, is_skipped) = match &result {
                Ok(outcome) => (outcome.note.clone(), outcome.skipped),
                Err(error) => (in_short(&format!("{error:#}")), false),
            };
            holds = result.is_ok();
            say(&format!(
                "{:<4} {:<58} {:>7} of {:<7} {:<6} {seconds:>7.1} s  {note}\n",
                experiment.id,
                experiment.name,
                offset + count,
                experiment.release,
                if is_skipped {
                    "SKIPPED"
                } else if holds {
                    "ok"
                } else {
                    "FAILED"
                },
            ));
            if is_skipped {
                skipped += 1;
                break;
            }
            let part = Part {
                at: SystemClock.now().to_string(),
                commit: commit.clone(),
                sources: sources.clone(),
                id: experiment.id.to_owned(),
                experiment: experiment.name.to_owned(),
                seed,
                n: count,
                offset,
                failures: u32::from(!holds),
                seconds: (seconds * 10.0).round() / 10.0,
                note,
            };
            append(ledger, &part)?;
            offset += count;
            count = next_count(count, seconds);
        }
        if holds { held += 1 } else { failed += 1 }
    }
    say(&format!(
        "test result: {}. {held} passed; {failed} failed; {skipped} ignored; 0 measured\n",
        if failed == 0 { "ok" } else { "FAILED" }
    ));
    Ok(failed == 0)
}

/// What went wrong: the first line, and the first ones that name a broken invariant.
fn in_short(error: &str) -> String {
    let breaches = error.lines().skip_while(|line| !line.contains("IS BROKEN")).skip(1);
    error.lines().take(1).chain(breaches.take(2)).map(str::trim).collect::<Vec<_>>().join(" / ")
}

/// As many repetitions as fit into a part's time, by how long the last ones took.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded on both sides")]
fn next_count(count: u32, seconds: f64) -> u32 {
    (f64::from(count) * PART_SECONDS / seconds.max(0.1)).clamp(1.0, 1e6) as u32
}

/// Repetitions that held with these sources, by experiment.
fn done(ledger: &Path, sources: &str) -> Result<BTreeMap<(String, String), u32>> {
    let mut done = BTreeMap::new();
    if !ledger.exists() {
        return Ok(done);
    }
    let text = std::fs::read_to_string(ledger).with_context(|| ledger.display().to_string())?;
    for (number, line) in text.lines().enumerate() {
        let part: Part = serde_json::from_str(line).with_context(|| format!("line {} of the ledger", number + 1))?;
        if part.sources == sources && part.failures == 0 {
            *done.entry((part.id, part.experiment)).or_insert(0) += part.n;
        }
    }
    Ok(done)
}

fn append(ledger: &Path, part: &Part) -> Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(ledger).context("open the ledger")?;
    writeln!(file, "{}", serde_json::to_string(part)?).context("write the ledger")
}

/// One name for everything the daemons are built from.
fn sources() -> Result<String> {
    let mut arguments = vec!["status", "--porcelain", "--"];
    arguments.extend(SOURCES);
    ensure!(
        git(&arguments)?.is_empty(),
        "the sources have changes that are not committed: a ledger line must name them"
    );
    let trees: Result<Vec<String>> = SOURCES.iter().map(|path| git(&["rev-parse", &format!("HEAD:{path}")])).collect();
    Ok(trees?.iter().map(|tree| &tree[..tree.len().min(8)]).collect::<Vec<_>>().join("-"))
}

fn git(arguments: &[&str]) -> Result<String> {
    let output = Command::new("git").current_dir(repository()).args(arguments).output().context("run git")?;
    ensure!(output.status.success(), "git {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
