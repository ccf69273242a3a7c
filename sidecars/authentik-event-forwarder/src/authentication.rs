//! Who may send webhooks: the proofs that are configured, and the secrets behind them.

use axum::http::{HeaderMap, HeaderName, header};
use kit::config::{Problems, variable};
use kit::secret;
use kit_authentik::envelope::{Envelope, SIGNATURE_HEADER};
use kit_authentik::signature::{Proof, Rejected, Secrets};

use crate::config::{AuthentikSection, well_known};

/// The proofs that are accepted.
#[derive(Debug)]
pub(crate) struct Authenticator {
    secrets: Secrets,
    proofs: Vec<Proof>,
}

impl Authenticator {
    /// Reads the secrets. What is wrong goes to `problems`.
    pub(crate) fn load(section: &AuthentikSection, problems: &mut Problems) -> Option<Self> {
        let name = |field: &str| variable(&format!("authentik.{field}"), &well_known());
        let (value, file) = (name("webhook_secret"), name("webhook_secret_file"));
        let at = if section.webhook_secret.is_some() { "webhook_secret" } else { "webhook_secret_file" };
        let mut problem = |message: &str| problems.add(&format!("authentik.{at}"), message);
        let secrets = secret::resolve_lines(
            &value,
            section.webhook_secret.as_ref(),
            &file,
            section.webhook_secret_file.as_deref(),
        );
        let secrets = match secrets {
            Ok(secrets) if secrets.is_empty() => {
                problem(
                    "must be set: Authentik proves itself with it (at least 32 bytes, for example from: openssl rand -hex 32)",
                );
                return None;
            }
            Ok(secrets) => secrets,
            Err(error) => {
                problem(&error.to_string());
                return None;
            }
        };
        match Secrets::new(&secrets) {
            Ok(secrets) => {
                Some(Self { secrets, proofs: section.authentication.iter().map(|proof| (*proof).into()).collect() })
            }
            Err(error) => {
                problem(&error.to_string());
                None
            }
        }
    }

    /// Checks a request by what stands in its headers, before anything of the body is read.
    ///
    /// # Errors
    /// Why the first proof was not accepted, or that the body has to be looked at.
    pub(crate) fn by_header(&self, headers: &HeaderMap, body: &[u8]) -> Result<(), Rejected> {
        let mut rejected = Rejected::Missing;
        for proof in &self.proofs {
            let result = match proof {
                Proof::HmacHeader => {
                    let signature = single(headers, &HeaderName::from_static(SIGNATURE_HEADER));
                    self.secrets.verify_header(signature, body)
                }
                Proof::Bearer => self.secrets.verify_bearer(single(headers, &header::AUTHORIZATION)),
                Proof::HmacBody | Proof::BodySecret => continue,
            };
            match result {
                Ok(()) => return Ok(()),
                Err(why) => rejected = worse(rejected, why),
            }
        }
        Err(rejected)
    }

    /// Whether a proof may stand in the body.
    pub(crate) fn reads_body(&self) -> bool {
        self.proofs.iter().any(|proof| matches!(proof, Proof::HmacBody | Proof::BodySecret))
    }

    /// Checks a request by what stands in its body.
    ///
    /// # Errors
    /// Why no proof was accepted.
    pub(crate) fn by_body(&self, envelope: &Envelope<'_>) -> Result<(), Rejected> {
        let mut rejected = Rejected::Missing;
        for proof in &self.proofs {
            let result = match proof {
                Proof::HmacBody => self.secrets.verify_body(envelope),
                Proof::BodySecret => self.secrets.verify_secret(envelope),
                Proof::HmacHeader | Proof::Bearer => continue,
            };
            match result {
                Ok(()) => return Ok(()),
                Err(why) => rejected = worse(rejected, why),
            }
        }
        Err(rejected)
    }
}

/// Of several reasons the one that says more: a proof that is there and wrong, rather than one that is not there.
fn worse(one: Rejected, other: Rejected) -> Rejected {
    if one == Rejected::Missing { other } else { one }
}

/// The only header of this name. Two are none: nobody can say which one somebody else looked at.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut all = headers.get_all(name).iter();
    match (all.next(), all.next()) {
        (Some(only), None) => Some(only.as_bytes()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use axum::http::HeaderValue;
    use kit::secret::Secret;
    use kit_authentik::envelope::canonical;
    use kit_authentik::signature::sign;

    use super::*;
    use crate::config::Authentication;

    const OLD: &str = "an old secret of thirty-two bytes";
    const NEW: &str = "the new secret of thirty-two byte";

    fn authenticator(authentication: &[Authentication]) -> Authenticator {
        let section = AuthentikSection {
            authentication: authentication.to_vec(),
            webhook_secret: Some(Secret::from(format!("{OLD}\n{NEW}\n"))),
            ..AuthentikSection::default()
        };
        let mut problems = Problems::default();
        Authenticator::load(&section, &mut problems).unwrap()
    }

    fn body(secret: &str, variant: Authentication) -> Vec<u8> {
        let event = r#"{"pk":"0f0e0d0c0b0a49088706050403020100","action":"login"}"#;
        let proof = match variant {
            Authentication::HmacBody => {
                let text = canonical("n", event);
                format!(r#","nonce":"n","signature":"{}""#, sign(&Secret::from(secret.to_owned()), text.as_bytes()))
            }
            Authentication::BodySecret => format!(r#","secret":"{secret}""#),
            _ => String::new(),
        };
        format!(r#"{{"schema":"outrigger.authentik/1","event":{event}{proof}}}"#).into_bytes()
    }

    #[test]
    fn only_what_is_configured_counts_and_every_secret_of_a_rotation_does() {
        let all =
            [Authentication::HmacHeader, Authentication::HmacBody, Authentication::Bearer, Authentication::BodySecret];
        for configured in all {
            let authenticator = authenticator(&[configured]);
            for sent in all {
                for secret in [OLD, NEW, "another secret of thirty-two bytes"] {
                    let body = body(secret, sent);
                    let mut headers = HeaderMap::new();
                    if sent == Authentication::HmacHeader {
                        let signature = sign(&Secret::from(secret.to_owned()), &body);
                        let value = HeaderValue::from_str(&format!("sha256={signature}")).unwrap();
                        headers.insert("X-Outrigger-Signature", value);
                    }
                    if sent == Authentication::Bearer {
                        headers.insert("authorization", HeaderValue::from_str(&format!("Bearer {secret}")).unwrap());
                    }
                    let envelope = Envelope::read(&body).unwrap();
                    let proven =
                        authenticator.by_header(&headers, &body).is_ok() || authenticator.by_body(&envelope).is_ok();
                    let known = secret == OLD || secret == NEW;
                    assert_eq!(proven, known && sent == configured, "{configured:?} {sent:?} {secret}");
                }
            }
        }
    }

    #[test]
    fn two_headers_are_none() {
        let authenticator = authenticator(&[Authentication::Bearer]);
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_str(&format!("Bearer {NEW}")).unwrap();
        headers.append("authorization", value.clone());
        assert_eq!(authenticator.by_header(&headers, b""), Ok(()));
        headers.append("authorization", value);
        assert_eq!(authenticator.by_header(&headers, b""), Err(Rejected::Missing));
    }

    #[test]
    fn a_secret_that_is_missing_or_short_is_refused_by_name() {
        let check = |section: AuthentikSection, expected: &str| {
            let mut problems = Problems::default();
            assert!(Authenticator::load(&section, &mut problems).is_none());
            let lines = problems.lines(&well_known()).join("\n");
            assert!(lines.contains(expected), "{lines}");
            assert!(!lines.contains("hunter2"));
        };
        check(AuthentikSection::default(), "AUTHENTIK_WEBHOOK_SECRET_FILE");
        let short = AuthentikSection { webhook_secret: Some(Secret::from("hunter2".to_owned())), ..Default::default() };
        check(short, "7 bytes");
    }
}
