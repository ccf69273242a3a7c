//! What the black-box tests share: where the binaries are, a rig of one daemon between a stand-in
//! gateway and a load, the recorded requests, and a runner for experiments.
//!
//! The daemon is always a process of its own, as an operator runs it; nothing here reaches into it.

pub mod api;
pub mod binaries;
mod campaign;
pub mod captures;
pub mod dns;
pub mod experiment;
pub mod grpc;
pub mod images;
pub mod journal_file;
pub mod limits;
pub mod machine;
pub mod named;
pub mod namespace;
pub mod picture;
pub mod power;
pub mod queue;
pub mod rig;
pub mod strace;
pub mod strict;
pub mod temporal;
pub mod tls;
pub mod tokens;
