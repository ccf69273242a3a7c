//! How the ledger and Lago compare, in a word.

use serde::Serialize;

/// How a pair stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Lago has counted what it has confirmed.
    Equal,
    /// Lago has counted less.
    Missing,
    /// Lago has counted more: somebody else reports too, or did so before.
    Surplus,
    /// Lago has counted more, and so many events may be of this period or of another one: the plan was changed within
    /// the period, or events of several days came before Lago had told where it begins.
    Uncertain,
    /// Nothing is missing of what is old enough, and events go on coming; or Lago has no final invoice of it yet.
    Settling,
    /// No charge of the subscription's plan counts this metric.
    NotCharged,
    /// Lago has counted less in a period that has ended, and a person has accepted that it never counts that much.
    Accepted,
    /// Lago does not say.
    Unknown,
}

impl State {
    pub(crate) const ALL: [Self; 8] = [
        Self::Equal,
        Self::Missing,
        Self::Surplus,
        Self::Uncertain,
        Self::Settling,
        Self::NotCharged,
        Self::Accepted,
        Self::Unknown,
    ];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Missing => "missing",
            Self::Surplus => "surplus",
            Self::Uncertain => "uncertain",
            Self::Settling => "settling",
            Self::NotCharged => "not_charged",
            Self::Accepted => "accepted",
            Self::Unknown => "unknown",
        }
    }
}
