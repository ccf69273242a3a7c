//! What is measured, and the bars.

mod authentik;
mod fanout;
mod replicas;
mod temporal;
mod usage;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit_workbench::load::{self, LoadControl, LoadOptions, Pacing, Target};
use serde_json::{Value, json};

use crate::backlog;
use crate::measure::{median, sync_ms};
use crate::record::{Bar, Records, rounded, say};
use crate::servers::{Receiver, Stage, Variant};
use crate::wrk::{self, Drive, Seen};

/// What to run.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) wanted: Vec<String>,
    pub(crate) rounds: u32,
    pub(crate) seconds: u64,
    pub(crate) queued: u64,
    pub(crate) events: u64,
    pub(crate) json: Option<PathBuf>,
}

const MIB: f64 = 1024.0 * 1024.0;
/// Pairs of which the gate on processor time takes the median.
const PAIRS: usize = 5;
/// The sink that every processor has.
const GATEWAY: &str = "gateway";
const SECTIONS: [&str; 25] = [
    "counts",
    "accept",
    "deliver",
    "jwt",
    "fresh",
    "peers",
    "latency",
    "open",
    "restart",
    "memory",
    "size",
    "usage-intake",
    "usage-batch",
    "usage-drain",
    "usage-memory",
    "usage-client",
    "authentik",
    "routes",
    "amqp-forward",
    "amqp-accept",
    "amqp-memory",
    "amqp-peer",
    "postgres",
    "replicas",
    "temporal",
];

/// Runs the wanted sections; true when every bar holds.
pub(crate) fn run(options: &Options) -> Result<bool> {
    for wanted in &options.wanted {
        ensure!(SECTIONS.contains(&wanted.as_str()), "no section {wanted}: there are {}", SECTIONS.join(", "));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut bench = Bench { stage: Stage::new()?, records: Records::new(options.json.clone()), options };
    runtime.block_on(async {
        for section in SECTIONS {
            if options.wanted.is_empty() && section != "counts" || options.wanted.iter().any(|wanted| wanted == section)
            {
                say(&format!("# {section}\n"));
                bench.section(section).await.with_context(|| format!("section {section}"))?;
            }
        }
        anyhow::Ok(())
    })?;
    Ok(bench.records.finish())
}

struct Bench<'a> {
    stage: Stage,
    records: Records,
    options: &'a Options,
}

/// One variant's run in a round.
struct Ran {
    seen: Seen,
    cpu_us: f64,
    written: f64,
    rss_mib: f64,
    /// Events a durable commit.
    group: f64,
    /// Accepted and, where it delivers, delivered a second, the rest after the load included.
    end_to_end: f64,
}

impl Bench<'_> {
    async fn section(&mut self, name: &str) -> Result<()> {
        match name {
            "counts" => self.counts().await,
            "accept" => self.accept().await,
            "deliver" => self.deliver().await,
            "jwt" => self.jwt().await,
            "fresh" => self.fresh().await,
            "peers" => self.peers().await,
            "latency" => self.latency().await,
            "open" => self.open().await,
            "restart" => self.restart().await,
            "memory" => self.memory().await,
            "usage-intake" => self.usage_intake().await,
            "usage-batch" => self.usage_batch().await,
            "usage-drain" => self.usage_drain().await,
            "usage-memory" => self.usage_memory().await,
            "usage-client" => self.usage_client().await,
            "authentik" => self.authentik().await,
            "routes" => self.routes().await,
            "amqp-forward" => self.amqp_forward().await,
            "amqp-accept" => self.amqp_accept().await,
            "amqp-memory" => self.amqp_memory().await,
            "amqp-peer" => self.amqp_peer().await,
            "postgres" => self.postgres().await,
            "replicas" => self.replicas().await,
            "temporal" => self.temporal().await,
            _ => self.size(),
        }
    }

    /// A folder for a run, and the journal that is to be in it.
    fn empty(&self, name: &str) -> Result<(PathBuf, PathBuf)> {
        let folder = self.stage.scratch.file(&format!("{name}-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir(&folder)?;
        let journal = folder.join("journal.db");
        Ok((folder, journal))
    }

    /// Starts a variant, drives it with webhooks, ends it, and records what was seen.
    async fn ran(&mut self, section: &str, variant: Variant, connections: u32, fresh: bool) -> Result<Ran> {
        let webhooks = self.stage.webhooks(variant);
        self.driven(section, variant, self.webhooks(&webhooks, connections, fresh)).await
    }

    fn webhooks<'a>(&self, prepared: &'a std::path::Path, connections: u32, fresh: bool) -> Drive<'a> {
        Drive { script: wrk::WEBHOOKS, prepared, connections, seconds: self.options.seconds, fresh }
    }

    /// The same with anything.
    async fn driven(&mut self, section: &str, variant: Variant, drive: Drive<'_>) -> Result<Ran> {
        let receiver = self.stage.start(variant).await?;
        let Drive { connections, fresh, .. } = drive;
        let before = receiver.usage()?;
        let begin = Instant::now();
        let seen = wrk::drive(receiver.address, drive).await?;
        let mut group = 0.0;
        let mut end_to_end = 0.0;
        if receiver.has_metrics() {
            let metrics = receiver.metrics().await?;
            let commits = metrics.sum("journal_group_events_count", &[]);
            group = metrics.sum("journal_group_events_sum", &[]) / commits.max(1.0);
            if variant.delivers() {
                let accepted = metrics.sum("lago_webhooks_total", &[("result", "accepted")]);
                receiver.drained(accepted).await?;
                end_to_end = accepted / begin.elapsed().as_secs_f64();
            }
        }
        let used = receiver.usage()?.since(before);
        let per_event = |value: f64| value / seen.requests as f64;
        let ran = Ran {
            seen,
            cpu_us: per_event(used.cpu_seconds * 1e6),
            written: per_event(used.written_bytes as f64),
            rss_mib: used.rss_bytes as f64 / MIB,
            group,
            end_to_end,
        };
        receiver.end().await?;
        ensure!(seen.not_2xx == 0 && seen.broken == 0, "{}: {seen:?}", variant.name());
        let mut figures = json!({
            "connections": connections, "kept": !fresh, "rate": rounded(seen.rate()), "requests": seen.requests,
            "p50_ms": seen.p50_ms, "p99_ms": seen.p99_ms, "p999_ms": seen.p999_ms, "cpu_us_per_event": rounded(ran.cpu_us),
            "rss_mib": rounded(ran.rss_mib), "written_bytes_per_event": ran.written.round(),
        });
        if let Value::Object(figures) = &mut figures {
            if group > 0.0 {
                figures.insert("events_per_commit".into(), json!(rounded(group)));
            }
            if end_to_end > 0.0 {
                figures.insert("end_to_end_rate".into(), json!(rounded(end_to_end)));
            }
        }
        self.records.put(section, variant.name(), figures)?;
        Ok(ran)
    }

    /// What `./test` gates on: counts, which do not depend on how busy the machine is.
    async fn counts(&mut self) -> Result<()> {
        let ours = self.ran("counts", Variant::DELIVERING, 64, false).await?;
        let at = "at 64 connections, delivering";
        self.records.bar("counts", &format!("events a durable commit {at}"), ours.group, Bar::AtLeast(10.0))?;
        self.records.bar("counts", &format!("bytes written an event {at}"), ours.written, Bar::AtMost(12_000.0))?;
        // Time on a processor is no count: neighbours that share its caches make it longer, the one more than the
        // other. Hence pairs, and their median.
        let mut cpu = Vec::new();
        for _ in 0..PAIRS {
            let bare = self.ran("counts", Variant::Bare, 64, false).await?.cpu_us;
            cpu.push(self.ran("counts", Variant::ALONE, 64, false).await?.cpu_us / bare.max(0.1));
        }
        let what = "CPU of a durable accept over the bare handler's";
        self.records.bar("counts", what, median(cpu), Bar::AtMost(5.0))?;
        let syncs = self.syncs_per_commit().await?;
        self.records.bar("counts", "syncs a durable commit", syncs, Bar::AtMost(1.1))
    }

    /// Counts syncs with strace while webhooks are sent. Checkpoints have two of their own, one in a
    /// thousand pages.
    async fn syncs_per_commit(&mut self) -> Result<f64> {
        let receiver = self.stage.start(Variant::ALONE).await?;
        let commits = async || anyhow::Ok(receiver.metrics().await?.sum("journal_group_events_count", &[]));
        let output = self.stage.scratch.file("syncs");
        let mut strace = tokio::process::Command::new("strace")
            .args(["-f", "-qq", "-e", "trace=fsync,fdatasync", "-o"])
            .arg(&output)
            .args(["-p", &receiver.pid().to_string()])
            .kill_on_drop(true)
            .spawn()
            .context("run strace (Debian package strace)")?;
        let begin = Instant::now();
        loop {
            let status = std::fs::read_to_string(format!("/proc/{}/status", receiver.pid()))?;
            if status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0")) {
                break;
            }
            ensure!(begin.elapsed() < Duration::from_secs(10), "strace does not attach");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let before = commits().await?;
        let webhooks = self.stage.webhooks(Variant::ALONE);
        let drive = Drive { seconds: 2, ..self.webhooks(&webhooks, 64, false) };
        wrk::drive(receiver.address, drive).await?;
        let made = commits().await? - before;
        if let Some(id) = strace.id() {
            // SIGTERM makes strace let go and write what it has.
            tokio::process::Command::new("kill").arg(id.to_string()).status().await?;
        }
        strace.wait().await?;
        receiver.end().await?;
        let syncs = std::fs::read_to_string(output)?.lines().filter(|line| line.contains("sync(")).count();
        Ok(syncs as f64 / made.max(1.0))
    }

    /// Durable, verified accept beside the bare handler.
    async fn accept(&mut self) -> Result<()> {
        for (connections, bar) in [(64, 0.35), (256, 0.55)] {
            let (mut alone, mut delivering, mut storing_nothing) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..self.options.rounds {
                let bare = self.ran("accept", Variant::Bare, connections, false).await?.seen.rate();
                let nothing = Variant::NullJournal { delivering: false };
                storing_nothing.push(self.ran("accept", nothing, connections, false).await?.seen.rate() / bare);
                alone.push(self.ran("accept", Variant::ALONE, connections, false).await?.seen.rate() / bare);
                delivering.push(self.ran("accept", Variant::DELIVERING, connections, false).await?.seen.rate() / bare);
            }
            let what = format!("accept over bare handler, {connections} connections");
            self.records.bar("accept", &what, median(alone), Bar::AtLeast(bar))?;
            // What is left when the journal costs nothing: no journal gets beyond.
            let what = format!("accept without storing over bare handler, {connections} connections");
            self.records.put("accept", "ratio", json!({ "what": what, "seen": rounded(median(storing_nothing)) }))?;
            let what = format!("accept while delivering over bare handler, {connections} connections");
            self.records.put("accept", "ratio", json!({ "what": what, "seen": rounded(median(delivering)) }))?;
        }
        Ok(())
    }

    /// From the first request to the last delivery, beside the same over a journal that stores nothing.
    async fn deliver(&mut self) -> Result<()> {
        let (mut ratios, mut rates) = (Vec::new(), Vec::new());
        for _ in 0..self.options.rounds {
            let null = self.ran("deliver", Variant::NullJournal { delivering: true }, 64, false).await?.end_to_end;
            let ours = self.ran("deliver", Variant::DELIVERING, 64, false).await?.end_to_end;
            ratios.push(ours / null);
            rates.push(ours);
        }
        self.records.put("deliver", "rate", json!({ "end_to_end_rate": rounded(median(rates)) }))?;
        self.records.bar("deliver", "end to end over the same without storing", median(ratios), Bar::AtLeast(0.6))
    }

    async fn jwt(&mut self) -> Result<()> {
        let mut ratios = Vec::new();
        for _ in 0..self.options.rounds {
            let hmac = self.ran("jwt", Variant::ALONE, 64, false).await?.seen.rate();
            ratios.push(self.ran("jwt", Variant::JWT, 64, false).await?.seen.rate() / hmac);
        }
        self.records.bar("jwt", "accept of tokens over accept of HMAC", median(ratios), Bar::AtLeast(0.4))
    }

    /// One connection a request, as Lago sends.
    async fn fresh(&mut self) -> Result<()> {
        let mut ratios = Vec::new();
        for _ in 0..self.options.rounds {
            let bare = self.ran("fresh", Variant::Bare, 64, true).await?.seen.rate();
            ratios.push(self.ran("fresh", Variant::ALONE, 64, true).await?.seen.rate() / bare);
        }
        let what = "accept over bare handler, one connection a request";
        self.records.put("fresh", "ratio", json!({ "what": what, "seen": rounded(median(ratios)) }))
    }

    async fn peers(&mut self) -> Result<()> {
        let peers = [Variant::FastApi, Variant::Webhook { waits: false }, Variant::Webhook { waits: true }];
        let mut ratios = vec![Vec::new(); peers.len()];
        for _ in 0..self.options.rounds {
            let ours = self.ran("peers", Variant::ALONE, 64, false).await?.seen.rate();
            for (peer, ratios) in peers.iter().zip(&mut ratios) {
                if peer.missing().is_none() {
                    ratios.push(ours / self.ran("peers", *peer, 64, false).await?.seen.rate());
                }
            }
        }
        for (peer, ratios) in peers.iter().zip(ratios) {
            let what = format!("accept over {}", peer.name());
            match peer.missing() {
                Some(reason) => self.records.put("peers", "missing", json!({ "what": what, "why": reason }))?,
                // The one that is as durable as we are has a bar.
                None if *peer == Variant::FastApi => {
                    self.records.bar("peers", &what, median(ratios), Bar::AtLeast(10.0))?;
                }
                None => self.records.put("peers", "ratio", json!({ "what": what, "seen": rounded(median(ratios)) }))?,
            }
        }
        Ok(())
    }

    /// What one durable answer costs when nobody else waits, beside one synced append.
    async fn latency(&mut self) -> Result<()> {
        let mut ratios = Vec::new();
        for _ in 0..self.options.rounds {
            let (p50, p99) = sync_ms(self.stage.scratch.path(), 500)?;
            self.records.put("latency", "4 KiB appended and synced", json!({ "p50_ms": p50, "p99_ms": p99 }))?;
            ratios.push(self.ran("latency", Variant::ALONE, 2, false).await?.seen.p50_ms / p50);
        }
        self.records.bar("latency", "p50 at 2 connections over one synced append", median(ratios), Bar::AtMost(2.0))
    }

    /// Fixed rates; latency counts from when a request was due.
    async fn open(&mut self) -> Result<()> {
        for rate in [500, 1_000, 2_000] {
            let (mut p99, mut p999) = (Vec::new(), Vec::new());
            for _ in 0..self.options.rounds {
                let receiver = self.stage.start(Variant::DELIVERING).await?;
                let report = self.paced(&receiver, rate, u64::from(rate) * self.options.seconds.max(10)).await?;
                let rss = receiver.usage()?.rss_bytes as f64 / MIB;
                receiver.end().await?;
                let latency = report.latency_ms;
                let figures = json!({
                    "per_second": rate, "requests": report.requests, "p50_ms": rounded(latency.p50),
                    "p99_ms": rounded(latency.p99), "p999_ms": rounded(latency.p999), "max_ms": rounded(latency.max),
                    "rss_mib": rounded(rss),
                });
                self.records.put("open", Variant::DELIVERING.name(), figures)?;
                p99.push(latency.p99);
                p999.push(latency.p999);
            }
            if rate == 2_000 {
                self.records.bar("open", "p99 in ms at 2,000/s, delivering", median(p99), Bar::AtMost(15.0))?;
            }
            let figures = json!({ "what": format!("p99.9 in ms at {rate}/s"), "seen": rounded(median(p999)) });
            self.records.put("open", "median", figures)?;
        }
        Ok(())
    }

    async fn paced(&self, receiver: &Receiver, rate: u32, requests: u64) -> Result<load::LoadReport> {
        let options = LoadOptions {
            connections: 32,
            pacing: Pacing::Open { per_second: f64::from(rate) },
            requests: Some(requests),
            ..LoadOptions::new(Target::new(receiver.address, "/webhooks/lago"))
        };
        let pool = Arc::new(self.stage.pool(false)?);
        let report = load::run(options, pool, &LoadControl::new()).await?.report;
        ensure!(report.ok == report.requests, "not all were taken: {:?}", report.errors);
        Ok(report)
    }

    /// From exec to ready, and how fast a backlog goes out.
    async fn restart(&mut self) -> Result<()> {
        let mut empty = Vec::new();
        for _ in 0..self.options.rounds.max(5) {
            let receiver = self.stage.start(Variant::DELIVERING).await?;
            empty.push(receiver.ready.as_secs_f64() * 1000.0);
            receiver.end().await?;
        }
        self.records.bar("restart", "ms from start to ready, empty", median(empty), Bar::AtMost(300.0))?;

        let folder = self.stage.scratch.file("backlog");
        std::fs::create_dir(&folder)?;
        let journal = folder.join("journal.db");
        let queued = self.options.queued;
        let pool = self.stage.pool(false)?;
        let begin = Instant::now();
        let path = journal.clone();
        tokio::task::spawn_blocking(move || backlog::make(&path, &pool, queued, &[GATEWAY])).await??;
        let bytes = std::fs::metadata(&journal)?.len();
        let figures = json!({ "events": queued, "seconds": rounded(begin.elapsed().as_secs_f64()), "bytes": bytes });
        self.records.put("restart", "backlog made", figures)?;
        let mut ready = Vec::new();
        for _ in 0..self.options.rounds.max(5) {
            // Paused is kept: nothing is delivered meanwhile.
            let receiver = self.stage.start_on(Variant::ALONE, folder.clone(), &journal).await?;
            ready.push(receiver.ready.as_secs_f64() * 1000.0);
            let rss = receiver.usage()?.rss_bytes as f64 / MIB;
            let figures =
                json!({ "ready_ms": rounded(receiver.ready.as_secs_f64() * 1000.0), "rss_mib": rounded(rss) });
            self.records.put("restart", "start with a backlog", figures)?;
            receiver.kill().await?;
        }
        let what = format!("ms from start to ready with {queued} queued");
        self.records.bar("restart", &what, median(ready), Bar::AtMost(2_000.0))?;

        let receiver = self.stage.start_on(Variant::ALONE, folder, &journal).await?;
        let begin = Instant::now();
        receiver.resume(&self.stage).await?;
        receiver.drained(queued as f64).await?;
        let seconds = begin.elapsed().as_secs_f64();
        let rss = receiver.usage()?.rss_bytes as f64 / MIB;
        let figures = json!({ "events": queued, "seconds": rounded(seconds), "rate": rounded(queued as f64 / seconds), "rss_mib": rounded(rss) });
        self.records.put("restart", "backlog drained to a bare handler", figures)?;
        receiver.end().await
    }

    async fn memory(&mut self) -> Result<()> {
        let receiver = self.stage.start(Variant::DELIVERING).await?;
        let rss = |receiver: &Receiver| anyhow::Ok(receiver.usage()?.rss_bytes as f64 / MIB);
        self.records.bar("memory", "MiB idle", rss(&receiver)?, Bar::AtMost(12.0))?;
        receiver.end().await?;

        let receiver = self.stage.start(Variant::DELIVERING).await?;
        let webhooks = self.stage.webhooks(Variant::DELIVERING);
        let seen = wrk::drive(receiver.address, self.webhooks(&webhooks, 256, false)).await?;
        receiver.drained(seen.requests as f64).await?;
        self.records.bar("memory", "MiB after 256 connections", rss(&receiver)?, Bar::AtMost(40.0))?;
        receiver.end().await?;

        let receiver = self.stage.start(Variant::DELIVERING).await?;
        let events = self.options.events;
        let report = self.paced(&receiver, 1_000, events).await?;
        let metrics = receiver.metrics().await?;
        let used = metrics.sum("process_resident_memory_bytes", &[]).max(receiver.usage()?.rss_bytes as f64) / MIB;
        let figures = json!({ "events": events, "p99_ms": rounded(report.latency_ms.p99), "rss_mib": rounded(used) });
        self.records.put("memory", "1,000/s", figures)?;
        self.records.bar("memory", &format!("MiB after {events} at 1,000/s"), used, Bar::AtMost(64.0))?;
        receiver.end().await?;

        let pool = self.stage.pool(false)?;
        let folder = self.stage.scratch.file("keys");
        std::fs::create_dir(&folder)?;
        let journal = folder.join("journal.db");
        let path = journal.clone();
        tokio::task::spawn_blocking(move || backlog::make(&path, &pool, 500_000, &[GATEWAY])).await??;
        let receiver = self.stage.start_on(Variant::ALONE, folder, &journal).await?;
        receiver.observed(500_000.0).await?;
        let metrics = receiver.metrics().await?;
        let (bytes, keys) = (metrics.sum("journal_dedupe_memory_bytes", &[]), metrics.sum("journal_dedupe_keys", &[]));
        self.records.bar("memory", "bytes a remembered key", bytes / keys.max(1.0), Bar::AtMost(45.0))?;
        receiver.end().await
    }

    fn size(&mut self) -> Result<()> {
        let name = "OUTRIGGER_LOAD_STATIC";
        let Some(path) = std::env::var_os(name) else {
            return self.records.put("size", "missing", json!({ "why": format!("{name} names no binary") }));
        };
        let bytes = std::fs::metadata(&path).with_context(|| PathBuf::from(path).display().to_string())?.len();
        self.records.bar("size", "MB of the static binary", bytes as f64 / 1e6, Bar::AtMost(13.0))
    }
}
