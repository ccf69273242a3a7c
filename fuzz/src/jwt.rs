//! `X-Lago-Signature` under `jwt`: the first line is the header, the rest the body.
//!
//! Promise: nothing is accepted but what was recorded. Nobody has the private key, so that whatever
//! else verifies is a forgery.

use std::sync::LazyLock;

use kit_lago::signature::{Rejected, RsaKeys};

use crate::captures::{ISSUER, JWT, PUBLIC_KEY};
use crate::parts::first_line;

static VERIFIER: LazyLock<RsaKeys> =
    LazyLock::new(|| RsaKeys::from_pem(PUBLIC_KEY).expect("the recordings' key is usable"));

/// Verifies the token against the body, with and without an issuer.
///
/// # Panics
/// A forged token is accepted, or a recorded one is not.
pub fn target(data: &[u8]) {
    let (token, body) = first_line(data);
    let recorded = JWT.iter().any(|known| known.signature.as_bytes() == token && known.body == body);

    let accepted = VERIFIER.verify(Some(token), body, Some(ISSUER));
    assert_eq!(accepted.is_ok(), recorded, "{accepted:?}");
    assert_eq!(VERIFIER.verify(Some(token), body, None).is_ok(), recorded);
    assert!(VERIFIER.verify(Some(token), body, Some("http://other:3000")).is_err());
    if let Err(rejected) = accepted {
        assert!(rejected.to_string().len() < 200 && !rejected.reason().is_empty(), "{rejected:?}");
    }
    // Without a key the answer is 503, which must never become an acceptance or, for what may be a
    // token, a final refusal.
    match RsaKeys::default().verify(Some(token), body, None) {
        Ok(()) => panic!("accepted without a key"),
        Err(Rejected::NoKey) => {}
        Err(shape) => assert_eq!(VERIFIER.verify(Some(token), body, None), Err(shape)),
    }
}
