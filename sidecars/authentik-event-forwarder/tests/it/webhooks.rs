//! One webhook after the other.

use kit_authentik::blueprint::Authentication;
use kit_authentik::emulator::{Generation, Mapping, NewEvent, Notifier, NotifierOptions};
use serde_json::json;

use crate::bench::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_answered_with_its_id_and_its_event_reaches_the_gateway_byte_for_byte() {
    let bench = Bench::start("hmac-header", &[]).await;
    let event = event(PK, "login");

    let answer = bench.send(&envelope(&event, "")).await;

    assert_eq!(answer.status, 200);
    let answer = answer.json().unwrap();
    assert_eq!((&answer["duplicate"], answer["id"].as_str()), (&json!(false), Some(&*id(PK.parse().unwrap()))));
    bench.gateway.wait_for(1, DEADLINE).await.unwrap();
    let received = &bench.gateway.received()[0];
    assert_eq!(received.event_id.as_deref(), answer["id"].as_str());
    assert_eq!(received.event_type.as_deref(), Some("authentik.login"));
    assert_eq!(received.source.as_deref(), Some("authentik/default"));
    assert_eq!(received.subject.as_deref(), Some("user/5"));
    assert_eq!(received.data_sha256, kit_workbench::Digest::of(event.as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_event_gets_the_same_answer_whatever_else_it_says_also_across_a_kill() {
    let mut bench = Bench::start("hmac-header", &[]).await;
    let first = bench.send(&envelope(&event(PK, "login"), "")).await.json().unwrap();
    let dashed = "0f0e0d0c-0b0a-4908-8706-050403020100";
    let second = bench.send(&envelope(&event(dashed, "login"), r#", "nonce": "another""#)).await.json().unwrap();
    // What was delivered and not recorded when it is killed comes again.
    bench.wait_api("/api/v1/statistics", |s| s["sinks"][0]["delivered"] == 1).await;
    bench.restart(&[]).await;
    let third = bench.send(&envelope(&event(PK, "logout"), "")).await.json().unwrap();

    assert_eq!((&first["id"], &first["id"]), (&second["id"], &third["id"]));
    assert_eq!((&second["duplicate"], &third["duplicate"]), (&json!(true), &json!(true)));
    bench.wait_api("/api/v1/statistics", |s| s["sinks"][0]["delivered"] == 1 && s["accepted"] == 1).await;
    assert_eq!(bench.types(), [("authentik.login".to_owned(), 1)].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_proof_is_accepted_where_it_is_configured_and_nothing_else_is() {
    let bearer = format!("Authorization: Bearer {SECRET}\r\n");
    let proven = |pk: &str, proof: &str| -> (String, String) {
        let event = event(pk, "login");
        match proof {
            "hmac-header" => (envelope(&event, ""), signature(&envelope(&event, ""))),
            "hmac-body" => (envelope(&event, &signed(&event, "n")), String::new()),
            "bearer" => (envelope(&event, ""), bearer.clone()),
            _ => (envelope(&event, &format!(r#", "secret": "{SECRET}""#)), String::new()),
        }
    };
    let proofs = ["hmac-header", "hmac-body", "bearer", "body-secret"];
    for configured in proofs {
        let bench = Bench::start(configured, &[]).await;
        for (n, sent) in proofs.iter().enumerate() {
            let (body, headers) = proven(&format!("{n:032x}"), sent);
            let answer = bench.post(body.as_bytes(), &headers).await;
            assert_eq!(answer.status == 200, *sent == configured, "{configured} {sent}");
            if answer.status != 200 {
                assert_eq!((answer.status, &answer.body[..]), (401, &br#"{"error":"unauthorized"}"#[..]));
            }
        }
        assert_eq!(bench.accepted().await, 1);
    }
    let bench = Bench::start("hmac-body,bearer", &[]).await;
    for (n, sent) in proofs.iter().enumerate() {
        let (body, headers) = proven(&format!("{n:032x}"), sent);
        let expected = if matches!(*sent, "hmac-body" | "bearer") { 200 } else { 401 };
        assert_eq!(bench.post(body.as_bytes(), &headers).await.status, expected, "{sent}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_signature_in_the_body_covers_cannot_be_changed() {
    let bench = Bench::start("hmac-body", &[]).await;
    let good = envelope(&event(PK, "login"), &signed(&event(PK, "login"), "n-1"));
    let other = event(PK, "login").replace(r#""ada""#, r#""eve""#);
    let twice = format!(r#", "event": {other}}}"#);
    let spelled = format!(r#", "\u0065vent": {other}}}"#);
    let first = format!(r#"{{"event": {other}, "#);
    for (from, to) in [
        (PK, "1f0e0d0c0b0a49088706050403020100"),
        (r#""login""#, r#""logout""#),
        ("13:27:00", "13:27:01"),
        // Whatever else is said about it, down to its spelling.
        ("203.0.113.7", "203.0.113.8"),
        (r#""client_ip": "203.0.113.7", "#, ""),
        (r#""pk": 5"#, r#""pk": 1"#),
        (r#""ada""#, r#""eve""#),
        ("1.50", "1.5"),
        (r"\u00e4", "ä"),
        (r#""brand": {}"#, r#""brand": { }"#),
        (r#""brand": {}"#, r#""brand": {}, "enriched": {"user": {}}"#),
        // One signed and one not: nobody can say which of them is meant.
        ("}", &twice),
        ("}", &spelled),
        ("{", &first),
        (r#""n-1""#, r#""n-2""#),
        (r#", "nonce": "n-1""#, ""),
        ("outrigger.authentik/1", "outrigger.authentik/2"),
    ] {
        // The members of the envelope stand at its ends.
        let changed = match (from, good.strip_suffix('}')) {
            ("}", Some(open)) => open.to_owned() + to,
            _ => good.replacen(from, to, 1),
        };
        assert_ne!(changed, good);
        assert_eq!(bench.post(changed.as_bytes(), "").await.status, 401, "{from} {to}");
    }
    assert_eq!(bench.accepted().await, 0);
    assert_eq!(bench.post(good.as_bytes(), "").await.status, 200);
    assert_eq!(bench.accepted().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_form_of_the_path_is_redirected() {
    let bench = Bench::start("hmac-header", &[]).await;
    let body = envelope(&event(PK, "login"), "");
    for (path, expected) in [
        ("/webhooks/authentik", 200),
        ("/webhooks/authentik/", 200),
        ("/webhooks/authentik?x=1", 200),
        ("/webhooks/authentik//", 404),
        ("//webhooks/authentik", 404),
        ("/webhooks/../webhooks/authentik", 404),
        ("/Webhooks/Authentik", 404),
        ("/", 404),
    ] {
        let answer = bench.post_to(path, body.as_bytes(), &signature(&body)).await;
        assert_eq!(answer.status, expected, "{path}");
    }
    let get = kit_workbench::raw::get(bench.public, "/webhooks/authentik", DEADLINE).await.unwrap();
    assert_eq!(get.status, 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn authentiks_own_body_is_answered_and_said_and_not_stored() {
    for authentication in ["hmac-header", "hmac-body"] {
        let mut bench = Bench::start(authentication, &[]).await;
        let authentik = authentik(Generation::V2024_10).await;
        let options = NotifierOptions::new(bench.webhook_url(), Mapping::Unmapped);
        let notifier = Notifier::start(authentik.state(), options);
        authentik.happen(NewEvent::login(&ada()));
        authentik.happen(NewEvent::login(&ada()));

        assert!(notifier.quiet(DEADLINE).await);

        assert_eq!((notifier.counts().delivered, notifier.counts().attempts), (2, 2), "asked for once");
        assert_eq!(bench.accepted().await, 0);
        assert_eq!(bench.metric("authentik_webhooks_unmapped_total", &[]).await, 2);
        let said = bench.daemon.whole_stdout(DEADLINE).await.unwrap();
        let lines: Vec<_> = said.lines().filter(|line| line.contains("config/authentik/outrigger.yaml")).collect();
        assert_eq!(lines.len(), 1, "said once: {lines:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_notification_and_whatever_a_version_has_of_its_own_is_taken() {
    let bench = Bench::start("hmac-header", &[]).await;
    let test = r#"{"pk": "0f0e0d0c-0b0a-4908-8706-050403020100", "action": "custom_notification_test", "app": "authentik.events", "created": "2026-11-22T13:27:00Z", "client_ip": null, "user": {}, "context": {"user": {}, "foo": "bar"}, "brand": {}}"#;
    assert_eq!(bench.send(&envelope(test, "")).await.status, 200);
    for (n, action) in ["access_request_created", "custom_ä ö", "an.action/of tomorrow"].iter().enumerate() {
        assert_eq!(bench.send(&envelope(&event(&format!("{n:032x}"), action), "")).await.status, 200, "{action}");
    }
    bench.gateway.wait_for(4, DEADLINE).await.unwrap();
    assert_eq!(bench.types()["authentik.custom_notification_test"], 1);
    assert_eq!(bench.metric("authentik_events_by_action_total", &[("action", "other")]).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_excluded_is_answered_counted_and_not_stored() {
    let bench = Bench::start("hmac-header", &[]).await;
    for (n, action) in ["policy_exception", "system_task_exception"].iter().enumerate() {
        let answer = bench.send(&envelope(&event(&format!("{n:032x}"), action), "")).await;
        assert_eq!((answer.status, &answer.json().unwrap()["excluded"]), (200, &json!("action")));
    }
    let own = event(PK, "model_updated").replace(r#""ada""#, r#""outrigger""#);
    assert_eq!(bench.send(&envelope(&own, "")).await.json().unwrap()["excluded"], "own_write");
    assert_eq!(bench.accepted().await, 0);
    assert_eq!(bench.metric("authentik_events_excluded_total", &[]).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proven_body_that_cannot_be_read_is_parked_unless_the_secret_is_in_it() {
    let mut bench = Bench::start("hmac-header", &[]).await;
    let newer = r#"{"schema": "outrigger.authentik/2", "event": {}}"#;
    assert_eq!(bench.send(newer).await.status, 200);
    assert_eq!(bench.send(newer).await.json().unwrap()["duplicate"], true);
    let changed = newer.replace("{}", "{ }");
    assert_eq!(bench.send(&changed).await.json().unwrap()["duplicate"], false);
    let empty = bench.send("").await;
    assert_eq!((empty.status, &empty.json().unwrap()["stored"]), (200, &json!(false)), "a mapping that returns None");
    let with_secret = format!(r#"{{"schema": "outrigger.authentik/2", "secret": "{SECRET}"}}"#);
    assert_eq!(bench.send(&with_secret).await.json().unwrap()["stored"], false);
    assert_eq!(bench.send(&format!("[{with_secret}]")).await.json().unwrap()["stored"], false);
    // What can be read goes on behind them.
    assert_eq!(bench.send(&envelope(&event(PK, "login"), "")).await.status, 200);
    let parked = |s: &serde_json::Value| s["sinks"][0]["parked"] == 2 && s["sinks"][0]["delivered"] == 1;
    bench.wait_api("/api/v1/statistics", parked).await;
    let listed = bench.api("/api/v1/deliveries?state=parked").await;
    for delivery in listed["deliveries"].as_array().unwrap() {
        assert_eq!(delivery["type"], "authentik.unreadable");
        let reason = delivery["reason"].as_str().unwrap();
        assert!(reason.contains("the blueprint config/authentik/outrigger.yaml is of another version"), "{reason}");
    }
    assert_eq!(listed["deliveries"].as_array().unwrap().len(), 2, "{listed}");
    assert_eq!(bench.types(), [("authentik.login".to_owned(), 1)].into(), "nobody was sent what nobody can read");
    assert_eq!(bench.metric("authentik_events_total", &[("result", "unreadable")]).await, 5);
    let replayed = bench.act("/api/v1/deliveries/replay", &json!({ "select": { "state": "parked" } })).await;
    assert_eq!(replayed["changed"], 2, "{replayed}");
    bench.wait_api("/api/v1/statistics", |s| s["sinks"][0]["delivered"] == 3).await;
    assert_eq!(bench.types()["authentik.unreadable"], 2, "a person has said so");

    let log = bench.daemon.whole_stdout(DEADLINE).await.unwrap();
    assert_eq!(lines_with(&log, "a webhook cannot be read"), 1, "said once, whatever it is");
    assert_eq!(lines_with(&log, "parked as a dead letter"), 2);
}

/// Who wants none of them says so by a route.
#[tokio::test(flavor = "multi_thread")]
async fn a_route_may_drop_what_cannot_be_read() {
    let routes = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(routes.path(), "[[route]]\nname = \"noise\"\ntypes = [\"authentik.unreadable\"]\ndrop = true\n")
        .unwrap();
    let path = routes.path().display().to_string();
    let bench = Bench::start("hmac-header", &[("SIDECAR_ROUTES__FILE", &path)]).await;

    assert_eq!(bench.send(r#"{"schema": "outrigger.authentik/2", "event": {}}"#).await.status, 200);

    bench.wait_api("/api/v1/statistics", |s| s["sinks"][0]["dropped"] == 1 && s["sinks"][0]["parked"] == 0).await;
}

fn lines_with(log: &str, text: &str) -> usize {
    log.lines().filter(|line| line.contains(text)).count()
}

/// Each has another nonce: kept, every event would be there twice, once of no use.
#[tokio::test(flavor = "multi_thread")]
async fn where_the_api_brings_the_event_a_body_that_cannot_be_read_is_answered_and_not_stored() {
    let authentik = authentik(Generation::V2026_2).await;
    let mut bench = Bench::beside(&authentik, &[]).await;
    bench.wait_metric("authentik_poll_succeeded_seconds", &[], 1).await;
    let event = event(PK, "login");
    for nonce in 0..5 {
        let newer = envelope(&event, &format!(r#", "nonce": "{nonce}""#)).replace("outrigger.authentik/1", "other/1");
        let answer = bench.send(&newer).await;
        let answer = (answer.status, answer.json().unwrap());
        assert_eq!((answer.0, &answer.1["stored"]), (200, &json!(false)), "{}", answer.1);
        assert!(answer.1["error"].as_str().unwrap().contains("config/authentik/outrigger.yaml"), "{}", answer.1);
    }

    let real = authentik.happen(NewEvent::login(&ada()));

    bench.wait_delivered(&[real]).await;
    assert_eq!(bench.accepted().await, 1);
    assert_eq!(bench.metric("authentik_events_total", &[("result", "unreadable")]).await, 5);
    let log = bench.daemon.whole_stdout(DEADLINE).await.unwrap();
    assert_eq!(lines_with(&log, "a webhook cannot be read"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_body_is_no_event_whoever_sends_it() {
    let bench = Bench::start("bearer", &[]).await;
    for body in ["", " \n"] {
        let answer = bench.post(body.as_bytes(), &format!("Authorization: Bearer {SECRET}\r\n")).await;
        assert_eq!((answer.status, &answer.json().unwrap()["stored"]), (200, &json!(false)));
    }
    assert_eq!(bench.accepted().await, 0);
}

/// At the level at which daemons run, without one line for each request that anybody can send.
#[tokio::test(flavor = "multi_thread")]
async fn webhooks_that_are_refused_are_said_now_and_then_with_the_reason() {
    let mut bench = Bench::start("hmac-header", &[("LOG_LEVEL", "info")]).await;
    let body = envelope(&event(PK, "login"), "");
    for _ in 0..5 {
        assert_eq!(bench.post(body.as_bytes(), "").await.status, 401);
    }
    let log = bench.daemon.whole_stdout(DEADLINE).await.unwrap();
    let lines: Vec<serde_json::Value> = log.lines().flat_map(serde_json::from_str).collect();
    let said: Vec<_> = lines.iter().filter(|line| line["reason"] == "missing_proof").collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(said[0]["level"].as_str().unwrap().to_lowercase(), "warn");
    assert!(!log.contains(SECRET));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_has_both_secrets_and_compression_is_refused() {
    let both = format!("another-secret-of-thirty-two-bytes\n{SECRET}\n");
    let bench = Bench::start("hmac-header", &[("AUTHENTIK_WEBHOOK_SECRET", &both)]).await;
    let body = envelope(&event(PK, "login"), "");
    assert_eq!(bench.send(&body).await.status, 200);
    let headers = format!("{}Content-Encoding: gzip\r\n", signature(&body));
    assert_eq!(bench.post(body.as_bytes(), &headers).await.status, 415);
}

/// Every generation's worker, as our blueprint sets it up.
#[tokio::test(flavor = "multi_thread")]
async fn what_each_version_sends_is_taken() {
    for (generation, authentication) in [
        (Generation::V2024_10, "hmac-body"),
        (Generation::V2025_4, "hmac-header"),
        (Generation::V2026_8, "hmac-header"),
    ] {
        let bench = Bench::start(authentication, &[("SIDECAR_EVENTS__PLATFORM_NAMES", "true")]).await;
        let authentik = authentik(generation).await;
        let mapping = Mapping::Blueprint(Authentication::Hmac, secret());
        let notifier = Notifier::start(authentik.state(), NotifierOptions::new(bench.webhook_url(), mapping));
        let pks = [
            authentik.happen(NewEvent::login(&ada())),
            authentik.happen(NewEvent::model(&ada(), "created", "authentik_core", "user", "9", "Grace")),
            authentik.happen(NewEvent::of_system("custom_notification_test", json!({ "foo": "bär" }))),
        ];

        assert!(notifier.quiet(DEADLINE).await);

        assert_eq!(notifier.counts().attempts, 3, "{generation:?}");
        bench.wait_delivered(&pks).await;
        let created = bench.gateway.received().into_iter().find(|r| r.subject.as_deref() == Some("user/9")).unwrap();
        let event: serde_json::Value = serde_json::from_slice(created.body.as_deref().unwrap()).unwrap();
        assert_eq!((&event["type"], &event["typealias"]), (&json!("authentik.model_created"), &json!("user.created")));
    }
}
