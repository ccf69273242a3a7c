//! Requests that two parsers could read differently.
//!
//! Every case hides a second, genuine webhook behind an ambiguous first one. Whatever the daemon makes
//! of the first, the second must never be taken, and the connection must end. Forms as published for
//! request smuggling, RUSTSEC-2020-0008, RUSTSEC-2021-0020, -0078 and -0079 among them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kit_workbench::raw::{RawConnection, RawError};
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::rig::{Mode, REQUEST_DEADLINE, Rig};

const CLOSE_DEADLINE: Duration = Duration::from_secs(10);
const BODY: &str = r#"{"webhook_type":"fee.created"}"#;

/// What is sent in place of the parts of a right request.
struct Case {
    what: &'static str,
    line: &'static str,
    /// Header lines besides the signature and the key; `{n}` is the length of the body.
    headers: &'static str,
    /// `None`: the body as it is.
    body: Option<&'static str>,
}

const LINE: &str = "POST /webhooks/lago HTTP/1.1\r\n";
const HOST: &str = "Host: daemon\r\n";

const fn framing(what: &'static str, headers: &'static str) -> Case {
    Case { what, line: LINE, headers, body: None }
}

const fn chunked(what: &'static str, body: &'static str) -> Case {
    Case { what, line: LINE, headers: "Host: daemon\r\nTransfer-Encoding: chunked\r\n", body: Some(body) }
}

const fn line(what: &'static str, line: &'static str) -> Case {
    Case { what, line, headers: "Host: daemon\r\nContent-Length: {n}\r\n", body: None }
}

const CASES: &[Case] = &[
    // Two lengths.
    framing("CL then TE", "Host: daemon\r\nContent-Length: {n}\r\nTransfer-Encoding: chunked\r\n"),
    framing("TE then CL", "Host: daemon\r\nTransfer-Encoding: chunked\r\nContent-Length: {n}\r\n"),
    framing("CL 0 and TE", "Host: daemon\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n"),
    framing("two different CL", "Host: daemon\r\nContent-Length: {n}\r\nContent-Length: 5\r\n"),
    framing("two equal CL", "Host: daemon\r\nContent-Length: {n}\r\nContent-Length: {n}\r\n"),
    framing("CL list, equal", "Host: daemon\r\nContent-Length: {n}, {n}\r\n"),
    framing("CL list, different", "Host: daemon\r\nContent-Length: {n}, 5\r\n"),
    framing("CL with plus", "Host: daemon\r\nContent-Length: +{n}\r\n"),
    framing("CL with minus", "Host: daemon\r\nContent-Length: -{n}\r\n"),
    framing("CL in hex", "Host: daemon\r\nContent-Length: 0x1e\r\n"),
    framing("CL with a fraction", "Host: daemon\r\nContent-Length: {n}.0\r\n"),
    framing("CL with a separator", "Host: daemon\r\nContent-Length: 3_0\r\n"),
    framing("CL with a semicolon", "Host: daemon\r\nContent-Length: {n};a\r\n"),
    framing("CL with a vertical tab", "Host: daemon\r\nContent-Length: \x0b{n}\r\n"),
    framing("CL with NUL", "Host: daemon\r\nContent-Length: {n}\0\r\n"),
    framing("CL beyond 64 bits", "Host: daemon\r\nContent-Length: 18446744073709551646\r\n"),
    framing("empty CL", "Host: daemon\r\nContent-Length: \r\n"),
    framing("CL with a space before the colon", "Host: daemon\r\nContent-Length : {n}\r\n"),
    framing("CL with a tab before the colon", "Host: daemon\r\nContent-Length\t: {n}\r\n"),
    framing("CL folded", "Host: daemon\r\nContent-Length:\r\n {n}\r\n"),
    framing("CL hidden in a folded header", "Host: daemon\r\nX-A: b\r\n Content-Length: {n}\r\n"),
    // Other transfer encodings.
    framing("TE xchunked", "Host: daemon\r\nTransfer-Encoding: xchunked\r\n"),
    framing("TE identity", "Host: daemon\r\nTransfer-Encoding: identity\r\nContent-Length: {n}\r\n"),
    framing("TE gzip, chunked", "Host: daemon\r\nTransfer-Encoding: gzip, chunked\r\n"),
    framing("TE chunked, identity", "Host: daemon\r\nTransfer-Encoding: chunked, identity\r\n"),
    framing("TE chunked, chunked", "Host: daemon\r\nTransfer-Encoding: chunked, chunked\r\n"),
    framing("two TE", "Host: daemon\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
    framing("two TE, one other", "Host: daemon\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n"),
    framing("TE with a vertical tab", "Host: daemon\r\nTransfer-Encoding: \x0bchunked\r\n"),
    framing("TE with NUL", "Host: daemon\r\nTransfer-Encoding: chunked\0\r\n"),
    framing("TE quoted", "Host: daemon\r\nTransfer-Encoding: \"chunked\"\r\n"),
    framing("TE with a parameter", "Host: daemon\r\nTransfer-Encoding: chunked;a=b\r\n"),
    framing(
        "TE with a space before the colon",
        "Host: daemon\r\nTransfer-Encoding : chunked\r\nContent-Length: {n}\r\n",
    ),
    framing("TE folded", "Host: daemon\r\nTransfer-Encoding:\r\n chunked\r\nContent-Length: {n}\r\n"),
    framing("empty TE", "Host: daemon\r\nTransfer-Encoding: \r\nContent-Length: {n}\r\n"),
    // Lines and names.
    framing("bare LF after a header", "Host: daemon\nContent-Length: {n}\r\n"),
    framing("bare CR inside a header", "Host: daemon\r\nX-A: b\rContent-Length: 0\r\nContent-Length: {n}\r\n"),
    framing("header without a colon", "Host: daemon\r\nX-A\r\nContent-Length: {n}\r\n"),
    framing("header without a name", "Host: daemon\r\n: b\r\nContent-Length: {n}\r\n"),
    framing("NUL in a name", "Host: daemon\r\nX\0A: b\r\nContent-Length: {n}\r\n"),
    framing("NUL in a value", "Host: daemon\r\nX-A: \0\r\nContent-Length: {n}\r\n"),
    framing("space before the first header", " X-A: b\r\nHost: daemon\r\nContent-Length: {n}\r\n"),
    framing("no host", "Content-Length: {n}\r\n"),
    framing("two hosts", "Host: daemon\r\nHost: other\r\nContent-Length: {n}\r\n"),
    // Chunks.
    chunked("chunk size that is none", "zz\r\nhello\r\n0\r\n\r\n"),
    chunked("chunk size with a prefix", "0x5\r\nhello\r\n0\r\n\r\n"),
    chunked("negative chunk size", "-5\r\nhello\r\n0\r\n\r\n"),
    chunked("chunk size with plus", "+5\r\nhello\r\n0\r\n\r\n"),
    chunked("chunk size beyond 64 bits", "ffffffffffffffff5\r\nhello\r\n0\r\n\r\n"),
    chunked("empty chunk size", "\r\nhello\r\n0\r\n\r\n"),
    chunked("chunk without its end", "5\r\nhello0\r\n\r\n"),
    chunked("chunk longer than it says", "4\r\nhello\r\n0\r\n\r\n"),
    chunked("chunk size ended by LF", "5\nhello\r\n0\r\n\r\n"),
    chunked("chunk extension with LF", "5;a\nb\r\nhello\r\n0\r\n\r\n"),
    chunked("chunk extension with CR", "5;a\rb\r\nhello\r\n0\r\n\r\n"),
    chunked("a right chunked body that is not signed", "5\r\nhello\r\n0\r\n\r\n"),
    // Request lines.
    line("HTTP/1.0 is not spoken with pipelines", "POST /webhooks/lago HTTP/0.9\r\n"),
    line("HTTP/2.0", "POST /webhooks/lago HTTP/2.0\r\n"),
    line("HTTP/1.2", "POST /webhooks/lago HTTP/1.2\r\n"),
    line("lower-case version", "POST /webhooks/lago http/1.1\r\n"),
    line("no version", "POST /webhooks/lago\r\n"),
    line("tabs in the request line", "POST\t/webhooks/lago\tHTTP/1.1\r\n"),
    line("space in the target", "POST /webhooks /lago HTTP/1.1\r\n"),
    line("request line ended by LF", "POST /webhooks/lago HTTP/1.1\n"),
    line("NUL in the target", "POST /webhooks/lago\0 HTTP/1.1\r\n"),
    line("CR in the target", "POST /webhooks/la\rgo HTTP/1.1\r\n"),
    line("no method", " /webhooks/lago HTTP/1.1\r\n"),
    line("a colon in the method", "PO:ST /webhooks/lago HTTP/1.1\r\n"),
];

/// Paths that are nearly the right one. They are refused, not normalised; the connection may stay.
const TARGETS: &[&str] = &[
    "http://daemon/webhooks/lago",
    "http://other/webhooks/lago",
    "//webhooks/lago",
    "/webhooks//lago",
    "/webhooks/../webhooks/lago",
    "/webhooks/./lago",
    "/webhooks/lago/",
    "/webhooks/lago/..",
    "/webhooks/lago/a/b",
    "/webhooks/lago%00",
    "/webhooks%2flago",
    "/%77ebhooks/lago",
    "/webhooks/%252e%252e/lago",
    "/WEBHOOKS/LAGO",
    "/webhooks/lago;a=b",
    "/webhooks\\lago",
    "/webhooks/lago/default",
    "/api/v1/events",
    "/metrics",
    "/",
    "*",
];

/// T9 and T16.
pub(crate) async fn no_second_request_is_hidden_in_a_first(_: Trial) -> Result<Outcome> {
    none_is_hidden(Rig::started(Mode::Hmac, &[]).await?).await
}

/// The same for any daemon that takes webhooks.
pub(crate) async fn none_is_hidden(rig: Rig) -> Result<Outcome> {
    let mut wrong = Vec::new();
    for case in CASES {
        if let Err(error) = judge(&rig, case).await {
            wrong.push(format!("{}: {error:#}", case.what));
        }
        ensure!(rig.taken().await? == 0, "{}: a hidden request was taken", case.what);
    }
    // Authentik's own path may end with a slash: it would follow a redirect with a GET.
    let taken = format!("{}/", rig.path());
    let is_forwarder = rig.path() != "/webhooks/lago";
    for target in TARGETS.iter().filter(|target| !is_forwarder || rig.as_own(target) != taken) {
        if let Err(error) = misses(&rig, target).await {
            wrong.push(format!("{target}: {error:#}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(rig.taken().await? == 0, "something was taken");
    // The same bytes in their right form are.
    let answer = rig.post("hidden", BODY).await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    Ok(Outcome::new(CASES.len() + TARGETS.len(), "400 and closed, or 404"))
}

/// A genuine webhook as it would stand on the wire.
fn genuine(rig: &Rig, line: &str, headers: &str, body: Option<&str>) -> Result<String> {
    let (own, proof) = rig.genuine("hidden", BODY)?;
    let headers = headers.replace("{n}", &own.len().to_string());
    Ok(format!("{}{headers}{proof}\r\n{}", rig.as_own(line), body.unwrap_or(&own)))
}

async fn judge(rig: &Rig, case: &Case) -> Result<()> {
    let first = genuine(rig, case.line, case.headers, case.body)?;
    let hidden = genuine(rig, LINE, &format!("{HOST}Content-Length: {{n}}\r\n"), None)?;
    let mut connection = RawConnection::open(rig.public).await?;
    let answer = connection.exchange((first + &hidden).as_bytes(), REQUEST_DEADLINE).await;
    match answer {
        Ok(answer) => {
            ensure!((400..=505).contains(&answer.status), "answered {} {}", answer.status, answer.text());
            ensure!(!answer.keep_alive, "answered {}, and the connection is kept", answer.status);
            // A second answer would be the hidden request's.
            let second = connection.read_response(CLOSE_DEADLINE).await;
            ensure!(
                matches!(second, Err(RawError::Closed { .. } | RawError::Reset { .. })),
                "the connection goes on after {}: {second:?}",
                answer.status
            );
        }
        // Not worth an answer.
        Err(RawError::Closed { received } | RawError::Reset { received }) if received.is_empty() => {}
        Err(error) => return Err(error).context("no answer and no close"),
    }
    Ok(())
}

async fn misses(rig: &Rig, target: &str) -> Result<()> {
    let line = format!("POST {target} HTTP/1.1\r\n");
    let request = genuine(rig, &line, &format!("{HOST}Content-Length: {{n}}\r\n"), None)?;
    let answer = kit_workbench::raw::exchange(rig.public, request.as_bytes(), REQUEST_DEADLINE).await?;
    // 401 for what looks like an organisation: whether there is one is nobody's business.
    ensure!(matches!(answer.status, 400 | 401 | 404), "answered {} {}", answer.status, answer.text());
    Ok(())
}
