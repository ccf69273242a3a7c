//! Proof that a webhook is Lago's: HMAC-SHA256 or RS256 over the body exactly as received, and the
//! signing half for the stand-in and the tests. No clock (Lago signs no time) and no I/O.
//!
//! Source: getlago/lago-api `app/models/webhook.rb` at v1.16.0 and at the head of 2026-08-21.

mod hmac;
mod jwt;
mod key;
mod private_key;
mod signer;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use hmac::{HmacKeys, MAX_HMAC_KEYS, sign_hmac};
pub use jwt::{MAX_RSA_KEYS, RsaKeys};
pub use key::{KeyError, RsaKey};
pub use private_key::{LagoPrivateKey, PrivateKeyError};
pub use signer::{RsaSigner, SignerError, rails_json_escape, sign_jwt};

/// Header with the signature, in lower case.
pub const SIGNATURE_HEADER: &str = "x-lago-signature";
/// Header with the algorithm's name. Never read by a verifier: the sender does not choose it.
pub const ALGORITHM_HEADER: &str = "x-lago-signature-algorithm";
/// Header with the delivery's identity. Not covered by any signature.
pub const UNIQUE_KEY_HEADER: &str = "x-lago-unique-key";

/// How an endpoint's webhooks are signed. Lago's own default is `jwt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Base64 of HMAC-SHA256 over the body, keyed per organisation.
    Hmac,
    /// RS256 JSON Web Token whose claim `data` is the body, with one key for the whole instance.
    Jwt,
}

impl Algorithm {
    /// The name as Lago and the configuration write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hmac => "hmac",
            Self::Jwt => "jwt",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is neither `hmac` nor `jwt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown signature algorithm: use hmac or jwt")]
pub struct UnknownAlgorithm;

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "hmac" => Ok(Self::Hmac),
            "jwt" => Ok(Self::Jwt),
            _ => Err(UnknownAlgorithm),
        }
    }
}

/// Why a signature was not accepted, precise enough to tell an operator which step failed.
///
/// Meant for logs, metrics and `outrigger verify`: the HTTP answer to a forger is one constant
/// whatever the reason. No variant carries key material or anything of the body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// No `X-Lago-Signature`, or an empty one.
    #[error("the request has no X-Lago-Signature header")]
    MissingHeader,
    /// HMAC: the header is not canonical standard Base64.
    #[error("the signature is not canonical standard Base64")]
    NotBase64,
    /// HMAC: the header decodes to something other than the 32 bytes of a SHA-256 digest.
    #[error("the signature holds {found} bytes instead of the 32 of an HMAC-SHA256 digest")]
    WrongLength {
        /// Decoded length in bytes; the length of the header where that alone is out of bounds.
        found: usize,
    },
    /// HMAC: no configured key gives this digest for this body.
    #[error("no configured HMAC key gives this signature for this body")]
    Mismatch,
    /// HMAC is configured and the header holds a JSON Web Token.
    #[error(
        "the signature is a JSON Web Token but hmac is configured: the endpoint's signature \
         algorithm in Lago is jwt"
    )]
    IsToken,
    /// JWT is configured and the header holds the Base64 of 32 bytes.
    #[error(
        "the signature is an HMAC but jwt is configured: the endpoint's signature algorithm in \
         Lago is hmac"
    )]
    IsHmac,
    /// JWT: not three Base64url segments with a JSON header in front.
    #[error("the signature is not a JSON Web Token: {0}")]
    MalformedToken(&'static str),
    /// JWT: the token names an algorithm other than RS256.
    #[error("the token's algorithm is {0}, only RS256 is allowed")]
    AlgorithmNotAllowed(
        /// At most 32 characters of `[A-Za-z0-9_-]`, whatever the token says.
        String,
    ),
    /// JWT: the token's header asks for extensions to be understood (`crit`).
    #[error("the token demands critical extensions, which Lago never does")]
    Critical,
    /// JWT: no configured key verifies the token.
    #[error("no known RSA key verifies the token's signature")]
    BadSignature,
    /// JWT: signed by Lago's key, but the claims are not `data` and `iss` as single strings.
    #[error("the token's claims are not the two strings Lago writes (data and iss)")]
    ClaimsMalformed,
    /// JWT: an issuer is configured and the token's `iss` is missing or another one.
    #[error("the token's issuer is not the configured one: it is the LAGO_API_URL of the Lago worker")]
    IssuerMismatch,
    /// JWT: the token is Lago's but speaks of another body.
    #[error("the token's data differs from the body, first at byte {first_difference}")]
    DataDiffers {
        /// Offset of the first byte that differs, or the length of the shorter one.
        first_difference: usize,
    },
    /// JWT: no key is known yet, so nothing can be said about the token. Not a forgery: answer 503.
    #[error("no RSA key is known yet")]
    NoKey,
}

impl Rejected {
    /// Every word of [`Rejected::reason`].
    pub const REASONS: [&str; 14] = [
        "missing_header",
        "not_base64",
        "wrong_length",
        "mismatch",
        "is_token",
        "is_hmac",
        "malformed_token",
        "algorithm_not_allowed",
        "critical",
        "bad_signature",
        "claims_malformed",
        "issuer_mismatch",
        "data_differs",
        "no_key",
    ];

    /// A short constant name, fit for a metric label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::MissingHeader => "missing_header",
            Self::NotBase64 => "not_base64",
            Self::WrongLength { .. } => "wrong_length",
            Self::Mismatch => "mismatch",
            Self::IsToken => "is_token",
            Self::IsHmac => "is_hmac",
            Self::MalformedToken(_) => "malformed_token",
            Self::AlgorithmNotAllowed(_) => "algorithm_not_allowed",
            Self::Critical => "critical",
            Self::BadSignature => "bad_signature",
            Self::ClaimsMalformed => "claims_malformed",
            Self::IssuerMismatch => "issuer_mismatch",
            Self::DataDiffers { .. } => "data_differs",
            Self::NoKey => "no_key",
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_algorithm_is_written_and_read_the_same_way_everywhere() {
        for algorithm in [Algorithm::Hmac, Algorithm::Jwt] {
            let text = algorithm.to_string();

            assert_eq!(text.parse(), Ok(algorithm));
            assert_eq!(serde_json::to_value(algorithm).unwrap(), serde_json::json!(text));
        }
        for wrong in ["", "HMAC", "Jwt", " hmac", "RS256", "none"] {
            assert_eq!(wrong.parse::<Algorithm>(), Err(UnknownAlgorithm));
        }
    }
}
