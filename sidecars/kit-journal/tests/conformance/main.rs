//! What every engine promises, asked of every engine: SQLite on a file, PostgreSQL on a real server, and PostgreSQL
//! through a pooler in transaction mode.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod accounts;
mod bench;
mod copying;
mod dedupe;
mod hosts;
mod leases;
mod lost;
mod plans;
mod reading;
mod refusals;
mod sharing;
mod tls;
mod together;
mod wire;

/// Makes a test of each of these functions for every engine.
#[macro_export]
macro_rules! of_every_engine {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[test] fn $name() { super::$name($crate::bench::Bench::sqlite()); })+
        }
        mod postgres {
            $(#[test] fn $name() { super::$name($crate::bench::Bench::postgres()); })+
        }
        mod pooled {
            $(#[test] fn $name() { super::$name($crate::bench::Bench::pooled()); })+
        }
    };
}
