//! Everything is started at once, in any order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit_authentik::emulator::{NewEvent, User};
use kit_workbench::broker::Broker;
use kit_workbench::ledger::Ledger;
use kit_workbench::load::{LoadControl, LoadOptions};
use outrigger_tests::binaries::SEEDER;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::queue::{Client, Found};
use outrigger_tests::rig::amqp::{QUEUE, compare};

use crate::delivery::{billed, broker, publishing, report_usage, send};
use crate::engine::engine;
use crate::load;
use crate::seeder;
use crate::site::{ALL, BRIDGE, FORWARDER, Site};

/// The longest that one of them waits before it starts, in milliseconds: a broker takes some seconds on top.
const APART: u64 = 2_000;
const WEBHOOKS: u64 = 20;
/// Whoever starts: the gateways, Lago, Authentik, RabbitMQ; the seeder and the daemons.
const STARTING: usize = 5 + ALL.len();
/// Of the forwarder: its events have a queue too, and Authentik is asked often enough for a test.
const IDENTITY: &str = "[amqp.queues]\nidentity = [\"authentik.#\"]\n[poll]\ninterval_seconds = 1.0\n";

/// C9: gateway, Lago, Authentik, RabbitMQ, all four daemons and the seeder start at random moments of the same two seconds;
/// Temporal is away all the time. Each time all daemons end ready and the seeder ends with 0, and what is sent then arrives
/// everywhere.
pub(crate) async fn any_order_of_starting_ends_ready(mut trial: Trial) -> Result<Outcome> {
    let engine = match engine().await {
        Ok(engine) => engine,
        Err(outcome) => return outcome,
    };
    if !Broker::is_installed() {
        return Ok(Outcome::skipped("there is no RabbitMQ on this machine"));
    }
    let mut site = publishing(engine)?;
    site.set("COMPOSE_PROFILES", &format!("{},{SEEDER}", ALL.join(",")))?;
    site.set(load::WITH_RULES.0, load::WITH_RULES.1)?;
    load::write_rules(&site)?;
    site.set("AUTHENTIK_EVENT_FORWARDER_CONFIG", "./identity.toml")?;
    std::fs::write(site.file("identity.toml"), IDENTITY)?;
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
    let mut names = vec![seeder::container(&site).await?["Id"].as_str().context("no id")?.to_owned()];
    for service in ALL {
        names.push(site.sidecar(service).await?.name);
    }
    for round in 0..trial.count {
        trial.progress(round);
        site.compose(&["stop"]).await?;
        site.gateway()?.stop().await;
        site.other_gateway()?.stop().await;
        site.stop_lago().await;
        site.stop_authentik().await;
        broker.kill().await?;

        let pauses: [Duration; STARTING] = std::array::from_fn(|_| trial.millis(0, APART));
        let order = format!("round {}: {pauses:?}", round + 1);
        let [gateway, lago, authentik, rabbitmq, containers @ ..] = pauses;
        let begin = Instant::now();
        let started = {
            let gateway = async {
                tokio::time::sleep(gateway).await;
                site.other_gateway()?.restart_on_same_port().await?;
                site.gateway()?.restart_on_same_port().await.map_err(anyhow::Error::from)
            };
            let rabbitmq = async {
                tokio::time::sleep(rabbitmq).await;
                broker.start_again().await.map(drop).map_err(anyhow::Error::from)
            };
            let sidecars = futures_util::future::try_join_all(names.iter().zip(containers).map(
                async |(name, pause): (&String, Duration)| -> Result<String> {
                    tokio::time::sleep(pause).await;
                    engine.docker(["start", name]).await
                },
            ));
            let (lago, authentik) = (site.lago_later(lago), site.authentik_later(authentik));
            tokio::try_join!(gateway, rabbitmq, sidecars, lago, authentik)
        };
        let (.., lago, authentik) = started.context(order.clone())?;
        site.put_lago(lago);
        site.put_authentik(authentik);
        site.ready().await.context(order.clone())?;
        slowest = slowest.max(begin.elapsed());
        let code = seeder::ended(&site).await.context(order.clone())?;
        ensure!(code == 0, "{order}: the seeder ends with {code}");
        all.extend(send(&site, site.jwt()?, WEBHOOKS).await.context(order.clone())?);
        report_usage(&site, &format!("t-{round}"), u64::from(round)).await.context(order.clone())?;
        site.drained().await.context(order.clone())?;
        billed(&site, u64::from(round) + 1).await.context(order.clone())?;
        others(&site, u64::from(round) + 1).await.context(order)?;
        Client::connect(&broker).await?.drain(QUEUE, &mut found).await?;
    }
    compare(&all, &found)?;
    ledger.extend_sent(all);
    let report = site.settle(ledger, &format!("C9-{}", trial.seed)).await?;
    ensure!(report.redelivered == 0, "{} were delivered again", report.redelivered);
    site.remove().await?;
    let note = format!(
        "four daemons ready {:.1} s after the first at most, RabbitMQ included; {} delivered",
        slowest.as_secs_f64(),
        report.delivered_unique
    );
    Ok(Outcome::new(trial.count, note))
}

/// Sends the forwarder and the bridge what they are sent, once a round, and lets somebody log in without a webhook: all of it is
/// where it belongs.
async fn others(site: &Site, rounds: u64) -> Result<()> {
    site.authentik()?.happen(NewEvent::login(&User::new(7, "ann")));
    for service in [FORWARDER, BRIDGE] {
        let options = LoadOptions { requests: Some(WEBHOOKS), ..load::options(site, service) };
        let pool = Arc::new(load::pool(site, service)?);
        let report = kit_workbench::load::run(options, pool, &LoadControl::new()).await?.report;
        ensure!(report.ok == WEBHOOKS, "{service} has taken {} of {WEBHOOKS}: {:?}", report.ok, report.errors);
    }
    load::done(site, FORWARDER, rounds * (WEBHOOKS + 1)).await?;
    load::done(site, BRIDGE, rounds * WEBHOOKS).await
}
