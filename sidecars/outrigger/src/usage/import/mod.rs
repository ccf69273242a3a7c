//! `usage import`: events from a file to the tracker's intake. Checked whole before anything is sent, sent in batches,
//! and resumable: what was answered is remembered beside the file, and what is sent twice is known by its transaction id.

mod input;
mod intake;
mod progress;
mod send;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use kit::clock::Timestamp;
use serde::Serialize;

use crate::interrupt::Interrupt;
use crate::output::{self, safe, say};
use input::{Event, Format, Lines, Place};
use progress::Progress;

pub(crate) const HELP: &str = "\
CSV has a header with the columns transaction_id, external_subscription_id, code and timestamp, and where needed \
external_customer_id and precise_total_amount_cents. Every other column is a property; its cells stay texts exactly as \
written, empty ones are left out. JSON lines hold one event each, as Lago takes it.

Each line has the transaction id that its producer gave it. None is made here: with another id the same usage would be \
billed again.

Example: outrigger usage import october.csv --dry-run
Example: outrigger usage import october.csv --producer-token-file token --rate 2000
Example: zcat usage.jsonl.gz | outrigger usage import - --format jsonl";

/// Lines that are named where several are wrong.
const NAMED: usize = 20;
/// Lines whose transaction id is there with other content that are named by their numbers.
const KNOWN_NAMED: usize = 1_000;
/// Pairs of metric and subscription that are counted apart; the rest is counted together.
const PAIRS: usize = 10_000;
/// Rows of the table of a dry run.
const SHOWN: usize = 50;
/// Lines that are checked before others get their turn.
const AT_ONCE: u64 = 1_000;

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The file; - is standard input.
    file: PathBuf,
    /// How it is written; by its name (.csv, .jsonl, .ndjson) otherwise.
    #[arg(long)]
    format: Option<Format>,
    #[command(flatten)]
    address: intake::Address,
    /// Check the file and count what is in it; send nothing.
    #[arg(long)]
    dry_run: bool,
    /// Write lines that are wrong or refused to the file of --rejected and go on without them. Without it, only lines
    /// whose transaction id is there with other content are passed over; they are named at the end, which is a failure.
    #[arg(long)]
    skip_invalid: bool,
    /// Where rejected lines go [default: FILE.rejected].
    #[arg(long, value_name = "FILE")]
    rejected: Option<PathBuf>,
    /// Where it is remembered how far the import has come [default: FILE.progress].
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Events in a request at most. Lago itself, in the tracker's place, takes 100.
    #[arg(long, default_value_t = send::BATCH, value_parser = output::at_least_one())]
    batch: usize,
    /// Events per second at most.
    #[arg(long, value_parser = output::at_least_one())]
    rate: Option<usize>,
}

impl Arguments {
    fn is_stdin(&self) -> bool {
        self.file.as_os_str() == "-"
    }

    fn format(&self) -> anyhow::Result<Format> {
        let by_name = match self.file.extension().and_then(OsStr::to_str) {
            Some("csv") => Some(Format::Csv),
            Some("jsonl" | "ndjson") => Some(Format::Jsonl),
            _ => None,
        };
        self.format.or(by_name).context("say how the file is written: --format csv or --format jsonl")
    }

    /// A file beside the input.
    fn beside(&self, given: Option<&Path>, extension: &str) -> Option<PathBuf> {
        let beside = || (!self.is_stdin()).then(|| self.file.with_added_extension(extension));
        given.map(Path::to_owned).or_else(beside)
    }
}

/// What is in the file, and what became of it.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// Lines before this one were done by an earlier, interrupted import.
    from_line: u64,
    /// Events found, from there on.
    events: u64,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
    by: Vec<Pair>,
    /// Events of metrics and subscriptions beyond those in `by`.
    others: u64,
    /// Lines that are wrong or refused.
    wrong_lines: u64,
    /// The first of them.
    wrong: Vec<Wrong>,
    /// Events that the tracker has taken, in this and earlier parts.
    taken: u64,
    /// Lines that were rejected, in this and earlier parts.
    rejected: u64,
    rejected_file: Option<PathBuf>,
    /// Lines whose transaction id is there with other content, in this and earlier parts.
    known: u64,
    /// The numbers of the first of them, of this part.
    known_lines: Vec<u64>,
}

#[derive(Debug, Serialize)]
struct Pair {
    code: String,
    subscription: String,
    events: u64,
}

#[derive(Debug, Serialize)]
struct Wrong {
    line: u64,
    reason: String,
}

impl Report {
    fn is_known(&mut self, line: u64) {
        if self.known_lines.len() < KNOWN_NAMED {
            self.known_lines.push(line);
        }
    }

    fn is_wrong(&mut self, line: u64, reason: String) {
        self.wrong_lines += 1;
        if self.wrong.len() < NAMED {
            self.wrong.push(Wrong { line, reason });
        }
    }
}

pub(crate) async fn run(arguments: Arguments, json: bool) -> anyhow::Result<()> {
    let mut interrupt = Interrupt::listen()?;
    tokio::select! {
        ended = import(&arguments, json) => ended,
        () = interrupt.wait() => bail!("interrupted; the same command goes on, and what was taken is not billed twice"),
    }
}

async fn import(arguments: &Arguments, json: bool) -> anyhow::Result<()> {
    let format = arguments.format()?;
    let rejected = arguments.beside(arguments.rejected.as_deref(), "rejected");
    if arguments.skip_invalid && rejected.is_none() {
        bail!("say where rejected lines go: --rejected FILE");
    }
    // Before a long file is read for nothing.
    let intake = if arguments.dry_run { None } else { Some(arguments.address.open()?) };
    let file = open(arguments).await?;
    let state = arguments.beside(arguments.state.as_deref(), "progress");
    let url = intake.as_ref().map_or("", |intake| intake.url());
    // A dry run looks at the whole file.
    let mut progress = Progress::open(state.filter(|_| intake.is_some()), &file, url)?;
    let mut report = survey(&file, format, progress.place()).await?;
    report.taken = progress.kept.events;
    let Some(intake) = intake else {
        show(&report, json)?;
        return match report.wrong_lines {
            0 => Ok(()),
            wrong => bail!("{wrong} of {} lines are wrong", wrong + report.events),
        };
    };
    if report.wrong_lines > 0 && !arguments.skip_invalid {
        show(&report, json)?;
        let lines = report.wrong_lines + report.events;
        bail!("{} of {lines} lines are wrong, none was sent: correct them, or --skip-invalid", report.wrong_lines);
    }
    let sending = send::Sending {
        file: &file,
        format,
        intake: &intake,
        rejected: rejected.filter(|_| arguments.skip_invalid),
        batch: arguments.batch,
        rate: arguments.rate,
    };
    let ended = sending.run(&mut progress, &mut report).await;
    let kept = &progress.kept;
    (report.taken, report.rejected, report.known) = (kept.events, kept.rejected, kept.known);
    if ended.is_ok() {
        progress.finish()?;
    }
    if ended.is_ok() || !report.wrong.is_empty() {
        show(&report, json)?;
    }
    if ended.is_ok() && report.known > 0 && !arguments.skip_invalid {
        bail!(
            "{} lines were not taken: usage with their transaction ids is there already, with other content. Compare them; a \
             new id would have it billed twice",
            report.known
        );
    }
    ended
}

/// Opens the input. What can be read only once is kept in a file that is gone with this process: it is read twice.
async fn open(arguments: &Arguments) -> anyhow::Result<File> {
    if arguments.is_stdin() {
        return spooled(std::io::stdin()).await;
    }
    let shown = || format!("read {}", arguments.file.display());
    let file = File::open(&arguments.file).with_context(shown)?;
    let kind = file.metadata().with_context(shown)?.file_type();
    if kind.is_dir() {
        bail!("{} is a folder", arguments.file.display());
    }
    if kind.is_file() { Ok(file) } else { spooled(file).await }
}

async fn spooled(mut from: impl std::io::Read + Send + 'static) -> anyhow::Result<File> {
    let mut spool = tempfile::tempfile().context("make a temporary file for the input")?;
    // On a thread of its own, because whoever writes may never end; Ctrl-C does.
    let copied = tokio::task::spawn_blocking(move || std::io::copy(&mut from, &mut spool).map(|_| spool));
    copied.await?.context("keep the input in a temporary file")
}

/// Checks every line from a place on.
async fn survey(file: &File, format: Format, from: Place) -> anyhow::Result<Report> {
    let mut report = Report { from_line: from.line, ..Report::default() };
    let mut pairs: BTreeMap<(String, String), u64> = BTreeMap::new();
    let bar = output::bar(file.metadata()?.len(), "checking {bar:40} {bytes}/{total_bytes} {eta}");
    let mut lines = Lines::open(file, format, from)?;
    while let Some(line) = lines.next()? {
        match line.event {
            Ok(Event { code, whose, at, .. }) => {
                report.events += 1;
                report.first = Some(report.first.map_or(at, |first| first.min(at)));
                report.last = Some(report.last.map_or(at, |last| last.max(at)));
                let pair = (code, whose);
                if pairs.len() < PAIRS || pairs.contains_key(&pair) {
                    *pairs.entry(pair).or_default() += 1;
                } else {
                    report.others += 1;
                }
            }
            Err(reason) => report.is_wrong(line.piece.read(file)?.0, reason),
        }
        if (report.events + report.wrong_lines).is_multiple_of(AT_ONCE) {
            bar.set_position(line.piece.end.byte);
            // Ctrl-C is heard in between.
            tokio::task::yield_now().await;
        }
    }
    bar.finish_and_clear();
    let pairs = pairs.into_iter().map(|((code, subscription), events)| Pair { code, subscription, events });
    report.by = pairs.collect();
    Ok(report)
}

fn show(report: &Report, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(report);
    }
    for Wrong { line, reason } in &report.wrong {
        say!("line {line}: {}", safe(reason));
    }
    if report.wrong_lines > report.wrong.len() as u64 {
        say!("… and {} lines more", report.wrong_lines - report.wrong.len() as u64);
    }
    if report.from_line > 1 {
        say!("lines before {} were done before", report.from_line);
    }
    if let (Some(first), Some(last)) = (report.first, report.last) {
        say!("{} events from {first} to {last}", report.events);
        let mut table = output::table(&["code", "subscription", "events"]);
        for Pair { code, subscription, events } in report.by.iter().take(SHOWN) {
            table.add_row(vec![safe(code), safe(subscription), events.to_string()]);
        }
        say!("{table}");
        let hidden: u64 = report.by.iter().skip(SHOWN).map(|pair| pair.events).sum::<u64>() + report.others;
        if hidden > 0 {
            say!("… and {hidden} events more of other subscriptions");
        }
    }
    if report.taken > 0 {
        say!("{} events are taken", report.taken);
    }
    if report.known > 0 {
        say!(
            "{} lines have a transaction id that is there with other content: {}",
            report.known,
            ranges(&report.known_lines, report.known)
        );
    }
    if let Some(file) = report.rejected_file.as_ref().filter(|_| report.rejected > 0) {
        say!("{} lines are rejected, see {}", report.rejected, file.display());
    }
    Ok(())
}

/// The numbers of lines, those in a row as the first and the last; of more than are named the end is left open.
fn ranges(lines: &[u64], all: u64) -> String {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for line in lines {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *line => *last = *line,
            _ => ranges.push((*line, *line)),
        }
    }
    let shown =
        |(first, last): &(u64, u64)| if first == last { first.to_string() } else { format!("{first}–{last}") };
    let mut text = ranges.iter().map(shown).collect::<Vec<_>>().join(", ");
    if (lines.len() as u64) < all {
        text.push_str(" …");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_in_a_row_are_told_by_their_first_and_last() {
        assert_eq!(ranges(&[3, 5, 6, 7, 20], 5), "3, 5–7, 20");
        assert_eq!(ranges(&[1], 2000), "1 …");
        assert_eq!(ranges(&[], 4), " …");
    }
}
