//! What was found and done, for people and for machines.

use std::fmt;

use kit_lago::management::Kind;
use kit_lago::shown_url;
use serde::Serialize;
use serde_json::Value;

pub use crate::diff::Change;

/// What became of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is as the catalogue says.
    Same,
    /// It is not there.
    Missing,
    /// It is otherwise than the catalogue says.
    Differs,
    /// It was made.
    Created,
    /// It was changed.
    Updated,
    /// Lago has it and the catalogue does not.
    Extra,
    /// It would be deleted.
    ToDelete,
    /// It was deleted.
    Deleted,
    /// Lago does not want it as it should be.
    Failed,
    /// This Lago has nothing of the kind.
    Unavailable,
    /// It waits for something that is not there yet.
    Waiting,
}

/// What could not be brought about, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What is not as it should be, and why.
    pub text: String,
    /// What mends it.
    pub fix: String,
}

/// One object.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its code, or its address without what may be a secret in it.
    pub id: String,
    /// What became of it.
    pub outcome: Outcome,
    /// What is or was different.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    /// Parts of it that the catalogue does not have, and that stay unless `--prune` is asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extras: Vec<String>,
    /// What could not be brought about.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
    /// What else should be known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl Entry {
    pub(crate) fn new(kind: Kind, id: &str, outcome: Outcome) -> Self {
        // An address may hold a password, and goes to log lines.
        let id = if kind == Kind::WebhookEndpoint { shown_url(id) } else { id.to_owned() };
        Self { kind, id, outcome, changes: Vec::new(), extras: Vec::new(), problems: Vec::new(), notes: Vec::new() }
    }

    pub(crate) fn problem(mut self, text: impl Into<String>, fix: impl Into<String>) -> Self {
        self.problems.push(Problem { text: text.into(), fix: fix.into() });
        self
    }

    pub(crate) fn note(mut self, text: impl Into<String>) -> Self {
        self.notes.push(text.into());
        self
    }

    /// Whether Lago is, in this, not as the catalogue says.
    pub fn is_open(&self) -> bool {
        !self.problems.is_empty()
            || matches!(
                self.outcome,
                Outcome::Missing | Outcome::Differs | Outcome::ToDelete | Outcome::Failed | Outcome::Waiting
            )
    }

    /// Whether there is nothing to say about it.
    pub fn is_silent(&self) -> bool {
        self.outcome == Outcome::Same && self.extras.is_empty() && self.problems.is_empty() && self.notes.is_empty()
    }
}

/// Everything that was found and done.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Lago's version.
    pub lago: String,
    /// Each object of the catalogue, then what Lago has besides.
    pub entries: Vec<Entry>,
}

impl Report {
    /// Whether Lago is as the catalogue says.
    pub fn is_settled(&self) -> bool {
        self.entries.iter().all(|entry| !entry.is_open())
    }

    /// Whether nothing but waiting is left, so that a later attempt may do it.
    pub fn only_waits(&self) -> bool {
        let mut open = self.entries.iter().filter(|entry| entry.is_open()).peekable();
        open.peek().is_some() && open.all(|entry| entry.outcome == Outcome::Waiting)
    }

    /// How many there are of each outcome, in a sentence.
    pub fn summary(&self) -> String {
        let count = |outcome: Outcome| self.entries.iter().filter(|entry| entry.outcome == outcome).count();
        let named = [
            (Outcome::Created, "created"),
            (Outcome::Updated, "changed"),
            (Outcome::Deleted, "deleted"),
            (Outcome::Missing, "to create"),
            (Outcome::Differs, "to change"),
            (Outcome::ToDelete, "to delete"),
            (Outcome::Same, "as they should be"),
            (Outcome::Extra, "not in the catalogue"),
            (Outcome::Unavailable, "not known to this Lago"),
            (Outcome::Waiting, "waiting"),
            (Outcome::Failed, "failed"),
        ];
        let parts: Vec<String> = named
            .into_iter()
            .filter(|(outcome, _)| count(*outcome) > 0)
            .map(|(outcome, word)| format!("{} {word}", count(outcome)))
            .collect();
        if parts.is_empty() { "nothing in the catalogue".to_owned() } else { parts.join(", ") }
    }
}

/// A few lines, the first with a sign: `+` made or to be made, `~` changed, `-` deleted, `?` not in the catalogue, `!`
/// failed, `=` as it should be.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, word) = match self.outcome {
            Outcome::Same => ("=", "is as it should be"),
            Outcome::Missing => ("+", "is missing"),
            Outcome::Differs => ("~", "differs"),
            Outcome::Created => ("+", "created"),
            Outcome::Updated => ("~", "changed"),
            Outcome::Extra => ("?", "is not in the catalogue; it stays (--prune deletes it)"),
            Outcome::ToDelete => ("-", "is not in the catalogue and would be deleted"),
            Outcome::Deleted => ("-", "deleted"),
            Outcome::Failed => ("!", "is not as it should be"),
            Outcome::Unavailable => ("?", "left out"),
            Outcome::Waiting => ("!", "waits"),
        };
        write!(f, "{sign} {} {} {word}", self.kind.noun(), self.id)?;
        for change in &self.changes {
            write!(f, "\n    {}: {} → {}", change.field, shown(&change.lago), shown(&change.wanted))?;
        }
        for extra in &self.extras {
            write!(f, "\n    {extra} is not in the catalogue")?;
        }
        for problem in &self.problems {
            write!(f, "\n    ! {} → {}", problem.text, problem.fix)?;
        }
        self.notes.iter().try_for_each(|note| write!(f, "\n    {note}"))
    }
}

/// A value on a line, cut where it is long.
fn shown(value: &Value) -> String {
    const LONGEST: usize = 160;
    let text = if value.is_null() { "nothing".to_owned() } else { value.to_string() };
    if text.chars().count() <= LONGEST { text } else { text.chars().take(LONGEST).chain(['…']).collect() }
}
