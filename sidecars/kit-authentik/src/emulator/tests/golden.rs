//! Requests that are fixed as files, byte for byte. CPython and `requests` make the same ones: `tests/clients/authentik.rs`.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::receiver::{Manner, Receiver};
use super::*;
use crate::blueprint::Authentication;
use crate::event::EventPk;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden")
}

/// The events that the files are about.
fn events() -> Vec<(&'static str, NewEvent)> {
    let text = std::fs::read_to_string(folder().join("events.json")).unwrap();
    let events: Value = serde_json::from_str(&text).unwrap();
    let event = |name: &'static str| {
        let told = &events[name];
        let created: jiff::Timestamp = told["created"].as_str().unwrap().parse().unwrap();
        let mut event = NewEvent::of_system(told["action"].as_str().unwrap(), told["context"].clone())
            .with_pk(told["pk"].as_str().unwrap().parse::<EventPk>().unwrap())
            .by_app(told["app"].as_str().unwrap())
            .at_micros(created.as_microsecond());
        event.user = std::sync::Arc::new(told["user"].clone());
        event.brand = std::sync::Arc::new(told["brand"].clone());
        event.client_ip = told["client_ip"].as_str().map(Into::into);
        (name, event)
    };
    ["login", "model_created", "custom", "test", "anonymous"].map(event).to_vec()
}

/// The nonce is of the notification, and another one each time; so are the signatures with it.
fn without_nonce(request: &str) -> String {
    let mut request = request.to_owned();
    for (before, length) in [("\"nonce\": \"", 32), ("\"signature\": \"", 64), ("X-Outrigger-Signature: sha256=", 64)] {
        if let Some(at) = request.find(before) {
            let from = at + before.len();
            request.replace_range(from..from + length, &"0".repeat(length));
        }
    }
    request
}

#[tokio::test]
async fn requests_are_the_golden_ones_byte_for_byte() {
    let ours = |authentication| Mapping::Blueprint(authentication, secret());
    for (variant, generation, mapping) in [
        ("hmac-2026.2", Generation::V2026_2, ours(Authentication::Hmac)),
        ("hmac-2024.10", Generation::V2024_10, ours(Authentication::Hmac)),
        ("bearer-2026.2", Generation::V2026_2, ours(Authentication::Bearer)),
        ("body-secret-2024.10", Generation::V2024_10, ours(Authentication::BodySecret)),
        ("unmapped-2026.2", Generation::V2026_2, Mapping::Unmapped),
        ("none-2026.2", Generation::V2026_2, Mapping::Nothing),
    ] {
        for (name, event) in events() {
            let authentik = AuthentikServer::start(generation).await.unwrap();
            let receiver = Receiver::start(Manner::Status(204)).await;
            let notifier = Notifier::start(authentik.state(), NotifierOptions::new(&receiver.url, mapping.clone()));

            authentik.happen(event);

            assert!(notifier.quiet(SOON).await, "{variant} {name}");
            let made = without_nonce(&receiver.requests().concat());
            let path = folder().join(variant).join(format!("{name}.http"));
            if std::env::var_os("OUTRIGGER_WRITE_GOLDEN").is_some() {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, &made).unwrap();
            }
            assert_eq!(made, std::fs::read_to_string(&path).unwrap_or_default(), "{}", path.display());
        }
    }
}

#[test]
fn json_is_written_as_python_writes_it() {
    use super::super::python::{dumps, repr, sanitised};

    let value =
        json!({ "a": [0, "", null, 1, [], {}, false, 0.0], "ä": "\u{1f600}\u{7f}\n\"", "n": [1.0, 1e16, 1e-7, -2] });
    assert_eq!(
        dumps(&value),
        r#"{"a": [0, "", null, 1, [], {}, false, 0.0], "n": [1.0, 1e+16, 1e-07, -2], "\u00e4": "\ud83d\ude00\u007f\n\""}"#
    );
    assert_eq!(dumps(&sanitised(&value["a"])), "[1]");
    assert_eq!(repr(&json!({ "it's": [true, null, "a\"'"] })), r#"{"it's": [True, None, 'a"\'']}"#);
}
