//! The delivery engine: it works through the journal for one sink at a time, keeps the order of
//! every subject, retries with a stored next time, opens a circuit when the sink is away, parks what
//! is refused – and settles all of it in the journal.
//!
//! The decisions are plain state machines without I/O or clock (`window`, `circuit`, `judge`); the
//! dispatcher moves events between them, the journal and the sink. The admin API over events and
//! deliveries lives here too, because every daemon has the same.

pub mod answer;
pub mod api;
mod circuit;
pub mod cloudevents;
mod conditions;
pub mod config;
mod dispatcher;
pub mod format;
mod http_sink;
mod judge;
mod metrics;
pub mod oauth;
mod outcome;
mod owner;
pub mod receive;
pub mod signature;
pub mod start;
mod window;

pub use config::GatewaySection;
pub use dispatcher::{Dispatcher, DispatcherSettings, SinkStatus};
pub use http_sink::{HttpSink, HttpSinkError, Preview};
pub use metrics::DeliveryMetrics;
pub use outcome::{Batching, Failure, Interest, Outcome, PassedBy, Sink, Verdict};
