//! Identity events: what holds for webhooks of Lago holds for those of Authentik; and what a webhook does not bring
//! comes by the other way, once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use kit::secret::Secret;
use kit_authentik::blueprint::Authentication;
use kit_authentik::emulator::{
    AuthentikServer, AuthentikState, Generation, Mapping, NewEvent, Notifier, NotifierOptions, Trouble, User,
};
use kit_authentik::envelope::canonical;
use kit_authentik::event::EventPk;
use kit_authentik::signature::sign;
use kit_workbench::ledger::{Ledger, SentRequest};
use kit_workbench::{Digest, raw};
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::power::FileSystem;
use outrigger_tests::rig::forwarder::{self, PATH, envelope, event_id, pk, signature};
use outrigger_tests::rig::{REQUEST_DEADLINE, Rig};

use crate::{admin, crowds, gateway, kills, power};

/// Events that one count of the campaign stands for.
const THOUSAND: u64 = 1_000;
/// How fast they happen.
const PER_SECOND: u64 = 1_500;
/// Who causes them.
const USERS: u64 = 97;
/// One event in so many can be seen later than its time says.
const LATE: u64 = 500;
/// The daemon is killed so often; in real time that would be every minute.
const KILL_AFTER_MILLIS: (u64, u64) = (1_000, 3_000);
/// How long everything may take to arrive once nothing happens any more.
const DRAIN_DEADLINE: Duration = Duration::from_secs(300);
/// Senders of one event at once.
const SENDERS: usize = 64;

/// Section 4 of the issue: a fifth of the webhooks is lost, a twentieth comes twice, they come in any order, and the
/// daemon is killed again and again: the gateway gets every event under its one id, and no other.
pub(crate) async fn every_event_arrives_under_its_id_whatever_webhooks_do(mut trial: Trial) -> Result<Outcome> {
    let total = u64::from(trial.count) * THOUSAND;
    let authentik = AuthentikServer::start(Generation::V2026_2).await?;
    let (url, token) = (authentik.url(), authentik.token());
    let mut rig = Rig::forwarder_started(&[
        ("AUTHENTIK_URL", &url),
        ("AUTHENTIK_TOKEN", &token),
        ("SIDECAR_POLL__INTERVAL_SECONDS", "0.5"),
        ("SIDECAR_POLL__OVERLAP_SECONDS", "3"),
        ("SIDECAR_POLL__SINCE", "2020-01-01T00:00:00Z"),
        ("SIDECAR_GATEWAY__RETRY__SCHEDULE_SECONDS", "0.1,0.5,1,1,1"),
    ])
    .await?;
    let mapping = Mapping::Blueprint(Authentication::Hmac, Secret::from(rig.webhook_secret().to_owned()));
    let options = NotifierOptions {
        slots: 16,
        // Tried again after a hundredth of the time: the poller is to fill in, and not patience.
        time_scale: 0.01,
        trouble: Trouble { lost: 0.2, twice: 0.05, delay: Duration::from_millis(200) },
        ..NotifierOptions::new(format!("http://{}{PATH}", rig.public), mapping)
    };
    let notifier = Notifier::start(authentik.state(), options);
    let happening = tokio::spawn(happen(Arc::clone(authentik.state()), total));
    let mut kills = 0;
    while !happening.is_finished() {
        trial.progress(u32::try_from(authentik.counts().events / THOUSAND)?);
        // Not waiting for luck: the random moment is the experiment.
        tokio::time::sleep(trial.millis(KILL_AFTER_MILLIS.0, KILL_AFTER_MILLIS.1)).await;
        rig.kill().await?;
        rig.start().await.with_context(|| format!("kill {}", kills + 1))?;
        kills += 1;
    }
    let wanted: BTreeSet<String> = happening.await?.into_iter().map(|pk| event_id(pk).to_string()).collect();
    ensure!(wanted.len() as u64 == total, "{} events happened", wanted.len());
    ensure!(notifier.quiet(DRAIN_DEADLINE).await, "the worker never ends: {:?}", notifier.counts());
    arrived(&rig, &wanted).await?;
    let statistics = rig.drained().await?;
    ensure!(statistics.accepted == total && statistics.delivered == total, "{total} happened: {statistics:?}");
    let filled_in = rig.metrics().await?.sum("authentik_events_total", &[("by", "poll"), ("result", "accepted")]);
    let (sent, asked) = (notifier.counts(), authentik.counts().requests);
    ensure!(sent.lost > total / 10, "only {} webhooks were lost", sent.lost);
    let (exit, _) = rig.stop().await?;
    ensure!(exit.code == Some(0), "ended with {exit:?}");
    let lost = sent.lost;
    Ok(Outcome::new(
        total,
        format!(
            "{lost} webhooks lost, {kills} kills, {filled_in} filled in since the last, {asked} questions; each there once"
        ),
    ))
}

/// So many events, evenly, some of them seen late.
async fn happen(state: Arc<AuthentikState>, total: u64) -> Vec<EventPk> {
    let (mut pks, mut late) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    for n in 0..total {
        let event = NewEvent::login(&User::new(i64::try_from(10 + n % USERS).unwrap_or(10), "somebody"));
        if n % LATE == LATE / 2 {
            late.push(state.begin(event));
        } else {
            pks.push(state.happen(event));
        }
        if n % 50 == 49 {
            // The transactions of the last moment end, within the overlap.
            for pk in late.drain(..) {
                state.commit(pk);
                pks.push(pk);
            }
            let due = Duration::from_secs_f64((n + 1) as f64 / PER_SECOND as f64);
            tokio::time::sleep(due.saturating_sub(begin.elapsed())).await;
        }
    }
    for pk in late {
        state.commit(pk);
        pks.push(pk);
    }
    pks
}

/// Waits until the gateway has all of these, and sees that it has no other.
async fn arrived(rig: &Rig, wanted: &BTreeSet<String>) -> Result<()> {
    let begin = Instant::now();
    loop {
        let (mut missing, mut invented) = (wanted.clone(), None);
        rig.gateway.with_received(|received| {
            for id in received.iter().filter_map(|received| received.event_id.as_deref()) {
                if !missing.remove(id) && !wanted.contains(id) {
                    invented = Some(id.to_owned());
                }
            }
        });
        ensure!(invented.is_none(), "the gateway got {invented:?}, which never happened");
        if missing.is_empty() {
            return Ok(());
        }
        ensure!(
            begin.elapsed() < DRAIN_DEADLINE,
            "{} of {} are missing, for example {:?}; the log ends so: {}",
            missing.len(),
            wanted.len(),
            missing.first(),
            rig.end_of_log(10)
        );
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// F1, as [`kills::a_kill_under_load_loses_nothing`].
pub(crate) async fn a_kill_under_load_loses_no_identity_event(trial: Trial) -> Result<Outcome> {
    kills::killed_under_load(trial, Rig::forwarder_started(&[]).await?).await
}

/// F27, as [`kills::a_stop_under_load_answers_what_it_took`].
pub(crate) async fn a_stop_under_load_answers_identity_events(trial: Trial) -> Result<Outcome> {
    kills::stopped_under_load(trial, Rig::forwarder_started(&[]).await?).await
}

/// F27, as [`kills::a_second_signal_ends_at_once_and_an_unfinished_body_does_not_hold_up`].
pub(crate) async fn a_second_signal_ends_the_forwarder_at_once(trial: Trial) -> Result<Outcome> {
    kills::signalled_twice(trial, Rig::forwarder(&[]).await?).await
}

/// F3, as [`power::a_power_cut_on_ext4_loses_nothing`].
pub(crate) async fn a_power_cut_on_ext4_loses_no_identity_event(trial: Trial) -> Result<Outcome> {
    power::a_power_cut_loses_nothing(trial, FileSystem::Ext4, unstarted).await
}

/// F3, as [`power::a_power_cut_on_xfs_loses_nothing`].
pub(crate) async fn a_power_cut_on_xfs_loses_no_identity_event(trial: Trial) -> Result<Outcome> {
    power::a_power_cut_loses_nothing(trial, FileSystem::Xfs, unstarted).await
}

async fn unstarted() -> Result<Rig> {
    Rig::forwarder(&[]).await
}

/// F16, as [`gateway::every_answer_does_what_is_documented`].
pub(crate) async fn every_answer_to_an_identity_event_does_what_is_documented(trial: Trial) -> Result<Outcome> {
    gateway::every_answer_to(trial, Rig::forwarder(&[]).await?).await
}

/// F24, as [`crowds::slow_senders_do_not_slow_others`].
pub(crate) async fn slow_senders_do_not_slow_authentik(trial: Trial) -> Result<Outcome> {
    let rig = Rig::forwarder_started(&crowds::SLOW_LIMITS).await?;
    crowds::slow_senders_beside(trial, rig, "authentik_webhooks_refused_total").await
}

/// F21: 64 senders with one event at once, in bodies that differ in everything but the pk: one is told that it is new, and
/// all get the same id. Sent again after a kill, all are known.
pub(crate) async fn one_event_sent_by_many_at_once_is_one_event(mut trial: Trial) -> Result<Outcome> {
    let mut rig = Rig::forwarder_started(&[]).await?;
    let mut keys = Vec::new();
    for round in 0..trial.count {
        trial.progress(round);
        let key = uuid::Uuid::from_u128(trial.random.u128(..));
        let (simple, dashed) = (key.simple().to_string(), key.to_string());
        // With dashes as the API has it, and without as a mapping passes it on.
        let (one, other) = (forwarder::event(&dashed, "1"), forwarder::event(&dashed, "2").replace(&simple, &dashed));
        let senders = (0..SENDERS).map(|n| rig.post_event(if n % 2 == 0 { &one } else { &other }));
        let mut fresh = 0;
        for answer in try_join_all(senders).await? {
            let said = answer.json().context("an answer without JSON")?;
            ensure!(answer.status == 200 && said["id"] == event_id(pk(&dashed)).to_string(), "{said}");
            fresh += u32::from(said["duplicate"] == false);
        }
        ensure!(fresh == 1, "{fresh} of {SENDERS} were told that theirs was new");
        keys.push(dashed);
        if round % 10 == 9 {
            rig.kill().await?;
            rig.start().await?;
            for key in &keys {
                let said = rig.post_event(&forwarder::event(key, "3")).await?.json().context("no JSON")?;
                ensure!(said["duplicate"] == true, "{key} was forgotten: {said}");
            }
        }
    }
    let counters = rig.drained().await?;
    ensure!(counters.accepted == u64::from(trial.count), "{counters:?}");
    Ok(Outcome::new(trial.count, format!("{SENDERS} senders each, one event each")))
}

/// T1: valid requests with one byte changed. In a header the signature covers every byte of the body; in the body it
/// covers pk, action, time and nonce.
pub(crate) async fn no_changed_byte_of_an_identity_event_gets_through(mut trial: Trial) -> Result<Outcome> {
    let rig = Rig::forwarder_started(&[]).await?;
    let body = envelope(&forwarder::event("genuine", r#""\u00e4""#)).into_bytes();
    let signed = signature(rig.webhook_secret(), &body).into_bytes();
    for case in 0..trial.count {
        trial.progress(case);
        let (mut body, mut signed) = (body.clone(), signed.clone());
        let (at, bit) = (trial.random.usize(..body.len() + signed.len()), 1 << trial.random.u8(0..8));
        match at.checked_sub(signed.len()) {
            Some(at) => body[at] ^= bit,
            None => signed[at] ^= bit,
        }
        let head =
            format!("POST {PATH} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        let request = [head.as_bytes(), b"X-Outrigger-Signature: ", &signed, b"\r\n\r\n", &body].concat();
        refused(&raw::exchange(rig.public, &request, REQUEST_DEADLINE).await?, &format!("byte {at}"))?;
    }
    ensure!(rig.api("/api/v1/statistics").await?["accepted"] == 0, "a forgery is in the journal");
    ensure!(rig.post_envelope(&body, std::str::from_utf8(&signed)?).await?.status == 200, "the genuine one is refused");

    let rig = Rig::forwarder_started(&[("SIDECAR_AUTHENTIK__AUTHENTICATION", "hmac-body")]).await?;
    let key = pk("genuine").to_string();
    let text = canonical("n", &forwarder::event("genuine", "1"));
    let signed = sign(&Secret::from(rig.webhook_secret().to_owned()), text.as_bytes());
    let body = with(&envelope(&forwarder::event("genuine", "1")), "signature", &signed);
    for covered in [key.as_str(), "login", "203.0.113.7", "u5@example.com", "password", r#""nonce": "n""#, &signed] {
        let place = body.find(covered).with_context(|| format!("{covered} is not in the body"))?;
        for at in place..place + covered.len() {
            let mut changed = body.clone().into_bytes();
            changed[at] ^= 1 << trial.random.u8(0..7);
            // Hexadecimal digits of a key mean the same in either case.
            if covered == key && changed.eq_ignore_ascii_case(body.as_bytes()) {
                continue;
            }
            refused(&rig.post_envelope(&changed, "").await?, &format!("{covered}, byte {}", at - place))?;
        }
    }
    ensure!(rig.api("/api/v1/statistics").await?["accepted"] == 0, "a forgery is in the journal");
    ensure!(rig.post_envelope(body.as_bytes(), "").await?.status == 200, "the genuine one is refused");
    Ok(Outcome::new(trial.count, "0 accepted"))
}

/// The object with one more text in it.
fn with(object: &str, name: &str, value: &str) -> String {
    let open = object.strip_suffix('}').unwrap_or(object);
    format!(r#"{open}, "{name}": "{value}"}}"#)
}

/// Refuses anything but the one 401 that all forgeries get. A changed byte can make a header that is no HTTP any more.
fn refused(answer: &raw::RawResponse, what: &str) -> Result<()> {
    let text = answer.text();
    let is_refusal = answer.status == 400 || answer.status == 401 && text == r#"{"error":"unauthorized"}"#;
    ensure!(is_refusal, "{what}: answered {} {text}", answer.status);
    Ok(())
}

/// T5: a captured request, replayed across kills and a change of secrets, is one event; a forged one before it does not
/// shut it out (T18).
pub(crate) async fn a_captured_identity_event_is_one_event(trial: Trial) -> Result<Outcome> {
    let mut rig = Rig::forwarder_started(&[]).await?;
    let mut ledger = Ledger::new();
    let event = forwarder::event("captured", "1");
    let (body, mut known) = (envelope(&event), None);
    let signed = signature(rig.webhook_secret(), body.as_bytes());
    let forged = signature("somebody else, with thirty-two bytes", body.as_bytes());
    for round in 0..trial.count {
        refused(&rig.post_envelope(body.as_bytes(), &forged).await?, "forged")?;
        let mut sent = SentRequest::begin("default", "captured", "user/5", Digest::of(event.as_bytes()));
        let answer = rig.post_envelope(body.as_bytes(), &signed).await?;
        sent.finish(answer.status, &answer.body);
        ensure!(sent.duplicate == Some(round > 0), "round {round}: {}", answer.text());
        let id = sent.event_id.clone();
        ensure!(*known.get_or_insert(id.clone()) == id, "another id: {id:?}");
        ledger.sent(sent);
        // The old secret beside a new one, as a rotation has it.
        let both = format!("{}\nanother secret, of thirty-two bytes\n", rig.webhook_secret());
        let file = rig.scratch.write("rotated", both)?.display().to_string();
        rig.set("AUTHENTIK_WEBHOOK_SECRET_FILE", &file);
        rig.crash(&mut ledger).await?;
    }
    let report = rig.settle(ledger, &format!("T5a-{}", trial.seed)).await?;
    ensure!(report.accepted == 1, "{} events", report.accepted);
    Ok(Outcome::new(trial.count, "one event"))
}

/// T11: secrets of every kind, in every way of proving, right and wrong, beside an Authentik that refuses: none of them is
/// in the log, the metrics, the journal, what `/readyz` says, or what the API shows.
pub(crate) async fn no_secret_of_authentiks_is_in_any_output(_: Trial) -> Result<Outcome> {
    let authentik = AuthentikServer::start(Generation::V2024_10).await?;
    let (url, token) = (authentik.url(), format!("canary-api-{}", uuid::Uuid::new_v4()));
    let mut rig = Rig::forwarder_started(&[
        ("AUTHENTIK_URL", &url),
        ("AUTHENTIK_TOKEN", &token),
        ("SIDECAR_POLL__INTERVAL_SECONDS", "0.2"),
        ("SIDECAR_AUTHENTIK__AUTHENTICATION", "hmac-header,hmac-body,bearer,body-secret"),
        ("LOG_LEVEL", "trace"),
    ])
    .await?;
    let secret = rig.webhook_secret().to_owned();
    let (right, wrong) = (format!("Bearer {secret}"), format!("Bearer {secret}x"));
    let unreadable = format!(r#"{{"schema": "outrigger.authentik/2", "secret": "{secret}"}}"#);
    for (authorization, body, expected) in [
        ("", with(&envelope(&forwarder::event("body", "1")), "secret", &secret), 200),
        (&right, envelope(&forwarder::event("bearer", "1")), 200),
        (&right, unreadable.clone(), 200),
        (&wrong, unreadable, 401),
        (&wrong, format!("{secret} {{"), 401),
    ] {
        let headers = [("Authorization", authorization)];
        let answer = raw::request(rig.public, "POST", PATH, &headers, body.as_bytes(), REQUEST_DEADLINE).await?;
        ensure!(answer.status == expected, "{} instead of {expected}: {}", answer.status, answer.text());
        ensure!(!answer.text().contains(&secret), "an answer holds the secret");
    }
    let begin = Instant::now();
    while rig.metrics().await?.sum("authentik_api_failures_total", &[]) < 2.0 {
        ensure!(begin.elapsed() < REQUEST_DEADLINE, "Authentik is never asked");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    rig.drained().await?;
    let mut outputs = Vec::new();
    for path in ["/readyz", "/metrics"] {
        outputs.push((path, raw::get(rig.admin, path, REQUEST_DEADLINE).await?.text().into_bytes()));
    }
    outputs.push(("events", rig.api("/api/v1/events").await?.to_string().into_bytes()));
    ensure!(rig.gateway.counts().received == 2, "{:?}", rig.gateway.counts());
    let (exit, _) = rig.stop().await?;
    ensure!(exit.code == Some(0), "ended with {exit:?}");
    outputs.push(("log", std::fs::read(rig.scratch.file("daemon.log"))?));
    for file in std::fs::read_dir(rig.journal_path().parent().context("a folder")?)? {
        outputs.push(("journal", std::fs::read(file?.path())?));
    }
    for (what, bytes) in &outputs {
        for canary in [&secret, &token, &rig.token] {
            let found = bytes.windows(canary.len()).any(|part| part == canary.as_bytes());
            ensure!(!found, "a secret is in {what}");
        }
    }
    Ok(Outcome::new(outputs.len(), "0 found"))
}

/// T12, as [`admin::every_admin_route_wants_the_token`].
pub(crate) async fn every_admin_route_of_the_forwarder_wants_the_token(trial: Trial) -> Result<Outcome> {
    let mut asked = 0;
    for _ in 0..trial.count {
        asked += admin::every_route_of(Rig::forwarder_started(&[]).await?).await?;
    }
    Ok(Outcome::new(asked, "refused"))
}

/// T26: without a proof, with a short or a wrong one, nothing is taken; without a way to prove anything nothing starts.
pub(crate) async fn authentik_must_prove_itself(_: Trial) -> Result<Outcome> {
    let mut cases = 0;
    for authentication in ["hmac-header", "hmac-body", "bearer", "body-secret"] {
        let rig = Rig::forwarder_started(&[("SIDECAR_AUTHENTIK__AUTHENTICATION", authentication)]).await?;
        let secret = rig.webhook_secret().to_owned();
        let plain = envelope(&forwarder::event("k", "1"));
        for proof in ["", "x", &secret[..secret.len() - 1], &format!("{secret}x"), &secret.to_uppercase()] {
            let body = match authentication {
                "hmac-body" => with(&plain, "signature", proof),
                "body-secret" => with(&plain, "secret", proof),
                _ => plain.clone(),
            };
            for authorization in [format!("Bearer {proof}"), format!("Basic {proof}"), proof.to_owned()] {
                let headers = [("Authorization", authorization.as_str()), ("X-Outrigger-Signature", proof)];
                let answer =
                    raw::request(rig.public, "POST", PATH, &headers, body.as_bytes(), REQUEST_DEADLINE).await?;
                refused(&answer, &format!("{authentication} with {} bytes", proof.len()))?;
                cases += 1;
            }
        }
        ensure!(rig.api("/api/v1/statistics").await?["accepted"] == 0, "{authentication}: something is in the journal");
    }
    let (method, file, value) =
        ("SIDECAR_AUTHENTIK__AUTHENTICATION", "AUTHENTIK_WEBHOOK_SECRET_FILE", "AUTHENTIK_WEBHOOK_SECRET");
    for changes in [&[(method, "")][..], &[(file, "")], &[(file, ""), (value, "short")], &[(method, "none")]] {
        let rig = Rig::forwarder(changes).await?;
        let exit = rig.command()?.spawn()?.wait(REQUEST_DEADLINE).await?;
        ensure!(exit.code == Some(78), "{changes:?} ends with {exit:?}");
        cases += 1;
    }
    Ok(Outcome::new(cases, "refused, or exit 78"))
}
