//! Every verb of the command line against a running daemon, once happy and once not.
#![allow(clippy::unwrap_used, missing_docs)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use kit_workbench::gateway::{Behaviour, Gateway};
use kit_workbench::process::{DaemonCommand, DaemonProcess};
use kit_workbench::scratch::{Scratch, free_address};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_outrigger");
const HMAC_KEY: &str = "0f0e0d0c-0b0a-4908-8706-050403020100";
const DEADLINE: Duration = Duration::from_secs(60);

struct Bench {
    scratch: Scratch,
    gateway: Gateway,
    _daemon: DaemonProcess,
    public: SocketAddr,
    admin: SocketAddr,
    token_file: PathBuf,
}

impl Bench {
    async fn start() -> Self {
        let scratch = Scratch::new("cli").unwrap();
        let gateway = Gateway::start(Default::default()).await.unwrap();
        let token_file = scratch.write("token", "0123456789abcdef0123456789abcdef").unwrap();
        let mut daemon = DaemonCommand::new(PROGRAM)
            .args(["run-lago-webhook-processor"])
            .env("LAGO_WEBHOOK_HMAC_KEY", HMAC_KEY)
            .env("BRAIN_GATEWAY_URL", gateway.url())
            .env("SIDECAR_JOURNAL__PATH", scratch.file("j.db").display().to_string())
            .env("SIDECAR_LISTEN__PUBLIC", "127.0.0.1:0")
            .env("SIDECAR_LISTEN__ADMIN", "127.0.0.1:0")
            .env("SIDECAR_ADMIN__TOKEN_FILE", token_file.display().to_string())
            .spawn()
            .unwrap();
        let public = daemon.address("public", DEADLINE).await.unwrap();
        let admin = daemon.address("admin", DEADLINE).await.unwrap();
        daemon.wait_ready(admin, DEADLINE).await.unwrap();
        Self { scratch, gateway, _daemon: daemon, public, admin, token_file }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .env_clear()
            .env("LAGO_WEBHOOK_HMAC_KEY", HMAC_KEY)
            .env("OUTRIGGER_ADMIN", format!("http://{}", self.admin))
            .env("OUTRIGGER_TOKEN_FILE", &self.token_file)
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a verb that must succeed; its standard output.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// Runs a verb that must fail with one line that says this.
    fn fails(&self, arguments: &[&str], expected: &str) {
        let output = self.run(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{arguments:?} succeeded");
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }

    fn send(&self, kind: &str, count: u32) {
        let url = format!("http://{}/webhooks/lago", self.public);
        self.ok(&["send", "--url", &url, "--type", kind, "--count", &count.to_string()]);
    }

    fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let statistics = self.json(&["stats"]);
            if wanted(&statistics["sinks"][0]) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {statistics}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn send_events_and_stats_show_what_happened() {
    let bench = Bench::start().await;
    bench.send("invoice.created", 3);
    bench.send("customer.created", 2);
    bench.wait_for("delivering", |sink| sink["delivered"] == 5);

    let events = bench.json(&["events", "list", "--type", "lago.invoice.*", "--state", "delivered"]);
    assert_eq!(events.as_array().unwrap().len(), 3);
    let id = events[0]["id"].as_str().unwrap();
    let shown = bench.ok(&["events", "show", id]);
    assert!(shown.contains("lago.invoice.created") && shown.contains("delivered"), "{shown}");
    assert!(bench.ok(&["events", "list"]).contains("lago.customer.created"));
    assert!(bench.ok(&["stats"]).contains("events accepted  5"));

    let url = format!("http://{}/webhooks/lago", bench.public);
    let mut wrong_key = bench.command(&["send", "--url", &url]);
    let output = wrong_key.env("LAGO_WEBHOOK_HMAC_KEY", "wrong").output().unwrap();
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stdout).contains("401"));
    bench.fails(&["send", "--url", &format!("http://{}/webhooks/lago", free_address().unwrap())], "send to");
    bench.fails(&["events", "show", "nonsense"], "UUID");
    bench.fails(&["events", "list", "--state", "lost"], "not a state");
    assert!(bench.ok(&["send", "--list-types"]).contains("wallet.depleted_ongoing_balance"));
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_counted_replayed_and_dropped_and_nothing_happens_by_accident() {
    let bench = Bench::start().await;
    bench.gateway.set_behaviour(Behaviour::status(422));
    bench.send("invoice.created", 3);
    bench.send("customer.created", 2);
    bench.wait_for("parking", |sink| sink["parked"] == 5);
    assert!(bench.ok(&["dead-letters", "list"]).contains("422"));

    bench.fails(&["dead-letters", "replay"], "say which");
    bench.fails(&["dead-letters", "replay", "--all"], "say --yes");
    let dry = bench.json(&["dead-letters", "replay", "--all", "--dry-run"]);
    assert_eq!((&dry["matched"], &dry["changed"]), (&Value::from(5), &Value::from(0)));

    bench.gateway.set_behaviour(Behaviour::Ok);
    let replayed = bench.json(&["dead-letters", "replay", "--type", "lago.invoice.*", "--rate", "100", "--yes"]);
    assert_eq!(replayed["changed"], 3);
    bench.wait_for("replaying", |sink| sink["delivered"] == 3);
    let left = bench.json(&["dead-letters", "list"]);
    let id = left[0]["event_id"].as_str().unwrap();
    assert!(bench.ok(&["dead-letters", "show", id]).contains("answered 422"));
    let dropped = bench.json(&["dead-letters", "drop", id, "--reason", "a test"]);
    assert_eq!(dropped["changed"], 1);
    bench.wait_for("dropping", |sink| sink["parked"] == 1 && sink["dropped"] == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn sinks_are_paused_and_resumed_and_the_doctor_notices() {
    let bench = Bench::start().await;
    assert!(bench.ok(&["doctor"]).contains("ok   daemon"));
    assert!(bench.ok(&["sinks", "pause", "gateway"]).contains("paused"));
    bench.send("fee.created", 1);
    let output = bench.run(&["doctor"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!output.status.success() && text.contains("outrigger sinks resume gateway"), "{text}");
    bench.ok(&["sinks", "resume", "gateway"]);
    bench.wait_for("delivering", |sink| sink["delivered"] == 1);
    assert!(bench.ok(&["sinks", "list"]).contains("gateway"));
    bench.fails(&["sinks", "pause", "nobody"], "not found");

    let nobody = format!("http://{}", free_address().unwrap());
    let output = bench.command(&["doctor", "--json"]).env("OUTRIGGER_ADMIN", nobody).output().unwrap();
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!output.status.success());
    assert!(findings["findings"][0]["fix"].as_str().unwrap().contains("SIDECAR_LISTEN__ADMIN"), "{findings}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_wrong_token_is_explained() {
    let bench = Bench::start().await;
    let without = bench.command(&["stats"]).env_remove("OUTRIGGER_TOKEN_FILE").output().unwrap();
    assert!(String::from_utf8_lossy(&without.stderr).contains("--token-file"));
    let wrong = bench.scratch.write("wrong", "x".repeat(32)).unwrap();
    bench.fails(&["stats", "--token-file", wrong.to_str().unwrap()], "401");
    bench.fails(&["stats", "--token-file", "/nonexistent"], "/nonexistent");
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_prints_what_arrives() {
    let bench = Bench::start().await;
    bench.send("fee.created", 1);
    let mut tail = DaemonCommand::new(PROGRAM)
        .args(["events", "tail", "--json"])
        .env("OUTRIGGER_ADMIN", format!("http://{}", bench.admin))
        .env("OUTRIGGER_TOKEN_FILE", bench.token_file.display().to_string())
        .spawn()
        .unwrap();
    // The first look only marks the end, so events are sent until one is seen.
    let deadline = Instant::now() + DEADLINE;
    while !tail.stdout().contains("lago.invoice.created") {
        assert!(Instant::now() < deadline, "{}", tail.stderr());
        bench.send("invoice.created", 1);
        // Between two events. What is waited for is a line about one.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(!tail.stdout().contains("lago.fee.created"), "only what comes after the start");
    tail.interrupt().unwrap();
    assert_eq!(tail.wait(DEADLINE).await.unwrap().code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_names_the_step_that_fails() {
    let bench = Bench::start().await;
    let body = r#"{"webhook_type":"fee.created"}"#;
    let signature = kit_lago::signature::sign_hmac(&HMAC_KEY.to_owned().into(), body.as_bytes());
    let request = format!("POST / HTTP/1.1\r\nX-Lago-Signature: {signature}\r\n\r\n{body}");
    let good = bench.scratch.write("good", &request).unwrap();
    assert!(bench.ok(&["verify", good.to_str().unwrap()]).contains("the signature is good"));

    let check = |content: &str, expected: &str| {
        let file = bench.scratch.write("bad", content).unwrap();
        let output = bench.run(&["verify", file.to_str().unwrap()]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!output.status.success() && text.contains(expected), "{expected}: {text}");
    };
    check(&format!("{request}\n"), "ends with white space");
    check(&request.replace("\":\"", "\": \""), "spaces between its members");
    check(&request.replace("X-Lago-Signature", "X-Other"), "no X-Lago-Signature");
    check(&request.replace(&signature, "e30.e30.x"), "SIDECAR_LAGO__SIGNATURE=jwt");
    check(&request.replace(&signature, "!!!"), "Base64");
    bench.fails(&["verify", "/nonexistent"], "/nonexistent");
}

#[tokio::test(flavor = "multi_thread")]
async fn load_measures_and_says_what_failed() {
    let bench = Bench::start().await;
    let url = format!("http://{}/webhooks/lago", bench.public);
    let report = bench.json(&["load", "--url", &url, "--count", "200", "--duration", "20", "--connections", "4"]);
    assert_eq!((&report["requests"], &report["ok"]), (&Value::from(200), &Value::from(200)));
    assert!(report["latency_ms"]["p99"].as_f64().unwrap() > 0.0);
    let output = bench
        .command(&["load", "--url", &url, "--count", "20", "--duration", "20"])
        .env("LAGO_WEBHOOK_HMAC_KEY", "wrong")
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("20 failed"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn listen_verifies_prints_and_answers_as_told() {
    let scratch = Scratch::new("listen").unwrap();
    let secret = scratch.write("secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    let address = free_address().unwrap();
    let mut listen = DaemonCommand::new(PROGRAM)
        .args(["listen", "--addr", &address.to_string(), "--answer", "429", "--secret-file", secret.to_str().unwrap()])
        .spawn()
        .unwrap();
    let request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
    let deadline = Instant::now() + DEADLINE;
    let response = loop {
        match kit_workbench::raw::exchange(address, request, DEADLINE).await {
            Ok(response) => break response,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(response.status, 429);
    assert_eq!(response.header("retry-after"), Some("5"));
    listen.wait_for_line(|line| line.contains("SIGNATURE WRONG"), DEADLINE).await.unwrap();
    listen.interrupt().unwrap();
    assert_eq!(listen.wait(DEADLINE).await.unwrap().code, Some(0));
}

#[test]
fn completions_and_help_are_there() {
    for arguments in
        [&["completions", "bash"][..], &["completions", "zsh"], &["--help"], &["demo", "--help"], &["--version"]]
    {
        let output = Command::new(PROGRAM).args(arguments).output().unwrap();
        assert!(output.status.success() && !output.stdout.is_empty(), "{arguments:?}");
    }
    let mistake = Command::new(PROGRAM).args(["nonsense"]).output().unwrap();
    assert_eq!(mistake.status.code(), Some(2));
}
