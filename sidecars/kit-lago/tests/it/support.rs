//! What several subjects need: the recordings, keys, and a way to make tokens that Lago never would.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use kit::secret::Secret;
use kit_lago::signature::{HmacKeys, RsaKeys, RsaSigner};
use serde::Deserialize;

pub(crate) const CAPTURED_HMAC_KEY: &str = "0f0e0d0c-0b0a-4908-8706-050403020100";
pub(crate) const CAPTURED_ISSUER: &str = "http://lago-api:3000";

/// A recorded request.
#[derive(Debug)]
pub(crate) struct Capture {
    pub(crate) request_line: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Capture {
    pub(crate) fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        &found.unwrap_or_else(|| panic!("the recording has no {name}")).1
    }

    pub(crate) fn signature(&self) -> &[u8] {
        self.header("X-Lago-Signature").as_bytes()
    }
}

pub(crate) fn captures(algorithm: &str) -> Vec<Capture> {
    #[derive(Deserialize)]
    struct Line {
        request_line: String,
        headers: Vec<(String, String)>,
        body_base64: String,
    }
    fixture(&format!("captures/lago-{algorithm}.jsonl"))
        .lines()
        .map(|line| serde_json::from_str::<Line>(line).unwrap())
        .map(|line| Capture {
            request_line: line.request_line,
            headers: line.headers,
            body: STANDARD.decode(line.body_base64).unwrap(),
        })
        .collect()
}

pub(crate) fn fixture(path: &str) -> String {
    let full = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path);
    std::fs::read_to_string(&full).unwrap_or_else(|error| panic!("{}: {error}", full.display()))
}

pub(crate) fn captured_hmac_keys() -> HmacKeys {
    HmacKeys::new(vec![secret(CAPTURED_HMAC_KEY)]).unwrap()
}

pub(crate) fn captured_rsa_keys() -> RsaKeys {
    RsaKeys::from_pem(&fixture("captures/lago-jwt-public.pem")).unwrap()
}

pub(crate) fn secret(text: &str) -> Secret {
    Secret::from(text.to_owned())
}

/// Lago's key in tests that sign themselves.
pub(crate) fn lago() -> Arc<RsaSigner> {
    static SIGNER: OnceLock<Arc<RsaSigner>> = OnceLock::new();
    Arc::clone(SIGNER.get_or_init(|| Arc::new(RsaSigner::generate().unwrap())))
}

/// Somebody else's key.
pub(crate) fn attacker() -> Arc<RsaSigner> {
    static SIGNER: OnceLock<Arc<RsaSigner>> = OnceLock::new();
    Arc::clone(SIGNER.get_or_init(|| Arc::new(RsaSigner::generate().unwrap())))
}

pub(crate) fn keys_of(signer: &RsaSigner) -> RsaKeys {
    RsaKeys::new(vec![signer.public_key()]).unwrap()
}

pub(crate) fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A token with any header and claims, signed with RS256.
pub(crate) fn token(signer: &RsaSigner, header: &str, claims: &str) -> String {
    let message = format!("{}.{}", b64(header), b64(claims));
    let signature = signer.sign(message.as_bytes()).unwrap();
    format!("{message}.{}", b64(signature))
}

/// The claims Lago would make for a body.
pub(crate) fn claims(body: &str, issuer: &str) -> String {
    serde_json::to_string(&serde_json::json!({ "data": body, "iss": issuer })).unwrap()
}
