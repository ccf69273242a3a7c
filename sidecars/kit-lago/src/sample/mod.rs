//! Built-in webhook bodies for every type of the table, in Lago's shapes and with its escaping, for
//! the demo, `outrigger send`, the load generator and the tests. Deterministic: the same type and
//! [`Shape`] give the same bytes.
//!
//! Persons and companies are invented. Shapes: getlago/lago-api `app/serializers/v1/` at v1.16.0;
//! money is integer cents, decimals are strings, times are ISO 8601.

mod billing;
mod json;
mod objects;

use kit::clock::Timestamp;
use sha2::{Digest, Sha256};

use crate::signature::rails_json_escape;
use crate::webhook_type::{body_name, find};
use json::Object;

/// What a sample is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// The customer's `external_id`: the tenant. Its subscription, wallet and customer record are
    /// the same in every sample, so that samples of one customer share subjects.
    pub customer: String,
    /// `organization_id` of the body; `None` as before v1.33.3.
    pub organization_id: Option<String>,
    /// Number of the sample: no two numbers give the same body.
    pub seq: u64,
    /// Fees of an invoice, about 0.8 KiB each; thousands make the MiB bodies that real invoices are.
    pub fees: usize,
}

impl Default for Shape {
    /// An organisation, one customer, one fee: an `invoice.created` of about 2.8 KiB.
    fn default() -> Self {
        Self {
            customer: "5f0c9c1e-0f5b-4b7e-9a55-3f1a6a1d7c01".to_owned(),
            organization_id: Some("1a901a90-1a90-4a90-9a90-1a901a901a90".to_owned()),
            seq: 0,
            fees: 1,
        }
    }
}

/// The body of a webhook, as Lago would send it.
///
/// Takes catalogue names and body names alike. A type that is not in the table gets a small object
/// of its own kind (`novelty`), as a later Lago might send.
pub fn sample(webhook_type: &str, shape: &Shape) -> String {
    let facts = Facts { shape };
    let row = find(webhook_type);
    let name = row.map_or(webhook_type, |row| body_name(row.name));
    let object_type = row.map_or("novelty", |row| row.object_type);
    let object = objects::object(&facts, object_type, name);
    let mut envelope = Object::new();
    envelope.text("webhook_type", name).text("object_type", object_type);
    if let Some(organization_id) = &shape.organization_id {
        envelope.text("organization_id", organization_id);
    }
    envelope.raw(object_type, &object);
    rails_json_escape(&envelope.finish())
}

/// 2024-11-21T04:40:24Z, two days after v1.16.0.
const FIRST_MOMENT_MILLIS: i64 = 1_732_164_024_000;
/// Samples repeat their times after this many seconds (about 95 years), so that dates stay four
/// digits long.
const MOMENTS: u64 = 3_000_000_000;

/// The invented facts of one sample.
struct Facts<'a> {
    shape: &'a Shape,
}

impl Facts<'_> {
    /// An id that depends on the customer only.
    fn customer_uuid(&self, what: &str) -> String {
        uuid(&[what, &self.shape.customer])
    }

    /// An id that depends on the sample's number too.
    fn uuid(&self, what: &str) -> String {
        uuid(&[what, &self.shape.customer, &self.shape.seq.to_string()])
    }

    fn subscription(&self) -> String {
        format!("sub-{}", self.shape.customer)
    }

    /// Names with the characters that ActiveSupport escapes, and with some that it leaves alone.
    fn company(&self) -> &'static str {
        const COMPANIES: [&str; 4] = [
            "Café Söhne & Co <Berlin>",
            "Boats \"R\" Us & Daughters 🚣",
            "日本商店 & Partner > Tokyo",
            "O'Brien \\ Ünïcode & <b>Bold</b>\u{2028}Ltd",
        ];
        let index = self.shape.customer.bytes().map(usize::from).sum::<usize>();
        COMPANIES[index % COMPANIES.len()]
    }

    /// The moment of this sample, in whole seconds as Lago writes times.
    fn moment(&self) -> String {
        moment(self.shape.seq)
    }

    /// A day as Lago writes `issuing_date`.
    fn day(&self) -> String {
        self.moment().chars().take(10).collect()
    }

    fn cents(&self) -> i64 {
        1_900 + i64::try_from(self.shape.seq % 97).unwrap_or(0) * 113
    }

    /// Payments fail now and then.
    fn payment_status(&self) -> &'static str {
        match self.shape.seq % 4 {
            0 | 1 => "succeeded",
            2 => "failed",
            _ => "pending",
        }
    }
}

fn moment(seconds: u64) -> String {
    let seconds = i64::try_from(seconds % MOMENTS).unwrap_or(0);
    let text = Timestamp::from_millis(FIRST_MOMENT_MILLIS + seconds * 1000).to_string();
    text.replace(".000Z", "Z")
}

/// A version 4 UUID by its looks; by its making, a hash.
fn uuid(parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hasher.finalize()[..16]);
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}
