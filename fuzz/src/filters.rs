//! The filter language of searches, replays and drops: a line each for the type's glob, a state, an
//! event id and a time; what follows are types to match.
//!
//! Promises: whatever is read is written the same way and read back, and a glob without special
//! characters means itself.

use kit::clock::Timestamp;
use kit_journal::{DeliveryState, EventFilter, EventId};

use crate::samples::head;

/// Reads the lines and matches the rest against them.
///
/// # Panics
/// A value does not survive its text, or a filter matches what it must not.
pub fn target(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    let (glob, state, id, time) = (next(), next(), next(), next());

    if let Ok(state) = state.parse::<DeliveryState>() {
        assert_eq!(state.as_str().parse().ok(), Some(state));
    }
    let id: Option<EventId> = id.parse().ok();
    if let Some(id) = id {
        assert_eq!(id.to_string().parse().ok(), Some(id));
    }
    let time: Option<Timestamp> = time.parse().ok();
    if let Some(time) = time {
        assert_eq!(time.to_string().parse(), Ok(time), "{time}");
    }

    let Ok(mut filter) = EventFilter::default().with_type(glob) else { return };
    filter.since = time;
    filter.ids.extend(id);
    let at = time.unwrap_or_default();
    for event_type in lines.take(50) {
        let mut head = head("lago/acme", event_type, b"{}");
        event_type.clone_into(&mut head.event_type);
        head.id = id.unwrap_or(head.id);
        let matches = filter.matches(at, &head);
        if !glob.contains(['*', '?', '[', ']', '{', '}', '\\']) {
            assert_eq!(matches, glob == event_type, "{glob:?} {event_type:?}");
        }
        assert!(glob != "*" || matches);
        assert!(time.is_none() || !filter.matches(at.plus_millis(-1), &head), "received before since");
        filter.until = Some(at);
        assert!(!filter.matches(at, &head), "received at until");
        filter.until = None;
    }
}
