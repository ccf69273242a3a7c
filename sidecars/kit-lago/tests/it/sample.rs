//! The built-in bodies: of every type, in Lago's escaping, signed and described like the real thing.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use kit_lago::describe;
use kit_lago::sample::{Shape, sample};
use kit_lago::sender::Signing;
use kit_lago::signature::{HmacKeys, RsaKeys, rails_json_escape};
use kit_lago::webhook_type::{all, body_name};
use proptest::prelude::*;
use serde_json::Value;

use crate::support::{keys_of, lago, secret};

const ISSUER: &str = "http://lago-api:3000";

#[test]
fn there_is_a_sample_of_every_type_and_it_is_described_as_that_type() {
    let shape = Shape::default();
    for row in all() {
        let body = sample(row.name, &shape);
        let parsed: Value = serde_json::from_str(&body).unwrap();

        let description = describe(body.as_bytes(), "acme", "key");

        assert_eq!(description.event_type, format!("lago.{}", body_name(row.name)));
        assert_eq!(description.object_type.as_deref(), Some(row.object_type));
        let keys: Vec<_> = parsed.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = BTreeSet::from(["webhook_type", "object_type", "organization_id", row.object_type]);
        assert_eq!(keys.into_iter().collect::<BTreeSet<_>>(), expected);
        assert!(body.starts_with(r#"{"webhook_type":"#), "{body}");
        assert_eq!(description.subject, subject_of(&parsed, "key"), "{body}");
        let about_nobody = ["event_error", "events_errors", "provider_error", "payment_provider_error"];
        let catalogue = ["plan", "billable_metric", "feature", "payment_dispute_lost"];
        if !about_nobody.contains(&row.object_type) && !catalogue.contains(&row.object_type) {
            assert_eq!(description.tenant.as_deref(), Some(shape.customer.as_str()), "{body}");
        }
    }
}

/// The rule of the envelope, said a second time and over a parsed tree.
fn subject_of(body: &Value, key: &str) -> String {
    let object_type = body["object_type"].as_str().unwrap();
    let payload = &body[object_type];
    match payload["external_id"].as_str().or(payload["lago_id"].as_str()) {
        Some(id) => format!("{object_type}/{id}"),
        None => format!("webhook/{key}"),
    }
}

#[test]
fn both_names_of_the_failed_refund_give_the_body_name() {
    let shape = Shape::default();
    let body = sample("credit_note.provider_refund_failure", &shape);

    assert!(body.starts_with(r#"{"webhook_type":"credit_note.refund_failure","#));
    assert_eq!(body, sample("credit_note.refund_failure", &shape));
}

#[test]
fn an_unknown_type_gets_an_object_of_a_later_lago() {
    let body = sample("something.new_in_2027", &Shape::default());

    let description = describe(body.as_bytes(), "acme", "key");

    assert_eq!(description.event_type, "lago.something.new_in_2027");
    assert_eq!(description.object_type.as_deref(), Some("novelty"));
}

#[test]
fn the_same_shape_gives_the_same_bytes_and_another_number_other_bytes() {
    for row in all() {
        let bodies: BTreeSet<_> = (0..300).map(|seq| sample(row.name, &Shape { seq, ..Shape::default() })).collect();

        assert_eq!(bodies.len(), 300, "{}", row.name);
        assert_eq!(sample(row.name, &Shape::default()), sample(row.name, &Shape::default()));
    }
}

#[test]
fn before_v1_33_3_there_is_no_organization_id() {
    let body = sample("invoice.created", &Shape { organization_id: None, ..Shape::default() });

    assert!(!body.contains("organization_id"));
    assert_eq!(describe(body.as_bytes(), "acme", "key").organization_id, None);
}

#[test]
fn bodies_are_compact_and_escaped_as_active_support_does() {
    for row in all() {
        let body = sample(row.name, &Shape { fees: 3, ..Shape::default() });

        assert!(!body.contains(['<', '>', '&', '\n', '\u{2028}', '\u{2029}']), "{body}");
        assert_eq!(rails_json_escape(&body), body);
    }
    let shown = sample("invoice.created", &Shape::default());
    assert!(shown.contains("\\u0026") && shown.contains("\\u003c"), "{shown}");
    assert!(shown.contains("\"units\":\"0.5\"") && shown.contains("\"taxes_rate\":20.0"), "{shown}");
    let names: String =
        (0..8).map(|n| sample("customer.created", &Shape { customer: format!("c{n}"), ..Shape::default() })).collect();
    for piece in ["é", "🚣", "日本", "\\u2028", "\\\\", "\\\""] {
        assert!(names.contains(piece), "{piece}");
    }
}

#[test]
fn an_invoice_grows_from_kibibytes_to_mebibytes_with_its_fees() {
    let size = |fees| sample("invoice.created", &Shape { fees, ..Shape::default() }).len();

    assert!((2_000..4_500).contains(&size(1)), "{}", size(1));
    assert!(size(5_000) > 3 << 20, "{}", size(5_000));
    let parsed: Value =
        serde_json::from_str(&sample("invoice.created", &Shape { fees: 7, ..Shape::default() })).unwrap();
    let fees = parsed["invoice"]["fees"].as_array().unwrap();
    let ids: BTreeSet<_> = fees.iter().map(|fee| fee["lago_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 7);
    assert!(parsed["invoice"]["total_amount_cents"].is_i64());
}

#[test]
fn webhooks_of_one_customer_share_its_subjects() {
    let subject = |webhook_type, seq| {
        let body = sample(webhook_type, &Shape { seq, ..Shape::default() });
        describe(body.as_bytes(), "acme", "key").subject
    };
    for webhook_type in ["customer.updated", "subscription.updated", "wallet.updated"] {
        assert_eq!(subject(webhook_type, 1), subject(webhook_type, 2));
    }
    assert_eq!(subject("subscription.started", 1), subject("subscription.terminated", 9));
    assert_ne!(subject("invoice.created", 1), subject("invoice.created", 2));
    assert_eq!(subject("invoice.created", 1), subject("invoice.voided", 1));
}

static HMAC: LazyLock<(Signing, HmacKeys)> = LazyLock::new(|| {
    let key = secret("0f0e0d0c-0b0a-4908-8706-050403020100");
    (Signing::Hmac(key.clone()), HmacKeys::new(vec![key]).unwrap())
});
static JWT: LazyLock<(Signing, RsaKeys)> =
    LazyLock::new(|| (Signing::Jwt(lago(), ISSUER.to_owned()), keys_of(&lago())));

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sample_verifies_under_both_algorithms_and_is_described_by_its_own_fields(
        row in prop::sample::select(all()), customer in "\\PC{1,60}", seq in any::<u64>(),
        fees in 0usize..5, organization in prop::option::of("[0-9a-f-]{36}"),
    ) {
        let shape = Shape { customer, organization_id: organization.clone(), seq, fees };
        let body = sample(row.name, &shape);

        let by_hmac = HMAC.0.delivery(row.name, body.clone()).unwrap();
        let by_jwt = JWT.0.delivery(row.name, body.clone()).unwrap();

        prop_assert_eq!(HMAC.1.verify(Some(by_hmac.signature.as_bytes()), &by_hmac.body), Ok(()));
        prop_assert_eq!(
            JWT.1.verify(Some(by_jwt.signature.as_bytes()), &by_jwt.body, Some(ISSUER)), Ok(())
        );
        let description = describe(body.as_bytes(), "acme", &by_hmac.unique_key);
        let parsed: Value = serde_json::from_str(&body).unwrap();
        prop_assert_eq!(description.subject, subject_of(&parsed, &by_hmac.unique_key));
        prop_assert_eq!(description.organization_id, organization);
    }
}
