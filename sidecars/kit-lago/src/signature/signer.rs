//! The signing half: what Lago does before it sends. For the stand-in, the command-line tool and
//! the tests; no daemon signs as Lago.

use std::fmt;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kit::secret::Secret;
use serde::Serialize;

use super::RsaKey;
use super::key::encode_pem;

/// Why a private key cannot be used or a signature not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignerError {
    /// The text is not one PEM block of an RSA private key.
    #[error("this is not an unencrypted RSA private key in PEM (PKCS#8 or PKCS#1): openssl genrsa 2048")]
    NotPrivateKey,
    /// The numbers are not a private key of 2048 to 8192 bits.
    #[error("the RSA private key is refused: {0}")]
    Refused(String),
    /// The cryptographic library failed.
    #[error("the RSA operation failed")]
    Failed,
}

/// An RSA private key that signs like Lago's `LAGO_RSA_PRIVATE_KEY`.
pub struct RsaSigner {
    pair: KeyPair,
    random: SystemRandom,
}

impl RsaSigner {
    /// Makes a new 2048-bit key, the size Lago's own script makes. Takes some tenths of a second.
    ///
    /// # Errors
    /// [`SignerError::Failed`] when the library cannot.
    pub fn generate() -> Result<Self, SignerError> {
        KeyPair::generate(KeySize::Rsa2048).map(Self::new).map_err(|_| SignerError::Failed)
    }

    /// Reads an unencrypted private key, PKCS#8 (`BEGIN PRIVATE KEY`) or PKCS#1
    /// (`BEGIN RSA PRIVATE KEY`).
    ///
    /// # Errors
    /// [`SignerError::NotPrivateKey`] or [`SignerError::Refused`].
    pub fn from_pem(text: &str) -> Result<Self, SignerError> {
        let block = pem::parse(text).map_err(|_| SignerError::NotPrivateKey)?;
        let pair = match block.tag() {
            "PRIVATE KEY" => KeyPair::from_pkcs8(block.contents()),
            "RSA PRIVATE KEY" => KeyPair::from_der(block.contents()),
            _ => return Err(SignerError::NotPrivateKey),
        };
        pair.map(Self::new).map_err(|reason| SignerError::Refused(reason.to_string()))
    }

    /// The public half as an SPKI PEM, as Lago hands it out.
    pub fn public_pem(&self) -> String {
        self.public_key().to_pem()
    }

    /// The public half.
    pub fn public_key(&self) -> RsaKey {
        let pem = encode_pem("RSA PUBLIC KEY", self.pair.public_key().as_ref().to_vec());
        RsaKey::from_pem(&pem).expect("the public half of a pair of at least 2048 bits is usable")
    }

    /// The private key as a PKCS#8 PEM.
    ///
    /// # Errors
    /// [`SignerError::Failed`] when the library cannot.
    pub fn private_pem(&self) -> Result<Secret, SignerError> {
        let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&self.pair).map_err(|_| SignerError::Failed)?;
        Ok(Secret::from(encode_pem("PRIVATE KEY", der.as_ref().to_vec())))
    }

    /// RSASSA-PKCS1-v1_5 with SHA-256 over `message`.
    ///
    /// # Errors
    /// [`SignerError::Failed`] when the library cannot.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair.sign(&RSA_PKCS1_SHA256, &self.random, message, &mut signature).map_err(|_| SignerError::Failed)?;
        Ok(signature)
    }

    fn new(pair: KeyPair) -> Self {
        Self { pair, random: SystemRandom::new() }
    }
}

impl fmt::Debug for RsaSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RsaSigner({:?})", self.public_key())
    }
}

/// In the order ruby-jwt writes them.
#[derive(Serialize)]
struct Claims<'a> {
    data: &'a str,
    iss: &'a str,
}

/// Signs a body as Lago does: the token for `X-Lago-Signature`, about 1.5 times the body.
///
/// The header is exactly `{"alg":"RS256"}` and the claims are `data`, then `iss`. The token is put
/// together here rather than by the JWT library because that parses the private key anew for every
/// token, which costs more than the signature.
///
/// # Errors
/// [`SignerError::Failed`] when the library cannot.
///
/// Source: jwt/ruby-jwt 2.8.2 `lib/jwt/encode.rb`, recorded in `tests/fixtures/captures`.
pub fn sign_jwt(signer: &RsaSigner, body: &str, issuer: &str) -> Result<String, SignerError> {
    let claims = serde_json::to_vec(&Claims { data: body, iss: issuer }).expect("two strings always serialise");
    let mut token = URL_SAFE_NO_PAD.encode(br#"{"alg":"RS256"}"#);
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(claims, &mut token);
    let signature = signer.sign(token.as_bytes())?;
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    Ok(token)
}

/// Escapes a JSON text as ActiveSupport's `to_json` does: `<`, `>`, `&`, U+2028 and U+2029 become
/// `\uXXXX`. In valid JSON they occur in strings only, so the meaning stays and the bytes change –
/// which is why a body must never be re-serialised before its signature is checked.
///
/// Source: rails/rails `activesupport/lib/active_support/json/encoding.rb` (`escape_html_entities_in_json`).
pub fn rails_json_escape(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len() + json.len() / 32);
    for character in json.chars() {
        match character {
            '<' => escaped.push_str("\\u003c"),
            '>' => escaped.push_str("\\u003e"),
            '&' => escaped.push_str("\\u0026"),
            '\u{2028}' => escaped.push_str("\\u2028"),
            '\u{2029}' => escaped.push_str("\\u2029"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaping_touches_five_characters_and_keeps_the_rest() {
        let escaped = rails_json_escape("é 🚣 <a> & \u{2028}\u{2029} / \" \\ \n");

        assert_eq!(escaped, "é 🚣 \\u003ca\\u003e \\u0026 \\u2028\\u2029 / \" \\ \n");
    }
}
