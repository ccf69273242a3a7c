//! The way to the gateway: slow, broken, mute, or with a name that cannot be found.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use kit_workbench::Moment;
use kit_workbench::chaos::{ChaosProxy, Direction, Fault};
use kit_workbench::gateway::Behaviour;
use kit_workbench::ledger::{Crash, Ledger};
use outrigger_tests::dns::{Answer, NameServer};
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::named;
use outrigger_tests::namespace::Namespace;
use outrigger_tests::rig::{Mode, REQUEST_DEADLINE, Rig};
use outrigger_tests::strict::{self, Reply, StrictGateway, StrictRequest};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const MIB: u64 = 1 << 20;
/// Limits of the quick experiments, in the order of the defaults: silence, then the whole request.
const READ: Duration = Duration::from_millis(1_000);
const TOTAL: Duration = Duration::from_millis(2_500);
/// What a busy machine may add to a limit.
const SLACK: Duration = Duration::from_millis(900);
/// The limits that the daemon has by default, and by which no attempt may last longer.
const DEFAULTS: [(&str, u64); 3] = [("connect", 3), ("silence", 10), ("drip", 30)];
const LONGEST: Duration = Duration::from_secs(31);
/// Good events are delivered within this time while others hang.
const UNAFFECTED: Duration = Duration::from_millis(500);

/// A daemon with short limits, whose circuit stays closed: each failure is looked at on its own.
async fn impatient(settings: &[(&str, &str)]) -> Result<Rig> {
    let mut rig = Rig::new(Mode::Hmac, settings).await?;
    rig.set("SIDECAR_GATEWAY__TIMEOUT__READ_SECONDS", &READ.as_secs_f64().to_string());
    rig.set("SIDECAR_GATEWAY__TIMEOUT__TOTAL_SECONDS", &TOTAL.as_secs_f64().to_string());
    rig.set("SIDECAR_GATEWAY__CIRCUIT__FAILURES", "1000000");
    Ok(rig)
}

/// How the first attempt of an event must end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum First {
    /// Without a verdict, and tried again.
    Fails,
    /// Delivered: what is beyond the limit of an answer does not matter.
    Delivered,
    /// 500, tried again, and the beginning of the answer is kept as it came.
    Busy,
}

fn bad_answers() -> Vec<(&'static str, First, Behaviour)> {
    let wire = |head: &str, filler: &[u8], bytes: usize, taken| {
        let mut answer = head.as_bytes().to_vec();
        while answer.len() < bytes {
            answer.extend_from_slice(filler);
        }
        Behaviour::Wire(answer, taken)
    };
    let ok = |rest: &str| format!("HTTP/1.1 200 OK\r\n{rest}");
    let large = Behaviour::json(&"x".repeat(50_000));
    let pause = Duration::from_millis(20);
    // What gzip makes of a megabyte of zeros begins like this; nobody is to unpack it.
    let gzip = vec![("content-encoding".to_owned(), "gzip".to_owned())];
    let packed = [b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03".to_vec(), vec![b'z'; 1_000]].concat();
    let huge = vec![b'x'; 32 << 20];
    vec![
        ("silence", First::Fails, Behaviour::Drop),
        ("a byte of the body every 20 ms", First::Fails, Behaviour::Drip(pause, Box::new(large.clone()))),
        ("a byte of the body a second", First::Fails, Behaviour::Drip(Duration::from_secs(1), Box::new(large.clone()))),
        ("reset in the body", First::Fails, Behaviour::Cut(1_000, Box::new(large))),
        ("reset without a byte", First::Fails, Behaviour::Reset),
        ("closed without a byte", First::Fails, wire("", b"", 0, false)),
        (
            "headers without an end",
            First::Fails,
            wire(&ok(""), b"X-Filler: xxxxxxxxxxxxxxxxxxxxxxxx\r\n", 4 << 20, false),
        ),
        ("a header without an end", First::Fails, wire(&ok("X-Filler: "), b"xxxxxxxxxxxxxxxx", 4 << 20, false)),
        ("a status line without an end", First::Fails, wire("HTTP/1.1 200 ", b"xxxxxxxxxxxxxxxx", 4 << 20, false)),
        ("interim answers without an end", First::Fails, wire("", b"HTTP/1.1 102 Processing\r\n\r\n", 4 << 20, false)),
        ("a negative length", First::Fails, wire(&ok("Content-Length: -1\r\n\r\n"), b"", 0, false)),
        ("two lengths", First::Fails, wire(&ok("Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"), b"", 0, false)),
        ("a broken chunk", First::Fails, wire(&ok("Transfer-Encoding: chunked\r\n\r\nzz\r\n"), b"", 0, false)),
        ("another protocol", First::Fails, wire("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"", 0, false)),
        ("32 MiB with 200", First::Delivered, Behaviour::Status(200, Vec::new(), huge.clone())),
        ("32 MiB with 500", First::Busy, Behaviour::Status(500, Vec::new(), huge)),
        (
            "chunks without an end",
            First::Delivered,
            wire(&ok("Transfer-Encoding: chunked\r\n\r\n"), b"10\r\nxxxxxxxxxxxxxxxx\r\n", 16 << 20, true),
        ),
        ("packed, with 500", First::Busy, Behaviour::Status(500, gzip.clone(), packed.clone())),
        ("packed, with 200", First::Delivered, Behaviour::Status(200, gzip, packed)),
    ]
}

/// F17: answers that hang, drip, break off, never end or are no HTTP hold up their own event only,
/// for no longer than the limits; a large answer is read to its limit and a packed one not unpacked.
pub(crate) async fn a_bad_answer_costs_its_own_event_a_limited_time(trial: Trial) -> Result<Outcome> {
    let mut rig = impatient(&[("SIDECAR_GATEWAY__CONCURRENCY", "64")]).await?;
    let proxy = ChaosProxy::start(rig.gateway.addr()).await?;
    rig.set("BRAIN_GATEWAY_URL", &proxy.url());
    rig.start().await?;
    let answers = bad_answers();
    let (before, mut slowest, mut cases) = (rig.rss_bytes()?, Duration::ZERO, 0_u32);
    rig.gateway.set_behaviour({
        let answers = bad_answers();
        Behaviour::by_request(move |head| {
            let number = named::name(head.subject.as_deref()).and_then(|name| name.strip_prefix("bad-"));
            let number = number.and_then(|name| name.split('-').next()?.parse::<usize>().ok());
            match number.and_then(|number| answers.get(number)) {
                Some((_, _, answer)) if head.attempt == 1 => answer.clone(),
                _ => Behaviour::Ok,
            }
        })
    });
    let mut ledger = Ledger::new();
    let mut events = Vec::new();
    for round in 0..trial.count {
        trial.progress(round);
        let mut due = tokio::time::interval(Duration::from_millis(50));
        let mut good = BTreeMap::new();
        for (number, (_, first, _)) in answers.iter().enumerate() {
            events.push((named::send(&rig, &mut ledger, &format!("bad-{number}-{round}")).await?, number, *first));
            cases += 1;
        }
        // Real events go through all the time, until long after the last one that hangs.
        for number in 0..60 {
            due.tick().await;
            let sent = named::post(&rig, &format!("good-{number}-{round}")).await?;
            good.insert(sent.event_id.clone().unwrap_or_default(), sent.answered.unwrap_or_else(Moment::now));
            ledger.sent(sent);
        }
        rig.drained().await?;
        rig.gateway.with_received(|received| {
            for received in received {
                if let Some(answered) = received.event_id.as_ref().and_then(|id| good.remove(id)) {
                    slowest = slowest.max(received.at.since(answered));
                }
            }
        });
        ensure!(good.is_empty(), "{} good events have not arrived", good.len());
    }
    ensure!(slowest <= UNAFFECTED, "a good event took {slowest:?} while others hung");
    for (id, number, first) in &events {
        let event = rig.api(&format!("/api/v1/events/{id}")).await?;
        let what = answers[*number].0;
        let attempt = &event["attempts"][0];
        let took = Duration::from_millis(attempt["latency_ms"].as_u64().context("an attempt without a time")?);
        ensure!(took <= TOTAL + SLACK, "{what}: the attempt took {took:?}");
        let (outcome, kept) = (attempt["outcome"].as_str(), attempt["response"].as_str().unwrap_or_default());
        let fine = match first {
            First::Fails => outcome == Some("unreachable"),
            First::Delivered => outcome == Some("delivered"),
            First::Busy => outcome == Some("busy") && (kept.contains("zzzz") || kept.contains("xxxx")),
        };
        ensure!(fine, "{what}: {attempt}");
        let attempts = event["attempts"].as_array().map_or(0, Vec::len);
        ensure!(attempts == if *first == First::Delivered { 1 } else { 2 }, "{what}: {attempts} attempts");
    }
    let rise = rig.rss_bytes()?.saturating_sub(before);
    ensure!(rise <= 24 * MIB, "bad answers took {} MiB of memory", rise / MIB);
    // Of 96 MiB a round: what is between the processes is filled, the rest never read.
    let passed = proxy.passed(Direction::Down) / u64::from(trial.count);
    ensure!(passed <= 48 * MIB, "{} MiB of answers were read each round", passed / MIB);
    let asked = rig.gateway.with_received(|received| received.iter().any(|r| r.header("accept-encoding").is_some()));
    ensure!(!asked, "the daemon asks for packed answers");
    let report =
        settle_with_repeats(rig, ledger, "bad answer", u64::from(cases), &format!("F17a-{}", trial.seed)).await?;
    Ok(Outcome::new(cases, format!("good events within {} ms, RSS +{} MiB, {report}", slowest.as_millis(), rise / MIB)))
}

/// Settles a run in which answers were lost after the gateway had taken the event.
async fn settle_with_repeats(rig: Rig, mut ledger: Ledger, what: &str, lost: u64, evidence: &str) -> Result<String> {
    ledger.crash(Crash { what: what.to_owned(), from: Moment::from_micros(0), until: Moment::now(), in_flight: lost });
    let report = rig.settle(ledger, evidence).await?;
    Ok(format!("{} delivered, {} again, 0 lost", report.delivered_unique, report.redelivered))
}

/// F17: the connection is reset or stalled at any byte of a request, or reset, stalled, half-closed or
/// changed at any byte of its answer: nothing is lost, nothing half is taken, no attempt outlasts its limit.
pub(crate) async fn a_connection_may_break_at_any_byte(mut trial: Trial) -> Result<Outcome> {
    const AT_ONCE: u32 = 50;
    let mut rig = impatient(&[("SIDECAR_GATEWAY__CONCURRENCY", "64")]).await?;
    let proxy = ChaosProxy::start(rig.gateway.addr()).await?;
    rig.set("BRAIN_GATEWAY_URL", &proxy.url());
    rig.start().await?;
    let mut ledger = Ledger::new();
    named::send(&rig, &mut ledger, "measure").await?;
    rig.gateway.wait_for_unique(1, REQUEST_DEADLINE).await?;
    rig.drained().await?;
    let (request, answer) = (proxy.passed(Direction::Up), proxy.passed(Direction::Down));
    ensure!(request > 500 && answer > 50, "a request of {request} bytes, answered by {answer}");
    let (mut done, mut kinds) = (0, BTreeMap::new());
    while done < trial.count {
        trial.progress(done);
        let many = AT_ONCE.min(trial.count - done);
        let faults: Vec<(Direction, Fault)> = (0..many)
            .map(|_| {
                let up = trial.random.bool();
                let (direction, length) = if up { (Direction::Up, request) } else { (Direction::Down, answer) };
                let at = trial.random.u64(0..length);
                // A request that ends early or is changed on the way is answered 4xx by the gateway, and
                // that is an answer: what must hold then is the table of answers.
                let (kind, fault) = match trial.random.u32(0..if up { 3 } else { 5 }) {
                    0 | 1 => ("reset", Fault::Reset(at)),
                    2 => ("stalled", Fault::Stall(at)),
                    3 => ("half-closed", Fault::HalfClose(at)),
                    _ => ("changed", Fault::Corrupt(at)),
                };
                *kinds.entry(kind).or_insert(0) += 1;
                (direction, fault)
            })
            .collect();
        let old = proxy.connections();
        proxy.set_plan(move |number, direction| match number.checked_sub(old + 1) {
            // What the pool has kept is of no use any more: every event opens its own connection.
            None => Fault::Reset(0),
            Some(nth) => match usize::try_from(nth).ok().and_then(|nth| faults.get(nth)) {
                Some((wanted, fault)) if *wanted == direction => *fault,
                _ => Fault::None,
            },
        });
        let names: Vec<String> = (done..done + many).map(|number| format!("event-{number}")).collect();
        let sent = try_join_all(names.iter().map(|name| named::post(&rig, name))).await?;
        ledger.extend_sent(sent);
        done += many;
        rig.gateway.wait_for_unique(u64::from(done) + 1, REQUEST_DEADLINE).await?;
        rig.drained().await?;
        ensure!(proxy.connections() >= old + u64::from(many) / 2, "the faults did not meet their connections");
    }
    let statistics = longest_attempt(&rig).await?;
    ensure!(statistics <= TOTAL + SLACK, "an attempt took {statistics:?}");
    let said = settle_with_repeats(rig, ledger, "broken connections", u64::from(done), &format!("F17b-{}", trial.seed))
        .await?;
    Ok(Outcome::new(done, format!("{kinds:?}; {said}")))
}

/// The longest attempt of the newest events.
async fn longest_attempt(rig: &Rig) -> Result<Duration> {
    let page = rig.api("/api/v1/events?limit=500").await?;
    let mut longest = 0;
    for event in page["events"].as_array().context("no events")? {
        let id = event["id"].as_str().unwrap_or_default();
        let event = rig.api(&format!("/api/v1/events/{id}")).await?;
        for attempt in event["attempts"].as_array().context("no attempts")? {
            longest = longest.max(attempt["latency_ms"].as_u64().unwrap_or(u64::MAX));
        }
    }
    Ok(Duration::from_millis(longest))
}

/// F17: with the daemon's own limits: three seconds to connect, ten without a byte, thirty for
/// everything, and no attempt of 31; good events go through meanwhile.
pub(crate) async fn the_default_limits_end_every_attempt(trial: Trial) -> Result<Outcome> {
    let rig = Rig::started(Mode::Hmac, &[]).await?;
    rig.gateway.set_behaviour(Behaviour::by_request(|head| {
        match (named::name(head.subject.as_deref()), head.attempt) {
            (Some("silence"), 1) => Behaviour::Drop,
            (Some("drip"), 1) => Behaviour::Drip(Duration::from_secs(1), Box::new(Behaviour::json(&"x".repeat(500)))),
            _ => Behaviour::Ok,
        }
    }));
    let (full, _held) = full_listener().await?;
    let mut unconnected = Rig::new(Mode::Hmac, &[("BRAIN_GATEWAY_URL", &format!("http://{full}"))]).await?;
    unconnected.start().await?;
    let (mut ledger, mut aside) = (Ledger::new(), Ledger::new());
    let begin = Instant::now();
    let ids = [
        named::send(&unconnected, &mut aside, "connect").await?,
        named::send(&rig, &mut ledger, "silence").await?,
        named::send(&rig, &mut ledger, "drip").await?,
    ];
    let mut slowest = Duration::ZERO;
    for number in 0.. {
        let begun = Instant::now();
        let before = rig.gateway.counts().unique;
        named::send(&rig, &mut ledger, &format!("good-{number}")).await?;
        rig.gateway.wait_for_unique(before + 1, REQUEST_DEADLINE).await?;
        slowest = slowest.max(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(250)).await;
        if begin.elapsed() > LONGEST {
            break;
        }
    }
    ensure!(slowest <= UNAFFECTED, "a good event took {slowest:?} while others hung");
    rig.drained().await?;
    let mut took = Vec::new();
    for ((what, limit), id) in DEFAULTS.iter().zip(&ids) {
        let asked = if *what == "connect" { &unconnected } else { &rig };
        let event = asked.api(&format!("/api/v1/events/{id}")).await?;
        let millis = event["attempts"][0]["latency_ms"].as_u64().with_context(|| format!("{what}: {event}"))?;
        let expected = limit * 1_000..=limit * 1_000 + 900;
        ensure!(expected.contains(&millis), "{what}: {millis} ms, expected {expected:?}");
        took.push(format!("{what} {millis} ms"));
    }
    let (exit, _) = unconnected.stop().await?;
    ensure!(exit.code == Some(0), "{exit}");
    settle_with_repeats(rig, ledger, "lost answers", 2, &format!("F17c-{}", trial.seed)).await?;
    Ok(Outcome::new(DEFAULTS.len(), format!("{}, good events within {} ms", took.join(", "), slowest.as_millis())))
}

/// A listener that takes no more connections: SYNs to it are not answered. The connections that fill
/// it must be kept.
async fn full_listener() -> Result<(SocketAddr, (TcpListener, Vec<tokio::task::JoinHandle<()>>))> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let listener = socket.listen(1)?;
    let address = listener.local_addr()?;
    let fill = |_| {
        tokio::spawn(async move {
            let stream = TcpStream::connect(address).await;
            std::future::pending::<()>().await;
            drop(stream);
        })
    };
    let held = (0..8).map(fill).collect();
    let deadline = Instant::now() + REQUEST_DEADLINE;
    // Full when a further connection is not made.
    while tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await.is_ok() {
        ensure!(Instant::now() < deadline, "the listener does not become full");
    }
    Ok((address, (listener, held)))
}

/// F17: a kept connection that the gateway closes while the next request is on its way costs that
/// event a short wait, and no event twice; answers beyond the one that was asked for are not taken
/// for the next one.
pub(crate) async fn a_kept_connection_that_is_closed_costs_one_short_wait(trial: Trial) -> Result<Outcome> {
    /// The free wait of one second with its jitter, and the machine.
    const LATEST: Duration = Duration::from_millis(1_200 + 800);
    let doubling = Arc::new(AtomicBool::new(false));
    let gateway = StrictGateway::start({
        let doubling = Arc::clone(&doubling);
        move |request| match (doubling.load(Ordering::SeqCst), request.nth) {
            // An answer that nobody asked for, right behind the real one.
            (true, _) => Reply::Keep([strict::TAKEN, strict::TAKEN].concat()),
            (false, 1) => Reply::Keep(strict::TAKEN.to_vec()),
            // The second request finds a connection that is being closed.
            (false, _) => Reply::Close(Vec::new()),
        }
    })
    .await?;
    let rig = Rig::started(Mode::Hmac, &[("BRAIN_GATEWAY_URL", &gateway.url())]).await?;
    let mut ledger = Ledger::new();
    let (mut slowest, mut events) = (Duration::ZERO, Vec::new());
    for number in 0..trial.count {
        trial.progress(number);
        let begin = Instant::now();
        let id = named::send(&rig, &mut ledger, &format!("race-{number}")).await?;
        while !gateway.requests().iter().any(|request| request.nth == 1 && is_about(request, &id)) {
            ensure!(begin.elapsed() <= LATEST, "event {number} has not arrived after {:?}", begin.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        slowest = slowest.max(begin.elapsed());
        events.push(id);
    }
    let raced = gateway.requests().iter().filter(|request| request.nth > 1).count();
    ensure!(raced > 0, "no request met a closing connection");
    doubling.store(true, Ordering::SeqCst);
    let beyond = gateway.count();
    for number in 0..trial.count {
        let id = named::send(&rig, &mut ledger, &format!("doubled-{number}")).await?;
        gateway.wait_for(beyond + u64::from(number) + 1, REQUEST_DEADLINE).await?;
        events.push(id);
    }
    let counters = rig.drained().await?;
    ensure!(counters.delivered == events.len() as u64, "{counters:?}");
    ensure!(gateway.mistakes().is_empty(), "{:?}", gateway.mistakes());
    let requests = gateway.requests();
    for id in &events {
        let answered =
            requests.iter().enumerate().filter(|(nth, r)| is_about(r, id) && (r.nth == 1 || *nth as u64 >= beyond));
        let times = answered.count();
        ensure!(times == 1, "event {id} was answered {times} times");
    }
    Ok(Outcome::new(events.len(), format!("{raced} met a closing connection, slowest {} ms", slowest.as_millis())))
}

fn is_about(request: &StrictRequest, id: &str) -> bool {
    request.header("webhook-id").any(|value| value == id.as_bytes())
}

/// F18: the gateway's name is not found, cannot be looked up, or leads to another machine: events wait,
/// every new connection asks again, and within five seconds of the repair everything is delivered.
pub(crate) async fn a_name_that_cannot_be_found_costs_time_only(trial: Trial) -> Result<Outcome> {
    const RECOVERED: Duration = Duration::from_secs(5);
    const EVENTS: u64 = 5;
    let Some(namespace) = Namespace::new()? else {
        return Ok(Outcome::skipped("no network namespace can be made here"));
    };
    let mut rig = Rig::new(Mode::Hmac, &[]).await?;
    let (old_home, new_home, nowhere) = (namespace.here(), namespace.address(5), namespace.address(77));
    namespace.add_address(new_home)?;
    let first = ChaosProxy::start_on(SocketAddr::from((old_home, 0)), rig.gateway.addr()).await?;
    let port = first.addr().port();
    let second = ChaosProxy::start_on(SocketAddr::from((new_home, port)), rig.gateway.addr()).await?;
    let names = NameServer::start(SocketAddr::from((old_home, 53)), Answer::Addresses(vec![old_home])).await?;
    rig.wrap(&namespace.enter());
    rig.public = SocketAddr::from((namespace.inside(), 8081));
    rig.admin = SocketAddr::from((namespace.inside(), 9081));
    let (public, admin) = (rig.public.to_string(), rig.admin.to_string());
    rig.set("SIDECAR_LISTEN__PUBLIC", &public);
    rig.set("SIDECAR_LISTEN__ADMIN", &admin);
    rig.set("BRAIN_GATEWAY_URL", &format!("http://gateway.test:{port}"));
    // How soon it is found out that the gateway is back.
    rig.set("SIDECAR_GATEWAY__CIRCUIT__PROBE_MAX_SECONDS", "1");
    rig.start().await?;
    let mut ledger = Ledger::new();
    let troubles = [
        Answer::NoSuchName,
        Answer::Failure,
        Answer::Silence,
        Answer::Refused,
        Answer::Garbage,
        Answer::Addresses(Vec::new()),
        Answer::Addresses(vec![nowhere]),
    ];
    let (mut sent, mut slowest) = (0, Duration::ZERO);
    for round in 0..trial.count {
        trial.progress(round);
        let trouble = &troubles[(round + trial.offset) as usize % troubles.len()];
        // Every round the gateway moves as well.
        let (home, address, other) =
            if round % 2 == 0 { (&second, new_home, &first) } else { (&first, old_home, &second) };
        let failed = unreachable(&rig).await?;
        let asked = names.questions();
        names.set(trouble.clone());
        for proxy in [&first, &second] {
            let old = proxy.connections();
            proxy.set_plan(move |number, _| if number <= old { Fault::Reset(0) } else { Fault::None });
        }
        let deadline = Instant::now() + REQUEST_DEADLINE;
        while first.open() + second.open() > 0 {
            ensure!(Instant::now() < deadline, "kept connections are not broken");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for number in 0..EVENTS {
            named::send(&rig, &mut ledger, &format!("event-{round}-{number}")).await?;
        }
        while unreachable(&rig).await? < failed + 2.0 {
            ensure!(Instant::now() < deadline, "{trouble:?}: no attempt has failed");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        ensure!(rig.gateway.counts().unique == sent, "{trouble:?}: something was delivered");
        ensure!(names.questions() > asked, "{trouble:?}: nobody asked for the name");
        let (other_before, home_before) = (other.connections(), home.connections());
        names.set(Answer::Addresses(vec![address]));
        let repaired = Instant::now();
        sent += EVENTS;
        rig.gateway.wait_for_unique(sent, RECOVERED).await.with_context(|| format!("after {trouble:?}"))?;
        slowest = slowest.max(repaired.elapsed());
        ensure!(home.connections() > home_before, "{trouble:?}: nobody came to the new address");
        ensure!(other.connections() == other_before, "{trouble:?}: the old address is still used");
    }
    let what = trial.count.min(troubles.len() as u32);
    let said = settle_with_repeats(rig, ledger, "moved gateway", sent, &format!("F18-{}", trial.seed)).await?;
    Ok(Outcome::new(trial.count, format!("{what} kinds, recovered within {} ms, {said}", slowest.as_millis())))
}

/// Attempts that got no answer, by the daemon's own account.
async fn unreachable(rig: &Rig) -> Result<f64> {
    Ok(rig.metrics().await?.sum("delivery_attempts_total", &[("outcome", "unreachable")]))
}
