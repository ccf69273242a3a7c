//! Alert rules and dashboards: that they are what Prometheus, Alertmanager and Grafana take, that each alert fires when it must
//! and is silent when not, and that every query finds something in what the daemons really expose.
//!
//! `./test monitoring` installs what it needs (Debian: prometheus, prometheus-alertmanager).

#![allow(clippy::unwrap_used)]

mod alertmanager;
mod dashboards;
mod files;
mod live;
mod metrics;
mod query;
mod rules;
mod tools;
