//! T1 for HMAC: shapes of the header, keys during rotation.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
use kit_lago::signature::{HmacKeys, KeyError, Rejected, sign_hmac};

use crate::support::secret;

const BODY: &[u8] = b"{\"webhook_type\":\"invoice.created\"}";

fn keys(texts: &[&str]) -> HmacKeys {
    HmacKeys::new(texts.iter().map(|text| secret(text)).collect()).unwrap()
}

#[test]
fn the_signature_equals_that_of_an_independent_implementation() {
    // printf '%s' '{"webhook_type":"invoice.created"}' | openssl dgst -sha256 -hmac KEY -binary | base64
    let key = secret("0f0e0d0c-0b0a-4908-8706-050403020100");

    assert_eq!(sign_hmac(&key, BODY), OPENSSL_ANSWER);
}

const OPENSSL_ANSWER: &str = "RigAwo7pJZNr/ek5pVMFf3ILkw+Qjv1RSvvdS4US024=";

#[test]
fn any_of_the_keys_that_are_valid_during_rotation_is_enough() {
    let old = sign_hmac(&secret("old"), BODY);
    let new = sign_hmac(&secret("new"), BODY);
    let both = keys(&["new", "old"]);

    assert_eq!(both.verify(Some(old.as_bytes()), BODY), Ok(()));
    assert_eq!(both.verify(Some(new.as_bytes()), BODY), Ok(()));
    assert_eq!(keys(&["new"]).verify(Some(old.as_bytes()), BODY), Err(Rejected::Mismatch));
    assert_eq!(keys(&["new", "new"]).verify(Some(new.as_bytes()), BODY), Ok(()), "one line may stand there twice");
}

#[test]
fn one_digest_has_one_spelling() {
    let keys = keys(&["key"]);
    let genuine = sign_hmac(&secret("key"), BODY);
    let digest = STANDARD.decode(&genuine).unwrap();
    let loose_bits = {
        // The last character before the padding carries two unused bits.
        let mut text = genuine.clone().into_bytes();
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let index = alphabet.iter().position(|c| *c == text[42]).unwrap();
        text[42] = alphabet[index | 1];
        text
    };

    for wrong in [
        STANDARD_NO_PAD.encode(&digest).into_bytes(),
        loose_bits,
        format!(" {genuine}").into_bytes(),
        format!("{genuine} ").into_bytes(),
        format!("{genuine}\n").into_bytes(),
        format!("{genuine}=").into_bytes(),
        format!("sha256={genuine}").into_bytes(),
        format!("\"{genuine}\"").into_bytes(),
        [genuine.as_bytes(), b"\0"].concat(),
        genuine.replace('=', "%3D").into_bytes(),
        b"\xff\xfe".to_vec(),
        "é".repeat(22).into_bytes(),
    ] {
        let shown = String::from_utf8_lossy(&wrong).into_owned();
        assert_eq!(keys.verify(Some(&wrong), BODY), Err(Rejected::NotBase64), "{shown}");
    }
}

#[test]
fn the_url_alphabet_is_another_spelling_too() {
    let keys = keys(&["key"]);
    let body = (0..1_000u32)
        .map(|number| number.to_string().into_bytes())
        .find(|body| sign_hmac(&secret("key"), body).contains(['+', '/']))
        .unwrap();
    let digest = STANDARD.decode(sign_hmac(&secret("key"), &body)).unwrap();

    let url_safe = URL_SAFE.encode(digest);

    assert_eq!(keys.verify(Some(url_safe.as_bytes()), &body), Err(Rejected::NotBase64));
}

#[test]
fn a_digest_of_another_length_is_refused_before_any_comparison() {
    let keys = keys(&["key"]);
    let full = STANDARD.decode(sign_hmac(&secret("key"), BODY)).unwrap();

    for length in [1, 16, 20, 31] {
        let short = STANDARD.encode(&full[..length]);
        let rejected = Err(Rejected::WrongLength { found: length });
        assert_eq!(keys.verify(Some(short.as_bytes()), BODY), rejected);
    }
    let long = STANDARD.encode([&full[..], &full[..]].concat());
    assert_eq!(keys.verify(Some(long.as_bytes()), BODY), Err(Rejected::WrongLength { found: 64 }));
    let huge = vec![b'A'; 8 << 20];
    let rejected = Err(Rejected::WrongLength { found: huge.len() });
    assert_eq!(keys.verify(Some(&huge), BODY), rejected);
}

#[test]
fn a_missing_header_and_a_token_are_named() {
    let keys = keys(&["key"]);

    assert_eq!(keys.verify(None, BODY), Err(Rejected::MissingHeader));
    assert_eq!(keys.verify(Some(b""), BODY), Err(Rejected::MissingHeader));
    assert_eq!(keys.verify(Some(b"eyJhbGciOiJSUzI1NiJ9.e30.c2ln"), BODY), Err(Rejected::IsToken));
}

#[test]
fn the_body_counts_to_its_last_byte() {
    let keys = keys(&["key"]);
    let signature = sign_hmac(&secret("key"), BODY);

    for other in [&BODY[..BODY.len() - 1], &[BODY, b"\n"].concat(), b""] {
        assert_eq!(keys.verify(Some(signature.as_bytes()), other), Err(Rejected::Mismatch));
    }
    let empty = sign_hmac(&secret("key"), b"");
    assert_eq!(keys.verify(Some(empty.as_bytes()), b""), Ok(()));
}

#[test]
fn a_key_is_taken_as_the_text_it_is() {
    let signature = sign_hmac(&secret("KEY"), BODY);

    for other in ["key", " KEY", "KEY\n", "KEY\r", "\u{feff}KEY"] {
        assert!(keys(&[other]).verify(Some(signature.as_bytes()), BODY).is_err(), "{other:?}");
    }
}

#[test]
fn the_number_of_keys_is_bounded_and_none_may_be_empty() {
    let many = |count: usize| (0..count).map(|n| secret(&format!("key {n}"))).collect::<Vec<_>>();

    assert_eq!(HmacKeys::new(vec![]).unwrap_err(), KeyError::None);
    assert_eq!(HmacKeys::new(vec![secret("a"), secret("")]).unwrap_err(), KeyError::EmptyHmac);
    assert!(HmacKeys::new(many(8)).is_ok());
    assert_eq!(HmacKeys::new(many(9)).unwrap_err(), KeyError::TooMany { found: 9, limit: 8 });
    assert_eq!(keys(&["longer key", "key"]).shortest_bytes(), 3);
}

#[test]
fn keys_do_not_print_themselves() {
    let printed = format!("{:?}", keys(&["hunter2"]));

    assert!(!printed.contains("hunter2"), "{printed}");
}
