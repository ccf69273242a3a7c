//! What happens, and the ledger of it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use kit_lago::sample::{Shape, sample};
use kit_lago::sender::{Delivery, Sender};
use kit_lago::webhook_type;
use kit_workbench::ledger::{Crash, Expectations, Ledger, Report, SentRequest};
use kit_workbench::{Digest, Moment};

use super::Progress;
use super::cast::Cast;

/// Webhooks under way at the same time, as from Lago's ten worker threads.
const LAGO_THREADS: usize = 10;
/// Between two webhooks, so that there is something to watch.
const PACE: Duration = Duration::from_millis(12);
/// Lago waits 3 s and 18 s between its attempts; the demo is shorter and more patient.
const ATTEMPTS: u32 = 60;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(150);
/// Deliveries that may be under way when the processor is killed or the gateway goes away.
const IN_FLIGHT: u64 = 1024;
const DRAIN_WITHIN: Duration = Duration::from_secs(15);

/// A webhook still to be sent.
struct Planned {
    delivery: Delivery,
    path: &'static str,
    organisation: &'static str,
    subject: String,
}

#[derive(Default)]
struct Counters {
    sent: AtomicU64,
    accepted: AtomicU64,
    given_up: AtomicU64,
}

pub(super) async fn run(cast: &mut Cast, events: u64) -> anyhow::Result<Report> {
    let plan = plan(cast, events)?;
    let mut progress = Progress::new(plan.len() as u64);
    let plan = Arc::new(Mutex::new(plan));
    let ledger = Arc::new(Mutex::new(Ledger::new()));
    let counters = Arc::new(Counters::default());
    let mut lago = tokio::task::JoinSet::new();
    for _ in 0..LAGO_THREADS {
        let (plan, ledger, counters) = (Arc::clone(&plan), Arc::clone(&ledger), Arc::clone(&counters));
        let base = format!("http://{}", cast.public);
        lago.spawn(async move { send_all(&base, &plan, &ledger, &counters).await });
    }

    // (after how many webhooks, what happens)
    let mut acts = VecDeque::from([
        (events / 3, Act::GatewayLeaves),
        (events / 2, Act::Kill),
        (events * 2 / 3, Act::GatewayReturns),
    ]);
    let mut left: Option<Moment> = None;
    let mut drain_by: Option<Instant> = None;
    loop {
        while let Some(result) = lago.try_join_next() {
            result.context("a sender panicked")??;
        }
        let (sent, accepted) = (counters.sent.load(Ordering::Relaxed), counters.accepted.load(Ordering::Relaxed));
        let delivered = cast.gateway.counts().unique;
        progress.show(sent, accepted, delivered);
        if acts.front().is_some_and(|(after, _)| sent >= *after) {
            match acts.pop_front().map(|(_, act)| act) {
                Some(Act::GatewayLeaves) => {
                    progress.tell("the gateway goes away: webhooks go on being accepted");
                    left = Some(Moment::now());
                    cast.gateway.stop().await;
                }
                Some(Act::Kill) => {
                    progress.tell("kill -9 for the processor, and a new start");
                    let from = Moment::now();
                    cast.kill_and_restart().await?;
                    note(&ledger, "kill -9", from);
                }
                Some(Act::GatewayReturns) => {
                    progress.tell("the gateway is back");
                    cast.gateway.restart_on_same_port().await.context("start the gateway again")?;
                    note(&ledger, "gateway away", left.take().unwrap_or_else(Moment::now));
                }
                None => {}
            }
        }
        if lago.is_empty() && acts.is_empty() {
            let deadline = *drain_by.get_or_insert_with(|| Instant::now() + DRAIN_WITHIN);
            if delivered >= accepted || Instant::now() > deadline {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    progress.bar.finish_and_clear();
    let given_up = counters.given_up.load(Ordering::Relaxed);
    if given_up > 0 {
        bail!("{given_up} webhooks were not taken within {ATTEMPTS} attempts");
    }
    let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
    ledger.extend_received(&cast.gateway.received());
    Ok(ledger.check(&Expectations { signed: true, ..Expectations::default() }))
}

/// How long sending takes where nothing goes wrong.
pub(super) fn sending_time(events: u64) -> Duration {
    // The repeated ones included.
    PACE * u32::try_from(events + events / 10).unwrap_or(u32::MAX)
}

#[derive(Clone, Copy)]
enum Act {
    GatewayLeaves,
    Kill,
    GatewayReturns,
}

fn note(ledger: &Mutex<Ledger>, what: &str, from: Moment) {
    let crash = Crash { what: what.to_owned(), from, until: Moment::now(), in_flight: IN_FLIGHT };
    ledger.lock().unwrap_or_else(PoisonError::into_inner).crash(crash);
}

/// Webhooks of every type, of a few customers, alternating between the two algorithms; one in ten
/// comes again, as Lago's do when an answer is lost.
fn plan(cast: &Cast, events: u64) -> anyhow::Result<VecDeque<Planned>> {
    let types = webhook_type::all();
    let mut plan = VecDeque::new();
    for (seq, kind) in (0..events).zip(types.iter().cycle()) {
        let customer = uuid::Uuid::from_u128(u128::from(seq % 7) + 1).to_string();
        let body = sample(kind.name, &Shape { customer, seq, ..Shape::default() });
        let (signing, path, organisation) = if seq % 2 == 0 {
            (&cast.hmac, "/webhooks/lago", "default")
        } else {
            (&cast.jwt, "/webhooks/lago/acme", "acme")
        };
        let delivery = signing.delivery(kind.name, body).context("sign a webhook")?;
        let subject = kit_lago::describe(&delivery.body, organisation, &delivery.unique_key).subject;
        let planned = |delivery| Planned { delivery, path, organisation, subject: subject.clone() };
        if seq % 10 == 9 {
            plan.push_back(planned(delivery.clone()));
        }
        plan.push_back(planned(delivery));
    }
    Ok(plan)
}

async fn send_all(
    base: &str,
    plan: &Mutex<VecDeque<Planned>>,
    ledger: &Mutex<Ledger>,
    counters: &Counters,
) -> anyhow::Result<()> {
    loop {
        let next = plan.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(planned) = next else { return Ok(()) };
        let sender = Sender::new(&format!("{base}{}", planned.path)).context("the processor's address")?;
        let mut taken = false;
        for _ in 0..ATTEMPTS {
            let mut request = SentRequest::begin(
                planned.organisation,
                planned.delivery.unique_key.clone(),
                planned.subject.clone(),
                Digest::of(&planned.delivery.body),
            );
            let answer = sender.send_once(&planned.delivery).await;
            if let Ok(answer) = &answer {
                request.finish(answer.status, &answer.body);
            }
            taken = request.is_accepted();
            let fresh = request.duplicate == Some(false);
            ledger.lock().unwrap_or_else(PoisonError::into_inner).sent(request);
            if taken {
                counters.accepted.fetch_add(u64::from(fresh), Ordering::Relaxed);
                break;
            }
            tokio::time::sleep(BETWEEN_ATTEMPTS).await;
        }
        counters.given_up.fetch_add(u64::from(!taken), Ordering::Relaxed);
        counters.sent.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(PACE * u32::try_from(LAGO_THREADS).unwrap_or(1)).await;
    }
}
