//! Where the broker is: `AMQP_URL` and the files beside it, read and taken apart.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kit::secret::{self, Secret};
use percent_encoding::percent_decode_str;
use url::Url;

use crate::config::{AmqpSetupError, NAME_BYTES};

/// Hosts of one address at most: all of them are asked within the time to connect.
const HOSTS_MAX: usize = 16;

/// Where the broker is and who we are, as configured.
pub(crate) struct Address<'a> {
    pub(crate) url: Option<&'a Secret>,
    pub(crate) url_file: Option<&'a Path>,
    pub(crate) username_file: Option<&'a Path>,
    pub(crate) password_file: Option<&'a Path>,
    pub(crate) ca_file: Option<&'a Path>,
}

/// The same, read.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// One, or several of a cluster.
    pub(crate) hosts: Vec<Host>,
    pub(crate) tls: bool,
    pub(crate) vhost: String,
    pub(crate) username: String,
    pub(crate) password: Secret,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) heartbeat_seconds: u16,
    pub(crate) connect_timeout: Duration,
}

/// A host that a broker is at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) port: u16,
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.name, self.port)
    }
}

impl Address<'_> {
    /// Reads every file that is named.
    ///
    /// # Errors
    /// All that cannot be used.
    pub(crate) fn resolve(
        &self,
        heartbeat_seconds: u16,
        connect_timeout: f64,
    ) -> Result<Endpoint, Vec<AmqpSetupError>> {
        let mut errors = Vec::new();
        let mut keep = |path: &'static str, message: String| errors.push(AmqpSetupError { path, message });
        let url = match secret::resolve("AMQP_URL", self.url, "AMQP_URL_FILE", self.url_file) {
            Ok(Some(url)) => parse_all(url.expose().trim()).map_err(|text| keep("url", text.to_owned())).ok(),
            Ok(None) => {
                keep("url", "must be set to the broker's address, for example amqp://rabbitmq:5672".to_owned());
                None
            }
            Err(error) => {
                keep("url_file", error.to_string());
                None
            }
        };
        let mut read = |path: &'static str, file: Option<&Path>| match secret::resolve(path, None, path, file) {
            Ok(secret) => secret,
            Err(error) => {
                keep(path, error.to_string());
                None
            }
        };
        let username = read("username_file", self.username_file);
        let password = read("password_file", self.password_file);
        let Some(parsed) = url else { return Err(errors) };
        for (path, is_twice) in [
            ("username_file", username.is_some() && parsed.username.is_some()),
            ("password_file", password.is_some() && parsed.password.is_some()),
        ] {
            if is_twice {
                errors.push(AmqpSetupError { path, message: "is in the address too: keep one".to_owned() });
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let guest = || "guest".to_owned();
        Ok(Endpoint {
            hosts: parsed.hosts,
            tls: parsed.tls,
            vhost: parsed.vhost,
            username: username.map(|name| name.expose().to_owned()).or(parsed.username).unwrap_or_else(guest),
            password: password.or(parsed.password).unwrap_or_else(|| Secret::from(guest())),
            ca_file: self.ca_file.map(Path::to_owned),
            heartbeat_seconds,
            connect_timeout: Duration::try_from_secs_f64(connect_timeout).unwrap_or(Duration::from_secs(5)),
        })
    }
}

#[derive(Debug)]
struct Parsed {
    hosts: Vec<Host>,
    tls: bool,
    vhost: String,
    username: Option<String>,
    password: Option<Secret>,
}

/// Reads an address whose place of the host may have several, with commas between: `amqp://user:password@one:5672,two/vhost`,
/// as in `DATABASE_URL`. Or several addresses with commas between that differ in their hosts only, as other clients of
/// RabbitMQ take them; user and password may stand in the first one alone.
fn parse_all(text: &str) -> Result<Parsed, &'static str> {
    let text = text.replace(", amqp", ",amqp");
    let mut all: Option<Parsed> = None;
    for address in addresses(&text) {
        for single in hosts_apart(address) {
            let parsed = parse(&single)?;
            let Some(all) = &mut all else {
                all = Some(parsed);
                continue;
            };
            if (parsed.tls, &parsed.vhost) != (all.tls, &all.vhost) {
                return Err("names several brokers, which must have the same scheme and virtual host");
            }
            let is_same = |own: Option<&str>, first: Option<&str>| own.is_none() || own == first;
            let passwords = [&parsed, &*all].map(|of| of.password.as_ref().map(Secret::expose));
            if !is_same(parsed.username.as_deref(), all.username.as_deref()) || !is_same(passwords[0], passwords[1]) {
                return Err("names several brokers, which must have the same user and password");
            }
            let more = parsed.hosts.into_iter().filter(|host| !all.hosts.contains(host)).collect::<Vec<_>>();
            all.hosts.extend(more);
        }
    }
    let all = all.ok_or("must be an address such as amqp://rabbitmq:5672/vhost")?;
    if all.hosts.len() > HOSTS_MAX { Err("names more than 16 hosts") } else { Ok(all) }
}

/// Cuts before every scheme that follows a comma.
fn addresses(text: &str) -> Vec<&str> {
    let mut starts: Vec<usize> =
        [",amqp://", ",amqps://"].iter().flat_map(|next| text.match_indices(next).map(|(at, _)| at)).collect();
    starts.sort_unstable();
    let mut addresses = Vec::new();
    let mut rest = 0;
    for start in starts {
        addresses.push(text.get(rest..start).unwrap_or_default());
        rest = start + 1;
    }
    addresses.push(text.get(rest..).unwrap_or_default());
    addresses
}

/// One address for each host of one.
fn hosts_apart(address: &str) -> Vec<String> {
    let Some((scheme, rest)) = address.split_once("://") else { return vec![address.to_owned()] };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (user, hosts) = authority.rsplit_once('@').map_or(("", authority), |(user, hosts)| (user, hosts));
    let at = if authority.contains('@') { "@" } else { "" };
    hosts.split(',').map(|host| format!("{scheme}://{user}{at}{}{path}", host.trim())).collect()
}

/// Reads an AMQP URI (RabbitMQ's specification of it, rabbitmq.com/docs/uri-spec). A path that is empty or `/` means the
/// virtual host `/`, as in most clients. What is wrong is said without the text: it may hold a password.
fn parse(text: &str) -> Result<Parsed, &'static str> {
    let url = Url::parse(text).map_err(|_| "must be an address such as amqp://rabbitmq:5672/vhost")?;
    let tls = match url.scheme() {
        "amqp" => false,
        "amqps" => true,
        _ => return Err("must begin with amqp:// or amqps://"),
    };
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().map(String::from);
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or("must name a host")?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must not hold a query or fragment: what they would say has settings of its own");
    }
    let path = url.path().strip_prefix('/').unwrap_or_default();
    if path.contains('/') {
        return Err("names a virtual host with a slash, which must be written %2F");
    }
    let vhost = decoded(path).map_err(|_| "names a virtual host that is not UTF-8")?;
    let username = decoded(url.username()).map_err(|_| "holds a user name that is not UTF-8")?;
    let password = url.password().map(decoded).transpose().map_err(|_| "holds a password that is not UTF-8")?;
    if vhost.len() > NAME_BYTES {
        return Err("names a virtual host of more than 255 bytes");
    }
    Ok(Parsed {
        hosts: vec![Host {
            name: decoded(host).map_err(|_| "must name a host")?,
            port: url.port().unwrap_or(if tls { 5671 } else { 5672 }),
        }],
        tls,
        vhost: if vhost.is_empty() { "/".to_owned() } else { vhost },
        username: (!username.is_empty()).then_some(username),
        password: password.map(Secret::from),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_are_read_as_the_uri_specification_says() {
        let check = |text: &str, host: &str, port: u16, tls: bool, vhost: &str, user: Option<&str>, password: &str| {
            let parsed = parse_all(text).unwrap();
            assert_eq!(parsed.hosts, [Host { name: host.to_owned(), port }]);
            assert_eq!((parsed.tls, parsed.vhost.as_str()), (tls, vhost));
            assert_eq!(parsed.username.as_deref(), user);
            assert_eq!(parsed.password.as_ref().map_or("", Secret::expose), password);
        };
        check("amqp://mq", "mq", 5672, false, "/", None, "");
        check("amqps://mq/", "mq", 5671, true, "/", None, "");
        check("amqp://us%65r:p%40ss@mq:7000/%2Fapps", "mq", 7000, false, "/apps", Some("user"), "p@ss");
        check("amqp://[::1]:7000/a", "::1", 7000, false, "a", None, "");
    }

    #[test]
    fn an_address_that_cannot_be_used_is_not_shown() {
        for (text, expected) in [
            ("mq:5672", "begin with"),
            ("http://u:topsecret@mq", "begin with"),
            ("amqp://u:topsecret@", "such as"),
            ("amqp://u:topsecret@mq/a/b", "%2F"),
            ("amqp://u:topsecret@mq/a?heartbeat=1", "query"),
            ("amqp://u:topsecret@one,,two/a", "such as"),
            ("amqp://u:topsecret@one,two:port/a", "such as"),
            ("amqp://u:topsecret@one/a,amqps://two/a", "same scheme and virtual host"),
            ("amqp://u:topsecret@one/a,amqp://two/b", "same scheme and virtual host"),
            ("amqp://u:topsecret@one/a,amqp://u:topsecreT@two/a", "same user and password"),
            ("amqp://one/a,amqp://u:topsecret@two/a", "same user and password"),
        ] {
            let error = parse_all(text).unwrap_err();
            assert!(error.contains(expected) && !error.contains("topsecret"), "{text}: {error}");
        }
    }

    #[test]
    fn several_hosts_are_one_broker() {
        for text in [
            "amqp://u:p%2C@one:7000,two,[::1]:7001/a",
            "amqp://u:p%2C@one:7000/a, amqp://u:p%2C@two/a,amqp://[::1]:7001/a",
            "amqp://u:p%2C@one:7000/a,amqp://two:5672, [::1]:7001,one:7000/a",
        ] {
            let parsed = parse_all(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let hosts: Vec<String> = parsed.hosts.iter().map(ToString::to_string).collect();
            assert_eq!(hosts, ["one:7000", "two:5672", "::1:7001"], "{text}");
            assert_eq!((parsed.vhost.as_str(), parsed.username.as_deref()), ("a", Some("u")));
            assert_eq!(parsed.password.unwrap().expose(), "p,");
        }
    }
}
