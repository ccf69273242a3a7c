//! Lago's public key over real HTTP: right, refused, broken, slow, gone, rotated.

use std::time::Duration;

use kit_lago::api::SetupError;
use kit_lago::public_key::{AnswerError, FetchError, decode_public_key_answer, fetch_public_key};
use kit_lago::signature::{KeyError, RsaKey};
use kit_lago::stand_in::{Answering, PublicKeyServer, encode_public_key_answer};

use crate::support::{attacker, fixture, lago, secret};

const API_KEY: &str = "lago_key-hunter2";

fn client() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .tls_certs_only([])
        .timeout(Duration::from_millis(2_000))
        .build()
        .unwrap()
}

async fn server() -> PublicKeyServer {
    PublicKeyServer::start(lago().public_pem(), secret(API_KEY)).await.unwrap()
}

async fn fetch(server: &PublicKeyServer) -> Result<String, FetchError> {
    fetch_public_key(&client(), &server.url(), &secret(API_KEY)).await
}

#[test]
fn the_answer_is_base64_of_the_pem_in_lines_of_sixty() {
    let pem = fixture("captures/lago-jwt-public.pem");
    let text = encode_public_key_answer(&pem);

    assert!(text.ends_with('\n'));
    assert!(text.lines().all(|line| line.len() <= 60));
    assert_eq!(text.lines().next().map(str::len), Some(60));
    assert_eq!(decode_public_key_answer(&text), Ok(pem.clone()));
    assert_eq!(decode_public_key_answer(&text.replace('\n', "\r\n")), Ok(pem.clone()));
    assert_eq!(decode_public_key_answer(&text.replace('\n', "")), Ok(pem));
}

#[test]
fn an_answer_that_is_not_a_key_says_what_it_is() {
    let pem = lago().public_pem();
    for (text, expected) in [
        (String::new(), AnswerError::Key(KeyError::None)),
        ("***".to_owned(), AnswerError::NotBase64),
        (pem.clone(), AnswerError::NotBase64),
        (encode_public_key_answer("\u{0}"), AnswerError::Key(KeyError::NotPem)),
        (encode_public_key_answer(&encode_public_key_answer(&pem)), AnswerError::Key(KeyError::Base64OfPem)),
        (encode_public_key_answer(&fixture("keys/rsa-1024.pem")), AnswerError::Key(KeyError::TooShort { bits: 1024 })),
        (
            encode_public_key_answer(&fixture("keys/ec-p256.pem")),
            AnswerError::Key(KeyError::NotRsa { found: "an elliptic-curve key" }),
        ),
        ("//79".to_owned(), AnswerError::NotBase64),
    ] {
        assert_eq!(decode_public_key_answer(&text), Err(expected), "{text}");
    }
}

#[tokio::test]
async fn the_key_is_fetched_from_any_form_of_the_address() {
    let server = server().await;
    for suffix in ["", "/", "/api/v1", "/api/v1/"] {
        let url = format!("{}{suffix}", server.url());

        let pem = fetch_public_key(&client(), &url, &secret(API_KEY)).await.unwrap();

        assert_eq!(RsaKey::from_pem(&pem).unwrap(), lago().public_key());
    }
    assert_eq!(server.requests(), 4);
}

#[tokio::test]
async fn a_rotated_key_replaces_the_old_one_without_overlap() {
    let server = server().await;
    server.rotate(attacker().public_pem());

    let pem = fetch(&server).await.unwrap();

    assert_eq!(RsaKey::from_pem(&pem).unwrap(), attacker().public_key());
}

#[tokio::test]
async fn a_refused_api_key_is_named_and_not_shown() {
    let server = server().await;

    let error = fetch_public_key(&client(), &server.url(), &secret("hunter3")).await.unwrap_err();

    assert!(matches!(error, FetchError::Unauthorized));
    assert!(error.to_string().contains("LAGO_API_KEY is refused"));
    assert!(!kit::error::chain(&error).contains("hunter"));
    let error = fetch_public_key(&client(), &server.url(), &secret("a\nb")).await.unwrap_err();
    assert!(matches!(error, FetchError::Setup(SetupError::BadApiKey)));
}

#[tokio::test]
async fn every_wrong_answer_has_its_own_error() {
    let server = server().await;
    let with = |status: u16, body: &str| Answering::With { status, body: body.to_owned() };

    server.answer(Answering::Unavailable);
    assert!(matches!(fetch(&server).await, Err(FetchError::Status(503))));
    server.answer(with(403, "{}"));
    assert!(matches!(fetch(&server).await, Err(FetchError::Forbidden)));
    server.answer(with(404, "{}"));
    assert!(matches!(fetch(&server).await, Err(FetchError::NotFound)));
    server.answer(with(302, ""));
    assert!(matches!(fetch(&server).await, Err(FetchError::Status(302))));
    for body in ["", "null", "[]", "<html>", r#"{"webhook":{}}"#, r#"{"webhook":{"public_key":7}}"#] {
        server.answer(with(200, body));
        assert!(matches!(fetch(&server).await, Err(FetchError::NotLago)), "{body}");
    }
    server.answer(with(200, r#"{"webhook":{"public_key":"AAAA"}}"#));
    assert!(matches!(fetch(&server).await, Err(FetchError::Key(_))));
    server.answer(with(200, &" ".repeat(70_000)));
    assert!(matches!(fetch(&server).await, Err(FetchError::TooLarge)));
}

#[tokio::test]
async fn a_lago_that_is_slow_or_gone_is_unreachable_and_its_address_is_not_shown() {
    let server = server().await;
    server.answer(Answering::Slowly(Duration::from_secs(60)));
    let impatient =
        reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(Duration::from_millis(50)).build().unwrap();
    let url = server.url();

    let slow = fetch_public_key(&impatient, &url, &secret(API_KEY)).await;
    assert!(matches!(slow, Err(FetchError::Unreachable(_))));

    server.stop().await;
    let gone = fetch_public_key(&client(), &url, &secret(API_KEY)).await.unwrap_err();
    assert!(matches!(gone, FetchError::Unreachable(_)));
    let shown = kit::error::chain(&gone);
    assert!(!shown.contains("127.0.0.1"), "{shown}");
}

/// The client's limits may be long or none: time stands still until nothing else can happen.
#[tokio::test]
async fn nothing_waits_longer_than_fifteen_seconds_for_a_key() {
    let server = server().await;
    server.answer(Answering::Slowly(Duration::from_secs(3_600)));
    let patient = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    let (url, key) = (server.url(), secret(API_KEY));
    let fetch = fetch_public_key(&patient, &url, &key);
    tokio::pin!(fetch);
    // Real time until the request has arrived; then nothing but timers is left.
    while server.requests() == 0 {
        assert!(one_step(fetch.as_mut()).await.is_none());
    }

    tokio::time::pause();

    assert!(matches!(fetch.await, Err(FetchError::TooSlow)));
}

/// Lets a future and the runtime make one step.
async fn one_step<F: Future + Unpin>(future: F) -> Option<F::Output> {
    tokio::select! {
        biased;
        output = future => Some(output),
        () = tokio::task::yield_now() => None,
    }
}

#[tokio::test]
async fn the_stand_in_comes_back_on_its_old_port_and_is_lago_in_other_respects() {
    let first = server().await;
    let address = first.address();
    first.stop().await;
    let server = PublicKeyServer::start_on(address, lago().public_pem(), secret(API_KEY)).await.unwrap();
    let get = async |path: &str| {
        let request = client().get(format!("{}{path}", server.url())).bearer_auth(API_KEY);
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };

    assert_eq!(get("/health").await.0, 200);
    assert_eq!(get("/api/v1/health").await.0, 404);
    let (status, text) = get("/api/v1/webhooks/public_key").await;
    assert_eq!(status, 200);
    assert_eq!(decode_public_key_answer(&text), Ok(lago().public_pem()));
}
