//! The compose files: what they may say. The sidecars in a real engine are in `engine/`, a target of its own.

#![allow(clippy::unwrap_used)]

mod combinations;
mod databases;
mod dockerfiles;
mod entrypoints;
mod lint;
mod project;
mod sbom;
mod secrets;
