//! RSA verification keys: read from PEM, judged before use, named when refused.

use std::fmt;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::PublicKey;
use jsonwebtoken::DecodingKey;
use pem::{EncodeConfig, LineEnding, Pem};
use sha2::{Digest, Sha256};

const MIN_BITS: usize = 2048;
const MAX_BITS: usize = 8192;
/// The largest key file looked at. Four 8192-bit keys take 6 KiB.
const MAX_PEM_BYTES: usize = 64 * 1024;

/// Why a key cannot be used. Each message says what was found and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Nothing there.
    #[error("there is no key")]
    None,
    /// More keys than may be valid at once.
    #[error("{found} keys are given, at most {limit} may be valid at once: remove the old ones")]
    TooMany {
        /// How many were given.
        found: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// An HMAC key without a single byte.
    #[error("the HMAC key is empty: copy it from Lago, Developers, Signing key")]
    EmptyHmac,
    /// No PEM in the text at all.
    #[error("this is not a PEM public key: it must begin with -----BEGIN PUBLIC KEY-----")]
    NotPem,
    /// A PEM block begins and does not end, or its content is not Base64.
    #[error("the PEM is cut off or garbled: copy it again, with its BEGIN and END lines")]
    BrokenPem,
    /// The Base64 of a PEM, as Lago's API and `LAGO_RSA_PRIVATE_KEY` carry it.
    #[error("this is the Base64 of a PEM, not the PEM itself: decode it once with base64 -d")]
    Base64OfPem,
    /// A private key: it must not be where only the public half is needed.
    #[error(
        "this is a private key: keep it with Lago and derive the public key with openssl pkey \
         -in private.pem -pubout"
    )]
    PrivateKey,
    /// An X.509 certificate.
    #[error(
        "this is a certificate: extract its public key with openssl x509 -in cert.pem -pubkey \
         -noout"
    )]
    Certificate,
    /// A public key in OpenSSH's own format.
    #[error("this is an OpenSSH public key: convert it with ssh-keygen -e -m PKCS8 -f key.pub")]
    OpenSsh,
    /// A JSON Web Key.
    #[error("this is a JSON Web Key: the PEM form (-----BEGIN PUBLIC KEY-----) is needed")]
    JsonWebKey,
    /// A PEM block of another kind.
    #[error("the PEM holds a {label}: -----BEGIN PUBLIC KEY----- is needed")]
    OtherLabel {
        /// The block's label, shortened to letters, digits and spaces.
        label: String,
    },
    /// A public key of another algorithm.
    #[error("this is {found}: Lago signs with RS256, which needs an RSA key")]
    NotRsa {
        /// What it is.
        found: &'static str,
    },
    /// An RSA modulus below 2048 bits.
    #[error("the RSA key has {bits} bits, at least 2048 are needed: openssl genrsa 2048")]
    TooShort {
        /// Length of the modulus.
        bits: usize,
    },
    /// An RSA modulus above 8192 bits.
    #[error("the RSA key has {bits} bits, more than the 8192 that are supported")]
    TooLong {
        /// Length of the modulus.
        bits: usize,
    },
    /// Not the numbers of an RSA key: an exponent of 1 or an even one, or a garbled structure.
    #[error(
        "the numbers in this key are not a usable RSA key (exponent 1, an even number, or a \
         garbled structure): generate another with openssl genrsa 2048"
    )]
    Unusable,
}

/// A public key that signatures may be verified with: RSA, 2048 to 8192 bits, odd exponent of at
/// least 3.
#[derive(Clone)]
pub struct RsaKey {
    /// Kept parsed, because it is needed for every request.
    pub(super) decoding: DecodingKey,
    spki_der: Vec<u8>,
    bits: usize,
}

impl RsaKey {
    /// Reads one key: SPKI (`BEGIN PUBLIC KEY`, what Lago gives) or PKCS#1 (`BEGIN RSA PUBLIC KEY`).
    ///
    /// # Errors
    /// A [`KeyError`] that names what the text is instead.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let mut keys = parse_all(text)?;
        match (keys.pop(), keys.len()) {
            (Some(key), 0) => Ok(key),
            (_, others) => Err(KeyError::TooMany { found: others + 1, limit: 1 }),
        }
    }

    /// Length of the modulus in bits.
    pub fn bits(&self) -> usize {
        self.bits
    }

    /// SHA-256 of the SPKI in hexadecimal: the key's name in logs, the same as
    /// `openssl pkey -pubin -outform DER | sha256sum` gives.
    pub fn fingerprint(&self) -> String {
        Sha256::digest(&self.spki_der).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The key as an SPKI PEM with line feeds, whatever form it came in.
    pub fn to_pem(&self) -> String {
        encode_pem("PUBLIC KEY", self.spki_der.clone())
    }

    fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        if let Some(found) = other_family(der) {
            return Err(KeyError::NotRsa { found });
        }
        let public = PublicKey::from_der(der).map_err(|_| KeyError::Unusable)?;
        let modulus = public.modulus().big_endian_without_leading_zero();
        let bits = bit_length(modulus);
        if bits < MIN_BITS {
            return Err(KeyError::TooShort { bits });
        }
        if bits > MAX_BITS {
            return Err(KeyError::TooLong { bits });
        }
        // AWS-LC refuses some of these numbers itself; the promise is ours, so it is checked here.
        let exponent = public.exponent().big_endian_without_leading_zero();
        if !is_odd(modulus) || !is_odd(exponent) || exponent == [1] {
            return Err(KeyError::Unusable);
        }
        let spki = AsDer::<PublicKeyX509Der<'_>>::as_der(&public).map_err(|_| KeyError::Unusable)?;
        Ok(Self { decoding: DecodingKey::from_rsa_der(public.as_ref()), spki_der: spki.as_ref().to_vec(), bits })
    }
}

impl PartialEq for RsaKey {
    fn eq(&self, other: &Self) -> bool {
        self.spki_der == other.spki_der
    }
}

impl Eq for RsaKey {}

impl fmt::Debug for RsaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RsaKey({} bits, {})", self.bits, self.fingerprint())
    }
}

/// Reads every key of a PEM text; at least one.
pub(super) fn parse_all(text: &str) -> Result<Vec<RsaKey>, KeyError> {
    let text = text.trim_start_matches('\u{feff}').trim();
    if text.is_empty() {
        return Err(KeyError::None);
    }
    if text.len() > MAX_PEM_BYTES || !text.contains("-----BEGIN ") {
        return Err(name_without_pem(text));
    }
    let blocks = pem::parse_many(text).map_err(|_| KeyError::BrokenPem)?;
    if blocks.len() != text.matches("-----BEGIN ").count() {
        return Err(KeyError::BrokenPem);
    }
    blocks.iter().map(parse_block).collect()
}

pub(super) fn encode_pem(label: &str, der: Vec<u8>) -> String {
    pem::encode_config(&Pem::new(label, der), EncodeConfig::new().set_line_ending(LineEnding::LF))
}

fn parse_block(block: &Pem) -> Result<RsaKey, KeyError> {
    match block.tag() {
        "PUBLIC KEY" | "RSA PUBLIC KEY" => RsaKey::from_der(block.contents()),
        "CERTIFICATE" | "X509 CERTIFICATE" | "TRUSTED CERTIFICATE" => Err(KeyError::Certificate),
        label if label.ends_with("PRIVATE KEY") => Err(KeyError::PrivateKey),
        label => Err(KeyError::OtherLabel { label: printable_label(label) }),
    }
}

fn printable_label(label: &str) -> String {
    label.chars().filter(|c| c.is_ascii_alphanumeric() || *c == ' ').take(40).collect()
}

fn name_without_pem(text: &str) -> KeyError {
    // The first six bytes of "-----BEGIN" in Base64.
    if text.starts_with("LS0tLS1CRUdJ") {
        KeyError::Base64OfPem
    } else if text.starts_with("ssh-") {
        KeyError::OpenSsh
    } else if text.starts_with('{') {
        KeyError::JsonWebKey
    } else {
        KeyError::NotPem
    }
}

/// Names the algorithm of an SPKI that is not plain RSA, by its object identifier (RFC 3279, RFC
/// 8410, RFC 4055). AWS-LC would take an RSA-PSS key, which must not verify anything but PSS.
fn other_family(der: &[u8]) -> Option<&'static str> {
    const FAMILIES: [(&[u8], &str); 4] = [
        (&[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01], "an elliptic-curve key"),
        (&[0x06, 0x03, 0x2b, 0x65, 0x70], "an Ed25519 key"),
        (&[0x06, 0x03, 0x2b, 0x65, 0x71], "an Ed448 key"),
        (&[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a], "an RSA-PSS key"),
    ];
    let identifier = inside_sequence(inside_sequence(der)?)?;
    FAMILIES.iter().find(|(oid, _)| identifier.starts_with(oid)).map(|(_, name)| *name)
}

/// What follows the tag and length of a DER sequence.
fn inside_sequence(der: &[u8]) -> Option<&[u8]> {
    let [0x30, length, rest @ ..] = der else {
        return None;
    };
    let more_length_bytes = length.checked_sub(0x80).unwrap_or(0);
    rest.get(usize::from(more_length_bytes)..)
}

fn is_odd(big_endian: &[u8]) -> bool {
    big_endian.last().is_some_and(|byte| byte % 2 == 1)
}

fn bit_length(big_endian: &[u8]) -> usize {
    let leading = big_endian.first().map_or(0, |byte| byte.leading_zeros() as usize);
    (big_endian.len() * 8).saturating_sub(leading)
}
