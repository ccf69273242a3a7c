//! Temporal as a party, over gRPC with its official messages.
//!
//! `config` what can be set, official variables included · `client` the connection, which is made when it is needed and
//! made again for ever, and thin typed calls · `setup` what it is made of · `error` what an answer that is none means ·
//! `genuine` answers that are no gRPC · `payload` values as Temporal keeps them.
//!
//! The high-level client of Temporal's SDK is deliberately not used: it chooses the `request_id` of a start itself, and
//! that id is what keeps an event from starting two workflows
//! ([ADR 0024](../../../docs/adr/0024-temporal-by-raw-grpc.md)).
//!
//! Facts about the server are of 1.29.1 and 1.32.0, where not said otherwise.

pub mod client;
pub mod config;
pub mod error;
mod genuine;
pub mod payload;
mod setup;

pub use client::{LEAST_RETENTION, Retention, Temporal};
pub use config::{TemporalSection, TlsSection};
pub use error::{ErrorClass, TemporalError};

/// Temporal's own messages and enumerations, `temporal.api.*.v1`.
pub use temporalio_protos::temporal::api;

/// The well-known protobuf types that the messages hold.
pub use prost_wkt_types as wkt;
