//! Routes: which events go to which sinks, in which shape.
//!
//! `config` what can be set, `section` how a sink's part of it is read · `table` the compiled routes, without I/O ·
//! `condition` fields of an event · `jq` programs, in a process that can be killed · `built` sinks made of their
//! sections · `sink` what stands between a dispatcher and a sink · `reload` a file of routes that changes · `preview`
//! what would be sent · `start` all of it for a daemon · `outgoing` the sections of a daemon that has a gateway and an
//! exchange beside further sinks.
//!
//! Every sink works through the journal on its own and asks the table about each event when it comes to it. So a
//! change of the routes is for everything that is not settled yet, and a sink that is away keeps nobody waiting.

mod api;
mod built;
mod condition;
mod config;
mod data;
pub mod jq;
mod metrics;
mod outgoing;
mod preview;
mod reload;
mod section;
mod sink;
mod start;
mod table;

pub use built::{Builder, BuiltSink, SinkError};
pub use config::{JqSection, RouteSection, RoutesSection, Routing, SinkSection, WhenSection};
pub use data::Data;
pub use metrics::RouteMetrics;
pub use outgoing::{GATEWAY, Outgoing, OutgoingSections, RABBITMQ};
pub use preview::{Explained, Reached, explain};
pub use reload::{RoutesFile, read_file};
pub use sink::{Intended, Parks, RoutedSink};
pub use start::{Base, Routed, build_sinks, compile};
pub use table::{Decision, Table, Walk};
