//! The binary as compose runs it: arguments, settings, log lines, exit codes.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use kit_lago::LagoServer;
use kit_lago::stand_in::billing::{Faults, Profile};
use kit_workbench::scratch::Scratch;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::bench::{KEY, SOON, key};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn command(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lago-seeder"));
    command.args(arguments).env_clear().envs(environment.iter().copied()).current_dir(repository()).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

struct Ran {
    status: ExitStatus,
    out: String,
    err: String,
}

impl Ran {
    fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

async fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Ran {
    let output = tokio::time::timeout(SOON, command(arguments, environment).output()).await.unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { status: output.status, out: text(output.stdout), err: text(output.stderr) }
}

/// Settings of a run against a Lago, which end it soon where it would wait.
fn settings<'a>(url: &'a str, catalogue: &'a str) -> [(&'a str, &'a str); 5] {
    [
        ("LAGO_API_URL", url),
        ("LAGO_API_KEY", KEY),
        ("SIDECAR_CATALOGUE__FILE", catalogue),
        ("SIDECAR_WAIT__SECONDS", "0.5"),
        ("SIDECAR_WAIT__ENDPOINT_SECONDS", "0"),
    ]
}

const SHIPPED: &str = "config/lago/catalogue.toml";

#[tokio::test]
async fn every_ending_has_its_exit_code() {
    let lago = LagoServer::start(Profile::V1_16, key()).await.unwrap();
    let url = lago.url();
    let ends = async |verb: &str, environment: &[(&str, &str)], expected: i32, naming: &str| {
        let ran = run(&[verb], environment).await;
        assert_eq!(ran.code(), Some(expected), "{verb} {environment:?}\n{}{}", ran.out, ran.err);
        assert!(format!("{}{}", ran.out, ran.err).contains(naming), "{naming}\n{}{}", ran.out, ran.err);
    };
    let ours = settings(&url, SHIPPED);
    ends("plan", &ours, 0, "7 to create").await;
    ends("check", &ours, 1, "7 to create").await;
    ends("apply", &ours, 0, "7 created").await;
    ends("check", &ours, 0, "7 as they should be").await;
    assert_eq!(run(&[], &ours).await.code(), Some(0), "apply is what is done without a verb");

    // What Lago does not want.
    let scratch = Scratch::new("lago-seeder").unwrap();
    let half = scratch
        .write(
            "half.toml",
            "[[plans]]\ncode='h'\nname='H'\ninterval='semiannual'\namount_cents=1\namount_currency='USD'",
        )
        .unwrap();
    ends("apply", &settings(&url, &half.display().to_string()), 1, "interval").await;
    // Nobody there, nobody there yet, and nobody at the endpoint.
    ends("apply", &settings("http://127.0.0.1:1", SHIPPED), 75, "SIDECAR_WAIT__SECONDS").await;
    lago.set_faults(Faults { unhealthy: true, ..Faults::default() });
    ends("apply", &ours, 75, "500").await;
    lago.set_faults(Faults::default());
    let hook = scratch
        .write("hook.toml", "[[webhook_endpoints]]\nwebhook_url='http://127.0.0.1:1/'\nsignature_algo='jwt'")
        .unwrap();
    let hook = hook.display().to_string();
    let mut patient = settings(&url, &hook);
    patient[4].1 = "0.2";
    ends("apply", &patient, 75, "nothing answers there").await;
    // What no repetition mends.
    let mut wrong_key = ours;
    wrong_key[1].1 = "another";
    ends("apply", &wrong_key, 78, "LAGO_API_KEY is refused").await;
    ends(
        "apply",
        &settings(&url, "/nonexistent.toml"),
        78,
        "SIDECAR_CATALOGUE__FILE: /nonexistent.toml: cannot be read",
    )
    .await;
    ends("apply", &settings("lago-api", SHIPPED), 78, "LAGO_API_URL").await;
    ends("apply", &ours[..1], 78, "LAGO_API_KEY_FILE: must be set").await;
    ends("--nonsense", &ours, 78, "error: ").await;
}

#[tokio::test]
async fn every_mistake_in_a_catalogue_is_told_at_once() {
    let scratch = Scratch::new("lago-seeder").unwrap();
    let text = "[[billable_metrics]]\ncode='m'\nname='M'\naggregation_type='sum'\n[[plans]]\ncode='p'\nname='P'\ninterval='monthly'\namount_cents=1\namount_currency='dollar'\n[[plans.charges]]\nbillable_metric='n'\ncharge_model='package'\nproperties={amount=0.5}\n[[plans]]\ncode='p'\nname='P'\ninterval='monthly'\namount_cents=1\namount_currency='USD'\n[[webhook_endpoints]]\nwebhook_url='lago'\nsignature_algo='none'\nevent_types=['invoice.create', 'credit_note.provider_refund_failure']";
    let file = scratch.write("wrong.toml", text).unwrap().display().to_string();

    let ran = run(&["--check-config"], &settings("http://lago-api:3000", &file)).await;

    assert_eq!(ran.code(), Some(78));
    for part in [
        "aggregation_type \"sum\" is not one of count_agg",
        "sum needs field_name",
        "amount_currency \"dollar\"",
        "there is no metric \"n\"",
        "package needs properties.free_units",
        "amount is a decimal in quotes",
        "plan \"p\": it is there twice",
        "webhook_url is not an http or https address",
        "signature_algo \"none\"",
        "no event type \"invoice.create\"",
        "holds back",
    ] {
        assert!(ran.err.contains(part), "{part} is missing in\n{}", ran.err);
    }
    let unknown = scratch.write("unknown.toml", "[[plans]]\ncode='p'\nprice=1\n").unwrap().display().to_string();
    let ran = run(&["--check-config"], &settings("http://lago-api:3000", &unknown)).await;
    assert!(ran.err.contains("line 3: unknown field `price`"), "{}", ran.err);
}

#[tokio::test]
async fn log_lines_are_json_and_hold_no_key() {
    let lago = LagoServer::start(Profile::V1_16, key()).await.unwrap();
    let url = lago.url();
    let mut environment = settings(&url, SHIPPED).to_vec();
    environment.push(("LOG_LEVEL", "trace"));

    let ran = run(&[], &environment).await;

    assert_eq!(ran.code(), Some(0));
    let lines: Vec<Value> = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let created = lines.iter().find(|line| line["object.id"] == "growth").unwrap();
    assert_eq!((&created["object.kind"], &created["level"]), (&"plan".into(), &"INFO".into()));
    assert!(!ran.out.contains(KEY) && ran.err.is_empty(), "{}", ran.err);
}

#[tokio::test]
async fn a_signal_cuts_it_off_at_once() {
    let environment =
        [("LAGO_API_URL", "http://127.0.0.1:1"), ("LAGO_API_KEY", KEY), ("SIDECAR_CATALOGUE__FILE", SHIPPED)];
    let mut child = command(&[], &environment).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = tokio::time::timeout(SOON, lines.next_line()).await.unwrap().unwrap().unwrap();
    assert!(first.contains("Lago is not there yet"), "{first}");

    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());

    let status = tokio::time::timeout(Duration::from_secs(10), child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(124));
}

#[tokio::test]
async fn help_examples_and_pages_are_those_of_the_repository() {
    let help = run(&["--help"], &[]).await;
    for part in ["--config <FILE>", "--check-config", "--print-config-reference", "apply", "plan", "check", "keys"] {
        assert!(help.out.contains(part), "{part} is missing in\n{}", help.out);
    }
    let example = run(&["--config", "config/lago-seeder.toml", "--check-config"], &[]).await;
    assert_eq!((example.code(), example.out.as_str(), example.err.as_str()), (Some(0), "configuration is valid\n", ""));
    for (argument, page) in [
        ("--print-config-reference", "docs/reference/lago-seeder.md"),
        ("catalogue-reference", "docs/reference/catalogue.md"),
    ] {
        let printed = run(&[argument], &[]).await.out;
        let committed = std::fs::read_to_string(repository().join(page)).unwrap();
        assert!(printed == committed, "lago-seeder {argument} > {page}");
    }
    for file in [SHIPPED, "config/lago/catalogue-modules.toml"] {
        let ran = run(&["--check-config"], &settings("http://lago-api:3000", file)).await;
        assert_eq!(ran.code(), Some(0), "{}", ran.err);
    }
}
