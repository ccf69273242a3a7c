//! How far an import has come, in a small file: what was answered is not sent again, and a file that has changed before
//! that place is noticed.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::input::Place;

/// Bytes that are hashed at a time.
const CHUNK: usize = 1 << 16;

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    /// Where it was sent to.
    url: String,
    /// Up to here everything was taken, or written to the file of rejected lines.
    done_bytes: u64,
    /// The line after that.
    next_line: u64,
    /// SHA-256 of the file up to there.
    sha256: String,
    /// Events taken.
    pub(super) events: u64,
    /// Lines rejected.
    pub(super) rejected: u64,
    /// Lines whose transaction id was there with other content.
    #[serde(default)]
    pub(super) known: u64,
    /// Length of the file of rejected lines.
    pub(super) rejected_bytes: u64,
}

/// The progress of one import.
#[derive(Debug)]
pub(super) struct Progress {
    /// Where it is kept; nowhere for what can be read only once.
    path: Option<PathBuf>,
    pub(super) kept: Kept,
    hasher: Sha256,
}

impl Progress {
    /// What an earlier import of this file to this address has come to, or nothing.
    ///
    /// # Errors
    /// The file has changed before the place that import had come to, or it went somewhere else.
    pub(super) fn open(path: Option<PathBuf>, input: &File, url: &str) -> anyhow::Result<Self> {
        let fresh = Kept { url: url.to_owned(), next_line: Place::BEGIN.line, ..Kept::default() };
        let mut progress = Self { path, kept: fresh, hasher: Sha256::new() };
        let Some(path) = &progress.path else { return Ok(progress) };
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(progress),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let (shown, again) =
            (path.display().to_string(), "remove it to begin again: what was taken is known and not billed twice");
        let kept: Kept =
            serde_json::from_slice(&text).with_context(|| format!("{shown} is no progress of an import; {again}"))?;
        if kept.url != url {
            bail!("{shown} is of an import to {}; name another one with --state, or {again}", kept.url);
        }
        hash(&mut progress.hasher, input, 0, kept.done_bytes)?;
        if digest(&progress.hasher) != kept.sha256 {
            bail!("the file has changed before line {}, up to which it was sent by {shown}; {again}", kept.next_line);
        }
        progress.kept = kept;
        Ok(progress)
    }

    /// Where to go on.
    pub(super) fn place(&self) -> Place {
        Place { byte: self.kept.done_bytes, line: self.kept.next_line }
    }

    /// Everything before `end` is done.
    pub(super) fn advance(&mut self, input: &File, end: Place) -> anyhow::Result<()> {
        let Some(path) = &self.path else {
            (self.kept.done_bytes, self.kept.next_line) = (end.byte, end.line);
            return Ok(());
        };
        hash(&mut self.hasher, input, self.kept.done_bytes, end.byte)?;
        (self.kept.done_bytes, self.kept.next_line) = (end.byte, end.line);
        self.kept.sha256 = digest(&self.hasher);
        // Never half of it: whoever is killed now finds the one before.
        let new = path.with_added_extension("new");
        let written = std::fs::write(&new, serde_json::to_vec(&self.kept)?).and_then(|()| std::fs::rename(&new, path));
        written.with_context(|| format!("write {}", path.display()))
    }

    /// The import is complete: nothing is left to go on with.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

fn digest(hasher: &Sha256) -> String {
    hasher.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Adds what stands in the file between two places; what is not there is left out, and changes the digest.
fn hash(hasher: &mut Sha256, file: &File, from: u64, to: u64) -> std::io::Result<()> {
    let (mut at, mut buffer) = (from, vec![0; CHUNK]);
    while at < to {
        let wanted = usize::try_from(to - at).unwrap_or(CHUNK).min(CHUNK);
        let read = file.read_at(&mut buffer[..wanted], at)?;
        if read == 0 {
            return Ok(());
        }
        hasher.update(&buffer[..read]);
        at += read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use kit_workbench::scratch::Scratch;

    use super::*;

    const URL: &str = "http://127.0.0.1:8082";

    fn open(scratch: &Scratch, url: &str) -> anyhow::Result<Progress> {
        let input = File::open(scratch.file("usage.jsonl")).unwrap();
        Progress::open(Some(scratch.file("state")), &input, url)
    }

    fn half_done() -> Scratch {
        let scratch = Scratch::new("outrigger-progress").unwrap();
        let input = File::open(scratch.write("usage.jsonl", "first\nsecond\nthird\n").unwrap()).unwrap();
        let mut progress = open(&scratch, URL).unwrap();
        progress.kept.events = 2;
        progress.advance(&input, Place { byte: 6, line: 2 }).unwrap();
        progress.advance(&input, Place { byte: 13, line: 3 }).unwrap();
        scratch
    }

    #[test]
    fn what_was_done_is_found_again_and_gone_when_all_is_done() {
        let scratch = half_done();

        let progress = open(&scratch, URL).unwrap();
        assert_eq!((progress.place(), progress.kept.events), (Place { byte: 13, line: 3 }, 2));

        // Mended or longer after that place: it is still the same file up to there.
        scratch.write("usage.jsonl", "first\nsecond\nmended\nfourth\n").unwrap();
        assert_eq!(open(&scratch, URL).unwrap().place().byte, 13);

        progress.finish().unwrap();
        assert_eq!(open(&scratch, URL).unwrap().place(), Place::BEGIN);
    }

    #[test]
    fn a_file_that_has_changed_before_that_place_is_refused() {
        for changed in ["First\nsecond\nthird\n", "first\nsecond", "first\nsecomd\nthird\n"] {
            let scratch = half_done();
            scratch.write("usage.jsonl", changed).unwrap();
            let error = open(&scratch, URL).unwrap_err().to_string();
            assert!(error.contains("changed before line 3"), "{error}");
        }
    }

    #[test]
    fn progress_of_something_else_is_refused() {
        let scratch = half_done();
        let error = open(&scratch, "http://elsewhere:8082").unwrap_err().to_string();
        assert!(error.contains(URL), "{error}");

        scratch.write("state", "{}").unwrap();
        let error = open(&scratch, URL).unwrap_err().to_string();
        assert!(error.contains("no progress of an import"), "{error}");
    }
}
