//! What was seen before, kept in a file, and what is different now.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use kit::clock::Timestamp;
use serde::{Deserialize, Serialize};

use super::fact::{Holds, Seen};

/// The form of the file; another one is not read.
const FORM: u32 = 1;
/// Standard output, or input: a container has no folder to write into.
pub(super) const STANDARD: &str = "-";
/// Fields that are told of, of each fact.
const SHOWN_FIELDS: usize = 8;

/// The file of `--record`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    form: u32,
    /// Which Lago.
    pub(crate) version: String,
    /// When.
    pub(crate) at: Timestamp,
    pub(crate) facts: Vec<Seen>,
}

/// A fact, and what became of it.
#[derive(Debug, Serialize)]
pub(crate) struct Compared {
    #[serde(flatten)]
    pub(crate) seen: Seen,
    /// How it was before; nothing where it was not looked at.
    pub(crate) before: Option<Holds>,
    /// What was there and is not.
    pub(crate) gone: BTreeSet<String>,
    /// Fields that are no longer there; whoever relies on one has a fact of its own.
    pub(crate) fields_gone: BTreeSet<String>,
}

impl Compared {
    /// Whether daemons go on working.
    pub(crate) fn is_good(&self) -> bool {
        self.seen.holds != Holds::No && self.gone.is_empty()
    }

    /// What is to be said about it besides how it is.
    pub(crate) fn news(&self) -> Vec<String> {
        let mut news = Vec::new();
        let list = |names: &BTreeSet<String>| {
            let shown: Vec<&str> = names.iter().take(SHOWN_FIELDS).map(String::as_str).collect();
            let more = names.len().saturating_sub(SHOWN_FIELDS);
            if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
        };
        if !self.gone.is_empty() {
            news.push(format!("gone since: {}", list(&self.gone)));
        }
        if self.seen.holds == Holds::No && self.before == Some(Holds::No) {
            news.push("it did not hold before either".to_owned());
        }
        if self.seen.holds == Holds::Unknown && self.before == Some(Holds::Yes) {
            news.push("it was seen before, and cannot be seen now".to_owned());
        }
        if !self.fields_gone.is_empty() {
            news.push(format!("fields that are not there any more: {}", list(&self.fields_gone)));
        }
        news
    }
}

impl Record {
    pub(crate) fn new(version: String, at: Timestamp, facts: Vec<Seen>) -> Self {
        Self { form: FORM, version, at, facts }
    }

    /// Reads the file of `--compare`.
    ///
    /// # Errors
    /// It cannot be read, or is none of ours.
    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let shown = file.display();
        let text = if file == Path::new(STANDARD) {
            std::io::read_to_string(std::io::stdin().lock())
        } else {
            std::fs::read_to_string(file)
        };
        let text = text.with_context(|| format!("read {shown} (--compare)"))?;
        let record: Self = serde_json::from_str(&text)
            .with_context(|| format!("{shown} is no record: make one before the upgrade with --record"))?;
        if record.form != FORM {
            bail!("{shown} was recorded by another version of outrigger: record with this one, before the upgrade");
        }
        Ok(record)
    }

    /// Writes the file of `--record`; one that is there stays, it may be the only one from before the upgrade.
    ///
    /// # Errors
    /// It is there, or cannot be written.
    pub(crate) fn write(&self, file: &Path) -> anyhow::Result<()> {
        let shown = file.display();
        let text = serde_json::to_string_pretty(self)?;
        if file == Path::new(STANDARD) {
            return Ok(crate::output::line(format_args!("{text}"))?);
        }
        let opened = OpenOptions::new().write(true).create_new(true).open(file);
        let mut opened = opened.with_context(|| format!("make {shown} (--record writes over nothing)"))?;
        writeln!(opened, "{text}").and_then(|()| opened.sync_all()).with_context(|| format!("write {shown}"))
    }

    /// What became of each fact that was seen before or is seen now.
    pub(crate) fn compare(&self, now: Vec<Seen>) -> Vec<Compared> {
        now.into_iter()
            .map(|seen| {
                let before = self.facts.iter().find(|known| known.id == seen.id);
                let minus = |one: &BTreeSet<String>, other: &BTreeSet<String>| one.difference(other).cloned().collect();
                Compared {
                    before: before.map(|known| known.holds),
                    gone: before.map(|known| minus(&known.keeps, &seen.keeps)).unwrap_or_default(),
                    fields_gone: before.map(|known| minus(&known.fields, &seen.fields)).unwrap_or_default(),
                    seen,
                }
            })
            .collect()
    }
}

/// Facts that nobody has seen before.
pub(crate) fn alone(now: Vec<Seen>) -> Vec<Compared> {
    let alone = |seen| Compared { seen, before: None, gone: BTreeSet::new(), fields_gone: BTreeSet::new() };
    now.into_iter().map(alone).collect()
}
