//! The daemon as producers and Lago see it: the real binary, a Lago that speaks over the wire, and requests.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod bench;
mod catching_up;
mod checks;
mod delivery;
mod intake;
mod late;
mod many;
mod proof;
mod replicas;
mod resolve;
mod rollup;
mod webhooks;
