//! `X-Lago-Signature` under `hmac`: the first line is the header, the rest the body.
//!
//! Promise: a header is accepted exactly when it is the one spelling of a configured key's signature.

use std::sync::LazyLock;

use kit::secret::Secret;
use kit_lago::signature::{HmacKeys, sign_hmac};

use crate::captures::HMAC_KEY;
use crate::parts::first_line;

const KEYS: [&str; 2] = [HMAC_KEY, "the key before"];

static VERIFIER: LazyLock<HmacKeys> =
    LazyLock::new(|| HmacKeys::new(keys().to_vec()).expect("two keys that are not empty are taken"));

fn keys() -> [Secret; 2] {
    KEYS.map(|key| Secret::from(key.to_owned()))
}

/// Verifies the header against the body, and genuine headers as well.
///
/// # Panics
/// A forged header is accepted, or a genuine one is not.
pub fn target(data: &[u8]) {
    let (header, body) = first_line(data);
    let genuine = keys().map(|key| sign_hmac(&key, body));

    let accepted = VERIFIER.verify(Some(header), body);
    let is_genuine = genuine.iter().any(|signature| signature.as_bytes() == header);
    assert_eq!(accepted.is_ok(), is_genuine, "{accepted:?}");
    if let Err(rejected) = accepted {
        assert!(rejected.to_string().len() < 200 && !rejected.reason().is_empty(), "{rejected:?}");
    }
    assert!(VERIFIER.verify(None, body).is_err());
    for signature in &genuine {
        assert!(VERIFIER.verify(Some(signature.as_bytes()), body).is_ok(), "a genuine signature is refused");
    }
}
