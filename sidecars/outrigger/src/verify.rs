//! `verify`: which step of the check fails, and what usually causes that.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use kit::secret::Secret;
use kit_lago::signature::{Algorithm, HmacKeys, Rejected, RsaKeys, rails_json_escape};
use serde::{Deserialize, Serialize};

use crate::keys::hmac_keys;
use crate::output::{self, say};

#[derive(Debug, Args)]
#[command(after_help = "Example: outrigger verify request.txt --hmac-key-file key\n\
                        Example: outrigger verify body.json --signature 'bynv1s…3u8=' --hmac-key-file key")]
pub(crate) struct Arguments {
    /// A captured request: lines of JSON with `headers` and `body_base64`, or the request as it went
    /// over the wire; or only the body, with --signature.
    file: PathBuf,
    /// Value of X-Lago-Signature, where FILE is only the body.
    #[arg(long)]
    signature: Option<String>,
    /// File with HMAC keys; or set LAGO_WEBHOOK_HMAC_KEY.
    #[arg(long, value_name = "FILE")]
    hmac_key_file: Option<PathBuf>,
    /// File with Lago's public key in PEM.
    #[arg(long, env = "LAGO_WEBHOOK_PUBLIC_KEY_FILE", value_name = "FILE")]
    public_key_file: Option<PathBuf>,
    /// Issuer that the JWT must have.
    #[arg(long)]
    issuer: Option<String>,
}

#[derive(Debug)]
struct Captured {
    signature: Option<Vec<u8>>,
    body: Vec<u8>,
}

#[derive(Serialize)]
struct Verdict {
    request: usize,
    algorithm: &'static str,
    ok: bool,
    failed_at: Option<&'static str>,
    error: Option<String>,
    hint: Option<&'static str>,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> anyhow::Result<ExitCode> {
    let bytes = std::fs::read(&arguments.file).with_context(|| format!("read {}", arguments.file.display()))?;
    let requests = match &arguments.signature {
        Some(signature) => vec![Captured { signature: Some(signature.trim().as_bytes().to_vec()), body: bytes }],
        None => captured(&bytes).with_context(|| format!("understand {}", arguments.file.display()))?,
    };
    let hmac = hmac_keys(arguments.hmac_key_file.as_deref())?;
    let rsa = match &arguments.public_key_file {
        Some(file) => {
            let pem = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
            Some(RsaKeys::from_pem(&pem).with_context(|| format!("use {}", file.display()))?)
        }
        None => None,
    };
    let keys = Keys::new(hmac, rsa)?;
    let mut all_ok = true;
    for (nth, request) in requests.iter().enumerate() {
        let verdict = keys.judge(nth + 1, request, arguments.issuer.as_deref())?;
        all_ok &= verdict.ok;
        if json {
            output::json_line(&verdict)?;
        } else if verdict.ok {
            say!("request {}: the signature is good ({})", verdict.request, verdict.algorithm);
        } else {
            say!("request {}: {}", verdict.request, verdict.error.as_deref().unwrap_or_default());
            if let Some(hint) = verdict.hint {
                say!("  {hint}");
            }
        }
    }
    Ok(if all_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Keys {
    hmac: Option<HmacKeys>,
    /// The same without white space around them, where that makes a difference.
    trimmed: Option<HmacKeys>,
    rsa: Option<RsaKeys>,
}

impl Keys {
    fn new(hmac: Vec<Secret>, rsa: Option<RsaKeys>) -> anyhow::Result<Self> {
        let trimmed: Vec<Secret> = hmac.iter().map(|key| Secret::from(key.expose().trim().to_owned())).collect();
        let usable = |keys: Vec<Secret>| (!keys.is_empty()).then(|| HmacKeys::new(keys)).transpose();
        let differ = trimmed.iter().zip(&hmac).any(|(trimmed, key)| trimmed.expose().len() < key.expose().len());
        Ok(Self { trimmed: if differ { usable(trimmed)? } else { None }, hmac: usable(hmac)?, rsa })
    }

    fn judge(&self, request: usize, captured: &Captured, issuer: Option<&str>) -> anyhow::Result<Verdict> {
        let signature = captured.signature.as_deref();
        let looks_like_token = signature.is_some_and(|s| s.iter().filter(|b| **b == b'.').count() == 2);
        let (algorithm, result) = match (&self.hmac, &self.rsa) {
            (Some(_), Some(rsa)) if looks_like_token => (Algorithm::Jwt, rsa.verify(signature, &captured.body, issuer)),
            (Some(hmac), _) => (Algorithm::Hmac, hmac.verify(signature, &captured.body)),
            (None, Some(rsa)) => (Algorithm::Jwt, rsa.verify(signature, &captured.body, issuer)),
            (None, None) => bail!("no key: set LAGO_WEBHOOK_HMAC_KEY, or give --hmac-key-file or --public-key-file"),
        };
        let rejected = result.err();
        Ok(Verdict {
            request,
            algorithm: algorithm.as_str(),
            ok: rejected.is_none(),
            failed_at: rejected.as_ref().map(Rejected::reason),
            hint: rejected
                .as_ref()
                .and_then(|rejected| self.cause(rejected, captured).or_else(|| hint(rejected, &captured.body))),
            error: rejected.map(|rejected| rejected.to_string()),
        })
    }
}

impl Keys {
    /// What causes this for certain: with that undone, the signature is good.
    fn cause(&self, rejected: &Rejected, captured: &Captured) -> Option<&'static str> {
        if !matches!(rejected, Rejected::Mismatch | Rejected::DataDiffers { .. }) {
            return None;
        }
        let signature = captured.signature.as_deref();
        // Whichever of the two the signature is for, so that the issuer does not matter here.
        let good = |body: &[u8]| {
            self.hmac.as_ref().is_some_and(|keys| keys.verify(signature, body).is_ok())
                || self.rsa.as_ref().is_some_and(|keys| keys.verify(signature, body, None).is_ok())
        };
        let trimmed = captured.body.trim_ascii();
        let compact = compact(trimmed);
        if good(trimmed) {
            Some("the body ends with white space: an editor or a proxy added it, without it the signature is good")
        } else if good(&compact) {
            Some(
                "the body has spaces between its members: something parsed it and wrote it again, \
                 without them the signature is good",
            )
        } else if std::str::from_utf8(&compact).is_ok_and(|text| good(rails_json_escape(text).as_bytes())) {
            Some(
                "something parsed the body and wrote it again: Lago writes <, > and & as \\u003c, \\u003e and \\u0026, \
                 with that the signature is good",
            )
        } else if self.trimmed.as_ref().is_some_and(|keys| keys.verify(signature, &captured.body).is_ok()) {
            Some("the key has white space around it: without that the signature is good")
        } else {
            None
        }
    }
}

/// A JSON text without white space between its tokens.
fn compact(json: &[u8]) -> Vec<u8> {
    let (mut in_string, mut escaped) = (false, false);
    let keep = |byte: &u8| {
        let kept = in_string || !byte.is_ascii_whitespace();
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            _ => {}
        }
        kept
    };
    json.iter().copied().filter(keep).collect()
}

/// What usually causes this.
fn hint(rejected: &Rejected, body: &[u8]) -> Option<&'static str> {
    Some(match rejected {
        // Not for certain what was changed besides, but that something was.
        Rejected::Mismatch | Rejected::DataDiffers { .. } if compact(body).len() < body.len() => {
            "the body has spaces between its members: something parsed it and wrote it again, Lago writes none"
        }
        Rejected::Mismatch => {
            "either the key is another organisation's (Lago's UI, Developers, Webhooks), or the body was changed on its way"
        }
        Rejected::DataDiffers { .. } => "the token is Lago's but for another body: it was changed on its way",
        Rejected::BadSignature => {
            "the public key is another instance's, or Lago has a new one: fetch it again from /api/v1/webhooks/json_public_key"
        }
        Rejected::IsToken => "set the endpoint to hmac in Lago, or SIDECAR_LAGO__SIGNATURE=jwt here",
        Rejected::IsHmac => "set the endpoint to jwt in Lago, or SIDECAR_LAGO__SIGNATURE=hmac here",
        Rejected::MissingHeader => {
            "a proxy may have dropped it: long headers (a JWT is 1.5 times the body) are cut by many"
        }
        Rejected::NotBase64 | Rejected::WrongLength { .. } | Rejected::MalformedToken(_) => {
            "the header was cut or changed on its way, or it is not Lago's"
        }
        Rejected::IssuerMismatch => "the issuer is the LAGO_API_URL of Lago's worker, not of its api",
        _ => return None,
    })
}

fn captured(bytes: &[u8]) -> anyhow::Result<Vec<Captured>> {
    if bytes.starts_with(b"{") {
        return recorded(bytes);
    }
    let head = bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|at| (at, at + 4));
    let head = head.or_else(|| bytes.windows(2).position(|w| w == b"\n\n").map(|at| (at, at + 2)));
    let Some((end, body)) = head else { bail!("no empty line ends the head; give --signature for a body alone") };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let headers: Vec<(String, String)> = head
        .lines()
        .filter_map(|line| line.split_once(':').map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())))
        .collect();
    let is_chunked = |(name, value): &(String, String)| {
        name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked")
    };
    let body = match headers.iter().any(is_chunked) {
        true => unchunked(&bytes[body..]).context("the body is not in chunks as Transfer-Encoding says")?,
        false => bytes[body..].to_vec(),
    };
    Ok(vec![Captured { signature: only_signature(headers)?, body }])
}

/// The one signature. Several are none to the daemon, because nobody can say which of them somebody else looked at.
fn only_signature(headers: Vec<(String, String)>) -> anyhow::Result<Option<Vec<u8>>> {
    let mut all = headers.into_iter().filter(|(name, _)| name.eq_ignore_ascii_case("x-lago-signature"));
    let (first, further) = (all.next(), all.count());
    if further > 0 {
        bail!(
            "X-Lago-Signature is there {} times, and the daemon takes that for none (missing_header): a proxy doubles it",
            further + 1
        );
    }
    Ok(first.map(|(_, value)| value.into_bytes()))
}

/// The body that these chunks carry; `None` where they are none.
fn unchunked(mut wire: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = wire.windows(2).position(|w| w == b"\r\n")?;
        let line = std::str::from_utf8(&wire[..end]).ok()?;
        let size = usize::from_str_radix(line.split(';').next()?.trim(), 16).ok()?;
        wire = &wire[end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(wire.get(..size)?);
        wire = wire.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

fn recorded(bytes: &[u8]) -> anyhow::Result<Vec<Captured>> {
    #[derive(Deserialize)]
    struct Line {
        headers: Vec<(String, String)>,
        body_base64: String,
    }
    let text = std::str::from_utf8(bytes)?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| {
            let line: Line = serde_json::from_str(line)
                .context("a line must hold `headers` and `body_base64`; give --signature for a body alone")?;
            Ok(Captured {
                signature: only_signature(line.headers)?,
                body: STANDARD.decode(line.body_base64).context("body_base64")?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_goes_between_tokens_and_stays_in_texts() {
        let check = |json: &str, expected: &str| assert_eq!(compact(json.as_bytes()), expected.as_bytes(), "{json}");

        check("{ \"a b\" : [ 1,\n 2 ] }", "{\"a b\":[1,2]}");
        check(r#"{"a": "say \" : \" twice"}"#, r#"{"a":"say \" : \" twice"}"#);
        check(r#"{"a": "ends with \\" , "b": 1}"#, r#"{"a":"ends with \\","b":1}"#);
        check("", "");
        check("not \"json", "not\"json");
    }

    #[test]
    fn two_signatures_are_said_to_be_none() {
        let error =
            captured(b"POST / HTTP/1.1\r\nX-Lago-Signature: a\r\nx-lago-signature: a\r\n\r\n{}").expect_err("two");
        assert!(error.to_string().contains("2 times"), "{error}");
        let recorded = br#"{"headers":[["X-Lago-Signature","a"],["X-Lago-Signature","b"]],"body_base64":""}"#;
        assert!(captured(recorded).is_err());
    }

    #[test]
    fn a_body_in_chunks_is_put_together() {
        let head = "POST / HTTP/1.1\r\nX-Lago-Signature: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let of = |body: &str| captured(format!("{head}{body}").as_bytes());

        let requests = of("3\r\n{\"a\r\n4;x=y\r\n\": 1\r\n1\r\n}\r\n0\r\n\r\n").expect("chunks");

        assert_eq!(requests[0].body, br#"{"a": 1}"#);
        for broken in ["{}", "5\r\n{}", "2\r\n{}0\r\n\r\n", "x\r\n{}\r\n0\r\n\r\n"] {
            assert!(of(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_request_is_understood_with_either_line_ending() {
        for end in ["\r\n", "\n"] {
            let dump = format!("POST / HTTP/1.1{end}X-LAGO-signature:  abc {end}{end}{{\n\n}}");
            let requests = captured(dump.as_bytes()).expect("it is a request");

            assert_eq!(requests.len(), 1);
            assert_eq!(requests[0].signature.as_deref(), Some(&b"abc"[..]));
            assert_eq!(requests[0].body, b"{\n\n}");
        }
    }
}
