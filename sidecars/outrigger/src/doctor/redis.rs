//! Redis, in which Lago's jobs lie: a few words of its protocol, which needs no library.
//!
//! Source: redis.io, page "Redis serialization protocol specification"; commands AUTH, PING, INFO.

use std::io;
use std::time::Duration;

use kit::error::chain;
use kit::secret::Secret;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use url::Url;

use super::finding::{REDIS_AWAY, REDIS_CROWDED, REDIS_EVICTS, REDIS_FULL, REDIS_OTHER, REDIS_PASSWORD, SETTING};
use super::names::{self, Stream};
use super::{ANSWER_WITHIN, Asking};
use crate::finding::Finding;

const CHECK: &str = "redis";
const PORT: u16 = 6379;
/// Longest answer that is read; `INFO memory` has some 2 KiB.
const ANSWER_BYTES: u64 = 64 << 10;
/// What Redis says unasked it says at once.
const UNASKED_WITHIN: Duration = Duration::from_millis(100);
/// So full that the rest is a matter of minutes.
const NEARLY_FULL: f64 = 0.95;

/// Where Redis is, and how to log in.
struct Place {
    host: String,
    port: u16,
    is_tls: bool,
    user: Option<String>,
    password: Option<Secret>,
}

pub(crate) async fn examine(asking: &Asking<'_>) -> Vec<Finding> {
    let place = match place(asking) {
        Ok(Some(place)) => place,
        Ok(None) => return vec![Finding::unset(CHECK, "REDIS_URL (or REDIS_HOST) and REDIS_PASSWORD_FILE")],
        Err(error) => return vec![Finding::of(&SETTING, error)],
    };
    let address = format!("{}:{}", place.host, place.port);
    let asked = tokio::time::timeout(ANSWER_WITHIN, ask(&place, asking)).await;
    match asked {
        Ok(Ok(findings)) => findings,
        Ok(Err(error)) => vec![Finding::of(&REDIS_AWAY, format!("{address}: {}", chain(&error)))],
        Err(_) => vec![Finding::of(&REDIS_AWAY, format!("{address}: no answer within {} s", ANSWER_WITHIN.as_secs()))],
    }
}

fn place(asking: &Asking<'_>) -> Result<Option<Place>, String> {
    let settings = asking.settings;
    let password = settings.secret("REDIS_PASSWORD").map_err(|error| chain(&error))?;
    let Some(url) = settings.get("REDIS_URL") else {
        let Some(host) = settings.get("REDIS_HOST") else { return Ok(None) };
        let port = settings.get("REDIS_PORT").map_or(Ok(PORT), str::parse).map_err(|_| "REDIS_PORT is not a port")?;
        return Ok(Some(Place { host: host.to_owned(), port, is_tls: false, user: None, password }));
    };
    let wrong = || "REDIS_URL is not an address such as redis://redis:6379/5".to_owned();
    let url = Url::parse(url).map_err(|_| wrong())?;
    let is_tls = match url.scheme() {
        "redis" => false,
        "rediss" => true,
        _ => return Err(wrong()),
    };
    let host = url.host_str().ok_or_else(wrong)?.to_owned();
    let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let own = url.password().map(|password| Secret::from(decoded(password)));
    let user = Some(url.username()).filter(|user| !user.is_empty()).map(decoded);
    Ok(Some(Place { host, port: url.port().unwrap_or(PORT), is_tls, user, password: own.or(password) }))
}

async fn ask(place: &Place, asking: &Asking<'_>) -> io::Result<Vec<Finding>> {
    let tcp = TcpStream::connect((place.host.as_str(), place.port)).await?;
    let stream: Box<dyn Stream> =
        if place.is_tls { Box::new(names::encrypted(tcp, &place.host, asking).await?) } else { Box::new(tcp) };
    let mut redis = BufReader::new(stream);
    // One that is full says so at once and closes: what is sent to it after that may cost the word that it said.
    if let Ok(said) = tokio::time::timeout(UNASKED_WITHIN, redis.fill_buf()).await
        && !said?.is_empty()
    {
        let said = line(&mut redis).await?;
        return Ok(vec![refused(&said, "a connection").unwrap_or_else(|| other("a connection", &said))]);
    }
    if let Some(password) = &place.password {
        let words: Vec<&str> = ["AUTH"].into_iter().chain(place.user.as_deref()).chain([password.expose()]).collect();
        let said = command(&mut redis, &words).await?;
        // A password where none is wanted is Lago's trouble too: it would not start.
        if said != "+OK" {
            return Ok(vec![refused(&said, "AUTH").unwrap_or_else(|| other("AUTH", &said))]);
        }
    }
    let said = command(&mut redis, &["PING"]).await?;
    if said != "+PONG" {
        return Ok(vec![refused(&said, "PING").unwrap_or_else(|| other("PING", &said))]);
    }
    let info = command(&mut redis, &["INFO", "memory"]).await?;
    if info.starts_with('-') {
        let text = format!("answers; INFO is not for this user: {}", error_code(&info));
        return Ok(vec![Finding::unknown(CHECK, text, "let the user ask INFO, or look at its memory by hand")]);
    }
    Ok(judge(&info))
}

/// What a refusal of a known kind means.
///
/// Source: redis/redis `src/acl.c` (`authCommand`), `src/networking.c` (`acceptCommonHandler`) at 7.2.
fn refused(said: &str, what: &str) -> Option<Finding> {
    let about_password = ["-NOAUTH", "-WRONGPASS", "-NOPERM", "-ERR invalid password", "-ERR invalid username"];
    let about_auth = said.starts_with("-ERR") && said.contains("AUTH");
    if said.starts_with("-ERR max number of clients") {
        return Some(Finding::of(&REDIS_CROWDED, error_code(said)));
    }
    (about_auth || about_password.iter().any(|begin| said.starts_with(begin)))
        .then(|| Finding::of(&REDIS_PASSWORD, format!("{what}: {}", error_code(said))))
}

fn other(what: &str, said: &str) -> Finding {
    Finding::of(&REDIS_OTHER, format!("{what} is answered with {}", error_code(said)))
}

/// The first word of an error, which says which it is; what is not an error is not shown, it may be anything.
fn error_code(said: &str) -> String {
    match said.strip_prefix('-') {
        Some(error) => error.chars().take(120).collect(),
        None if said.is_empty() => "nothing".to_owned(),
        None => "what is not Redis' protocol".to_owned(),
    }
}

/// Whether there is room, and whether what is there stays.
fn judge(info: &str) -> Vec<Finding> {
    let field = |name: &str| info.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'));
    let number = |name: &str| field(name).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    let (used, most) = (number("used_memory"), number("maxmemory"));
    let policy = field("maxmemory_policy").unwrap_or("noeviction");
    let mebibytes = |bytes: f64| bytes / f64::from(1 << 20);
    let mut findings = Vec::new();
    // Without a maximum nothing is evicted whatever the policy.
    if most > 0.0 && policy != "noeviction" {
        let text = format!("maxmemory-policy is {policy}, of at most {:.0} MiB", mebibytes(most));
        findings.push(Finding::of(&REDIS_EVICTS, text));
    }
    if most > 0.0 && policy == "noeviction" && used / most > NEARLY_FULL {
        let text = format!("{:.0} MiB of {:.0} MiB are used", mebibytes(used), mebibytes(most));
        findings.push(Finding::of(&REDIS_FULL, text));
    }
    if findings.is_empty() {
        findings.push(Finding::good(CHECK, format!("answers, {:.0} MiB used", mebibytes(used))));
    }
    findings
}

/// Sends a command and reads one answer: a line, or the text that a line announces the length of.
async fn command<S: Stream>(redis: &mut BufReader<S>, words: &[&str]) -> io::Result<String> {
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    redis.write_all(request.as_bytes()).await?;
    redis.flush().await?;
    let line = line(redis).await?;
    let Some(length) = line.strip_prefix('$').and_then(|length| length.parse::<u64>().ok()) else { return Ok(line) };
    let mut text = vec![0; usize::try_from(length.min(ANSWER_BYTES)).unwrap_or_default()];
    redis.read_exact(&mut text).await?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

async fn line<S: Stream>(redis: &mut BufReader<S>) -> io::Result<String> {
    let mut line = Vec::new();
    (&mut *redis).take(ANSWER_BYTES).read_until(b'\n', &mut line).await?;
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_judged_by_what_happens_when_it_is_full() {
        let ids = |used: u64, most: u64, policy: &str| -> Vec<Option<&str>> {
            let info = format!("# Memory\r\nused_memory:{used}\r\nmaxmemory:{most}\r\nmaxmemory_policy:{policy}\r\n");
            judge(&info).iter().map(|finding| finding.id).collect()
        };
        assert_eq!(ids(10, 100, "noeviction"), [None]);
        assert_eq!(ids(99, 100, "noeviction"), [Some("redis-full")]);
        assert_eq!(ids(10, 100, "allkeys-lru"), [Some("redis-evicts")]);
        assert_eq!(ids(99, 0, "allkeys-lru"), [None], "nothing is ever evicted without a maximum");
    }
}
