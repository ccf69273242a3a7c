//! Genuine requests that somebody kept and sends again, and forged ones that hope to be there first.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use kit::secret::Secret;
use kit_lago::sample::{Shape, sample};
use kit_lago::signature::{RsaSigner, sign_hmac, sign_jwt};
use kit_workbench::Digest;
use kit_workbench::ledger::{Ledger, SentRequest};
use kit_workbench::raw::{self, RawConnection, RawResponse};
use outrigger_tests::captures::{self, Capture};
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::rig::{Mode, REQUEST_DEADLINE, Rig};
use serde_json::json;

const UNIQUE_KEY: &str = "X-Lago-Unique-Key";
const SIGNATURE: &str = "X-Lago-Signature";

/// A rig with the keys of the recordings, and files for them that can be changed.
struct Replay {
    rig: Rig,
    mode: Mode,
    ledger: Ledger,
    captures: Vec<Capture>,
    /// The id of each recording's event, in their order.
    ids: Vec<String>,
    refused: u64,
}

impl Replay {
    async fn new(mode: Mode) -> Result<Self> {
        // The flag of a conflict is a header there.
        let mut rig = Rig::new(mode, &[("SIDECAR_GATEWAY__FORMAT", "cloudevents-binary")]).await?;
        let captures = match mode {
            Mode::Hmac => captures::all("hmac")?,
            Mode::Jwt => captures::all("jwt")?,
        };
        rig.set("SIDECAR_LAGO__ISSUER", captures::ISSUER);
        let name = match mode {
            Mode::Hmac => "LAGO_WEBHOOK_HMAC_KEY_FILE",
            Mode::Jwt => "LAGO_WEBHOOK_PUBLIC_KEY_FILE",
        };
        rig.set(name, &rig.scratch.file("keys").display().to_string());
        let replay = Self { rig, mode, ledger: Ledger::new(), captures, ids: Vec::new(), refused: 0 };
        replay.keys(&[&replay.recorded_key()?])?;
        Ok(replay)
    }

    fn recorded_key(&self) -> Result<String> {
        Ok(match self.mode {
            Mode::Hmac => captures::HMAC_KEY.to_owned(),
            Mode::Jwt => std::fs::read_to_string(captures::public_key_file())?,
        })
    }

    /// What the daemon accepts from its next start on.
    fn keys(&self, keys: &[&str]) -> Result<()> {
        self.rig.scratch.write("keys", keys.join("\n"))?;
        Ok(())
    }

    /// Sends a request as it is. What is taken goes into the ledger.
    async fn send(&mut self, capture: &Capture) -> Result<RawResponse> {
        let key = capture.header(UNIQUE_KEY).unwrap_or_default();
        let mut sent = SentRequest::begin("default", key, "", Digest::of(&capture.body));
        let answer = raw::exchange(self.rig.public, &capture.request(None), REQUEST_DEADLINE).await?;
        sent.finish(answer.status, &answer.body);
        match answer.status {
            200 => self.ledger.sent(sent),
            _ => self.refused += 1,
        }
        Ok(answer)
    }

    /// Sends it; it must be taken, as new or as known. Returns the event's id.
    async fn taken(&mut self, capture: &Capture, duplicate: bool, what: &str) -> Result<String> {
        let answer = self.send(capture).await?;
        ensure!(answer.status == 200, "{what}: answered {} {}", answer.status, answer.text());
        let said = answer.json()?;
        ensure!(said["duplicate"] == json!(duplicate), "{what}: answered {said}");
        Ok(said["id"].as_str().unwrap_or_default().to_owned())
    }

    /// Every recording is known under the id that it has.
    async fn all_known(&mut self, what: &str) -> Result<()> {
        for (capture, id) in self.captures.clone().iter().zip(self.ids.clone()) {
            let now = self.taken(capture, true, what).await?;
            ensure!(now == id, "{what}: the event {id} is now {now}");
        }
        Ok(())
    }

    /// None of them is taken any more, whatever is known about them.
    async fn all_refused(&mut self, what: &str) -> Result<()> {
        let before = stored(&self.rig).await?;
        for capture in self.captures.clone() {
            let answer = self.send(&capture).await?;
            ensure!(answer.status == 401, "{what}: answered {} {}", answer.status, answer.text());
            ensure!(answer.text() == r#"{"error":"unauthorized"}"#, "{what}: the 401 says {}", answer.text());
        }
        let after = stored(&self.rig).await?;
        ensure!(after == before, "{what}: {} events were added", after - before);
        Ok(())
    }
}

async fn stored(rig: &Rig) -> Result<u64> {
    rig.api("/api/v1/statistics").await?["accepted"].as_u64().context("the API tells how many were accepted")
}

/// A capture with another unique key, as somebody would write it who wants it to look new.
fn with_key(capture: &Capture, key: &str) -> Result<Capture> {
    let mut changed = capture.clone();
    key.clone_into(changed.header_mut(UNIQUE_KEY)?);
    Ok(changed)
}

fn with_body(capture: &Capture, body: String, signature: String) -> Result<Capture> {
    let mut changed = capture.clone();
    *changed.header_mut(SIGNATURE)? = signature;
    changed.body = body.into_bytes();
    Ok(changed)
}

/// T5: a captured request is one event however often it is sent: at once, after kills and restarts,
/// signed with a former key while both are accepted, and signed anew. Under a key that it never had
/// it is another event, once a key, and counted; its key with another body is refused, or, where Lago
/// signed that, another event, flagged and counted; and once its key is gone it is refused.
pub(crate) async fn a_captured_request_is_one_event_whatever_is_replayed(mut trial: Trial) -> Result<Outcome> {
    let mut replays = 0;
    for mode in [Mode::Hmac, Mode::Jwt] {
        replays += replay_all(&mut trial, mode).await.with_context(|| format!("{mode:?}"))?;
    }
    Ok(Outcome::new(replays, "replays; once each, counted and flagged as documented"))
}

async fn replay_all(trial: &mut Trial, mode: Mode) -> Result<u64> {
    let mut r = Replay::new(mode).await?;
    r.rig.start().await?;
    for capture in r.captures.clone() {
        let id = r.taken(&capture, false, "the first time").await?;
        r.ids.push(id);
    }
    let originals = r.captures.len() as u64;
    r.all_known("at once").await?;

    // Across ends of the process of either kind.
    for round in 0..trial.count {
        if trial.random.bool() {
            r.rig.crash(&mut r.ledger).await?;
        } else {
            r.rig.restart(&mut r.ledger).await?;
        }
        r.all_known(&format!("after end {round}")).await?;
    }

    // Under other keys. The key is not signed, so this is what an attacker can do: once a key, counted.
    // Lago itself does the same for a second endpoint, which is why it is not refused.
    let repeated = |metrics: kit_workbench::metrics::Metrics| metrics.sum("lago_webhooks_repeated_body_total", &[]);
    let counted = repeated(r.rig.metrics().await?);
    for (nth, capture) in r.captures.clone().iter().enumerate() {
        let changed = with_key(capture, &uuid::Uuid::from_u128(trial.random.u128(..)).to_string())?;
        let id = r.taken(&changed, false, "an old body under a new key").await?;
        ensure!(id != r.ids[nth], "an old body under a new key has the old event's id");
        let again = r.taken(&changed, true, "an old body under a new key, again").await?;
        ensure!(again == id, "an old body under a new key is two events");
    }
    let counted = repeated(r.rig.metrics().await?) - counted;
    ensure!(counted == originals as f64, "{counted} old bodies under new keys were counted of {originals}");

    // Its key with another body, under the captured signature: nobody signed that.
    let first = r.captures[0].clone();
    let other = sample("invoice.created", &Shape { seq: trial.random.u64(1_000..1_000_000), ..Shape::default() });
    let before = stored(&r.rig).await?;
    let forged = with_body(&first, other.clone(), first.header(SIGNATURE).unwrap_or_default().to_owned())?;
    let answer = r.send(&forged).await?;
    ensure!(answer.status == 401, "another body under a captured signature: {}", answer.status);
    ensure!(stored(&r.rig).await? == before, "another body under a captured signature was stored");

    // The key is changed at Lago; for a while both are accepted.
    let own = NewKey::make(mode).await?;
    let old = r.recorded_key()?;
    r.keys(&[&own.public, &old])?;
    r.rig.restart(&mut r.ledger).await?;
    r.all_known("while both keys are accepted").await?;
    let mut anew = first.clone();
    *anew.header_mut(SIGNATURE)? = own.sign(std::str::from_utf8(&first.body)?)?;
    let id = r.taken(&anew, true, "signed anew").await?;
    ensure!(id == r.ids[0], "the same event signed anew has another id");
    // Lago itself signs another body for a known key: a new event, flagged for the receiver and counted.
    let conflict = with_body(&first, other.clone(), own.sign(&other)?)?;
    let id = r.taken(&conflict, false, "a known key with another genuine body").await?;
    ensure!(r.taken(&conflict, true, "the same again").await? == id, "the conflict is two events");
    let conflicts = r.rig.metrics().await?.sum("lago_webhooks_total", &[("result", "conflict")]);
    ensure!(conflicts == 1.0, "{conflicts} conflicts were counted");
    r.rig.drained().await?;
    let flagged: Vec<String> = r.rig.gateway.with_received(|received| {
        let flagged = received.iter().filter(|one| one.header("ce-keyconflict") == Some("true"));
        flagged.filter_map(|one| one.event_id.clone()).collect()
    });
    let shown = r.rig.api(&format!("/api/v1/events/{id}")).await?;
    ensure!(
        flagged == [id.clone()] && shown.to_string().contains(r#""conflict":true"#),
        "the conflict {id} is not shown as one: {shown}, at the gateway {flagged:?}"
    );

    // The old key is gone: what it signed is refused although its events are known.
    r.keys(&[&own.public])?;
    r.rig.restart(&mut r.ledger).await?;
    r.all_refused("after the key was changed").await?;
    ensure!(r.taken(&anew, true, "under the new key").await? == r.ids[0], "the event has another id");
    let Replay { rig, ledger, refused, .. } = r;
    let report = rig.settle(ledger, &format!("T5-{}", trial.seed)).await?;
    ensure!(
        report.accepted == originals * 2 + 1,
        "{} events of {originals} recordings, as many changed keys and one conflict",
        report.accepted
    );
    Ok(report.sent + refused - originals)
}

/// The key that replaces the recordings'.
struct NewKey {
    public: String,
    signer: Option<RsaSigner>,
}

impl NewKey {
    async fn make(mode: Mode) -> Result<Self> {
        Ok(match mode {
            Mode::Hmac => Self { public: uuid::Uuid::new_v4().to_string(), signer: None },
            Mode::Jwt => {
                let signer = tokio::task::spawn_blocking(RsaSigner::generate).await??;
                Self { public: signer.public_pem(), signer: Some(signer) }
            }
        })
    }

    fn sign(&self, body: &str) -> Result<String> {
        Ok(match &self.signer {
            None => sign_hmac(&Secret::from(self.public.clone()), body.as_bytes()),
            Some(signer) => sign_jwt(signer, body, captures::ISSUER)?,
        })
    }
}

/// T18: forged requests with keys that Lago will use later leave nothing behind: the real ones are
/// taken as new, without a conflict, also on the forger's own connection, without a key, across a
/// restart, and for two organisations that have the same keys.
pub(crate) async fn a_forged_key_does_not_shut_the_real_one_out(mut trial: Trial) -> Result<Outcome> {
    let acme = format!("canary-acme-{}", uuid::Uuid::new_v4());
    let mut rig = Rig::new(Mode::Hmac, &[]).await?;
    let file = rig.scratch.write("acme", &acme)?;
    rig.set("SIDECAR_LAGO__ORGANIZATIONS__ACME__HMAC_KEY_FILE", &file.display().to_string());
    rig.start().await?;
    let keys_known = rig.metrics().await?.sum("journal_dedupe_keys", &[]);
    let mut ledger = Ledger::new();
    let future: Vec<(String, String)> = (0..u64::from(trial.count))
        .map(|seq| {
            let key = uuid::Uuid::from_u128(trial.random.u128(..)).to_string();
            (key, sample("invoice.created", &Shape { seq, ..Shape::default() }))
        })
        .collect();

    let wrong = sign_hmac(&Secret::from("nobody's key".to_owned()), b"");
    let mut connection = RawConnection::open(rig.public).await?;
    for (nth, (key, body)) in future.iter().enumerate() {
        trial.progress(u32::try_from(nth)?);
        let right = rig.sign(body)?;
        // The other organisation's key, a right signature at another path, none, and any.
        let others = sign_hmac(&Secret::from(acme.clone()), body.as_bytes());
        for (path, key, signature) in [
            ("/webhooks/lago", Some(key.as_str()), Some(wrong.as_str())),
            ("/webhooks/lago", Some(key), Some(others.as_str())),
            ("/webhooks/lago", Some(key), None),
            ("/webhooks/lago", None, Some(wrong.as_str())),
            ("/webhooks/lago/acme", Some(key), Some(right.as_str())),
            ("/webhooks/lago/nobody", Some(key), Some(right.as_str())),
        ] {
            let answer = connection.exchange(&request(path, key, signature, body), REQUEST_DEADLINE).await?;
            ensure!(answer.status == 401, "a forged request to {path} is answered {}", answer.status);
        }
    }
    let metrics = rig.metrics().await?;
    ensure!(stored(&rig).await? == 0, "a forged request was stored");
    ensure!(metrics.sum("journal_dedupe_keys", &[]) == keys_known, "a forged key is remembered");

    let mut ids: BTreeMap<String, &'static str> = BTreeMap::new();
    for (nth, (key, body)) in future.iter().enumerate() {
        // Half of them meet the process that saw the forgeries, half the one after it.
        if nth == future.len() / 2 {
            rig.restart(&mut ledger).await?;
            connection = RawConnection::open(rig.public).await?;
        }
        let (right, others) = (rig.sign(body)?, sign_hmac(&Secret::from(acme.clone()), body.as_bytes()));
        for (organization, path, signature) in
            [("default", "/webhooks/lago", &right), ("acme", "/webhooks/lago/acme", &others)]
        {
            for duplicate in [false, true] {
                let mut sent = SentRequest::begin(organization, key.as_str(), "", Digest::of(body.as_bytes()));
                let bytes = request(path, Some(key), Some(signature), body);
                let answer = connection.exchange(&bytes, REQUEST_DEADLINE).await?;
                sent.finish(answer.status, &answer.body);
                ensure!(answer.status == 200, "the real one is answered {} {}", answer.status, answer.text());
                ensure!(sent.duplicate == Some(duplicate), "the real one of {organization}: {}", answer.text());
                let id = sent.event_id.clone().unwrap_or_default();
                let owner = ids.entry(id).or_insert(organization);
                ensure!(*owner == organization, "{owner} and {organization} share an event");
                ledger.sent(sent);
            }
        }
    }
    let metrics = rig.metrics().await?;
    for result in ["conflict", "unavailable"] {
        let count = metrics.sum("lago_webhooks_total", &[("result", result)]);
        ensure!(count == 0.0, "{count} counted as {result}");
    }
    let report = rig.settle(ledger, &format!("T18-{}", trial.seed)).await?;
    ensure!(report.accepted == future.len() as u64 * 2, "{} accepted", report.accepted);
    Ok(Outcome::new(future.len() * 6, format!("0 remembered; {} real ones accepted as new", report.accepted)))
}

fn request(path: &str, key: Option<&str>, signature: Option<&str>, body: &str) -> Vec<u8> {
    let mut head = format!("POST {path} HTTP/1.1\r\nHost: daemon\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in [(UNIQUE_KEY, key), (SIGNATURE, signature)] {
        head.extend(value.map(|value| format!("{name}: {value}\r\n")));
    }
    format!("{head}\r\n{body}").into_bytes()
}
