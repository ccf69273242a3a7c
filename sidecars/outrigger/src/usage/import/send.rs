//! Sending the events of a file: batch after batch, each answered before the next.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use indicatif::ProgressBar;

use super::Report;
use super::input::{Event, Format, Line, Lines, Piece, Place, text};
use super::intake::{Answer, Intake, Refusal};
use super::progress::Progress;
use crate::output;

/// Events in a request: enough that the disk's sync is shared, few enough that little is sent again.
pub(super) const BATCH: usize = 500;
/// Bytes of events after which a request is full: an eighth of what the tracker takes by default.
const BATCH_BYTES: usize = 1 << 20;

/// What is sent, where to, and how.
pub(super) struct Sending<'a> {
    pub(super) file: &'a File,
    pub(super) format: Format,
    pub(super) intake: &'a Intake,
    /// Where rejected lines go; without it the first one ends the import.
    pub(super) rejected: Option<PathBuf>,
    /// Events in a request at most.
    pub(super) batch: usize,
    pub(super) rate: Option<usize>,
}

impl Sending<'_> {
    /// Sends everything from where `progress` is on.
    pub(super) async fn run(&self, progress: &mut Progress, report: &mut Report) -> anyhow::Result<()> {
        let mut lines = Lines::open(self.file, self.format, progress.place())?;
        let mut rejected = match &self.rejected {
            Some(path) => Some(Rejected::open(path, self.file, lines.header_bytes(), progress)?),
            None => None,
        };
        report.rejected_file.clone_from(&self.rejected);
        // What the survey found wrong is met again here, and counted once.
        (report.wrong_lines, report.wrong) = (0, Vec::new());
        let bar = output::bar(self.file.metadata()?.len(), "{bytes}/{total_bytes} {bar:40} {eta} {msg}");
        let (begin, before) = (Instant::now(), progress.kept.events);
        let most = self.rate.map_or(self.batch, |rate| rate.min(self.batch));
        loop {
            let batch = next_batch(&mut lines, most)?;
            let Some(end) = batch.last().map(|line| line.piece.end) else { break };
            self.settle(batch, end, &mut rejected, progress, report, &bar).await?;
            bar.set_position(end.byte);
            if let Some(rate) = self.rate {
                #[expect(clippy::cast_precision_loss, reason = "a pace")]
                let due = (progress.kept.events - before) as f64 / rate as f64;
                tokio::time::sleep_until((begin + Duration::from_secs_f64(due)).into()).await;
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Sends a batch until what is left of it is taken, and remembers that.
    async fn settle(
        &self,
        batch: Vec<Line>,
        end: Place,
        rejected: &mut Option<Rejected>,
        progress: &mut Progress,
        report: &mut Report,
        bar: &ProgressBar,
    ) -> anyhow::Result<()> {
        let (mut wrong, mut known): (Vec<(Piece, String)>, Vec<Piece>) = Default::default();
        let mut good: Vec<(Piece, Event)> = Vec::new();
        for Line { piece, event } in batch {
            match event {
                Ok(event) => good.push((piece, event)),
                Err(reason) => wrong.push((piece, reason)),
            }
        }
        while !good.is_empty() {
            let events: Vec<&str> = good.iter().map(|(_, event)| event.json.get()).collect();
            let body = format!("{{\"events\":[{}]}}", events.join(","));
            let say_so = |why: &str| bar.set_message(format!("waiting: {why}"));
            let answer = self.intake.send(body, good.len(), say_so).await;
            bar.set_message("");
            let refused = match answer.with_context(|| format!("send from line {} on", progress.place().line))? {
                Answer::Taken => break,
                Answer::Refused(refused) => refused,
            };
            let mut left = Vec::new();
            for (place, line) in good.into_iter().enumerate() {
                match refused.get(&place) {
                    Some(Refusal { words, is_known }) => {
                        if *is_known {
                            known.push(line.0);
                        }
                        // It stands in the way of nothing: it is told at the end, and cannot be billed twice.
                        if !*is_known || rejected.is_some() {
                            wrong.push((line.0, words.clone()));
                        }
                    }
                    None => left.push(line),
                }
            }
            good = left;
            if !wrong.is_empty() && rejected.is_none() {
                break;
            }
        }
        wrong.sort_unstable_by_key(|(piece, _)| piece.start.byte);
        let count = wrong.len() as u64;
        for (piece, reason) in wrong {
            let (line, text) = piece.read(self.file)?;
            if let Some(rejected) = rejected {
                rejected.write(&text)?;
            }
            report.is_wrong(line, reason);
        }
        for piece in &known {
            report.is_known(piece.read(self.file)?.0);
        }
        if count > 0 && rejected.is_none() {
            bail!("the tracker refuses {count} lines, and took none of their batch: correct them, or --skip-invalid");
        }
        if let Some(rejected) = rejected {
            progress.kept.rejected_bytes = rejected.flush()?;
        }
        progress.kept.events += good.len() as u64;
        progress.kept.rejected += count;
        progress.kept.known += known.len() as u64;
        progress.advance(self.file, end)
    }
}

/// As many lines as a request takes, and those that are wrong among them.
fn next_batch(lines: &mut Lines, most: usize) -> anyhow::Result<Vec<Line>> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while batch.len() < most && bytes < BATCH_BYTES {
        let Some(line) = lines.next()? else { break };
        bytes += line.event.as_ref().map_or(0, |event| event.json.get().len());
        batch.push(line);
    }
    Ok(batch)
}

/// The file of rejected lines: as they were, below the same header, so that it can be mended and imported.
struct Rejected {
    path: PathBuf,
    out: std::io::BufWriter<File>,
    header: Vec<u8>,
    bytes: u64,
}

impl Rejected {
    /// Opens it where the import has come to: what was written after that is written again.
    fn open(path: &Path, input: &File, header_bytes: u64, progress: &Progress) -> anyhow::Result<Self> {
        let shown = || format!("write {}", path.display());
        let mut file = File::options().create(true).write(true).truncate(false).open(path).with_context(shown)?;
        // One that was moved away meanwhile begins again.
        let bytes =
            Some(progress.kept.rejected_bytes).filter(|bytes| file.metadata().is_ok_and(|now| now.len() >= *bytes));
        let bytes = bytes.unwrap_or(0);
        file.set_len(bytes).and_then(|()| file.seek(SeekFrom::Start(bytes))).with_context(shown)?;
        let header = text(input, 0, header_bytes)?;
        Ok(Self { path: path.to_owned(), out: std::io::BufWriter::new(file), header, bytes })
    }

    fn write(&mut self, line: &[u8]) -> anyhow::Result<()> {
        let parts = [if self.bytes == 0 { self.header.trim_ascii_end() } else { &[] }, line];
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            self.out.write_all(part).and_then(|()| self.out.write_all(b"\n")).with_context(|| self.shown())?;
            self.bytes += part.len() as u64 + 1;
        }
        Ok(())
    }

    /// Brings it to the file; gives its length.
    fn flush(&mut self) -> anyhow::Result<u64> {
        self.out.flush().with_context(|| self.shown())?;
        Ok(self.bytes)
    }

    fn shown(&self) -> String {
        format!("write {}", self.path.display())
    }
}
