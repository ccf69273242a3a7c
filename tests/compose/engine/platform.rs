//! The sidecars beside a gateway that was there before them.

use anyhow::{Context, Result, ensure};
use outrigger_tests::experiment::{Outcome, Trial};

use crate::delivery::send;
use crate::engine::{COMMAND_LINE, TAG, engine};
use crate::site::{PROCESSOR, Site};

const WEBHOOKS: u64 = 20;

/// C12: with `core.yml` a sidecar is in the network of an existing gateway, which no file of ours knows: it finds the gateway
/// there by its name, and senders in that network find it by its own. Its `down` leaves the network alone.
pub(crate) async fn an_existing_gateway_is_joined_in_its_own_network(_trial: Trial) -> Result<Outcome> {
    let engine = match engine().await {
        Ok(engine) => engine,
        Err(outcome) => return outcome,
    };
    let network = "platform-network";
    engine.docker(["network", "create", network]).await?;
    let site = Site::new(engine, &[("COMPOSE_PROFILES", PROCESSOR), ("GATEWAY_NETWORK", network)])?;
    site.set("COMPOSE_FILE", "sidecars.yml:core.yml")?;
    site.up().await?;
    let (image, secret) = (
        format!("outrigger/{COMMAND_LINE}:{TAG}"),
        format!("{}:/secret:ro", site.file("secrets/gateway-signing-secret").display()),
    );
    let words =
        ["run", "--detach", "--network", network, "--network-alias", "brain-gateway", "--volume", &secret, &image];
    let listen = ["listen", "--addr", "0.0.0.0:8000", "--secret-file", "/secret"];
    let gateway = engine.docker([&words[..], &listen].concat()).await?;

    let sidecar = site.sidecar(PROCESSOR).await?;
    sidecar.ready().await?;
    let networks = sidecar.seen["NetworkSettings"]["Networks"].as_object().context("no networks")?;
    ensure!(networks.contains_key(network), "it is in {:?}", networks.keys());
    ensure!(!networks.contains_key(&site.name("outrigger-public")), "it is in a public network of its own as well");
    send(&site, site.jwt()?, WEBHOOKS).await?;
    let key = format!("{}:/lago-rsa:ro", site.file("secrets/lago-rsa").display());
    let url = "http://lago-webhook-processor:8081/webhooks/lago";
    let words = ["run", "--rm", "--network", network, "--volume", &key, &image];
    let send = ["send", "--url", url, "--rsa-key-file", "/lago-rsa"];
    engine.docker([&words[..], &send].concat()).await.context("it is not found from the gateway's network")?;
    let delivered = site.drained().await?.delivered;
    ensure!(delivered == WEBHOOKS + 1, "{delivered} were delivered: {}", sidecar.log().await?);

    site.remove().await?;
    engine.docker(["rm", "--force", gateway.trim()]).await?;
    engine.docker(["network", "rm", network]).await?;
    Ok(Outcome::new(delivered, ""))
}
