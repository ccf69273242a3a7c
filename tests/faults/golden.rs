//! Journals that an earlier version has written, kept under `tests/golden`: this version opens them and
//! finds everything.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit_journal::engine;
use kit_workbench::Digest;
use kit_workbench::gateway::Behaviour;
use outrigger_tests::api;
use outrigger_tests::binaries::repository;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::journal_file;
use outrigger_tests::rig::{Mode, Rig};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Name of the variable that makes a new golden journal instead of running experiments: the folder to make.
pub(crate) const MAKE_VARIABLE: &str = "OUTRIGGER_MAKE_GOLDEN";
/// A value that the journal is to remember.
const VALUE: (&str, &[u8]) = ("golden", b"remembered\0byte for byte");
const DEADLINE: Duration = Duration::from_secs(20);
/// The files are older than anything is usually kept.
const KEEP: [(&str, &str); 2] =
    [("SIDECAR_JOURNAL__RETENTION__DAYS", "36500"), ("SIDECAR_JOURNAL__DEDUPE_DAYS", "36500")];

/// What is known about a golden journal.
#[derive(Debug, Serialize, Deserialize)]
struct Expected {
    /// Every webhook that was accepted, in order.
    webhooks: Vec<Webhook>,
    /// Answers of the admin API by path; later versions may say more, not less.
    answers: Vec<(String, Value)>,
    /// Remembered values by name.
    values: Vec<(String, Vec<u8>)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Webhook {
    key: String,
    body: String,
    id: String,
    /// What the admin API says became of it.
    state: String,
}

impl Webhook {
    fn is_to_be_delivered(&self) -> bool {
        ["pending", "retrying"].contains(&self.state.as_str())
    }
}

/// F29: every journal that a version has left is opened, and everything in it is there: events in every
/// state, attempts, audit trail, values. Its webhooks are known when they come again, and what was still to be
/// delivered is delivered byte for byte.
pub(crate) async fn a_journal_of_every_version_is_read_and_delivered(_: Trial) -> Result<Outcome> {
    let (mut events, mut delivered, mut journals) = (0, 0, 0);
    for golden in goldens()? {
        let name = golden.display();
        let expected = Expected::read(&golden)?;
        let mut rig = Rig::new(Mode::Hmac, &KEEP).await?;
        copy(&golden, &rig)?;
        rig.start().await?;
        expected.check_answers(&rig).await.with_context(|| name.to_string())?;
        for webhook in &expected.webhooks {
            let answer = rig.post(&webhook.key, &webhook.body).await?;
            let wanted = json!({ "id": webhook.id, "duplicate": true });
            ensure!(answer.status == 200 && answer.json()? == wanted, "{name}: {} for {webhook:?}", answer.text());
        }
        for (value, content) in &expected.values {
            let stored = engine::open_reader(&rig.journal_path())?.value(value)?;
            ensure!(stored.as_ref() == Some(content), "{name}: the value {value} is {stored:?}");
        }
        let resumed = rig.act("/api/v1/sinks/gateway/resume", &json!({})).await?;
        ensure!(resumed.status == 200, "{name}: {}", resumed.text());
        rig.drained().await?;
        let pending: Vec<&Webhook> = expected.webhooks.iter().filter(|webhook| webhook.is_to_be_delivered()).collect();
        ensure!(!pending.is_empty(), "{name} has nothing to deliver");
        let received = rig.gateway.received();
        ensure!(received.len() == pending.len(), "{name}: {} of {} delivered", received.len(), pending.len());
        for webhook in &pending {
            let delivery = received.iter().find(|delivery| delivery.event_id.as_deref() == Some(&webhook.id));
            let delivery = delivery.with_context(|| format!("{name}: {webhook:?} is not delivered"))?;
            ensure!(delivery.data_sha256 == Digest::of(webhook.body.as_bytes()), "{name}: {webhook:?} is changed");
        }
        rig.stop().await?;
        journals += 1;
        events += expected.webhooks.len();
        delivered += pending.len();
    }
    Ok(Outcome::new(journals, format!("{events} events known, {delivered} delivered")))
}

/// F29: a kill while such a journal is opened leaves one that is opened the next time, with everything in it.
pub(crate) async fn a_kill_while_an_older_journal_is_opened_costs_nothing(mut trial: Trial) -> Result<Outcome> {
    let goldens = goldens()?;
    let mut done = 0;
    for golden in &goldens {
        let expected = Expected::read(golden)?;
        let mut rig = Rig::new(Mode::Hmac, &KEEP).await?;
        for kill in 0..trial.count {
            trial.progress(done);
            copy(golden, &rig)?;
            let moment = Duration::from_micros(trial.random.u64(0..=40_000));
            rig.spawn(&rig.command()?)?;
            // Not waiting for luck: the random moment is the experiment.
            tokio::time::sleep(moment).await;
            rig.kill().await?;
            let context = || format!("{}: kill {kill}, after {moment:?}", golden.display());
            journal_file::check_store(&rig.journal_path(), rig.scratch.path()).with_context(context)?;
            rig.start().await.with_context(context)?;
            expected.check_answers(&rig).await.with_context(context)?;
            rig.stop().await?;
            done += 1;
        }
    }
    Ok(Outcome::new(done, format!("{} journals, each whole after every kill", goldens.len())))
}

/// Makes a golden journal with this version's daemon.
pub(crate) fn make(name: &str) -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().map_err(anyhow::Error::from);
    match runtime.and_then(|runtime| runtime.block_on(Expected::make(&folder().join(name)))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("no golden journal: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn folder() -> PathBuf {
    repository().join("tests/golden")
}

/// Every folder with a golden journal, in order.
fn goldens() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder()).context("tests/golden")? {
        let path = entry?.path();
        if path.join("journal.db").exists() {
            found.push(path);
        }
    }
    found.sort();
    ensure!(!found.is_empty(), "there is no golden journal");
    Ok(found)
}

/// Puts a copy where the rig's daemon looks for its journal, and nothing else.
fn copy(golden: &Path, rig: &Rig) -> Result<()> {
    let state = rig.scratch.file("state");
    std::fs::remove_dir_all(&state)?;
    std::fs::create_dir(&state)?;
    std::fs::copy(golden.join("journal.db"), rig.journal_path())?;
    Ok(())
}

impl Expected {
    fn read(golden: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(golden.join("expected.json"))?;
        serde_json::from_str(&text).with_context(|| golden.display().to_string())
    }

    async fn check_answers(&self, rig: &Rig) -> Result<()> {
        for (path, expected) in &self.answers {
            let answer = rig.api(path).await?;
            ensure!(holds(&answer, expected), "{path} is answered\n{answer:#}\nand not\n{expected:#}");
        }
        for webhook in &self.webhooks {
            let path = format!("/api/v1/events/{}/body", webhook.id);
            let answer = api::ask_with_token(rig, "GET", &path, None).await?;
            ensure!(answer.status == 200 && answer.body == webhook.body.as_bytes(), "{path}: {}", answer.text());
        }
        Ok(())
    }

    async fn make(golden: &Path) -> Result<()> {
        ensure!(!golden.exists(), "{} exists", golden.display());
        let mut rig = Rig::started(Mode::Hmac, &[]).await?;
        rig.gateway.set_behaviour(Behaviour::by_request(|head| match head.subject.as_deref() {
            Some("fee/poison") => Behaviour::status(400),
            Some("fee/later" | "fee/unwanted") => Behaviour::status(500),
            _ => Behaviour::Ok,
        }));
        let body = |name: &str| {
            // Blanks, escapes and digits that a careless reader would write differently.
            format!(
                r#"{{ "webhook_type":"fee.created","object_type":"fee","fee":{{"lago_id":"{name}","amount":1.10,"note":"\u0026 é"}}}}"#
            )
        };
        let mut webhooks = Vec::new();
        for (name, state) in [
            ("first", "delivered"),
            ("second", "delivered"),
            ("poison", "parked"),
            ("later", "retrying"),
            ("unwanted", "retrying"),
        ] {
            webhooks.push(post(&rig, &format!("key-{name}"), body(name), state).await?);
        }
        settled(&rig, &webhooks).await?;
        for path in ["/api/v1/sinks/gateway/pause", "/api/v1/deliveries/drop"] {
            let unwanted = json!({"select": {"ids": [webhooks[4].id]}, "reason": "nobody wants it"});
            let request = if path.ends_with("drop") { unwanted } else { json!({}) };
            let answer = rig.act(path, &request).await?;
            ensure!(answer.status == 200, "{path}: {}", answer.text());
        }
        webhooks[4].state = "dropped".to_owned();
        // The last under the key of the first: a conflict.
        for (name, key) in [("third", "third"), ("fourth", "fourth"), ("other", "first")] {
            webhooks.push(post(&rig, &format!("key-{key}"), body(name), "pending").await?);
        }
        settled(&rig, &webhooks).await?;
        let mut answers = Vec::new();
        let mut paths = vec!["/api/v1/events".to_owned(), "/api/v1/deliveries".to_owned(), "/api/v1/audit".to_owned()];
        paths.extend(webhooks.iter().map(|webhook| format!("/api/v1/events/{}", webhook.id)));
        paths.push("/api/v1/statistics".to_owned());
        for path in paths {
            let mut answer = rig.api(&path).await?;
            // How much room it takes is the store's own business; what a sink is at is of the moment.
            if let Some(answer) = answer.as_object_mut() {
                answer.remove("used_bytes");
            }
            for sink in answer.get_mut("sinks").and_then(Value::as_array_mut).into_iter().flatten() {
                sink.as_object_mut().and_then(|sink| sink.remove("status"));
            }
            answers.push((path, answer));
        }
        rig.stop().await?;
        journal_file::remember(&rig.journal_path(), VALUE.0, VALUE.1).await?;
        std::fs::create_dir_all(golden)?;
        std::fs::copy(rig.journal_path(), golden.join("journal.db"))?;
        let expected = Self { webhooks, answers, values: vec![(VALUE.0.to_owned(), VALUE.1.to_vec())] };
        std::fs::write(golden.join("expected.json"), serde_json::to_string_pretty(&expected)? + "\n")?;
        Ok(())
    }
}

async fn post(rig: &Rig, key: &str, body: String, state: &str) -> Result<Webhook> {
    let answer = rig.post(key, &body).await?;
    ensure!(answer.status == 200, "{}", answer.text());
    let id = answer.json()?["id"].as_str().context("the answer has an id")?.to_owned();
    Ok(Webhook { key: key.to_owned(), body, id, state: state.to_owned() })
}

/// Waits until the daemon says of each that it is in its state.
async fn settled(rig: &Rig, webhooks: &[Webhook]) -> Result<()> {
    let begin = Instant::now();
    loop {
        let mut left = Vec::new();
        for webhook in webhooks {
            let event = rig.api(&format!("/api/v1/events/{}", webhook.id)).await?;
            let state = format!("\"state\":\"{}\"", webhook.state);
            if !event.to_string().contains(&state) {
                left.push(event);
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        ensure!(begin.elapsed() < DEADLINE, "not as they are to be: {left:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether everything expected is there; more may be.
fn holds(actual: &Value, expected: &Value) -> bool {
    match (actual, expected) {
        (Value::Object(actual), Value::Object(expected)) => {
            expected.iter().all(|(name, value)| actual.get(name).is_some_and(|actual| holds(actual, value)))
        }
        (Value::Array(actual), Value::Array(expected)) => {
            actual.len() == expected.len() && actual.iter().zip(expected).all(|(actual, value)| holds(actual, value))
        }
        _ => actual == expected,
    }
}
