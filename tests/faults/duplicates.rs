//! The same webhook, again and again.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use kit_lago::sample::{Shape, sample};
use kit_workbench::Digest;
use kit_workbench::ledger::{Ledger, SentRequest};
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::rig::{Mode, Rig};

/// So many senders have the same webhook at once.
const SENDERS: usize = 64;
/// Webhooks that are sent again across restarts.
const REPLAYED: u64 = 100;

fn body(seq: u64) -> String {
    sample("invoice.created", &Shape { seq, ..Shape::default() })
}

/// Posts, and tells the ledger. No order is promised here: everything is sent at once.
async fn post(rig: &Rig, key: &str, body: &str) -> Result<SentRequest> {
    let mut sent = SentRequest::begin("default", key, "", Digest::of(body.as_bytes()));
    let answer = rig.post(key, body).await?;
    sent.finish(answer.status, &answer.body);
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    Ok(sent)
}

/// F21: 64 senders with the same webhook at once: one is told that it is new, all get the same id;
/// and the same key with another body, in the same moment, is another event.
pub(crate) async fn one_webhook_sent_by_many_at_once_is_one_event(mut trial: Trial) -> Result<Outcome> {
    let rig = Rig::started(Mode::Hmac, &[]).await?;
    let mut ledger = Ledger::new();
    for round in 0..trial.count {
        trial.progress(round);
        let key = uuid::Uuid::from_u128(trial.random.u128(..)).to_string();
        let (first, other) = (body(u64::from(round) * 2), body(u64::from(round) * 2 + 1));
        // In every fourth round two bodies compete for one key.
        let bodies = if round % 4 == 3 { vec![&first, &other] } else { vec![&first] };
        let senders = (0..SENDERS).map(|sender| post(&rig, &key, bodies[sender % bodies.len()]));
        let sent = try_join_all(senders).await?;
        for body in &bodies {
            let digest = Digest::of(body.as_bytes());
            let own: Vec<_> = sent.iter().filter(|request| request.body_sha256 == digest).collect();
            let fresh = own.iter().filter(|request| request.duplicate == Some(false)).count();
            ensure!(fresh == 1, "{fresh} of {} senders were told that theirs was new", own.len());
            ensure!(own.iter().all(|request| request.event_id == own[0].event_id), "one body, several ids");
        }
        ledger.extend_sent(sent);
    }
    let conflicts = rig.metrics().await?.sum("lago_webhooks_total", &[("result", "conflict")]);
    ensure!(conflicts == f64::from(trial.count / 4), "{conflicts} conflicts counted of {}", trial.count / 4);
    let report = rig.settle(ledger, &format!("F21-{}", trial.seed)).await?;
    ensure!(report.redelivered == 0, "{} deliveries were repeated without a crash", report.redelivered);
    Ok(Outcome::new(
        trial.count,
        format!("{} requests, {} events, {} conflicts", report.sent, report.accepted, report.conflicts),
    ))
}

/// F21: webhooks sent again in another order, before and after restarts and kills, are known, and
/// keep their ids.
pub(crate) async fn replays_in_any_order_are_known_across_restarts(mut trial: Trial) -> Result<Outcome> {
    let mut rig = Rig::started(Mode::Hmac, &[]).await?;
    let mut ledger = Ledger::new();
    let mut webhooks: Vec<(String, String)> =
        (0..REPLAYED).map(|seq| (uuid::Uuid::from_u128(trial.random.u128(..)).to_string(), body(seq))).collect();
    let mut ids: HashMap<String, String> = HashMap::new();
    for round in 0..=trial.count {
        trial.progress(round);
        trial.random.shuffle(&mut webhooks);
        for some in webhooks.chunks(16) {
            let sent = try_join_all(some.iter().map(|(key, body)| post(&rig, key, body))).await?;
            for request in &sent {
                ensure!(request.duplicate == Some(round > 0), "round {round}: {request:?}");
                let id = request.event_id.clone().unwrap_or_default();
                let known = ids.entry(request.key.clone()).or_insert_with(|| id.clone());
                ensure!(*known == id, "the id of {} was {known}, now {id}", request.key);
            }
            ledger.extend_sent(sent);
        }
        if round % 2 == 0 {
            rig.crash(&mut ledger).await?;
        } else {
            rig.restart(&mut ledger).await?;
        }
    }
    let report = rig.settle(ledger, &format!("F21r-{}", trial.seed)).await?;
    ensure!(report.accepted == REPLAYED && report.duplicates_answered == REPLAYED * u64::from(trial.count));
    Ok(Outcome::new(report.duplicates_answered, format!("{} events, {} restarts", report.accepted, trial.count + 1)))
}
