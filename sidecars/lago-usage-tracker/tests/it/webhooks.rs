//! What other daemons send: requests as their gateway sink makes them, and as somebody else would.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use kit::clock::{Clock as _, SystemClock, Timestamp};
use kit::secret::Secret;
use kit_delivery::format::Format;
use kit_delivery::signature::{SigningSecret, signature_header};
use kit_delivery::{GatewaySection, HttpSink, Sink as _, Verdict};
use kit_journal::{BodyDigest, EventHead, EventId, StoredEvent};
use kit_lago::sample::{Shape, sample};
use kit_lago::stand_in::billing::{AggregationType, Effect, Fault, Faults, Metric, On, Profile, Subscription, When};
use serde_json::{Value, json};

use crate::bench::*;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER_SECRET: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
const RULES: &str = r#"[
    { type = "lago.invoice.created", code = "invoices_issued", subscription = "/invoice/subscriptions/0/external_id",
      properties = { cents = "/invoice/total_amount_cents", plan = "=gold" } },
    { type = "lago.wallet.*", code = "wallet_changes", subscription = "=s-wallets" },
]"#;

/// With the secret, and with these rules.
async fn bench(rules: &str) -> Bench {
    Bench::with(Profile::V1_39, &[("USAGE_WEBHOOK_SECRET", SECRET), ("SIDECAR_WEBHOOKS__RULES", rules)]).await
}

/// An event as `lago-webhook-processor` has it in its journal.
fn event_of(body: &str, key: &str) -> StoredEvent {
    let description = kit_lago::describe(body.as_bytes(), "default", key);
    let id = EventId::derive(&description.source, key, Some(&BodyDigest::of(body.as_bytes())));
    let head = EventHead {
        tenant: description.tenant,
        time: description.time,
        alias: description.type_alias,
        json: description.is_json,
        ..EventHead::new(id, description.source, description.event_type, description.subject, key)
    };
    let at = "2026-11-21T12:00:00Z".parse().unwrap();
    StoredEvent { seq: 7, at, head, body: bytes::Bytes::copy_from_slice(body.as_bytes()) }
}

fn event(webhook_type: &str, seq: u64) -> StoredEvent {
    event_of(&sample(webhook_type, &Shape { seq, ..Shape::default() }), &format!("key-{seq}"))
}

/// Sends an event as the gateway sink of our daemons does, and gives the status it was answered with.
async fn deliver(bench: &Bench, event: &StoredEvent, secrets: &str, format: Format) -> u16 {
    let section = GatewaySection {
        url: Some(bench.url()),
        signing_secret: Some(Secret::from(secrets.to_owned())),
        format,
        ..GatewaySection::default()
    };
    let sink = HttpSink::new("gateway", &section, Arc::new(SystemClock)).unwrap();
    let outcome = sink.deliver(event).await;
    assert_eq!(outcome.verdict == Verdict::Delivered, outcome.status == Some(200), "{outcome:?}");
    outcome.status.unwrap()
}

async fn delivered(bench: &Bench, body: &Value, key: &str) {
    let status = deliver(bench, &event_of(&body.to_string(), key), SECRET, Format::CloudeventsStructured).await;
    assert_eq!(status, 200, "{body}");
}

async fn count(bench: &Bench, metric: &str, label: &str, word: &str) -> u64 {
    let value = bench.metrics().await.get(metric, &[(label, word)]).unwrap_or_default();
    value as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_daemon_delivers_is_counted_once_in_either_format() {
    let mut bench = bench(RULES).await;
    let invoice = event("invoice.created", 1);
    let parsed: Value = serde_json::from_slice(&invoice.body).unwrap();
    let subscription = parsed["invoice"]["subscriptions"][0]["external_id"].as_str().unwrap();
    let cents = &parsed["invoice"]["total_amount_cents"];

    for restarted in [false, true] {
        if restarted {
            bench.restart().await;
        }
        for format in [Format::CloudeventsStructured, Format::CloudeventsBinary] {
            for event in [&invoice, &event("wallet.created", 2), &event("wallet.updated", 3), &event("fee.created", 4)]
            {
                assert_eq!(deliver(&bench, event, SECRET, format).await, 200, "{event:?}");
            }
        }
    }

    bench.settled().await;
    let billed = bench.billed();
    assert_eq!(billed.len(), 3, "{billed:?}");
    let of_invoice = billed.iter().find(|event| event.contains("invoices_issued")).unwrap();
    assert!(of_invoice.starts_with(&format!("{subscription}/ev-")), "{of_invoice}");
    assert!(of_invoice.ends_with(&format!(r#"{{"cents":{cents},"plan":"gold"}}"#)), "{of_invoice}");
    assert_eq!(billed.iter().filter(|event| event.starts_with("s-wallets/ev-")).count(), 2);
    let time: Timestamp = invoice.head.time.as_deref().unwrap_or("2026-11-21T12:00:00Z").parse().unwrap();
    assert!(of_invoice.contains(&format!(" {} ", time.as_millis() / 1000)), "{of_invoice}");
    // Of the run after the restart.
    assert_eq!(count(&bench, "usage_events_total", "result", "duplicate").await, 6);
    assert_eq!(count(&bench, "usage_events_total", "result", "accepted").await, 0);
    assert_eq!(count(&bench, "usage_webhooks_total", "result", "counted").await, 6);
    assert_eq!(count(&bench, "usage_webhooks_total", "result", "nothing").await, 2);
}

/// Requests that no sink of ours makes.
struct Forged<'a> {
    id: &'a str,
    at: i64,
    body: &'a str,
    headers: &'a [(&'a str, &'a str)],
}

impl Forged<'_> {
    async fn send(&self, bench: &Bench, secret: &str, sent: &str) -> u16 {
        let secret = SigningSecret::parse(&Secret::from(secret.to_owned())).unwrap();
        let signature = signature_header(&[secret], self.id, self.at, self.body.as_bytes());
        let at = self.at.to_string();
        let own = [("webhook-id", self.id), ("webhook-timestamp", &at), ("webhook-signature", &signature)];
        bench.send("/webhooks/events", &[&own[..], self.headers].concat(), sent.to_owned()).await.0
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_signed_with_a_known_secret_and_lately_is_taken() {
    let bench = bench(RULES).await;
    let body = json!({ "specversion": "1.0", "id": "e", "source": "a", "type": "lago.wallet.created" }).to_string();
    let headers = [("content-type", "application/cloudevents+json")];
    let now = SystemClock.now().as_millis() / 1000;
    let forged = Forged { id: "message", at: now, body: &body, headers: &headers };

    assert_eq!(bench.send("/webhooks/events", &headers, body.clone()).await.0, 401, "a producer's token is none");
    assert_eq!(forged.send(&bench, OTHER_SECRET, &body).await, 401);
    assert_eq!(forged.send(&bench, SECRET, &body.replace("wallet", "invoice")).await, 401);
    for at in [now - 360, now + 360] {
        assert_eq!(Forged { at, ..forged }.send(&bench, SECRET, &body).await, 401);
    }
    // Signed, and about an event that is not the one in the headers.
    let binary = [
        ("content-type", "application/json"),
        ("ce-specversion", "1.0"),
        ("ce-id", "another"),
        ("ce-source", "a"),
        ("ce-type", "lago.wallet.created"),
    ];
    assert_eq!(Forged { headers: &binary, ..forged }.send(&bench, SECRET, &body).await, 401);
    assert_eq!(bench.api("/api/v1/statistics").await["accepted"], 0);
    assert_eq!(count(&bench, "usage_requests_refused_total", "reason", "signature").await, 6);

    assert_eq!(forged.send(&bench, SECRET, &body).await, 200);
    assert_eq!(Forged { at: now - 240, ..forged }.send(&bench, SECRET, &body).await, 200);
    assert_eq!(Forged { id: "another", headers: &binary, ..forged }.send(&bench, SECRET, &body).await, 200);
    assert_eq!(bench.api("/api/v1/statistics").await["accepted"], 2);
    // Signed, and no event.
    assert_eq!(Forged { body: "{}", ..forged }.send(&bench, SECRET, "{}").await, 400);
    let plain = [("content-type", "application/json")];
    assert_eq!(Forged { headers: &plain, ..forged }.send(&bench, SECRET, &body).await, 415);
}

/// Attributes that we do not read are anybody's.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_read_of_an_event_may_be_anything() {
    let bench = bench(RULES).await;
    let body = r#"{"specversion":"1.0","id":"e","source":"a","type":"lago.wallet.created","tenantid":42,"traceparent":{},
        "tracestate":null,"tracestate":8}"#;
    let headers = [("content-type", "application/cloudevents+json")];
    let now = SystemClock.now().as_millis() / 1000;

    assert_eq!(Forged { id: "e", at: now, body, headers: &headers }.send(&bench, SECRET, body).await, 200);
    // Data that cannot be had is not taken for none.
    let body = &body.replace("\"tracestate\":null", "\"data_base64\":7");
    assert_eq!(Forged { id: "e", at: now, body, headers: &headers }.send(&bench, SECRET, body).await, 400);
}

/// Its sender's mistake, and one that sending it again does not mend.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_comes_again_with_other_content_counts_as_it_did_first() {
    let bench = bench(RULES).await;
    let headers = [("content-type", "application/cloudevents+json")];
    let at = SystemClock.now().as_millis() / 1000;
    for cents in [100, 100, 200] {
        let invoice = json!({ "subscriptions": [{ "external_id": "s" }], "total_amount_cents": cents });
        let body = json!({ "specversion": "1.0", "id": "e", "source": "a", "type": "lago.invoice.created",
            "time": "2026-11-21T12:00:00Z", "data": { "invoice": invoice } })
        .to_string();
        let genuine = Forged { id: "e", at, body: &body, headers: &headers };
        assert_eq!(genuine.send(&bench, SECRET, &body).await, 200);
    }

    bench.settled().await;
    let billed = bench.billed();
    assert!(billed.len() == 1 && billed[0].contains(r#""cents":100"#), "{billed:?}");
    for result in ["accepted", "duplicate", "contradiction"] {
        assert_eq!(count(&bench, "usage_events_total", "result", result).await, 1, "{result}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_secret_can_replace_another() {
    let secrets = format!("{OTHER_SECRET}\n{SECRET}\n");
    let both = Bench::with(Profile::V1_39, &[("USAGE_WEBHOOK_SECRET", &secrets)]).await;
    let one = bench(RULES).await;
    let event = event("invoice.created", 1);
    let deliver = async |bench, secrets| deliver(bench, &event, secrets, Format::CloudeventsStructured).await;

    for secret in [SECRET, OTHER_SECRET] {
        assert_eq!(deliver(&both, secret).await, 200, "the receiver has both");
    }
    assert_eq!(deliver(&one, &secrets).await, 200, "the sender signs with both");
    assert_eq!(deliver(&one, OTHER_SECRET).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_secret_there_is_no_such_path() {
    let bench = Bench::new(Profile::V1_39).await;

    let (status, answer) = bench.post("/webhooks/events", &json!({})).await;

    let unknown = bench.post("/webhooks/nothing", &json!({})).await;
    assert_eq!((status, answer), unknown);
    assert_eq!(status, 404);
    let status = deliver(&bench, &event("invoice.created", 1), SECRET, Format::CloudeventsStructured).await;
    assert_eq!(status, 404);
}

/// The sender can do nothing about a rule, and its own retries would end in a dead letter there.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_its_rule_cannot_use_is_counted_and_answered_200() {
    let mut bench = bench(
        r#"[
            { type = "lago.wallet.created", code = "odd", subscription = "/wallet/nothing" },
            { type = "lago.wallet.*", code = "customers", customer = "=default_tenant" },
            { type = "lago.wallet.*", code = "good", subscription = "=s" },
        ]"#,
    )
    .await;

    for event in [event("wallet.created", 1), event("wallet.updated", 2)] {
        assert_eq!(deliver(&bench, &event, SECRET, Format::CloudeventsStructured).await, 200);
    }

    bench.settled().await;
    assert_eq!(bench.billed().len(), 2, "what can be counted is: {:?}", bench.billed());
    assert_eq!(count(&bench, "usage_webhooks_total", "result", "unusable").await, 2);
    let lines = bench.daemon.whole_stdout(DEADLINE).await.unwrap();
    let said: Vec<&str> = lines.lines().filter(|line| line.contains("is not counted, its rule does not fit")).collect();
    assert_eq!(said.len(), 1, "once in a while: {said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_knows_only_the_customer_bills_its_subscription() {
    let rules = r#"[{ type = "lago.wallet.created", code = "wallets", customer = "/wallet/external_customer_id" }]"#;
    let bench = Bench::with(
        Profile::V1_39,
        &[
            ("USAGE_WEBHOOK_SECRET", SECRET),
            ("SIDECAR_WEBHOOKS__RULES", rules),
            ("SIDECAR_CHECKS__NO_SUBSCRIPTION", "park"),
        ],
    )
    .await;
    let wallet = event("wallet.created", 1);
    let parsed: Value = serde_json::from_slice(&wallet.body).unwrap();
    let customer = parsed["wallet"]["external_customer_id"].as_str().unwrap();
    let started = "2024-01-01T00:00:00Z".parse().unwrap();
    bench.lago.put_subscription(Subscription::active("s-1", customer, "plan", started));

    for format in [Format::CloudeventsStructured, Format::CloudeventsBinary] {
        assert_eq!(deliver(&bench, &wallet, SECRET, format).await, 200);
    }

    let deadline = std::time::Instant::now() + DEADLINE;
    while bench.billed().is_empty() {
        assert!(std::time::Instant::now() < deadline, "it is never billed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bench.settled().await;
    let billed = bench.billed();
    assert!(billed.len() == 1 && billed[0].starts_with("s-1/ev-"), "{billed:?}");
}

fn error_of(transaction: &str, subscription: &Value, codes: &Value) -> Value {
    json!({ "webhook_type": "event.error", "object_type": "event_error", "event_error": {
        "status": 422, "error": "Unprocessable entity", "message": codes.to_string(),
        "event": { "lago_id": "1a901a90-1a90-4a90-9a90-1a901a901a90", "transaction_id": transaction,
            "external_subscription_id": subscription, "code": "api_calls" } } })
}

fn errors_of(kind: &str, transactions: &[&str]) -> Value {
    json!({ "webhook_type": "events.errors", "object_type": "events_errors", "events_errors": {
        "invalid_code": [], "missing_aggregation_property": [], "missing_group_key": null,
        "invalid_filter_values": [], kind: transactions } })
}

async fn state(bench: &Bench, transaction: &str) -> (Value, Value) {
    let (_, answer) = bench.get(&format!("/api/v1/events/{transaction}")).await;
    (answer["event"]["status"].clone(), answer["event"]["reason"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_lago_complains_about_later_is_parked_with_its_reason() {
    let mut bench = bench("[]").await;
    bench
        .report(&[
            usage("s-1", "wallet", "1"),
            usage("s-2", "wallet", "1"),
            usage("s-1", "code", "1"),
            usage("s-1", "fine", "1"),
            usage("s-1", "raced", "1"),
        ])
        .await;
    assert_eq!(bench.settled().await["delivered"], 5);
    let wallet = error_of("wallet", &json!("s-2"), &json!({ "target_wallet_code": ["target_wallet_code_not_found"] }));
    let raced = error_of("raced", &json!("s-1"), &json!({ "transaction_id": ["value_already_exist"] }));
    let hourly = errors_of("invalid_code", &["code", "nobody's", "wallet"]);

    for (body, key) in [(&wallet, "a"), (&raced, "b"), (&hourly, "c"), (&hourly, "c"), (&wallet, "a")] {
        delivered(&bench, body, key).await;
    }
    bench.restart().await;

    let row = bench.settled().await;
    assert_eq!((&row["delivered"], &row["parked"]), (&json!(3), &json!(2)));
    assert_eq!(
        state(&bench, "code").await,
        (json!("parked"), json!("complaint: Lago took it and cannot use it: invalid_code"))
    );
    for transaction in ["fine", "raced"] {
        assert_eq!(state(&bench, transaction).await.0, "confirmed", "{transaction}");
    }
    let parked = bench.api("/api/v1/deliveries?state=parked").await.to_string();
    assert!(parked.contains("subscription/s-2") && parked.contains("target_wallet_code_not_found"), "{parked}");
    let audit = bench.api("/api/v1/audit").await.to_string();
    assert!(audit.contains("deliveries.park") && audit.contains("lago/default"), "{audit}");
    assert!(audit.contains(r#""ambiguous":["wallet"]"#), "{audit}");
}

/// Lago has it under its id and counts nothing of it: that it says so when it is sent again, or 200 as with ClickHouse, is
/// no delivery.
#[tokio::test(flavor = "multi_thread")]
async fn what_lago_has_complained_about_stays_parked_however_often_it_is_sent_again() {
    for profile in [Profile::V1_39, Profile::ClickHouse] {
        let mut bench = Bench::with(profile, &[("USAGE_WEBHOOK_SECRET", SECRET)]).await;
        bench.report(&[usage("s-1", "code", "1"), usage("s-1", "fine", "1")]).await;
        assert_eq!(bench.settled().await["delivered"], 2);
        // And one that was given up before Lago complained.
        bench.lago.set_faults(Faults::just(Effect::DoneThenAnswer(500), When::Always));
        bench.report(&[usage("s-1", "given up", "1")]).await;
        bench.wait("giving up", |row| row["parked"] == 1).await;
        bench.lago.set_faults(Faults::default());
        delivered(&bench, &errors_of("invalid_code", &["code", "given up"]), "a").await;
        assert_eq!(bench.settled().await["parked"], 2);

        for restarts in [false, true] {
            if restarts {
                bench.restart().await;
            }
            let before = bench.lago.counts().batches;
            let again = json!({ "select": { "sink": "lago", "state": "parked" } });
            assert_eq!(bench.act_with("/api/v1/deliveries/replay", &again).await["changed"], 2);
            assert!(bench.lago.wait_until(DEADLINE, |counts| counts.batches > before).await.is_ok());
            let row = bench.settled().await;

            assert_eq!((&row["delivered"], &row["parked"]), (&json!(1), &json!(2)), "{profile:?} {restarts}");
            for transaction in ["code", "given%20up"] {
                let reason = json!("complaint: Lago took it and cannot use it: invalid_code");
                assert_eq!(state(&bench, transaction).await, (json!("parked"), reason), "{profile:?} {restarts}");
            }
            let ledger = bench.api("/api/v1/usage/ledger").await;
            assert_eq!(ledger["rows"][0]["events"], 1, "{ledger}");
        }
    }
}

/// Lago has taken it and said nothing to us, complains, and calls it known at the next attempt: it does not complain twice.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_lago_complains_about_while_it_is_tried_is_parked_when_lago_has_it() {
    for restarts in [false, true] {
        let mut bench = Bench::with(
            Profile::V1_39,
            &[("USAGE_WEBHOOK_SECRET", SECRET), ("SIDECAR_LAGO__RETRY_SCHEDULE_SECONDS", "2,2,2,2")],
        )
        .await;
        bench.lago.set_faults(Faults::just(Effect::DoneThenAnswer(500), When::Always));
        bench.report(&[usage("s-1", "wallet", "1"), usage("s-1", "fine", "1")]).await;
        bench.until_sinks("trying", |sinks| sinks["lago"]["retrying"] == 2).await;

        let wallet =
            error_of("wallet", &json!("s-1"), &json!({ "target_wallet_code": ["target_wallet_code_not_found"] }));
        delivered(&bench, &wallet, "a").await;
        if restarts {
            bench.restart().await;
        }
        bench.lago.set_faults(Faults::default());

        let row = bench.settled().await;
        assert_eq!((&row["delivered"], &row["parked"]), (&json!(1), &json!(1)), "{restarts}");
        let (status, reason) = state(&bench, "wallet").await;
        assert_eq!(status, "parked");
        let reason = reason.as_str().unwrap();
        assert!(
            reason.starts_with("complaint: Lago took it and cannot use it: ") && reason.contains("not_found"),
            "{reason}"
        );
        assert_eq!(bench.billed().len(), 2);
    }
}

/// Lago names a transaction id and no subscription, and one of two events under it is not kept any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_complaint_that_may_be_about_an_event_that_is_gone_parks_no_other_one() {
    let env = [
        ("USAGE_WEBHOOK_SECRET", SECRET),
        ("SIDECAR_JOURNAL__RETENTION__MAX_BYTES", "1"),
        ("SIDECAR_LAGO__RETRY_SCHEDULE_SECONDS", "2,2,2,2"),
    ];
    let bench = Bench::with(Profile::V1_39, &env).await;
    bench.report(&[usage("s-1", "both", "1")]).await;
    bench.settled().await;
    let deadline = std::time::Instant::now() + DEADLINE;
    while !bench.api("/api/v1/events").await["events"].as_array().unwrap().is_empty() {
        assert!(std::time::Instant::now() < deadline, "it is never removed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let away = Fault::new(Effect::DoneThenAnswer(503), When::Always);
    bench.lago.set_faults(Faults { rules: vec![away], ..Faults::default() });
    bench.report(&[usage("s-2", "both", "1"), usage("s-2", "alone", "1")]).await;
    bench.until_sinks("trying", |sinks| sinks["lago"]["retrying"] == 2).await;

    delivered(&bench, &errors_of("invalid_code", &["both", "alone"]), "a").await;
    bench.lago.set_faults(Faults::default());
    let row = bench.settled().await;

    assert_eq!(count(&bench, "usage_lago_complaints_total", "result", "ambiguous").await, 1);
    assert_eq!(row["parked"], 1, "{row}");
    let audit = bench.api("/api/v1/audit").await.to_string();
    assert!(audit.contains(r#""ambiguous":["both"]"#), "{audit}");
}

/// What Lago says that it does not count is out of the ledger, also when the daemon is killed right after.
#[tokio::test(flavor = "multi_thread")]
async fn what_lago_complains_about_is_out_of_the_ledger_whatever_dies() {
    let mut bench = bench("[]").await;
    bench.report(&[usage("s-1", "code", "1"), usage("s-1", "fine", "2"), usage("s-1", "more", "4")]).await;
    bench.settled().await;
    let events = async |bench: &Bench| {
        let ledger = bench.api("/api/v1/usage/ledger").await;
        (ledger["rows"][0]["events"].clone(), ledger["rows"].as_array().unwrap().len())
    };
    assert_eq!(events(&bench).await, (json!(3), 1));

    for _ in 0..2 {
        delivered(&bench, &errors_of("invalid_code", &["code"]), "a").await;
        assert_eq!(events(&bench).await, (json!(2), 1));
        bench.restart().await;
        assert_eq!(events(&bench).await, (json!(2), 1));
    }
    bench.report(&[usage("s-1", "another", "8")]).await;
    bench.settled().await;
    assert_eq!(events(&bench).await, (json!(3), 1));
    bench.restart().await;
    assert_eq!(events(&bench).await, (json!(3), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn complaints_are_counted_by_what_became_of_them() {
    let bench = bench("[]").await;
    bench.report(&[usage("s-1", "both", "1"), usage("s-2", "both", "1"), usage("s-1", "code", "1")]).await;
    bench.settled().await;

    delivered(&bench, &errors_of("missing_aggregation_property", &["code", "nobody's", "both"]), "a").await;
    delivered(&bench, &errors_of("invalid_code", &["code"]), "b").await;
    delivered(&bench, &error_of("code", &json!("s-2"), &json!({ "code": ["x"] })), "c").await;
    delivered(&bench, &error_of("code", &Value::Null, &json!({ "transaction_id": ["value_already_exist"] })), "d")
        .await;
    delivered(&bench, &errors_of("invalid_code", &[]), "e").await;

    let audit = bench.api("/api/v1/audit").await.to_string();
    assert!(audit.contains(r#""unknown":["nobody's"]"#) && audit.contains(r#""unknown":["code"]"#), "{audit}");
    knows(&bench, "complains about 1 events that are not in the journal").await;
    for (result, expected) in [("parked", 1), ("unknown", 2), ("ambiguous", 1), ("unchanged", 1), ("known", 1)] {
        assert_eq!(count(&bench, "usage_lago_complaints_total", "result", result).await, expected, "{result}");
    }
    assert_eq!(count(&bench, "usage_webhooks_total", "result", "complaint").await, 4);
    let reason = "complaint: Lago took it and cannot use it: missing_aggregation_property";
    assert_eq!(state(&bench, "code").await, (json!("parked"), json!(reason)), "the first complaint");
}

/// It names only the hour's events, but those of an hour may be many.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_of_complaints_is_parked_whole() {
    let bench = bench("[]").await;
    let ids: Vec<String> = (0..1_200).map(|n| format!("t-{n}")).collect();
    bench.report(&ids.iter().map(|id| usage("s", id, "1")).collect::<Vec<_>>()).await;
    bench.settled().await;

    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    delivered(&bench, &errors_of("invalid_code", &ids), "a").await;

    let row = bench.settled().await;
    assert_eq!((&row["delivered"], &row["parked"]), (&json!(0), &json!(1_200)));
}

/// Until then an event that does not fit waits for the timer.
#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_about_a_subscription_makes_lago_be_asked_again() {
    let bench = Bench::with(
        Profile::V1_39,
        &[
            ("USAGE_WEBHOOK_SECRET", SECRET),
            ("SIDECAR_CHECKS__NO_SUBSCRIPTION", "park"),
            ("SIDECAR_CHECKS__REFRESH_SECONDS", "86400"),
        ],
    )
    .await;
    bench.lago.put_metric(Metric::new("api_calls", AggregationType::Sum, Some("calls")));
    bench.report(&[usage("later", "t", "1")]).await;
    assert_eq!(bench.settled().await["parked"], 1);

    let started = "2024-01-01T00:00:00Z".parse().unwrap();
    bench.lago.put_subscription(Subscription::active("later", "customer", "plan", started));
    let status = deliver(&bench, &event("subscription.started", 1), SECRET, Format::CloudeventsStructured).await;

    assert_eq!(status, 200);
    bench.wait("sending it", |row| row["delivered"] == 1).await;
}

/// 200 means that what follows is on disk; what does not fit there comes again.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_takes_nothing_is_answered_503_and_the_event_counts_when_it_comes_again() {
    let bench = Bench::with(
        Profile::V1_39,
        &[
            ("USAGE_WEBHOOK_SECRET", SECRET),
            ("SIDECAR_WEBHOOKS__RULES", RULES),
            ("SIDECAR_JOURNAL__MAX_BYTES", "4194304"),
            ("SIDECAR_JOURNAL__RETENTION__MAX_BYTES", "1"),
        ],
    )
    .await;
    let away = Fault::new(Effect::Reset, When::Always).on(On::Everything);
    bench.lago.set_faults(Faults { rules: vec![away], ..Faults::default() });
    let filler = "x".repeat(100_000);
    for n in 0.. {
        let event = json!({ "event": { "transaction_id": n.to_string(), "external_subscription_id": "s", "code": "c",
            "properties": { "filler": filler } } });
        if bench.post("/api/v1/events", &event).await.0 == 503 {
            break;
        }
        assert!(n < 1_000, "the journal is never full");
    }
    let invoice = event("invoice.created", 1);
    let deliver = async || deliver(&bench, &invoice, SECRET, Format::CloudeventsStructured).await;

    assert_eq!(deliver().await, 503);
    assert_eq!(count(&bench, "usage_webhooks_total", "result", "counted").await, 0);
    bench.lago.set_faults(Faults::default());
    let deadline = std::time::Instant::now() + DEADLINE;
    while deliver().await == 503 {
        assert!(std::time::Instant::now() < deadline, "it is never taken");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    bench.settled().await;
    assert_eq!(bench.billed().iter().filter(|event| event.contains("invoices_issued")).count(), 1);
}

#[test]
fn mistakes_in_rules_and_secrets_end_the_start_and_say_what_is_right() {
    let check = |variables: &[(&str, &str)], expected: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lago-usage-tracker"));
        command.arg("--check-config").env_clear();
        command.envs([
            ("LAGO_API_URL", "http://127.0.0.1:9"),
            ("LAGO_API_KEY", API_KEY),
            ("USAGE_PRODUCER_TOKEN", PRODUCER),
        ]);
        let output = command.envs(variables.iter().copied()).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert_eq!(output.status.code(), Some(if expected.is_empty() { 0 } else { 78 }), "{said}");
        assert!(said.contains(expected), "{said}");
        assert!(!said.contains(SECRET), "{said}");
    };
    let secret = ("USAGE_WEBHOOK_SECRET", SECRET);
    let rules = |rules: &'static str| ("SIDECAR_WEBHOOKS__RULES", rules);
    check(&[secret, rules(RULES)], "");
    check(&[secret], "");
    check(&[rules(RULES)], "USAGE_WEBHOOK_SECRET_FILE: must be set");
    check(&[("USAGE_WEBHOOK_SECRET", "topsecret")], "secret 1: signing secret must be whsec_ followed by Base64");
    check(&[secret, ("USAGE_WEBHOOK_SECRET_FILE", "/nonexistent")], "are both set: keep one");
    check(&[secret, ("SIDECAR_WEBHOOKS__TOLERANCE_SECONDS", "0")], "must be a number of seconds from 1 to a day");
    check(
        &[secret, rules("[{ code = 'c', subscription = '=s' }]")],
        "SIDECAR_WEBHOOKS__RULES: rule 1: `type` must be set",
    );
    check(&[secret, rules("[{ type = 't', code = 'c' }]")], "rule 1 (t): `subscription` must be set, or `customer`");
    let unknown = "SIDECAR_WEBHOOKS__RULES: rule 1: cod is not a setting, did you mean code?\n";
    check(&[secret, rules("[{ type = 't', cod = 'c' }, { type = 'u' }]")], unknown);
    check(
        &[secret, rules("[{ type = 't', cod = 'c' }, { type = 'u' }]")],
        "SIDECAR_WEBHOOKS__RULES: rule 2 (u): `code` must be",
    );
    check(&[secret, rules("[{")], "SIDECAR_WEBHOOKS__RULES: ");
}
