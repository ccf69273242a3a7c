//! Process life: what every daemon of the house needs and none should write again – configuration,
//! secrets, telemetry, listeners, clients, clock, start and stop. No neighbour's name and no business
//! word lives here.

pub mod admin;
pub mod client;
pub mod clock;
pub mod config;
pub mod error;
pub mod lifecycle;
pub mod one_shot;
pub mod retry;
pub mod run;
pub mod secret;
pub mod serve;
pub mod telemetry;
pub mod trace;
