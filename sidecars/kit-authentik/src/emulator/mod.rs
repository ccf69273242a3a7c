//! A stand-in for Authentik: its events API with everything that is awkward about it, and the worker that sends
//! notifications, over real HTTP on loopback. Written from the contract; what differs between versions depends on the
//! [`Generation`].
//!
//! [`AuthentikServer`] is an [`AuthentikState`] on a port. Events are put there with [`AuthentikState::happen`], or, for
//! rows whose transaction takes its time, [`AuthentikState::begin`] and [`AuthentikState::commit`]; a [`Notifier`] sends what
//! happens to a receiver, with what goes wrong on the way ([`Trouble`]).
//!
//! Left out: flows, sources, providers, e-mail; writing through the API but for the test of a transport; Python, for which
//! there are the kinds of [`Mapping`]: that CPython makes the same bytes is tested in `tests/clients/authentik.rs`.

mod answer;
mod configuration;
mod event;
mod generation;
mod mapping;
mod notifier;
mod python;
mod routes;
mod server;
mod state;
#[cfg(test)]
mod tests;
mod wire;

pub use configuration::{Configuration, Kind};
pub use event::{NewEvent, User};
pub use generation::{Generation, RetrySchedule, Starting};
pub use mapping::Mapping;
pub use notifier::{Notifier, NotifierCounts, NotifierOptions, Trouble};
pub use server::AuthentikServer;
pub use state::{AuthentikState, Counts, Fault, Slow};
pub use wire::Sent;
