//! The receiver's half of Standard Webhooks, written from the specification and independent of
//! the daemon's signing code: two mistakes would have to agree to go unseen.
//!
//! Source: standard-webhooks/standard-webhooks `spec/standard-webhooks.md`.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderMap;
use sha2::Sha256;

/// One decoded `whsec_…` secret.
pub(super) struct VerifyingSecret(Vec<u8>);

impl VerifyingSecret {
    /// `None` when it is not `whsec_` and the Base64 of 24 to 64 bytes.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let bytes = STANDARD.decode(text.strip_prefix("whsec_")?).ok()?;
        (24..=64).contains(&bytes.len()).then_some(Self(bytes))
    }

    fn signed(&self, id: &str, timestamp: &str, body: &[u8], signature: &[u8]) -> bool {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else {
            return false;
        };
        mac.update(id.as_bytes());
        mac.update(b".");
        mac.update(timestamp.as_bytes());
        mac.update(b".");
        mac.update(body);
        mac.verify_slice(signature).is_ok()
    }
}

/// Whether the three headers carry at least one valid `v1` signature under one of the secrets,
/// taken not further than `tolerance` from `now_unix_seconds`.
pub(super) fn verify(
    secrets: &[VerifyingSecret],
    headers: &HeaderMap,
    body: &[u8],
    now_unix_seconds: u64,
    tolerance: Option<Duration>,
) -> bool {
    // A header given twice would leave open which one the receiver believes.
    let single = |name: &str| {
        let mut values = headers.get_all(name).iter();
        let value = values.next()?.to_str().ok()?;
        values.next().is_none().then_some(value)
    };
    let (Some(id), Some(timestamp), Some(signatures)) =
        (single("webhook-id"), single("webhook-timestamp"), single("webhook-signature"))
    else {
        return false;
    };
    let Ok(seconds) = timestamp.parse::<u64>() else {
        return false;
    };
    if tolerance.is_some_and(|limit| seconds.abs_diff(now_unix_seconds) > limit.as_secs()) {
        return false;
    }
    signatures
        .split(' ')
        .filter_map(|signature| signature.strip_prefix("v1,"))
        .filter_map(|signature| STANDARD.decode(signature).ok())
        .any(|signature| secrets.iter().any(|secret| secret.signed(id, timestamp, body, &signature)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    // The example of the specification's reference libraries.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    const SIGNED_AT: u64 = 1_614_265_330;

    fn headers(signature: &str, timestamp: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
        headers.insert("webhook-id", id.parse().unwrap());
        headers.insert("webhook-timestamp", timestamp.parse().unwrap());
        headers.insert("webhook-signature", signature.parse().unwrap());
        headers
    }

    fn check(headers: &HeaderMap, body: &[u8], now: u64) -> bool {
        let secrets = [
            VerifyingSecret::parse(&format!("whsec_{}", STANDARD.encode([7; 32]))).unwrap(),
            VerifyingSecret::parse(SECRET).unwrap(),
        ];
        verify(&secrets, headers, body, now, Some(Duration::from_secs(300)))
    }

    #[test]
    fn the_published_example_verifies_under_any_of_several_secrets() {
        let at = SIGNED_AT.to_string();
        assert!(check(&headers(SIGNATURE, &at), BODY, SIGNED_AT));
        let rotated = format!("v1,bm90IGl0 v2,ignored {SIGNATURE}");
        assert!(check(&headers(&rotated, &at), BODY, SIGNED_AT + 299));
    }

    #[test]
    fn anything_else_does_not() {
        let at = SIGNED_AT.to_string();
        let good = headers(SIGNATURE, &at);
        assert!(!check(&good, b"{\"test\": 2432232315}", SIGNED_AT));
        assert!(!check(&good, BODY, SIGNED_AT + 301));
        assert!(!check(&good, BODY, SIGNED_AT - 301));
        assert!(!check(&headers(SIGNATURE, "1614265331"), BODY, SIGNED_AT));
        assert!(!check(&headers(SIGNATURE, "soon"), BODY, SIGNED_AT));
        assert!(!check(&headers(&SIGNATURE[3..], &at), BODY, SIGNED_AT));
        assert!(!check(&headers("v1,", &at), BODY, SIGNED_AT));
        let mut twice = good.clone();
        twice.append("webhook-id", "another".parse().unwrap());
        assert!(!check(&twice, BODY, SIGNED_AT));
        let mut without = good;
        without.remove("webhook-id");
        assert!(!check(&without, BODY, SIGNED_AT));
    }

    #[test]
    fn secrets_of_another_form_are_refused() {
        for text in ["", "whsec_", "whsec_c2hvcnQ=", "whsec_!!!", "MfKQ9r8G"] {
            assert!(VerifyingSecret::parse(text).is_none(), "{text}");
        }
        let too_long = format!("whsec_{}", STANDARD.encode([0; 65]));
        assert!(VerifyingSecret::parse(&too_long).is_none());
    }
}
