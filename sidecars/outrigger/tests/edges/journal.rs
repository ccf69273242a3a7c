//! `journal copy` as an operator meets it: killed and run again, and real daemons on what it made. And the other verbs
//! against replicas that share a journal.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kit::clock::{SystemClock, Timestamp};
use kit::secret::Secret;
use kit_journal::engine::{
    Action, Append, Commit, DedupeBounds, ExceptionRow, ExceptionState, Settlement, open_section,
};
use kit_journal::{BodyDigest, Dedupe, EngineKind, EventHead, EventId, JournalSection, NewEvent};
use kit_workbench::database::Database;
use kit_workbench::gateway::{Behaviour, Gateway, GatewayOptions};
use kit_workbench::process::{DaemonCommand, DaemonProcess};
use kit_workbench::scratch::Scratch;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use crate::bench::{BINARY, DEADLINE, HMAC_KEY, Ran, TOKEN, command, outrigger, wait_sink};

/// Events of a journal that takes long enough to be killed while it is copied.
const EVENTS: usize = 20_000;

async fn server() -> Database {
    let server = tokio::task::spawn_blocking(|| Database::start(&[])).await.unwrap().unwrap();
    server.create("journal").unwrap();
    server
}

/// A processor over some journal, delivering to a gateway.
struct Daemon {
    process: DaemonProcess,
    public: std::net::SocketAddr,
    environment: [(&'static str, &'static str); 2],
    /// Of its own, for what is sent to it.
    scratch: Scratch,
}

impl Daemon {
    async fn start(scratch: &Scratch, gateway: &Gateway, journal: &[(&str, String)]) -> Self {
        let token_file = scratch.write("token", TOKEN).unwrap();
        let mut process = Self::command(&gateway.url(), &token_file, journal).spawn().unwrap();
        let public = process.address("public", DEADLINE).await.unwrap();
        let admin = process.address("admin", DEADLINE).await.unwrap();
        process.wait_ready(admin, DEADLINE).await.unwrap();
        // Leaked: a few bytes a test, for signatures that read well.
        let admin = format!("http://{admin}").leak();
        let file = token_file.display().to_string().leak();
        let environment: [(_, &str); 2] = [("OUTRIGGER_ADMIN", admin), ("OUTRIGGER_TOKEN_FILE", file)];
        Self { process, public, environment, scratch: Scratch::new("sent").unwrap() }
    }

    fn command(gateway: &str, token_file: &Path, journal: &[(&str, String)]) -> DaemonCommand {
        let environment = [
            ("LAGO_WEBHOOK_HMAC_KEY", HMAC_KEY.to_owned()),
            ("BRAIN_GATEWAY_URL", gateway.to_owned()),
            ("SIDECAR_LISTEN__PUBLIC", "127.0.0.1:0".to_owned()),
            ("SIDECAR_LISTEN__ADMIN", "127.0.0.1:0".to_owned()),
            ("SIDECAR_ADMIN__TOKEN_FILE", token_file.display().to_string()),
            ("SIDECAR_GATEWAY__CIRCUIT__PROBE_SECONDS", "0.1".to_owned()),
            ("SIDECAR_GATEWAY__CIRCUIT__PROBE_MAX_SECONDS", "0.2".to_owned()),
        ];
        let all = environment.into_iter().chain(journal.iter().cloned());
        DaemonCommand::new(BINARY)
            .args(["run-lago-webhook-processor"])
            .envs(all.map(|(name, value)| (name.to_owned(), value)))
    }

    /// The same webhook for the same key.
    async fn send(&self, key: &str) -> Value {
        let url = format!("http://{}/webhooks/lago", self.public);
        let body = format!(r#"{{"webhook_type":"fee.created","object_type":"fee","fee":{{"lago_id":"{key}"}}}}"#);
        let file = self.scratch.write("body.json", body).unwrap().display().to_string();
        let arguments = ["send", "--url", &url, "--unique-key", key, "--file", &file, "--json"];
        let sent = outrigger(&arguments, &[("LAGO_WEBHOOK_HMAC_KEY", HMAC_KEY)]).await.ok();
        let answer = sent.json()["answer"].as_str().unwrap().to_owned();
        serde_json::from_str(&answer).unwrap()
    }

    async fn ask(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        outrigger(&arguments, &self.environment).await.ok().json()
    }

    async fn wait_sink(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        wait_sink(&self.environment, "gateway", wanted).await
    }

    async fn kill(mut self) {
        self.process.kill9().await.unwrap();
    }

    async fn stop(mut self) {
        self.process.term().unwrap();
        assert_eq!(self.process.wait(DEADLINE).await.unwrap().code, Some(0));
    }
}

fn in_file(path: &Path) -> Vec<(&'static str, String)> {
    vec![("SIDECAR_JOURNAL__PATH", path.display().to_string())]
}

fn in_database(path: &Path, server: &Database) -> Vec<(&'static str, String)> {
    let engine = ("SIDECAR_JOURNAL__ENGINE", "postgres".to_owned());
    vec![engine, ("DATABASE_URL", server.url("journal")), ("SIDECAR_JOURNAL__PATH", path.display().to_string())]
}

async fn copy(from: &str, to: &str, server: &Database) -> Ran {
    let url = server.url("journal");
    outrigger(&["journal", "copy", "--from", from, "--to", to, "--json"], &[("DATABASE_URL", &url)]).await
}

#[tokio::test]
async fn a_daemon_on_a_copy_knows_what_it_knew_and_delivers_what_was_pending_once() {
    let server = server().await;
    let scratch = Scratch::new("journal-copy").unwrap();
    let gateway = Gateway::start(GatewayOptions::default()).await.unwrap();
    let (file, back) = (scratch.file("processor.db"), scratch.file("back").join("processor.db"));
    std::fs::create_dir(scratch.file("back")).unwrap();
    let daemon = Daemon::start(&scratch, &gateway, &in_file(&file)).await;
    // Delivered, a dead letter, and what waits for a gateway that is away.
    let delivered = daemon.send("delivered").await;
    daemon.wait_sink(|sink| sink["delivered"] == 1).await;
    gateway.set_behaviour(Behaviour::status(400));
    daemon.send("dead").await;
    daemon.wait_sink(|sink| sink["parked"] == 1).await;
    gateway.set_behaviour(Behaviour::status(503));
    for n in 0..5 {
        daemon.send(&format!("pending{n}")).await;
    }
    let (path, shown) = (file.to_str().unwrap(), back.to_str().unwrap());
    copy(path, "postgres", &server).await.failed(1, "is in use by another process");
    // What was accepted last is in its log only.
    daemon.kill().await;

    let there = copy(path, "postgres", &server).await.ok().json();
    assert_eq!((&there["journal"], &there["last_position"]), (&"processor".into(), &7.into()));
    gateway.set_behaviour(Behaviour::Ok);
    let daemon = Daemon::start(&scratch, &gateway, &in_database(&file, &server)).await;
    copy("postgres", shown, &server).await.failed(1, "in use: stop every replica");
    let again = daemon.send("delivered").await;
    assert_eq!((&again["id"], &again["duplicate"]), (&delivered["id"], &true.into()));
    daemon.wait_sink(|sink| sink["delivered"] == 6 && sink["parked"] == 1).await;
    let dead = daemon.ask(&["dead-letters", "list"]).await;
    assert_eq!(dead.as_array().unwrap().len(), 1);
    let shown_dead = daemon.ask(&["dead-letters", "show", dead[0]["event_id"].as_str().unwrap()]).await;
    assert_eq!(shown_dead["attempts"][0]["status"], 400);
    daemon.send("new").await;
    daemon.wait_sink(|sink| sink["delivered"] == 7).await;
    daemon.stop().await;

    let home = copy("postgres", shown, &server).await.ok().json();
    assert_eq!(home["last_position"], 8);
    let daemon = Daemon::start(&scratch, &gateway, &in_file(&back)).await;
    for key in ["delivered", "dead", "pending0", "pending4", "new"] {
        assert_eq!(daemon.send(key).await["duplicate"], true, "{key}");
    }
    daemon.ask(&["dead-letters", "replay", dead[0]["event_id"].as_str().unwrap()]).await;
    daemon.wait_sink(|sink| sink["delivered"] == 8 && sink["parked"] == 0).await;
    daemon.stop().await;
    let counts = gateway.counts();
    assert_eq!((counts.unique, counts.taken), (8, 8), "each was taken, and none twice");
}

/// A stopped journal with many events in a file.
fn large(path: &Path) {
    let mut engine = kit_journal::engine::open(path, DedupeBounds::default()).unwrap();
    let register = vec![Action::Register { sink: "gateway".to_owned() }];
    engine.commit(&mut Commit { actions: register, ..Commit::default() }).unwrap();
    for n in 0..EVENTS / 500 {
        let append = |k: usize| {
            let body = format!("{{\"n\":{n},\"padding\":\"{}\"}}", "x".repeat(300)).into_bytes();
            let (key, digest) = (format!("{n}-{k}"), BodyDigest::of(&body));
            let id = EventId::derive("lago/default", &key, Some(&digest));
            let head = EventHead::new(id, "lago/default", "lago.fee.created", "fee/1", key);
            Append::new(NewEvent { head, body, dedupe: Dedupe::KeyAndBody }, digest)
        };
        let at = Timestamp::from_millis(1_700_000_000_000);
        let appends = (0..500).map(append).collect();
        engine.commit(&mut Commit { at, age: at, appends, ..Commit::default() }).unwrap();
    }
    engine.close();
}

/// Starts a copy and kills it as soon as `now` says so of what it has printed; false where it had ended before.
async fn killed_when(arguments: &[&str], url: &str, mut now: impl FnMut(&str) -> bool) -> bool {
    let mut child = command(arguments, &[("DATABASE_URL", url)]).spawn().unwrap();
    let printed = Arc::new(Mutex::new(String::new()));
    let (mut out, heard) = (child.stdout.take().unwrap(), Arc::clone(&printed));
    tokio::spawn(async move {
        let mut buffer = [0; 256];
        while let Ok(count @ 1..) = out.read(&mut buffer).await {
            heard.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    });
    let deadline = Instant::now() + DEADLINE;
    loop {
        let said = printed.lock().unwrap().clone();
        if now(&said) {
            break;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(Instant::now() < deadline, "the moment never came: {said}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    child.kill().await.unwrap();
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_killed_at_any_moment_ends_the_same_when_it_is_run_again() {
    let server = server().await;
    let scratch = Scratch::new("journal-kill").unwrap();
    let (file, back) = (scratch.file("journal.db"), scratch.file("back.db"));
    large(&file);
    let url = server.url("journal");
    let count = |table: &str| {
        let said = server.sql("journal", &format!("SELECT count(*) FROM outrigger.{table}"));
        said.ok().and_then(|count| count.parse::<usize>().ok())
    };
    let (source, target) = (file.to_str().unwrap(), back.to_str().unwrap());

    let there = ["journal", "copy", "--from", source, "--to", "postgres"];
    let mut kills = 0;
    kills += usize::from(killed_when(&there, &url, |_| count("events").is_some()).await);
    for events in [4_000, 14_000] {
        kills += usize::from(killed_when(&there, &url, |_| count("events") >= Some(events)).await);
    }
    kills += usize::from(killed_when(&there, &url, |_| count("keys") >= Some(1)).await);
    kills += usize::from(killed_when(&there, &url, |said| said.contains("comparing")).await);
    assert!(kills >= 3, "most of the time it had ended before");
    let refused =
        Daemon::command("http://127.0.0.1:9", &scratch.write("token", TOKEN).unwrap(), &in_database(&file, &server));
    let mut refused = refused.spawn().unwrap();
    assert_eq!(refused.wait(DEADLINE).await.unwrap().code, Some(78));
    assert!(refused.stderr().contains("is an unfinished copy"), "{}", refused.stderr());
    let copied = copy(source, "postgres", &server).await.ok().json();
    assert_eq!(copied["resumed"], true);

    let home = ["journal", "copy", "--from", "postgres", "--to", target];
    let position = |_: &str| {
        let reader = kit_journal::engine::open_reader(&back).ok();
        reader.and_then(|mut reader| reader.statistics().ok()).map_or(0, |statistics| statistics.accepted)
    };
    kills = usize::from(killed_when(&home, &url, |_| back.exists()).await);
    for events in [1, 4_000, 14_000] {
        kills += usize::from(killed_when(&home, &url, |said| position(said) >= events).await);
    }
    kills += usize::from(killed_when(&home, &url, |said| said.contains("comparing")).await);
    assert!(kills >= 3, "most of the time it had ended before");
    let mut refused = Daemon::command("http://127.0.0.1:9", &scratch.file("token"), &in_file(&back)).spawn().unwrap();
    assert_eq!(refused.wait(DEADLINE).await.unwrap().code, Some(78));
    assert!(refused.stderr().contains("is an unfinished copy"), "{}", refused.stderr());
    let returned = copy("postgres", target, &server).await.ok().json();
    assert_eq!(returned["resumed"], true);
    assert_eq!(returned["tables"], copied["tables"]);
    assert_eq!(returned["last_position"], EVENTS);
    // Whoever does not know how it ended asks once more.
    assert_eq!(copy("postgres", target, &server).await.ok().json()["was_finished"], true);
}

fn append(key: &str) -> Append {
    let digest = BodyDigest::of(b"{}");
    let id = EventId::derive("lago/default", key, Some(&digest));
    let head = EventHead::new(id, "lago/default", "lago.fee.created", "fee/1", key);
    Append::new(NewEvent { head, body: b"{}".to_vec(), dedupe: Dedupe::KeyAndBody }, digest)
}

/// A journal with a sink `audit` that no configuration names: two dead letters, and 700 events that wait for it, some of
/// them with rows.
fn with_a_sink_that_is_not_configured(section: &JournalSection) {
    let act = |sink: &str| Action::Register { sink: sink.to_owned() };
    let mut engine = open_section(section, Arc::new(SystemClock)).unwrap().engine;
    let actions = vec![act("gateway"), act("audit")];
    engine.commit(&mut Commit { actions, ..Commit::default() }).unwrap();
    let at = Timestamp::from_millis(1_700_000_000_000);
    let appends = (0..702).map(|n| append(&format!("k{n}"))).collect();
    engine.commit(&mut Commit { at, age: at, appends, ..Commit::default() }).unwrap();
    let gateway = Settlement { sink: "gateway".to_owned(), cursor: 702, ..Settlement::default() };
    let set = (1..=2).map(|seq| ExceptionRow::parked_untried(seq, "gone"));
    let waiting = (3..=602).map(|seq| ExceptionRow::untried(seq, ExceptionState::Waiting, "behind another"));
    let set = set.chain(waiting).collect();
    let audit = Settlement { sink: "audit".to_owned(), cursor: 602, set, ..Settlement::default() };
    engine.commit(&mut Commit { settlements: vec![gateway, audit], ..Commit::default() }).unwrap();
    engine.close();
}

#[tokio::test]
async fn a_sink_that_is_not_configured_any_more_is_forgotten_with_what_it_held() {
    let server = server().await;
    let scratch = Scratch::new("forgotten").unwrap();
    let gateway = Gateway::start(GatewayOptions::default()).await.unwrap();
    let file = scratch.file("processor.db");
    let section = JournalSection { path: file.clone(), ..JournalSection::default() };
    let shared = JournalSection {
        engine: EngineKind::Postgres,
        database_url: Some(Secret::from(server.url("journal"))),
        ..section.clone()
    };
    for (section, journal) in [(section, in_file(&file)), (shared, in_database(&file, &server))] {
        tokio::task::spawn_blocking(move || with_a_sink_that_is_not_configured(&section)).await.unwrap();
        let mut daemon = Daemon::start(&scratch, &gateway, &journal).await;
        let told = "700 events wait for sink audit, which is not configured any more";
        daemon.process.wait_for_line(|line| line.contains(told), DEADLINE).await.unwrap();
        let metrics = outrigger(&["metrics"], &daemon.environment).await.ok().out;
        assert!(metrics.contains("\ndelivery_unconfigured_pending 700\n"), "{metrics}");
        let forget = async |more: &[&str]| outrigger(&[&["sinks", "forget"], more].concat(), &daemon.environment).await;

        forget(&["gateway", "--yes"]).await.failed(1, "is configured here");
        forget(&["nobody", "--yes"]).await.failed(1, "nobody");
        forget(&["audit"]).await.failed(1, "700 pending deliveries and 2 dead letters go with audit; say --yes");
        let would = forget(&["audit", "--dry-run", "--json"]).await.ok().json();
        assert_eq!((&would["pending"], &would["parked"], &would["dry_run"]), (&700.into(), &2.into(), &true.into()));
        assert_eq!(daemon.ask(&["sinks", "list"]).await.as_array().unwrap().len(), 2);
        let result = forget(&["audit", "--yes", "--reason", "replaced by the lake", "--json"]).await.ok().json();

        let account = json!({"accepted": 702, "delivered": 0, "dropped": 702, "filtered": 0});
        assert_eq!(result, json!({"sink": "audit", "pending": 700, "parked": 2, "account": account, "dry_run": false}));
        let sinks = daemon.ask(&["sinks", "list"]).await;
        assert_eq!((sinks.as_array().unwrap().len(), &sinks[0]["name"]), (1, &"gateway".into()));
        forget(&["audit", "--yes"]).await.failed(1, "audit");
        daemon.send("later").await;
        daemon.wait_sink(|sink| sink["delivered"] == 703).await;
        // The dry runs, the beginning of what took two commits, its end.
        let records = audit(&daemon).await;
        let ends: Vec<_> = records.iter().filter(|record| record["action"] == "sinks.forget").collect();
        assert_eq!(ends.len(), 4, "{records:?}");
        assert_eq!(ends[0]["detail"]["result"]["account"]["dropped"], 702);
        assert_eq!(ends[0]["detail"]["request"]["reason"], "replaced by the lake");
        assert_eq!(ends[1]["detail"]["result"]["account"], "unfinished");
        daemon.stop().await;
    }
}

/// The audit trail, newest first.
async fn audit(daemon: &Daemon) -> Vec<Value> {
    let [(_, admin), _] = daemon.environment;
    let url = format!("{admin}/api/v1/audit");
    let answer = reqwest::Client::new().get(url).bearer_auth(TOKEN).send().await.unwrap().bytes().await.unwrap();
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    answer["records"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_password_is_neither_taken_from_the_command_line_nor_shown() {
    let scratch = Scratch::new("journal-url").unwrap();
    let file = scratch.file("j.db");
    kit_journal::engine::open(&file, DedupeBounds::default()).unwrap().close();
    let (path, url) = (file.to_str().unwrap(), "postgres://me:topsecret@127.0.0.1:1/db");
    let run = async |to: &str, environment: &[(&str, &str)], naming: &str| {
        let ran = outrigger(&["journal", "copy", "--from", path, "--to", to], environment).await;
        assert!(!format!("{ran:?}").contains("topsecret"), "{ran:?}");
        ran.failed(1, naming);
    };

    run(url, &[], "a password on the command line is seen by everybody").await;
    run("postgres", &[], "set DATABASE_URL or DATABASE_URL_FILE").await;
    run("postgres", &[("DATABASE_URL", url)], "target: open journal 127.0.0.1:1/db, schema outrigger").await;
    let named = format!("@{}", scratch.write("url", url).unwrap().display());
    run(&named, &[], "target: open journal 127.0.0.1:1/db, schema outrigger").await;
    run("@/nowhere", &[], "/nowhere").await;
    run("postgres", &[("DATABASE_URL", "mysql://me:topsecret@h/d")], "the database's URL must begin with postgres://")
        .await;
}

#[tokio::test]
async fn replicas_over_one_journal_give_the_same_picture() {
    let server = server().await;
    let scratch = Scratch::new("replicas").unwrap();
    let gateway = Gateway::start(GatewayOptions::default()).await.unwrap();
    let journal = in_database(Path::new("/nowhere/processor.db"), &server);
    let one = Daemon::start(&scratch, &gateway, &journal).await;
    let other = Daemon::start(&scratch, &gateway, &journal).await;
    for n in 0..4 {
        let daemon = if n % 2 == 0 { &one } else { &other };
        daemon.send(&format!("k{n}")).await;
    }
    one.wait_sink(|sink| sink["delivered"] == 4).await;
    gateway.set_behaviour(Behaviour::status(400));
    for n in 0..3 {
        other.send(&format!("dead{n}")).await;
    }
    for daemon in [&one, &other] {
        daemon.wait_sink(|sink| sink["parked"] == 3 && sink["pending"] == 0).await;
    }
    assert_eq!(other.send("k0").await["duplicate"], true, "what one has taken the other knows");

    for question in [&["events", "list"][..], &["dead-letters", "list"], &["stats"]] {
        let mut answers = [one.ask(question).await, other.ask(question).await];
        for answer in &mut answers {
            // How a replica itself is doing is its own.
            for sink in answer.get_mut("sinks").and_then(Value::as_array_mut).into_iter().flatten() {
                sink.as_object_mut().unwrap().remove("status");
            }
        }
        assert_eq!(answers[0], answers[1], "{question:?}");
    }
    for daemon in [&one, &other] {
        let findings = outrigger(&["doctor", "--json"], &daemon.environment).await;
        assert_eq!(findings.code, Some(1), "{findings:?}");
        assert!(findings.out.contains("dead letters"), "{findings:?}");
    }
    // What is asked of one is done by whichever delivers.
    gateway.set_behaviour(Behaviour::Ok);
    let dead = one.ask(&["dead-letters", "list"]).await;
    let id = |n: usize| dead[n]["event_id"].as_str().unwrap().to_owned();
    for (daemon, n) in [(&one, 0), (&other, 1)] {
        assert_eq!(daemon.ask(&["dead-letters", "replay", &id(n)]).await["changed"], 1);
    }
    other.ask(&["dead-letters", "drop", &id(2), "--yes", "--reason", "test data"]).await;
    for daemon in [&one, &other] {
        daemon.wait_sink(|sink| sink["delivered"] == 6 && sink["dropped"] == 1 && sink["parked"] == 0).await;
        assert_eq!(daemon.ask(&["events", "show", &id(0)]).await["deliveries"]["gateway"]["state"], "delivered");
    }
    other.ask(&["sinks", "pause", "gateway"]).await;
    assert_eq!(one.wait_sink(|sink| sink["paused"] == true).await["name"], "gateway");
    one.ask(&["sinks", "resume", "gateway"]).await;
    one.stop().await;
    other.stop().await;
}
