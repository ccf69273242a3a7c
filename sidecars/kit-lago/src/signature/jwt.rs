//! RS256 JSON Web Tokens as Lago writes them: header `{"alg":"RS256"}`, claims `data` (the body as
//! one string) and `iss`. No `exp`, `iat`, `nbf`, `aud`, `jti` or `kid`.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Validation, decode, decode_header};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use super::key::parse_all;
use super::{KeyError, Rejected, RsaKey};

/// The most RSA keys that may be valid at once: the current one and a few of an overlap.
pub const MAX_RSA_KEYS: usize = 4;

/// The largest encoded token header looked at. Lago's has 20 characters; one with a certificate
/// chain stays below this.
const MAX_TOKEN_HEADER_BYTES: usize = 16 * 1024;

/// The keys tokens are verified with, newest first. May be empty: the key is not known yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RsaKeys {
    keys: Vec<RsaKey>,
}

impl RsaKeys {
    /// Takes keys, newest first.
    ///
    /// # Errors
    /// [`KeyError::TooMany`] above [`MAX_RSA_KEYS`].
    pub fn new(keys: Vec<RsaKey>) -> Result<Self, KeyError> {
        if keys.len() > MAX_RSA_KEYS {
            return Err(KeyError::TooMany { found: keys.len(), limit: MAX_RSA_KEYS });
        }
        Ok(Self { keys })
    }

    /// Reads one to [`MAX_RSA_KEYS`] PEM blocks from a text, newest first.
    ///
    /// # Errors
    /// A [`KeyError`] for the first block that is not a usable RSA public key.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        Self::new(parse_all(text)?)
    }

    /// The same set with `key` in front. A key that was known already moves to the front; the
    /// oldest falls out above [`MAX_RSA_KEYS`].
    #[must_use]
    pub fn with_newest(&self, key: RsaKey) -> Self {
        let older = self.keys.iter().filter(|known| **known != key).cloned();
        let keys = std::iter::once(key.clone()).chain(older).take(MAX_RSA_KEYS).collect();
        Self { keys }
    }

    /// The keys, newest first.
    pub fn keys(&self) -> &[RsaKey] {
        &self.keys
    }

    /// Whether no key is known yet.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Checks an `X-Lago-Signature` header that holds a token against the body exactly as received.
    ///
    /// The algorithm is RS256 and nothing else. Keys and key references in the token (`kid`, `jwk`,
    /// `jku`, `x5u`, `x5c`) are ignored: only this set verifies. Claims are read only after the
    /// signature held. `issuer`, where given, is required and must equal the claim `iss`; without
    /// it, `iss` may be anything or absent. Time claims are ignored because Lago writes none.
    /// Nothing here proves freshness: callers deduplicate.
    ///
    /// # Errors
    /// Any [`Rejected`] but those of HMAC. [`Rejected::NoKey`] means that nothing is known about
    /// the request yet, not that it is forged.
    ///
    /// Source: getlago/lago-api `app/models/webhook.rb` (`jwt_signature`) at v1.16.0.
    pub fn verify(&self, header: Option<&[u8]>, body: &[u8], issuer: Option<&str>) -> Result<(), Rejected> {
        let token = header.unwrap_or_default();
        check_shape(token)?;
        if self.keys.is_empty() {
            return Err(Rejected::NoKey);
        }
        let validation = validation(issuer);
        let claims = self.first_verified(token, &validation)?;
        match first_difference(claims.data.as_bytes(), body) {
            None => Ok(()),
            Some(first_difference) => Err(Rejected::DataDiffers { first_difference }),
        }
    }

    fn first_verified(&self, token: &[u8], validation: &Validation) -> Result<Claims, Rejected> {
        for key in &self.keys {
            match decode::<Claims>(token, &key.decoding, validation) {
                Ok(verified) => return Ok(verified.claims),
                Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => {}
                Err(error) => return Err(rejection(token, &error)),
            }
        }
        Err(Rejected::BadSignature)
    }
}

/// Exactly the two strings; a second `data` or `iss` is an error, and so is any other type.
#[derive(Deserialize)]
struct Claims {
    data: String,
    /// Compared by the library against `Validation::iss`, read here so that its type is pinned: the
    /// library would take an array that contains the issuer.
    #[serde(rename = "iss")]
    _issuer: Option<String>,
}

/// The part of a token's header that decides. A second `alg` or `crit` is an error.
#[derive(Deserialize)]
struct TokenHeader {
    alg: Option<String>,
    #[serde(default, deserialize_with = "is_present", rename = "crit")]
    critical: bool,
}

fn is_present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

/// Everything that can be said about a token before any key is used.
fn check_shape(token: &[u8]) -> Result<(), Rejected> {
    if token.is_empty() {
        return Err(Rejected::MissingHeader);
    }
    let mut segments = token.split(|byte| *byte == b'.');
    let (Some(header), Some(claims), Some(signature), None) =
        (segments.next(), segments.next(), segments.next(), segments.next())
    else {
        let is_hmac = token.len() == 44 && STANDARD.decode(token).is_ok();
        return Err(if is_hmac {
            Rejected::IsHmac
        } else {
            Rejected::MalformedToken("it does not have three segments")
        });
    };
    if header.len() > MAX_TOKEN_HEADER_BYTES {
        return Err(Rejected::MalformedToken("its header is too large"));
    }
    let header = URL_SAFE_NO_PAD
        .decode(header)
        .map_err(|_| Rejected::MalformedToken("its header is not canonical Base64url"))?;
    let header: TokenHeader = serde_json::from_slice(&header)
        .map_err(|_| Rejected::MalformedToken("its header is not the JSON of a token header"))?;
    match header.alg.as_deref() {
        Some("RS256") => {}
        Some(other) => return Err(Rejected::AlgorithmNotAllowed(printable_algorithm(other))),
        None => return Err(Rejected::AlgorithmNotAllowed("not given".to_owned())),
    }
    if header.critical {
        return Err(Rejected::Critical);
    }
    if claims.is_empty() || signature.is_empty() {
        return Err(Rejected::MalformedToken("a segment is empty"));
    }
    Ok(())
}

fn printable_algorithm(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).take(32).collect()
}

fn validation(issuer: Option<&str>) -> Validation {
    let mut validation = Validation::new(jsonwebtoken::Algorithm::RS256);
    // The defaults demand and check `exp`, which Lago does not write. `iss` is the other way round:
    // jsonwebtoken 11.1 checks it only where the token has it, so it is demanded here.
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    if let Some(issuer) = issuer {
        validation.required_spec_claims.insert("iss".to_owned());
        validation.set_issuer(&[issuer]);
    }
    validation
}

fn rejection(token: &[u8], error: &Error) -> Rejected {
    match error.kind() {
        ErrorKind::InvalidIssuer | ErrorKind::MissingRequiredClaim(_) => Rejected::IssuerMismatch,
        ErrorKind::Base64(_) => Rejected::MalformedToken("a segment is not canonical Base64url"),
        // The library reads more of the header than `check_shape` does.
        ErrorKind::Json(_) if decode_header(token).is_err() => {
            Rejected::MalformedToken("its header is not the JSON of a token header")
        }
        ErrorKind::Json(_) | ErrorKind::Utf8(_) => Rejected::ClaimsMalformed,
        _ => Rejected::MalformedToken("it cannot be decoded"),
    }
}

fn first_difference(left: &[u8], right: &[u8]) -> Option<usize> {
    if left == right {
        return None;
    }
    let position = left.iter().zip(right).position(|(left, right)| left != right);
    Some(position.unwrap_or(left.len().min(right.len())))
}
