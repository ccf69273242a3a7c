//! A broker behind a network that is cut: every packet of both sides vanishes, and nobody is told.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit_workbench::broker::Broker;
use kit_workbench::chaos::ChaosProxy;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::namespace::Namespace;
use outrigger_tests::queue::{Client, Found};
use outrigger_tests::rig::{REQUEST_DEADLINE, Rig};

use crate::broker::{DRAIN, Load, NOTICED_WITHIN, PER_SECOND, account, confirms_again, installed};

/// F13: the broker's address is gone from the network for a while, with connections open to it: noticed in time, webhooks are
/// accepted and the gateway gets its events as before, and everything is published once the address is back.
pub(crate) async fn a_partition_is_noticed_and_costs_the_broker_alone(mut trial: Trial) -> Result<Outcome> {
    if let Some(skipped) = installed() {
        return Ok(skipped);
    }
    let Some(namespace) = Namespace::new()? else {
        return Ok(Outcome::skipped("no network namespace can be made here"));
    };
    let broker = Broker::start().await?;
    let (here, away) = (namespace.here(), namespace.address(5));
    namespace.add_address(away)?;
    let mut rig = Rig::publishing("amqp://to-be-set", &[]).await?;
    let gateway = ChaosProxy::start_on(SocketAddr::from((here, 0)), rig.gateway.addr()).await?;
    let proxy = ChaosProxy::start_on(SocketAddr::from((away, 0)), broker.addr()).await?;
    rig.wrap(&namespace.enter());
    rig.public = SocketAddr::from((namespace.inside(), 8081));
    rig.admin = SocketAddr::from((namespace.inside(), 9081));
    let (public, admin) = (rig.public.to_string(), rig.admin.to_string());
    rig.set("SIDECAR_LISTEN__PUBLIC", &public);
    rig.set("SIDECAR_LISTEN__ADMIN", &admin);
    rig.set("BRAIN_GATEWAY_URL", &format!("http://{}", gateway.addr()));
    rig.set("AMQP_URL", &format!("amqp://{}", proxy.addr()));
    rig.start().await?;
    let load = Load::start(&rig, PER_SECOND)?;
    confirms_again(&rig, DRAIN).await?;
    let client = Client::connect(&broker).await?;
    let (mut found, mut slowest) = (Found::new(), Duration::ZERO);
    for round in 0..trial.count {
        trial.progress(round);
        // Somewhere in a window, or between two.
        tokio::time::sleep(Duration::from_millis(trial.random.u64(0..400))).await;
        let begin = Instant::now();
        namespace.take_address(away)?;
        let connected = async || anyhow::Ok(rig.metrics().await?.sum("amqp_connected", &[]));
        while connected().await? > 0.0 {
            ensure!(begin.elapsed() <= NOTICED_WITHIN, "round {round}: not noticed");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        slowest = slowest.max(begin.elapsed());
        let taken = rig.gateway.counts().unique;
        rig.gateway
            .wait_for_unique(taken + 1, REQUEST_DEADLINE)
            .await
            .with_context(|| format!("round {round}: the gateway while the broker is away"))?;
        namespace.add_address(away)?;
        confirms_again(&rig, DRAIN).await.with_context(|| format!("round {round}"))?;
    }
    let again = account(rig, load, &client, &mut found).await?;
    Ok(Outcome::new(
        trial.count,
        format!("{} published, {again} of them again, 0 lost, noticed after {slowest:.1?} at most", found.len()),
    ))
}
