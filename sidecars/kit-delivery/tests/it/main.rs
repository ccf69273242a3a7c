//! The engine over a real journal and a real HTTP receiver.
#![allow(clippy::unwrap_used, missing_docs)]

mod answers;
mod batches;
mod bench;
mod leases;
mod listings;
mod operators;
mod order;
mod outages;
mod passed_by;
mod refusals;
mod stalls;
mod unreadable;
