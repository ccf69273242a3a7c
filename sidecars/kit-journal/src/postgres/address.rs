//! Which database, and how it is spoken to: `DATABASE_URL` taken apart.

use std::path::PathBuf;
use std::time::Duration;

use kit::secret::Secret;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use super::tls::Trust;

/// Name look-up, connect and log-in together, where another host may be asked instead.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// Of a server whose URL names none.
pub(super) const USUAL_PORT: u16 = 5432;

const NO_URL: &str = "is not a URL such as postgres://user:password@host:5432/database (special characters of the password as %XX: @ is %40)";

/// A database and the journal's place in it.
#[derive(Clone)]
pub(crate) struct Address {
    pub(super) config: Config,
    pub(super) trust: Trust,
    /// The schema that holds the journal: a plain lower-case name, so that it needs no quotes.
    pub(super) schema: String,
    /// Hosts with ports that are not the usual one, database and schema, for messages; never the password.
    pub(super) shown: String,
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}

impl Address {
    /// Reads a URL (`postgres://user:password@host:5432/database?sslmode=verify-full`). Beside what the client
    /// library knows, `sslmode` may be `verify-ca` or `verify-full` and `sslrootcert` names a PEM file, both as in libpq;
    /// `ca_file` is the same as `sslrootcert`.
    ///
    /// # Errors
    /// What is wrong with it, in words that hold nothing of a password.
    pub(crate) fn parse(url: &Secret, ca_file: Option<PathBuf>, schema: &str) -> Result<Self, String> {
        let text = url.expose();
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err("must begin with postgres:// or postgresql://".to_owned());
        }
        let (front, query) = text.split_once('?').unwrap_or((text, ""));
        let (mut mode, mut root) = (None, ca_file);
        let mut kept = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("sslmode", value)) => mode = Some(value),
                Some(("sslrootcert", value)) => {
                    root = Some(PathBuf::from(percent_decoded(value).ok_or("has an sslrootcert that is not UTF-8")?));
                }
                _ => kept.push(pair),
            }
        }
        let rest = if kept.is_empty() { front.to_owned() } else { format!("{front}?{}", kept.join("&")) };
        // The library ends the password at the first @, libpq at the last: what is left of it would be taken for a host or a
        // database, and those are shown.
        let behind = text.split_once('@').map_or("", |(_, behind)| behind);
        if behind.split('?').next().is_some_and(|place| place.contains('@')) {
            return Err(NO_URL.to_owned());
        }
        // The library's own text may quote a part of the URL.
        let mut config: Config = rest.parse().map_err(|_| {
            let is_well_formed = front.parse::<Config>().is_ok() && !query.contains('@');
            match kept.as_slice() {
                [_, ..] if is_well_formed => {
                    format!("has a parameter that is not known, or a value that it cannot have: {}", names(&kept))
                }
                _ => NO_URL.to_owned(),
            }
        })?;
        let (ssl, trust) = match (mode.unwrap_or("prefer"), root) {
            ("disable", _) => (SslMode::Disable, Trust::Anybody),
            ("allow" | "prefer", None) => (SslMode::Prefer, Trust::Anybody),
            ("require", None) => (SslMode::Require, Trust::Anybody),
            // Whoever names an authority wants it asked, as libpq does it.
            ("allow" | "prefer" | "require" | "verify-ca", Some(file)) => (SslMode::Require, Trust::Chain(file)),
            ("verify-full", root) => (SslMode::Require, Trust::Full(root)),
            ("verify-ca", None) => {
                return Err(
                    "has sslmode=verify-ca, which needs SIDECAR_JOURNAL__DATABASE_CA_FILE or sslrootcert".to_owned()
                );
            }
            _ => {
                return Err("has an unknown sslmode: disable, prefer, require, verify-ca or verify-full".to_owned());
            }
        };
        config.ssl_mode(ssl);
        if config.get_dbname().is_none() {
            return Err("names no database: postgres://user:password@host:5432/database".to_owned());
        }
        if config.get_hosts().is_empty() {
            return Err("names no host: postgres://user:password@host:5432/database".to_owned());
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_WITHIN);
        }
        // Of several hosts the one that takes writes: a failover is found by asking all of them.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        config.keepalives_idle(Duration::from_secs(15));
        config.tcp_user_timeout(Duration::from_secs(15));
        if config.get_application_name().is_none() {
            config.application_name("outrigger");
        }
        // One port counts for all hosts, or there is one each.
        let ports = config.get_ports();
        let port = |nth: usize| ports.get(nth).or(ports.first()).copied().unwrap_or(USUAL_PORT);
        let hosts: Vec<String> =
            config.get_hosts().iter().enumerate().map(|(nth, host)| place_text(host, port(nth))).collect();
        let database = config.get_dbname().unwrap_or_default();
        let shown = format!("{}/{database}, schema {schema}", hosts.join(","));
        Ok(Self { config, trust, schema: schema.to_owned(), shown })
    }
}

impl Address {
    /// What the user needs who has been told `said`.
    pub(super) fn lacks(&self, said: &str) -> String {
        let (user, schema) = (self.config.get_user().unwrap_or("?"), &self.schema);
        let database = self.config.get_dbname().unwrap_or_default();
        format!(
            "{said}: user {user} needs a schema of its own (CREATE SCHEMA {schema} AUTHORIZATION \"{user}\") or the right to \
             make one (GRANT CREATE ON DATABASE \"{database}\" TO \"{user}\"); a journal that is there already belongs to \
             the user that made it"
        )
    }
}

/// Whether a schema's name needs no quotes anywhere.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let mut letters = name.bytes();
    letters.next().is_some_and(|first| first.is_ascii_lowercase() || first == b'_')
        && letters.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && name.len() <= 63
        && !name.starts_with("pg_")
}

/// The names of parameters, without their values.
fn names(pairs: &[&str]) -> String {
    let names: Vec<&str> = pairs.iter().map(|pair| pair.split('=').next().unwrap_or_default()).collect();
    names.join(", ")
}

fn place_text(host: &Host, port: u16) -> String {
    let host = match host {
        Host::Tcp(name) => name.clone(),
        #[cfg(unix)]
        Host::Unix(path) => path.display().to_string(),
    };
    if port == USUAL_PORT { host } else { format!("{host}:{port}") }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next()?, rest.next()?];
        bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(url: &str) -> Result<Address, String> {
        Address::parse(&Secret::from(url.to_owned()), None, "outrigger")
    }

    #[test]
    fn how_far_a_server_is_trusted_is_what_libpq_calls_it() {
        for (mode, expected) in [
            ("", (SslMode::Prefer, Trust::Anybody)),
            ("?sslmode=disable", (SslMode::Disable, Trust::Anybody)),
            ("?sslmode=require", (SslMode::Require, Trust::Anybody)),
            ("?sslmode=require&sslrootcert=%2Fca.pem", (SslMode::Require, Trust::Chain("/ca.pem".into()))),
            ("?sslmode=verify-full", (SslMode::Require, Trust::Full(None))),
            ("?sslrootcert=/ca.pem&sslmode=verify-full", (SslMode::Require, Trust::Full(Some("/ca.pem".into())))),
        ] {
            let address = parse(&format!("postgres://u:p@h/d{mode}")).unwrap();
            assert_eq!((address.config.get_ssl_mode(), address.trust), expected, "{mode}");
        }
    }

    #[test]
    fn mistakes_are_told_without_the_password() {
        for (url, expected) in [
            ("mysql://u:topsecret@h/d", "must begin with postgres://"),
            ("postgres://u:topsecret@h", "names no database"),
            ("postgres://u:topsecret@h/d?sslmode=sometimes", "unknown sslmode"),
            ("postgres://u:topsecret@h/d?sslmode=verify-ca", "DATABASE_CA_FILE"),
            ("postgres://u:topsecret@h:port/d", "is not a URL"),
            ("postgres://u:topsecret@h/d?pool=3", "not known, or a value that it cannot have: pool"),
            ("postgres://u:topsecret@h/d?connect_timeout=topsecret", "cannot have: connect_timeout"),
            ("postgres://u:mine@topsecret@h:6432/d", "@ is %40"),
            ("postgres://u:mine@topsecret@h,i/d?connect_timeout=3", "@ is %40"),
            ("postgres://u:mine@topsecret/3@h/d", "@ is %40"),
            ("postgres://u:12?topsecret=1@h/d?pool=3", "is not a URL"),
            ("postgres://u:12?topsecret@h/d?pool=3", "is not a URL"),
        ] {
            let mistake = parse(url).unwrap_err();
            assert!(mistake.contains(expected) && !mistake.contains("topsecret"), "{url}: {mistake}");
        }
        for (url, expected) in [
            ("postgres://u:top%40secret@h/d", "h/d"),
            ("postgres://u:top/secret@h/d", "h/d"),
            ("postgres://u:12?secret@h/d", "h/d"),
            ("postgres://u@h/d%40e", "h/d@e"),
        ] {
            assert_eq!(parse(url).unwrap().shown, format!("{expected}, schema outrigger"), "{url}");
        }
        let shown = format!("{:?}", parse("postgres://u:topsecret@one,two:6432/d").unwrap());
        assert_eq!(shown, "one,two:6432/d, schema outrigger");
    }

    #[test]
    fn a_schema_has_a_plain_name() {
        for (name, plain) in [
            ("outrigger", true),
            ("o_2", true),
            ("", false),
            ("Out", false),
            ("a-b", false),
            ("pg_a", false),
            ("2", false),
        ] {
            assert_eq!(is_plain_name(name), plain, "{name}");
        }
    }
}
