//! Lago, as one party that daemons talk to: what it sends and answers, and nothing about what a
//! daemon does with it.
//!
//! [`webhook_type`] is the table of everything Lago announces, [`signature`] proves that it was
//! Lago, [`describe()`] reads the little the envelope needs, and [`public_key`] asks Lago for its RSA
//! key. [`sample`], [`sender`] and `stand_in` (feature `stand-in`) are Lago's side of the wire, for the demo, the
//! command-line tool and the tests.
//!
//! ```
//! use kit::secret::Secret;
//! use kit_lago::signature::{HmacKeys, sign_hmac};
//!
//! let key = Secret::from("0f0e0d0c-0b0a-4908-8706-050403020100".to_owned());
//! let body = kit_lago::sample::sample("wallet.created", &Default::default());
//! let header = sign_hmac(&key, body.as_bytes());
//!
//! let keys = HmacKeys::new(vec![key])?;
//! keys.verify(Some(header.as_bytes()), body.as_bytes())?;
//! let description = kit_lago::describe(body.as_bytes(), "acme", "a-unique-key");
//! assert_eq!(description.event_type, "lago.wallet.created");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Facts about Lago carry their source: a path in getlago/lago-api, read at tag v1.16.0 and at the
//! head of 2026-08-21. `signature` knows no clock and `describe` no I/O.

pub mod api;
pub mod clock;
pub mod describe;
pub mod exchange;
pub mod management;
mod payload;
pub mod public_key;
pub mod sample;
pub mod sender;
mod shown;
pub mod signature;
#[cfg(feature = "stand-in")]
pub mod stand_in;
pub mod usage;
pub mod webhook_type;

pub use describe::{Description, describe};
pub use shown::shown_url;
#[cfg(feature = "stand-in")]
pub use stand_in::{LagoServer, PublicKeyServer};
