//! What needs no daemon: `verify`, `completions`, help.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kit_workbench::scratch::Scratch;

use crate::bench::{HMAC_KEY, Ran, outrigger};

const KEY: (&str, &str) = ("LAGO_WEBHOOK_HMAC_KEY", HMAC_KEY);

fn recording(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../kit-lago/tests/fixtures/captures").join(name)
}

/// The first recorded HMAC request: signature and body.
fn recorded() -> (String, Vec<u8>) {
    let lines = std::fs::read_to_string(recording("lago-hmac.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    let headers = line["headers"].as_array().unwrap();
    let signature = headers.iter().find(|header| header[0] == "X-Lago-Signature").unwrap()[1].as_str().unwrap();
    (signature.to_owned(), STANDARD.decode(line["body_base64"].as_str().unwrap()).unwrap())
}

#[tokio::test]
async fn recordings_of_both_algorithms_verify() {
    let hmac = recording("lago-hmac.jsonl");
    let verdicts = outrigger(&["verify", hmac.to_str().unwrap(), "--json"], &[KEY]).await.ok().json_lines();
    assert_eq!(verdicts.len(), 40);
    assert!(verdicts.iter().all(|verdict| verdict["ok"] == true && verdict["algorithm"] == "hmac"));

    let jwt = recording("lago-jwt.jsonl");
    let key = recording("lago-jwt-public.pem");
    let arguments = ["verify", jwt.to_str().unwrap(), "--public-key-file", key.to_str().unwrap()];
    let text = outrigger(&[&arguments[..], &["--issuer", "http://lago-api:3000"]].concat(), &[]).await.ok().out;
    assert_eq!(text.matches("the signature is good (jwt)").count(), 40, "{text}");
    let wrong = outrigger(&[&arguments[..], &["--issuer", "http://elsewhere"]].concat(), &[]).await;
    wrong.failed_with("LAGO_API_URL of Lago's worker");
}

#[tokio::test]
async fn a_dump_of_the_request_and_a_bare_body_verify() {
    let scratch = Scratch::new("outrigger-verify").unwrap();
    let (signature, body) = recorded();
    let head = format!("POST /webhooks/lago HTTP/1.1\r\nHost: x\r\nx-lago-signature: {signature}\r\n\r\n");
    let dump = scratch.write("dump", [head.as_bytes(), &body].concat()).unwrap();
    let bare = scratch.write("body.json", &body).unwrap();

    outrigger(&["verify", dump.to_str().unwrap()], &[KEY]).await.ok();
    outrigger(&["verify", bare.to_str().unwrap(), "--signature", &signature], &[KEY]).await.ok();
}

#[tokio::test]
async fn the_usual_causes_are_named() {
    let scratch = Scratch::new("outrigger-verify").unwrap();
    let (signature, body) = recorded();
    let spaced = {
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
        serde_json::to_vec_pretty(&value).unwrap()
    };
    let flipped = {
        let mut body = body.clone();
        body[20] ^= 1;
        body
    };
    let newline = [&body[..], b"\n"].concat();
    let check = async |name: &str, body: &[u8], signature: &str, key: &str, hint: &str| {
        let file = scratch.write(name, body).unwrap();
        let arguments = ["verify", file.to_str().unwrap(), "--signature", signature];
        outrigger(&arguments, &[("LAGO_WEBHOOK_HMAC_KEY", key)]).await.failed_with(hint);
    };

    let unescaped = String::from_utf8(body.clone()).unwrap().replace("\\u0026", "&");
    let spaced_key = format!(" {HMAC_KEY}\t");
    check("newline", &newline, &signature, HMAC_KEY, "white space").await;
    let reserialised = String::from_utf8(body.clone()).unwrap().replace("\":\"", "\": \"");
    check("reserialised", reserialised.as_bytes(), &signature, HMAC_KEY, "without them the signature is good").await;
    check("spaced", &spaced, &signature, HMAC_KEY, "wrote it again").await;
    check("key", &body, &signature, &spaced_key, "key has white space").await;
    check("unescaped", unescaped.as_bytes(), &signature, HMAC_KEY, "\\u0026").await;
    check("flipped", &flipped, &signature, HMAC_KEY, "another organisation's").await;
    check("other-key", &body, &signature, "another-key", "another organisation's").await;
    check("cut", &body, &signature[..20], HMAC_KEY, "cut").await;
    check("empty", &body, "", HMAC_KEY, "proxy").await;
    check("token", &body, "eyJhbGciOiJSUzI1NiJ9.e30.AAAA", HMAC_KEY, "SIDECAR_LAGO__SIGNATURE=jwt").await;
}

#[tokio::test]
async fn what_cannot_be_verified_at_all_is_an_error() {
    let scratch = Scratch::new("outrigger-verify").unwrap();
    let (_, body) = recorded();
    let bare = scratch.write("body.json", &body).unwrap();
    let noise = scratch.write("noise", [0xff, 0xfe, 0]).unwrap();
    let hmac = recording("lago-hmac.jsonl");

    outrigger(&["verify", "/nonexistent"], &[KEY]).await.failed(1, "/nonexistent");
    outrigger(&["verify", bare.to_str().unwrap()], &[KEY]).await.failed(1, "--signature");
    outrigger(&["verify", noise.to_str().unwrap()], &[KEY]).await.failed(1, "--signature");
    outrigger(&["verify", hmac.to_str().unwrap()], &[]).await.failed(1, "LAGO_WEBHOOK_HMAC_KEY");
    let arguments = ["verify", hmac.to_str().unwrap(), "--public-key-file", bare.to_str().unwrap()];
    outrigger(&arguments, &[]).await.failed(1, "body.json");
    let empty = scratch.write("empty.jsonl", "").unwrap();
    outrigger(&["verify", empty.to_str().unwrap()], &[KEY]).await.failed(1, "empty.jsonl");
}

#[tokio::test]
async fn completions_are_made_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = outrigger(&["completions", shell], &[]).await.ok().out;
        assert!(script.contains("dead-letters"), "{shell}");
        assert!(!script.contains("run-lago-"), "{shell}");
    }
    outrigger(&["completions", "csh"], &[]).await.failed(2, "csh");
}

#[tokio::test]
async fn every_verb_explains_itself_with_an_example() {
    let help = outrigger(&["--help"], &[]).await.ok().out;
    assert!(!help.contains("run-lago-"), "{help}");
    for verb in [
        "demo",
        "send",
        "listen",
        "events list",
        "events show",
        "events tail",
        "dead-letters list",
        "dead-letters show",
        "dead-letters replay",
        "dead-letters drop",
        "sinks list",
        "sinks pause",
        "sinks resume",
        "stats",
        "usage tail",
        "usage show",
        "usage parked",
        "usage redrive",
        "usage reconcile",
        "usage import",
        "verify",
        "load",
        "doctor",
        "completions",
    ] {
        let arguments: Vec<&str> = verb.split(' ').chain(["--help"]).collect();
        let help = outrigger(&arguments, &[]).await.ok().out;
        assert!(help.contains("outrigger "), "{verb}: {help}");
        assert!(help.contains("Example"), "{verb} has no example: {help}");
    }
}

#[tokio::test]
async fn mistakes_in_the_arguments_end_with_2() {
    outrigger(&[], &[]).await.failed(2, "Usage");
    outrigger(&["replay"], &[]).await.failed(2, "replay");
    outrigger(&["events", "list", "--limit", "many"], &[]).await.failed(2, "--limit");
    outrigger(&["demo", "--events", "1"], &[]).await.failed(2, "--events");
    // A token on the command line would be visible to everybody on the host.
    outrigger(&["stats", "--token", "secret"], &[]).await.failed(2, "--token");
}

impl Ran {
    /// Verdicts are results, so they are on standard output; only the code says that one is bad.
    #[track_caller]
    fn failed_with(self, hint: &str) {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert!(self.out.contains(hint), "{hint:?} is not in {self:?}");
    }
}
