//! The figures of the usage tracker.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use kit::secret::Secret;
use kit_lago::stand_in::billing::{AggregationType, LagoServer, Metric, Profile, Subscription};
use kit_workbench::scratch::free_address;
use serde_json::{Value, json};

use super::{Bench, MIB};
use crate::lago::{Came, METRIC, SUBSCRIPTIONS, THREADS, subscription};
use crate::measure::median;
use crate::record::{Bar, rounded};
use crate::servers::{API_KEY, PRODUCER, Receiver, Variant, python};
use crate::wrk::{self, Drive};

/// What Lago takes in one request.
const BATCH: usize = 100;
/// Producers that send batches at once.
const PRODUCERS: u32 = 16;
/// Events of `usage-drain` at most.
const DRAINED: u64 = 50_000;
/// How long Lago takes for a batch there.
const BATCH_MILLIS: u64 = 20;

impl Bench<'_> {
    /// Single events beside single webhooks of their size, both durable.
    pub(super) async fn usage_intake(&mut self) -> Result<()> {
        let lago = self.stage.start(Variant::Lago { millis: 0 }).await?;
        let tracker = Variant::Tracker { lago: lago.address, paused: true };
        let (events, webhooks) = (self.requests("events", 1)?, self.stage.small_webhooks());
        let mut ratios = Vec::new();
        for _ in 0..self.options.rounds {
            let theirs = self.driven("usage-intake", Variant::ALONE, self.webhooks(&webhooks, 64, false)).await?;
            let ours = self.driven("usage-intake", tracker, self.events(&events, 64)).await?;
            ratios.push(ours.seen.rate() / theirs.seen.rate());
        }
        lago.end().await?;
        let what = "single events over single webhooks, 64 connections";
        self.records.bar("usage-intake", what, median(ratios), Bar::AtLeast(0.9))
    }

    /// Events in batches beside the same rows inserted into SQLite as one would.
    pub(super) async fn usage_batch(&mut self) -> Result<()> {
        let lago = self.stage.start(Variant::Lago { millis: 0 }).await?;
        let tracker = Variant::Tracker { lago: lago.address, paused: true };
        let batches = self.requests("batches", BATCH)?;
        let mut ratios = Vec::new();
        for _ in 0..self.options.rounds {
            let path = self.stage.scratch.file("plain.db");
            let seconds = self.options.seconds;
            let plain = tokio::task::spawn_blocking(move || inserted(&path, seconds)).await??;
            self.records.put("usage-batch", "inserts into SQLite", json!({ "events_per_second": rounded(plain) }))?;
            let ran = self.driven("usage-batch", tracker, self.events(&batches, PRODUCERS)).await?;
            let ours = ran.seen.rate() * BATCH as f64;
            self.records.put("usage-batch", "usage tracker", json!({ "events_per_second": rounded(ours) }))?;
            ratios.push(ours / plain);
        }
        lago.end().await?;
        let what = "events in batches of 100 over inserts of the same rows";
        self.records.bar("usage-batch", what, median(ratios), Bar::AtLeast(0.5))
    }

    /// Queued events on their way to a Lago that takes its time, beside a client that has nothing else to do.
    pub(super) async fn usage_drain(&mut self) -> Result<()> {
        let queued = self.options.queued.min(DRAINED).next_multiple_of(BATCH as u64);
        let mut ratios = Vec::new();
        for _ in 0..self.options.rounds {
            let lago = self.stage.start(Variant::Lago { millis: BATCH_MILLIS }).await?;
            let made: Vec<Bytes> = bodies(queued).collect();
            let begin = Instant::now();
            post(&format!("http://{}", lago.address), API_KEY, THREADS, made.into_iter()).await?;
            let plain = begin.elapsed().as_secs_f64();
            self.drained("plain client", queued, plain, &lago, None).await?;
            lago.end().await?;

            let lago = self.stage.start(Variant::Lago { millis: BATCH_MILLIS }).await?;
            let receiver = self.stage.start(Variant::Tracker { lago: lago.address, paused: true }).await?;
            post(&format!("http://{}", receiver.address), PRODUCER, PRODUCERS as usize, bodies(queued)).await?;
            let (before, begin) = (receiver.usage()?, Instant::now());
            receiver.resume(&self.stage).await?;
            receiver.drained(queued as f64).await?;
            let ours = begin.elapsed().as_secs_f64();
            let used = receiver.usage()?.since(before).cpu_seconds;
            self.drained("usage tracker", queued, ours, &lago, Some(used)).await?;
            receiver.end().await?;
            lago.end().await?;
            ratios.push(plain / ours);
        }
        let what = format!("drain over a plain client, {THREADS} at once, {BATCH_MILLIS} ms a batch");
        self.records.bar("usage-drain", &what, median(ratios), Bar::AtLeast(0.7))
    }

    async fn drained(&mut self, who: &str, queued: u64, seconds: f64, lago: &Receiver, cpu: Option<f64>) -> Result<()> {
        let came = client()?.get(format!("http://{}/came", lago.address)).send().await?.bytes().await?;
        let came: Came = serde_json::from_slice(&came)?;
        ensure!(came.events == queued, "{who} has brought {} events of {queued}", came.events);
        let figures = json!({
            "events": queued, "seconds": rounded(seconds), "events_per_second": rounded(queued as f64 / seconds),
            "requests": came.requests, "bytes": came.bytes,
            "cpu_us_per_event": cpu.map(|seconds| rounded(seconds * 1e6 / queued as f64)),
        });
        self.records.put("usage-drain", who, figures)
    }

    /// Resident memory: with nothing to do, and with many events that wait for a Lago which is away.
    pub(super) async fn usage_memory(&mut self) -> Result<()> {
        let lago = self.stage.start(Variant::Lago { millis: 0 }).await?;
        let receiver = self.stage.start(Variant::Tracker { lago: lago.address, paused: false }).await?;
        let idle = receiver.usage()?.rss_bytes as f64 / MIB;
        self.records.bar("usage-memory", "MiB idle", idle, Bar::AtMost(12.0))?;
        receiver.end().await?;
        lago.end().await?;

        let queued = (5 * self.options.queued).next_multiple_of(BATCH as u64);
        let folder = self.stage.scratch.file("usage-queued");
        std::fs::create_dir(&folder)?;
        let journal = folder.join("journal.db");
        let away = Variant::Tracker { lago: free_address()?, paused: false };
        let receiver = self.stage.start_on(away, folder.clone(), &journal).await?;
        let begin = Instant::now();
        post(&format!("http://{}", receiver.address), PRODUCER, PRODUCERS as usize, bodies(queued)).await?;
        let seconds = begin.elapsed().as_secs_f64();
        let used = receiver.usage()?;
        let figures = json!({
            "events": queued, "seconds": rounded(seconds), "bytes": std::fs::metadata(&journal)?.len(),
            "rss_mib": rounded(used.rss_bytes as f64 / MIB), "peak_rss_mib": rounded(used.peak_rss_bytes as f64 / MIB),
        });
        self.records.put("usage-memory", "queued", figures)?;
        let what = format!("MiB with {queued} queued");
        self.records.bar("usage-memory", &what, used.rss_bytes as f64 / MIB, Bar::AtMost(96.0))?;
        receiver.kill().await?;

        let mut ready = Vec::new();
        let mut rss = Vec::new();
        for _ in 0..self.options.rounds {
            let receiver = self.stage.start_on(away, folder.clone(), &journal).await?;
            let used = receiver.usage()?;
            ready.push(receiver.ready.as_secs_f64() * 1000.0);
            rss.push(used.rss_bytes as f64 / MIB);
            let figures = json!({
                "ready_ms": rounded(receiver.ready.as_secs_f64() * 1000.0),
                "rss_mib": rounded(used.rss_bytes as f64 / MIB),
                "peak_rss_mib": rounded(used.peak_rss_bytes as f64 / MIB),
            });
            self.records.put("usage-memory", "restart with them queued", figures)?;
            receiver.kill().await?;
        }
        std::fs::remove_dir_all(&folder)?;
        let what = format!("MiB after a restart with {queued} queued");
        self.records.bar("usage-memory", &what, median(rss), Bar::AtMost(96.0))?;
        let what = format!("ms from start to ready with {queued} queued");
        self.records.put("usage-memory", "median", json!({ "what": what, "seen": rounded(median(ready)) }))
    }

    /// Lago's own client for Python, straight to a stand-in for Lago and by way of the tracker.
    pub(super) async fn usage_client(&mut self) -> Result<()> {
        let Some(python) = python() else {
            let why = "there is no environment with lago-python-client: use tests/load/run";
            return self.records.put("usage-client", "missing", json!({ "why": why }));
        };
        let lago = LagoServer::start(Profile::V1_39, Secret::from(API_KEY.to_owned())).await?;
        lago.put_metric(Metric::new(METRIC, AggregationType::Sum, Some(METRIC)));
        let started = "2024-01-01T00:00:00Z".parse()?;
        for number in 0..SUBSCRIPTIONS {
            lago.put_subscription(Subscription::active(&subscription(number), "customer", "plan", started));
        }
        let receiver = self.stage.start(Variant::Tracker { lago: lago.address(), paused: false }).await?;
        let (mut sent, mut through) = (0, 0);
        for events in [1, BATCH] {
            for (who, to, key) in [("direct", lago.address(), API_KEY), ("by the tracker", receiver.address, PRODUCER)]
            {
                let seconds = self.options.seconds.max(3);
                let seen = published_client(&python, &format!("http://{to}"), key, events, seconds).await?;
                let made = seen["events"].as_u64().context("the client does not say how many it has sent")?;
                sent += made;
                through += if key == PRODUCER { made } else { 0 };
                self.records.put("usage-client", &format!("{who}, {events} a call"), seen)?;
            }
        }
        receiver.drained(through as f64).await?;
        let billed = lago.ledger().len() as u64;
        ensure!(billed == sent, "{sent} events were sent and {billed} would be billed");
        receiver.end().await
    }

    fn events<'a>(&self, prepared: &'a Path, connections: u32) -> Drive<'a> {
        Drive { script: wrk::USAGE, prepared, connections, seconds: self.options.seconds, fresh: false }
    }

    /// Producers' requests with so many events each, as `usage.lua` reads them.
    fn requests(&self, name: &str, events: usize) -> Result<PathBuf> {
        let mut file = Vec::new();
        for number in 0..SUBSCRIPTIONS / events.min(16) {
            let ids =
                (0..events).map(|place| if events == 1 { "{id}".to_owned() } else { format!("{{id}}-{place:02}") });
            let all: Vec<String> = ids.zip(number..).map(|(id, number)| event(&id, number)).collect();
            let (path, body) = match all.as_slice() {
                [one] => ("/api/v1/events", format!(r#"{{"event":{one}}}"#)),
                all => ("/api/v1/events/batch", format!(r#"{{"events":[{}]}}"#, all.join(","))),
            };
            let length = body.len() + events * (wrk::ID_LENGTH - "{id}".len());
            let request = format!(
                "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {PRODUCER}\r\n\
                 Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            file.extend_from_slice(format!("{}\n{request}", request.len()).as_bytes());
        }
        Ok(self.stage.scratch.write(name, file)?)
    }
}

/// An event as producers send it and the tracker sends it on, about 250 bytes.
fn event(id: &str, number: usize) -> String {
    format!(
        r#"{{"transaction_id":"{id}","external_subscription_id":"{}","code":"{METRIC}","timestamp":1732000000.25,"properties":{{"{METRIC}":{}.{:02},"region":"eu-central-1","tier":"standard","operation":"object.read","cached":false}}}}"#,
        subscription(number),
        100 + number % 900,
        number % 100,
    )
}

/// An id as long as those of `usage.lua`, and its place in a batch.
fn id(word: &str, number: u64) -> String {
    let batch = BATCH as u64;
    format!("{word}-00-{:09}-{:02}", number / batch, number % batch)
}

/// Batches of so many events together, each made when it is asked for.
fn bodies(events: u64) -> impl Iterator<Item = Bytes> + Send {
    let (word, batch) = (uuid::Uuid::new_v4().simple().to_string(), BATCH as u64);
    (0..events / batch).map(move |nth| {
        let numbers = nth * batch..(nth + 1) * batch;
        let events: Vec<String> =
            numbers.map(|number| event(&id(&word, number), usize::try_from(number).unwrap_or_default())).collect();
        Bytes::from(format!(r#"{{"events":[{}]}}"#, events.join(",")))
    })
}

pub(super) fn client() -> Result<reqwest::Client> {
    Ok(reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(Duration::from_secs(60)).build()?)
}

/// Sends batches, so many at once; each must be taken.
async fn post(url: &str, key: &str, at_once: usize, bodies: impl Iterator<Item = Bytes> + Send) -> Result<()> {
    // Not all are made at once: there may be more than fit in memory.
    let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(2_048);
    let (receiver, client) = (Arc::new(tokio::sync::Mutex::new(receiver)), client()?);
    let url = format!("{url}/api/v1/events/batch");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..at_once {
        let (receiver, client, url, key) = (Arc::clone(&receiver), client.clone(), url.clone(), key.to_owned());
        tasks.spawn(async move {
            loop {
                let next = receiver.lock().await.recv().await;
                let Some(body) = next else { return anyhow::Ok(()) };
                let request = client.post(&url).bearer_auth(&key).header("Content-Type", "application/json").body(body);
                let answer = request.send().await?;
                let status = answer.status();
                let text = answer.bytes().await?;
                ensure!(status.is_success(), "{url} answers {status}: {}", String::from_utf8_lossy(&text));
            }
        });
    }
    // Once all tasks have ended, for whatever reason, nobody receives.
    drop(receiver);
    for body in bodies {
        if sender.send(body).await.is_err() {
            break;
        }
    }
    drop(sender);
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// Rows a second that are inserted by hundreds, each hundred synced, into a table that knows each event once.
fn inserted(path: &Path, seconds: u64) -> Result<f64> {
    let mut database = rusqlite::Connection::open(path)?;
    database.pragma_update(None, "journal_mode", "WAL")?;
    database.pragma_update(None, "synchronous", "FULL")?;
    database.execute_batch(
        "CREATE TABLE events (id INTEGER PRIMARY KEY, subscription TEXT NOT NULL, transaction_id TEXT NOT NULL,
         body BLOB NOT NULL); CREATE UNIQUE INDEX once ON events (subscription, transaction_id)",
    )?;
    let word = uuid::Uuid::new_v4().simple().to_string();
    let (begin, mut rows) = (Instant::now(), 0_u64);
    while begin.elapsed() < Duration::from_secs(seconds) {
        let transaction = database.transaction()?;
        {
            let mut insert = transaction
                .prepare_cached("INSERT INTO events (subscription, transaction_id, body) VALUES (?1, ?2, ?3)")?;
            for number in rows..rows + BATCH as u64 {
                let (id, number) = (id(&word, number), usize::try_from(number)?);
                insert.execute((subscription(number), &id, event(&id, number).into_bytes()))?;
            }
        }
        transaction.commit()?;
        rows += BATCH as u64;
    }
    let rate = rows as f64 / begin.elapsed().as_secs_f64();
    drop(database);
    for ending in ["", "-wal", "-shm"] {
        let file = PathBuf::from(format!("{}{ending}", path.display()));
        if file.exists() {
            std::fs::remove_file(file)?;
        }
    }
    Ok(rate)
}

/// Runs `peers/usage_client.py`: what it says of its calls.
async fn published_client(python: &Path, url: &str, key: &str, events: usize, seconds: u64) -> Result<Value> {
    let script = outrigger_tests::binaries::repository().join("tests/load/peers/usage_client.py");
    let output = tokio::process::Command::new(python)
        .arg(script)
        .args([url, key, METRIC, &events.to_string(), &seconds.to_string()])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .kill_on_drop(true)
        .output()
        .await
        .context("run the Python client")?;
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.trim()).with_context(|| format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}
