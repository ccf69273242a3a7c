//! What each sidecar is sent by those who know it, at any rate, and when it has done with that.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kit::secret::Secret;
use kit_delivery::signature::{SigningSecret, signature_header};
use kit_workbench::load::{LagoWebhooks, LoadOptions, Pool, PreparedWebhook, Target};
use outrigger_tests::rig::forwarder;
use serde_json::json;

use crate::delivery::{billed, usage};
use crate::site::{ALL, BRIDGE, FORWARDER, PROCESSOR, SUBSCRIPTIONS, Site, TRACKER};

/// Users, or objects, that events are about.
const SUBJECTS: usize = 100;
/// How long everything taken may be under way.
const DEADLINE: Duration = Duration::from_secs(120);
/// A configuration of the bridge in which an event starts a workflow.
const RULES: &str = "[[rule]]\nname = \"onboarding\"\ntypes = [\"lago.customer.created\"]\n\
                     workflow_type = \"Onboarding\"\ntask_queue = \"onboarding\"\n";
/// The setting that names it, for [`Site::new`].
pub(crate) const WITH_RULES: (&str, &str) = ("TEMPORAL_EVENT_BRIDGE_CONFIG", "./bridge.toml");

/// Writes the file of [`WITH_RULES`].
pub(crate) fn write_rules(site: &Site) -> Result<()> {
    Ok(std::fs::write(site.file("bridge.toml"), RULES)?)
}

/// Where senders on the host find a sidecar.
pub(crate) fn target(service: &str) -> Target {
    let path = match service {
        TRACKER => "/api/v1/events",
        FORWARDER => forwarder::PATH,
        BRIDGE => "/webhooks/events",
        _ => "/webhooks/lago",
    };
    let port = ALL.iter().zip(8081..).find_map(|(known, port)| (*known == service).then_some(port));
    Target::new(SocketAddr::from(([127, 0, 0, 1], port.unwrap_or_default())), path)
}

/// A load of a sidecar that never gives up, to be limited by the caller.
pub(crate) fn options(site: &Site, service: &str) -> LoadOptions {
    // Only Lago's webhooks are held against the ledger.
    LoadOptions { target: target(service), record: service == PROCESSOR, ..site.load() }
}

/// Signed as each sender signs, with what `compose/up` has made for it. All but Lago's webhooks are made as they are sent: their
/// key is in them.
pub(crate) fn pool(site: &Site, service: &str) -> Result<Pool> {
    Ok(match service {
        PROCESSOR => Pool::lago(&LagoWebhooks::new("default", site.jwt()?))?,
        TRACKER => {
            let bearer = format!("Bearer {}", site.secret("usage-producer-token")?);
            let event = |n: u64| {
                let headers = vec![("Authorization".to_owned(), bearer.clone())];
                PreparedWebhook::made_of_key(move |key| PreparedWebhook::new("", "", headers.clone(), usage(key, n)))
            };
            Pool::new((0..SUBSCRIPTIONS).map(event).collect())
        }
        FORWARDER => forwarder::pool(&site.secret("authentik-webhook-secret")?, SUBJECTS),
        BRIDGE => {
            let secret = site.secret("gateway-signing-secret")?;
            SigningSecret::parse(&Secret::from(secret.clone()))?;
            Pool::new((0..SUBJECTS).map(|subject| event_for_temporal(&secret, subject)).collect())
        }
        _ => bail!("nobody sends {service} anything"),
    })
}

/// A CloudEvent of another daemon's sink, which starts a workflow.
fn event_for_temporal(secret: &str, subject: usize) -> PreparedWebhook {
    let secret = secret.to_owned();
    PreparedWebhook::made_of_key(move |key| {
        let subject = format!("customer/{subject}");
        let body = json!({
            "specversion": "1.0", "id": key, "source": "lago", "type": "lago.customer.created", "subject": subject,
            "datacontenttype": "application/json", "data": { "customer": { "external_id": subject } },
        })
        .to_string();
        let seconds = jiff::Timestamp::now().as_second();
        let secrets: Vec<_> = SigningSecret::parse(&Secret::from(secret.clone())).into_iter().collect();
        let signature = signature_header(&secrets, key, seconds, body.as_bytes());
        let headers = [
            ("Content-Type", "application/cloudevents+json"),
            ("webhook-id", key),
            ("webhook-timestamp", &seconds.to_string()),
            ("webhook-signature", &signature),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        PreparedWebhook::new("", subject, headers, body)
    })
}

/// Waits until so many events – all that a sidecar was ever sent – are where they belong: usage in Lago, each once; Authentik's
/// at the gateway, signed; the bridge's in its journal, where they wait for a Temporal that is away.
pub(crate) async fn done(site: &Site, service: &'static str, events: u64) -> Result<()> {
    if service == TRACKER {
        return billed(site, events).await;
    }
    let sidecar = site.sidecar(service).await?;
    let waiting = if service == BRIDGE { events } else { 0 };
    let begin = Instant::now();
    loop {
        let said = sidecar.api("/api/v1/statistics").await?;
        let sinks = said["sinks"].as_array().context("no sinks")?;
        let of = |sink: &serde_json::Value, what: &str| sink[what].as_u64().unwrap_or_default();
        let pending: u64 = sinks.iter().map(|sink| of(sink, "pending") + of(sink, "retrying")).sum();
        if said["accepted"] == events && pending == waiting {
            break;
        }
        ensure!(begin.elapsed() < DEADLINE, "{service} was sent {events} events and says {said}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    if service == FORWARDER {
        let gateway = site.other_gateway()?;
        gateway.wait_for_unique(events, DEADLINE).await?;
        let unsigned = gateway.with_received(|all| all.iter().filter(|one| one.signature_ok != Some(true)).count());
        ensure!(unsigned == 0, "{unsigned} events arrived unsigned");
    }
    Ok(())
}
