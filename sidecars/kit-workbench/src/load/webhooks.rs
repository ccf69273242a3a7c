//! Pools of Lago webhooks: sample bodies of a wanted size, signed as Lago signs.

use std::sync::Arc;

use kit::secret::Secret;
use kit_lago::sample::{Shape, sample};
use kit_lago::signature::{RsaSigner, SignerError, sign_hmac, sign_jwt};
use kit_lago::{describe, webhook_type};

use super::{Pool, PreparedWebhook};

/// With this many fees an invoice is above 100 MiB; nobody wants more.
const MOST_FEES: usize = 1 << 17;

/// How the webhooks are signed.
#[derive(Clone)]
pub enum Signing {
    /// Not at all: every one of them should be refused.
    Unsigned,
    /// HMAC-SHA256 with the organisation's key.
    Hmac(Secret),
    /// RS256 with Lago's key; the whole body travels in the header once more.
    Jwt {
        /// Lago's private key.
        signer: Arc<RsaSigner>,
        /// Claim `iss`: Lago's own address.
        issuer: String,
    },
}

impl std::fmt::Debug for Signing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unsigned => "Unsigned",
            Self::Hmac(_) => "Hmac(redacted)",
            Self::Jwt { .. } => "Jwt(redacted)",
        })
    }
}

/// What a pool of Lago webhooks holds.
#[derive(Clone, Debug)]
pub struct LagoWebhooks {
    /// The organisation, as the ledger names it.
    pub organisation: String,
    /// `organization_id` of the bodies.
    pub organization_id: Option<String>,
    /// Types, taken in turn; with none, every known type.
    pub types: Vec<String>,
    /// How many different webhooks. A run goes through them again and again with fresh keys, so
    /// this is also how many subjects there are to keep in order side by side. Two of them in a row
    /// belong to one customer.
    pub count: usize,
    /// Fees of an invoice; without one it takes about 2 KiB, with one about 2.8.
    pub fees: usize,
    /// Bodies are at least this large where the type is an invoice, whose fees can be repeated;
    /// `None` for the natural size of a sample.
    pub body_bytes: Option<usize>,
    /// How they are signed.
    pub signing: Signing,
}

impl LagoWebhooks {
    /// 64 webhooks `invoice.created` of natural size.
    pub fn new(organisation: impl Into<String>, signing: Signing) -> Self {
        Self {
            organisation: organisation.into(),
            organization_id: None,
            types: vec!["invoice.created".to_owned()],
            count: 64,
            fees: 1,
            body_bytes: None,
            signing,
        }
    }
}

impl Pool {
    /// Makes and signs the webhooks.
    ///
    /// # Errors
    /// When a JWT cannot be signed.
    pub fn lago(wanted: &LagoWebhooks) -> Result<Self, SignerError> {
        let organisation: Arc<str> = wanted.organisation.as_str().into();
        let every: Vec<&str> = match wanted.types.as_slice() {
            [] => webhook_type::all().iter().map(|row| row.name).collect(),
            types => types.iter().map(String::as_str).collect(),
        };
        let mut webhooks = Vec::with_capacity(wanted.count);
        for (number, webhook_type) in (0..wanted.count).zip(every.iter().cycle()) {
            let shape = Shape {
                // Tenants are UUIDs in the reference platform.
                customer: uuid::Uuid::from_u128((number / 2 + 1) as u128).to_string(),
                organization_id: wanted.organization_id.clone(),
                seq: number as u64,
                fees: wanted.fees,
            };
            let body = sized(webhook_type, shape, wanted.body_bytes);
            let headers = wanted.signing.headers(&body)?;
            // Without a unique key only the payload can name the subject; where it does not, the
            // subject is the webhook itself and there is no order to keep.
            let subject = describe(body.as_bytes(), &wanted.organisation, "").subject;
            let subject = if subject == "webhook" { String::new() } else { subject };
            webhooks.push(PreparedWebhook::new(Arc::clone(&organisation), subject, headers, body));
        }
        Ok(Self::new(webhooks))
    }
}

impl Signing {
    fn headers(&self, body: &str) -> Result<Vec<(String, String)>, SignerError> {
        let (algorithm, signature) = match self {
            Self::Unsigned => return Ok(Vec::new()),
            Self::Hmac(key) => ("hmac", sign_hmac(key, body.as_bytes())),
            Self::Jwt { signer, issuer } => ("jwt", sign_jwt(signer, body, issuer)?),
        };
        Ok(vec![
            ("X-Lago-Signature-Algorithm".to_owned(), algorithm.to_owned()),
            ("X-Lago-Signature".to_owned(), signature),
        ])
    }
}

/// A sample that is large enough and only by a fee or two too large, where fees make it larger at
/// all; else the sample as it is.
fn sized(webhook_type: &str, mut shape: Shape, body_bytes: Option<usize>) -> String {
    let natural = sample(webhook_type, &shape);
    let Some(wanted) = body_bytes.filter(|wanted| *wanted > natural.len()) else {
        return natural;
    };
    let few = shape.fees;
    shape.fees += 1;
    loop {
        let body = sample(webhook_type, &shape);
        let grown = body.len().saturating_sub(natural.len());
        if grown == 0 || body.len() >= wanted || shape.fees >= MOST_FEES {
            return body;
        }
        // Later fees are a little longer than the first ones, as numbers get more digits: nine
        // tenths of the estimate come near without going far beyond.
        let per_fee = grown.div_ceil(shape.fees - few);
        let missing = wanted - body.len();
        shape.fees += (missing * 9 / 10 / per_fee).max(1);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use kit_lago::signature::{HmacKeys, RsaKeys};

    use super::*;

    fn header<'a>(webhook: &'a PreparedWebhook, name: &str) -> &'a [u8] {
        let found = webhook.headers.iter().find(|(known, _)| known == name);
        found.unwrap().1.as_bytes()
    }

    #[test]
    fn hmac_webhooks_of_every_type_verify() {
        let key = Secret::from("hmac-key-of-the-organisation".to_owned());
        let wanted = LagoWebhooks {
            types: Vec::new(),
            count: webhook_type::all().len(),
            ..LagoWebhooks::new("acme", Signing::Hmac(key.clone()))
        };

        let pool = Pool::lago(&wanted).unwrap();

        let keys = HmacKeys::new(vec![key]).unwrap();
        assert_eq!(pool.len(), 76);
        for index in 0..pool.len() {
            let webhook = pool.get(index);
            let signature = header(webhook, "X-Lago-Signature");
            keys.verify(Some(signature), &webhook.body).unwrap();
            assert_eq!(header(webhook, "X-Lago-Signature-Algorithm"), b"hmac");
        }
    }

    #[test]
    fn jwt_webhooks_verify() {
        let signer = Arc::new(RsaSigner::generate().unwrap());
        let signing = Signing::Jwt { signer: Arc::clone(&signer), issuer: "http://lago-api:3000".to_owned() };
        let wanted = LagoWebhooks { count: 2, ..LagoWebhooks::new("acme", signing) };

        let pool = Pool::lago(&wanted).unwrap();

        let keys = RsaKeys::new(vec![signer.public_key()]).unwrap();
        for index in 0..pool.len() {
            let webhook = pool.get(index);
            let token = header(webhook, "X-Lago-Signature");
            let issuer = Some("http://lago-api:3000");
            keys.verify(Some(token), &webhook.body, issuer).unwrap();
        }
    }

    #[test]
    fn bodies_reach_the_wanted_size_and_not_much_more() {
        for bytes in [4_000, 100_000, 4 << 20] {
            let wanted =
                LagoWebhooks { count: 1, body_bytes: Some(bytes), ..LagoWebhooks::new("acme", Signing::Unsigned) };

            let pool = Pool::lago(&wanted).unwrap();

            let length = pool.get(0).body.len();
            assert!(length >= bytes, "{length} < {bytes}");
            assert!(length < bytes + 4_096, "{length} >> {bytes}");
        }
    }

    #[test]
    fn types_that_cannot_grow_keep_their_size() {
        let wanted = LagoWebhooks {
            count: 1,
            types: vec!["customer.created".to_owned()],
            body_bytes: Some(1 << 20),
            ..LagoWebhooks::new("acme", Signing::Unsigned)
        };

        let pool = Pool::lago(&wanted).unwrap();

        assert!(pool.get(0).body.len() < 100_000);
    }

    #[test]
    fn bodies_differ_and_have_subjects() {
        let pool = Pool::lago(&LagoWebhooks::new("acme", Signing::Unsigned)).unwrap();

        let digests: std::collections::BTreeSet<_> = (0..pool.len()).map(|index| pool.get(index).sha256()).collect();
        assert_eq!(digests.len(), 64);
        assert!(pool.get(0).subject.starts_with("invoice/"));
    }
}
