//! The daemon as a process, between a stand-in for Authentik and a receiving gateway.
#![allow(clippy::unwrap_used, missing_docs)]

mod bench;
mod enrichment;
mod polling;
mod replicas;
mod start;
mod webhooks;
