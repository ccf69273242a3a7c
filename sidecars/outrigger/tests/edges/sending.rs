//! `send`, `load` and `listen`: the command line as Lago and as the gateway.

use kit_lago::signature::RsaSigner;
use kit_workbench::gateway::Gateway;
use kit_workbench::raw;
use kit_workbench::scratch::{Scratch, free_address};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::bench::{Bench, DEADLINE, HMAC_KEY, command, outrigger};
use crate::events::interrupt;

const KEY: (&str, &str) = ("LAGO_WEBHOOK_HMAC_KEY", HMAC_KEY);

#[tokio::test]
async fn the_same_webhook_sent_again_is_a_duplicate_of_the_same_event() {
    let bench = Bench::start().await;
    let body = bench.scratch.write("body.json", r#"{"webhook_type":"fee.created","fee":{}}"#).unwrap();
    let arguments = ["--unique-key", "k-1", "--file", body.to_str().unwrap(), "--json"];

    let first = bench.send(&arguments).await.ok().json_lines();
    let again = bench.send(&arguments).await.ok().json_lines();

    let [first, again] = [&first[0], &again[0]].map(|sent| {
        let answer: serde_json::Value = serde_json::from_str(sent["answer"].as_str().unwrap()).unwrap();
        answer
    });
    assert_eq!(first["id"], again["id"]);
    assert_eq!((&first["duplicate"], &again["duplicate"]), (&false.into(), &true.into()));
}

#[tokio::test]
async fn a_webhook_that_is_refused_is_a_failure() {
    let bench = Bench::start().await;
    let url = bench.url();
    let rsa = bench.scratch.write("rsa.pem", RsaSigner::generate().unwrap().private_pem().unwrap().expose()).unwrap();

    let wrong_key = [("LAGO_WEBHOOK_HMAC_KEY", "another-key-another-key-another-key!")];
    outrigger(&["send", "--url", &url], &wrong_key).await.failed(1, "1 of 1 were not taken");
    outrigger(&["send", "--url", &url, "--rsa-key-file", rsa.to_str().unwrap()], &[]).await.failed(1, "not taken");
    outrigger(&["send", "--url", &url], &[]).await.failed(1, "LAGO_WEBHOOK_HMAC_KEY");
    outrigger(&["send", "--url", "https://127.0.0.1/"], &[KEY]).await.failed(1, "--url");
    let nobody = format!("http://{}/", free_address().unwrap());
    outrigger(&["send", "--url", &nobody], &[KEY]).await.failed(1, &nobody);
    outrigger(&["send", "--url", &url, "--file", "/nonexistent"], &[KEY]).await.failed(1, "/nonexistent");
    outrigger(&["send", "--url", &url, "--rsa-key-file", "/nonexistent"], &[]).await.failed(1, "/nonexistent");
}

#[tokio::test]
async fn a_key_file_that_is_named_wins_over_the_environment() {
    let bench = Bench::start().await;
    let file = bench.scratch.write("key", format!("{HMAC_KEY}\n")).unwrap();
    let url = bench.url();

    let arguments = ["send", "--url", &url, "--hmac-key-file", file.to_str().unwrap()];
    outrigger(&arguments, &[("LAGO_WEBHOOK_HMAC_KEY", "something-else")]).await.ok();
}

#[tokio::test]
async fn an_rsa_key_that_is_named_wins_over_an_hmac_key_file_of_the_environment() {
    let bench = Bench::start().await;
    let file = bench.scratch.write("key", HMAC_KEY).unwrap();
    let rsa = bench.scratch.write("rsa.pem", RsaSigner::generate().unwrap().private_pem().unwrap().expose()).unwrap();
    let url = bench.url();

    let arguments = ["send", "--url", &url, "--rsa-key-file", rsa.to_str().unwrap()];
    // The daemon takes HMAC only: it was reached and refused the token.
    outrigger(&arguments, &[("LAGO_WEBHOOK_HMAC_KEY_FILE", file.to_str().unwrap())]).await.failed(1, "not taken");
}

#[tokio::test]
async fn every_type_is_listed() {
    let types = outrigger(&["send", "--list-types", "--json"], &[]).await.ok().json();
    let table = outrigger(&["send", "--list-types"], &[]).await.ok().out;

    assert_eq!(types.as_array().unwrap().len(), kit_lago::webhook_type::all().len());
    assert!(table.contains("invoice.payment_failure"), "{table}");
}

#[tokio::test]
async fn a_load_is_measured() {
    let bench = Bench::start().await;
    let url = bench.url();

    let load = ["load", "--url", &url, "--connections", "4", "--count", "200", "--body-bytes", "4096"];
    let report = outrigger(&[&load[..], &["--json"]].concat(), &[KEY]).await.ok().json();
    assert_eq!((&report["requests"], &report["ok"]), (&200.into(), &200.into()));
    bench.wait_sink(|sink| sink["delivered"] == 200).await;
    let rated = ["load", "--url", &url, "--rate", "200", "--duration", "0.5", "--close", "--type", "all"];
    let text = outrigger(&rated, &[KEY]).await.ok().out;
    assert!(text.contains("p99"), "{text}");
}

#[tokio::test]
async fn a_load_that_fails_says_so() {
    let nobody = format!("http://{}/", free_address().unwrap());
    let refused = outrigger(&["load", "--url", &nobody, "--count", "3", "--json"], &[KEY]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert_eq!(refused.json()["ok"], 0);

    outrigger(&["load", "--url", &nobody], &[]).await.failed(1, "LAGO_WEBHOOK_HMAC_KEY");
    outrigger(&["load", "--url", "ftp://x/"], &[KEY]).await.failed(1, "--url");
    outrigger(&["load", "--url", &nobody, "--rate", "0"], &[KEY]).await.failed(1, "rate");
    outrigger(&["load", "--url", &nobody, "--duration=-1"], &[KEY]).await.failed(1, "--duration");
}

#[tokio::test]
async fn listen_verifies_and_prints_until_it_is_interrupted() {
    let scratch = Scratch::new("outrigger-listen").unwrap();
    let secret = scratch.write("secret", "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\n").unwrap();
    for (answer, status) in [("200", 200), ("500", 500), ("429", 429)] {
        let address = free_address().unwrap();
        let at = address.to_string();
        let arguments =
            ["listen", "--addr", &at, "--answer", answer, "--json", "--secret-file", secret.to_str().unwrap()];
        let mut listening = command(&arguments, &[]).spawn().unwrap();
        let mut errors = BufReader::new(listening.stderr.take().unwrap()).lines();
        let ready = tokio::time::timeout(DEADLINE, errors.next_line()).await.unwrap().unwrap().unwrap();
        assert!(ready.contains(&at), "{ready}");

        let request = "POST /webhooks/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\
                       webhook-id: event-1\r\n\r\n{}";
        let response = raw::exchange(address, request.as_bytes(), DEADLINE).await.unwrap();

        assert_eq!(response.status, status);
        let mut lines = BufReader::new(listening.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap().unwrap();
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&line["event_id"], &line["signature_ok"]), (&"event-1".into(), &false.into()));
        assert_eq!(line["answered"], status);
        interrupt(&listening);
        let exit = tokio::time::timeout(DEADLINE, listening.wait()).await.unwrap().unwrap();
        assert_eq!(exit.code(), Some(0));
    }
}

#[tokio::test]
async fn listen_says_why_it_cannot() {
    let taken = Gateway::start(Default::default()).await.unwrap();
    let scratch = Scratch::new("outrigger-listen").unwrap();
    let bad = scratch.write("secret", "not a secret").unwrap();

    outrigger(&["listen", "--addr", &taken.addr().to_string()], &[]).await.failed(1, &taken.addr().to_string());
    let arguments = ["listen", "--addr", "127.0.0.1:0", "--secret-file", bad.to_str().unwrap()];
    outrigger(&arguments, &[]).await.failed(1, "whsec_");
    outrigger(&["listen", "--answer", "perhaps"], &[]).await.failed(2, "perhaps");
}
