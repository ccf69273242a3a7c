//! Which server is connected to, where a URL may mean several: each gets its share of the time for all of the beginning –
//! the connection, TLS, logging in, and whether it takes writes. The client library limits the first of these alone, so
//! that a server that takes connections and says nothing would stand in the way of the others.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use tokio_postgres::config::{Host, LoadBalanceHosts};
use tokio_postgres::{Client, Config, Connection, Socket};
use uuid::Uuid;

use super::address::{Address, USUAL_PORT};
use super::tls::{Encrypted, Tls};
use crate::error::JournalError;

/// Connects to the first host that takes writes.
///
/// # Errors
/// The last host's, or [`JournalError::NoAnswer`].
pub(super) async fn connect(
    address: &Address,
    tls: &Tls,
    within: Duration,
) -> Result<(Client, Connection<Socket, Encrypted<Socket>>), JournalError> {
    let config = &address.config;
    let mut hosts = each(config);
    if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
        hosts.sort_by_key(|_| Uuid::new_v4());
    }
    let share = within / u32::try_from(hosts.len()).unwrap_or(u32::MAX).max(1);
    let most = config.get_connect_timeout().copied().unwrap_or(share);
    let is_one_host = hosts.len() == 1;
    let mut failed = JournalError::NoAnswer;
    for host in hosts {
        // A name that cannot be looked up is told of by the library.
        let servers = tokio::time::timeout(share.min(most), servers(&host)).await.unwrap_or_default();
        let servers = if servers.is_empty() { vec![host] } else { servers };
        let limit = match servers.len() {
            // Nobody else is there to be asked.
            1 if is_one_host => within,
            count => most.min(share / u32::try_from(count).unwrap_or(u32::MAX)),
        };
        for server in servers {
            match tokio::time::timeout(limit, server.connect(tls.clone())).await {
                Ok(Ok(made)) => return Ok(made),
                Ok(Err(error)) => failed = error.into(),
                Err(_) => failed = JournalError::NoAnswer,
            }
        }
    }
    Err(failed)
}

/// One configuration a host. The library cannot be told to take one of several: what it was told is told again.
fn each(config: &Config) -> Vec<Config> {
    let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    // What does not fit together is told of by the library.
    let fits = |count: usize| count == 0 || count == hosts.len();
    if !fits(addresses.len()) || !(fits(ports.len()) || ports.len() == 1) {
        return vec![config.clone()];
    }
    let one = |(nth, host): (usize, &Host)| {
        let mut one = without_hosts(config);
        match host {
            Host::Tcp(name) => one.host(name),
            #[cfg(unix)]
            Host::Unix(path) => one.host_path(path),
        };
        if let Some(address) = addresses.get(nth) {
            one.hostaddr(*address);
        }
        one.port(ports.get(nth).or(ports.first()).copied().unwrap_or(USUAL_PORT));
        one
    };
    hosts.iter().enumerate().map(one).collect()
}

fn without_hosts(config: &Config) -> Config {
    let mut one = Config::new();
    if let Some(user) = config.get_user() {
        one.user(user);
    }
    if let Some(password) = config.get_password() {
        one.password(password);
    }
    if let Some(database) = config.get_dbname() {
        one.dbname(database);
    }
    if let Some(options) = config.get_options() {
        one.options(options);
    }
    if let Some(name) = config.get_application_name() {
        one.application_name(name);
    }
    if let Some(timeout) = config.get_connect_timeout() {
        one.connect_timeout(*timeout);
    }
    if let Some(timeout) = config.get_tcp_user_timeout() {
        one.tcp_user_timeout(*timeout);
    }
    if let Some(interval) = config.get_keepalives_interval() {
        one.keepalives_interval(interval);
    }
    if let Some(retries) = config.get_keepalives_retries() {
        one.keepalives_retries(retries);
    }
    one.ssl_mode(config.get_ssl_mode())
        .ssl_negotiation(config.get_ssl_negotiation())
        .keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle())
        .target_session_attrs(config.get_target_session_attrs())
        .channel_binding(config.get_channel_binding())
        .load_balance_hosts(config.get_load_balance_hosts());
    one
}

/// One configuration for each address of a name that has several; nothing where there is one server anyway.
async fn servers(host: &Config) -> Vec<Config> {
    let ([Host::Tcp(name)], [], [port]) = (host.get_hosts(), host.get_hostaddrs(), host.get_ports()) else {
        return Vec::new();
    };
    if name.parse::<IpAddr>().is_ok() {
        return Vec::new();
    }
    let Ok(found) = tokio::net::lookup_host((name.as_str(), *port)).await else { return Vec::new() };
    let mut seen = BTreeSet::new();
    let addresses: Vec<IpAddr> = found.map(|found| found.ip()).filter(|address| seen.insert(*address)).collect();
    if addresses.len() < 2 {
        return Vec::new();
    }
    let at = |address: IpAddr| {
        let mut server = host.clone();
        server.hostaddr(address);
        server
    };
    addresses.into_iter().map(at).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_host_is_told_all_that_was_told_of_it() {
        let told = "postgres://u:p@one,two:6432/d?options=-cgeqo%3Doff&application_name=a&connect_timeout=2\
            &keepalives_idle=7&keepalives_interval=8&keepalives_retries=9&tcp_user_timeout=4&sslmode=require\
            &target_session_attrs=read-write&channel_binding=disable&load_balance_hosts=random&hostaddr=10.0.0.1,10.0.0.2";
        let each = each(&told.parse().unwrap());

        for (one, (host, address, port)) in each.iter().zip([("one", "10.0.0.1", 5432), ("two", "10.0.0.2", 6432)]) {
            let expected =
                told.replace("one,two:6432", &format!("{host}:{port}")).replace("10.0.0.1,10.0.0.2", address);
            assert_eq!(*one, expected.parse().unwrap());
        }
        assert_eq!(each.len(), 2);
    }
}
