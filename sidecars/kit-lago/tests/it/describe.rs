//! The envelope's facts for every type, and T15: bodies made to confuse a reader.

use kit_lago::webhook_type::{BusinessEvent, body_name};
use kit_lago::{Description, describe};
use proptest::prelude::*;

use crate::table::contract;

const KEY: &str = "06e34784-36c1-46b8-bbbc-b706024619ca";

fn described(body: impl AsRef<[u8]>) -> Description {
    describe(body.as_ref(), "acme", KEY)
}

/// What is said of a body that says nothing.
fn unknown(is_json: bool) -> Description {
    Description {
        source: "lago/acme".to_owned(),
        event_type: "lago.unknown".to_owned(),
        type_alias: None,
        webhook_type: None,
        object_type: None,
        subject: format!("webhook/{KEY}"),
        tenant: None,
        tenant_unattributed: false,
        time: None,
        organization_id: None,
        organization_ambiguous: false,
        is_json,
        business: None,
    }
}

#[test]
fn every_type_of_the_contract_is_described_by_its_payload_key() {
    for (name, object_type, _) in contract() {
        let in_body = body_name(name);
        let body = format!(
            r#"{{"webhook_type":"{in_body}","object_type":"{object_type}","organization_id":"org-1",
                "{object_type}":{{"lago_id":"id-1","external_customer_id":"tenant-1"}}}}"#
        );

        let description = described(&body);

        assert_eq!(description.event_type, format!("lago.{in_body}"));
        assert_eq!(description.webhook_type.as_deref(), Some(in_body));
        assert_eq!(description.object_type.as_deref(), Some(object_type));
        assert_eq!(description.subject, format!("{object_type}/id-1"));
        assert_eq!(description.tenant.as_deref(), Some("tenant-1"));
        assert_eq!(description.organization_id.as_deref(), Some("org-1"));
        assert!(description.is_json && !description.organization_ambiguous);
        let alias = (in_body != name).then(|| format!("lago.{name}"));
        assert_eq!(description.type_alias, alias);
    }
}

#[test]
fn the_failed_refund_keeps_its_body_name_and_gets_the_other_as_an_alias() {
    let description = described(
        r#"{"webhook_type":"credit_note.refund_failure",
            "object_type":"credit_note_payment_provider_refund_error",
            "credit_note_payment_provider_refund_error":{"lago_credit_note_id":"c"}}"#,
    );

    assert_eq!(description.event_type, "lago.credit_note.refund_failure");
    assert_eq!(description.type_alias.as_deref(), Some("lago.credit_note.provider_refund_failure"));
    assert_eq!(description.business, Some(BusinessEvent { event_type: "refund", status: "failed" }));
}

#[test]
fn an_unknown_type_passes_through_with_what_can_be_read() {
    let description = described(
        r#"{"webhook_type":"something.new_in_2027","object_type":"novelty",
            "novelty":{"lago_id":"n-1","external_customer_id":"t"}}"#,
    );

    assert_eq!(description.event_type, "lago.something.new_in_2027");
    assert_eq!(description.subject, "novelty/n-1");
    assert_eq!(description.tenant.as_deref(), Some("t"));
    assert_eq!(description.business, None);
}

/// A body of one payload and what is read from it as subject and tenant.
fn check_payload(object_type: &str, payload: &str, subject: Option<&str>, tenant: Option<&str>) {
    let body = format!(r#"{{"webhook_type":"some.type","object_type":"{object_type}","{object_type}":{payload}}}"#);
    let description = described(&body);
    let generic = format!("webhook/{KEY}");
    assert_eq!(description.subject, subject.unwrap_or(&generic), "{body}");
    assert_eq!(description.tenant.as_deref(), tenant, "{body}");
    assert_eq!(description.event_type, "lago.some.type", "{body}");
}

#[test]
fn the_subject_prefers_the_external_id() {
    check_payload("invoice", r#"{"lago_id":"l"}"#, Some("invoice/l"), None);
    check_payload("subscription", r#"{"lago_id":"l","external_id":"e"}"#, Some("subscription/e"), None);
    check_payload("subscription", r#"{"external_id":null,"lago_id":"l"}"#, Some("subscription/l"), None);
    check_payload("subscription", r#"{"external_id":"","lago_id":"l"}"#, Some("subscription/l"), None);
    check_payload("events_errors", r#"{"invalid_code":["a"]}"#, None, None);
    check_payload("invoice", "{}", None, None);
    check_payload("plan", r#"{"external_id":"é 🚣/x"}"#, Some("plan/é 🚣/x"), None);
    check_payload("plan", r#"{"external_id":"a\u0026b\/c"}"#, Some("plan/a&b/c"), None);
}

#[test]
fn the_tenant_is_the_customer_wherever_the_object_has_it() {
    check_payload("fee", r#"{"external_customer_id":"t"}"#, None, Some("t"));
    check_payload("invoice", r#"{"customer":{"external_id":"t","lago_id":"x"}}"#, None, Some("t"));
    check_payload("customer", r#"{"external_id":"t"}"#, Some("customer/t"), Some("t"));
    check_payload("subscription", r#"{"external_id":"s"}"#, Some("subscription/s"), None);
    check_payload(
        "wallet_transaction",
        r#"{"lago_id":"l","wallet":{"external_customer_id":"t"}}"#,
        Some("wallet_transaction/l"),
        Some("t"),
    );
    check_payload(
        "fee",
        r#"{"external_customer_id":"direct","customer":{"external_id":"inside"}}"#,
        None,
        Some("direct"),
    );
    check_payload("fee", r#"{"external_customer_id":null,"customer":{"external_id":"inside"}}"#, None, Some("inside"));
    check_payload("invoice", r#"{"customer":"t"}"#, None, None);
    check_payload("invoice", r#"{"customer":{"external_id":7}}"#, None, None);
    check_payload("invoice", r#"{"customer":null}"#, None, None);
    check_payload("invoice", r#"{"customer":{"external_id":"a","external_id":"b"}}"#, None, None);
}

#[test]
fn four_literals_mean_nobody_in_particular() {
    for (tenant, unattributed) in [
        ("default", true),
        ("default_tenant", true),
        ("global", true),
        ("system", true),
        ("Default", false),
        ("systems", false),
        ("5f0c9c1e-0f5b-4b7e-9a55-3f1a6a1d7c01", false),
    ] {
        let description = described(format!(
            r#"{{"webhook_type":"fee.created","object_type":"fee","fee":{{"external_customer_id":"{tenant}"}}}}"#
        ));

        assert_eq!(description.tenant.as_deref(), Some(tenant));
        assert_eq!(description.tenant_unattributed, unattributed, "{tenant}");
    }
}

#[test]
fn the_time_is_taken_only_where_it_is_the_events_own() {
    let at = |webhook_type: &str, object_type: &str, field: &str, value: &str| {
        described(format!(
            r#"{{"webhook_type":"{webhook_type}","object_type":"{object_type}","{object_type}":{{"{field}":{value}}}}}"#
        ))
        .time
    };
    let iso = r#""2024-11-21T04:40:24Z""#;
    let time = Some("2024-11-21T04:40:24.000Z".to_owned());

    assert_eq!(at("alert.triggered", "triggered_alert", "triggered_at", iso), time);
    assert_eq!(at("subscription.terminated", "subscription", "terminated_at", iso), time);
    assert_eq!(at("subscription.canceled", "subscription", "canceled_at", iso), time);
    assert_eq!(at("subscription.trial_ended", "subscription", "trial_ended_at", iso), time);
    assert_eq!(at("wallet.terminated", "wallet", "terminated_at", iso), time);
    assert_eq!(at("invoice.voided", "invoice", "voided_at", iso), time);
    assert_eq!(at("customer.updated", "customer", "updated_at", iso), time);
    assert_eq!(at("payment_request.created", "payment_request", "created_at", iso), time);
    let offset = r#""2024-11-21T05:40:24.5+01:00""#;
    let with_offset = at("invoice.voided", "invoice", "voided_at", offset);
    assert_eq!(with_offset.as_deref(), Some("2024-11-21T04:40:24.500Z"));
    // A draft's creation, an upserted customer, a backdated start: not when it happened.
    assert_eq!(at("invoice.created", "invoice", "created_at", iso), None);
    assert_eq!(at("customer.created", "customer", "created_at", iso), None);
    assert_eq!(at("subscription.started", "subscription", "started_at", iso), None);
    for wrong in [r#""yesterday""#, "null", "1732164024", r#""""#, r#""2024-11-21""#, "[]"] {
        assert_eq!(at("invoice.voided", "invoice", "voided_at", wrong), None, "{wrong}");
    }
}

#[test]
fn business_events_follow_the_payment_status() {
    let business = |webhook_type: &str, payload: &str| {
        described(format!(r#"{{"webhook_type":"{webhook_type}","object_type":"invoice","invoice":{payload}}}"#))
            .business
            .map(|event| (event.event_type, event.status))
    };
    let updated = "invoice.payment_status_updated";

    assert_eq!(business(updated, r#"{"payment_status":"succeeded"}"#), Some(("payment", "succeeded")));
    assert_eq!(business(updated, r#"{"payment_status":"failed"}"#), Some(("payment", "failed")));
    assert_eq!(business(updated, r#"{"payment_status":"pending"}"#), Some(("payment", "pending")));
    assert_eq!(business(updated, r#"{"payment_status":"new"}"#), Some(("payment", "other")));
    assert_eq!(business(updated, r#"{"payment_status":7}"#), Some(("payment", "other")));
    assert_eq!(business(updated, "{}"), Some(("payment", "other")));
    assert_eq!(business(updated, "null"), Some(("payment", "other")));
    assert_eq!(business("invoice.created", "{}"), Some(("invoice", "created")));
    assert_eq!(business("customer.created", "{}"), None);
}

#[test]
fn what_is_not_json_is_unknown_and_may_not_be_embedded() {
    let deep = "[".repeat(100_000);
    for body in [
        &b""[..],
        b" ",
        b"\xef\xbb\xbf{\"webhook_type\":\"a\"}",
        b"{\"webhook_type\":\"\xff\xfe\"}",
        b"{\"webhook_type\":\"a\",\"skipped\":\"\xff\"}",
        b"\xed\xa0\x80",
        b"{\"webhook_type\":\"invoice.created\"",
        b"{\"webhook_type\":\"invoice.created\"}}",
        b"{\"webhook_type\":\"invoice.created\"} {}",
        b"{\"webhook_type\":\"a\",}",
        b"{'webhook_type':'a'}",
        b"{\"a\":NaN}",
        b"{\"a\":Infinity}",
        b"{\"a\":-}",
        b"{\"a\":01}",
        b"{\"a\":\"tab\there\"}",
        b"{\"a\":\"\\x\"}",
        b"NaN",
        b"webhook_type=invoice.created",
        b"<xml/>",
        b"\0",
        deep.as_bytes(),
    ] {
        let shown: String = String::from_utf8_lossy(body).chars().take(60).collect();
        assert_eq!(described(body), unknown(false), "{shown}");
    }
}

#[test]
fn json_without_a_type_is_unknown_and_may_be_embedded() {
    for body in [
        "null",
        "0",
        "-0.0",
        "\"text\"",
        "[]",
        "{}",
        " {\n} ",
        "[1e400,9007199254740993,-0]",
        r#"{"webhook_type":null}"#,
        r#"{"webhook_type":7}"#,
        r#"{"webhook_type":["invoice.created"]}"#,
        r#"{"webhook_type":{"a":"b"}}"#,
        r#"{"webhook_type":""}"#,
        r#"{"webhook_type":"has space"}"#,
        r#"{"webhook_type":"new\nline"}"#,
        r#"{"webhook_type":"naïve"}"#,
        r#"{"webhook_type":"a/b"}"#,
        r#"{"webhook_type":"\ud800"}"#,
        r#"{"Webhook_Type":"invoice.created"}"#,
        r#"{"\ud800":1,"webhook_type":"invoice.created"}"#,
        r#"[{"webhook_type":"invoice.created"}]"#,
    ] {
        assert_eq!(described(body), unknown(true), "{body}");
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(described(&deep), unknown(true));
}

/// Depth, huge numbers and strings in the parts that are only skipped or passed on.
#[test]
fn depth_and_size_inside_a_payload_cost_nothing_but_a_scan() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let objects = format!("{}1{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
    let long = "x".repeat(1 << 20);
    for extra in [
        format!(r#""deep":{deep}"#),
        format!(r#""deep":{objects}"#),
        format!(r#""customer":{deep}"#),
        format!(r#""customer":{objects}"#),
        format!(r#""lago_invoice_id":"{long}""#),
        r#""amount":1e400,"big":9007199254740993,"zero":-0,"tiny":1e-999"#.to_owned(),
        format!(r#""{long}":1"#),
        r#""note":"\ud800""#.to_owned(),
    ] {
        let description = described(format!(
            r#"{{"webhook_type":"invoice.created","object_type":"invoice","invoice":{{"lago_id":"i",{extra}}}}}"#
        ));

        assert_eq!(description.subject, "invoice/i");
        assert_eq!(description.event_type, "lago.invoice.created");
        assert!(description.is_json);
    }
    // A whole 4 MiB body of nothing but depth.
    let description = described(format!(
        r#"{{"webhook_type":"a","object_type":"b","b":{}{}}}"#,
        "[".repeat(2 << 20),
        "]".repeat(2 << 20)
    ));
    assert!(description.is_json);
}

/// Readers disagree on whether the first or the last of two equal keys counts, so neither does.
#[test]
fn a_repeated_envelope_key_makes_the_body_unknown() {
    for body in [
        r#"{"webhook_type":"a","webhook_type":"a","object_type":"o","o":{"lago_id":"1"}}"#,
        r#"{"webhook_type":"a","object_type":"o","o":{"lago_id":"1"},"webhook_type":"b"}"#,
        r#"{"webhook_type":"a","webhook\u005ftype":"b","object_type":"o","o":{"lago_id":"1"}}"#,
        r#"{"webhook_type":"a","object_type":"o","object_type":"p","o":{"lago_id":"1"}}"#,
        r#"{"webhook_type":"a","webhook_type":null}"#,
    ] {
        assert_eq!(described(body), unknown(true), "{body}");
    }
}

#[test]
fn a_repeated_payload_or_field_gives_no_subject_and_no_tenant() {
    let generic = format!("webhook/{KEY}");
    for body in [
        r#"{"webhook_type":"a.b","object_type":"o","o":{"lago_id":"1"},"o":{"lago_id":"1"}}"#,
        r#"{"o":{"lago_id":"1"},"webhook_type":"a.b","object_type":"o","o":{"lago_id":"2"}}"#,
        r#"{"webhook_type":"a.b","object_type":"o","o":{"lago_id":"1"},"\u006f":{}}"#,
        r#"{"webhook_type":"a.b","object_type":"o","o":{"lago_id":"1","lago_id":"1"}}"#,
        r#"{"webhook_type":"a.b","object_type":"o","o":{"lago_id":"1","external_customer_id":"t","external_customer_id":"u"}}"#,
    ] {
        let description = described(body);

        assert_eq!(description.event_type, "lago.a.b", "{body}");
        assert_eq!(description.subject, generic, "{body}");
        assert_eq!(description.tenant, None, "{body}");
    }
}

#[test]
fn the_order_of_the_keys_does_not_matter() {
    for body in [
        r#"{"o":{"lago_id":"1"},"object_type":"o","webhook_type":"a"}"#,
        r#"{"x":1,"o":{"lago_id":"1"},"y":{},"webhook_type":"a","object_type":"o","z":[]}"#,
    ] {
        assert_eq!(described(body).subject, "o/1", "{body}");
    }
}

/// Keys before `object_type` are kept only up to a bound; beyond it nothing is guessed.
#[test]
fn thousands_of_keys_take_no_memory_and_are_not_mistaken_for_the_payload() {
    let many =
        |count: usize| (0..count).fold(String::new(), |keys, key| keys + &format!(r#""k{key}":{{"lago_id":"x"}},"#));
    let tail = r#""webhook_type":"a","object_type":"o","o":{"lago_id":"1"}}"#;

    assert_eq!(described(format!("{{{}{tail}", many(10))).subject, "o/1");
    let crowded = described(format!("{{{}{tail}", many(100_000)));
    assert_eq!(crowded.subject, format!("webhook/{KEY}"));
    assert_eq!(crowded.event_type, "lago.a");
    let after = format!(r#"{{"webhook_type":"a","object_type":"o",{}"o":{{"lago_id":"1"}}}}"#, many(100_000));
    assert_eq!(described(after).subject, "o/1");
    let repeated =
        format!(r#"{{"webhook_type":"a","object_type":"o",{}"z":0}}"#, r#""o":{"lago_id":"1"},"#.repeat(100_000));
    assert_eq!(described(repeated).subject, format!("webhook/{KEY}"));
}

#[test]
fn an_object_type_that_names_an_envelope_key_has_no_payload() {
    for name in ["webhook_type", "object_type", "organization_id"] {
        let description = described(format!(r#"{{"webhook_type":"a","object_type":"{name}","organization_id":"o"}}"#));
        assert_eq!(description.subject, format!("webhook/{KEY}"));
    }
}

#[test]
fn texts_are_taken_over_up_to_their_bounds_and_not_beyond() {
    let typed = |length: usize| described(format!(r#"{{"webhook_type":"{}"}}"#, "a".repeat(length))).webhook_type;
    assert_eq!(typed(128).map(|text| text.len()), Some(128));
    assert_eq!(typed(129), None);
    assert_eq!(typed(1 << 20), None);

    let subject =
        |id: &str| described(format!(r#"{{"webhook_type":"a","object_type":"o","o":{{"lago_id":"{id}"}}}}"#)).subject;
    let generic = format!("webhook/{KEY}");
    assert_eq!(subject(&"i".repeat(256)), format!("o/{}", "i".repeat(256)));
    assert_eq!(subject(&"i".repeat(257)), generic);
    assert_eq!(subject(&"\\u0041".repeat(256)), format!("o/{}", "A".repeat(256)));
    assert_eq!(subject(&"é".repeat(128)), format!("o/{}", "é".repeat(128)));
    assert_eq!(subject(&"é".repeat(129)), generic);
    for unusable in ["", "\\u0000", "a\\nb", "\\u007f", "\\u0085", "\\ufffe", "\\ud83f\\udfff", "\\ud800"] {
        assert_eq!(subject(unusable), generic, "{unusable}");
    }
}

#[test]
fn an_organization_id_that_cannot_be_relied_on_is_reported_as_such() {
    let organization = |fields: &str| {
        let description = described(format!(r#"{{"webhook_type":"a",{fields}}}"#));
        (description.organization_id, description.organization_ambiguous)
    };
    assert_eq!(organization(r#""x":1"#), (None, false));
    assert_eq!(organization(r#""organization_id":null"#), (None, false));
    assert_eq!(organization(r#""organization_id":"u""#), (Some("u".to_owned()), false));
    for unreliable in [
        r#""organization_id":"u","organization_id":"u""#.to_owned(),
        r#""organization_id":null,"organization_id":"u""#.to_owned(),
        r#""organization_id":"u","organization\u005fid":"v""#.to_owned(),
        r#""organization_id":7"#.to_owned(),
        r#""organization_id":"""#.to_owned(),
        r#""organization_id":["u"]"#.to_owned(),
        format!(r#""organization_id":"{}""#, "u".repeat(300)),
    ] {
        assert_eq!(organization(&unreliable), (None, true), "{unreliable}");
    }
    // Also where the rest of the envelope is of no use.
    let body = r#"{"webhook_type":"a","webhook_type":"b","organization_id":"u"}"#;
    assert_eq!(described(body).organization_id.as_deref(), Some("u"));
}

#[test]
fn a_unique_key_that_is_not_fit_for_a_subject_is_left_out() {
    for key in ["", "a\nb", "\u{7f}", &"k".repeat(300)] {
        assert_eq!(describe(b"{}", "acme", key).subject, "webhook");
    }
}

/// Text made of the pieces that the envelope is made of, in any order, also cut off anywhere.
fn crooked_json() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "null",
        "1e400",
        "-",
        "0",
        "\u{feff}",
        " ",
        "\"webhook_type\"",
        "\"object_type\"",
        "\"organization_id\"",
        "\"invoice\"",
        "\"lago_id\"",
        "\"customer\"",
        "\"external_id\"",
        "\"invoice.created\"",
        "\"\\ud800\"",
        "\"\\u0000\"",
    ]);
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat().into_bytes())
}

/// Whatever the body, the description is bounded and fit for a header, a metric and a log line.
fn assert_sane(body: &[u8]) {
    let description = described(body);
    let texts = [
        Some(&description.event_type),
        Some(&description.subject),
        description.type_alias.as_ref(),
        description.webhook_type.as_ref(),
        description.object_type.as_ref(),
        description.tenant.as_ref(),
        description.time.as_ref(),
        description.organization_id.as_ref(),
    ];
    for text in texts.into_iter().flatten() {
        assert!(!text.is_empty() && text.len() <= 400 && !text.chars().any(char::is_control));
    }
    assert_eq!(
        description.is_json,
        std::str::from_utf8(body).is_ok_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok())
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_described(body in prop::collection::vec(any::<u8>(), 0..400)) {
        assert_sane(&body);
    }

    #[test]
    fn any_text_is_described(body in "\\PC{0,200}") {
        assert_sane(body.as_bytes());
    }

    #[test]
    fn anything_like_json_is_described(body in crooked_json()) {
        assert_sane(&body);
    }

    #[test]
    fn any_identifiers_in_a_whole_envelope_are_described(
        webhook_type in any::<String>(), object_type in any::<String>(), id in any::<String>(),
        organization in any::<String>(), key in any::<String>(),
    ) {
        let body = serde_json::json!({
            "webhook_type": webhook_type, "object_type": object_type, "organization_id": organization,
            object_type: { "lago_id": id, "customer": { "external_id": id } },
        });
        assert_sane(body.to_string().as_bytes());
        assert!(describe(b"", "acme", &key).subject.len() <= 264);
    }

    #[test]
    fn a_damaged_webhook_is_described(at in 0usize..2_500, byte in any::<u8>(), cut in any::<bool>()) {
        let shape = kit_lago::sample::Shape::default();
        let mut body = kit_lago::sample::sample("invoice.created", &shape).into_bytes();
        let at = at % body.len();
        if cut { body.truncate(at) } else { body[at] = byte }
        assert_sane(&body);
    }
}
