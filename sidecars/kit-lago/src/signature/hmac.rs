//! HMAC-SHA256: the key is an organisation's `hmac_key`, the text of a UUID whose 36 ASCII bytes
//! are used as they stand.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use kit::secret::Secret;
use sha2::Sha256;

use super::{KeyError, Rejected};

/// The most HMAC keys that may be valid at once. Rotation needs two; every key costs one pass over
/// the body of each forged request.
pub const MAX_HMAC_KEYS: usize = 8;

const DIGEST_BYTES: usize = 32;
/// Nothing longer is decoded: a genuine header has 44 characters.
const MAX_HEADER_BYTES: usize = 1024;

/// The keys an endpoint's webhooks may be signed with, ready for use.
#[derive(Clone)]
pub struct HmacKeys {
    /// Each with its key already absorbed; cloning the state saves two compressions a request.
    keyed: Vec<Hmac<Sha256>>,
    shortest_bytes: usize,
}

impl HmacKeys {
    /// Takes the keys as the UTF-8 texts Lago shows.
    ///
    /// # Errors
    /// [`KeyError::None`] without a key, [`KeyError::TooMany`] above [`MAX_HMAC_KEYS`],
    /// [`KeyError::EmptyHmac`] for an empty one.
    pub fn new(keys: Vec<Secret>) -> Result<Self, KeyError> {
        if keys.is_empty() {
            return Err(KeyError::None);
        }
        if keys.len() > MAX_HMAC_KEYS {
            return Err(KeyError::TooMany { found: keys.len(), limit: MAX_HMAC_KEYS });
        }
        if keys.iter().any(|key| key.expose().is_empty()) {
            return Err(KeyError::EmptyHmac);
        }
        let keyed = keys.iter().map(keyed).collect();
        let shortest_bytes = keys.iter().map(|key| key.expose().len()).min().unwrap_or(0);
        Ok(Self { keyed, shortest_bytes })
    }

    /// Length of the shortest key. Lago's are 36 bytes; something much shorter was typed by hand
    /// and deserves a warning, no more: Lago itself accepts any text.
    pub fn shortest_bytes(&self) -> usize {
        self.shortest_bytes
    }

    /// Checks an `X-Lago-Signature` header against the body exactly as received.
    ///
    /// The header must be the canonical standard Base64, with padding, of 32 bytes: other spellings
    /// of the same digest are refused. Every key is tried and each comparison takes the same time
    /// whatever it finds. No timestamp is signed, so freshness is not proven here: callers
    /// deduplicate by `X-Lago-Unique-Key` and body.
    ///
    /// # Errors
    /// [`Rejected::MissingHeader`], [`Rejected::NotBase64`], [`Rejected::WrongLength`],
    /// [`Rejected::IsToken`] or [`Rejected::Mismatch`].
    ///
    /// Source: getlago/lago-api `app/models/webhook.rb` (`hmac_signature`) at v1.16.0.
    pub fn verify(&self, header: Option<&[u8]>, body: &[u8]) -> Result<(), Rejected> {
        let claimed = decode(header.unwrap_or_default())?;
        let genuine = self.keyed.iter().fold(false, |found, keyed| {
            let mut mac = keyed.clone();
            mac.update(body);
            found | mac.verify_slice(&claimed).is_ok()
        });
        if genuine { Ok(()) } else { Err(Rejected::Mismatch) }
    }
}

impl fmt::Debug for HmacKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HmacKeys({} redacted)", self.keyed.len())
    }
}

/// Signs a body as Lago does: the Base64 for `X-Lago-Signature`.
pub fn sign_hmac(key: &Secret, body: &[u8]) -> String {
    let mut mac = keyed(key);
    mac.update(body);
    STANDARD.encode(mac.finalize().into_bytes())
}

fn keyed(key: &Secret) -> Hmac<Sha256> {
    Hmac::new_from_slice(key.expose().as_bytes()).expect("HMAC takes a key of any length")
}

fn decode(header: &[u8]) -> Result<[u8; DIGEST_BYTES], Rejected> {
    if header.is_empty() {
        return Err(Rejected::MissingHeader);
    }
    if header.iter().filter(|byte| **byte == b'.').count() == 2 {
        return Err(Rejected::IsToken);
    }
    if header.len() > MAX_HEADER_BYTES {
        return Err(Rejected::WrongLength { found: header.len() });
    }
    // The engine demands padding and zero trailing bits, so one digest has one spelling.
    let decoded = STANDARD.decode(header).map_err(|_| Rejected::NotBase64)?;
    let found = decoded.len();
    decoded.try_into().map_err(|_| Rejected::WrongLength { found })
}
