//! The workbench: everything a proof needs that is not the thing being proven.
//!
//! A receiving [`gateway`] that can misbehave, a [`broker`] and a [`temporal`] server of its own, a proxy that spoils connections ([`chaos`]), a [`ledger`]
//! that checks the invariants of a run, a [`load`] generator, [`process`] control for daemons, a [`raw`] HTTP client for requests no
//! library would send, and a [`metrics`] reader. The demo, the command-line tool and the black-box
//! tests are built on these; nothing here is linked into a daemon.

pub mod broker;
pub mod chaos;
pub mod database;
pub mod digest;
pub mod gateway;
mod http1;
pub mod ledger;
pub mod load;
pub mod metrics;
pub mod moment;
pub mod process;
pub mod raw;
pub mod scratch;
pub mod temporal;

pub use digest::Digest;
pub use moment::Moment;
