//! The recordings of a real Ruby sender: accepted as they are, refused with any byte changed.

use kit_lago::describe;
use kit_lago::signature::Rejected;
use kit_lago::webhook_type::{body_name, find};

use crate::support::{CAPTURED_ISSUER, Capture, captured_hmac_keys, captured_rsa_keys, captures};

#[test]
fn there_are_forty_recordings_of_each_algorithm() {
    for algorithm in ["hmac", "jwt"] {
        let captures = captures(algorithm);

        assert_eq!(captures.len(), 40);
        for capture in &captures {
            assert_eq!(capture.header("X-Lago-Signature-Algorithm"), algorithm);
            assert_eq!(capture.request_line, "POST /webhooks/lago HTTP/1.1");
            assert!(uuid::Uuid::try_parse(capture.header("X-Lago-Unique-Key")).is_ok());
        }
    }
}

#[test]
fn every_recorded_request_verifies() {
    let hmac = captured_hmac_keys();
    for capture in captures("hmac") {
        assert_eq!(hmac.verify(Some(capture.signature()), &capture.body), Ok(()));
    }
    let rsa = captured_rsa_keys();
    for capture in captures("jwt") {
        for issuer in [None, Some(CAPTURED_ISSUER)] {
            assert_eq!(rsa.verify(Some(capture.signature()), &capture.body, issuer), Ok(()));
        }
        assert_eq!(
            rsa.verify(Some(capture.signature()), &capture.body, Some("http://other:3000")),
            Err(Rejected::IssuerMismatch)
        );
    }
}

/// Every request with every byte of body and signature changed once, HMAC being cheap.
#[test]
fn no_recorded_request_verifies_with_one_byte_changed_hmac() {
    let keys = captured_hmac_keys();
    let mut tried = 0;
    for capture in captures("hmac") {
        for (signature, body) in single_byte_changes(&capture, 1) {
            tried += 1;
            assert!(keys.verify(Some(&signature), &body).is_err());
        }
    }
    assert!(tried > 15_000, "{tried}");
}

/// Every request, with a byte of body and of signature changed at a stride that differs from
/// request to request, so that all positions are met.
#[test]
fn no_recorded_request_verifies_with_one_byte_changed_jwt() {
    let keys = captured_rsa_keys();
    let mut tried = 0;
    for (index, capture) in captures("jwt").into_iter().enumerate() {
        for (signature, body) in single_byte_changes(&capture, 7 + index) {
            tried += 1;
            assert!(keys.verify(Some(&signature), &body, Some(CAPTURED_ISSUER)).is_err());
        }
    }
    assert!(tried > 1_500, "{tried}");
}

#[test]
fn every_recorded_body_is_described_by_its_own_fields() {
    for capture in [captures("hmac"), captures("jwt")].concat_all() {
        let body: serde_json::Value = serde_json::from_slice(&capture.body).unwrap();
        let webhook_type = body["webhook_type"].as_str().unwrap();
        let object_type = body["object_type"].as_str().unwrap();
        let payload = &body[object_type];
        let key = capture.header("X-Lago-Unique-Key");

        let description = describe(&capture.body, "main", key);

        assert_eq!(description.event_type, format!("lago.{webhook_type}"));
        assert_eq!(description.object_type.as_deref(), Some(object_type));
        let id = payload["external_id"].as_str().or(payload["lago_id"].as_str());
        let subject = id.map_or(format!("webhook/{key}"), |id| format!("{object_type}/{id}"));
        assert_eq!(description.subject, subject);
        let tenant = payload["external_customer_id"]
            .as_str()
            .or(payload["customer"]["external_id"].as_str())
            .or(payload["external_id"].as_str().filter(|_| object_type == "customer"));
        assert_eq!(description.tenant.as_deref(), tenant);
        assert_eq!(tenant.is_none(), object_type == "events_errors");
        assert_eq!(description.organization_id.as_deref(), body["organization_id"].as_str());
        assert!(description.is_json && !description.tenant_unattributed);
        if let Some(row) = find(webhook_type) {
            assert_eq!(row.object_type, object_type);
            assert_eq!(body_name(row.name), webhook_type);
        } else {
            assert_eq!(webhook_type, "something.new_in_2027");
        }
    }
}

/// The request with one byte of body or signature changed, at every `stride`th position.
fn single_byte_changes(capture: &Capture, stride: usize) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> + '_ {
    let signature = capture.signature().to_vec();
    let in_signature = (0..signature.len()).step_by(stride).map({
        let signature = signature.clone();
        move |at| (changed(&signature, at), capture.body.clone())
    });
    let in_body =
        (0..capture.body.len()).step_by(stride).map(move |at| (signature.clone(), changed(&capture.body, at)));
    in_signature.chain(in_body)
}

/// Flips another bit at every position; the lowest one turns a letter into its neighbour.
fn changed(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1 << (at % 8);
    bytes
}

trait ConcatAll<T> {
    fn concat_all(self) -> Vec<T>;
}

impl<T> ConcatAll<T> for [Vec<T>; 2] {
    fn concat_all(self) -> Vec<T> {
        self.into_iter().flatten().collect()
    }
}
