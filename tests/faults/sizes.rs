//! Requests that are too large, endless, compressed, or lie about their length.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::join_all;
use kit_workbench::raw::{self, RawConnection, RawError};
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::rig::{Mode, REQUEST_DEADLINE, Rig};

const MIB: u64 = 1 << 20;
/// The body limit of the size experiments: small, so that they are quick.
const LIMIT: usize = 64 * 1024;
/// What the memory allocator may keep beside what a request holds.
const SLACK: u64 = 4 * MIB;

/// How a body is framed.
#[derive(Clone, Copy, Debug)]
enum Framing {
    Length,
    /// As [`Framing::Length`], asking first.
    Expect,
    /// In one chunk.
    OneChunk,
    /// In many small ones.
    SmallChunks,
}

fn text(bytes: usize) -> String {
    "x".repeat(bytes)
}

/// A request with the headers as given and nothing added.
fn head(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = b"POST /webhooks/lago HTTP/1.1\r\nHost: daemon\r\n".to_vec();
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

fn framed(rig: &Rig, body: &str, framing: Framing) -> Result<Vec<u8>> {
    let (signature, length) = (rig.sign(body)?, body.len().to_string());
    let key = uuid::Uuid::new_v4().to_string();
    let mut headers = vec![("X-Lago-Signature", signature.as_str()), ("X-Lago-Unique-Key", key.as_str())];
    match framing {
        Framing::Length => headers.push(("Content-Length", &length)),
        Framing::Expect => headers.extend([("Content-Length", length.as_str()), ("Expect", "100-continue")]),
        Framing::OneChunk | Framing::SmallChunks => headers.push(("Transfer-Encoding", "chunked")),
    }
    let mut bytes = head(&headers);
    let chunk = match framing {
        Framing::Length | Framing::Expect => {
            bytes.extend_from_slice(body.as_bytes());
            return Ok(bytes);
        }
        Framing::OneChunk => body.len().max(1),
        Framing::SmallChunks => 1_000,
    };
    for part in body.as_bytes().chunks(chunk) {
        bytes.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    Ok(bytes)
}

/// F23: bodies of every size and framing: up to the limit they are accepted to the last byte, beyond
/// it they are 413 before they are complete; and no lie about the length gets anything stored.
pub(crate) async fn bodies_are_taken_whole_or_not_at_all(_: Trial) -> Result<Outcome> {
    let rig = Rig::started(Mode::Hmac, &[("SIDECAR_LAGO__BODY_LIMIT_BYTES", &LIMIT.to_string())]).await?;
    let (mut cases, mut accepted) = (0, 0);
    let framings = [Framing::Length, Framing::Expect, Framing::OneChunk, Framing::SmallChunks];
    for framing in framings {
        for size in [0, 1, 2, 1_023, 1_024, 40_000, LIMIT - 1, LIMIT] {
            let answer = raw::exchange(rig.public, &framed(&rig, &text(size), framing)?, REQUEST_DEADLINE).await?;
            ensure!(answer.status == 200, "{size} bytes, {framing:?}: {} {}", answer.status, answer.text());
            (cases, accepted) = (cases + 1, accepted + 1);
        }
        for size in [LIMIT + 1, LIMIT * 2, LIMIT * 64] {
            let answer = raw::exchange(rig.public, &framed(&rig, &text(size), framing)?, REQUEST_DEADLINE).await?;
            ensure!(answer.status == 413, "{size} bytes, {framing:?}: {} {}", answer.status, answer.text());
            ensure!(!answer.keep_alive, "{size} bytes, {framing:?}: the connection is kept");
            cases += 1;
        }
    }
    cases += lengths_that_lie(&rig).await?;
    ensure!(rig.taken().await? == accepted, "{} taken, {accepted} were right", rig.taken().await?);
    let received = rig.gateway.wait_for(usize::try_from(accepted)?, REQUEST_DEADLINE).await?;
    let mut sizes: Vec<_> = received.iter().map(|received| received.data_sha256).collect();
    sizes.sort();
    sizes.dedup();
    ensure!(sizes.len() == 8, "eight different bodies were sent, {} came out", sizes.len());
    let rise = endless_bodies(&rig).await?;
    Ok(Outcome::new(cases, format!("{accepted} accepted, RSS rise {} KiB under 16 endless bodies", rise / 1024)))
}

async fn lengths_that_lie(rig: &Rig) -> Result<u32> {
    let body = text(1_000);
    let signature = rig.sign(&body)?;
    let with = |length: &str, body: &str| {
        let mut bytes =
            head(&[("X-Lago-Signature", &signature), ("X-Lago-Unique-Key", "lie"), ("Content-Length", length)]);
        bytes.extend_from_slice(body.as_bytes());
        bytes
    };
    let chunked = |body: &str| {
        let mut bytes =
            head(&[("X-Lago-Signature", &signature), ("X-Lago-Unique-Key", "lie"), ("Transfer-Encoding", "chunked")]);
        bytes.extend_from_slice(body.as_bytes());
        bytes
    };
    // Refused before anything of the body was sent.
    for length in ["65537", "1073741824", "4294967296", "4294967297", "9223372036854775807"] {
        let answer = raw::exchange(rig.public, &with(length, ""), REQUEST_DEADLINE).await?;
        ensure!(answer.status == 413, "{length} announced: {} {}", answer.status, answer.text());
    }
    for length in [
        "18446744073709551616",
        "99999999999999999999999",
        "-1",
        "+1000",
        "1000 1000",
        "1000,1000",
        "0x3e8",
        "1e3",
        "1000.0",
        "",
        "\"1000\"",
    ] {
        let answer = raw::exchange(rig.public, &with(length, &body), REQUEST_DEADLINE).await?;
        ensure!(answer.status == 400 && !answer.keep_alive, "length {length:?}: {} {}", answer.status, answer.text());
    }
    // More than announced: what was announced is not what was signed.
    for length in ["0", "1", "500", "999"] {
        let answer = raw::exchange(rig.public, &with(length, &body), REQUEST_DEADLINE).await?;
        ensure!(matches!(answer.status, 400 | 401), "{length} of 1000 bytes: {} {}", answer.status, answer.text());
    }
    // Less than announced, then the end: never an event, however much of it is there.
    for length in ["1001", "1010", "65536"] {
        broken_off(rig, &with(length, &body)).await.with_context(|| format!("{length} announced, 1000 sent"))?;
    }
    let whole = format!("3e8\r\n{body}\r\n");
    for (what, sent) in [
        ("no last chunk", whole.clone()),
        ("half a last chunk", whole.clone() + "0\r\n"),
        ("half a chunk", "3e8\r\n".to_owned() + &body[..500]),
        ("no chunk", String::new()),
    ] {
        broken_off(rig, &chunked(&sent)).await.context(what)?;
    }
    for (what, sent) in [
        ("a chunk of 1 GiB", "40000000\r\n".to_owned() + &text(LIMIT + 1)),
        ("a chunk longer than it says", format!("3e7\r\n{body}\r\n0\r\n\r\n")),
        ("a chunk length beyond all numbers", format!("fffffffffffffffff\r\n{body}\r\n0\r\n\r\n")),
        ("a negative chunk", format!("-3e8\r\n{body}\r\n0\r\n\r\n")),
    ] {
        let answer = raw::exchange(rig.public, &chunked(&sent), REQUEST_DEADLINE).await;
        let fine = match &answer {
            Ok(answer) => matches!(answer.status, 400 | 413) && !answer.keep_alive,
            Err(RawError::Closed { .. }) => true,
            Err(_) => false,
        };
        ensure!(fine, "{what}: {answer:?}");
    }
    Ok(5 + 11 + 4 + 3 + 4 + 4)
}

/// Sends something incomplete, ends our half, and wants no 2xx for it.
async fn broken_off(rig: &Rig, bytes: &[u8]) -> Result<()> {
    let mut connection = RawConnection::open(rig.public).await?;
    connection.send(bytes).await?;
    connection.half_close().await?;
    match connection.read_response(REQUEST_DEADLINE).await {
        Ok(answer) => ensure!(answer.status == 400, "answered {} {}", answer.status, answer.text()),
        Err(RawError::Closed { .. } | RawError::Reset { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Sixteen senders whose bodies never end; returns how much memory that took.
async fn endless_bodies(rig: &Rig) -> Result<u64> {
    let before = rig.rss_bytes()?;
    let senders = (0..16).map(|_| async {
        let mut bytes = head(&[("X-Lago-Signature", "x"), ("Transfer-Encoding", "chunked")]);
        for _ in 0..LIMIT * 8 / 1_024 {
            bytes.extend_from_slice(format!("400\r\n{}\r\n", text(1_024)).as_bytes());
        }
        raw::exchange(rig.public, &bytes, REQUEST_DEADLINE).await
    });
    let (answers, peak) = watched(rig, join_all(senders)).await?;
    for answer in answers {
        let answer = answer?;
        ensure!(answer.status == 413, "an endless body is answered {} {}", answer.status, answer.text());
    }
    let rise = peak.saturating_sub(before);
    ensure!(rise <= 16 * LIMIT as u64 + SLACK, "16 bodies of at most {LIMIT} bytes took {rise} bytes of memory");
    Ok(rise)
}

/// Runs `work` and returns with its result the most memory that the daemon had meanwhile.
async fn watched<T>(rig: &Rig, work: impl Future<Output = T>) -> Result<(T, u64)> {
    let mut peak = rig.rss_bytes()?;
    tokio::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => return Ok((result, peak.max(rig.rss_bytes()?))),
            () = tokio::time::sleep(Duration::from_millis(10)) => peak = peak.max(rig.rss_bytes()?),
        }
    }
}

/// T13: whatever says that it is compressed is 415, signed or not, and costs no memory.
pub(crate) async fn compressed_bodies_are_refused_unread(trial: Trial) -> Result<Outcome> {
    let rig = Rig::started(Mode::Hmac, &[]).await?;
    let small = r#"{"webhook_type":"fee.created"}"#;
    let signature = rig.sign(small)?;
    let base = [("X-Lago-Signature", signature.as_str()), ("X-Lago-Unique-Key", "encoded")];
    let mut cases = 0;
    for encoding in [
        "gzip",
        "GZIP",
        "x-gzip",
        "deflate",
        "br",
        "zstd",
        "compress",
        "identity, gzip",
        "gzip, identity",
        "gzip,gzip",
        "*",
        "",
    ] {
        let headers = [base[0], base[1], ("Content-Encoding", encoding)];
        let answer =
            raw::request(rig.public, "POST", "/webhooks/lago", &headers, small.as_bytes(), REQUEST_DEADLINE).await?;
        ensure!(answer.status == 415, "{encoding:?}: {} {}", answer.status, answer.text());
        let twice = [base[0], base[1], ("Content-Encoding", "identity"), ("Content-Encoding", encoding)];
        let answer =
            raw::request(rig.public, "POST", "/webhooks/lago", &twice, small.as_bytes(), REQUEST_DEADLINE).await?;
        ensure!(answer.status == 415, "identity and {encoding:?}: {} {}", answer.status, answer.text());
        cases += 2;
    }
    // A megabyte that would become a gigabyte, again and again.
    let bomb = text(1 << 20);
    let signature = rig.sign(&bomb)?;
    let headers =
        [("X-Lago-Signature", signature.as_str()), ("X-Lago-Unique-Key", "bomb"), ("Content-Encoding", "gzip")];
    let before = rig.rss_bytes()?;
    let bombs = async {
        for _ in 0..trial.count {
            let answer =
                raw::request(rig.public, "POST", "/webhooks/lago", &headers, bomb.as_bytes(), REQUEST_DEADLINE).await?;
            ensure!(answer.status == 415, "{} {}", answer.status, answer.text());
        }
        Ok(())
    };
    let (result, peak) = watched(&rig, bombs).await?;
    result?;
    let rise = peak.saturating_sub(before);
    ensure!(rise <= SLACK, "refusing compressed bodies took {rise} bytes of memory");
    ensure!(rig.taken().await? == 0, "a compressed body was taken");
    for encoding in ["identity", "Identity"] {
        let headers = [base[0], base[1], ("Content-Encoding", encoding)];
        let answer =
            raw::request(rig.public, "POST", "/webhooks/lago", &headers, small.as_bytes(), REQUEST_DEADLINE).await?;
        ensure!(answer.status == 200, "{encoding}: {} {}", answer.status, answer.text());
    }
    Ok(Outcome::new(cases + trial.count, format!("415, RSS rise {} KiB", rise / 1024)))
}

/// T14: a 393 kB head is Lago's own in jwt mode and nobody's in hmac mode.
pub(crate) async fn a_large_head_is_for_tokens_only(_: Trial) -> Result<Outcome> {
    const HEAD: usize = 393_000;
    let jwt = Rig::started(Mode::Jwt, &[]).await?;
    // The token is about 1.5 times the body; find the body whose token is as long as wanted.
    let mut fees = 100;
    let body = loop {
        let shape = kit_lago::sample::Shape { fees, ..Default::default() };
        let body = kit_lago::sample::sample("invoice.created", &shape);
        if jwt.sign(&body)?.len() >= HEAD {
            break body;
        }
        fees += 10;
    };
    let token = jwt.sign(&body)?;
    let answer = jwt.post("large", &body).await?;
    ensure!(answer.status == 200, "a token of {} bytes: {} {}", token.len(), answer.status, answer.text());

    let hmac = Rig::started(Mode::Hmac, &[]).await?;
    let small = r#"{"webhook_type":"fee.created"}"#;
    let (signature, padding) = (hmac.sign(small)?, text(HEAD));
    let headers =
        [("X-Lago-Signature", signature.as_str()), ("X-Lago-Unique-Key", "k"), ("X-Padding", padding.as_str())];
    let answer =
        raw::request(hmac.public, "POST", "/webhooks/lago", &headers, small.as_bytes(), REQUEST_DEADLINE).await?;
    ensure!(answer.status == 431, "a head of 393 kB in hmac mode: {} {}", answer.status, answer.text());
    ensure!(hmac.taken().await? == 0, "it was taken");
    let just_right = text(60_000);
    let headers = [headers[0], headers[1], ("X-Padding", just_right.as_str())];
    let answer =
        raw::request(hmac.public, "POST", "/webhooks/lago", &headers, small.as_bytes(), REQUEST_DEADLINE).await?;
    ensure!(answer.status == 200, "a head of 60 kB in hmac mode: {} {}", answer.status, answer.text());
    // And the largest that jwt mode takes, plus one.
    let padding = text(9 << 20);
    let headers = [("X-Lago-Signature", "x"), ("X-Padding", padding.as_str())];
    let answer = raw::request(jwt.public, "POST", "/webhooks/lago", &headers, b"", REQUEST_DEADLINE).await?;
    ensure!(answer.status == 431, "a head of 9 MiB in jwt mode: {} {}", answer.status, answer.text());
    Ok(Outcome::new(4_u64, format!("token of {} bytes accepted", token.len())))
}

/// T14: attackers who send heads of up to 8 MiB and do not end them stay within the memory budget,
/// and meanwhile a real webhook is answered.
pub(crate) async fn many_large_heads_stay_within_the_budget(trial: Trial) -> Result<Outcome> {
    /// Worst case that the container is sized for.
    const RSS_LIMIT: u64 = 128 * MIB;
    const GOOD: u64 = 20;
    let rig = Rig::started(Mode::Jwt, &[("SIDECAR_LISTEN__HEAD_TIMEOUT_SECONDS", "4")]).await?;
    let mut beginning = b"POST /webhooks/lago HTTP/1.1\r\nHost: daemon\r\nX-Lago-Signature: ".to_vec();
    beginning.extend_from_slice(text((8 << 20) - 4_096).as_bytes());
    let attacks = (0..trial.count).map(|_| async {
        let mut connection = RawConnection::open(rig.public).await?;
        // Blocks while the daemon does not read, until the daemon closes: both is what it should do.
        let _ = tokio::time::timeout(Duration::from_secs(8), connection.send(&beginning)).await;
        Ok::<_, RawError>(connection)
    });
    let good = async {
        let mut slowest = Duration::ZERO;
        for number in 0..GOOD {
            let begin = Instant::now();
            let answer = rig.post(&number.to_string(), r#"{"webhook_type":"fee.created"}"#).await?;
            if answer.status != 200 {
                bail!("a real webhook is answered {} {}", answer.status, answer.text());
            }
            slowest = slowest.max(begin.elapsed());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(slowest)
    };
    let ((_, slowest), peak) = watched(&rig, async { tokio::join!(join_all(attacks), good) }).await?;
    let slowest = slowest?;
    ensure!(peak <= RSS_LIMIT, "{} attackers took {} MiB of memory", trial.count, peak / MIB);
    ensure!(rig.taken().await? == GOOD, "{} taken", rig.taken().await?);
    Ok(Outcome::new(
        trial.count,
        format!("RSS {} MiB at most, real webhooks within {} ms", peak / MIB, slowest.as_millis()),
    ))
}
