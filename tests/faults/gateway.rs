//! What the gateway answers, and what becomes of the event.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use kit_workbench::Moment;
use kit_workbench::chaos::ChaosProxy;
use kit_workbench::gateway::{Behaviour, Received};
use kit_workbench::ledger::{GATEWAY, Ledger};
use kit_workbench::load::{self, LagoWebhooks, LoadControl, LoadOptions, Pacing, Pool};
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::machine::Lateness;
use outrigger_tests::named;
use outrigger_tests::rig::{Mode, Rig};

/// Delays before the second and the third attempt of the experiments here.
const SCHEDULE: [Duration; 2] = [Duration::from_millis(400), Duration::from_millis(800)];
const JITTER: f64 = 0.2;
/// The longest `Retry-After` that is honoured here.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(2);
/// The first wait after no answer at all; see `kit-delivery/src/judge.rs`.
const FREE_WAIT: Duration = Duration::from_secs(1);
/// What the daemon may add to a wait on an idle machine.
const SLACK: Duration = Duration::from_millis(400);
/// Repetitions of the table that are under way at the same time.
const AT_ONCE: u32 = 5;

/// What must become of an event.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Delivered,
    Parked,
    /// Tried again by the schedule.
    Retried,
    /// Tried again, and not before the time that the answer asked for.
    Asked(Duration),
    /// Tried again when there was no answer: without using up the schedule.
    Unanswered,
}

/// One answer and what it leads to.
struct Case {
    what: String,
    answer: Box<dyn Fn() -> Behaviour + Send + Sync>,
    fate: Fate,
}

fn case(what: impl Into<String>, fate: Fate, answer: impl Fn() -> Behaviour + Send + Sync + 'static) -> Case {
    Case { what: what.into(), answer: Box::new(answer), fate }
}

fn http_date(from_now: Duration) -> String {
    let at = jiff::Timestamp::try_from(SystemTime::now() + from_now).unwrap_or(jiff::Timestamp::MAX);
    at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// The table: every kind of answer once.
fn table(elsewhere: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for status in [200, 201, 202, 204, 299] {
        cases.push(case(status.to_string(), Fate::Delivered, move || Behaviour::status(status)));
    }
    for status in [500, 501, 502, 503, 504, 505, 507, 599, 408, 425, 429] {
        cases.push(case(status.to_string(), Fate::Retried, move || Behaviour::status(status)));
    }
    for status in [400, 401, 403, 404, 405, 409, 410, 413, 415, 422, 451] {
        cases.push(case(status.to_string(), Fate::Parked, move || Behaviour::status(status)));
    }
    for status in [300, 301, 302, 303, 304, 307, 308] {
        let location = elsewhere.to_owned();
        let answer =
            move || Behaviour::Status(status, vec![("location".to_owned(), location.clone())], b"over there".to_vec());
        cases.push(case(format!("{status} with Location"), Fate::Parked, answer));
    }
    let second = Duration::from_secs(1);
    for (retry_after, fate) in [
        ("1", Fate::Asked(second)),
        (" 1 ", Fate::Asked(second)),
        ("0", Fate::Retried),
        ("86400", Fate::Asked(RETRY_AFTER_MAX)),
        ("99999999999999999999999999", Fate::Asked(RETRY_AFTER_MAX)),
        ("Thu, 06 Nov 2994 08:49:37 GMT", Fate::Asked(RETRY_AFTER_MAX)),
        // The forms that RFC 9110 section 5.6.7 calls obsolete and wants to be read all the same.
        ("Monday, 06-Nov-34 08:49:37 GMT", Fate::Asked(RETRY_AFTER_MAX)),
        ("Mon Nov  6 08:49:37 2034", Fate::Asked(RETRY_AFTER_MAX)),
        ("Sun, 06 Nov 1994 08:49:37 GMT", Fate::Retried),
        ("Sun, 99 Nov 2034 08:49:37 GMT", Fate::Retried),
        ("-5", Fate::Retried),
        ("1.5", Fate::Retried),
        ("soon", Fate::Retried),
        ("1, 1", Fate::Retried),
        ("", Fate::Retried),
    ] {
        let answer = move || Behaviour::retry_after(429, retry_after);
        cases.push(case(format!("429 with Retry-After {retry_after:?}"), fate, answer));
    }
    // Seconds are cut off: what is three seconds away comes out as more than two, the limit.
    cases.push(case("503 with a date", Fate::Asked(RETRY_AFTER_MAX), || {
        Behaviour::retry_after(503, &http_date(Duration::from_secs(3)))
    }));
    let twice = || ["1", "86400"].map(|value| ("retry-after".to_owned(), value.to_owned())).to_vec();
    cases.push(case("503 with two Retry-After", Fate::Asked(second), move || {
        Behaviour::Status(503, twice(), Vec::new())
    }));
    cases.push(case("200 with Retry-After", Fate::Delivered, || Behaviour::retry_after(200, "86400")));
    cases.push(case("404 with Retry-After", Fate::Parked, || Behaviour::retry_after(404, "1")));
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let busy = "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n";
    for (what, bytes, fate) in [
        ("100, then 200", format!("HTTP/1.1 100 Continue\r\n\r\n{ok}"), Fate::Delivered),
        ("102 twice, then 200", "HTTP/1.1 102 Processing\r\n\r\n".repeat(2) + ok, Fate::Delivered),
        ("103 with a link, then 200", format!("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n{ok}"), Fate::Delivered),
        ("100, then 500", format!("HTTP/1.1 100 Continue\r\n\r\n{busy}"), Fate::Retried),
        ("100 and the end", "HTTP/1.1 100 Continue\r\n\r\n".to_owned(), Fate::Unanswered),
        (
            "101",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n".to_owned(),
            Fate::Parked,
        ),
        ("no HTTP", "SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned(), Fate::Unanswered),
        ("200 and half a body", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_owned(), Fate::Unanswered),
    ] {
        let taken = fate == Fate::Delivered;
        cases.push(case(what, fate, move || Behaviour::Wire(bytes.clone().into_bytes(), taken)));
    }
    cases
}

/// F16: every answer of the table does what the documents say: delivered, parked at once, or tried
/// again within the jitter of the schedule and not before the time that was asked for, up to the
/// limit; and no redirect is followed.
pub(crate) async fn every_answer_does_what_is_documented(trial: Trial) -> Result<Outcome> {
    every_answer_to(trial, Rig::new(Mode::Hmac, &[]).await?).await
}

/// F16: a gateway that asks everybody to wait, with the circuit that ships: no event comes again before its time, and nothing
/// at all once the circuit is open.
pub(crate) async fn a_gateway_that_asks_all_to_wait_is_left_alone(trial: Trial) -> Result<Outcome> {
    const ASKED: Duration = Duration::from_secs(3);
    const EVENTS: usize = 20;
    /// An answer is noted a moment after it was written.
    const NOTED: Duration = Duration::from_millis(20);
    let mut rig = Rig::new(Mode::Hmac, &[]).await?;
    rig.start().await?;
    let (mut ledger, mut arrivals) = (Ledger::new(), 0);
    for round in 0..trial.count {
        trial.progress(round);
        rig.gateway.forget();
        rig.gateway.set_behaviour(Behaviour::retry_after(503, "3"));
        let names: Vec<String> = (0..EVENTS).map(|number| format!("{number}-{round}")).collect();
        for sent in try_join_all(names.iter().map(|name| named::post(&rig, name))).await? {
            ledger.sent(sent);
        }
        // Two probes long.
        tokio::time::sleep(ASKED * 2 + ASKED / 2).await;
        rig.gateway.set_behaviour(Behaviour::Ok);
        rig.drained().await?;
        let received = rig.gateway.received();
        arrivals += received.len();
        let mut answered: BTreeMap<String, Moment> = BTreeMap::new();
        for one in &received {
            let id = one.event_id.clone().context("an event has an id")?;
            let before = answered.insert(id.clone(), one.answered_at.unwrap_or(one.at));
            if let Some(waited) = before.map(|before| one.at.since(before)) {
                ensure!(waited + NOTED >= ASKED, "event {id} came again after {waited:?}");
            }
        }
        // What went out before the circuit opened was under way together.
        let times: Vec<Moment> = received.iter().map(|one| one.at).collect();
        for pair in times.windows(2).take_while(|pair| pair[0].since(times[0]) < ASKED * 2) {
            let pause = pair[1].since(pair[0]);
            ensure!(
                pause < Duration::from_secs(1) || pause + NOTED >= ASKED,
                "{pause:?} after the one before something came, {} of {}",
                times.iter().filter(|at| **at < pair[1]).count(),
                times.len()
            );
        }
    }
    let report = rig.settle(ledger, &format!("F16-wait-{}", trial.seed)).await?;
    Ok(Outcome::new(arrivals, format!("{} delivered, 0 lost, none early", report.delivered_unique)))
}

/// The same for any daemon that takes webhooks; the rig is not started.
pub(crate) async fn every_answer_to(trial: Trial, mut rig: Rig) -> Result<Outcome> {
    let elsewhere = ChaosProxy::start(rig.gateway.addr()).await?;
    let cases = table(&elsewhere.url());
    rig.set(
        "SIDECAR_GATEWAY__RETRY__SCHEDULE_SECONDS",
        &SCHEDULE.map(|delay| delay.as_secs_f64().to_string()).join(","),
    );
    rig.set("SIDECAR_GATEWAY__RETRY__RETRY_AFTER_MAX_SECONDS", &RETRY_AFTER_MAX.as_secs_f64().to_string());
    // Each answer is judged on its own, not as a sign of an absent gateway.
    rig.set("SIDECAR_GATEWAY__CIRCUIT__FAILURES", "1000000");
    rig.start().await?;
    let number = |name: &str| name.split('-').next().and_then(|number| number.parse::<usize>().ok());
    rig.gateway.set_behaviour({
        let cases = table(&elsewhere.url());
        Behaviour::by_request(move |head| {
            let case = named::name(head.subject.as_deref()).and_then(number).and_then(|number| cases.get(number));
            match case {
                Some(case) if head.attempt <= 2 => (case.answer)(),
                _ => Behaviour::Ok,
            }
        })
    });
    let lateness = Lateness::watch();
    let mut ledger = Ledger::new();
    let mut events = BTreeMap::new();
    for round in 0..trial.count {
        trial.progress(round);
        let names: Vec<String> = (0..cases.len()).map(|number| format!("{number}-{round}")).collect();
        let sent = try_join_all(names.iter().map(|name| named::post(&rig, name))).await?;
        for (number, sent) in sent.into_iter().enumerate() {
            let id = sent.event_id.clone().context("a 200 without an id")?;
            if cases[number].fate == Fate::Parked {
                ledger.set_aside(GATEWAY, &id);
            }
            events.insert(id, number);
            ledger.sent(sent);
        }
        if round % AT_ONCE == AT_ONCE - 1 {
            rig.drained().await?;
        }
    }
    rig.drained().await?;
    let mut arrivals: BTreeMap<String, Vec<(Moment, Option<Moment>)>> = BTreeMap::new();
    rig.gateway.with_received(|received| {
        for received in received {
            let id = received.event_id.clone().unwrap_or_default();
            arrivals.entry(id).or_default().push((received.at, received.answered_at));
        }
    });
    // Each wait ends in three steps of the daemon that the machine may hold up.
    let slack = SLACK + lateness.longest() * 3;
    for (id, number) in &events {
        let case = &cases[*number];
        let judged = judge(&rig, id, case, arrivals.get(id).map_or(&[], Vec::as_slice), slack).await;
        judged.with_context(|| format!("{} ({:?}), event {id}", case.what, case.fate))?;
    }
    ensure!(elsewhere.connections() == 0, "{} redirects were followed", elsewhere.connections());
    let report = rig.settle(ledger, &format!("F16-{}", trial.seed)).await?;
    Ok(Outcome::new(
        events.len(),
        format!("{} answers, {} delivered, 0 lost, 0 redirects followed", cases.len(), report.delivered_unique),
    ))
}

/// Compares what became of one event with what had to. `slack` is what the machine may add to a wait.
async fn judge(rig: &Rig, id: &str, case: &Case, arrivals: &[(Moment, Option<Moment>)], slack: Duration) -> Result<()> {
    let event = rig.api(&format!("/api/v1/events/{id}")).await?;
    let state = event["deliveries"][GATEWAY]["state"].as_str().unwrap_or_default();
    let noted = event["attempts"].as_array().cloned().unwrap_or_default();
    // A kept connection that is closed as it is used again costs an attempt that nobody sees (F17).
    let is_lost = |attempt: &serde_json::Value| case.fate != Fate::Unanswered && attempt["outcome"] == "unreachable";
    let lost = noted.iter().filter(|attempt| is_lost(attempt)).count();
    ensure!(lost <= 1, "{lost} attempts met a closing connection: {event}");
    let attempts = noted.len() - lost;
    let expected = match case.fate {
        Fate::Delivered => ("delivered", 1),
        Fate::Parked => ("parked", 1),
        Fate::Retried | Fate::Asked(_) | Fate::Unanswered => ("delivered", 3),
    };
    ensure!((state, attempts) == expected, "{state} after {attempts} attempts: {event}");
    ensure!(arrivals.len() == attempts, "{attempts} attempts noted, {} seen", arrivals.len());
    let waits: Vec<(bool, Duration)> = if lost == 0 {
        let wait = |pair: &[(Moment, Option<Moment>)]| (false, pair[1].0.since(pair[0].1.unwrap_or(pair[0].0)));
        arrivals.windows(2).map(wait).collect()
    } else {
        // The gateway did not see one of them: the daemon's own notes say when each began and ended.
        let wait = |pair: &[serde_json::Value]| Ok((is_lost(&pair[0]), noted_wait(&pair[0], &pair[1])?));
        noted.windows(2).map(wait).collect::<Result<_>>()?
    };
    let mut charged = 0;
    for (nth, (after_lost, waited)) in waits.into_iter().enumerate() {
        let (least, most) = if after_lost {
            around(FREE_WAIT)
        } else {
            charged += 1;
            bounds(case.fate, charged)
        };
        // Times are kept in whole milliseconds.
        let least = least.saturating_sub(Duration::from_millis(2));
        ensure!(
            (least..=most + slack).contains(&waited),
            "attempt {} came {waited:?} after the one before, expected {least:?} to {most:?}, and {slack:?} for the \
             machine: {event}",
            nth + 2
        );
    }
    Ok(())
}

/// The shortest and the longest wait after the attempt of this number.
fn bounds(fate: Fate, attempt: usize) -> (Duration, Duration) {
    let (least, most) = around(SCHEDULE[attempt - 1]);
    match fate {
        Fate::Asked(asked) => (least.max(asked), most.max(asked)),
        // The second one may be charged, because others got through, or wait twice as long.
        Fate::Unanswered if attempt == 2 => (around(SCHEDULE[0]).0, around(FREE_WAIT * 2).1),
        Fate::Unanswered => around(FREE_WAIT),
        _ => (least, most),
    }
}

/// A wait with its jitter.
fn around(wait: Duration) -> (Duration, Duration) {
    (wait.mul_f64(1.0 - JITTER), wait.mul_f64(1.0 + JITTER))
}

/// From the end of one attempt to the beginning of the next one.
fn noted_wait(before: &serde_json::Value, after: &serde_json::Value) -> Result<Duration> {
    let at = |attempt: &serde_json::Value| -> Result<jiff::Timestamp> {
        attempt["at"].as_str().context("an attempt without a time")?.parse().context("the time of an attempt")
    };
    let took = before["latency_ms"].as_i64().context("an attempt without a latency")?;
    let millis = at(after)?.as_millisecond() - at(before)?.as_millisecond() - took;
    Ok(Duration::from_millis(u64::try_from(millis).unwrap_or(0)))
}

/// F22: one webhook of a hundred is poison – always refused, or always an error: it is parked by the
/// policy, and the others are delivered as fast as without it.
pub(crate) async fn poison_is_parked_and_holds_nobody_up(trial: Trial) -> Result<Outcome> {
    const LENGTH: Duration = Duration::from_secs(4);
    const PER_SECOND: f64 = 400.0;
    const ATTEMPTS: u32 = 4;
    /// A difference below this is the machine's, whatever the share.
    const FLOOR: Duration = Duration::from_millis(15);
    let (mut notes, mut parked) = (Vec::new(), 0);
    for round in 0..trial.count {
        trial.progress(round);
        // Refused for good, and refused until the schedule is used up.
        let poison = if round % 2 == 0 { Poison::Refused } else { Poison::Error };
        // What else runs on the machine spoils a comparison now and then, poison that is in the way each.
        for attempt in 1..=ATTEMPTS {
            let calm = latencies(Poison::None, LENGTH, PER_SECOND, &trial).await?;
            let poisoned = latencies(poison, LENGTH, PER_SECOND, &trial).await?;
            ensure!(poisoned.parked > 0, "{poison:?}: nothing was parked");
            parked += poisoned.parked;
            let said = format!("{poison:?} p99 {:.1?} -> {:.1?}", calm.p99, poisoned.p99);
            if poisoned.p99 <= calm.p99.mul_f64(1.2).max(calm.p99 + FLOOR) {
                notes.push(said);
                break;
            }
            ensure!(attempt < ATTEMPTS, "{said}");
        }
    }
    notes.truncate(2);
    Ok(Outcome::new(trial.count, format!("{parked} parked; {}", notes.join(", "))))
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Poison {
    None,
    /// 422 at once.
    Refused,
    /// 500 on every attempt.
    Error,
}

struct Latencies {
    p99: Duration,
    parked: u64,
}

/// A run of real events with a hundredth of poison: from the daemon's answer to the gateway's.
async fn latencies(poison: Poison, length: Duration, per_second: f64, trial: &Trial) -> Result<Latencies> {
    const POISONED: &str = "customer.checkout_url_generated";
    let mut rig = Rig::new(Mode::Hmac, &[]).await?;
    rig.set("SIDECAR_GATEWAY__RETRY__SCHEDULE_SECONDS", "0.1,0.2");
    rig.start().await?;
    rig.gateway.set_behaviour(Behaviour::by_request(move |head| {
        let poisoned = head.event_type.as_deref().is_some_and(|name| name.ends_with(POISONED));
        match (poisoned, poison) {
            (true, Poison::Refused) => Behaviour::status(422),
            (true, Poison::Error) => Behaviour::status(500),
            _ => Behaviour::Ok,
        }
    }));
    let mut types = vec!["invoice.created".to_owned(); 99];
    types.push(POISONED.to_owned());
    let wanted = LagoWebhooks { types, count: 100, ..LagoWebhooks::new("default", rig.signing()) };
    let pool = std::sync::Arc::new(Pool::lago(&wanted)?);
    let bad = pool.get(99);
    let (bad_body, options) = (
        bad.sha256(),
        LoadOptions {
            record: true,
            pacing: Pacing::Open { per_second },
            duration: Some(length),
            ..LoadOptions::new(rig.target())
        },
    );
    let outcome = load::run(options, std::sync::Arc::clone(&pool), &LoadControl::new()).await?;
    ensure!(outcome.report.ok == outcome.report.requests, "{:?}", outcome.report.errors);
    rig.drained().await?;
    let mut ledger = Ledger::new();
    let mut answered = BTreeMap::new();
    let mut set_aside = 0;
    for sent in &outcome.sent {
        let id = sent.event_id.clone().context("a 200 without an id")?;
        if sent.body_sha256 != bad_body {
            answered.insert(id, sent.answered.context("a 200 without a time")?);
        } else if poison != Poison::None {
            ledger.set_aside(GATEWAY, &id);
            set_aside += 1;
        }
    }
    ledger.extend_sent(outcome.sent);
    let mut waited: Vec<Duration> = rig.gateway.with_received(|received| {
        let of = |received: &Received| Some(received.at.since(*answered.get(received.event_id.as_ref()?)?));
        received.iter().filter_map(of).collect()
    });
    waited.sort_unstable();
    ensure!(waited.len() == answered.len(), "{} of {} good events arrived", waited.len(), answered.len());
    let p99 = *waited.get(waited.len() * 99 / 100).context("nothing was sent")?;
    let counters = rig.counters("poison").await?;
    ensure!(counters.parked == set_aside, "{} of {set_aside} poisonous events are parked", counters.parked);
    rig.settle(ledger, &format!("F22-{}", trial.seed)).await?;
    Ok(Latencies { p99, parked: set_aside })
}
