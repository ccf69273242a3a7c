//! Lago's private key in every form that people hand it over in, made by OpenSSL.

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kit_lago::signature::{LagoPrivateKey, PrivateKeyError, RsaSigner};

/// What OpenSSL prints.
fn openssl(arguments: &[&str], input: Option<&str>) -> String {
    use std::io::Write as _;
    use std::process::Stdio;
    let mut command = Command::new("openssl");
    let mut child = command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl is installed");
    child.stdin.take().unwrap().write_all(input.unwrap_or_default().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused(text: &str) -> PrivateKeyError {
    LagoPrivateKey::from_pem(text).unwrap_err()
}

#[test]
fn both_forms_of_a_pem_are_taken_and_are_the_same_key() {
    let pkcs8 = openssl(&["genrsa", "2048"], None);
    let pkcs1 = openssl(&["rsa", "-traditional"], Some(&pkcs8));

    let (one, other) = (LagoPrivateKey::from_pem(&pkcs8).unwrap(), LagoPrivateKey::from_pem(&pkcs1).unwrap());

    assert_eq!((one.form(), other.form()), ("PKCS#8", "PKCS#1"));
    assert_eq!(one.public_key(), other.public_key());
    assert_eq!(one.public_key().to_pem(), openssl(&["pkey", "-pubout"], Some(&pkcs8)));
    assert!(RsaSigner::from_pem(one.pem().expose()).is_ok());
}

#[test]
fn the_variable_is_read_as_lago_reads_it() {
    let pem = openssl(&["genrsa", "2048"], None);
    let key = LagoPrivateKey::from_pem(&pem).unwrap();
    let value = key.variable();
    assert!(!value.expose().contains(char::is_whitespace), "it survives an .env file");
    let lines = openssl(&["base64"], Some(&pem));
    for form in [
        value.expose().to_owned(),
        STANDARD.encode(&pem),
        lines,
        format!("\"{}\"", STANDARD.encode(&pem).trim_end_matches('=')),
    ] {
        assert_eq!(LagoPrivateKey::from_variable(&form).unwrap().public_key(), key.public_key());
    }
    let wrong = |value: &str| LagoPrivateKey::from_variable(value).unwrap_err();
    assert_eq!(wrong(&pem), PrivateKeyError::RawPem);
    assert!(wrong(&pem).to_string().contains("gets junk and does not start"));
    assert_eq!(wrong(" \n"), PrivateKeyError::Empty);
    assert_eq!(wrong("hello"), PrivateKeyError::NotPem);
    assert_eq!(wrong(&STANDARD.encode(STANDARD.encode(&pem))), PrivateKeyError::NotPem, "encoded twice");
    assert!(matches!(
        wrong(&STANDARD.encode(openssl(&["genrsa", "1024"], None))),
        PrivateKeyError::TooShort { bits: 1024 }
    ));
}

#[test]
fn what_is_no_usable_private_key_is_named_and_none_of_it_is_shown() {
    let pem = openssl(&["genrsa", "2048"], None);
    let ec = openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout"], None);
    let short = openssl(&["genrsa", "1024"], None);
    let cases = [
        (String::new(), PrivateKeyError::Empty),
        (STANDARD.encode(&pem), PrivateKeyError::Base64OfPem),
        ("secret".to_owned(), PrivateKeyError::NotPem),
        (pem.replace("-----END", "-----NED"), PrivateKeyError::Broken),
        (format!("{pem}{pem}"), PrivateKeyError::Several),
        (openssl(&["rsa", "-aes128", "-passout", "pass:x"], Some(&pem)), PrivateKeyError::Encrypted),
        (openssl(&["rsa", "-traditional", "-aes128", "-passout", "pass:x"], Some(&pem)), PrivateKeyError::Encrypted),
        (openssl(&["pkey", "-pubout"], Some(&pem)), PrivateKeyError::Public),
        (ec.clone(), PrivateKeyError::NotRsa),
        (openssl(&["pkcs8", "-topk8", "-nocrypt"], Some(&ec)), PrivateKeyError::NotRsa),
        (openssl(&["genpkey", "-algorithm", "ed25519"], None), PrivateKeyError::NotRsa),
        (short.clone(), PrivateKeyError::TooShort { bits: 1024 }),
        (openssl(&["rsa", "-traditional"], Some(&short)), PrivateKeyError::TooShort { bits: 1024 }),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----".to_owned(),
            PrivateKeyError::Other("CERTIFICATE".to_owned()),
        ),
    ];
    for (text, expected) in cases {
        let error = refused(&text);
        assert_eq!(error, expected, "{text}");
        let shown = format!("{error} {error:?}");
        let secret = text.lines().nth(1).filter(|line| line.len() > 40);
        assert!(secret.is_none_or(|secret| !shown.contains(secret)), "{shown}");
    }
}

#[test]
fn a_new_key_is_one_that_openssl_takes() {
    let key = LagoPrivateKey::generate(2048).unwrap();
    assert_eq!(key.public_key().bits(), 2048);
    openssl(&["rsa", "-check", "-noout"], Some(key.pem().expose()));
    assert_eq!(LagoPrivateKey::from_pem(key.pem().expose()).unwrap().public_key(), key.public_key());
    assert!(!format!("{key:?}").contains("PRIVATE KEY-----"));
    assert!(LagoPrivateKey::generate(1024).is_err());
}
