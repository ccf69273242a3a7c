//! I7–I10: what the daemon counted, used, printed and ended with.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::{Deserialize, Serialize};

use super::{Expectations, Invariant, Ledger, Report};
use crate::process::{DaemonProcess, Exit};

/// A daemon's own account of one sink at a quiescent point, from its metrics or from its file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// The quiescent point: counters of the same point and sink must agree whatever their origin.
    pub point: String,
    /// Where they were read: `metrics`, `file`, `api`.
    pub origin: String,
    /// The sink.
    pub sink: String,
    /// Events accepted since the journal was made.
    pub accepted: u64,
    /// Delivered.
    pub delivered: u64,
    /// Not tried yet.
    pub pending: u64,
    /// Tried and waiting for another attempt.
    pub retrying: u64,
    /// Parked (dead letters).
    pub parked: u64,
    /// Dropped by an operator or by a route.
    pub dropped: u64,
    /// Not wanted by the sink's routes.
    pub filtered: u64,
}

/// How a process should have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpectedEnd {
    /// With this exit code.
    Code(i32),
    /// Killed by this signal, by us.
    Signal(i32),
}

/// How a process ended, and how it should have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndRecord {
    /// Which process.
    pub process: String,
    /// What was expected.
    pub expected: ExpectedEnd,
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

impl EndRecord {
    /// A record from the end of a [`DaemonProcess`](crate::process::DaemonProcess).
    pub fn new(process: impl Into<String>, expected: ExpectedEnd, exit: Exit) -> Self {
        Self { process: process.into(), expected, code: exit.code, signal: exit.signal }
    }
}

/// What a daemon holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Resident memory.
    pub rss_bytes: u64,
    /// File descriptors.
    pub open_fds: u64,
    /// Its files on disk.
    pub disk_bytes: u64,
}

impl Resources {
    /// What a daemon holds now; `folder` is where its journal lies, whose files are summed up
    /// (not those of folders inside it).
    ///
    /// # Errors
    /// When the process has ended, or the folder cannot be read.
    pub fn read(process: &DaemonProcess, folder: &Path) -> io::Result<Self> {
        let mut disk_bytes = 0;
        for entry in std::fs::read_dir(folder)? {
            let metadata = entry?.metadata()?;
            disk_bytes += if metadata.is_file() { metadata.len() } else { 0 };
        }
        Ok(Self { rss_bytes: process.rss_bytes()?, open_fds: process.open_fds()? as u64, disk_bytes })
    }
}

/// Resources before a run and after its drain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourcesRecord {
    /// Which process.
    pub process: String,
    /// The baseline.
    pub before: Resources,
    /// After the drain.
    pub after: Resources,
    /// How much each may have grown.
    pub allowed_growth: Resources,
}

/// A secret that was seen in an output. Says which and where, not what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretFinding {
    /// The output.
    pub output: String,
    /// The secret's label.
    pub secret: String,
    /// Byte position of the first sight.
    pub position: usize,
}

pub(super) fn check(ledger: &Ledger, expectations: &Expectations, report: &mut Report) {
    for counters in &ledger.counters {
        check_sum(counters, report);
        if expectations.whole_history {
            check_history(ledger, counters, report);
        }
    }
    check_agreement(ledger, report);
    for record in &ledger.resources {
        check_resources(record, report);
    }
    for finding in &ledger.secrets {
        report.violate(Invariant::I9, || {
            let SecretFinding { output, secret, position } = finding;
            format!("{output} shows the {secret} at byte {position}")
        });
    }
    for (output, line) in &ledger.panics {
        report.violate(Invariant::I10, || format!("{output} shows a panic: {line}"));
    }
    for end in &ledger.ends {
        let as_expected = match end.expected {
            ExpectedEnd::Code(code) => end.code == Some(code),
            ExpectedEnd::Signal(signal) => end.signal == Some(signal),
        };
        if !as_expected {
            report.violate(Invariant::I10, || {
                let exit = Exit { code: end.code, signal: end.signal };
                format!("{} ended with {exit}, expected {:?}", end.process, end.expected)
            });
        }
    }
}

fn check_sum(counters: &Counters, report: &mut Report) {
    let sum = counters.delivered
        + counters.pending
        + counters.retrying
        + counters.parked
        + counters.dropped
        + counters.filtered;
    if counters.accepted != sum {
        report
            .violate(Invariant::I7, || format!("the sum of the states is {sum}, not what was accepted: {counters:?}"));
    }
}

/// The daemon's account against the sender's and the receiver's.
fn check_history(ledger: &Ledger, counters: &Counters, report: &mut Report) {
    // Requests of unknown outcome may or may not be among the accepted.
    let maybe = report.unanswered + report.refused;
    let (least, most) = (report.accepted, report.accepted + maybe);
    if !(least..=most).contains(&counters.accepted) && !ledger.sent.is_empty() {
        report.violate(Invariant::I7, || {
            format!("accepted must be from {least} to {most}, as the sender knows: {counters:?}")
        });
    }
    let seen = report.sinks.get(&counters.sink).map_or(0, |sink| sink.delivered_unique);
    if counters.delivered > seen {
        report.violate(Invariant::I7, || format!("the receiver took over {seen} events only: {counters:?}"));
    }
}

/// Metrics and file tell the same at the same point.
fn check_agreement(ledger: &Ledger, report: &mut Report) {
    let mut points: BTreeMap<(&str, &str), &Counters> = BTreeMap::new();
    for counters in &ledger.counters {
        let place = (counters.point.as_str(), counters.sink.as_str());
        let first = *points.entry(place).or_insert(counters);
        let as_first = Counters { origin: first.origin.clone(), ..counters.clone() };
        if as_first != *first {
            report.violate(Invariant::I7, || format!("two accounts of one point differ: {first:?} and {counters:?}"));
        }
    }
}

fn check_resources(record: &ResourcesRecord, report: &mut Report) {
    let (before, after, allowed) = (record.before, record.after, record.allowed_growth);
    let rows = [
        ("bytes of memory", before.rss_bytes, after.rss_bytes, allowed.rss_bytes),
        ("file descriptors", before.open_fds, after.open_fds, allowed.open_fds),
        ("bytes on disk", before.disk_bytes, after.disk_bytes, allowed.disk_bytes),
    ];
    for (what, before, after, allowed) in rows {
        if after > before.saturating_add(allowed) {
            report.violate(Invariant::I8, || {
                format!("{} held {before} {what} before and {after} after, more than {allowed} above", record.process)
            });
        }
    }
}

/// How a panic looks in an output: the standard library's hook, and the one that `kit` puts in its
/// place, which tells where but not what.
const PANIC_MARKS: [&str; 3] = ["panicked at", "\"panic at ", "ERROR panic at "];

/// Finds secrets and panics in an output. Secrets are also looked for in Base64, in whichever of
/// the three alignments they would have inside a longer text.
pub(super) fn scan(output: &str, text: &[u8], secrets: &[(&str, &[u8])]) -> (Vec<SecretFinding>, Vec<String>) {
    let mut found = Vec::new();
    for (label, secret) in secrets {
        if secret.is_empty() {
            continue;
        }
        let mut forms = vec![secret.to_vec()];
        forms.extend((0..3).filter_map(|shift| base64_form(secret, shift)));
        let position = forms.iter().filter_map(|form| find(text, form)).min();
        if let Some(position) = position {
            found.push(SecretFinding { output: output.to_owned(), secret: (*label).to_owned(), position });
        }
    }
    let lossy = String::from_utf8_lossy(text);
    let panics = lossy
        .lines()
        .filter(|line| PANIC_MARKS.iter().any(|mark| line.contains(mark)))
        .map(|line| line.chars().take(300).collect())
        .collect();
    (found, panics)
}

/// The characters of the Base64 text that depend on the secret alone, when `shift` bytes come
/// before it. Secrets too short to be recognised have none.
fn base64_form(secret: &[u8], shift: usize) -> Option<Vec<u8>> {
    let mut padded = vec![0; shift];
    padded.extend_from_slice(secret);
    let encoded = STANDARD_NO_PAD.encode(&padded).into_bytes();
    // The first character that no byte before influences, and the last that none behind does.
    let from = (shift * 8).div_ceil(6);
    let to = padded.len() * 8 / 6;
    encoded.get(from..to).filter(|form| form.len() >= 12).map(<[u8]>::to_vec)
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}
