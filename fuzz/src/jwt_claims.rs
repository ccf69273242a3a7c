//! Tokens with a valid signature over anything: the first line is the token's header, the second its
//! claims, the rest the request's body. What stands behind the signature check is reached no other way.
//!
//! Promise: a token is accepted only when its header names RS256 and demands nothing, and its claims
//! are the body and, where one is configured, the issuer.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kit_lago::signature::{RsaKeys, RsaSigner, sign_jwt};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::captures::ISSUER;
use crate::parts::first_line;

static SIGNER: LazyLock<RsaSigner> = LazyLock::new(|| RsaSigner::generate().expect("a key can be made"));
static VERIFIER: LazyLock<RsaKeys> =
    LazyLock::new(|| RsaKeys::new(vec![SIGNER.public_key()]).expect("one key is not too many"));

/// Signs the token and verifies it against the body.
///
/// # Panics
/// It is accepted and is not what Lago writes.
pub fn target(data: &[u8]) {
    let (header, rest) = first_line(data);
    let (claims, body) = first_line(rest);
    let mut token = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = SIGNER.sign(token.as_bytes()).expect("the key signs");
    token = format!("{token}.{}", URL_SAFE_NO_PAD.encode(signature));

    let strict = VERIFIER.verify(Some(token.as_bytes()), body, Some(ISSUER));
    let open = VERIFIER.verify(Some(token.as_bytes()), body, None);
    let (header, claims) = (object(header), object(claims));
    let named = |object: &Object, name: &str| object.get(name).and_then(|value| serde_json::from_str(value.get()).ok());
    if open.is_ok() {
        assert_eq!(named(&header, "alg"), Some(Value::from("RS256")));
        assert!(!header.contains_key("crit"));
        assert_eq!(named(&claims, "data").as_ref().and_then(Value::as_str).map(str::as_bytes), Some(body));
        assert!(matches!(named(&claims, "iss"), None | Some(Value::Null | Value::String(_))));
    }
    if strict.is_ok() {
        assert!(open.is_ok(), "an issuer is configured and more is accepted");
        assert_eq!(named(&claims, "iss"), Some(Value::from(ISSUER)));
    }
    genuine(body);
}

type Object = BTreeMap<String, Box<RawValue>>;

/// One level of an object: what nobody looks at may be nested at will, and need not be UTF-8.
fn object(text: &[u8]) -> Object {
    serde_json::from_str(&String::from_utf8_lossy(text)).unwrap_or_default()
}

/// What Lago signs is accepted, whatever the body is.
fn genuine(body: &[u8]) {
    // A claim is a text; Lago's bodies always are.
    let Ok(text) = std::str::from_utf8(body) else { return };
    let token = sign_jwt(&SIGNER, text, ISSUER).expect("the key signs");
    assert_eq!(VERIFIER.verify(Some(token.as_bytes()), body, Some(ISSUER)), Ok(()));
}
