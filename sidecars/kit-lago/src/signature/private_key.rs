//! Lago's own RSA key, in the forms in which Lago takes it: for whoever sets a Lago up. It is judged before Lago is, because
//! what Lago cannot read keeps it from starting, with an error of OpenSSL's.
//!
//! Source: getlago/lago-api, the initializer that reads the key, and `scripts/generate.rsa.sh`, at v1.16.0 and at the head
//! of 2026-08-21.

use std::fmt;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use kit::secret::Secret;

use super::RsaKey;
use super::key::encode_pem;

/// The largest text that is looked at.
const MAX_TEXT_BYTES: usize = 64 * 1024;
const MIN_BITS: usize = 2048;
/// As Ruby decodes: with padding or without.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Why Lago could not, or should not, use a private key. No message shows any of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrivateKeyError {
    /// Nothing there.
    #[error("there is no key: Lago does not start without one")]
    Empty,
    /// The PEM where its Base64 belongs.
    #[error(
        "LAGO_RSA_PRIVATE_KEY holds the PEM itself: Lago decodes it as Base64, gets junk and does not start. Give the Base64 of \
         the PEM on one line (openssl base64 -A -in private.pem)"
    )]
    RawPem,
    /// The Base64 where the PEM belongs.
    #[error(
        "this is the Base64 of a PEM, which belongs into LAGO_RSA_PRIVATE_KEY: a file holds the PEM itself (base64 -d)"
    )]
    Base64OfPem,
    /// Neither.
    #[error("this is no PEM, nor the Base64 of one: make a key with openssl genrsa 2048")]
    NotPem,
    /// A PEM block begins and does not end, or its content is not Base64.
    #[error("the PEM is cut off or garbled: copy it again, with its BEGIN and END lines")]
    Broken,
    /// More than one.
    #[error("the PEM holds more than one block, and Lago would take the first: keep the private key alone")]
    Several,
    /// A passphrase would be asked for.
    #[error(
        "the key is encrypted, and nobody is there to give Lago its passphrase: openssl rsa -in private.pem -out plain.pem"
    )]
    Encrypted,
    /// The other half.
    #[error("this is a public key: Lago signs, and needs the private one")]
    Public,
    /// Not a key.
    #[error("the PEM holds a {0}, not a private key")]
    Other(
        /// What it says it holds.
        String,
    ),
    /// OpenSSH's own format.
    #[error("this is a private key in the format of OpenSSH: convert it with ssh-keygen -p -m PEM -N '' -f FILE")]
    OpenSsh,
    /// A key of another algorithm.
    #[error("this is no RSA key, and Lago signs with RS256: openssl genrsa 2048")]
    NotRsa,
    /// Too weak.
    #[error("the RSA key has {bits} bits, at least {MIN_BITS} are needed: openssl genrsa 2048")]
    TooShort {
        /// Length of the modulus.
        bits: usize,
    },
    /// The numbers do not fit.
    #[error("the numbers in this key are not a usable RSA key: make another with openssl genrsa 2048")]
    Unusable,
    /// The cryptographic library failed.
    #[error("no key could be made")]
    Failed,
}

/// An RSA private key that every Lago can use.
pub struct LagoPrivateKey {
    pem: Secret,
    public: RsaKey,
    is_pkcs8: bool,
}

impl LagoPrivateKey {
    /// Makes a new key of 2048, 3072 or 4096 bits; takes up to some seconds.
    ///
    /// # Errors
    /// [`PrivateKeyError::Failed`], also for another size.
    pub fn generate(bits: usize) -> Result<Self, PrivateKeyError> {
        let size = match bits {
            2048 => KeySize::Rsa2048,
            3072 => KeySize::Rsa3072,
            4096 => KeySize::Rsa4096,
            _ => return Err(PrivateKeyError::Failed),
        };
        let pair = KeyPair::generate(size).map_err(|_| PrivateKeyError::Failed)?;
        let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).map_err(|_| PrivateKeyError::Failed)?;
        let pem = Secret::from(encode_pem("PRIVATE KEY", der.as_ref().to_vec()));
        Ok(Self { pem, public: public_half(&pair)?, is_pkcs8: true })
    }

    /// Judges the text of a key file.
    ///
    /// # Errors
    /// [`PrivateKeyError`], which says what it is instead.
    pub fn from_pem(text: &str) -> Result<Self, PrivateKeyError> {
        let trimmed = text.trim_start_matches('\u{feff}').trim();
        if trimmed.is_empty() {
            return Err(PrivateKeyError::Empty);
        }
        if trimmed.len() > MAX_TEXT_BYTES || !trimmed.contains("-----BEGIN ") {
            let is_base64 = lenient(trimmed).is_some_and(|decoded| decoded.contains("-----BEGIN "));
            return Err(if is_base64 { PrivateKeyError::Base64OfPem } else { PrivateKeyError::NotPem });
        }
        let blocks = pem::parse_many(trimmed).map_err(|_| PrivateKeyError::Broken)?;
        let block = match blocks.as_slice() {
            [block] if trimmed.matches("-----BEGIN ").count() == 1 => block,
            [] | [_] => return Err(PrivateKeyError::Broken),
            _ => return Err(PrivateKeyError::Several),
        };
        let is_pkcs8 = match block.tag() {
            // Its header says how, in the old form.
            _ if block.headers().get("Proc-Type").is_some() => return Err(PrivateKeyError::Encrypted),
            "ENCRYPTED PRIVATE KEY" => return Err(PrivateKeyError::Encrypted),
            "PRIVATE KEY" => true,
            "RSA PRIVATE KEY" => false,
            "OPENSSH PRIVATE KEY" => return Err(PrivateKeyError::OpenSsh),
            tag if tag.ends_with("PRIVATE KEY") => return Err(PrivateKeyError::NotRsa),
            tag if tag.ends_with("PUBLIC KEY") => return Err(PrivateKeyError::Public),
            tag => {
                let shown = tag.chars().filter(|c| c.is_ascii_alphanumeric() || *c == ' ').take(40).collect();
                return Err(PrivateKeyError::Other(shown));
            }
        };
        let der = block.contents();
        let bits = modulus_bits(der, is_pkcs8).ok_or(PrivateKeyError::NotRsa)?;
        if bits < MIN_BITS {
            return Err(PrivateKeyError::TooShort { bits });
        }
        let pair = if is_pkcs8 { KeyPair::from_pkcs8(der) } else { KeyPair::from_der(der) };
        let pair = pair.map_err(|_| PrivateKeyError::Unusable)?;
        Ok(Self { pem: Secret::from(format!("{trimmed}\n")), public: public_half(&pair)?, is_pkcs8 })
    }

    /// Judges the value of `LAGO_RSA_PRIVATE_KEY` as Lago reads it: Base64, whatever stands between its letters.
    ///
    /// # Errors
    /// [`PrivateKeyError`].
    pub fn from_variable(value: &str) -> Result<Self, PrivateKeyError> {
        if value.trim().is_empty() {
            return Err(PrivateKeyError::Empty);
        }
        if value.contains("-----BEGIN ") {
            return Err(PrivateKeyError::RawPem);
        }
        match lenient(value).map(|text| Self::from_pem(&text)) {
            // Encoded twice.
            Some(Err(PrivateKeyError::Base64OfPem)) | None => Err(PrivateKeyError::NotPem),
            Some(judged) => judged,
        }
    }

    /// The value of `LAGO_RSA_PRIVATE_KEY`: the Base64 of the PEM on one line, which survives an `.env` file.
    pub fn variable(&self) -> Secret {
        Secret::from(STANDARD.encode(self.pem.expose()))
    }

    /// The text of a key file.
    pub fn pem(&self) -> &Secret {
        &self.pem
    }

    /// The public half.
    pub fn public_key(&self) -> &RsaKey {
        &self.public
    }

    /// Which of the two forms of a private key it came in.
    pub fn form(&self) -> &'static str {
        if self.is_pkcs8 { "PKCS#8" } else { "PKCS#1" }
    }
}

impl fmt::Debug for LagoPrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LagoPrivateKey({:?})", self.public)
    }
}

fn public_half(pair: &KeyPair) -> Result<RsaKey, PrivateKeyError> {
    let pem = encode_pem("RSA PUBLIC KEY", pair.public_key().as_ref().to_vec());
    RsaKey::from_pem(&pem).map_err(|_| PrivateKeyError::Unusable)
}

/// Decodes as Ruby's `Base64.decode64` does, which passes over what is none of its letters.
fn lenient(text: &str) -> Option<String> {
    if text.len() > MAX_TEXT_BYTES {
        return None;
    }
    let letters: String = text.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '/')).collect();
    String::from_utf8(LENIENT.decode(letters).ok()?).ok()
}

/// The length of an RSA key's modulus, before the library, which would only say that it does not want it.
///
/// Source: RFC 8017 A.1.2, RFC 5958 section 2.
fn modulus_bits(der: &[u8], is_pkcs8: bool) -> Option<usize> {
    let (mut inside, _) = element(der, 0x30)?;
    // The version.
    (_, inside) = element(inside, 0x02)?;
    if is_pkcs8 {
        const RSA: [u8; 11] = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
        let (algorithm, rest) = element(inside, 0x30)?;
        if !algorithm.starts_with(&RSA) {
            return None;
        }
        let (key, _) = element(rest, 0x04)?;
        return modulus_bits(key, false);
    }
    let (modulus, _) = element(inside, 0x02)?;
    let first = modulus.iter().position(|byte| *byte != 0)?;
    let digits = &modulus[first..];
    Some(digits.len() * 8 - digits.first()?.leading_zeros() as usize)
}

/// The content of a DER element with this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (first, rest) = der.split_first()?;
    let (length, rest) = rest.split_first()?;
    if *first != tag {
        return None;
    }
    let (length, rest) = if *length < 0x80 {
        (usize::from(*length), rest)
    } else {
        let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
        if bytes.len() > 4 {
            return None;
        }
        (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
    };
    rest.split_at_checked(length)
}
