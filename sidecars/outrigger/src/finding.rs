//! What doctors say: rows of a table of everything that can be found, each with what mends it, and one thing that was found.
//! The tables: `doctor/finding.rs`, `authentik/finding.rs`.

use serde::Serialize;

use crate::output::{self, safe, say};

/// How bad it is; the worst is shown first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Something does not work.
    Fail,
    /// Something works and will not, or not as it should, or less is seen or kept than could be.
    Warn,
    /// Asked, and there was nothing to be seen.
    Unknown,
    /// As it should be.
    Ok,
    /// Not asked: nobody said where, or wanted to know.
    NotChecked,
}

/// A row of the table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// Its name, which stays.
    pub(crate) id: &'static str,
    /// What is looked at.
    pub(crate) check: &'static str,
    pub(crate) state: State,
    /// What it means.
    pub(crate) what: &'static str,
    /// What mends it: a command or a setting.
    pub(crate) fix: &'static str,
}

/// Rows by name, and all of them as `TABLE`.
macro_rules! findings {
    ($($name:ident = $state:ident $check:literal $id:literal: $what:literal => $fix:expr;)*) => {
        $(pub(super) const $name: $crate::finding::Known = $crate::finding::Known {
            id: $id,
            check: $check,
            state: $crate::finding::State::$state,
            what: $what,
            fix: $fix,
        };)*
        /// Every row.
        pub(super) const TABLE: &[$crate::finding::Known] = &[$($name),*];
    };
}
pub(crate) use findings;

/// One thing that was said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) state: State,
    pub(crate) check: &'static str,
    /// The row of the table, where something is wrong.
    pub(crate) id: Option<&'static str>,
    pub(crate) text: String,
    pub(crate) fix: Option<String>,
}

impl Finding {
    /// All is well.
    pub(crate) fn good(check: &'static str, text: impl Into<String>) -> Self {
        Self { state: State::Ok, check, id: None, text: text.into(), fix: None }
    }

    /// Nothing can be said; `how` is how to find out.
    pub(crate) fn unknown(check: &'static str, text: impl Into<String>, how: impl Into<String>) -> Self {
        Self { state: State::Unknown, check, id: None, text: text.into(), fix: Some(how.into()) }
    }

    /// Nobody asked for it; this would.
    pub(crate) fn not_checked(check: &'static str, how: impl Into<String>) -> Self {
        Self { state: State::NotChecked, check, id: None, text: "not checked".to_owned(), fix: Some(how.into()) }
    }

    /// Nobody said where; these variables would.
    pub(crate) fn unset(check: &'static str, variables: &str) -> Self {
        Self::not_checked(check, format!("set {variables}"))
    }

    /// Something of the table, in this case.
    pub(crate) fn of(known: &Known, text: impl Into<String>) -> Self {
        let (state, check, fix) = (known.state, known.check, known.fix.to_owned());
        Self { state, check, id: Some(known.id), text: text.into(), fix: Some(fix) }
    }

    /// With a fix that names what it is about.
    pub(crate) fn mended_by(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// Whether something is wrong.
    pub(crate) fn is_bad(&self) -> bool {
        matches!(self.state, State::Fail | State::Warn)
    }

    /// A line for people; checks take so many columns.
    fn line(&self, columns: usize) -> String {
        let mark = match self.state {
            State::Fail => "FAIL",
            State::Warn => "warn",
            State::Unknown => "?   ",
            State::Ok => "ok  ",
            State::NotChecked => "-   ",
        };
        let fix = self.fix.as_deref().map(|fix| format!(" → {}", safe(fix))).unwrap_or_default();
        format!("{mark} {:<columns$} {}{fix}", self.check, safe(&self.text))
    }
}

/// The document of `--json`.
#[derive(Serialize)]
struct Report<'a> {
    outrigger: &'static str,
    /// Nothing, where that cannot be said.
    healthy: Option<bool>,
    findings: &'a [Finding],
}

/// Says it, as a document for machines or a line each for people, in which checks take so many columns.
pub(crate) fn tell(findings: &[Finding], healthy: Option<bool>, json: bool, columns: usize) -> anyhow::Result<()> {
    if json {
        return output::json(&Report { outrigger: env!("CARGO_PKG_VERSION"), healthy, findings });
    }
    for finding in findings {
        say!("{}", finding.line(columns));
    }
    Ok(())
}
