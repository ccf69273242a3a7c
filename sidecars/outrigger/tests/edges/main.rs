//! The command line as its user meets it: the real binary, against the real daemon, which the same
//! binary runs through its hidden command.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod authentik;
mod bench;
mod demo;
mod doctor;
mod events;
mod journal;
mod lago;
mod offline;
mod operating;
mod routes;
mod rules;
mod sending;
mod tracker;
mod usage;
mod usage_import;
mod usage_reconcile;
mod verify_upgrade;
