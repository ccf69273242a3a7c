//! The outgoing signature: Standard Webhooks.
//!
//! `webhook-signature` holds one `v1,<base64>` a secret, separated by spaces, so that a receiver can
//! verify with the old or the new secret while one replaces the other.
//!
//! Source: standard-webhooks/standard-webhooks `spec/standard-webhooks.md`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use kit::secret::Secret;
use sha2::Sha256;

/// One signing secret, decoded.
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

    fn sign(&self, id: &str, timestamp_seconds: i64, body: &[u8]) -> String {
        // HMAC takes keys of any length.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else { return String::new() };
        mac.update(format!("{id}.{timestamp_seconds}.").as_bytes());
        mac.update(body);
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

/// The `webhook-signature` header for all secrets, newest first.
pub fn signature_header(secrets: &[SigningSecret], id: &str, timestamp_seconds: i64, body: &[u8]) -> String {
    let signatures: Vec<String> = secrets.iter().map(|secret| secret.sign(id, timestamp_seconds, body)).collect();
    signatures.join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn secret(text: &str) -> Result<SigningSecret, SecretError> {
        SigningSecret::parse(&Secret::from(text.to_owned()))
    }

    /// The example of the specification's reference libraries.
    #[test]
    fn the_published_example_verifies() {
        let secret = secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let header =
            signature_header(&[secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(header, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn both_secrets_sign_during_rotation() {
        let one = secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let two = secret("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").unwrap();
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
