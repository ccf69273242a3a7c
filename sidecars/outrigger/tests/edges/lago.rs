//! `lago plan`, `apply`, `check`, `keys`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use kit::secret::Secret;
use kit_lago::LagoServer;
use kit_lago::signature::LagoPrivateKey;
use kit_lago::stand_in::billing::Profile;
use kit_workbench::scratch::Scratch;
use serde_json::json;

use crate::bench::{Ran, outrigger};

const KEY: &str = "lago-api-key-0123456789";

fn shipped() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/lago/catalogue.toml").display().to_string()
}

async fn lago(verb: &str, url: &str, more: &[&str]) -> Ran {
    let catalogue = shipped();
    let arguments = [&["lago", verb, "--catalogue", &catalogue, "--api-url", url][..], more].concat();
    outrigger(&arguments, &[("LAGO_API_KEY", KEY)]).await
}

#[tokio::test]
async fn a_catalogue_is_shown_applied_and_checked() {
    let server = LagoServer::start(Profile::V1_16, Secret::from(KEY.to_owned())).await.unwrap();
    let url = server.url();

    let planned = lago("plan", &url, &[]).await.ok();
    assert!(planned.out.contains("+ plan growth is missing"), "{planned:?}");
    assert!(planned.out.ends_with("Lago v1.16.0: 7 to create\n"), "{planned:?}");
    assert_eq!(lago("check", &url, &[]).await.code, Some(1));
    assert_eq!(server.counts().managed_writes, 0);

    let applied = lago("apply", &url, &[]).await.ok();
    assert!(applied.out.contains("+ metric ai_requests created"), "{applied:?}");
    let again = lago("apply", &url, &[]).await.ok();
    assert_eq!(again.out.lines().last(), Some("Lago v1.16.0: 7 as they should be"), "{again:?}");
    lago("check", &url, &[]).await.ok();

    let report = lago("check", &url, &["--json"]).await.ok().json();
    assert_eq!((&report["lago"], &report["entries"][0]["outcome"]), (&json!("v1.16.0"), &json!("same")));
    assert_eq!(server.counts().managed_writes, 7);
}

#[tokio::test]
async fn mistakes_are_told_with_what_mends_them() {
    let server = LagoServer::start(Profile::V1_16, Secret::from("another".to_owned())).await.unwrap();
    lago("apply", &server.url(), &[]).await.failed(1, "LAGO_API_KEY is refused by Lago (401)");
    lago("apply", "http://127.0.0.1:1", &["--wait", "0"]).await.failed(1, "cannot be reached");
    let catalogue = shipped();
    let arguments = ["lago", "plan", "--catalogue", &catalogue, "--api-url", "http://127.0.0.1:1"];
    outrigger(&arguments, &[]).await.failed(1, "no API key");
    let scratch = Scratch::new("outrigger-lago").unwrap();
    let wrong = scratch
        .write(
            "wrong.toml",
            "[[plans]]\ncode = 'p'\nname = 'P'\ninterval = 'daily'\namount_cents = 1\namount_currency = 'usd'\n",
        )
        .unwrap();
    let wrong = wrong.display().to_string();
    let ran = outrigger(&["lago", "plan", "--catalogue", &wrong, "--api-url", "http://127.0.0.1:1"], &[]).await;
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.err.contains("interval \"daily\" is not one of") && ran.err.contains("amount_currency \"usd\""),
        "{ran:?}"
    );
}

#[tokio::test]
async fn a_key_is_made_kept_and_never_shown() {
    let scratch = Scratch::new("outrigger-keys").unwrap();
    let (file, env) = (scratch.file("private.pem"), scratch.file("lago.env"));
    let (file, env) = (file.display().to_string(), env.display().to_string());
    let make = ["lago", "keys", "--file", &file, "--create", "--env-file", &env, "--lago-version", "v1.16.0"];

    let first = outrigger(&make, &[]).await.ok();
    let key = std::fs::read_to_string(&file).unwrap();
    let second = outrigger(&make, &[]).await.ok();

    assert_eq!(std::fs::read_to_string(&file).unwrap(), key, "the key that is there stays");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let line = std::fs::read_to_string(&env).unwrap();
    let value = line.trim_end().strip_prefix("LAGO_RSA_PRIVATE_KEY=").unwrap();
    let secret = key.lines().nth(3).unwrap();
    for ran in [&first, &second] {
        let said = format!("{}{}", ran.out, ran.err);
        assert!(!said.contains(secret) && !said.contains(&value[..40]), "{said}");
        assert!(said.contains("and no file"), "v1.16.0 takes none: {said}");
    }
    // As Lago gets it, and as it must not get it.
    let judged = outrigger(&["lago", "keys"], &[("LAGO_RSA_PRIVATE_KEY", value)]).await.ok();
    assert!(judged.out.contains("is the Base64 of its PEM"), "{judged:?}");
    let raw = outrigger(&["lago", "keys", "--json"], &[("LAGO_RSA_PRIVATE_KEY", &key)]).await;
    assert_eq!(raw.code, Some(1));
    assert!(raw.out.contains("holds the PEM itself") && !raw.out.contains(secret), "{raw:?}");
    outrigger(&["lago", "keys", "--create"], &[]).await.failed(2, "--file");
}

#[tokio::test]
async fn a_key_is_compared_with_the_one_that_lago_signs_with() {
    let server = LagoServer::start(Profile::V1_39, Secret::from(KEY.to_owned())).await.unwrap();
    let (own, other) = (LagoPrivateKey::generate(2048).unwrap(), LagoPrivateKey::generate(2048).unwrap());
    server.put_public_key(&own.public_key().to_pem());
    let scratch = Scratch::new("outrigger-keys").unwrap();
    let file = |name: &str, content: &str| scratch.write(name, content).unwrap().display().to_string();
    let (right, wrong) = (file("right.pem", own.pem().expose()), file("wrong.pem", other.pem().expose()));
    let public = file("public.pem", &format!("{}{}", other.public_key().to_pem(), own.public_key().to_pem()));
    let url = server.url();
    let check = async |more: &[&str], environment: &[(&str, &str)]| {
        let arguments = [&["lago", "keys", "check", "--api-url", &url][..], more].concat();
        outrigger(&arguments, &[&[("LAGO_API_KEY", KEY)][..], environment].concat()).await
    };

    let ran = check(&["--file", &right, "--public-file", &public], &[]).await.ok();
    assert_eq!(ran.out.matches("Lago signs with the key of").count(), 2, "{ran:?}");
    let ran = check(&["--file", &wrong, "--json"], &[]).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let last = ran.json().as_array().unwrap().last().unwrap().clone();
    assert_eq!(last["ok"], false);
    assert!(last["text"].as_str().unwrap().contains("signs with another key"), "{last}");
    assert!(last["fix"].as_str().unwrap().contains("restart"), "{last}");
    check(&[], &[("LAGO_RSA_PRIVATE_KEY", own.variable().expose())]).await.ok();
    check(&[], &[]).await.failed(1, "--file or --public-file");
    server.answer_instead(reqwest::Method::GET, "/api/v1/webhooks/json_public_key", 403, json!({}));
    check(&["--file", &right], &[]).await.failed(1, "webhook_jwt_public_key");
    // Without the verb, as before.
    outrigger(&["lago", "keys", "--file", &right], &[]).await.ok();
}
