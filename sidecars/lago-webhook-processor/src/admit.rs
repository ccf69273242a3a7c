//! From a verified webhook to an event for the journal: decisions over values, without I/O.

use std::borrow::Cow;
use std::collections::{HashSet, VecDeque};

use axum::http::HeaderMap;
use kit_journal::{BodyDigest, Dedupe, EventHead, EventId, NewEvent};
use kit_lago::Description;
use kit_lago::signature::{ALGORITHM_HEADER, SIGNATURE_HEADER, UNIQUE_KEY_HEADER};

/// The sender's headers that the `raw` format passes on.
const ORIGINAL: [&str; 4] = ["content-type", SIGNATURE_HEADER, ALGORITHM_HEADER, UNIQUE_KEY_HEADER];
/// Longest unique key that is taken over; Lago's are UUIDs.
const KEY_BYTES: usize = 200;
const TRACESTATE_BYTES: usize = 512;

/// The deduplication key: Lago's unique key, or for a signed request without a usable one a key made
/// of the body, so that its repetitions are still recognised.
pub(crate) fn dedupe_key(headers: &HeaderMap, digest: &BodyDigest) -> String {
    let mut keys = headers.get_all(UNIQUE_KEY_HEADER).iter();
    match (keys.next().and_then(|key| key.to_str().ok()), keys.next()) {
        (Some(key), None) if (1..=KEY_BYTES).contains(&key.len()) => key.to_owned(),
        _ => digest.0.iter().fold(String::from("sha256-"), |text, byte| text + &format!("{byte:02x}")),
    }
}

/// Whether the body may be this organisation's.
///
/// Lago's RSA key is one for the whole instance, so that a JWT of one organisation verifies at the
/// path of another; `organization_id` in the body (Lago v1.33.3 and later) tells them apart.
pub(crate) fn is_own(description: &Description, organization_id: Option<&str>) -> bool {
    match organization_id {
        None => true,
        Some(_) if description.organization_ambiguous => false,
        Some(own) => description.organization_id.as_deref().is_none_or(|named| named == own),
    }
}

/// Builds the event.
pub(crate) fn event(
    description: Description,
    key: String,
    headers: &HeaderMap,
    body: Vec<u8>,
    digest: &BodyDigest,
    keep_signature: bool,
) -> NewEvent {
    let traceparent = traceparent(headers);
    let tracestate = headers
        .get("tracestate")
        .filter(|_| traceparent.is_some())
        .and_then(|v| v.to_str().ok())
        .filter(|v| v.len() <= TRACESTATE_BYTES);
    let head = EventHead {
        id: EventId::derive(&description.source, &key, Some(digest)),
        source: description.source,
        event_type: description.event_type,
        subject: description.subject,
        key,
        scope: None,
        tenant: description.tenant,
        unattributed: description.tenant_unattributed,
        time: description.time,
        alias: description.type_alias,
        conflict: false,
        json: description.is_json,
        traceparent: traceparent.map(str::to_owned),
        tracestate: tracestate.map(str::to_owned),
        headers: original_headers(headers, keep_signature),
    };
    NewEvent { head, body, dedupe: Dedupe::KeyAndBody }
}

/// The sender's headers that the `raw` format passes on. A JWT repeats the whole body, so that it is
/// kept only where somebody wants it.
fn original_headers(headers: &HeaderMap, keep_signature: bool) -> Vec<(Cow<'static, str>, String)> {
    let mut kept = Vec::with_capacity(ORIGINAL.len());
    for name in ORIGINAL {
        if (keep_signature || name != SIGNATURE_HEADER)
            && let Some(value) = headers.get(name).and_then(|value| value.to_str().ok())
        {
            kept.push((Cow::Borrowed(name), value.to_owned()));
        }
    }
    kept
}

/// The sender's trace context, where it is one.
pub(crate) fn traceparent(headers: &HeaderMap) -> Option<&str> {
    headers.get("traceparent").and_then(|v| v.to_str().ok()).filter(|v| is_traceparent(v))
}

/// W3C Trace Context, version 00: `00-<32 hex>-<16 hex>-<2 hex>`, ids not all zero.
fn is_traceparent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    matches!(parts[..], [version, trace, span, flags]
        if version == "00" && hex(trace, 32) && hex(span, 16) && hex(flags, 2)
            && trace.bytes().any(|b| b != b'0') && span.bytes().any(|b| b != b'0'))
}

/// Bodies seen lately, by digest: an old body under a new key may be a replay. Each Lago endpoint has
/// its own key for the same event, so this is only counted, and per organisation.
#[derive(Debug, Default)]
pub(crate) struct RecentBodies {
    known: HashSet<u64>,
    order: VecDeque<u64>,
}

impl RecentBodies {
    const CAPACITY: usize = 16_384;

    /// Takes a body; true when it was seen before.
    pub(crate) fn seen_before(&mut self, organization: &str, digest: &BodyDigest) -> bool {
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};
        let mut hasher = DefaultHasher::new();
        (organization, digest.0).hash(&mut hasher);
        let fingerprint = hasher.finish();
        if !self.known.insert(fingerprint) {
            return true;
        }
        self.order.push_back(fingerprint);
        if self.order.len() > Self::CAPACITY
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use axum::http::HeaderValue;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    #[test]
    fn a_request_without_a_usable_key_is_still_recognised_when_it_comes_again() {
        let digest = BodyDigest::of(b"{}");
        assert_eq!(dedupe_key(&headers(&[("x-lago-unique-key", "k-1")]), &digest), "k-1");
        let made = dedupe_key(&headers(&[]), &digest);
        assert!(made.starts_with("sha256-44136fa3"), "{made}");
        let long = "x".repeat(201);
        for unusable in [
            &[("x-lago-unique-key", "")][..],
            &[("x-lago-unique-key", long.as_str())],
            &[("x-lago-unique-key", "a"), ("x-lago-unique-key", "b")],
        ] {
            assert_eq!(dedupe_key(&headers(unusable), &digest), made);
        }
    }

    #[test]
    fn another_organizations_body_is_not_own() {
        let check = |body: &str, configured: Option<&str>, expected: bool| {
            let description = kit_lago::describe(body.as_bytes(), "acme", "k");
            assert_eq!(is_own(&description, configured), expected, "{body} {configured:?}");
        };
        let named = r#"{"webhook_type":"fee.created","object_type":"fee","organization_id":"o-1","fee":{}}"#;
        check(named, Some("o-1"), true);
        check(named, Some("o-2"), false);
        check(named, None, true);
        check(r#"{"webhook_type":"fee.created","object_type":"fee","fee":{}}"#, Some("o-1"), true);
        check(r#"{"organization_id":"o-1","organization_id":"o-2"}"#, Some("o-1"), false);
        check(r#"{"organization_id":["o-1"]}"#, Some("o-1"), false);
    }

    #[test]
    fn trace_context_is_taken_only_when_it_is_one() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let built = |traceparent: &str| {
            let headers = headers(&[("traceparent", traceparent), ("tracestate", "a=b")]);
            let digest = BodyDigest::of(b"{}");
            event(kit_lago::describe(b"{}", "a", "k"), "k".into(), &headers, b"{}".to_vec(), &digest, true).head
        };
        assert_eq!(built(good).traceparent.as_deref(), Some(good));
        assert_eq!(built(good).tracestate.as_deref(), Some("a=b"));
        for bad in ["", "00-x-y-01", "00-00000000000000000000000000000000-b7ad6b7169203331-01", &good.to_uppercase()] {
            assert_eq!((built(bad).traceparent, built(bad).tracestate), (None, None), "{bad}");
        }
    }

    #[test]
    fn an_old_body_under_a_new_key_is_noticed_within_bounds() {
        let mut bodies = RecentBodies::default();
        let digest = |n: usize| BodyDigest::of(&n.to_le_bytes());
        assert!(!bodies.seen_before("a", &digest(0)));
        assert!(bodies.seen_before("a", &digest(0)));
        assert!(!bodies.seen_before("b", &digest(0)), "organisations are apart");
        for n in 1..=RecentBodies::CAPACITY {
            bodies.seen_before("a", &digest(n));
        }
        assert!(!bodies.seen_before("a", &digest(0)), "the oldest are forgotten");
        assert!(bodies.known.len() <= RecentBodies::CAPACITY);
    }
}
