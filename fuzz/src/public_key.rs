//! Lago's public key as an operator or Lago gives it. The first byte chooses the form of the rest:
//! `d` and `p` DER within a PEM block (SPKI, PKCS#1), `a` the DER as Lago's API answers, `b` the text
//! of such an answer, anything else a key file as it is.
//!
//! Promise: what is taken is an RSA key of a size that may be used, survives being written, and an
//! error shows nothing of what it was given.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kit_lago::public_key::decode_public_key_answer;
use kit_lago::signature::{KeyError, MAX_RSA_KEYS, RsaKey, RsaKeys};

/// Reads the key or keys.
///
/// # Panics
/// A key is taken that must not be.
pub fn target(data: &[u8]) {
    let (form, rest) = data.split_first().map_or((b't', data), |(form, rest)| (*form, rest));
    match form {
        b'd' => file(&block("PUBLIC KEY", rest)),
        b'p' => file(&block("RSA PUBLIC KEY", rest)),
        b'a' => answer(&STANDARD.encode(block("PUBLIC KEY", rest))),
        b'b' => answer(&String::from_utf8_lossy(rest)),
        _ => file(&String::from_utf8_lossy(rest)),
    }
}

fn block(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

fn file(text: &str) {
    match RsaKeys::from_pem(text) {
        Ok(keys) => {
            assert!((1..=MAX_RSA_KEYS).contains(&keys.keys().len()));
            keys.keys().iter().for_each(usable);
            assert_eq!(RsaKey::from_pem(text).is_ok(), keys.keys().len() == 1);
        }
        Err(error) => explained(&error),
    }
}

fn answer(text: &str) {
    if let Ok(pem) = decode_public_key_answer(text) {
        usable(&RsaKey::from_pem(&pem).expect("it was checked"));
    }
}

fn usable(key: &RsaKey) {
    assert!((2048..=8192).contains(&key.bits()), "{} bits", key.bits());
    let again = RsaKey::from_pem(&key.to_pem()).expect("what was written can be read");
    assert_eq!((&again, again.fingerprint(), again.bits()), (key, key.fingerprint(), key.bits()));
    assert_eq!(key.fingerprint().len(), 64);
}

fn explained(error: &KeyError) {
    let text = error.to_string();
    assert!(text.len() < 200 && !text.contains(char::is_control), "{text:?}");
}
