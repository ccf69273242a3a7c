//! Events that start workflows, and workflows whose ends become events, beside Temporal's own server.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kit_journal::EventId;
use kit_workbench::temporal::TemporalOptions;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::rig::EventSender;
use outrigger_tests::temporal::{Bench, Release, TemporalApi};
use serde_json::{Value, json};

/// Workflows that one count of the campaign stands for.
const HUNDRED: u32 = 100;
/// Workflows on their way at a time.
const AT_ONCE: usize = 200;
/// How long after its event a workflow is ended.
const ENDED_AFTER_MILLIS: u64 = 3_000;
/// The bridge is killed so often.
const KILL_AFTER_MILLIS: (u64, u64) = (200, 1_500);
/// How long a workflow may take to be there once its event was taken, and everything to arrive once nothing happens any more.
const DEADLINE: Duration = Duration::from_secs(600);
const SOURCE: &str = "shop";
/// One workflow an event; one an object, whose id may be used again after it has ended; one that a signal starts.
const RULES: &str = r#"[{name="each", types=["order.each"], workflow_id="each-{id}", workflow_type="Wait", task_queue="nobody"},
    {name="object", types=["order.object"], workflow_id="object-{data.n}", workflow_type="Wait", task_queue="nobody", reuse="allow_duplicate"},
    {name="signal", action="signal_with_start", types=["order.signal"], workflow_id="signal-{data.n}", workflow_type="Wait",
     task_queue="nobody", signal="s", reuse="allow_duplicate"},
    {name="worked", types=["order.worked"], workflow_id="worked-{data.n}", workflow_type="Complete", task_queue="work",
     reuse="allow_duplicate", transform=".data.n"},
    {name="timed", types=["order.timed"], workflow_id="timed-{data.n}", workflow_type="Wait", task_queue="nobody",
     reuse="allow_duplicate", execution_timeout_seconds=2}]"#;
const SETTINGS: [(&str, &str); 4] = [
    ("SIDECAR_OBSERVER__IDLE_SECONDS", "0.5"),
    ("SIDECAR_OBSERVER__BUSY_SECONDS", "0.5"),
    ("SIDECAR_OBSERVER__BACKLOG__SECONDS", "0"),
    ("SIDECAR_CALLS__CIRCUIT__PROBE_MAX_SECONDS", "1"),
];

/// F1, beside Temporal 1.32.
pub(crate) async fn every_event_is_one_workflow_with_one_end_on_1_32(trial: Trial) -> Result<Outcome> {
    every_event_is_one_workflow_with_one_end(trial, Release::New).await
}

/// F1, beside Temporal 1.29.
pub(crate) async fn every_event_is_one_workflow_with_one_end_on_1_29(trial: Trial) -> Result<Outcome> {
    every_event_is_one_workflow_with_one_end(trial, Release::Old).await
}

/// F1: events start workflows, a tenth of them comes twice, workflows end at random times by all kinds of ends, and the bridge
/// is killed again and again: every event has started one run, and its end is told once by its id.
async fn every_event_is_one_workflow_with_one_end(mut trial: Trial, release: Release) -> Result<Outcome> {
    if let Err(error) = release.binary() {
        return Ok(Outcome::skipped(format!("{error:#}")));
    }
    let total = trial.count * HUNDRED;
    let rules = RULES.replace('\n', " ");
    let settings: Vec<(&str, &str)> = SETTINGS.into_iter().chain([("SIDECAR_RULE", rules.as_str())]).collect();
    let mut bench = Bench::observing(release, TemporalOptions::default(), &settings).await?;
    bench.work("default").await?;

    let (sender, api) = (bench.rig.sender()?, bench.api.clone());
    let mut random = fastrand::Rng::with_seed(trial.random.u64(..));
    let orders: Vec<Order> = (0..total).map(|n| Order::new(n, &mut random)).collect();
    let expected: BTreeMap<String, &str> = orders.iter().map(|order| (order.workflow(), order.end())).collect();
    let living = tokio::spawn(async move {
        let lives = orders.into_iter().map(|order| order.live(sender.clone(), api.clone()));
        stream::iter(lives).buffer_unordered(AT_ONCE).try_collect::<()>().await
    });
    let mut kills = 0;
    while !living.is_finished() {
        trial.progress(kills);
        // Not waiting for luck: the random moment is the experiment.
        tokio::time::sleep(trial.millis(KILL_AFTER_MILLIS.0, KILL_AFTER_MILLIS.1)).await;
        bench.rig.kill().await?;
        bench.rig.start().await.with_context(|| format!("kill {}", kills + 1))?;
        kills += 1;
    }
    living.await??;

    bench.wait_at_temporal("delivered", u64::from(total), DEADLINE).await?;
    let total = usize::try_from(total)?;
    let told = bench.wait_told(total, DEADLINE).await?;
    let runs = bench.runs("default").await?;
    let workflows: BTreeSet<&String> = runs.iter().map(|(workflow, _)| workflow).collect();
    ensure!(runs.len() == total, "{} runs of {} workflows for {total} events", runs.len(), workflows.len());
    ensure!(workflows.into_iter().eq(expected.keys()), "other workflows were started than the events ask for");
    let ends: BTreeMap<String, &str> = told.iter().map(|end| (end.workflow().to_owned(), end.kind.as_str())).collect();
    let wrong = expected.iter().find(|(workflow, kind)| ends.get(*workflow) != Some(kind));
    ensure!(wrong.is_none(), "{wrong:?} was to be told, and {:?} was", wrong.map(|(workflow, _)| ends.get(workflow)));
    bench.nothing_more(total, 3.0).await?;
    let again = bench.rig.gateway.counts().received - total as u64;
    Ok(Outcome::new(
        trial.count,
        format!("{total} workflows, {kills} kills, one run and one end each, {again} told again"),
    ))
}

/// One event, and what becomes of its workflow.
struct Order {
    n: u32,
    kind: &'static str,
    comes_twice: bool,
    ended_after: Duration,
}

impl Order {
    fn new(n: u32, random: &mut fastrand::Rng) -> Self {
        let kinds = ["each", "object", "signal", "each", "object", "signal", "object", "signal", "worked", "timed"];
        Self {
            n,
            kind: kinds[random.usize(..kinds.len())],
            comes_twice: random.u8(..10) == 0,
            ended_after: Duration::from_millis(random.u64(..ENDED_AFTER_MILLIS)),
        }
    }

    fn key(&self) -> String {
        format!("o-{}", self.n)
    }

    /// The id that its rule gives its workflow.
    fn workflow(&self) -> String {
        match self.kind {
            "each" => format!("each-{}", EventId::derive(SOURCE, &self.key(), None)),
            kind => format!("{kind}-{}", self.n),
        }
    }

    /// How its workflow ends.
    fn end(&self) -> &'static str {
        match self.kind {
            "worked" => "temporal.workflow.completed",
            "timed" => "temporal.workflow.timed_out",
            _ => "temporal.workflow.terminated",
        }
    }

    async fn live(self, sender: EventSender, api: TemporalApi) -> Result<()> {
        let event = json!({
            "specversion": "1.0", "id": self.key(), "source": SOURCE, "type": format!("order.{}", self.kind),
            "data": { "n": self.n },
        });
        sender.taken(&event).await?;
        if self.comes_twice {
            sender.taken(&event).await?;
        }
        tokio::time::sleep(self.ended_after).await;
        if self.end() == "temporal.workflow.terminated" {
            terminate(&api, &self.workflow()).await?;
        }
        Ok(())
    }
}

/// Ends a workflow as soon as it is there.
async fn terminate(api: &TemporalApi, workflow: &str) -> Result<()> {
    let begin = std::time::Instant::now();
    loop {
        let Err(error) = api.terminate("default", workflow, "over").await else { return Ok(()) };
        let error = format!("{error:#}");
        if !error.contains("not found") || begin.elapsed() > DEADLINE {
            let seen: Result<Value> = api.get("default", &format!("/workflows/{workflow}")).await;
            bail!("{workflow} cannot be ended: {error}; {seen:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
