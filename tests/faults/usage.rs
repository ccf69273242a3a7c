//! Usage on its way to Lago: whatever dies or says otherwise, what would be billed is what producers sent.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kit_lago::stand_in::billing::{
    AggregationType, Effect, Fault, Faults, LagoServer, LagoState, LedgerEntry, Metric, Profile, Subscription, When,
};
use kit_workbench::raw;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::rig::{REQUEST_DEADLINE, Rig};

/// Events that one count stands for.
const THOUSAND: u64 = 1_000;
/// Events in a producer's request.
const BATCH: u64 = 250;
const PRODUCERS: u64 = 4;
const SUBSCRIPTIONS: u64 = 97;
/// How long everything may take to reach Lago once the producers have ended.
const DRAIN_DEADLINE: Duration = Duration::from_secs(300);

/// One event in so many names its customer only.
const BY_CUSTOMER: u64 = 20;
/// One in so many is of the metric that is rolled up, if it has a time.
const ROLLED: u64 = 4;
/// Seconds within which events become one.
const QUARTER: u64 = 900;
/// Probes of the one long outage: as many as an hour has at the default distances (1, 2, 4 … 60 s), of which these are a
/// 240th. Nothing in the daemon but these and the waits that a Lago that is back ends goes by how long it was away.
const PROBES_OF_AN_HOUR: f64 = 65.0;

/// The nth event as its producer sends it: all of it follows from n, so that the books can be checked without keeping
/// any.
fn event(n: u64) -> String {
    let (field, prefix) =
        if n.is_multiple_of(BY_CUSTOMER) { ("external_customer_id", "c") } else { ("external_subscription_id", "s") };
    let timestamp = timestamp(n).map(|timestamp| format!(r#""timestamp":{timestamp},"#)).unwrap_or_default();
    format!(
        r#"{{"transaction_id":"t-{n}","{field}":"{prefix}-{}","code":"{}",{timestamp}"properties":{}}}"#,
        n % SUBSCRIPTIONS,
        if is_rolled(n) { "rolled" } else { "gb" },
        properties(n)
    )
}

fn is_rolled(n: u64) -> bool {
    n % ROLLED == 1 && timestamp(n).is_some()
}

/// With which others an event is added up – subscription, quarter of an hour and region – and how much, in hundredths.
fn rolled(n: u64) -> (Summed, u64) {
    let quarter = (1_790_000_000 + n / 1000) / QUARTER;
    ((format!("s-{}", n % SUBSCRIPTIONS), quarter, format!("r-{}", n % 5)), n % 1_000 * 100 + n % 100)
}

type Summed = (String, u64, String);

/// One in seven has none: its time is that of its first receipt, whatever happens afterwards.
fn timestamp(n: u64) -> Option<String> {
    let timestamp = || format!("{}.{:03}", 1_790_000_000 + n / 1000, 1 + n % 999).trim_end_matches('0').to_owned();
    (n % 7 != 3).then(timestamp)
}

fn properties(n: u64) -> String {
    format!(r#"{{"gb":{}.{:02},"region":"r-{}"}}"#, n % 1_000, n % 100, n % 5)
}

/// F19, F20, I6: producers that repeat what was not answered, a Lago that does a twentieth of what it is asked and says
/// otherwise, or is away, and a daemon that is killed again and again. A third of the events each for every kind of Lago.
pub(crate) async fn every_event_is_billed_once_as_it_was_sent(mut trial: Trial) -> Result<Outcome> {
    let total = u64::from(trial.count) * THOUSAND;
    let (mut sent, mut notes) = (0, Vec::new());
    for (profile, left) in Profile::ALL.into_iter().zip((1..=3).rev()) {
        let share = (total - sent) / left;
        let note = billed_once(&mut trial, profile, share, sent).await.with_context(|| format!("{profile:?}"))?;
        sent += share;
        notes.push(note);
    }
    Ok(Outcome::new(total, format!("{}; each billed once, as sent", notes.join("; "))))
}

/// The same for one kind of Lago and so many events; `before` have been sent to others.
async fn billed_once(trial: &mut Trial, profile: Profile, total: u64, before: u64) -> Result<String> {
    // What Lago would not bill is parked, as it is by default: nothing is.
    let settings = [
        ("SIDECAR_ROLLUP__CODES", "rolled"),
        ("SIDECAR_ROLLUP__WINDOW_SECONDS", "1"),
        ("SIDECAR_LAGO__LINGER_SECONDS", "0.02"),
        ("SIDECAR_LAGO__TIMEOUT__TOTAL_SECONDS", "1"),
        ("SIDECAR_LAGO__RETRY_SCHEDULE_SECONDS", "0.1,0.2,0.2,0.5,0.5,0.5,0.5,0.5,0.5,0.5,1,1,1,1,1,1,1,1,1,1"),
        ("SIDECAR_LAGO__CIRCUIT__PROBE_SECONDS", "0.05"),
        ("SIDECAR_LAGO__CIRCUIT__PROBE_MAX_SECONDS", "0.25"),
    ];
    let mut rig = Rig::tracker(profile, &settings).await?;
    let lago = rig.lago.take().context("a tracker's rig has a Lago")?;
    let started = "2025-01-01T00:00:00Z".parse()?;
    for n in 0..SUBSCRIPTIONS {
        lago.put_subscription(Subscription::active(&format!("s-{n}"), &format!("c-{n}"), "plan", started));
    }
    for code in ["gb", "rolled"] {
        lago.put_metric(Metric::new(code, AggregationType::Sum, Some("gb")));
    }
    lago.set_faults(faults(trial.seed));
    rig.start().await?;
    let state = Arc::clone(lago.state());

    let sent = Arc::new(AtomicU64::new(0));
    let producers: Vec<_> = (0..PRODUCERS)
        .map(|producer| {
            let (public, token, sent) = (rig.public, rig.producer.clone(), Arc::clone(&sent));
            tokio::spawn(async move { produce(public, &token, producer, total, &sent).await })
        })
        .collect();
    let (kills, outages) = disturb(trial, &mut rig, lago, &sent, (total, before)).await?;
    for producer in producers {
        producer.await??;
    }
    state.set_faults(Faults::default());
    drain(&rig, &state, total).await?;
    let sums = check(&state, total)?;
    let requests = state.counts().batches;
    let (exit, _) = rig.stop().await?;
    ensure!(exit.code == Some(0), "ended with {exit:?}");
    let rolled = (0..total).filter(|n| is_rolled(*n)).count();
    Ok(format!(
        "{profile:?}: {kills} kills, {outages} outages of Lago, one as long as an hour by its probes, {requests} requests, \
         {rolled} events as {sums}"
    ))
}

/// One request in twenty is done and said otherwise, some more are not done.
fn faults(seed: u64) -> Faults {
    let rules = vec![
        Fault::new(Effect::DoneThenClosed, When::Chance(0.03)),
        Fault::new(Effect::DoneThenAnswer(500), When::Chance(0.02)),
        Fault::new(Effect::DoneThenSilent, When::Chance(0.002)),
        Fault::new(Effect::Answer(502), When::Chance(0.01)),
        Fault::new(Effect::Reset, When::Chance(0.01)),
    ];
    Faults { seed, rules, ..Faults::default() }
}

/// Sends a producer's share, each request until it is answered 200: an answer that is lost says nothing.
async fn produce(public: std::net::SocketAddr, token: &str, producer: u64, total: u64, sent: &AtomicU64) -> Result<()> {
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    let mut first = producer * BATCH;
    while first < total {
        let events: Vec<String> = (first..total.min(first + BATCH)).map(event).collect();
        let body = format!(r#"{{"events":[{}]}}"#, events.join(","));
        let begin = Instant::now();
        loop {
            let path = "/api/v1/events/batch";
            match raw::request(public, "POST", path, &headers, body.as_bytes(), REQUEST_DEADLINE).await {
                Ok(answer) if answer.status == 200 => break,
                Ok(answer) if answer.status != 503 => {
                    bail!("a producer is answered {}: {}", answer.status, answer.text())
                }
                // The daemon is dead, or full: it is asked again.
                Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
            ensure!(begin.elapsed() < DRAIN_DEADLINE, "a request is never answered 200");
        }
        sent.fetch_add(events.len() as u64, Ordering::Relaxed);
        first += PRODUCERS * BATCH;
    }
    Ok(())
}

/// Kills the daemon and takes Lago away until everything is sent, once for long; how often each. Lago is there again in
/// the end.
async fn disturb(
    trial: &mut Trial,
    rig: &mut Rig,
    lago: LagoServer,
    sent: &AtomicU64,
    (total, before): (u64, u64),
) -> Result<(u32, u32)> {
    let (mut kills, mut outages, mut lago, mut was_long) = (0, 0, lago, false);
    loop {
        // Not waiting for luck: the random moment is the experiment.
        tokio::time::sleep(trial.millis(200, 1_200)).await;
        let done = sent.load(Ordering::Relaxed);
        trial.progress(u32::try_from((before + done) / THOUSAND)?);
        if done >= total && kills > 2 && was_long {
            rig.lago = Some(lago);
            return Ok((kills, outages));
        }
        let is_long = !was_long && done * 10 >= total;
        if is_long || trial.random.u8(0..4) == 0 {
            let address = lago.address();
            let state = lago.stop().await;
            if is_long {
                probed_in_vain(rig).await?;
                was_long = true;
            } else {
                tokio::time::sleep(trial.millis(100, 2_000)).await;
            }
            lago = LagoServer::start_with(address, state).await?;
            outages += 1;
        } else {
            rig.kill().await?;
            rig.start().await.with_context(|| format!("kill {}", kills + 1))?;
            kills += 1;
        }
    }
}

/// Waits until the daemon has probed for Lago as often as in an hour.
async fn probed_in_vain(rig: &Rig) -> Result<()> {
    let begin = Instant::now();
    let mut before = None;
    loop {
        let metrics = rig.metrics().await?;
        let own = [("sink", "lago")];
        if metrics.get("delivery_circuit_open", &own) == Some(1.0) {
            let attempts = metrics.sum("delivery_attempts_total", &own);
            // A probe is of one event.
            if attempts >= *before.get_or_insert(attempts) + PROBES_OF_AN_HOUR {
                return Ok(());
            }
        }
        ensure!(begin.elapsed() < DRAIN_DEADLINE, "Lago is never probed for: {}", rig.end_of_log(30));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn drain(rig: &Rig, lago: &LagoState, total: u64) -> Result<()> {
    let plain = (0..total).filter(|n| !is_rolled(*n)).count() as u64;
    let begin = Instant::now();
    loop {
        let statistics = rig.api("/api/v1/statistics").await?;
        let rows = statistics["sinks"].as_array().context("no sinks")?;
        let row = |name: &str| rows.iter().find(|row| row["name"] == name).context("a sink is missing");
        let rows = [row("lago")?, row("resolve")?, row("rollup")?];
        if rows.iter().all(|row| row["pending"] == 0) {
            // What names its customer only is in the journal twice, as it came and as Lago is sent it, and so is what was
            // rolled up, the second time as few.
            let (by_customer, stored) = (total.div_ceil(BY_CUSTOMER), lago.counts().stored);
            ensure!(
                stored > plain
                    && statistics["accepted"] == total + by_customer + (stored - plain)
                    && rows[0]["delivered"] == stored
                    && rows[1]["delivered"] == by_customer
                    && rows.iter().all(|row| row["parked"] == 0),
                "{total} sent, {by_customer} of them by customer, {plain} not rolled up, {stored} stored: {statistics}"
            );
            return Ok(());
        }
        ensure!(begin.elapsed() < DRAIN_DEADLINE, "not drained: {statistics}; its log ends so: {}", rig.end_of_log(30));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What would be billed: every transaction id once, its time and properties as sent, the same bytes at every arrival. Of
/// what was rolled up each sum once, and all of them together what was sent, to the last digit, of each subscription,
/// region and quarter of an hour; how many sums.
fn check(lago: &LagoState, total: u64) -> Result<usize> {
    let mut sums: BTreeMap<Summed, u64> = BTreeMap::new();
    let mut names: HashSet<(String, String)> = HashSet::new();
    let mut seen = vec![false; usize::try_from(total)?];
    let mut wrong = None;
    lago.visit_ledger(|entry| {
        if entry.code == "rolled" {
            let name = (entry.external_subscription_id.unwrap_or_default().to_owned(), entry.transaction_id.to_owned());
            let Some((key, hundredths)) = summed(&entry).filter(|_| names.insert(name)) else {
                wrong.get_or_insert_with(|| format!("a sum is billed twice, or is none: {entry:?}"));
                return;
            };
            *sums.entry(key).or_default() += hundredths;
            return;
        }
        let n: Option<u64> = entry.transaction_id.strip_prefix("t-").and_then(|n| n.parse().ok());
        let known = n.and_then(|n| Some((n, seen.get_mut(usize::try_from(n).ok()?)?)));
        let Some((n, seen)) = known else {
            wrong.get_or_insert_with(|| format!("{} was never sent", entry.transaction_id));
            return;
        };
        let timestamp = timestamp(n);
        let as_sent = entry.external_subscription_id == Some(format!("s-{}", n % SUBSCRIPTIONS).as_str())
            && entry.code == "gb"
            // Where the producer sent none, that it stays the same is what the bytes say below.
            && entry.timestamp.is_some()
            && (timestamp.is_none() || entry.timestamp == timestamp.as_deref())
            && entry.properties == properties(n);
        if std::mem::replace(seen, true) || !as_sent {
            wrong.get_or_insert_with(|| format!("t-{n} is billed twice, or not as it was sent: {entry:?}"));
        }
    });
    if let Some(wrong) = wrong {
        bail!("{wrong}");
    }
    let missing = (0..total).zip(&seen).filter(|(n, seen)| **seen == is_rolled(*n)).count();
    ensure!(missing == 0, "{missing} of {total} events would not be billed, or beside their sum");
    let mut expected: BTreeMap<Summed, u64> = BTreeMap::new();
    for (key, hundredths) in (0..total).filter(|n| is_rolled(*n)).map(rolled) {
        *expected.entry(key).or_default() += hundredths;
    }
    let differs = expected.iter().find(|(key, units)| sums.get(key) != Some(units));
    ensure!(
        differs.is_none() && sums.len() == expected.len(),
        "{} sums of subscriptions, regions and quarters in place of {}, for example {differs:?}",
        sums.len(),
        expected.len()
    );
    let counts = lago.counts();
    ensure!(counts.differing_retries == 0, "bytes differ between attempts: {:?}", lago.differing_examples());
    ensure!(counts.in_batch_duplicates == 0, "{counts:?}");
    Ok(names.len())
}

/// What was added up, and how much it is in hundredths.
fn summed(entry: &LedgerEntry<'_>) -> Option<(Summed, u64)> {
    let properties: serde_json::Value = serde_json::from_str(entry.properties).ok()?;
    let gb = properties["gb"].as_str().map_or_else(|| properties["gb"].to_string(), str::to_owned);
    let (whole, fraction) = gb.split_once('.').unwrap_or((&gb, ""));
    let hundredths = whole.parse::<u64>().ok()? * 100 + format!("{fraction:0<2}").parse::<u64>().ok()?;
    let quarter = u64::try_from(entry.timestamp_micros).ok()? / 1_000_000 / QUARTER;
    let subscription = entry.external_subscription_id?.to_owned();
    Some(((subscription, quarter, properties["region"].as_str()?.to_owned()), hundredths))
}
