//! Which way an event goes: one journal holds what comes in for Temporal, and what has become of workflows.

use kit_journal::EventHead;

/// Scope of the keys of outcomes. What comes in has none, whatever its source calls itself: an outcome that is sent back
/// here is an event like any other.
pub const OBSERVED: &str = "observed";

/// Whether the event is what has become of a workflow, and goes out.
pub fn is_outcome(head: &EventHead) -> bool {
    head.scope.as_deref() == Some(OBSERVED)
}

/// Whether the event is for Temporal.
pub fn is_for_temporal(head: &EventHead) -> bool {
    !is_outcome(head)
}
