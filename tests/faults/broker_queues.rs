//! One of several queues of an exchange goes away while the others go on: nothing is returned, and nobody says so.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kit_workbench::broker::Broker;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::queue::{Client, Found};
use outrigger_tests::rig::Rig;
use outrigger_tests::rig::amqp::{QUEUE, compare};

use crate::broker::{DRAIN, Load, NOTICED_WITHIN, PER_SECOND, confirms_again, finish, installed};

/// A queue that somebody else has bound to everything.
const WITNESS: &str = "witness";

/// F15: a queue is deleted under load, beside another one that takes everything: it is made again within seconds and gets
/// what is published from then on; the other one has everything.
pub(crate) async fn a_queue_that_is_deleted_beside_another_is_made_again(trial: Trial) -> Result<Outcome> {
    if let Some(skipped) = installed() {
        return Ok(skipped);
    }
    let broker = Broker::start().await?;
    let mut rig = Rig::publishing(&broker.url(), &[]).await?;
    rig.start().await?;
    // The exchange is made with the first connection.
    let begin = Instant::now();
    let client = Client::connect(&broker).await?;
    while rig.metrics().await?.sum("amqp_connected", &[]) < 1.0 {
        ensure!(begin.elapsed() < NOTICED_WITHIN, "it does not connect");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    client.declare(WITNESS).await?;
    client.bind(WITNESS, "events", "lago.#").await?;
    let load = Load::start(&rig, PER_SECOND)?;
    confirms_again(&rig, DRAIN).await?;
    let mut slowest = Duration::ZERO;
    for round in 0..trial.count {
        trial.progress(round);
        client.delete_queue(QUEUE).await?;
        let begin = Instant::now();
        // On a channel each: asking for what is not there closes it.
        while Client::connect(&broker).await?.messages(QUEUE).await.unwrap_or(0) == 0 {
            ensure!(begin.elapsed() < NOTICED_WITHIN, "round {round}: queue {QUEUE} does not come back");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        slowest = slowest.max(begin.elapsed());
    }
    let sent = load.end().await?;
    let sink = rig.published_all(DRAIN).await?;
    ensure!(sink["parked"] == 0, "something was given up: {sink}");
    let mut found = Found::new();
    client.drain(WITNESS, &mut found).await?;
    let again = compare(&sent, &found)?;
    finish(rig).await?;
    Ok(Outcome::new(
        trial.count,
        format!("{} published, {again} again, 0 lost; {slowest:.1?} until the queue was there again", found.len()),
    ))
}
