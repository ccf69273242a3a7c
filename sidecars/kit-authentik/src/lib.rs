//! Authentik, as one party that daemons talk to: what it sends and answers, and nothing about what a daemon does with it.
//!
//! [`event`] is an event as Authentik's API shows it, [`envelope`] the webhook body that our blueprint has Authentik send,
//! [`signature`] the proof that it was Authentik, and [`api`] asks Authentik's API. [`blueprint`] is what an operator mounts
//! there, so that those bodies are sent at all. `emulator` is Authentik's side of the
//! wire, for the command line and the tests (feature `stand-in`).
//!
//! Facts about Authentik carry their source: a path in goauthentik/authentik, read at 2024.10.1 and at 2026.2.2.
//! `event`, `envelope` and `signature` know no clock and no I/O.

pub mod api;
pub mod blueprint;
#[cfg(feature = "stand-in")]
pub mod emulator;
pub mod envelope;
pub mod event;
pub mod signature;
