//! The one filter language of searches, replays and drops.

use std::str::FromStr;

use kit::clock::Timestamp;
use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use crate::commit::ExceptionState;
use crate::event::{EventHead, EventId};

/// Longest type glob: types have 128 characters at most. A glob becomes a regular expression, and a
/// large one fails where the library does not expect it.
const GLOB_BYTES: usize = 512;

/// State of one delivery, as the API names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryState {
    /// Not tried yet, or waiting behind an earlier event of its subject.
    Pending,
    /// Tried without success, or asked for again; will be tried.
    Retrying,
    /// The sink took it.
    Delivered,
    /// Given up: a dead letter.
    Parked,
    /// Dropped by an operator, or by a route.
    Dropped,
    /// Not for this sink.
    Filtered,
}

impl DeliveryState {
    /// Every state, in the order of an event's life.
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Retrying, Self::Delivered, Self::Parked, Self::Dropped, Self::Filtered];

    /// The state of an event at a sink, by its row there; without a row by whether the sink's cursor has passed it.
    pub(crate) fn of(row: Option<ExceptionState>, is_passed: bool) -> Self {
        match row {
            Some(ExceptionState::Retrying | ExceptionState::Replaying) => Self::Retrying,
            Some(ExceptionState::Waiting) => Self::Pending,
            Some(ExceptionState::Parked) => Self::Parked,
            Some(ExceptionState::Dropped) => Self::Dropped,
            Some(ExceptionState::Filtered) => Self::Filtered,
            None if is_passed => Self::Delivered,
            None => Self::Pending,
        }
    }

    /// The rows that every event in this state has; `None` where it may be without one.
    pub(crate) fn rows(self) -> Option<&'static [ExceptionState]> {
        match self {
            Self::Parked => Some(&[ExceptionState::Parked]),
            Self::Dropped => Some(&[ExceptionState::Dropped]),
            Self::Filtered => Some(&[ExceptionState::Filtered]),
            Self::Retrying => Some(&[ExceptionState::Retrying, ExceptionState::Replaying]),
            Self::Pending | Self::Delivered => None,
        }
    }

    /// The word used in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Retrying => "retrying",
            Self::Delivered => "delivered",
            Self::Parked => "parked",
            Self::Dropped => "dropped",
            Self::Filtered => "filtered",
        }
    }
}

impl FromStr for DeliveryState {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|s| s.as_str() == text)
            .ok_or_else(|| FilterError::State(text.chars().take(40).collect()))
    }
}

/// A filter that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// Not a glob.
    #[error("type is not a glob: only * and ? stand for other characters, {0:?} cannot be in a type")]
    Glob(char),
    /// A glob that is too long.
    #[error("type is longer than {GLOB_BYTES} bytes")]
    GlobTooLong,
    /// Not a state.
    #[error("{0:?} is not a state: pending, retrying, delivered, parked, dropped or filtered")]
    State(String),
}

/// Which events are meant. Everything that is set must match.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// Only these ids.
    pub ids: Vec<EventId>,
    type_glob: Option<WildMatch>,
    /// Only this subject.
    pub subject: Option<String>,
    /// Only this tenant.
    pub tenant: Option<String>,
    /// Only in this state (at `sink`, or at any).
    pub state: Option<DeliveryState>,
    /// Only this sink's deliveries.
    pub sink: Option<String>,
    /// Received at or after.
    pub since: Option<Timestamp>,
    /// Received before.
    pub until: Option<Timestamp>,
}

impl EventFilter {
    /// Sets the type glob: `*` stands for any characters, dots too, and `?` for one.
    ///
    /// # Errors
    /// [`FilterError::Glob`].
    pub fn with_type(mut self, glob: &str) -> Result<Self, FilterError> {
        if glob.len() > GLOB_BYTES {
            return Err(FilterError::GlobTooLong);
        }
        // Whoever writes a class or alternatives must not be told that nothing matches.
        if let Some(unusable) = glob.chars().find(|c| "[]{}!\\,".contains(*c)) {
            return Err(FilterError::Glob(unusable));
        }
        self.type_glob = Some(WildMatch::new(glob));
        Ok(self)
    }

    /// Matches everything but state, which is not in the event.
    pub fn matches(&self, at: Timestamp, head: &EventHead) -> bool {
        (self.ids.is_empty() || self.ids.contains(&head.id))
            && self.since.is_none_or(|since| at >= since)
            && self.until.is_none_or(|until| at < until)
            && self.subject.as_ref().is_none_or(|subject| *subject == head.subject)
            && self.tenant.as_ref().is_none_or(|tenant| Some(tenant) == head.tenant.as_ref())
            && self.type_glob.as_ref().is_none_or(|glob| {
                glob.matches(&head.event_type) || head.alias.as_ref().is_some_and(|alias| glob.matches(alias))
            })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_type_glob_has_stars_and_question_marks_and_says_what_it_does_not_have() {
        let matches = |glob: &str, event_type: &str| {
            let head: EventHead = serde_json::from_value(serde_json::json!({
                "id": EventId::derive("s", "k", None), "source": "s", "type": event_type, "subject": "", "key": "k",
                "alias": "lago.other"
            }))
            .unwrap();
            EventFilter::default().with_type(glob).unwrap().matches(Timestamp::default(), &head)
        };
        assert!(matches("lago.invoice.*", "lago.invoice.created"));
        assert!(matches("*", "lago.a.b.c") && matches("lago.?.b", "lago.a.b") && matches("lago.other", "x"));
        assert!(!matches("lago.invoice.*", "lago.fee.created") && !matches("lago", "lago.fee.created"));
        for glob in ["lago.{a,b}", "lago.[ab]", "a,b"] {
            let error = EventFilter::default().with_type(glob).unwrap_err();
            assert!(error.to_string().contains("only * and ?"), "{error}");
        }
        assert!(EventFilter::default().with_type(&"?".repeat(GLOB_BYTES)).is_ok());
        for glob in [GLOB_BYTES + 1, 1 << 20] {
            assert!(EventFilter::default().with_type(&"A".repeat(glob)).is_err());
        }
    }
}
