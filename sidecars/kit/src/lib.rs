//! Process life: what every daemon of the house needs and none should write again – configuration,
//! secrets, telemetry, listeners, clients, clock, start and stop. No neighbour's name and no business
//! word lives here.

pub mod admin;
pub mod api;
mod background;
pub mod client;
pub mod clock;
pub mod config;
pub mod error;
pub mod lifecycle;
mod log_writer;
pub mod one_shot;
pub mod retry;
pub mod run;
pub mod secret;
pub mod serve;
#[cfg(feature = "stand-in")]
pub mod stand_in;
pub mod telemetry;
pub mod trace;
