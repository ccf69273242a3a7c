//! Lago's side of the wire, for the demo, the command-line tool and the tests: real HTTP on
//! loopback, written from the contract.

pub mod billing;
mod public_key;

pub use billing::LagoServer;
pub use public_key::{Answering, PublicKeyServer, encode_public_key_answer};
