//! Lago's side of the wire, for the demo, the command-line tool and the tests: real HTTP on
//! loopback, written from the contract.

mod public_key;

pub use public_key::{Answering, PublicKeyServer, encode_public_key_answer};
