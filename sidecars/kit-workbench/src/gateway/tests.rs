#![allow(clippy::unwrap_used)]

use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::*;
use crate::Digest;
use crate::raw::{self, RawConnection, RawError, RawResponse};
use crate::scratch::Scratch;

const SOON: Duration = Duration::from_secs(60);
const BODY: &str = r#"{"webhook_type":"invoice.created","amount":1.10}"#;

async fn gateway(behaviour: Behaviour) -> Gateway {
    Gateway::start(GatewayOptions { behaviour, keep_bodies: true, ..GatewayOptions::default() }).await.unwrap()
}

async fn post(gateway: &Gateway, headers: &[(&str, &str)], body: &str) -> Result<RawResponse, RawError> {
    raw::request(gateway.addr(), "POST", "/in?x=1", headers, body.as_bytes(), SOON).await
}

async fn post_event(gateway: &Gateway, id: &str) -> Result<RawResponse, RawError> {
    post(gateway, &[("ce-specversion", "1.0"), ("ce-id", id)], BODY).await
}

#[tokio::test]
async fn every_format_gives_back_the_senders_bytes() {
    let gateway = gateway(Behaviour::Ok).await;
    let structured = format!(
        r#"{{ "specversion":"1.0","id":"e-1","source":"lago/acme","type":"lago.invoice.created","subject":"invoice/1","tenantid":"t-1","data": {BODY} }}"#
    );
    let encoded = format!(
        r#"{{"specversion":"1.0","id":"e-2","source":"s","type":"t","data_base64":"{}"}}"#,
        STANDARD.encode(BODY)
    );
    let envelope = format!(r#"{{"eventType":"lago.invoice.created","payload":{BODY}}}"#);
    let json = ("content-type", "application/json");
    let cloudevents = ("content-type", "application/cloudevents+json; charset=utf-8");

    post(&gateway, &[cloudevents], &structured).await.unwrap();
    post(&gateway, &[cloudevents], &encoded).await.unwrap();
    let binary = [
        json,
        ("ce-specversion", "1.0"),
        ("ce-id", "e-3"),
        ("ce-type", "lago.invoice.created"),
        ("ce-source", "lago/acme"),
        ("ce-subject", "caf%C3%A9/1%2"),
    ];
    post(&gateway, &binary, BODY).await.unwrap();
    post(&gateway, &[json, ("webhook-id", "e-4")], &envelope).await.unwrap();
    let raw = [json, ("webhook-id", "e-5"), ("X-Lago-Unique-Key", "key-1")];
    post(&gateway, &raw, BODY).await.unwrap();
    let envelope = format!(r#"{{"eventType":"t","payload_base64":"{}"}}"#, STANDARD.encode(BODY));
    post(&gateway, &[json, ("webhook-id", "e-6")], &envelope).await.unwrap();

    let received = gateway.received();
    let formats: Vec<_> = received.iter().map(|r| r.format).collect();
    assert_eq!(
        formats,
        [
            Format::CloudeventsStructured,
            Format::CloudeventsStructured,
            Format::CloudeventsBinary,
            Format::Envelope,
            Format::Raw,
            Format::Envelope
        ]
    );
    for (index, received) in received.iter().enumerate() {
        assert_eq!(received.data_sha256, Digest::of(BODY.as_bytes()), "{index}");
        assert_eq!(received.event_id, Some(format!("e-{}", index + 1)));
        assert_eq!(received.answered, 200);
        assert!(received.taken);
        assert_eq!(received.signature_ok, None);
    }
    assert_eq!(received[0].subject.as_deref(), Some("invoice/1"));
    assert_eq!(received[0].tenant.as_deref(), Some("t-1"));
    assert_eq!(received[0].source.as_deref(), Some("lago/acme"));
    assert_eq!(received[0].path, "/in?x=1");
    assert_eq!(received[2].subject.as_deref(), Some("café/1%2"));
    assert_eq!(received[3].event_type.as_deref(), Some("lago.invoice.created"));
    assert_eq!(received[4].unique_key.as_deref(), Some("key-1"));
    assert_eq!(received[4].body.as_deref(), Some(BODY.as_bytes()));
    assert_eq!(received[4].header("X-LAGO-unique-key"), Some("key-1"));
}

#[tokio::test]
async fn what_claims_to_be_a_cloudevent_and_is_not_is_malformed() {
    let gateway = gateway(Behaviour::Ok).await;
    let bad = [
        "{",
        r#"{"specversion":"1.0","id":"x"}"#,
        r#"{"specversion":"0.3","id":"x","source":"s","type":"t"}"#,
        r#"{"specversion":"1.0","id":"x","source":"s","type":"t","data":1,"data_base64":"MQ=="}"#,
        r#"{"specversion":"1.0","id":"x","source":"s","type":"t","data_base64":"?"}"#,
    ];
    for body in bad {
        let header = [("content-type", "application/cloudevents+json")];
        post(&gateway, &header, body).await.unwrap();
    }

    gateway.with_received(|received| {
        assert_eq!(received.len(), bad.len());
        assert!(received.iter().all(|r| r.format == Format::Malformed));
    });
}

#[tokio::test]
async fn a_null_document_is_data_and_an_absent_one_is_empty() {
    let gateway = gateway(Behaviour::Ok).await;
    for data in [r#","data":null"#, ""] {
        let body = format!(r#"{{"specversion":"1.0","id":"x","source":"s","type":"t"{data}}}"#);
        let header = [("content-type", "application/cloudevents+json")];
        post(&gateway, &header, &body).await.unwrap();
    }

    let received = gateway.received();
    assert_eq!(received[0].data_sha256, Digest::of(b"null"));
    assert_eq!(received[1].data_sha256, Digest::of(b""));
}

fn whsec(fill: u8) -> String {
    format!("whsec_{}", STANDARD.encode([fill; 32]))
}

async fn post_signed(gateway: &Gateway, fill: u8, seconds: u64, body: &str) {
    let mut mac = Hmac::<Sha256>::new_from_slice(&[fill; 32]).unwrap();
    mac.update(format!("e-1.{seconds}.{body}").as_bytes());
    let signature = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
    let headers =
        [("webhook-id", "e-1"), ("webhook-timestamp", &seconds.to_string()), ("webhook-signature", &signature)];
    post(gateway, &headers, body).await.unwrap();
}

#[tokio::test]
async fn signatures_are_judged_when_secrets_are_given() {
    let options = GatewayOptions { secrets: vec![whsec(1), whsec(2)], ..GatewayOptions::default() };
    let gateway = Gateway::start(options).await.unwrap();
    let now = Moment::now().as_micros() / 1_000_000;

    post_signed(&gateway, 2, now, BODY).await;
    post_signed(&gateway, 3, now, BODY).await;
    post_signed(&gateway, 1, now - 1000, BODY).await;
    post(&gateway, &[], BODY).await.unwrap();

    let judged: Vec<_> = gateway.received().iter().map(|r| r.signature_ok).collect();
    assert_eq!(judged, [Some(true), Some(false), Some(false), Some(false)]);
    assert_eq!(gateway.counts().bad_signatures, 3);
}

#[tokio::test]
async fn a_malformed_secret_is_refused_by_its_number_only() {
    let options = GatewayOptions { secrets: vec![whsec(1), "whsec_topsecret".to_owned()], ..GatewayOptions::default() };

    let error = Gateway::start(options).await.unwrap_err();

    assert!(matches!(error, GatewayError::Secret { number: 2 }));
    assert!(!error.to_string().contains("topsecret"));
}

#[tokio::test]
async fn statuses_headers_and_bodies_are_as_told() {
    let gateway = gateway(Behaviour::retry_after(429, "7")).await;
    let answer = post(&gateway, &[], BODY).await.unwrap();
    assert_eq!((answer.status, answer.header("retry-after")), (429, Some("7")));

    gateway.set_behaviour(Behaviour::Ignored);
    let answer = post(&gateway, &[], BODY).await.unwrap();
    assert_eq!(answer.json().unwrap()["status"], "ignored");

    gateway.set_behaviour(Behaviour::json(r#"{"a":1}"#));
    assert_eq!(post(&gateway, &[], BODY).await.unwrap().json().unwrap()["a"], 1);

    gateway.set_behaviour(Behaviour::Status(200, vec![("bad header".to_owned(), "x".to_owned())], Vec::new()));
    assert_eq!(post(&gateway, &[], BODY).await.unwrap().status, 500);

    let taken: Vec<_> = gateway.received().iter().map(|r| r.taken).collect();
    assert_eq!(taken, [false, false, true, true]);
}

#[tokio::test]
async fn a_script_is_followed_step_by_step_and_ends_well() {
    let gateway =
        gateway(Behaviour::Script(vec![Behaviour::status(500), Behaviour::Reset, Behaviour::status(503)])).await;

    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(post_event(&gateway, "e").await.map_or(0, |answer| answer.status));
    }

    assert_eq!(seen, [500, 0, 503, 200]);
    let answered: Vec<_> = gateway.received().iter().map(|r| r.answered).collect();
    assert_eq!(answered, [500, 0, 503, 200]);
    let counts = gateway.counts();
    assert_eq!((counts.received, counts.taken, counts.unique), (4, 1, 1));
}

#[tokio::test]
async fn a_reset_is_a_reset_and_is_recorded_without_an_answer() {
    let gateway = gateway(Behaviour::Reset).await;

    let outcome = post(&gateway, &[], BODY).await;

    assert!(matches!(outcome, Err(RawError::Reset { .. })), "{outcome:?}");
    assert_eq!(gateway.received()[0].answered_at, None);
}

#[tokio::test]
async fn a_mute_gateway_holds_the_connection_open() {
    let gateway = gateway(Behaviour::Drop).await;
    let mut connection = RawConnection::open(gateway.addr()).await.unwrap();
    connection.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}").await.unwrap();
    gateway.wait_for(1, SOON).await.unwrap();

    let outcome = connection.read_response(Duration::from_millis(100)).await;

    assert!(matches!(&outcome, Err(RawError::TimedOut { received }) if received.is_empty()), "{outcome:?}");
    assert_eq!(gateway.counts().received, 1);
}

#[tokio::test]
async fn slow_and_dripping_answers_take_their_time() {
    let pause = Duration::from_millis(60);
    let gateway = gateway(Behaviour::status(204).after(pause)).await;
    let begin = Instant::now();
    assert_eq!(post(&gateway, &[], BODY).await.unwrap().status, 204);
    assert!(begin.elapsed() >= pause);

    gateway.set_behaviour(Behaviour::Drip(Duration::from_millis(10), Box::new(Behaviour::json("[1,2,3]"))));
    let begin = Instant::now();
    assert_eq!(post(&gateway, &[], BODY).await.unwrap().text(), "[1,2,3]");
    assert!(begin.elapsed() >= Duration::from_millis(70));
}

#[tokio::test]
async fn a_cut_answer_breaks_off_and_takes_nothing_over() {
    for bytes in [0, 3, 1000] {
        let cut = Behaviour::Cut(bytes, Box::new(Behaviour::json("[1,2,3]")));
        let gateway = gateway(cut).await;

        let outcome = post(&gateway, &[], BODY).await;

        let Err(RawError::Reset { received }) = outcome else {
            panic!("{outcome:?}");
        };
        let wanted = &"[1,2,3]"[..bytes.min(7)];
        assert!(received.ends_with(wanted.as_bytes()), "{received:?}");
        assert!(!gateway.received()[0].taken);
    }
}

#[tokio::test]
async fn a_decision_sees_the_event_and_how_often_it_came() {
    let gateway = gateway(Behaviour::failing_first(2, 503)).await;

    let mut seen = Vec::new();
    for id in ["a", "b", "a", "a", "b", "b"] {
        seen.push(post_event(&gateway, id).await.unwrap().status);
    }

    assert_eq!(seen, [503, 503, 503, 200, 503, 200]);
    assert_eq!(gateway.counts().unique, 2);
}

#[tokio::test]
async fn a_decision_that_never_ends_is_answered() {
    let gateway = gateway(Behaviour::by_request(|_| endless())).await;

    assert_eq!(post(&gateway, &[], BODY).await.unwrap().status, 500);
}

fn endless() -> Behaviour {
    Behaviour::by_request(|_| endless())
}

#[tokio::test]
async fn down_means_refused_and_back_means_the_same_port() {
    let gateway = gateway(Behaviour::Ok).await;
    post_event(&gateway, "a").await.unwrap();
    let mut open = raw::RawConnection::open(gateway.addr()).await.unwrap();

    gateway.stop().await;

    assert!(!gateway.is_running());
    let outcome = post_event(&gateway, "b").await;
    assert!(matches!(outcome, Err(RawError::Refused { .. })), "{outcome:?}");
    open.wait_closed(SOON).await.unwrap();

    gateway.restart_on_same_port().await.unwrap();
    gateway.restart_on_same_port().await.unwrap();

    post_event(&gateway, "c").await.unwrap();
    let received = gateway.wait_for(2, SOON).await.unwrap();
    assert_eq!(received[1].event_id.as_deref(), Some("c"));
    assert_eq!(received[1].number, 2);
}

#[tokio::test]
async fn going_down_breaks_requests_that_wait_for_their_answer() {
    let gateway = gateway(Behaviour::Drop).await;
    let address = gateway.addr();
    let waiting = tokio::spawn(async move { raw::request(address, "POST", "/", &[], b"{}", SOON).await });
    gateway.wait_for(1, SOON).await.unwrap();

    gateway.stop().await;

    let outcome = waiting.await.unwrap();
    assert!(matches!(outcome, Err(RawError::Closed { .. } | RawError::Reset { .. })), "{outcome:?}");
}

#[tokio::test]
async fn waiting_says_what_was_seen_at_the_deadline() {
    let gateway = gateway(Behaviour::Ok).await;
    post_event(&gateway, "a").await.unwrap();
    post_event(&gateway, "a").await.unwrap();
    let short = Duration::from_millis(20);

    gateway.wait_for_unique(1, SOON).await.unwrap();
    let error = gateway.wait_for_unique(2, short).await.unwrap_err();
    assert_eq!((error.wanted, error.seen), (2, 1));
    let error = gateway.wait_for(3, short).await.unwrap_err();
    assert_eq!((error.wanted, error.seen), (3, 2));
}

#[tokio::test]
async fn records_are_bounded_and_forgettable_and_still_counted() {
    let options = GatewayOptions { record_limit: 2, keep_headers: false, ..GatewayOptions::default() };
    let gateway = Gateway::start(options).await.unwrap();
    for id in ["a", "b", "c", "c"] {
        post_event(&gateway, id).await.unwrap();
    }
    let counts = gateway.counts();
    assert_eq!((counts.received, counts.unrecorded, counts.unique), (4, 2, 3));
    assert!(gateway.received()[0].headers.is_empty());

    gateway.forget();
    post_event(&gateway, "a").await.unwrap();

    let received = gateway.received();
    assert_eq!((received.len(), received[0].number), (1, 5));
    assert_eq!(received[0].answered, 200);
}

#[tokio::test]
async fn an_oversized_body_is_refused_and_not_recorded() {
    let options = GatewayOptions { body_limit_bytes: 10, ..GatewayOptions::default() };
    let gateway = Gateway::start(options).await.unwrap();

    assert_eq!(post(&gateway, &[], "0123456789").await.unwrap().status, 200);
    assert_eq!(post(&gateway, &[], "0123456789a").await.unwrap().status, 413);
    assert_eq!(gateway.counts().received, 1);
}

#[tokio::test]
async fn the_journal_file_tells_the_same_as_the_memory() {
    let scratch = Scratch::new("gateway").unwrap();
    let path = scratch.file("received.jsonl");
    let options = GatewayOptions {
        journal: Some(path.clone()),
        behaviour: Behaviour::Script(vec![Behaviour::status(500), Behaviour::Reset]),
        ..GatewayOptions::default()
    };
    let gateway = Gateway::start(options).await.unwrap();
    for id in ["a", "a", "a"] {
        let _ = post_event(&gateway, id).await;
    }

    let mut from_file = crate::ledger::Ledger::new();
    from_file.read_gateway_journal(&path).unwrap();
    let mut from_memory = crate::ledger::Ledger::new();
    from_memory.extend_received(&gateway.received());

    assert_eq!(from_file.deliveries(), from_memory.deliveries());
    let taken: Vec<_> = from_file.deliveries().iter().map(|d| d.taken).collect();
    assert_eq!(taken, [false, false, true]);
}

#[tokio::test]
async fn the_observer_hears_of_every_request_once() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ear = Arc::clone(&heard);
    let options = GatewayOptions {
        behaviour: Behaviour::Script(vec![Behaviour::Reset, Behaviour::status(503)]),
        on_received: Some(Arc::new(move |received| lock(&ear).push(received.answered))),
        ..GatewayOptions::default()
    };
    let gateway = Gateway::start(options).await.unwrap();

    for _ in 0..3 {
        let _ = post_event(&gateway, "a").await;
    }

    assert_eq!(*lock(&heard), [0, 503, 200]);
}

#[tokio::test]
async fn a_head_with_a_large_token_is_taken() {
    let gateway = gateway(Behaviour::Ok).await;
    let token = "t".repeat(1 << 20);

    let answer = post(&gateway, &[("x-lago-signature", &token)], BODY).await;

    assert_eq!(answer.unwrap().status, 200);
    assert_eq!(gateway.received()[0].header("x-lago-signature").map(str::len), Some(1 << 20));
}

#[tokio::test]
async fn bytes_of_choice_stand_in_place_of_an_answer() {
    let answer = b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 299 Odd\r\nContent-Length: 2\r\n\r\nok".to_vec();
    let gateway = gateway(Behaviour::Wire(answer, true)).await;
    let read = post_event(&gateway, "e-1").await.unwrap();
    assert_eq!((read.interim.as_slice(), read.status, read.text().as_str()), (&[103][..], 299, "ok"));
    assert_eq!(gateway.counts().unique, 1);

    gateway.set_behaviour(Behaviour::Wire(b"SSH-2.0-x\r\n\r\n".to_vec(), false));
    assert!(matches!(post_event(&gateway, "e-2").await, Err(RawError::Malformed { .. })));
    assert_eq!(gateway.counts().unique, 1);
}
