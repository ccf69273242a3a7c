//! The durable queue of every sidecar: one commit decides, and the journal *is* the queue.
//!
//! An intake appends events and answers only after the commit; the delivery engine reads them back
//! and settles them in the same file. Deduplication, the state of every delivery that is not simply
//! done, the attempt log, the audit trail and small values such as a cached key live here too.
//! Nothing in this crate speaks a network protocol or knows what an event is about.

mod account;
mod age;
mod commit;
pub mod config;
pub mod copy;
pub mod engine;
mod error;
mod event;
mod filter;
mod forgetting;
mod journal;
mod judging;
mod lease;
mod lock;
mod metrics;
mod pace;
mod packed;
mod postgres;
mod reads;
mod recent;
mod request;
mod sqlite;
mod waiting;
mod writer;

pub use config::{EngineKind, JournalSection, RetentionSection};
pub use error::{AppendError, JournalError, OpenError};
pub use event::{BodyDigest, Dedupe, EventHead, EventId, NewEvent, Seq, StoredEvent};
pub use filter::{DeliveryState, EventFilter, FilterError};
pub use journal::{Appended, Health, Journal, JournalTask, OpenReader};
pub use lease::{Held, LeaseEnd};
pub use postgres::{DatabaseAnswer, ProbeError, ask_database};
