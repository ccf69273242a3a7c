//! Lago's RSA key: fetched, remembered, rotated.

use std::sync::Arc;

use kit_lago::PublicKeyServer;
use kit_lago::sample::{Shape, sample};
use kit_lago::sender::Signing;
use kit_lago::signature::RsaSigner;
use kit_lago::stand_in::Answering;

use crate::bench::*;

const API_KEY: &str = "lago-api-key";

fn jwt(signer: &Arc<RsaSigner>) -> Signing {
    Signing::Jwt(Arc::clone(signer), "http://lago-api:3000".to_owned())
}

fn signer() -> Arc<RsaSigner> {
    Arc::new(RsaSigner::generate().unwrap())
}

async fn lago(signer: &RsaSigner) -> PublicKeyServer {
    PublicKeyServer::start(signer.public_pem(), API_KEY.to_owned().into()).await.unwrap()
}

async fn status(bench: &Bench, signing: &Signing) -> u16 {
    let body = sample("invoice.created", &Shape::default());
    bench.send(&signing.delivery("invoice.created", body).unwrap()).await.status
}

async fn status_becomes(bench: &Bench, signing: &Signing, wanted: u16) {
    let deadline = std::time::Instant::now() + DEADLINE;
    while status(bench, signing).await != wanted {
        assert!(std::time::Instant::now() < deadline, "the status never became {wanted}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn until_the_key_is_known_the_answer_is_503_and_a_restart_does_not_need_lago() {
    let signer = signer();
    let lago = lago(&signer).await;
    lago.answer(Answering::Unavailable);
    let env = [("SIDECAR_LAGO__SIGNATURE", "jwt"), ("LAGO_API_URL", &lago.url()), ("LAGO_API_KEY", API_KEY)];
    let mut bench = Bench::spawn(&env).await;

    let body = sample("invoice.created", &Shape::default());
    let early = bench.send(&jwt(&signer).delivery("invoice.created", body).unwrap()).await;
    assert_eq!(early.status, 503);
    assert!(early.header("retry-after").is_some());
    let (ready, parts) = bench.readyz().await;
    assert_eq!(ready, 503);
    assert!(parts["parts"]["key"].as_str().unwrap().contains("LAGO_API_URL"), "{parts}");

    lago.answer(Answering::Normally);
    status_becomes(&bench, &jwt(&signer), 200).await;
    assert_eq!(bench.readyz().await.0, 200);

    lago.stop().await;
    bench.restart(&[]).await;
    assert_eq!(status(&bench, &jwt(&signer)).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_is_fetched_after_a_failed_signature_and_the_old_one_overlaps() {
    let (old, new) = (signer(), signer());
    let lago = lago(&old).await;
    let env = [
        ("LAGO_API_URL", lago.url()),
        ("LAGO_API_KEY", API_KEY.to_owned()),
        ("SIDECAR_LAGO__PUBLIC_KEY_REFRESH_SECONDS", "0.3".to_owned()),
    ];
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let bench = Bench::start(&env).await;
    assert_eq!(status(&bench, &jwt(&old)).await, 200);

    lago.rotate(new.public_pem());
    assert_eq!(status(&bench, &jwt(&new)).await, 401);
    status_becomes(&bench, &jwt(&new), 200).await;
    assert_eq!(status(&bench, &jwt(&old)).await, 200, "the old key is kept for the overlap");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_that_lago_hands_out_late_is_known_before_lago_gives_a_webhook_up() {
    let (old, new) = (signer(), signer());
    for away in [Some(Answering::Unavailable), None] {
        let lago = lago(&old).await;
        let bench = Bench::start(&[("LAGO_API_URL", &lago.url()), ("LAGO_API_KEY", API_KEY)]).await;
        let asked = lago.requests();
        if let Some(answering) = away.clone() {
            lago.answer(answering);
        }

        assert_eq!(status(&bench, &jwt(&new)).await, 401);
        let began = std::time::Instant::now();
        while lago.requests() == asked {
            assert!(began.elapsed() < DEADLINE, "{away:?}: Lago is not asked for its new key");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        lago.rotate(new.public_pem());
        lago.answer(Answering::Normally);

        // Lago tries a webhook for 21 s.
        status_becomes(&bench, &jwt(&new), 200).await;
        assert!(began.elapsed() < std::time::Duration::from_secs(15), "{away:?}: {:?}", began.elapsed());
        assert_eq!(status(&bench, &jwt(&old)).await, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forgers_cannot_make_us_ask_lago_more_than_once_an_interval() {
    let (own, forger) = (signer(), signer());
    let lago = lago(&own).await;
    let bench = Bench::start(&[("LAGO_API_URL", &lago.url()), ("LAGO_API_KEY", API_KEY)]).await;
    for _ in 0..50 {
        assert_eq!(status(&bench, &jwt(&forger)).await, 401);
    }
    assert_eq!(status(&bench, &jwt(&own)).await, 200);
    assert!(lago.requests() <= 2, "{}", lago.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configured_issuer_is_required_and_organizations_are_told_apart_by_their_id() {
    let signer = signer();
    let scratch = tempfile::TempDir::new().unwrap();
    let file = scratch.path().join("key.pem");
    std::fs::write(&file, signer.public_pem()).unwrap();
    let bench = Bench::start(&[
        ("LAGO_WEBHOOK_PUBLIC_KEY_FILE", file.to_str().unwrap()),
        ("SIDECAR_LAGO__ISSUER", "http://lago-api:3000"),
        ("SIDECAR_LAGO__ORGANIZATIONS__ACME__SIGNATURE", "jwt"),
        ("SIDECAR_LAGO__ORGANIZATIONS__ACME__ORGANIZATION_ID", "org-acme"),
    ])
    .await;
    assert_eq!(status(&bench, &jwt(&signer)).await, 200);
    assert_eq!(status(&bench, &Signing::Jwt(Arc::clone(&signer), "http://elsewhere".to_owned())).await, 401);

    for (organization, expected) in [(Some("org-acme"), 200), (Some("org-other"), 401), (None, 200)] {
        let shape = Shape { organization_id: organization.map(Into::into), ..Shape::default() };
        let delivery = jwt(&signer).delivery("fee.created", sample("fee.created", &shape)).unwrap();
        let answer = bench.sender("/webhooks/lago/acme").send_once(&delivery).await.unwrap();
        assert_eq!(answer.status, expected, "{organization:?}");
    }
}
