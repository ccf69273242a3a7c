//! A Lago, or a receiver of webhooks, that starts late or not at all.

use std::time::Duration;

use kit_lago::LagoServer;
use kit_lago::stand_in::billing::{Faults, Profile};
use kit_workbench::gateway::{Gateway, GatewayOptions};
use kit_workbench::scratch::free_address;
use lago_seeder::{Mode, Outcome, RunError, Settings};

use crate::bench::{Bench, SOON, all_are, catalogue, connect, entry, key, settings, shipped};

/// What is waited for comes soon, or never.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("it is said in time")
}

#[tokio::test]
async fn a_lago_that_starts_late_is_waited_for_and_it_is_said() {
    for profile in Profile::ALL {
        let list = shipped("catalogue.toml");
        // It listens and has no database yet, after it was not there at all.
        let lago = LagoServer::start(profile, key()).await.unwrap();
        lago.set_faults(Faults { unhealthy: true, ..Faults::default() });
        let (address, state) = (lago.address(), lago.stop().await);
        let (api, client) = connect(&format!("http://{address}"));
        let (waited, mut waits) = tokio::sync::mpsc::unbounded_channel();
        let note = move |notice: lago_seeder::Notice<'_>| {
            let _ = waited.send(format!("{notice:?}"));
        };
        let seeder = lago_seeder::Seeder::new((&api, &client), &list, (settings(), Mode::Apply), &note);
        let start = async {
            let first = soon(waits.recv()).await.unwrap();
            assert!(first.starts_with("Waiting") && first.contains("cannot be reached"), "{first}");
            let lago = LagoServer::start_with(address, state).await.unwrap();
            let asked = lago.counts().requests;
            lago.wait_until(Duration::from_secs(20), |counts| counts.requests > asked).await.unwrap();
            lago.set_faults(Faults::default());
            lago
        };

        let (report, lago) = tokio::join!(seeder.run(), start);

        all_are(&report.unwrap(), Outcome::Created);
        let bench = Bench::with(lago);
        all_are(&bench.look(&list).await, Outcome::Same);
    }
}

#[tokio::test]
async fn a_lago_that_never_starts_is_not_waited_for_for_ever() {
    let address = free_address().unwrap();
    let (api, client) = connect(&format!("http://{address}"));
    let settings = Settings { wait: Duration::from_millis(600), ..settings() };

    let list = shipped("catalogue.toml");
    let result = lago_seeder::Seeder::new((&api, &client), &list, (settings, Mode::Apply), &|_| ()).run().await;

    let error = result.unwrap_err();
    assert!(matches!(&error, RunError::Away { reason, .. } if reason.contains("LAGO_API_URL")), "{error}");
}

#[tokio::test]
async fn a_lago_that_goes_away_in_between_is_waited_for_again() {
    let bench = Bench::start(Profile::V1_39).await;
    let list = shipped("catalogue.toml");
    let (api, client) = connect(&bench.lago.url());
    let (told, mut tells) = tokio::sync::mpsc::unbounded_channel();
    let note = move |notice: lago_seeder::Notice<'_>| {
        let _ = told.send(format!("{notice:?}"));
    };
    let seeder = lago_seeder::Seeder::new((&api, &client), &list, (settings(), Mode::Apply), &note);
    let restart = async {
        while !soon(tells.recv()).await.unwrap().contains("\"starter\"") {}
        let (address, state) = (bench.lago.address(), bench.lago.stop().await);
        while !soon(tells.recv()).await.unwrap().starts_with("Waiting") {}
        LagoServer::start_with(address, state).await.unwrap()
    };

    let (report, lago) = tokio::join!(seeder.run(), restart);

    assert!(report.unwrap().is_settled());
    all_are(&Bench::with(lago).look(&list).await, Outcome::Same);
}

#[tokio::test]
async fn an_endpoint_is_registered_once_something_answers_there() {
    let bench = Bench::start(Profile::V1_39).await;
    let address = free_address().unwrap();
    let url = format!("http://{address}/webhooks/lago");
    let list = catalogue(&format!("[[webhook_endpoints]]\nwebhook_url='{url}'\nsignature_algo='jwt'"));
    let patient = |seconds: f64| Settings { wait_for_endpoint: Duration::from_secs_f64(seconds), ..settings() };

    // Nobody is there: it is not registered, and everything else would be.
    let (report, said) = bench.overheard(&list, patient(0.3)).await;
    let report = report.unwrap();
    let waits = entry(&report, &url);
    assert!(waits.outcome == Outcome::Waiting && waits.problems[0].text.contains("nothing answers"), "{waits:#?}");
    assert!(report.only_waits() && !report.is_settled());
    assert!(said.iter().any(|said| said.starts_with("WaitingForEndpoint")), "{said:?}");
    assert_eq!(bench.writes(), 0);

    // Somebody is there while it is waited for: whatever it answers.
    let (told, mut tells) = tokio::sync::mpsc::unbounded_channel();
    let note = move |notice: lago_seeder::Notice<'_>| {
        let _ = told.send(format!("{notice:?}"));
    };
    let seeder = lago_seeder::Seeder::new((&bench.api, &bench.client), &list, (patient(20.0), Mode::Apply), &note);
    let receiver = async {
        while !soon(tells.recv()).await.unwrap().starts_with("WaitingForEndpoint") {}
        Gateway::start(GatewayOptions { addr: address, ..GatewayOptions::default() }).await.unwrap()
    };
    let (report, _receiver) = tokio::join!(seeder.run(), receiver);

    assert_eq!(entry(&report.unwrap(), &url).outcome, Outcome::Created);
    // What is registered already is not waited for.
    let (report, said) = bench.overheard(&list, patient(20.0)).await;
    assert_eq!(entry(&report.unwrap(), &url).outcome, Outcome::Same);
    assert!(said.iter().all(|said| !said.starts_with("WaitingFor")));
}

#[tokio::test]
async fn a_proxy_that_answers_for_nobody_is_nobody() {
    let bench = Bench::start(Profile::V1_39).await;
    // It stands for whoever is behind it, and says so until that is there.
    let proxy = LagoServer::start(Profile::V1_39, key()).await.unwrap();
    proxy.answer_instead(reqwest::Method::GET, "/webhooks/lago", 502, serde_json::Value::Null);
    let url = format!("{}/webhooks/lago", proxy.url());
    let list = catalogue(&format!("[[webhook_endpoints]]\nwebhook_url='{url}'\nsignature_algo='jwt'"));
    let impatient = Settings { wait_for_endpoint: Duration::from_millis(200), ..settings() };

    let report = bench.try_run(&list, impatient, Mode::Apply).await.unwrap();
    let waits = entry(&report, &url);
    assert!(waits.outcome == Outcome::Waiting && waits.problems[0].text.contains("502"), "{waits:#?}");

    proxy.answer_instead(reqwest::Method::GET, "/webhooks/lago", 405, serde_json::Value::Null);
    let patient = Settings { wait_for_endpoint: SOON, ..settings() };
    let report = bench.try_run(&list, patient, Mode::Apply).await.unwrap();
    assert_eq!(entry(&report, &url).outcome, Outcome::Created);
}

#[tokio::test]
async fn a_lago_whose_health_is_hidden_by_a_proxy_is_there() {
    let (bench, list) = (Bench::start(Profile::V1_39).await, shipped("catalogue.toml"));
    bench.lago.answer_instead(reqwest::Method::GET, "/health", 404, serde_json::Value::Null);
    let impatient = Settings { wait: Duration::from_millis(300), ..settings() };

    let report = bench.try_run(&list, settings(), Mode::Apply).await.unwrap();

    assert!(report.is_settled() && report.lago.contains("hidden"), "{report:#?}");
    // Something else that says 404 is no Lago.
    bench.lago.answer_instead(reqwest::Method::GET, "/api/v1/health", 404, serde_json::Value::Null);
    let error = bench.try_run(&list, impatient, Mode::Apply).await.unwrap_err();
    assert!(matches!(&error, RunError::Away { .. }) && error.to_string().contains("--wait"), "{error}");
}

#[tokio::test]
async fn what_may_be_secret_in_an_address_is_shown_nowhere() {
    let bench = Bench::start(Profile::V1_39).await;
    let address = free_address().unwrap();
    let secret = |path: &str| format!("http://somebody:hunter2@{address}/{path}?token=hunter3");
    let text = format!("[[webhook_endpoints]]\nwebhook_url='{}'\nsignature_algo='jwt'", secret("own"));
    let list = catalogue(&text);
    let other = serde_json::json!({ "webhook_url": secret("other"), "signature_algo": "hmac" });
    bench.api.create(kit_lago::management::Kind::WebhookEndpoint, other.as_object().unwrap()).await.unwrap();
    let patient = Settings { wait_for_endpoint: Duration::from_millis(100), ..settings() };

    let (waited, said) = bench.overheard(&list, patient).await;
    let (made, said_then) = bench.overheard(&list, settings()).await;

    let mut shown = said;
    shown.extend(said_then);
    for report in [waited.unwrap(), made.unwrap()] {
        shown.push(serde_json::to_string(&report).unwrap());
        shown.extend(report.entries.iter().map(ToString::to_string));
    }
    assert!(shown.iter().any(|text| text.contains("/other")) && shown.iter().any(|text| text.contains("/own")));
    assert!(shown.iter().all(|text| !text.contains("hunter")), "{shown:#?}");
}
