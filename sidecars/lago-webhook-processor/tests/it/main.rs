//! The daemon as a process, between a stand-in for Lago and a receiving gateway.
#![allow(clippy::unwrap_used, missing_docs)]

mod admin;
mod bench;
mod intake;
mod jq;
mod keys;
mod output;
mod routes;
mod routing;
mod storage;
mod threads;
