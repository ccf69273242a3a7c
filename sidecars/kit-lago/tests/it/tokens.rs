//! T2, T3 and T4: tokens that Lago never made. Each list also says which step must refuse it, so a
//! token cannot be refused by accident further down.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use kit_lago::signature::{Rejected, RsaKeys, sign_hmac, sign_jwt};

use crate::support::{attacker, b64, claims, fixture, keys_of, lago, secret, token};

const BODY: &str = r#"{"webhook_type":"invoice.created","n":"R\u0026D"}"#;
const ISSUER: &str = "http://lago-api:3000";
const RS256: &str = r#"{"alg":"RS256"}"#;

fn verify(token: &str) -> Result<(), Rejected> {
    keys_of(&lago()).verify(Some(token.as_bytes()), BODY.as_bytes(), Some(ISSUER))
}

/// What must refuse a token.
#[derive(Debug, PartialEq)]
enum Step {
    Shape,
    Algorithm,
    Critical,
    Signature,
    Claims,
    Issuer,
    Data,
}

fn step(rejected: &Rejected) -> Option<Step> {
    match rejected {
        Rejected::MalformedToken(_) | Rejected::MissingHeader | Rejected::IsHmac => Some(Step::Shape),
        Rejected::AlgorithmNotAllowed(_) => Some(Step::Algorithm),
        Rejected::Critical => Some(Step::Critical),
        Rejected::BadSignature => Some(Step::Signature),
        Rejected::ClaimsMalformed => Some(Step::Claims),
        Rejected::IssuerMismatch => Some(Step::Issuer),
        Rejected::DataDiffers { .. } => Some(Step::Data),
        _ => None,
    }
}

fn check(what: &str, token: &str, expected: &Step) {
    let rejected = verify(token).expect_err(what);
    assert_eq!(step(&rejected).as_ref(), Some(expected), "{what}: {rejected}");
}

#[test]
fn what_lago_signs_is_accepted() {
    let genuine = sign_jwt(&lago(), BODY, ISSUER).unwrap();

    assert_eq!(verify(&genuine), Ok(()));
    assert!(genuine.starts_with("eyJhbGciOiJSUzI1NiJ9."));
    let claims = genuine.split('.').nth(1).unwrap();
    assert_eq!(claims, b64(format!("{{\"data\":{},\"iss\":\"{ISSUER}\"}}", serde_json::json!(BODY))));
}

/// T2: sixty tokens that differ from Lago's in the algorithm they name, and in nothing an attacker
/// could not write.
#[test]
fn no_token_of_another_algorithm_is_accepted() {
    let mut tried = 0;
    let genuine_claims = claims(BODY, ISSUER);
    let public_pem = lago().public_pem();
    let public_der = {
        let lines: String = public_pem.lines().filter(|line| !line.starts_with('-')).collect();
        STANDARD.decode(lines).unwrap()
    };
    let named = [
        "none",
        "None",
        "NONE",
        "nOnE",
        "",
        " ",
        "rs256",
        "Rs256",
        "rS256",
        "RS256 ",
        " RS256",
        "RS256\u{0}",
        "RS-256",
        "RS257",
        "RS2560",
        "RSA",
        "RS384",
        "RS512",
        "PS256",
        "PS384",
        "PS512",
        "ES256",
        "ES384",
        "ES512",
        "ES256K",
        "EdDSA",
        "Ed25519",
        "HS256",
        "HS384",
        "HS512",
        "A128KW",
        "dir",
        "RSA-OAEP",
        "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256",
    ];

    // The named algorithm over a signature that is Lago's own in every other respect.
    for algorithm in named {
        let header = serde_json::json!({ "alg": algorithm }).to_string();
        check(algorithm, &token(&lago(), &header, &genuine_claims), &Step::Algorithm);
        tried += 1;
    }
    // Unsigned in all the ways that have been tried on libraries.
    for algorithm in ["none", "None", "NONE", "nOnE", "RS256"] {
        let header = serde_json::json!({ "alg": algorithm }).to_string();
        for signature in ["", "AA"] {
            let unsigned = format!("{}.{}.{signature}", b64(&header), b64(&genuine_claims));
            let expected = match (algorithm, signature) {
                ("RS256", "") => Step::Shape,
                ("RS256", _) => Step::Signature,
                _ => Step::Algorithm,
            };
            check("unsigned", &unsigned, &expected);
            tried += 1;
        }
    }
    // The public key, which anyone may have, used as an HMAC key.
    for key in [public_pem.as_str(), public_pem.trim_end(), &STANDARD.encode(&public_der)] {
        for algorithm in ["HS256", "RS256"] {
            let header = serde_json::json!({ "alg": algorithm }).to_string();
            let message = format!("{}.{}", b64(header), b64(&genuine_claims));
            let mac = STANDARD.decode(sign_hmac(&secret(key), message.as_bytes())).unwrap();
            let expected = if algorithm == "HS256" { Step::Algorithm } else { Step::Signature };
            check("HMAC with the public key", &format!("{message}.{}", b64(mac)), &expected);
            tried += 1;
        }
    }
    // Headers that do not name one algorithm plainly.
    for (header, expected) in [
        ("{}", Step::Algorithm),
        (r#"{"typ":"JWT"}"#, Step::Algorithm),
        (r#"{"ALG":"RS256"}"#, Step::Algorithm),
        (r#"{"alg":null}"#, Step::Algorithm),
        (r#"{"alg":256}"#, Step::Shape),
        (r#"{"alg":["RS256"]}"#, Step::Shape),
        (r#"{"alg":{"RS256":true}}"#, Step::Shape),
        (r#"{"alg":"RS256","alg":"none"}"#, Step::Shape),
        (r#"{"alg":"none","alg":"RS256"}"#, Step::Shape),
        (r#"{"alg":"RS256","\u0061lg":"RS256"}"#, Step::Shape),
    ] {
        check(header, &token(&lago(), header, &genuine_claims), &expected);
        tried += 1;
    }
    assert!(tried >= 60, "{tried}");
}

/// T3: thirty tokens that bring or point to the attacker's key.
#[test]
fn no_key_named_in_a_token_is_used() {
    let genuine_claims = claims(BODY, ISSUER);
    let jwk = serde_json::json!({
        "kty": "RSA", "alg": "RS256", "use": "sig", "e": "AQAB",
        "n": b64(attacker().public_key().to_pem()),
    });
    let certificate: String = fixture("keys/certificate.pem").lines().filter(|line| !line.starts_with('-')).collect();
    let url = "https://attacker.example/keys.json";
    let mut headers = vec![
        serde_json::json!({ "jwk": jwk }),
        serde_json::json!({ "jku": url }),
        serde_json::json!({ "jku": url, "kid": "1" }),
        serde_json::json!({ "x5u": url }),
        serde_json::json!({ "x5c": [certificate] }),
        serde_json::json!({ "x5c": [certificate, certificate] }),
        serde_json::json!({ "x5t": b64([0; 20]) }),
        serde_json::json!({ "x5t#S256": b64([0; 32]) }),
        serde_json::json!({ "jwk": jwk, "kid": "1", "jku": url, "x5u": url }),
        serde_json::json!({ "typ": "at+jwt" }),
        serde_json::json!({ "cty": "JWT" }),
        serde_json::json!({ "zip": "DEF" }),
        serde_json::json!({ "url": url, "nonce": "1" }),
    ];
    for kid in [
        "../../../../dev/null",
        "/dev/null",
        "/proc/self/environ",
        "../../keys/attacker.pem",
        "x' UNION SELECT 'key' --",
        "key\"; DROP TABLE keys; --",
        "key|/bin/sleep 5",
        "$(id)",
        "http://169.254.169.254/latest/meta-data/",
        "file:///etc/passwd",
        "",
        "\u{0}",
        "1\r\nX-Injected: 1",
        "\u{202e}gnp.yek",
        "default",
        "lago",
    ] {
        headers.push(serde_json::json!({ "kid": kid }));
    }
    headers.push(serde_json::json!({ "kid": "k".repeat(8_000) }));
    assert!(headers.len() >= 30, "{}", headers.len());

    for mut header in headers {
        header["alg"] = "RS256".into();
        let header = header.to_string();
        let forged = token(&attacker(), &header, &genuine_claims);
        let rejected = verify(&forged).expect_err(&header);
        // A header that the library cannot even read is refused earlier, which is as good.
        assert!(matches!(rejected, Rejected::BadSignature | Rejected::MalformedToken(_)), "{header}: {rejected}");
    }
}

/// The other side of T3: the parameters are ignored, not obeyed, so a genuine token may have them.
#[test]
fn a_genuine_token_is_accepted_whatever_keys_it_mentions() {
    for header in [
        r#"{"alg":"RS256","kid":"../../dev/null"}"#,
        r#"{"alg":"RS256","jku":"https://attacker.example/"}"#,
        r#"{"typ":"JWT","alg":"RS256"}"#,
    ] {
        assert_eq!(verify(&token(&lago(), header, &claims(BODY, ISSUER))), Ok(()), "{header}");
    }
}

#[test]
fn critical_extensions_are_refused_even_from_lago() {
    for header in [
        r#"{"alg":"RS256","crit":["exp"]}"#,
        r#"{"alg":"RS256","crit":[]}"#,
        r#"{"alg":"RS256","crit":null}"#,
        r#"{"alg":"RS256","b64":false,"crit":["b64"]}"#,
        r#"{"crit":["http://example.com/UNDEFINED"],"alg":"RS256"}"#,
    ] {
        check(header, &token(&lago(), header, &claims(BODY, ISSUER)), &Step::Critical);
    }
}

/// T4: everything that a claim set can do wrong although Lago's key signed it.
#[test]
fn claims_must_be_the_two_strings_that_lago_writes() {
    let data = serde_json::json!(BODY).to_string();
    let parsed = BODY;
    for (claims, expected) in [
        ("{}".to_owned(), Step::Claims),
        (format!(r#"{{"iss":"{ISSUER}"}}"#), Step::Claims),
        (format!(r#"{{"data":null,"iss":"{ISSUER}"}}"#), Step::Claims),
        (format!(r#"{{"data":{parsed},"iss":"{ISSUER}"}}"#), Step::Claims),
        (format!(r#"{{"data":[{data}],"iss":"{ISSUER}"}}"#), Step::Claims),
        (format!(r#"{{"data":1,"iss":"{ISSUER}"}}"#), Step::Claims),
        (format!(r#"{{"data":{data},"data":{data},"iss":"{ISSUER}"}}"#), Step::Claims),
        (format!(r#"{{"data":{data},"\u0064ata":{data},"iss":"{ISSUER}"}}"#), Step::Claims),
        (format!(r#"{{"data":{data},"iss":"{ISSUER}","iss":"{ISSUER}"}}"#), Step::Claims),
        (format!(r#"{{"data":{data},"iss":["{ISSUER}"]}}"#), Step::Claims),
        (format!(r#"{{"data":{data},"iss":["{ISSUER}","x"]}}"#), Step::Claims),
        (format!(r#"{{"data":{data},"iss":{{"{ISSUER}":1}}}}"#), Step::Claims),
        (format!(r#"{{"data":{data},"iss":1}}"#), Step::Claims),
        (format!(r#"{{"data":{data},"iss":"{ISSUER}","nbf":[1]}}"#), Step::Claims),
        (format!("[{data}]"), Step::Claims),
        (data.clone(), Step::Claims),
        (parsed.to_owned(), Step::Claims),
        (format!(r#"{{"data":{data},"iss":"{ISSUER}"}} x"#), Step::Claims),
        (format!(r#"{{"data":{data},"iss":"{ISSUER}""#), Step::Claims),
        (String::from("\u{feff}{}"), Step::Claims),
        (format!(r#"{{"data":{data}}}"#), Step::Issuer),
        (format!(r#"{{"data":{data},"iss":null}}"#), Step::Issuer),
        (format!(r#"{{"data":{data},"iss":""}}"#), Step::Issuer),
        (format!(r#"{{"data":{data},"iss":"{ISSUER}/"}}"#), Step::Issuer),
        (format!(r#"{{"data":{data},"iss":"HTTP://lago-api:3000"}}"#), Step::Issuer),
        (format!(r#"{{"data":{data},"iss":" {ISSUER}"}}"#), Step::Issuer),
        (format!(r#"{{"data":"","iss":"{ISSUER}"}}"#), Step::Data),
        (format!(r#"{{"data":"{{}}","iss":"{ISSUER}"}}"#), Step::Data),
    ] {
        check(&claims, &token(&lago(), RS256, &claims), &expected);
    }
}

#[test]
fn claims_that_are_not_text_are_refused() {
    let mut bytes = claims(BODY, ISSUER).into_bytes();
    bytes.insert(bytes.len() - 2, 0xff);
    let message = format!("{}.{}", b64(RS256), b64(bytes));
    let signature = lago().sign(message.as_bytes()).unwrap();

    check("invalid UTF-8", &format!("{message}.{}", b64(signature)), &Step::Claims);
}

/// Lago writes no time claims. Where a later one does, they do not decide.
#[test]
fn time_claims_are_ignored_whatever_they_say() {
    let data = serde_json::json!(BODY);
    for extra in [
        r#""exp":1"#,
        r#""exp":"yesterday""#,
        r#""nbf":99999999999"#,
        r#""iat":-1"#,
        r#""aud":"somebody else""#,
        r#""aud":["x"]"#,
        r#""jti":{"deep":[[[]]]}"#,
    ] {
        let claims = format!(r#"{{"data":{data},"iss":"{ISSUER}",{extra}}}"#);
        assert_eq!(verify(&token(&lago(), RS256, &claims)), Ok(()), "{extra}");
    }
}

#[test]
fn without_a_configured_issuer_any_or_none_will_do() {
    let keys = keys_of(&lago());
    let data = serde_json::json!(BODY);
    for claims in [
        format!(r#"{{"data":{data}}}"#),
        format!(r#"{{"data":{data},"iss":null}}"#),
        format!(r#"{{"data":{data},"iss":"whoever"}}"#),
    ] {
        let token = token(&lago(), RS256, &claims);
        assert_eq!(keys.verify(Some(token.as_bytes()), BODY.as_bytes(), None), Ok(()));
    }
}

#[test]
fn the_first_byte_that_differs_from_the_body_is_named() {
    let keys = keys_of(&lago());
    let token = sign_jwt(&lago(), "0123456789", ISSUER).unwrap();
    for (body, first_difference) in [("x123456789", 0), ("012345x789", 6), ("012345", 6), ("0123456789\n", 10), ("", 0)]
    {
        assert_eq!(
            keys.verify(Some(token.as_bytes()), body.as_bytes(), Some(ISSUER)),
            Err(Rejected::DataDiffers { first_difference }),
            "{body}"
        );
    }
    // The same JSON in other bytes is another body.
    let escaped = sign_jwt(&lago(), r#"{"n":"R\u0026D"}"#, ISSUER).unwrap();
    assert!(keys.verify(Some(escaped.as_bytes()), br#"{"n":"R&D"}"#, None).is_err());
}

#[test]
fn a_token_has_three_canonical_segments() {
    let genuine = sign_jwt(&lago(), BODY, ISSUER).unwrap();
    let [header, claims, signature]: [&str; 3] = genuine.split('.').collect::<Vec<_>>().try_into().unwrap();
    let standard = |segment: &str| segment.replace('-', "+").replace('_', "/");
    let padded = |segment: &str| {
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(segment).unwrap();
        URL_SAFE.encode(bytes)
    };
    for wrong in [
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        "...".to_owned(),
        header.to_owned(),
        format!("{header}.{claims}"),
        format!("{header}.{claims}."),
        format!("{header}..{signature}"),
        format!(".{claims}.{signature}"),
        format!("{genuine}."),
        format!("{genuine}.{signature}"),
        format!("{genuine}.a.b"),
        format!(" {genuine}"),
        format!("{genuine} "),
        format!("{genuine}\n"),
        format!("Bearer {genuine}"),
        format!("{}.{claims}.{signature}", padded(header) + "="),
        format!("{header}.{claims}.{}", padded(signature)),
        format!("{header}.{claims}.{signature}="),
        format!("{header}.{claims}.{}+", &signature[..signature.len() - 1]),
        format!("{header}.{claims}.{}\u{e9}", &signature[..signature.len() - 2]),
        format!("{}.{claims}.{signature}", b64("not json")),
        format!("{}.{claims}.{signature}", b64("[]")),
        format!("{}.{claims}.{signature}", b64(r#"{"alg":"RS256"}{}"#)),
        format!("{}.{claims}.{signature}", b64([0xff, 0xfe])),
        format!("{}.{claims}.{signature}", b64(format!("{{\"alg\":\"RS256\",\"x\":\"{}\"}}", "x".repeat(20_000)))),
        format!("{}.{claims}.{signature}", b64(format!("{{\"alg\":\"RS256\",\"x\":{}}}", "[".repeat(5_000)))),
    ] {
        let shown: String = wrong.chars().take(120).collect();
        check(&shown, &wrong, &Step::Shape);
    }
    // Standard Base64 is another text, and the text is what is signed.
    for wrong in
        [format!("{header}.{claims}.{}", standard(signature)), format!("{header}.{}.{signature}", standard(claims))]
    {
        assert!(wrong == genuine || verify(&wrong).is_err());
    }
}

/// A 256-byte signature fills 342 characters and leaves four bits, which must be zero.
#[test]
fn a_signature_has_one_spelling() {
    let genuine = sign_jwt(&lago(), BODY, ISSUER).unwrap();
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let last = genuine.bytes().last().unwrap();
    let index = alphabet.iter().position(|c| *c == last).unwrap();
    for bits in 1..16 {
        let mut spelled = genuine.clone().into_bytes();
        *spelled.last_mut().unwrap() = alphabet[(index & !15) | bits];
        let spelled = String::from_utf8(spelled).unwrap();
        check("loose bits", &spelled, &Step::Shape);
    }
}

#[test]
fn an_hmac_where_a_token_is_expected_is_named() {
    let header = sign_hmac(&secret("key"), BODY.as_bytes());

    assert_eq!(verify(&header), Err(Rejected::IsHmac));
    assert_eq!(verify(""), Err(Rejected::MissingHeader));
    assert_eq!(keys_of(&lago()).verify(None, BODY.as_bytes(), None), Err(Rejected::MissingHeader));
}

#[test]
fn without_a_key_a_token_is_not_judged_but_junk_is_still_refused() {
    let none = RsaKeys::default();
    let genuine = sign_jwt(&lago(), BODY, ISSUER).unwrap();
    let other = token(&lago(), r#"{"alg":"HS256"}"#, &claims(BODY, ISSUER));

    assert_eq!(none.verify(Some(genuine.as_bytes()), BODY.as_bytes(), None), Err(Rejected::NoKey));
    assert!(matches!(
        none.verify(Some(other.as_bytes()), BODY.as_bytes(), None),
        Err(Rejected::AlgorithmNotAllowed(_))
    ));
    assert!(matches!(none.verify(Some(b"junk"), BODY.as_bytes(), None), Err(Rejected::MalformedToken(_))));
}

#[test]
fn both_keys_of_an_overlap_verify_and_the_oldest_falls_out() {
    let old = keys_of(&attacker());
    let both = old.with_newest(lago().public_key());
    let by_old = sign_jwt(&attacker(), BODY, ISSUER).unwrap();
    let by_new = sign_jwt(&lago(), BODY, ISSUER).unwrap();

    for token in [&by_old, &by_new] {
        assert_eq!(both.verify(Some(token.as_bytes()), BODY.as_bytes(), Some(ISSUER)), Ok(()));
    }
    assert!(old.verify(Some(by_new.as_bytes()), BODY.as_bytes(), None).is_err());
    assert_eq!(both.with_newest(lago().public_key()), both);
    assert_eq!(both.with_newest(attacker().public_key()).keys()[0], attacker().public_key());
    let more = ["keys/rsa-2048.pem", "keys/rsa-exponent-3.pem", "captures/lago-jwt-public.pem"]
        .into_iter()
        .fold(both, |keys, path| keys.with_newest(RsaKeys::from_pem(&fixture(path)).unwrap().keys()[0].clone()));
    assert_eq!(more.keys().len(), 4);
    assert!(more.verify(Some(by_old.as_bytes()), BODY.as_bytes(), None).is_err());
}

/// An algorithm's name comes from the forger and ends up in a log line.
#[test]
fn a_forged_algorithm_is_reported_harmlessly() {
    let header = serde_json::json!({ "alg": "a\nb\u{202e}\"".repeat(100) }).to_string();

    let rejected = verify(&token(&attacker(), &header, "{}")).unwrap_err();

    let Rejected::AlgorithmNotAllowed(found) = &rejected else { panic!("{rejected}") };
    assert_eq!(found.len(), 32);
    assert!(found.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
}

/// T14: real invoices reach 4 MiB, and their tokens 1.5 to 1.7 times that.
#[test]
fn a_token_of_megabytes_verifies() {
    let body =
        kit_lago::sample::sample("invoice.created", &kit_lago::sample::Shape { fees: 4_500, ..Default::default() });
    assert!(body.len() > 3 << 20, "{}", body.len());
    let token = sign_jwt(&lago(), &body, ISSUER).unwrap();

    let keys = keys_of(&lago());

    assert_eq!(keys.verify(Some(token.as_bytes()), body.as_bytes(), Some(ISSUER)), Ok(()));
    let ratio = token.len() as f64 / body.len() as f64;
    assert!((1.4..1.75).contains(&ratio), "{ratio}");
}
