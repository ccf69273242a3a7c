//! Everything is started at once, in any order.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit_workbench::broker::Broker;
use kit_workbench::ledger::Ledger;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::queue::{Client, Found};
use outrigger_tests::rig::amqp::{QUEUE, compare};

use crate::delivery::{billed, broker, publishing, report_usage, send};
use crate::engine::engine;
use crate::site::{PROCESSOR, TRACKER};

/// The longest that one of them waits before it starts, in milliseconds: a broker takes some seconds on top.
const APART: u64 = 2_000;
const WEBHOOKS: u64 = 20;

/// C9: gateway, Lago, RabbitMQ and both sidecars start at random moments of the same two seconds. Each time all end ready, and
/// what is sent then arrives everywhere.
pub(crate) async fn any_order_of_starting_ends_ready(mut trial: Trial) -> Result<Outcome> {
    let engine = match engine().await {
        Ok(engine) => engine,
        Err(outcome) => return outcome,
    };
    if !Broker::is_installed() {
        return Ok(Outcome::skipped("there is no RabbitMQ on this machine"));
    }
    let mut site = publishing(engine)?;
    site.up().await?;
    let mut broker = broker(&site).await?;
    site.neighbours().await?;
    site.ready().await?;
    let mut ledger = Ledger::new();
    let (mut all, mut found, mut slowest) = (Vec::new(), Found::new(), Duration::ZERO);
    // The first start declares the queue, which must be written down before the broker is killed.
    all.extend(send(&site, site.jwt()?, WEBHOOKS).await?);
    site.drained().await?;
    broker.write_down_queues().await?;
    for round in 0..trial.count {
        trial.progress(round);
        site.compose(&["stop"]).await?;
        site.gateway()?.stop().await;
        site.stop_lago().await;
        broker.kill().await?;

        let pauses: Vec<Duration> = (0..5).map(|_| trial.millis(0, APART)).collect();
        let order = format!("round {}: {pauses:?}", round + 1);
        let [gateway, lago, rabbitmq, processor, tracker] = pauses[..] else { unreachable!("five were made") };
        let begin = Instant::now();
        let names = [site.sidecar(PROCESSOR).await?.name, site.sidecar(TRACKER).await?.name];
        let container = async |pause: Duration, name: &str| -> Result<()> {
            tokio::time::sleep(pause).await;
            engine.docker(["start", name]).await.map(drop)
        };
        let started = {
            let lago_state = site.lago_later(lago);
            let gateway = async {
                tokio::time::sleep(gateway).await;
                site.gateway()?.restart_on_same_port().await.map_err(anyhow::Error::from)
            };
            let rabbitmq = async {
                tokio::time::sleep(rabbitmq).await;
                broker.start_again().await.map(drop).map_err(anyhow::Error::from)
            };
            let sidecars = async { tokio::try_join!(container(processor, &names[0]), container(tracker, &names[1])) };
            tokio::try_join!(gateway, rabbitmq, sidecars, lago_state)
        };
        let (.., server) = started.context(order.clone())?;
        site.put_lago(server);
        site.ready().await.context(order.clone())?;
        slowest = slowest.max(begin.elapsed());
        all.extend(send(&site, site.jwt()?, WEBHOOKS).await.context(order.clone())?);
        report_usage(&site, &format!("t-{round}"), u64::from(round)).await.context(order.clone())?;
        site.drained().await.context(order.clone())?;
        billed(&site, u64::from(round) + 1).await.context(order)?;
        Client::connect(&broker).await?.drain(QUEUE, &mut found).await?;
    }
    compare(&all, &found)?;
    ledger.extend_sent(all);
    let report = site.settle(ledger, &format!("C9-{}", trial.seed)).await?;
    ensure!(report.redelivered == 0, "{} were delivered again", report.redelivered);
    site.remove().await?;
    let note = format!(
        "ready {:.1} s after the first at most, RabbitMQ included; {} delivered",
        slowest.as_secs_f64(),
        report.delivered_unique
    );
    Ok(Outcome::new(trial.count, note))
}
