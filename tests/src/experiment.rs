//! A runner for experiments: each is repeated as often as the tier asks, prints one line, and all of
//! them a table at the end. The last line has the form of the standard harness, so that one reader
//! adds up everything.

use std::future::Future;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::stream::{self, StreamExt as _};

/// Name of the variable that chooses the tier: `pr` (default) or `release`.
pub const COUNTS_VARIABLE: &str = "OUTRIGGER_COUNTS";
/// Name of the variable that fixes the seed, to repeat a run.
pub const SEED_VARIABLE: &str = "OUTRIGGER_SEED";

/// Name of the variable that makes the run a campaign: the path of its ledger.
pub const CAMPAIGN_VARIABLE: &str = "OUTRIGGER_CAMPAIGN";

/// What an experiment is given.
#[derive(Debug)]
pub struct Trial {
    /// Its name in the failure or threat table.
    pub id: &'static str,
    /// How often to repeat it.
    pub count: u32,
    /// How many repetitions of the same campaign went before: an experiment that goes through a list
    /// goes on from here. 0 outside campaigns.
    pub offset: u32,
    /// Its source of chance; the same seed gives the same choices.
    pub random: fastrand::Rng,
    /// Where that began, for the evidence.
    pub seed: u64,
}

impl Trial {
    /// A time between two bounds, in milliseconds.
    pub fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.random.u64(from..=to))
    }

    /// Shows how far a long experiment has come, where a person watches.
    pub fn progress(&self, done: u32) {
        use std::io::IsTerminal as _;
        let mut out = std::io::stdout();
        if out.is_terminal() {
            // A terminal that is gone is no reason to fail.
            let _ = write!(out, "\r{:<4} {done}/{} ", self.id, self.count);
            let _ = out.flush();
        }
    }
}

/// What an experiment that held says about itself.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// How many cases, kills or rounds there were.
    pub repetitions: u64,
    /// What was measured, in a few words; or what the machine refuses.
    pub note: String,
    /// The machine does not allow the experiment. Counted and shown, never passed over.
    pub skipped: bool,
}

impl Outcome {
    /// So many repetitions, and what was seen.
    pub fn new(repetitions: impl TryInto<u64>, note: impl Into<String>) -> Self {
        Self { repetitions: repetitions.try_into().unwrap_or(u64::MAX), note: note.into(), skipped: false }
    }

    /// Skipped where `error` says that the machine does not allow what was tried; any other error is one.
    ///
    /// # Errors
    /// The error given.
    pub fn skipped_if_refused(error: anyhow::Error) -> Result<Self> {
        const REFUSALS: [&str; 5] = [
            "not permitted",
            "Permission denied",
            "must be superuser",
            "failed to setup loop",
            "No such file or directory",
        ];
        let text = format!("{error:#}");
        if REFUSALS.iter().any(|refusal| text.contains(refusal)) { Ok(Self::skipped(text)) } else { Err(error) }
    }

    /// Not done, because the machine does not allow it: no loop devices, no namespaces, not root.
    pub fn skipped(reason: impl Into<String>) -> Self {
        Self { repetitions: 0, note: reason.into(), skipped: true }
    }
}

/// An experiment's own future.
pub type Run = Pin<Box<dyn Future<Output = Result<Outcome>> + Send>>;

/// One experiment.
#[derive(Debug)]
pub struct Experiment {
    /// Its stable name in the failure or threat table, for example `F1`.
    pub id: &'static str,
    /// The function: what it shows.
    pub name: &'static str,
    /// Repetitions for a pull request.
    pub pr: u32,
    /// Repetitions for a release.
    pub release: u32,
    /// The function.
    pub run: fn(Trial) -> Run,
    /// Nothing runs beside it.
    pub alone: bool,
}

impl Experiment {
    /// It judges by times, or by what the whole machine has left: nothing may run beside it.
    #[must_use]
    pub fn alone(self) -> Self {
        Self { alone: true, ..self }
    }
}

/// `experiment!("F1", kills::nothing_is_lost, 100, 2_000)`: id, function, repetitions for a pull
/// request and for a release.
#[macro_export]
macro_rules! experiment {
    ($id:literal, $module:ident::$function:ident, $pr:expr, $release:expr) => {
        $crate::experiment::Experiment {
            id: $id,
            name: stringify!($function),
            pr: $pr,
            release: $release,
            run: |trial| Box::pin($module::$function(trial)),
            alone: false,
        }
    };
}

/// Runs the experiments that the arguments choose (by id or by a part of the name; all without one),
/// `beside` at a time and then those that want to be alone, and prints what became of them.
///
/// With [`CAMPAIGN_VARIABLE`] they are a campaign instead, see `campaign.rs`.
pub fn main(experiments: &[Experiment], beside: usize) -> ExitCode {
    // Options of the standard harness mean nothing here; whoever passes them means all tests.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if std::env::args().any(|argument| argument == "--list") {
        for experiment in experiments {
            say(&format!("{}: test\n", experiment.name));
        }
        return ExitCode::SUCCESS;
    }
    let result = match std::env::var_os(CAMPAIGN_VARIABLE) {
        Some(ledger) => crate::campaign::run(experiments, &wanted, ledger.as_ref()),
        None => run_all(experiments, &wanted, beside),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("the experiments cannot be run: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

/// What became of one.
#[derive(Clone, Debug)]
struct End {
    /// `ok`, `FAILED` or `SKIPPED`.
    word: &'static str,
    /// Its line of the table, without the note.
    line: String,
    note: String,
}

fn run_all(experiments: &[Experiment], wanted: &[String], beside: usize) -> Result<bool> {
    let release = match std::env::var(COUNTS_VARIABLE).as_deref() {
        Ok("release") => true,
        Err(_) | Ok("pr" | "") => false,
        Ok(other) => anyhow::bail!("{COUNTS_VARIABLE} is {other}, must be pr or release"),
    };
    let base = base_seed()?;
    // Some of them block a thread for a while, and the gateways of others answer meanwhile.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4 * beside).enable_all().build();
    let runtime = runtime.context("start the runtime")?;
    say(&format!("tier {}, {SEED_VARIABLE}={base}\n", if release { "release" } else { "pr" }));
    let is_wanted = |experiment: &&Experiment| wanted.is_empty() || wanted.iter().any(|word| experiment.is_meant(word));
    let chosen: Vec<&Experiment> = experiments.iter().filter(is_wanted).collect();
    let left_out = experiments.len() - chosen.len();
    let of_kind = |alone: bool| {
        let chosen = chosen.iter().copied().enumerate().filter(move |(_, experiment)| experiment.alone == alone);
        stream::iter(chosen).map(|(nth, experiment)| async move { (nth, experiment.told(base, release).await) })
    };
    let mut ends: Vec<(usize, End)> = runtime.block_on(async {
        let beside = of_kind(false).buffer_unordered(beside).collect::<Vec<_>>().await;
        let alone = of_kind(true).buffer_unordered(1).collect::<Vec<_>>().await;
        [beside, alone].concat()
    });
    ends.sort_unstable_by_key(|(nth, _)| *nth);
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    say(&format!("\n{:<4} {:<58} {:>7} {:<7} {:>8}\n", "id", "experiment", "n", "result", "time"));
    for (_, end) in &ends {
        // The whole story of a failure is above; the table has its first line.
        say(&format!("{}  {}\n", end.line, end.note.lines().next().unwrap_or_default()));
        match end.word {
            "ok" => passed += 1,
            "SKIPPED" => skipped += 1,
            _ => failed += 1,
        }
    }
    say("\n");
    let word = if failed == 0 { "ok" } else { "FAILED" };
    say(&format!(
        "test result: {word}. {passed} passed; {failed} failed; {skipped} ignored; 0 measured; {left_out} filtered out\n"
    ));
    Ok(failed == 0)
}

/// The seed of a run: what the variable says, or chance.
pub(crate) fn base_seed() -> Result<u64> {
    match std::env::var(SEED_VARIABLE) {
        Ok(text) => text.parse().with_context(|| format!("{SEED_VARIABLE} must be a number")),
        Err(_) => Ok(fastrand::u64(..)),
    }
}

impl Experiment {
    pub(crate) fn is_meant(&self, word: &str) -> bool {
        self.id.eq_ignore_ascii_case(word) || self.name.contains(word)
    }

    /// Runs it and prints its line.
    async fn told(&self, base: u64, release: bool) -> End {
        let count = if release { self.release } else { self.pr };
        let begin = Instant::now();
        let result = self.once(base, count, 0).await;
        let seconds = begin.elapsed().as_secs_f64();
        let (word, repetitions, note) = match result {
            Ok(outcome) if outcome.skipped => ("SKIPPED", "-".to_owned(), outcome.note),
            Ok(outcome) => ("ok", outcome.repetitions.to_string(), outcome.note),
            Err(error) => ("FAILED", "-".to_owned(), format!("{error:#}")),
        };
        let line = format!("{:<4} {:<58} {repetitions:>7} {word:<7} {seconds:>6.1} s", self.id, self.name);
        say(&format!("\r{line}  {note}\n"));
        End { word, line, note }
    }

    pub(crate) async fn once(&self, base: u64, count: u32, offset: u32) -> Result<Outcome> {
        let mut hasher = DefaultHasher::new();
        (base, self.id, self.name).hash(&mut hasher);
        let seed = hasher.finish();
        let trial = Trial { id: self.id, count, offset, random: fastrand::Rng::with_seed(seed), seed };
        // On a task of its own, so that a panic is one failed experiment.
        match tokio::spawn((self.run)(trial)).await {
            Ok(result) => result,
            Err(error) => Err(anyhow::anyhow!("{error}")),
        }
    }
}

/// Prints to the run's output, as the table of [`main`] is.
pub fn say(text: &str) {
    let mut out = std::io::stdout();
    // A closed pipe is no reason to fail.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
