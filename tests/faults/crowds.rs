//! Crowds at the door: slow senders, idle connections, and no file descriptors or threads left.

mod thread_limit;

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt as _;
use kit_workbench::gateway::Behaviour;
use kit_workbench::ledger::Ledger;
use kit_workbench::load::{self, LoadControl, LoadOptions, LoadReport, Pacing};
use kit_workbench::raw::{self, RawConnection};
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::named;
use outrigger_tests::rig::{Mode, REQUEST_DEADLINE, Rig};
use thread_limit::ThreadLimit;
use tokio::task::JoinSet;

const MIB: u64 = 1 << 20;
/// Slow connections at the same time.
const SLOW: usize = 4_000;
const IDLE: usize = 10_000;
/// What idle connections may cost together: 8 KiB each, and the buffers of the crowd's arrival.
const IDLE_RSS: u64 = 96 * MIB;
/// Real webhooks per second beside a crowd.
const GOOD_PER_SECOND: f64 = 200.0;
/// A p99 below this is fine whatever it was before: the crowd itself runs on the same machine.
const P99_FLOOR_MS: f64 = 50.0;
/// Connections opened side by side; the kernel's queue of the listener holds more.
const OPENING: usize = 500;

/// Real webhooks for so long, each on a connection of its own as Lago sends them.
async fn good(rig: &Rig, ledger: &mut Ledger, seconds: f64, per_second: f64) -> Result<LoadReport> {
    let options = LoadOptions {
        record: true,
        keep_alive: false,
        connections: 16,
        pacing: Pacing::Open { per_second },
        duration: Some(Duration::from_secs_f64(seconds)),
        timeout: Duration::from_secs(10),
        ..LoadOptions::new(rig.target())
    };
    let outcome = load::run(options, rig.pool(64)?, &LoadControl::new()).await?;
    ledger.extend_sent(outcome.sent);
    let report = outcome.report;
    ensure!(report.ok == report.requests, "{} of {} real webhooks: {:?}", report.ok, report.requests, report.errors);
    Ok(report)
}

/// Measures once more while the crowd is there, up to twice: what else runs on the machine spoils a
/// comparison now and then, a crowd that is in the way spoils each.
async fn settled(rig: &Rig, ledger: &mut Ledger, before: &LoadReport, mut during: LoadReport) -> Result<LoadReport> {
    for _ in 0..2 {
        if unaffected(before, &during).is_ok() {
            break;
        }
        during = good(rig, ledger, 5.0, GOOD_PER_SECOND).await?;
    }
    Ok(during)
}

fn unaffected(before: &LoadReport, during: &LoadReport) -> Result<String> {
    let (before, during) = (before.latency_ms.p99, during.latency_ms.p99);
    ensure!(during <= (2.0 * before).max(P99_FLOOR_MS), "p99 went from {before:.1} to {during:.1} ms");
    Ok(format!("p99 {before:.1} -> {during:.1} ms"))
}

/// F24: four thousand senders that never come to the end of a head or a body are cut off, and real
/// webhooks do not notice them. The count is the length of the attack in seconds.
pub(crate) async fn slow_senders_do_not_slow_others(trial: Trial) -> Result<Outcome> {
    slow_senders_beside(trial, Rig::started(Mode::Hmac, &SLOW_LIMITS).await?, "lago_webhooks_refused_total").await
}

/// The limits of a rig for [`slow_senders_beside`].
pub(crate) const SLOW_LIMITS: [(&str, &str); 2] =
    [("SIDECAR_LISTEN__HEAD_TIMEOUT_SECONDS", "4"), ("SIDECAR_LISTEN__BODY_TIMEOUT_SECONDS", "4")];

/// The same for any daemon that takes webhooks; `refused` is its metric of requests that it did not take.
pub(crate) async fn slow_senders_beside(trial: Trial, rig: Rig, refused: &str) -> Result<Outcome> {
    let path = rig.path();
    let mut ledger = Ledger::new();
    let before = good(&rig, &mut ledger, 3.0, GOOD_PER_SECOND).await?;
    let cut_off = Arc::new(AtomicU64::new(0));
    let mut attackers = JoinSet::new();
    for number in 0..SLOW {
        let (address, cut_off) = (rig.public, Arc::clone(&cut_off));
        attackers.spawn(async move {
            // Not all in the same moment.
            tokio::time::sleep(Duration::from_micros(250 * number as u64)).await;
            loop {
                if slow_request(address, path, number % 2 == 0).await {
                    cut_off.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let open = rig.metrics().await?.sum("http_connections_open", &[("listener", "public")]);
    ensure!(open >= SLOW as f64 * 0.8, "only {open} of {SLOW} slow connections are open");
    let during = good(&rig, &mut ledger, f64::from(trial.count), GOOD_PER_SECOND).await?;
    let during = settled(&rig, &mut ledger, &before, during).await?;
    let metrics = rig.metrics().await?;
    attackers.shutdown().await;
    let heads = metrics.sum("http_timeouts_total", &[("phase", "head")]);
    let bodies = metrics.sum(refused, &[("reason", "too_slow")]);
    ensure!(heads > 0.0 && bodies > 0.0, "{heads} slow heads and {bodies} slow bodies were cut off");
    ensure!(cut_off.load(Ordering::Relaxed) > 0, "no attacker was cut off");
    let said = unaffected(&before, &during)?;
    rig.settle(ledger, &format!("F24-{}", trial.seed)).await?;
    Ok(Outcome::new(trial.count, format!("{open} slow connections, {heads} heads and {bodies} bodies cut off, {said}")))
}

/// Sends a byte now and then until the daemon has had enough; says whether it had.
async fn slow_request(address: std::net::SocketAddr, path: &str, in_head: bool) -> bool {
    let Ok(mut connection) = RawConnection::open(address).await else { return false };
    let mut beginning = format!("POST {path} HTTP/1.1\r\nHost: daemon\r\nX-Signature: x\r\n").into_bytes();
    beginning.extend_from_slice(if in_head { b"X-Slow: " } else { b"Content-Length: 100000\r\n\r\n" });
    if connection.send(&beginning).await.is_err() {
        return true;
    }
    loop {
        // An end or an answer: both mean that it is over.
        match connection.wait_closed(Duration::from_secs(1)).await {
            Ok(_) => return true,
            Err(_) if connection.send(b"x").await.is_err() => return true,
            Err(_) => {}
        }
    }
}

/// F24: the same with the tool that others measure by: slow heads, slow bodies, slow readers. The
/// count is the length of each attack in seconds.
pub(crate) async fn slowhttptest_does_not_slow_others(trial: Trial) -> Result<Outcome> {
    let available = tokio::process::Command::new("slowhttptest").arg("-h").output().await;
    if available.is_err() {
        return Ok(Outcome::skipped("slowhttptest is not installed"));
    }
    let rig = Rig::started(Mode::Hmac, &[]).await?;
    let mut ledger = Ledger::new();
    let before = good(&rig, &mut ledger, 3.0, GOOD_PER_SECOND).await?;
    let url = format!("http://{}/webhooks/lago", rig.public);
    // Long enough to be measured again; ended when that is done.
    let (connections, longer) = (SLOW.to_string(), (trial.count + 15).to_string());
    let mut said = Vec::new();
    for (what, mode) in [
        ("heads", &["-H", "-i", "2", "-x", "24"][..]),
        ("bodies", &["-B", "-i", "2", "-s", "8192", "-x", "10"]),
        ("readers", &["-X", "-w", "1", "-y", "2", "-n", "1", "-z", "1", "-k", "3"]),
    ] {
        let mut attack = tokio::process::Command::new("slowhttptest")
            .args(mode)
            .args(["-c", &connections, "-r", "2000", "-l", &longer, "-u", &url, "-p", "5"])
            .current_dir(rig.scratch.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("start slowhttptest")?;
        let mut most = 0_f64;
        let during = {
            let load = good(&rig, &mut ledger, f64::from(trial.count), GOOD_PER_SECOND);
            tokio::pin!(load);
            loop {
                tokio::select! {
                    report = &mut load => break report.with_context(|| format!("slow {what}"))?,
                    () = tokio::time::sleep(Duration::from_millis(200)) => {
                        let metrics = rig.metrics().await?;
                        most = most.max(metrics.sum("http_connections_open", &[("listener", "public")]));
                    }
                }
            }
        };
        let during = settled(&rig, &mut ledger, &before, during).await?;
        attack.kill().await?;
        // Slow readers are answered and gone: the answers here are small.
        ensure!(most >= 500.0 || what == "readers", "slow {what}: {most} connections at most");
        said.push(format!("{what}: {most} open, {}", unaffected(&before, &during).with_context(|| what.to_owned())?));
    }
    rig.settle(ledger, &format!("F24x-{}", trial.seed)).await?;
    Ok(Outcome::new(trial.count, said.join("; ")))
}

/// Opens connections that never say anything.
async fn mute(rig: &Rig, count: usize) -> Result<Vec<RawConnection>> {
    let address = rig.public;
    let opened = futures_util::stream::iter((0..count).map(|_| RawConnection::open(address)));
    let opened: Vec<Result<RawConnection, raw::RawError>> = opened.buffer_unordered(OPENING).collect().await;
    Ok(opened.into_iter().collect::<Result<_, _>>()?)
}

/// Opens connections that make one request each and then say nothing more.
async fn idle(rig: &Rig, count: usize) -> Result<Vec<RawConnection>> {
    let address = rig.public;
    let open = move |_| async move {
        let mut connection = RawConnection::open(address).await?;
        let answer = connection.exchange(b"GET /nothing HTTP/1.1\r\nHost: daemon\r\n\r\n", REQUEST_DEADLINE).await?;
        ensure!(answer.status == 404 && answer.keep_alive, "{} {}", answer.status, answer.text());
        Ok(connection)
    };
    let opened: Vec<Result<RawConnection>> =
        futures_util::stream::iter((0..count).map(open)).buffer_unordered(OPENING).collect().await;
    opened.into_iter().collect()
}

/// F25: ten thousand idle connections beside 1,000 webhooks a second: none of these fails, and memory
/// grows by less than 96 MiB; while more than half of the places are taken, an answer ends its
/// connection; beyond the limit a connection is taken and closed, and never hangs.
pub(crate) async fn ten_thousand_idle_connections_cost_little(trial: Trial) -> Result<Outcome> {
    const LIMIT: usize = 10_240;
    let mut notes = Vec::new();
    for round in 0..trial.count {
        trial.progress(round);
        // Those that have said nothing would be gone after ten seconds.
        let rig = Rig::started(Mode::Hmac, &[("SIDECAR_LISTEN__HEAD_TIMEOUT_SECONDS", "60")]).await?;
        let mut ledger = Ledger::new();
        let before_load = good(&rig, &mut ledger, 2.0, 1_000.0).await?;
        let before = rig.rss_bytes()?;
        let mut crowd = idle(&rig, IDLE / 2).await?;
        crowd.extend(mute(&rig, IDLE / 2).await?);
        let answer = raw::exchange(rig.public, b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n", REQUEST_DEADLINE).await?;
        ensure!(!answer.keep_alive, "a crowd is invited to stay");
        let open = rig.metrics().await?.sum("http_connections_open", &[("listener", "public")]);
        ensure!(open >= IDLE as f64, "{open} connections are open");
        let during = good(&rig, &mut ledger, 3.0, 1_000.0).await?;
        let rise = rig.rss_bytes()?.saturating_sub(before);
        ensure!(rise <= IDLE_RSS, "{IDLE} idle connections took {} MiB", rise / MIB);
        // Up to the limit, and then some.
        crowd.extend(mute(&rig, LIMIT - IDLE - 16).await?);
        let refused = rig.metrics().await?.sum("http_connections_refused_total", &[("listener", "public")]);
        ensure!(refused == 0.0, "{refused} refused below the limit");
        let mut closed = 0;
        for _ in 0..200 {
            let mut connection = RawConnection::open(rig.public).await?;
            // Those that found a place are kept: they take it from the next ones.
            match connection.wait_closed(Duration::from_millis(100)).await {
                Ok(_) => closed += 1,
                Err(_) => crowd.push(connection),
            }
        }
        ensure!((184..=200).contains(&closed), "{closed} of 200 were closed, 16 places were left");
        let admin = Instant::now();
        rig.api("/api/v1/statistics").await?;
        ensure!(admin.elapsed() < Duration::from_secs(1), "the admin listener took {:?}", admin.elapsed());
        crowd.clear();
        // Their ends have to be seen before there is room again.
        let deadline = Instant::now() + REQUEST_DEADLINE;
        while rig.metrics().await?.sum("http_connections_open", &[("listener", "public")]) > 100.0 {
            ensure!(Instant::now() < deadline, "closed connections still count");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        good(&rig, &mut ledger, 1.0, GOOD_PER_SECOND).await?;
        rig.settle(ledger, &format!("F25-{}", trial.seed)).await?;
        let (was, is) = (before_load.latency_ms.p99, during.latency_ms.p99);
        notes.push(format!("RSS +{} MiB, p99 {was:.1} -> {is:.1} ms, {closed} of 200 turned away", rise / MIB));
    }
    Ok(Outcome::new(trial.count, notes.join("; ")))
}

/// F25: a connection that has nothing more to say is closed in an orderly way, one that has never said
/// anything as well.
pub(crate) async fn idle_connections_are_closed(trial: Trial) -> Result<Outcome> {
    const MANY: usize = 500;
    let (idle_limit, head_limit) = (Duration::from_secs(2), Duration::from_secs(1));
    let limits = [("SIDECAR_LISTEN__IDLE_TIMEOUT_SECONDS", "2"), ("SIDECAR_LISTEN__HEAD_TIMEOUT_SECONDS", "1")];
    let rig = Rig::started(Mode::Hmac, &limits).await?;
    for round in 0..trial.count {
        trial.progress(round);
        let begin = Instant::now();
        let said = idle(&rig, MANY).await?;
        let opened = begin.elapsed();
        let mut mute = Vec::new();
        for _ in 0..MANY {
            mute.push(RawConnection::open(rig.public).await?);
        }
        let all: Vec<RawConnection> = said.into_iter().chain(mute).collect();
        let mut ends = JoinSet::new();
        for mut connection in all {
            ends.spawn(async move { connection.wait_closed(REQUEST_DEADLINE).await });
        }
        while let Some(end) = ends.join_next().await {
            ensure!(end??, "an idle connection was reset");
        }
        let took = begin.elapsed();
        ensure!(took >= head_limit.min(idle_limit), "closed after {took:?}");
        ensure!(took <= opened + idle_limit + Duration::from_secs(2), "still open after {took:?}");
    }
    Ok(Outcome::new(trial.count as usize * MANY * 2, "all closed in time, none reset"))
}

/// The processor time a process has used, in seconds.
fn cpu_seconds(pid: u32) -> Result<f64> {
    /// `sysconf(_SC_CLK_TCK)` on every Linux that this runs on.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name of the process may hold blanks; what follows its bracket does not.
    let (_, rest) = stat.rsplit_once(") ").context("an unknown form of /proc/PID/stat")?;
    let field = |nth: usize| rest.split(' ').nth(nth).and_then(|text| text.parse::<f64>().ok());
    let (user, system) = (field(11).context("no user time")?, field(12).context("no system time")?);
    Ok((user + system) / TICKS)
}

/// The soft limit of open files of a running process.
fn files_allowed(pid: u32) -> Result<usize> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).context("no limit of files")?;
    Ok(line.split_whitespace().next().context("no soft limit")?.parse()?)
}

/// Sets the soft limit of open files of a running process.
async fn limit_files(pid: u32, soft: usize) -> Result<()> {
    let done = tokio::process::Command::new("prlimit")
        .args(["--pid", &pid.to_string(), &format!("--nofile={soft}:")])
        .output()
        .await
        .context("run prlimit")?;
    ensure!(done.status.success(), "prlimit: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// A connection that is kept and used again and again.
struct Kept {
    connection: RawConnection,
    head: String,
}

impl Kept {
    async fn admin(rig: &Rig) -> Result<Self> {
        let head =
            format!("GET /api/v1/statistics HTTP/1.1\r\nHost: daemon\r\nAuthorization: Bearer {}\r\n\r\n", rig.token);
        Ok(Self { connection: RawConnection::open(rig.admin).await?, head })
    }

    async fn ask(&mut self) -> Result<()> {
        let answer = self.connection.exchange(self.head.as_bytes(), Duration::from_secs(2)).await?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
        Ok(())
    }
}

/// Posts a named webhook on a kept connection; the ledger is told.
async fn post_on(rig: &Rig, connection: &mut RawConnection, ledger: &mut Ledger, name: &str) -> Result<()> {
    let (key, body) = (uuid::Uuid::new_v4().to_string(), named::body(name));
    let digest = kit_workbench::Digest::of(body.as_bytes());
    let mut sent = kit_workbench::ledger::SentRequest::begin("default", key.as_str(), named::subject(name), digest);
    let request = format!(
        "POST /webhooks/lago HTTP/1.1\r\nHost: daemon\r\nX-Lago-Signature: {}\r\nX-Lago-Unique-Key: {key}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        rig.sign(&body)?,
        body.len()
    );
    let answer = connection.exchange(request.as_bytes(), Duration::from_secs(5)).await?;
    sent.finish(answer.status, &answer.body);
    ensure!(answer.status == 200, "{name} is answered {} {}", answer.status, answer.text());
    ledger.sent(sent);
    Ok(())
}

/// F26: no file descriptor is left, by a limit at the start and by one that comes later: connections
/// that are there go on, as do the journal and the deliveries; nothing spins; and it is over with the
/// cause.
pub(crate) async fn without_file_descriptors_it_waits_and_recovers(trial: Trial) -> Result<Outcome> {
    const STARVED: Duration = Duration::from_secs(3);
    const CPU_SHARE: f64 = 0.10;
    let (mut most, mut slowest) = (0_f64, Duration::ZERO);
    for round in 0..trial.count {
        trial.progress(round);
        let from_the_start = round % 2 == 1;
        let mut rig = Rig::new(Mode::Hmac, &[]).await?;
        if from_the_start {
            rig.wrap(&["prlimit", "--nofile=64"]);
        }
        rig.start().await?;
        let mut ledger = Ledger::new();
        // What an operator and a proxy before the daemon keep open; and everything has been used once.
        let (mut admin, mut kept) = (Kept::admin(&rig).await?, RawConnection::open(rig.public).await?);
        admin.ask().await?;
        post_on(&rig, &mut kept, &mut ledger, "before").await?;
        rig.gateway.wait_for_unique(1, REQUEST_DEADLINE).await?;
        let pid = rig.process()?.pid();
        let allowed = files_allowed(pid)?;
        if !from_the_start {
            let open = rig.process()?.open_fds()?;
            limit_files(pid, open + 2).await?;
        }
        let crowd = crowd_at_the_door(&rig, 300).await?;
        let (cpu, begin) = (cpu_seconds(pid)?, Instant::now());
        let mut number = 0;
        while begin.elapsed() < STARVED {
            post_on(&rig, &mut kept, &mut ledger, &format!("starved-{number}")).await.context("while starved")?;
            admin.ask().await.context("the admin API while starved")?;
            number += 1;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let share = (cpu_seconds(pid)? - cpu) / begin.elapsed().as_secs_f64();
        ensure!(share <= CPU_SHARE, "{:.0} % of a processor while starved", share * 100.0);
        most = most.max(share);
        rig.gateway.wait_for_unique(number + 1, REQUEST_DEADLINE).await.context("deliveries while starved")?;
        if !from_the_start {
            let process = rig.process()?;
            process.wait_for_line(|line| line.contains("cannot be accepted"), REQUEST_DEADLINE).await?;
            let lines = process.stdout().lines().filter(|line| line.contains("cannot be accepted")).count();
            ensure!(lines <= 4, "it was said {lines} times");
            limit_files(pid, allowed).await?;
        }
        drop(crowd);
        let over = Instant::now();
        while named::send(&rig, &mut ledger, &format!("after-{number}")).await.is_err() {
            ensure!(over.elapsed() < Duration::from_secs(5), "no new connection is served {:?} later", over.elapsed());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        slowest = slowest.max(over.elapsed());
        ensure!(slowest <= Duration::from_secs(2), "recovered after {slowest:?}");
        rig.settle(ledger, &format!("F26-{}-{round}", trial.seed)).await?;
    }
    let (share, took) = (most * 100.0, slowest.as_millis());
    Ok(Outcome::new(trial.count, format!("at most {share:.0} % of a processor, recovered within {took} ms, 0 lost")))
}

/// Connections that stand at the public listener, taken or not, and come again when they are turned away.
async fn crowd_at_the_door(rig: &Rig, count: usize) -> Result<JoinSet<()>> {
    let address = rig.public;
    let mut crowd = JoinSet::new();
    for _ in 0..count {
        crowd.spawn(async move {
            loop {
                if let Ok(mut connection) = RawConnection::open(address).await {
                    // Either it is kept waiting, or closed at once.
                    let _ = connection.wait_closed(Duration::from_secs(60)).await;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }
    // Until a further one is not served.
    let deadline = Instant::now() + REQUEST_DEADLINE;
    while raw::get(address, "/nothing", Duration::from_millis(300)).await.is_ok() {
        ensure!(Instant::now() < deadline, "the crowd does not fill the daemon");
    }
    Ok(crowd)
}

/// F26: no further thread can be started: webhooks are accepted and delivered by those that are there,
/// and nothing is stuck afterwards.
pub(crate) async fn without_threads_it_goes_on_and_recovers(trial: Trial) -> Result<Outcome> {
    /// Threads for blocking work would end after ten seconds without any.
    const UNTIL_THEY_END: Duration = Duration::from_secs(12);
    let mut notes = Vec::new();
    for round in 0..trial.count {
        trial.progress(round);
        let mut rig = Rig::started(Mode::Hmac, &[]).await?;
        let mut ledger = Ledger::new();
        let pid = rig.process()?.pid();
        let Some(limit) = ThreadLimit::new(pid) else {
            return Ok(Outcome::skipped("no control group for threads can be made here"));
        };
        named::send(&rig, &mut ledger, "before").await?;
        rig.gateway.wait_for_unique(1, REQUEST_DEADLINE).await?;
        // The hardest moment: only those are left that never end.
        let (mut threads, mut since, begin) = (limit.current()?, Instant::now(), Instant::now());
        while since.elapsed() < UNTIL_THEY_END {
            ensure!(begin.elapsed() < UNTIL_THEY_END * 5, "threads come and go");
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = limit.current()?;
            if now != threads {
                (threads, since) = (now, Instant::now());
            }
        }
        limit.set(&threads.to_string())?;
        let begin = Instant::now();
        for number in 0..20_u64 {
            named::send(&rig, &mut ledger, &format!("starved-{number}")).await?;
        }
        let while_starved = rig.gateway.wait_for_unique(21, Duration::from_secs(5)).await;
        let took = begin.elapsed();
        limit.set("max")?;
        if let Err(error) = while_starved {
            bail!("{threads} threads are not enough: {error}");
        }
        named::send(&rig, &mut ledger, "after").await?;
        rig.gateway.wait_for_unique(22, Duration::from_secs(5)).await.context("after the limit was lifted")?;
        notes.push(format!("{threads} threads, delivered within {} ms", took.as_millis()));
        rig.gateway.set_behaviour(Behaviour::Ok);
        rig.settle(ledger, &format!("F26t-{}-{round}", trial.seed)).await?;
    }
    Ok(Outcome::new(trial.count, notes.pop().unwrap_or_default()))
}
