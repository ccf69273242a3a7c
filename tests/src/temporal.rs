//! The bridge beside a real Temporal, of two releases, and what a test does there through Temporal's own HTTP API: none of
//! it is our client.

mod api;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::try_join_all;
use kit_workbench::Moment;
use kit_workbench::process::{DaemonCommand, DaemonProcess};
use kit_workbench::raw::RawResponse;
use kit_workbench::temporal::{TemporalOptions, TemporalServer};
use serde_json::{Value, json};

pub use self::api::TemporalApi;
use crate::binaries::repository;
use crate::experiment::COUNTS_VARIABLE;
use crate::rig::Rig;

/// Names of the variables that say where the Python environments are.
const ENVIRONMENT: &str = "OUTRIGGER_TEMPORAL_VENV";
const OLD_ENVIRONMENT: &str = "OUTRIGGER_TEMPORAL_OLD_VENV";
/// Until the SDK has been loaded and polls.
const WORKER_DEADLINE: Duration = Duration::from_secs(60);
/// Requests to Temporal's HTTP API at a time.
const AT_ONCE: usize = 20;
/// The task queue of the worker.
pub const QUEUE: &str = "work";

/// Everything that the bridge asks of a server while it observes.
const ASKED: [&str; 7] = [
    "ListClosedWorkflowExecutions",
    "ListWorkflowExecutions",
    "GetWorkflowExecutionHistory",
    "DescribeWorkflowExecution",
    "DescribeTaskQueue",
    "DescribeNamespace",
    "GetSystemInfo",
];

/// A server's release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// 1.32.
    New,
    /// 1.29.
    Old,
}

fn environment(variable: &str) -> Result<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).context("the Python environments are made by: ./test temporal")
}

impl Release {
    /// Its program.
    ///
    /// # Errors
    /// The environments are not there.
    pub fn binary(self) -> Result<PathBuf> {
        let variable = if self == Self::New { ENVIRONMENT } else { OLD_ENVIRONMENT };
        Ok(environment(variable)?.join("bin/temporal"))
    }
}

/// A count for `./test`, or the one for a release where [`COUNTS_VARIABLE`] says so.
pub fn scaled(ordinary: usize, release: usize) -> usize {
    if std::env::var(COUNTS_VARIABLE).is_ok_and(|counts| counts == "release") { release } else { ordinary }
}

/// The end of a workflow as the gateway received it.
#[derive(Clone, Debug)]
pub struct Told {
    /// CloudEvents `id`.
    pub id: String,
    /// CloudEvents `type`.
    pub kind: String,
    /// CloudEvents `subject`.
    pub subject: String,
    /// CloudEvents `data`.
    pub data: Value,
    /// When it was received.
    pub at: Moment,
}

impl Told {
    /// The workflow's id.
    pub fn workflow(&self) -> &str {
        self.data["workflow_id"].as_str().unwrap_or_default()
    }

    /// How much later than the workflow ended it was received.
    ///
    /// # Errors
    /// It says no time.
    pub fn lateness(&self) -> Result<Duration> {
        let closed = self.data["close_time"].as_str().context("an end has a time")?;
        let closed: jiff::Timestamp = closed.parse()?;
        Ok(self.at.since(Moment::from_micros(u64::try_from(closed.as_microsecond())?)))
    }
}

/// A server, the bridge, and who they talk to.
#[derive(Debug)]
pub struct Bench {
    /// The server.
    pub server: TemporalServer,
    /// The bridge with its gateway.
    pub rig: Rig,
    /// The server's HTTP API.
    pub api: TemporalApi,
    worker: Option<DaemonProcess>,
}

impl Bench {
    /// A server that is there and a bridge that is not started yet.
    ///
    /// # Errors
    /// There is no such server, or no room for it.
    pub async fn new(release: Release, options: TemporalOptions, settings: &[(&str, &str)]) -> Result<Self> {
        let options = TemporalOptions { binary: release.binary()?, ..options };
        let server = TemporalServer::start(options).await?;
        Self::over(server, settings).await
    }

    /// The same with a server that may not be there yet.
    ///
    /// # Errors
    /// There is no room for the bridge.
    pub async fn over(server: TemporalServer, settings: &[(&str, &str)]) -> Result<Self> {
        let rig = Rig::bridge(&server.address(), settings).await?;
        let api = TemporalApi::new(server.http())?;
        Ok(Self { server, rig, api, worker: None })
    }

    /// A server, and a bridge that has begun to observe.
    ///
    /// # Errors
    /// As [`Self::new`], or the bridge does not begin.
    pub async fn observing(release: Release, options: TemporalOptions, settings: &[(&str, &str)]) -> Result<Self> {
        let mut bench = Self::new(release, options, settings).await?;
        bench.rig.start().await?;
        bench.observed().await?;
        Ok(bench)
    }

    /// Waits until the bridge has looked at what has closed once, since it was started.
    ///
    /// # Errors
    /// It does not.
    pub async fn observed(&self) -> Result<()> {
        let begin = Instant::now();
        loop {
            let metrics = self.rig.metrics().await?;
            if metrics.sum("observer_sweeps_total", &[("result", "done")]) >= 1.0 {
                return Ok(());
            }
            ensure!(begin.elapsed() < Duration::from_secs(30), "nothing is observed: {}", self.rig.end_of_log(5));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts the worker, whose workflows are in `tests/temporal/worker.py`; it polls when this returns.
    ///
    /// # Errors
    /// It does not.
    pub async fn work(&mut self, namespace: &str) -> Result<()> {
        let python = environment(ENVIRONMENT)?.join("bin/python");
        let script = repository().join("tests/temporal/worker.py");
        let arguments = [script.display().to_string(), self.server.address(), namespace.to_owned(), QUEUE.to_owned()];
        let mut worker = DaemonCommand::new(python).args(arguments).env("PYTHONDONTWRITEBYTECODE", "1").spawn()?;
        worker.wait_for_line(|line| line == "ready", WORKER_DEADLINE).await?;
        self.worker = Some(worker);
        Ok(())
    }

    /// How much the server was asked by whoever observes, since it was started.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn asked(&self) -> Result<u64> {
        let mut sum = 0;
        for operation in ASKED {
            sum += self.server.requests(operation).await?;
        }
        Ok(sum)
    }

    /// Posts to Temporal's HTTP API, below the namespace.
    ///
    /// # Errors
    /// It is not answered 200.
    pub async fn post(&self, namespace: &str, path: &str, body: &Value) -> Result<Value> {
        self.api.post(namespace, path, body).await
    }

    /// Asks Temporal's HTTP API, below the namespace.
    ///
    /// # Errors
    /// It is not answered 200.
    pub async fn get(&self, namespace: &str, path: &str) -> Result<Value> {
        self.api.get(namespace, path).await
    }

    /// Every run of a namespace: workflow and run, as far as Temporal's index knows them.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn runs(&self, namespace: &str) -> Result<Vec<(String, String)>> {
        let (mut runs, mut token) = (Vec::new(), String::new());
        loop {
            let page = self.get(namespace, &format!("/workflows?pageSize=500&nextPageToken={token}")).await?;
            for row in page["executions"].as_array().map(Vec::as_slice).unwrap_or_default() {
                let text = |name: &str| row["execution"][name].as_str().unwrap_or_default().to_owned();
                runs.push((text("workflowId"), text("runId")));
            }
            let next = page["nextPageToken"].as_str().unwrap_or_default();
            if next.is_empty() {
                return Ok(runs);
            }
            token = next.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
        }
    }

    /// The events of the newest run of a workflow.
    ///
    /// # Errors
    /// There is no such workflow.
    pub async fn history(&self, namespace: &str, workflow: &str) -> Result<Vec<Value>> {
        let history = self.get(namespace, &format!("/workflows/{workflow}/history?maximumPageSize=1000")).await?;
        Ok(history["history"]["events"].as_array().cloned().unwrap_or_default())
    }

    /// Sends a CloudEvent to the bridge, signed; returns what it is answered.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn send(&self, event: &Value) -> Result<RawResponse> {
        self.rig.send_event(event, false).await
    }

    /// Sends an event until it is taken, as every sender does; true where the bridge knew it.
    ///
    /// # Errors
    /// It is refused, or not taken within half a minute.
    pub async fn taken(&self, event: &Value) -> Result<bool> {
        self.rig.sender()?.taken(event).await
    }

    /// How many events are in a state at Temporal's sink.
    ///
    /// # Errors
    /// The bridge does not tell.
    pub async fn at_temporal(&self, state: &str) -> Result<u64> {
        let statistics = self.rig.api("/api/v1/statistics").await?;
        let sinks = statistics["sinks"].as_array().cloned().unwrap_or_default();
        let sink = sinks.into_iter().find(|sink| sink["name"] == "temporal").context("there is no sink temporal")?;
        sink[state].as_u64().with_context(|| format!("nothing is said about {state} in {sink}"))
    }

    /// Waits until so many events are in a state at Temporal's sink.
    ///
    /// # Errors
    /// They are not.
    pub async fn wait_at_temporal(&self, state: &str, wanted: u64, deadline: Duration) -> Result<()> {
        let begin = Instant::now();
        loop {
            let now = self.at_temporal(state).await;
            if now.as_ref().is_ok_and(|now| *now == wanted) {
                return Ok(());
            }
            if begin.elapsed() > deadline {
                let statistics = self.rig.api("/api/v1/statistics").await;
                bail!("{now:?} {state} instead of {wanted}: {statistics:?}\n{}", self.rig.end_of_log(15));
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Starts a workflow of `default`; returns its run. `more` has further members of the request.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn start(&self, id: &str, kind: &str, input: Value, more: Value) -> Result<String> {
        self.start_in("default", id, kind, input, more).await
    }

    /// As [`Self::start`], in any namespace.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn start_in(&self, namespace: &str, id: &str, kind: &str, input: Value, more: Value) -> Result<String> {
        let mut body = json!({ "workflowType": { "name": kind }, "taskQueue": { "name": QUEUE }, "input": [input] });
        if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
            body.extend(more);
        }
        let answer = self.post(namespace, &format!("/workflows/{id}"), &body).await?;
        Ok(answer["runId"].as_str().context("a run has an id")?.to_owned())
    }

    /// Signals a workflow of `default`.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn signal(&self, id: &str, signal: &str, input: Value) -> Result<()> {
        self.post("default", &format!("/workflows/{id}/signal/{signal}"), &json!({ "input": [input] })).await.map(drop)
    }

    /// Terminates a workflow of `default`.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn terminate(&self, id: &str, reason: &str) -> Result<()> {
        self.terminate_in("default", id, reason).await
    }

    /// As [`Self::terminate`], in any namespace.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn terminate_in(&self, namespace: &str, id: &str, reason: &str) -> Result<()> {
        self.api.terminate(namespace, id, reason).await
    }

    /// Starts so many workflows of `default` that nobody works on; returns their ids.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn start_idle(&self, name: &str, count: usize) -> Result<Vec<String>> {
        let ids: Vec<String> = (0..count).map(|number| format!("{name}-{number}")).collect();
        for chunk in ids.chunks(AT_ONCE) {
            try_join_all(chunk.iter().map(|id| self.start(id, "Wait", Value::Null, json!({})))).await?;
        }
        Ok(ids)
    }

    /// Terminates workflows of `default`, some at once.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn terminate_all(&self, ids: &[String]) -> Result<()> {
        for chunk in ids.chunks(AT_ONCE) {
            try_join_all(chunk.iter().map(|id| self.terminate(id, "over"))).await?;
        }
        Ok(())
    }

    /// Asks a workflow of `default` to end itself.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn cancel(&self, id: &str) -> Result<()> {
        self.post("default", &format!("/workflows/{id}/cancel"), &json!({})).await.map(drop)
    }

    /// What was told, each once by its id, in order of arrival.
    ///
    /// # Errors
    /// The gateway received something that is no event, or the same id with two contents.
    pub fn told(&self) -> Result<Vec<Told>> {
        let (mut told, mut places) = (Vec::<Told>::new(), HashMap::<String, usize>::new());
        for received in self.rig.gateway.received() {
            ensure!(received.signature_ok == Some(true), "an event is not signed");
            let body: Value = serde_json::from_slice(received.body.as_deref().unwrap_or_default())?;
            let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
            let event = Told {
                id: text("id"),
                kind: text("type"),
                subject: text("subject"),
                data: body["data"].clone(),
                at: received.at,
            };
            match places.get(&event.id).and_then(|place| told.get(*place)) {
                None => {
                    places.insert(event.id.clone(), told.len());
                    told.push(event);
                }
                Some(known) => ensure!(known.data == event.data, "{} came with two contents", event.id),
            }
        }
        Ok(told)
    }

    /// Waits until so many different events were told, and returns them.
    ///
    /// # Errors
    /// They are not told in time, or more are.
    pub async fn wait_told(&self, wanted: usize, deadline: Duration) -> Result<Vec<Told>> {
        let begin = Instant::now();
        loop {
            if self.rig.gateway.counts().received >= wanted as u64 {
                let told = self.told()?;
                if told.len() == wanted {
                    return Ok(told);
                }
                ensure!(told.len() < wanted, "{} were told instead of {wanted}: {:?}", told.len(), told.last());
            }
            if begin.elapsed() > deadline {
                let told = self.told()?;
                bail!("{} of {wanted} were told: {:?}\n{}", told.len(), told.last(), self.rig.end_of_log(10));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the journal has come to rest: nothing more is told than was.
    ///
    /// # Errors
    /// Something more is told.
    pub async fn nothing_more(&self, told: usize, looks: f64) -> Result<()> {
        let done =
            |metrics: &kit_workbench::metrics::Metrics| metrics.sum("observer_sweeps_total", &[("result", "done")]);
        let from = done(&self.rig.metrics().await?);
        let begin = Instant::now();
        while done(&self.rig.metrics().await?) < from + looks {
            ensure!(begin.elapsed() < Duration::from_secs(60), "the bridge does not look any more");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.drained().await?;
        let now = self.told()?.len();
        ensure!(now == told, "{now} were told instead of {told}");
        Ok(())
    }

    /// Waits until no sink has anything left to deliver.
    ///
    /// # Errors
    /// One has.
    pub async fn drained(&self) -> Result<()> {
        let begin = Instant::now();
        loop {
            let statistics = self.rig.api("/api/v1/statistics").await?;
            let sinks = statistics["sinks"].as_array().context("there are sinks")?;
            if sinks.iter().all(|sink| sink["pending"] == 0) {
                return Ok(());
            }
            ensure!(begin.elapsed() < Duration::from_secs(60), "not drained: {statistics}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
