//! From query parameters and selections to filters.

use std::collections::HashSet;

use kit::clock::Timestamp;
use kit_journal::{EventFilter, EventId, Seq};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{ApiError, Selection};

/// Records one request looks at.
pub(super) const EXAMINE: u64 = 10_000;
const DEFAULT_LIMIT: u32 = 50;
const LARGEST_LIMIT: u32 = 500;
/// Ids one selection may name.
pub(super) const LARGEST_IDS: usize = 1_000;
/// Bytes of each text of a selection: what a write is asked for is kept in the audit trail.
const LONGEST_TEXT: usize = 1_024;

/// Parameters of a listing.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Type glob, for example `lago.invoice.*`; aliases match too.
    #[serde(rename = "type")]
    #[param(rename = "type")]
    event_type: Option<String>,
    /// Exact subject.
    subject: Option<String>,
    /// Exact tenant.
    tenant: Option<String>,
    /// `pending`, `retrying`, `delivered`, `parked` or `dropped`.
    state: Option<String>,
    /// Only this sink's deliveries.
    sink: Option<String>,
    /// Exact source; only together with `key`.
    source: Option<String>,
    /// Exact deduplication key of the source, as long as it is remembered. It is looked up, not looked for.
    key: Option<String>,
    /// Received at or after (RFC 3339).
    since: Option<String>,
    /// Received before (RFC 3339).
    until: Option<String>,
    /// Entries at most, 1 to 500; 50 by default.
    limit: Option<u32>,
    /// Where the page before ended.
    cursor: Option<String>,
}

impl ListQuery {
    pub(super) fn limit(&self) -> Result<u32, ApiError> {
        match self.limit.unwrap_or(DEFAULT_LIMIT) {
            limit @ 1..=LARGEST_LIMIT => Ok(limit),
            _ => Err(ApiError::bad_request(format!("limit must be 1 to {LARGEST_LIMIT}"))),
        }
    }

    pub(super) fn cursor(&self) -> Result<Option<Seq>, ApiError> {
        let Some(cursor) = &self.cursor else { return Ok(None) };
        let position = cursor.parse().ok().filter(|seq: &Seq| *seq >= 0);
        position.map(Some).ok_or_else(|| ApiError::bad_request("cursor must be a next_cursor of an earlier answer"))
    }

    /// The source and the key that events are wanted of.
    pub(super) fn name(&self) -> Result<Option<(String, String)>, ApiError> {
        match (&self.source, &self.key) {
            (None, None) => Ok(None),
            (Some(source), Some(key)) if source.len().max(key.len()) <= LONGEST_TEXT => {
                Ok(Some((source.clone(), key.clone())))
            }
            (Some(_), Some(_)) => {
                Err(ApiError::bad_request(format!("source and key must be at most {LONGEST_TEXT} bytes")))
            }
            _ => Err(ApiError::bad_request("source and key go together")),
        }
    }

    pub(super) fn filter(&self) -> Result<EventFilter, ApiError> {
        filter(Selection {
            sink: self.sink.clone(),
            ids: Vec::new(),
            event_type: self.event_type.clone(),
            subject: self.subject.clone(),
            tenant: self.tenant.clone(),
            state: self.state.clone(),
            since: self.since.clone(),
            until: self.until.clone(),
        })
    }
}

/// Where an event is, for whoever has it from a listing.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Place {
    /// Its `seq` in a listing: it is found at once, where among millions an id alone has to be looked for.
    pub(super) seq: Option<Seq>,
}

/// Paging of the audit trail.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditQuery {
    /// Entries at most, 1 to 500; 50 by default.
    pub(super) limit: Option<u32>,
    /// Where the page before ended.
    pub(super) cursor: Option<String>,
}

impl AuditQuery {
    pub(super) fn into_list(self) -> ListQuery {
        ListQuery { limit: self.limit, cursor: self.cursor, ..ListQuery::default() }
    }
}

pub(super) fn filter(selection: Selection) -> Result<EventFilter, ApiError> {
    within_bounds(&selection)?;
    let bad = |e: kit_journal::FilterError| ApiError::bad_request(e.to_string());
    let mut filter = EventFilter::default();
    filter.ids = selection.ids.iter().map(|id| event_id(id)).collect::<Result<_, _>>()?;
    let mut named = HashSet::new();
    filter.ids.retain(|id| named.insert(*id));
    filter.subject = selection.subject;
    filter.tenant = selection.tenant;
    filter.state = selection.state.as_deref().map(str::parse).transpose().map_err(bad)?;
    filter.sink = selection.sink;
    filter.since = time("since", selection.since.as_deref())?;
    filter.until = time("until", selection.until.as_deref())?;
    if filter.since.zip(filter.until).is_some_and(|(since, until)| since >= until) {
        return Err(ApiError::bad_request("since must be before until"));
    }
    if let Some(glob) = &selection.event_type {
        filter = filter.with_type(glob).map_err(bad)?;
    }
    Ok(filter)
}

/// Refuses selections that are larger than any that finds something.
pub(super) fn within_bounds(selection: &Selection) -> Result<(), ApiError> {
    if selection.ids.len() > LARGEST_IDS {
        return Err(ApiError::bad_request(format!("at most {LARGEST_IDS} ids in one request")));
    }
    let texts = [
        ("sink", &selection.sink),
        ("type", &selection.event_type),
        ("subject", &selection.subject),
        ("tenant", &selection.tenant),
        ("state", &selection.state),
        ("since", &selection.since),
        ("until", &selection.until),
    ];
    for (name, text) in texts {
        if text.as_ref().is_some_and(|text| text.len() > LONGEST_TEXT) {
            return Err(ApiError::bad_request(format!("{name} must be at most {LONGEST_TEXT} bytes")));
        }
    }
    Ok(())
}

pub(super) fn event_id(text: &str) -> Result<EventId, ApiError> {
    text.parse().map_err(|_| ApiError::bad_request("id must be a UUID"))
}

fn time(name: &str, text: Option<&str>) -> Result<Option<Timestamp>, ApiError> {
    text.map(str::parse)
        .transpose()
        .map_err(|_| ApiError::bad_request(format!("{name} must be a time such as 2026-11-21T04:40:24Z")))
}
