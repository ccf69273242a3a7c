//! A stand-in for Lago's usage API: takes events in, single and in batches, keeps the books of what
//! would be billed, adds them up, and fails in the ways Lago, its proxies and the network do. Written
//! from the contract; what an answer looks like depends on the [`Profile`].
//!
//! Left out: everything that costs money (plans, charges, amounts, wallets; of invoices all but the
//! usage on them), fee estimates, filters and groups, projected usage, and writing to the catalogue over HTTP.

mod answer;
mod arrivals;
mod catalogue;
mod decimal;
mod event;
mod faults;
mod ingest;
mod ledger;
mod period;
mod profile;
mod reads;
mod routes;
mod server;
mod state;
#[cfg(test)]
mod tests;
mod timestamp;
mod usage;
mod wire;

pub use arrivals::DifferingRetry;
pub use catalogue::{AggregationType, BillingTime, Invoice, Metric, Subscription, SubscriptionStatus};
pub use faults::{Effect, Fault, Faults, Latency, On, When};
pub use ledger::{LedgerEntry, LedgerEvent};
pub use profile::Profile;
pub use server::LagoServer;
pub use state::{Counts, LagoState, WaitError};
