//! Rules: which events do what to which workflow. Decisions over values, without I/O and without jq.
//!
//! `section` what can be set · `compile` what is wrong with it · `plan` what one event asks of Temporal.

mod compile;
mod plan;
mod section;

pub(crate) use compile::{Argument, Found, Rule, Rules};
pub(crate) use plan::{Call, Plan, as_event, part};
pub use section::{Action, Conflict, Input, OnConflict, OnMissing, Reuse, RuleSection, WorkflowRetrySection};
