//! Standard Webhooks: the signature of outgoing requests, and its verification where a daemon is the receiver.
//!
//! `webhook-signature` holds one `v1,<base64>` a secret, separated by spaces, so that a receiver can
//! verify with the old or the new secret while one replaces the other.
//!
//! Source: standard-webhooks/standard-webhooks `spec/standard-webhooks.md`.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderMap;
use kit::clock::Timestamp;
use kit::secret::Secret;
use sha2::Sha256;

/// Header with the id of the message: the same at every attempt.
pub const ID: &str = "webhook-id";
/// Header with the time of the attempt, in seconds since 1970.
pub const TIMESTAMP: &str = "webhook-timestamp";
/// Header with the signatures.
pub const SIGNATURE: &str = "webhook-signature";

/// One signing secret, decoded. Signs and verifies.
#[derive(Clone)]
pub struct SigningSecret(Vec<u8>);

impl std::fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningSecret([redacted])")
    }
}

/// A signing secret that is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Not `whsec_` and Base64.
    #[error("signing secret must be whsec_ followed by Base64")]
    Form,
    /// Fewer than 24 or more than 64 bytes.
    #[error("signing secret must hold 24 to 64 bytes, it holds {0}")]
    Length(usize),
}

impl SigningSecret {
    /// Reads `whsec_<base64>`.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn parse(text: &Secret) -> Result<Self, SecretError> {
        let encoded = text.expose().strip_prefix("whsec_").ok_or(SecretError::Form)?;
        let key = STANDARD.decode(encoded).map_err(|_| SecretError::Form)?;
        if !(24..=64).contains(&key.len()) {
            return Err(SecretError::Length(key.len()));
        }
        Ok(Self(key))
    }

    /// Over the three that are signed, the texts as they stand in their headers.
    fn mac(&self, id: &str, timestamp: &str, body: &[u8]) -> Option<Hmac<Sha256>> {
        // HMAC takes keys of any length.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body);
        Some(mac)
    }
}

/// The `webhook-signature` header for all secrets, newest first.
pub fn signature_header(secrets: &[SigningSecret], id: &str, timestamp_seconds: i64, body: &[u8]) -> String {
    let timestamp = timestamp_seconds.to_string();
    let macs = secrets.iter().filter_map(|secret| secret.mac(id, &timestamp, body));
    let signatures: Vec<String> =
        macs.map(|mac| format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))).collect();
    signatures.join(" ")
}

/// Why a request is not believed. The sender is not told: whoever guesses learns nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unverified {
    /// This header is missing, there twice, or nothing that it can be.
    #[error("{0} is missing, there twice or malformed")]
    Header(&'static str),
    /// No signature was made with a known secret.
    #[error("no signature was made with a known secret")]
    Mismatch,
    /// It is signed, but at another time: clocks differ, or somebody sends an old request again.
    #[error("signed {seconds} s before now, more than the tolerance")]
    Time {
        /// How long ago it was signed; negative for the future.
        seconds: i64,
    },
}

/// What a request says of its own signature: nothing is proven until [`SignatureClaim::verify`].
#[derive(Clone, Copy, Debug)]
pub struct SignatureClaim<'a> {
    id: &'a str,
    timestamp: &'a str,
    seconds: i64,
    signatures: &'a str,
}

impl<'a> SignatureClaim<'a> {
    /// Reads the three headers, before the body has to be there.
    ///
    /// # Errors
    /// [`Unverified::Header`].
    pub fn read(headers: &'a HeaderMap) -> Result<Self, Unverified> {
        let text = |name: &'static str| {
            let mut values = headers.get_all(name).iter();
            match (values.next().map(|value| value.to_str()), values.next()) {
                (Some(Ok(text)), None) if !text.is_empty() => Ok(text),
                _ => Err(Unverified::Header(name)),
            }
        };
        let (id, timestamp, signatures) = (text(ID)?, text(TIMESTAMP)?, text(SIGNATURE)?);
        let digits = timestamp.bytes().all(|byte| byte.is_ascii_digit());
        let seconds = timestamp.parse().ok().filter(|_| digits).ok_or(Unverified::Header(TIMESTAMP))?;
        Ok(Self { id, timestamp, seconds, signatures })
    }

    /// `webhook-id`; signed, once the claim is verified.
    pub fn id(&self) -> &'a str {
        self.id
    }

    /// Checks that one of the signatures was made with one of the secrets, over the body exactly as received, and at
    /// most `tolerance` before or after `now`.
    ///
    /// The time keeps old requests from being sent again by whoever saw them; within the tolerance the receiver tells
    /// repetitions apart by the id. A sender that tries again signs anew, so that the tolerance is about
    /// clocks and not about retries. Signatures are compared in constant time, and a time is judged only of what is
    /// signed.
    ///
    /// # Errors
    /// [`Unverified::Mismatch`] or [`Unverified::Time`].
    pub fn verify(
        &self,
        secrets: &[SigningSecret],
        body: &[u8],
        now: Timestamp,
        tolerance: Duration,
    ) -> Result<(), Unverified> {
        let given = self.signatures.split(' ').filter_map(|signature| signature.strip_prefix("v1,"));
        let given: Vec<Vec<u8>> = given.filter_map(|signature| STANDARD.decode(signature).ok()).collect();
        let mut matches = false;
        // The body is hashed once for each secret, however many signatures somebody sends.
        for mac in secrets.iter().filter_map(|secret| secret.mac(self.id, self.timestamp, body)) {
            for signature in &given {
                matches |= mac.clone().verify_slice(signature).is_ok();
            }
        }
        if !matches {
            return Err(Unverified::Mismatch);
        }
        let seconds = (now.as_millis() / 1000).saturating_sub(self.seconds);
        if Duration::from_secs(seconds.unsigned_abs()) > tolerance {
            return Err(Unverified::Time { seconds });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn secret(text: &str) -> Result<SigningSecret, SecretError> {
        SigningSecret::parse(&Secret::from(text.to_owned()))
    }

    const PUBLISHED: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    const PUBLISHED_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const OTHER_SECRET: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    const PUBLISHED_ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const PUBLISHED_BODY: &[u8] = br#"{"test": 2432232314}"#;
    const PUBLISHED_AT: Timestamp = Timestamp::from_millis(1_614_265_330_000);
    const TOLERANCE: Duration = Duration::from_secs(300);

    fn headers(id: &str, timestamp: &str, signature: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [(ID, id), (TIMESTAMP, timestamp), (SIGNATURE, signature)] {
            headers.insert(name, value.parse().unwrap());
        }
        headers
    }

    fn verified(headers: &HeaderMap, secrets: &[&str], body: &[u8], now: Timestamp) -> Result<(), Unverified> {
        let secrets: Vec<SigningSecret> = secrets.iter().map(|text| secret(text).unwrap()).collect();
        SignatureClaim::read(headers)?.verify(&secrets, body, now, TOLERANCE)
    }

    /// The example of the specification's reference libraries.
    #[test]
    fn the_published_example_verifies() {
        let secret = secret(PUBLISHED_SECRET).unwrap();
        let header = signature_header(&[secret], PUBLISHED_ID, 1_614_265_330, PUBLISHED_BODY);
        assert_eq!(header, PUBLISHED);

        let headers = headers(PUBLISHED_ID, "1614265330", PUBLISHED);
        assert_eq!(verified(&headers, &[PUBLISHED_SECRET], PUBLISHED_BODY, PUBLISHED_AT), Ok(()));
        assert_eq!(SignatureClaim::read(&headers).unwrap().id(), PUBLISHED_ID);
    }

    #[test]
    fn any_of_several_signatures_is_good_for_any_of_several_secrets() {
        let zeros = "v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        for given in [
            format!("{zeros} {PUBLISHED}"),
            format!("{PUBLISHED} {zeros}"),
            format!("v1a,AAAA v1,!! v2,AAAA {PUBLISHED} v1,"),
        ] {
            let headers = headers(PUBLISHED_ID, "1614265330", &given);
            for secrets in [&[PUBLISHED_SECRET][..], &[OTHER_SECRET, PUBLISHED_SECRET]] {
                assert_eq!(verified(&headers, secrets, PUBLISHED_BODY, PUBLISHED_AT), Ok(()), "{given}");
            }
            for secrets in [&[OTHER_SECRET][..], &[]] {
                let refused = verified(&headers, secrets, PUBLISHED_BODY, PUBLISHED_AT);
                assert_eq!(refused, Err(Unverified::Mismatch), "{given}");
            }
        }
    }

    #[test]
    fn whatever_is_signed_cannot_be_changed() {
        let id = PUBLISHED_ID.to_ascii_lowercase();
        for (id, timestamp, body) in [
            (id.as_str(), "1614265330", PUBLISHED_BODY),
            (PUBLISHED_ID, "1614265331", PUBLISHED_BODY),
            // The text is signed, not the number.
            (PUBLISHED_ID, "01614265330", PUBLISHED_BODY),
            (PUBLISHED_ID, "1614265330", br#"{"test":2432232314}"#),
        ] {
            let headers = headers(id, timestamp, PUBLISHED);
            let refused = verified(&headers, &[PUBLISHED_SECRET], body, PUBLISHED_AT);
            assert_eq!(refused, Err(Unverified::Mismatch), "{id} {timestamp}");
        }
        for signature in ["v1,g0hM9SsE", "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", "v1,", "v1a,", " "] {
            let headers = headers(PUBLISHED_ID, "1614265330", signature);
            let refused = verified(&headers, &[PUBLISHED_SECRET], PUBLISHED_BODY, PUBLISHED_AT);
            assert_eq!(refused, Err(Unverified::Mismatch), "{signature}");
        }
    }

    #[test]
    fn a_request_is_good_for_a_while_in_both_directions() {
        let headers = headers(PUBLISHED_ID, "1614265330", PUBLISHED);
        for (millis, expected) in [
            (300_999, Ok(())),
            (-300_000, Ok(())),
            (301_000, Err(Unverified::Time { seconds: 301 })),
            (-301_000, Err(Unverified::Time { seconds: -301 })),
        ] {
            let now = PUBLISHED_AT.plus_millis(millis);
            assert_eq!(verified(&headers, &[PUBLISHED_SECRET], PUBLISHED_BODY, now), expected, "{millis}");
        }
        // Not known to be anybody's: nothing is said about its time.
        let unsigned = verified(&headers, &[OTHER_SECRET], PUBLISHED_BODY, PUBLISHED_AT.plus_millis(301_000));
        assert_eq!(unsigned, Err(Unverified::Mismatch));
    }

    #[test]
    fn headers_that_say_nothing_certain_are_refused() {
        for name in [ID, TIMESTAMP, SIGNATURE] {
            let mut missing = headers(PUBLISHED_ID, "1614265330", PUBLISHED);
            missing.remove(name);
            let mut empty = missing.clone();
            empty.insert(name, "".parse().unwrap());
            let mut twice = headers(PUBLISHED_ID, "1614265330", PUBLISHED);
            twice.append(name, twice[name].clone());
            for headers in [missing, empty, twice] {
                assert_eq!(SignatureClaim::read(&headers).unwrap_err(), Unverified::Header(name), "{headers:?}");
            }
        }
        for timestamp in ["now", "-1614265330", "+1614265330", "1614265330.5", "99999999999999999999", " 1"] {
            let headers = headers(PUBLISHED_ID, timestamp, PUBLISHED);
            assert_eq!(SignatureClaim::read(&headers).unwrap_err(), Unverified::Header(TIMESTAMP), "{timestamp}");
        }
    }

    #[test]
    fn both_secrets_sign_during_rotation() {
        let one = secret(PUBLISHED_SECRET).unwrap();
        let two = secret(OTHER_SECRET).unwrap();
        let header = signature_header(&[one, two], "id", 1, b"{}");
        assert_eq!(header.split(' ').filter(|part| part.starts_with("v1,")).count(), 2);
    }

    #[test]
    fn weak_or_malformed_secrets_are_refused() {
        assert_eq!(secret("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap_err(), SecretError::Form);
        assert_eq!(secret("whsec_!!!").unwrap_err(), SecretError::Form);
        assert_eq!(secret("whsec_AAAA").unwrap_err(), SecretError::Length(3));
    }
}
