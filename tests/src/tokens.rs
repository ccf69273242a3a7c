//! Tokens that Lago would never make, signed or not: the forger's workshop.

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kit_lago::signature::RsaSigner;

/// Base64 as tokens have it.
pub fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A token with any header and claims, signed with RS256 by `signer`.
///
/// # Errors
/// The signature cannot be made.
pub fn signed(signer: &RsaSigner, header: &str, claims: &str) -> Result<String> {
    let message = format!("{}.{}", b64(header), b64(claims));
    let signature = signer.sign(message.as_bytes())?;
    Ok(format!("{message}.{}", b64(signature)))
}

/// A token whose last part is `signature` as it is.
pub fn with_signature(header: &str, claims: &str, signature: impl AsRef<[u8]>) -> String {
    format!("{}.{}.{}", b64(header), b64(claims), b64(signature))
}

/// The claims that Lago would make for a body.
pub fn claims(body: &str, issuer: &str) -> String {
    serde_json::json!({ "data": body, "iss": issuer }).to_string()
}
