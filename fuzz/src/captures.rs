//! The requests that were recorded off the wire of a Ruby sender, from kit-lago's fixtures.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// The public key of the `jwt` recordings. Nobody has the private one.
pub(crate) const PUBLIC_KEY: &str = include_str!("../../sidecars/kit-lago/tests/fixtures/captures/lago-jwt-public.pem");
/// The HMAC key of the `hmac` recordings.
pub(crate) const HMAC_KEY: &str = "0f0e0d0c-0b0a-4908-8706-050403020100";
/// The issuer of the `jwt` recordings.
pub(crate) const ISSUER: &str = "http://lago-api:3000";

/// What is signed, and how.
pub(crate) struct Recorded {
    pub(crate) signature: String,
    pub(crate) body: Vec<u8>,
}

/// The recordings with a token.
pub(crate) static JWT: LazyLock<Vec<Recorded>> =
    LazyLock::new(|| read(include_str!("../../sidecars/kit-lago/tests/fixtures/captures/lago-jwt.jsonl")));
/// The recordings with an HMAC.
pub(crate) static HMAC: LazyLock<Vec<Recorded>> =
    LazyLock::new(|| read(include_str!("../../sidecars/kit-lago/tests/fixtures/captures/lago-hmac.jsonl")));

fn read(lines: &str) -> Vec<Recorded> {
    lines.lines().map(recorded).collect()
}

fn recorded(line: &str) -> Recorded {
    let line: Value = serde_json::from_str(line).expect("the fixture is JSON");
    let headers = line["headers"].as_array().expect("the fixture has headers");
    let signature = headers.iter().find(|pair| pair[0] == "X-Lago-Signature").and_then(|pair| pair[1].as_str());
    Recorded {
        signature: signature.expect("the fixture is signed").to_owned(),
        body: STANDARD.decode(line["body_base64"].as_str().unwrap_or_default()).expect("the fixture is Base64"),
    }
}
