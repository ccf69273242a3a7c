//! A stand-in for Lago's usage and management API: takes events in, single and in batches, keeps the books of what
//! would be billed, adds them up, takes the catalogue of an organisation (metrics, plans, taxes, coupons, add-ons, features,
//! webhook endpoints), and fails in the ways Lago, its proxies and the network do. Written
//! from the contract; what an answer looks like depends on the [`Profile`].
//!
//! Left out: everything that costs money (what plans charge is kept and not billed; wallets; of invoices all but the
//! usage on them), fee estimates, filters and groups of usage, projected usage, sending webhooks other than
//! `customer.created`, and most of customers and subscriptions over HTTP: tests put them there.

mod answer;
mod arrivals;
mod catalogue;
mod decimal;
mod event;
mod faults;
mod ingest;
mod ledger;
mod management;
mod people;
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
pub use faults::{Effect, Fault, Faults, Latency, On, SlowStart, When};
pub use ledger::{LedgerEntry, LedgerEvent};
pub use profile::Profile;
pub use server::LagoServer;
pub use state::{Counts, LagoState, WaitError};
