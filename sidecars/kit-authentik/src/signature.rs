//! Proof that a webhook is Authentik's. Which one counts is the receiver's configuration, never the request.
//!
//! | Variant | From | Proves |
//! |---|---|---|
//! | [`Proof::HmacHeader`] | 2025.4 | every byte of the body |
//! | [`Proof::HmacBody`] | 2024.10 | every byte of the event and the nonce; **not** the rest of the envelope: the recipient |
//! | [`Proof::Bearer`] | 2025.4 | that the sender knows the secret, nothing about the body |
//! | [`Proof::BodySecret`] | 2024.10 | the same, and the secret passes wherever the body does |
//!
//! No clock: nothing signs a time that Authentik would send again with. Repetitions are known by the event's pk.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use kit::secret::Secret;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::envelope::{BEARER_PREFIX, Envelope, SIGNATURE_PREFIX};

/// The most secrets that may be valid at once. Rotation needs two; every one costs a pass over the body of each forged
/// request.
pub const MAX_SECRETS: usize = 8;
/// A secret has at least so many bytes.
pub const SECRET_BYTES: usize = 32;
const DIGEST_BYTES: usize = 32;

/// A way to prove that a webhook is Authentik's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Proof {
    /// HMAC-SHA256 over the raw body, in a header.
    HmacHeader,
    /// HMAC-SHA256 over the nonce and the event, in the body.
    HmacBody,
    /// The secret itself in `Authorization`.
    Bearer,
    /// The secret itself in the body.
    BodySecret,
}

/// Why a proof was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The header, or the member of the body, is not there, or there twice.
    #[error("the request carries no proof where one is expected")]
    Missing,
    /// It is not what a proof looks like.
    #[error("the proof is not of the expected form")]
    Malformed,
    /// No configured secret gives it.
    #[error("no configured secret gives this proof")]
    Mismatch,
    /// The body is not our envelope, so there is nothing in it to check.
    #[error("the body is not the envelope that carries the proof")]
    NotAnEnvelope,
}

impl Rejected {
    /// A short constant name, fit for a metric label.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Missing => "missing_proof",
            Self::Malformed => "malformed_proof",
            Self::Mismatch => "mismatch",
            Self::NotAnEnvelope => "not_an_envelope",
        }
    }
}

/// Why secrets cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretsError {
    /// There is none.
    #[error("holds no secret")]
    None,
    /// There are too many.
    #[error("holds {0} secrets, at most {MAX_SECRETS} are valid at once")]
    TooMany(usize),
    /// One could be guessed.
    #[error("holds a secret of {0} bytes: at least {SECRET_BYTES} are needed, for example from: openssl rand -hex 32")]
    TooShort(usize),
}

/// The secrets that Authentik may prove itself with, ready for use.
#[derive(Clone)]
pub struct Secrets {
    all: Vec<Keyed>,
}

#[derive(Clone)]
struct Keyed {
    /// With its key already absorbed.
    mac: Hmac<Sha256>,
    /// SHA-256 of the secret: texts of any length are compared as digests of the same length.
    digest: [u8; DIGEST_BYTES],
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({} redacted)", self.all.len())
    }
}

impl Secrets {
    /// Takes the secrets as texts.
    ///
    /// # Errors
    /// [`SecretsError`].
    pub fn new(secrets: &[Secret]) -> Result<Self, SecretsError> {
        if secrets.is_empty() {
            return Err(SecretsError::None);
        }
        if secrets.len() > MAX_SECRETS {
            return Err(SecretsError::TooMany(secrets.len()));
        }
        if let Some(short) = secrets.iter().map(|secret| secret.expose().len()).find(|bytes| *bytes < SECRET_BYTES) {
            return Err(SecretsError::TooShort(short));
        }
        let keyed = |secret: &Secret| Keyed { mac: mac(secret), digest: digest(secret.expose()) };
        Ok(Self { all: secrets.iter().map(keyed).collect() })
    }

    /// Checks `X-Outrigger-Signature` against the body exactly as received. One digest has one spelling: `sha256=` and
    /// lower-case hexadecimal.
    ///
    /// # Errors
    /// [`Rejected`].
    pub fn verify_header(&self, header: Option<&[u8]>, body: &[u8]) -> Result<(), Rejected> {
        let header = header.ok_or(Rejected::Missing)?;
        let hex = header.strip_prefix(SIGNATURE_PREFIX.as_bytes()).ok_or(Rejected::Malformed)?;
        self.verify_hex(hex, body)
    }

    /// Checks the signature in the body.
    ///
    /// # Errors
    /// [`Rejected`].
    pub fn verify_body(&self, envelope: &Envelope<'_>) -> Result<(), Rejected> {
        let (Some(signature), Some(text)) = (&envelope.signature, envelope.canonical()) else {
            return Err(Rejected::Missing);
        };
        self.verify_hex(signature.as_bytes(), text.as_bytes())
    }

    /// Checks `Authorization: Bearer <secret>`; the scheme may be written in any case (RFC 9110, section 11.1).
    ///
    /// # Errors
    /// [`Rejected`].
    pub fn verify_bearer(&self, header: Option<&[u8]>) -> Result<(), Rejected> {
        let header = header.ok_or(Rejected::Missing)?;
        let (scheme, secret) = header.split_at_checked(BEARER_PREFIX.len()).ok_or(Rejected::Malformed)?;
        if !scheme.eq_ignore_ascii_case(BEARER_PREFIX.as_bytes()) {
            return Err(Rejected::Malformed);
        }
        self.verify_text(secret)
    }

    /// Checks the secret in the body.
    ///
    /// # Errors
    /// [`Rejected`].
    pub fn verify_secret(&self, envelope: &Envelope<'_>) -> Result<(), Rejected> {
        self.verify_text(envelope.secret.as_ref().ok_or(Rejected::Missing)?.expose().as_bytes())
    }

    fn verify_hex(&self, hex: &[u8], signed: &[u8]) -> Result<(), Rejected> {
        let claimed = decode(hex).ok_or(Rejected::Malformed)?;
        let genuine = self.all.iter().fold(false, |found, keyed| {
            let mut mac = keyed.mac.clone();
            mac.update(signed);
            found | mac.verify_slice(&claimed).is_ok()
        });
        if genuine { Ok(()) } else { Err(Rejected::Mismatch) }
    }

    fn verify_text(&self, claimed: &[u8]) -> Result<(), Rejected> {
        let claimed: [u8; DIGEST_BYTES] = Sha256::digest(claimed).into();
        let genuine = self.all.iter().fold(false, |found, keyed| found | bool::from(keyed.digest.ct_eq(&claimed)));
        if genuine { Ok(()) } else { Err(Rejected::Mismatch) }
    }
}

/// The hexadecimal HMAC-SHA256 of `signed`, as both signatures have it.
pub fn sign(secret: &Secret, signed: &[u8]) -> String {
    let mut mac = mac(secret);
    mac.update(signed);
    mac.finalize().into_bytes().iter().fold(String::with_capacity(2 * DIGEST_BYTES), |mut text, byte| {
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
        }
        text
    })
}

fn mac(secret: &Secret) -> Hmac<Sha256> {
    Hmac::new_from_slice(secret.expose().as_bytes()).expect("HMAC takes a key of any length")
}

fn digest(text: &str) -> [u8; DIGEST_BYTES] {
    Sha256::digest(text.as_bytes()).into()
}

/// Lower-case hexadecimal only: one digest has one spelling.
fn decode(hex: &[u8]) -> Option<[u8; DIGEST_BYTES]> {
    let nibble = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    if hex.len() != 2 * DIGEST_BYTES {
        return None;
    }
    let mut bytes = [0; DIGEST_BYTES];
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn secret() -> Secret {
        Secret::from("0123456789abcdef0123456789abcdef".to_owned())
    }

    #[test]
    fn a_digest_has_one_spelling() {
        let secrets = Secrets::new(&[secret()]).unwrap();
        let genuine = format!("sha256={}", sign(&secret(), b"body"));
        assert_eq!(secrets.verify_header(Some(genuine.as_bytes()), b"body"), Ok(()));
        let upper = genuine.to_uppercase().replace("SHA256", "sha256");
        let check = |header: &str, expected: Rejected| {
            assert_eq!(secrets.verify_header(Some(header.as_bytes()), b"body"), Err(expected), "{header}");
        };
        check(&upper, Rejected::Malformed);
        check(&genuine[7..], Rejected::Malformed);
        check(&format!("{genuine} "), Rejected::Malformed);
        check(&genuine[..genuine.len() - 1], Rejected::Malformed);
        check(&format!("sha256={}", sign(&secret(), b"Body")), Rejected::Mismatch);
        assert_eq!(secrets.verify_header(None, b"body"), Err(Rejected::Missing));
    }

    #[test]
    fn the_scheme_of_a_bearer_may_be_written_in_any_case_and_the_secret_not() {
        let secrets = Secrets::new(&[secret()]).unwrap();
        let check = |header: &str, expected: Result<(), Rejected>| {
            assert_eq!(secrets.verify_bearer(Some(header.as_bytes())), expected, "{header}");
        };
        for scheme in ["Bearer", "bearer", "BEARER"] {
            check(&format!("{scheme} {}", secret().expose()), Ok(()));
        }
        check(&format!("Bearer  {}", secret().expose()), Err(Rejected::Mismatch));
        check(&format!("Bearer {}", secret().expose().to_uppercase()), Err(Rejected::Mismatch));
        check(&format!("Basic {}", secret().expose()), Err(Rejected::Malformed));
        check("Bearer", Err(Rejected::Malformed));
    }

    /// RFC 4231, test case 2.
    #[test]
    fn it_is_hmac_sha256() {
        let key = Secret::from("Jefe".to_owned());
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(sign(&key, b"what do ya want for nothing?"), expected);
    }

    #[test]
    fn secrets_that_could_be_guessed_are_refused() {
        let secrets = |texts: &[&str]| {
            let texts: Vec<_> = texts.iter().map(|text| Secret::from((*text).to_owned())).collect();
            Secrets::new(&texts).map(|_| ())
        };
        assert_eq!(secrets(&[]), Err(SecretsError::None));
        assert_eq!(secrets(&["short"]), Err(SecretsError::TooShort(5)));
        assert_eq!(secrets(&["0123456789abcdef0123456789abcdef", "short"]), Err(SecretsError::TooShort(5)));
        assert_eq!(secrets(&["0123456789abcdef0123456789abcdef"; 9]), Err(SecretsError::TooMany(9)));
        assert_eq!(format!("{:?}", Secrets::new(&[secret()]).unwrap()), "Secrets(1 redacted)");
    }
}
