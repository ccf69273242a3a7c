//! The seeder against the stand-in for Lago, over the wire, each version by its own rules.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bench;
mod binary;
mod catalogues;
mod drift;
mod full;
mod keys;
mod pruning;
mod trouble;
mod waiting;
