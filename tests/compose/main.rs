//! The compose files: what they may say, and the sidecars in a real engine.

#![allow(clippy::unwrap_used)]

mod combinations;
mod databases;
mod lint;
mod project;
mod sbom;
