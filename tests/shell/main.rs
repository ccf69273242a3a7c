//! What every daemon must do alike: command line, configuration, health, metrics, admin API, exit
//! codes. A new daemon is added to `binaries::DAEMONS`, and where it needs settings to start, to
//! [`rig_of`].

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use kit_lago::stand_in::billing::Profile;
use kit_workbench::process::{DaemonCommand, Exit};
use kit_workbench::raw::{self, RawResponse};
use outrigger_tests::binaries::{DAEMONS, daemon, repository};
use outrigger_tests::rig::{Mode, REQUEST_DEADLINE, Rig, STOP_LIMIT};

/// A rig with the daemon of this name, not started yet.
async fn new_rig(name: &str) -> Rig {
    match name {
        "lago-webhook-processor" => Rig::new(Mode::Hmac, &[]).await.unwrap(),
        "lago-usage-tracker" => Rig::tracker(Profile::V1_39, &[]).await.unwrap(),
        // Nobody is there: it is ready and takes events all the same.
        "temporal-event-bridge" => Rig::bridge("127.0.0.1:1", &[]).await.unwrap(),
        "authentik-event-forwarder" => Rig::forwarder(&[]).await.unwrap(),
        _ => panic!("a new daemon needs its own rig"),
    }
}

async fn rig_of(name: &str) -> Rig {
    let mut rig = new_rig(name).await;
    rig.start().await.unwrap();
    rig
}

/// Sends what this daemon takes, or with a forged proof.
async fn send_one(rig: &Rig, forged: bool) -> u16 {
    const USAGE: &str = r#"{"event":{"transaction_id":"t","external_subscription_id":"s","code":"c"}}"#;
    let answer = match (rig.daemon, forged) {
        ("lago-usage-tracker", false) => rig.produce("/api/v1/events", &rig.producer, USAGE).await,
        ("lago-usage-tracker", true) => rig.produce("/api/v1/events", "forged", USAGE).await,
        ("temporal-event-bridge", forged) => {
            let event = serde_json::json!({ "specversion": "1.0", "id": "e", "source": "s", "type": "t" });
            rig.send_event(&event, forged).await
        }
        ("authentik-event-forwarder", true) => rig.post_envelope(b"{}", "sha256=00").await,
        (_, false) => rig.post("k", r#"{"webhook_type":"invoice.created"}"#).await,
        (_, true) => rig.post_signed("k", "{}", "forged").await,
    };
    answer.unwrap().status
}

/// Runs a daemon to its end: how it ended, standard output, standard error.
async fn run(command: DaemonCommand) -> (Exit, String, String) {
    let mut process = command.spawn().unwrap();
    let exit = process.wait(REQUEST_DEADLINE).await.unwrap();
    (exit, process.stdout(), process.stderr())
}

fn command(name: &str, arguments: &[&str]) -> DaemonCommand {
    DaemonCommand::new(daemon(name).unwrap()).args(arguments.iter().copied())
}

#[tokio::test]
async fn help_and_version_are_told() {
    for name in DAEMONS {
        let (exit, out, err) = run(command(name, &["--help"])).await;
        assert_eq!((exit.code, err.as_str()), (Some(0), ""));
        for argument in
            ["--config <FILE>", "--check-config", "--print-config-reference", "--version", "health", "SIDECAR_CONFIG"]
        {
            assert!(out.contains(argument), "{argument} is missing in\n{out}");
        }

        let (exit, out, _) = run(command(name, &["--version"])).await;
        assert_eq!(exit.code, Some(0));
        assert_eq!(out, format!("{name} {}\n", env!("CARGO_PKG_VERSION")));
    }
}

#[tokio::test]
async fn a_wrong_argument_is_a_configuration_error() {
    for name in DAEMONS {
        for arguments in [&["--nonsense"][..], &["run"], &["--config"]] {
            let (exit, _, err) = run(command(name, arguments)).await;
            assert_eq!(exit.code, Some(78), "{arguments:?}");
            assert!(err.starts_with("error: "), "{err}");
        }
    }
}

#[tokio::test]
async fn the_committed_reference_is_the_printed_one() {
    for name in DAEMONS {
        let (exit, printed, _) = run(command(name, &["--print-config-reference"])).await;
        assert_eq!(exit.code, Some(0));
        let path = repository().join(format!("docs/reference/{name}.md"));
        let committed = std::fs::read_to_string(&path).unwrap();
        assert!(printed == committed, "{name} --print-config-reference > {}", path.display());
    }
}

#[tokio::test]
async fn the_example_configuration_is_valid_and_a_mistake_in_it_is_not() {
    for name in DAEMONS {
        let path = repository().join(format!("config/{name}.toml"));
        let file = path.display().to_string();
        let (exit, out, err) = run(command(name, &["--config", &file, "--check-config"])).await;
        assert_eq!((exit.code, out.as_str(), err.as_str()), (Some(0), "configuration is valid\n", ""));
        let (exit, ..) = run(command(name, &["--check-config"]).env("SIDECAR_CONFIG", &file)).await;
        assert_eq!(exit.code, Some(0), "the variable names the file as well");

        let scratch = kit_workbench::scratch::Scratch::new("outrigger-shell").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let spoiled = scratch.write("spoiled.toml", text.replacen("public = ", "pubic = ", 1)).unwrap();
        let spoiled = spoiled.display().to_string();
        let (exit, _, err) = run(command(name, &["--config", &spoiled, "--check-config"])).await;
        assert_eq!(exit.code, Some(78));
        assert!(err.contains("PUBIC") && err.contains("SIDECAR_LISTEN__PUBLIC"), "{err}");
    }
}

#[tokio::test]
async fn checking_the_configuration_starts_nothing() {
    for name in DAEMONS {
        let rig = new_rig(name).await;
        let command = command(name, &["--check-config"]).envs(rig.environment().to_vec());
        let (exit, out, _) = run(command).await;
        assert_eq!((exit.code, out.as_str()), (Some(0), "configuration is valid\n"));
        assert!(!rig.journal_path().exists(), "a journal was made");
    }
}

/// It would deliver what is there to its own gateway, and everything of its own would wait for the other's sinks as well.
#[tokio::test]
async fn the_journal_of_another_daemon_is_refused_and_keeps_what_it_has() {
    for (name, other) in DAEMONS.iter().zip(DAEMONS.iter().cycle().skip(1)) {
        let mut rig = rig_of(name).await;
        assert_eq!(send_one(&rig, false).await, 200);
        let sinks = async |rig: &Rig| -> BTreeSet<String> {
            let rows = rig.api("/api/v1/sinks").await.unwrap();
            rows.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
        };
        let before = sinks(&rig).await;
        rig.stop().await.unwrap();

        let mut stranger = new_rig(other).await;
        stranger.set("SIDECAR_JOURNAL__PATH", &rig.journal_path().display().to_string());
        let (exit, out, err) = run(command(other, &[]).envs(stranger.environment().to_vec())).await;

        assert_eq!(exit.code, Some(78), "{out}{err}");
        let said = format!("is the journal of {name}: {other} needs one of its own");
        assert!(err.contains(&said) && err.contains("SIDECAR_JOURNAL__PATH"), "{err}");
        rig.start().await.unwrap();
        assert_eq!(rig.api("/api/v1/statistics").await.unwrap()["accepted"], 1);
        assert_eq!(sinks(&rig).await, before, "{other} has left a sink in the journal of {name}");
    }
}

async fn get(rig: &Rig, path: &str) -> RawResponse {
    raw::get(rig.admin, path, REQUEST_DEADLINE).await.unwrap()
}

#[tokio::test]
async fn a_running_daemon_is_alive_ready_and_found_healthy() {
    for name in DAEMONS {
        let mut rig = rig_of(name).await;
        assert_eq!(get(&rig, "/livez").await.status, 200);
        let ready = get(&rig, "/readyz").await;
        assert_eq!(ready.status, 200);
        assert!(ready.json().unwrap().is_object(), "{}", ready.text());
        let health = command(name, &["health"]).envs(rig.environment().to_vec());
        assert_eq!(run(health.clone()).await.0.code, Some(0));

        let (exit, took) = rig.stop().await.unwrap();
        assert_eq!(exit.code, Some(0));
        assert!(took <= STOP_LIMIT, "{took:?}");
        assert_eq!(run(health).await.0.code, Some(1), "nobody is there");
    }
}

/// Keys, certificates and jq programs are the daemon's own business: a check every ten seconds must cost next to nothing.
#[tokio::test]
async fn a_health_check_reads_no_file_that_the_configuration_names() {
    for name in DAEMONS {
        let rig = rig_of(name).await;
        // Whoever opens it waits for a writer that never comes.
        let pipe = rig.scratch.file("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let mut environment = rig.environment().to_vec();
        environment.retain(|(name, _)| name != "SIDECAR_ADMIN__TOKEN_FILE");
        environment.push(("SIDECAR_ADMIN__TOKEN_FILE".to_owned(), pipe.display().to_string()));
        let health = command(name, &["health"]).envs(environment);
        assert_eq!(run(health).await.0.code, Some(0), "{name}");
    }
}

#[tokio::test]
async fn a_frozen_daemon_is_found_unhealthy() {
    for name in DAEMONS {
        let mut rig = rig_of(name).await;
        rig.process().unwrap().freeze().unwrap();
        let health = command(name, &["health"]).envs(rig.environment().to_vec());
        assert_eq!(run(health).await.0.code, Some(1));
        rig.process().unwrap().thaw().unwrap();
    }
}

#[tokio::test]
async fn every_metric_has_a_name_by_the_rules_a_help_and_a_line_in_the_reference() {
    for name in DAEMONS {
        let rig = rig_of(name).await;
        assert_eq!(send_one(&rig, false).await, 200);
        let metrics = rig.metrics().await.unwrap();
        assert!(metrics.is_complete(), "no # EOF");
        let documented = std::fs::read_to_string(repository().join("docs/reference/metrics.md")).unwrap();
        for (family, about) in metrics.families() {
            assert!(!about.help.trim().is_empty(), "{family} has no help");
            assert!(!about.kind.is_empty(), "{family} has no type");
            assert!(family.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{family}");
            let shown = [format!("`{family}`"), format!("`{family}_total`"), format!("`{family}_info`")];
            assert!(shown.iter().any(|form| documented.contains(form)), "{family} is not in docs/reference/metrics.md");
        }
        let own: &[&str] = match name {
            "lago-usage-tracker" => &["usage_events", "usage_lago_events"],
            "temporal-event-bridge" => &["bridge_events", "observer_sweeps"],
            "authentik-event-forwarder" => &["authentik_events", "authentik_poll", "business_events"],
            _ => &["lago_webhooks", "business_events"],
        };
        for prefix in ["journal_commit", "delivery_attempts", "delivery_pending"].iter().chain(own) {
            assert!(metrics.families().keys().any(|family| family.starts_with(prefix)), "no family {prefix}…");
        }
    }
}

/// Methods and paths of the served description, with every parameter filled in.
async fn operations(rig: &Rig) -> Vec<(String, String)> {
    let description = rig.api("/api/v1/openapi.json").await.unwrap();
    let mut found = Vec::new();
    for (path, methods) in description["paths"].as_object().unwrap() {
        let mut concrete = path.clone();
        while let (Some(from), Some(to)) = (concrete.find('{'), concrete.find('}')) {
            concrete.replace_range(from..=to, "00000000-0000-4000-8000-000000000000");
        }
        let concrete = if concrete.starts_with("/api/v1") { concrete } else { format!("/api/v1{concrete}") };
        for method in methods.as_object().unwrap().keys() {
            found.push((method.to_uppercase(), concrete.clone()));
        }
    }
    found.push(("GET".to_owned(), "/api/v1/openapi.json".to_owned()));
    assert!(found.len() >= 10, "{found:?}");
    found
}

#[tokio::test]
async fn every_described_route_wants_the_token() {
    for name in DAEMONS {
        let mut rig = rig_of(name).await;
        let operations = operations(&rig).await;
        let ask = async |admin, method: &str, path: &str, authorization: Option<&str>| {
            let headers: Vec<_> = authorization.map(|value| ("Authorization", value)).into_iter().collect();
            raw::request(admin, method, path, &headers, b"", REQUEST_DEADLINE).await.unwrap()
        };
        let mut answers = BTreeSet::new();
        for (method, path) in &operations {
            for authorization in [None, Some("Bearer wrong"), Some("Basic YTpi"), Some("")] {
                // Guessing is slowed down: five failures a second.
                let status = loop {
                    let answer = ask(rig.admin, method, path, authorization).await;
                    match answer.status {
                        429 => tokio::time::sleep(Duration::from_millis(250)).await,
                        status => break status,
                    }
                };
                assert_eq!(status, 401, "{method} {path} with {authorization:?}");
                answers.insert(status);
            }
        }
        assert_eq!(
            rig.api("/api/v1/statistics").await.unwrap()["accepted"],
            0,
            "a route without the token did something"
        );

        // With the token each of them is there.
        let bearer = format!("Bearer {}", rig.token);
        for (method, path) in &operations {
            let answer = ask(rig.admin, method, path, Some(&bearer)).await;
            assert!(
                !matches!(answer.status, 401 | 403 | 405 | 500..),
                "{method} {path}: {} {}",
                answer.status,
                answer.text()
            );
        }

        // Without a configured token nobody gets in.
        rig.stop().await.unwrap();
        rig.set("SIDECAR_ADMIN__TOKEN_FILE", "");
        rig.start().await.unwrap();
        for (method, path) in &operations {
            assert_eq!(ask(rig.admin, method, path, Some(&bearer)).await.status, 403, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn each_listener_serves_its_own_paths_only() {
    for name in DAEMONS {
        let rig = rig_of(name).await;
        for path in ["/livez", "/readyz", "/metrics", "/api/v1/events", "/api/v1/openapi.json"] {
            assert_eq!(raw::get(rig.public, path, REQUEST_DEADLINE).await.unwrap().status, 404, "{path}");
        }
        for path in ["/webhooks/lago", "/", "/livez/", "/metrics/x"] {
            let answer = raw::request(rig.admin, "POST", path, &[], b"{}", REQUEST_DEADLINE).await.unwrap();
            assert_eq!(answer.status, 404, "{path}");
        }
    }
}

#[tokio::test]
async fn every_log_line_is_json_with_the_common_keys() {
    for name in DAEMONS {
        let mut rig = rig_of(name).await;
        assert_eq!(send_one(&rig, true).await, 401);
        let (exit, _) = rig.stop().await.unwrap();
        assert_eq!(exit.code, Some(0), "stopped in order, however soon");
        let log = std::fs::read_to_string(rig.scratch.file("daemon.log")).unwrap();
        assert!(log.lines().count() >= 4, "{log}");
        for line in log.lines() {
            let entry: serde_json::Value = serde_json::from_str(line).unwrap();
            for key in ["timestamp", "level", "message", "logger"] {
                assert!(entry[key].is_string(), "no {key} in {line}");
            }
        }
    }
}

/// The first sign of life is the listening line; from before that on a signal must not just kill.
#[tokio::test]
async fn a_signal_during_the_start_stops_in_order() {
    for name in DAEMONS {
        let mut rig = rig_of(name).await;
        rig.stop().await.unwrap();
        let command = rig.command().unwrap();
        for round in 0..20 {
            let mut process = command.spawn().unwrap();
            process.address("public", REQUEST_DEADLINE).await.unwrap();
            process.term().unwrap();
            let exit = process.wait(REQUEST_DEADLINE).await.unwrap();
            assert_eq!((exit.code, exit.signal), (Some(0), None), "round {round}: {}", process.stdout());
        }
    }
}

#[test]
fn every_daemon_has_its_documents() {
    for name in DAEMONS {
        for path in
            [format!("config/{name}.toml"), format!("docs/reference/{name}.md"), format!("docs/sidecars/{name}.md")]
        {
            let path: PathBuf = repository().join(path);
            assert!(path.is_file(), "{} is missing", path.display());
        }
    }
}
