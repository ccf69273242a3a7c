//! T3's key files: what an operator might put where Lago's public key belongs.

use kit_lago::signature::{KeyError, RsaKey, RsaKeys, RsaSigner};

use crate::support::{fixture, lago};

fn refusal(text: &str) -> KeyError {
    RsaKeys::from_pem(text).unwrap_err()
}

#[test]
fn every_usable_key_file_is_read_in_either_form() {
    let spki = RsaKey::from_pem(&fixture("keys/rsa-2048.pem")).unwrap();
    let pkcs1 = RsaKey::from_pem(&fixture("keys/rsa-2048-pkcs1.pem")).unwrap();

    assert_eq!(spki, pkcs1);
    assert_eq!(spki.bits(), 2048);
    assert_eq!(spki.to_pem(), fixture("keys/rsa-2048.pem"));
    assert_eq!(pkcs1.to_pem(), fixture("keys/rsa-2048.pem"));
    assert_eq!(RsaKey::from_pem(&fixture("keys/rsa-exponent-3.pem")).unwrap().bits(), 2048);
    assert_eq!(RsaKey::from_pem(&fixture("captures/lago-jwt-public.pem")).unwrap().bits(), 2048);
}

#[test]
fn a_key_file_survives_how_files_get_around() {
    let plain = fixture("keys/rsa-2048.pem");
    let key = RsaKey::from_pem(&plain).unwrap();
    for text in [
        plain.replace('\n', "\r\n"),
        format!("\u{feff}{plain}"),
        format!("\n\n{}\n\n", plain.trim()),
        format!("# the key of production\n{plain}"),
    ] {
        assert_eq!(RsaKey::from_pem(&text).as_ref(), Ok(&key), "{text}");
    }
}

/// Twelve kinds of file that are not a usable key, and what is said about each.
#[test]
fn every_other_key_file_is_refused_by_name() {
    let private = lago().private_pem().unwrap();
    let private_pkcs1 = private.expose().replace("PRIVATE KEY", "RSA PRIVATE KEY");
    let valid = fixture("keys/rsa-2048.pem");
    for (what, text, expected) in [
        ("1024 bits", fixture("keys/rsa-1024.pem"), KeyError::TooShort { bits: 1024 }),
        ("9216 bits", fixture("keys/rsa-9216.pem"), KeyError::TooLong { bits: 9216 }),
        ("exponent 1", fixture("keys/rsa-exponent-1.pem"), KeyError::Unusable),
        ("even exponent", fixture("keys/rsa-exponent-even.pem"), KeyError::Unusable),
        ("huge exponent", fixture("keys/rsa-exponent-huge.pem"), KeyError::Unusable),
        ("even modulus", fixture("keys/rsa-modulus-even.pem"), KeyError::Unusable),
        ("elliptic curve", fixture("keys/ec-p256.pem"), KeyError::NotRsa { found: "an elliptic-curve key" }),
        ("Ed25519", fixture("keys/ed25519.pem"), KeyError::NotRsa { found: "an Ed25519 key" }),
        ("RSA-PSS", fixture("keys/rsa-pss.pem"), KeyError::NotRsa { found: "an RSA-PSS key" }),
        ("certificate", fixture("keys/certificate.pem"), KeyError::Certificate),
        ("OpenSSH", fixture("keys/openssh.pub"), KeyError::OpenSsh),
        ("private", private.expose().to_owned(), KeyError::PrivateKey),
        ("private, PKCS#1", private_pkcs1, KeyError::PrivateKey),
        ("encrypted", valid.replace("PUBLIC", "ENCRYPTED PRIVATE"), KeyError::PrivateKey),
        (
            "parameters",
            valid.replace("PUBLIC KEY", "DH PARAMETERS"),
            KeyError::OtherLabel { label: "DH PARAMETERS".to_owned() },
        ),
        ("Base64 of PEM", kit_lago::stand_in::encode_public_key_answer(&valid), KeyError::Base64OfPem),
        ("JWK", r#"{"kty":"RSA","n":"AQAB","e":"AQAB"}"#.to_owned(), KeyError::JsonWebKey),
        ("nothing", String::new(), KeyError::None),
        ("blank lines", " \n\r\n".to_owned(), KeyError::None),
        ("text", "change-me".to_owned(), KeyError::NotPem),
        ("cut off", valid[..valid.len() - 30].to_owned(), KeyError::BrokenPem),
        ("second cut off", format!("{valid}{}", &valid[..100]), KeyError::BrokenPem),
        ("garbled", valid.replace("MIIB", "M*IB"), KeyError::BrokenPem),
        ("labels differ", valid.replace("END PUBLIC", "END PRIVATE"), KeyError::BrokenPem),
        ("empty block", "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n".to_owned(), KeyError::Unusable),
        ("huge", valid.repeat(300), KeyError::NotPem),
    ] {
        let error = RsaKeys::from_pem(&text).expect_err(what);
        assert_eq!(error, expected, "{what}: {error}");
        assert!(!error.to_string().contains("MII"), "{what}: {error}");
    }
}

/// No prefix, suffix or changed byte of a key file brings the parser down or yields another key.
#[test]
fn a_damaged_key_file_never_yields_a_weak_key() {
    let plain = fixture("keys/rsa-2048.pem");
    for at in 0..plain.len() {
        let _cut = RsaKeys::from_pem(&plain[..at]);
        let _rest = RsaKeys::from_pem(&plain[at..]);
        let mut changed = plain.clone().into_bytes();
        changed[at] ^= 1;
        if let Ok(keys) = RsaKeys::from_pem(&String::from_utf8(changed).unwrap()) {
            assert!(keys.keys().iter().all(|key| key.bits() >= 2047 && key.bits() <= 2048));
        }
    }
}

#[test]
fn several_keys_may_stand_in_one_file_up_to_four() {
    let one = fixture("keys/rsa-2048.pem");
    let other = lago().public_pem();

    let two = RsaKeys::from_pem(&format!("{one}\n{other}")).unwrap();

    assert_eq!(two.keys().len(), 2);
    assert_eq!(two.keys()[1], lago().public_key());
    assert_eq!(RsaKeys::from_pem(&one.repeat(4)).unwrap().keys().len(), 4);
    assert_eq!(refusal(&one.repeat(5)), KeyError::TooMany { found: 5, limit: 4 });
    assert_eq!(RsaKey::from_pem(&one.repeat(2)), Err(KeyError::TooMany { found: 2, limit: 1 }));
    assert_eq!(
        refusal(&format!("{one}{}", fixture("keys/ec-p256.pem"))),
        KeyError::NotRsa { found: "an elliptic-curve key" }
    );
}

#[test]
fn a_private_key_is_read_in_either_form_and_never_printed() {
    let pem = lago().private_pem().unwrap();

    let again = RsaSigner::from_pem(pem.expose()).unwrap();

    assert_eq!(again.public_pem(), lago().public_pem());
    assert!(!format!("{again:?} {:?}", lago()).contains("PRIVATE"));
    for wrong in ["", "junk", &lago().public_pem(), &fixture("keys/certificate.pem")] {
        assert!(RsaSigner::from_pem(wrong).is_err());
    }
}

#[test]
fn a_fingerprint_is_what_openssl_gives() {
    // openssl pkey -pubin -in rsa-2048.pem -outform DER | sha256sum
    let key = RsaKey::from_pem(&fixture("keys/rsa-2048.pem")).unwrap();

    assert_eq!(key.fingerprint(), "732b9d95a6018f2907eb174f794c1a8deb44a024e4b6035dd95df3bf7bf24b65");
    assert_eq!(format!("{key:?}"), format!("RsaKey(2048 bits, {})", key.fingerprint()));
}
