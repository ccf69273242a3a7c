//! The threat table for the event forwarder: the experiments of the webhook processor, with Authentik's requests.

use anyhow::{Result, ensure};
use kit_authentik::emulator::{AuthentikServer, Generation};
use kit_workbench::Digest;
use kit_workbench::ledger::{Ledger, SentRequest};
use kit_workbench::raw;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::rig::forwarder::{self, PATH, envelope, signature};
use outrigger_tests::rig::{REQUEST_DEADLINE, Rig};
use serde_json::json;

use crate::{framing, leaks, outgoing};

/// T7, as [`outgoing::destinations_come_from_the_configuration_only`]: neither events nor questions to Authentik go anywhere
/// that a URL of another kind, a proxy in the environment or anything in an event names.
pub(crate) async fn destinations_of_the_forwarder_come_from_the_configuration_only(_: Trial) -> Result<Outcome> {
    let names = ["BRAIN_GATEWAY_URL", "SIDECAR_GATEWAY__OAUTH__TOKEN_URL", "AUTHENTIK_URL"];
    let token = "a token of thirty-two bytes or so";
    let mut cases = 0;
    for name in names {
        // A token without an address is a mistake of its own, which would be told in a line more.
        let settings = if name == "AUTHENTIK_URL" { vec![("AUTHENTIK_TOKEN", token)] } else { Vec::new() };
        cases += outgoing::wrong_urls_are_refused(&Rig::forwarder(&settings).await?, &[name]).await?;
    }
    let authentik = AuthentikServer::start(Generation::V2026_2).await?;
    let (url, own) = (authentik.url(), authentik.token());
    let settings = [("AUTHENTIK_URL", &*url), ("AUTHENTIK_TOKEN", &*own), ("SIDECAR_POLL__INTERVAL_SECONDS", "0.1")];
    let mut rig = Rig::forwarder(&settings).await?;
    let canary = outgoing::lure(&mut rig).await?;
    rig.start().await?;
    let mut ledger = Ledger::new();
    let elsewhere = canary.url();
    for name in ["webhook_url", "url", "callback", "location", "http_request", "redirect_uri", "dataref"] {
        let key = format!("{elsewhere}/{name}");
        let event = forwarder::event(&key, &json!({ name: &elsewhere, "path": &elsewhere }).to_string());
        let body = envelope(&event);
        let signed = signature(rig.webhook_secret(), body.as_bytes());
        let mut sent = SentRequest::begin("default", key.as_str(), "user/5", Digest::of(event.as_bytes()));
        let headers = [
            ("X-Outrigger-Signature", signed.as_str()),
            ("Location", &elsewhere),
            ("X-Forwarded-Host", &elsewhere),
            ("Origin", &elsewhere),
        ];
        let answer = raw::request(rig.public, "POST", PATH, &headers, body.as_bytes(), REQUEST_DEADLINE).await?;
        sent.finish(answer.status, &answer.body);
        ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
        ledger.sent(sent);
        cases += 1;
    }
    rig.settle(ledger, "T7a").await?;
    ensure!(authentik.counts().requests > 2, "Authentik was not asked: {:?}", authentik.counts());
    ensure!(canary.connections() == 0, "{} connections to somebody who was not configured", canary.connections());
    Ok(Outcome::new(cases, "exit 78 for each URL, 0 connects to proxies and to addresses in events"))
}

/// T8, as [`outgoing::nothing_in_a_webhook_bends_the_outgoing_request`].
pub(crate) async fn nothing_in_an_identity_event_bends_the_outgoing_request(trial: Trial) -> Result<Outcome> {
    outgoing::nothing_bends(trial, async |settings| Rig::forwarder_started(settings).await, any_request).await
}

/// An event whose every field but its pk is the choice of somebody in Authentik.
fn any_request(rig: &Rig, _: u32, random: &mut fastrand::Rng) -> Result<Vec<u8>> {
    let pk = uuid::Uuid::from_u128(random.u128(..)).simple().to_string();
    let action = outgoing::any_text(random);
    let mut text = || outgoing::any_text(random);
    let mut event = json!({
        // What has none is no event.
        "pk": pk, "action": if action.is_empty() { "login".to_owned() } else { action }, "app": text(), "created": text(),
        "client_ip": text(),
        "user": { "pk": 5, "username": text(), "email": text() },
        "context": { "username": text(), "model": { "app": text(), "model_name": text(), "pk": text(), "name": text() } },
        "brand": { "name": text() },
    });
    if random.bool() {
        event["action"] = json!("model_updated");
    }
    if random.u32(0..4) == 0 {
        event["user"] = json!({});
    }
    let body = envelope(&event.to_string());
    let signed = signature(rig.webhook_secret(), body.as_bytes());
    Ok(outgoing::hostile_request(PATH, &body, &[("X-Outrigger-Signature", signed.as_bytes())], random))
}

/// T9 and T16, as [`framing::no_second_request_is_hidden_in_a_first`].
pub(crate) async fn no_second_identity_event_is_hidden_in_a_first(_: Trial) -> Result<Outcome> {
    framing::none_is_hidden(Rig::forwarder_started(&[]).await?).await
}

/// T10, as [`leaks::no_text_from_outside_forges_or_floods_the_log`].
pub(crate) async fn no_text_in_an_identity_event_forges_or_floods_the_log(trial: Trial) -> Result<Outcome> {
    leaks::none_forges_or_floods(trial, Rig::forwarder(&[("SIDECAR_AUTHENTIK__BODY_LIMIT_BYTES", "67108864")]).await?)
        .await
}
