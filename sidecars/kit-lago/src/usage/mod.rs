//! Usage events as Lago takes them: what a producer sends, what goes on to Lago, what both answer, and what Lago says of
//! events later.
//!
//! Facts: getlago/lago-api `app/controllers/api/v1/events_controller.rb`, `app/services/events/create_service.rb` and
//! `create_batch_service.rb`, read at v1.16.0 and at the head of 2026-08-21.

pub mod answer;
mod complaint;
mod event;
mod exact;
mod moment;
pub mod quantity;

pub use complaint::{Complaint, complaints};
pub use event::{BadBody, Content, FieldErrors, Requested, UsageEvent, elements, property, requested};
pub use moment::{EpochSeconds, NotATime};
pub use quantity::Quantity;
