//! What Lago sends is recognised, and nothing else is. One binary, one file per subject.
#![allow(clippy::unwrap_used)]

mod captures;
mod describe;
mod hmac;
mod keys;
mod lists;
mod private_key;
mod public_key;
mod sample;
mod sender;
mod support;
mod table;
mod tokens;
