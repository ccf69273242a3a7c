//! RabbitMQ as a party, over AMQP 0-9-1.
//!
//! Publishing goes in closed windows: so many messages, then all of their confirms, then the next ones; what the broker
//! returns is matched by `message_id` ([ADR 0015](../../../docs/adr/0015-closed-publish-windows.md)). Consuming
//! acknowledges only what its receiver says is durably done. Every connection is made anew by us when it is lost:
//! lapin's own recovery hides which publishes have an unknown outcome.
//!
//! Facts about the broker are of RabbitMQ 3.10.8, about the client of lapin 4.12.3.

mod address;
mod bury;
pub mod config;
mod connection;
mod error;
mod inbox;
mod intake;
mod message;
mod metrics;
mod publisher;
mod scan;
mod sink;
mod source;
mod transport;
mod window;

pub use config::{AmqpSection, AmqpSourceSection, QueueKind};
pub use error::AmqpError;
pub use inbox::Inbox;
pub use metrics::AmqpMetrics;
pub use sink::AmqpSink;
pub use source::{AmqpSource, Message, Taken};
