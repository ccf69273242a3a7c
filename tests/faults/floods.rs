//! Requests that prove nothing, by the thousand a second.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kit::secret::Secret;
use kit_lago::sample::{Shape, sample};
use kit_lago::signature::{RsaSigner, sign_hmac, sign_jwt};
use kit_workbench::ledger::Ledger;
use kit_workbench::load::{self, LoadControl, LoadOptions, LoadOutcome, Pacing, Pool, PreparedWebhook};
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::rig::{ISSUER, Mode, Rig};

/// Good webhooks a second, beside the flood.
const GOOD_PER_SECOND: f64 = 100.0;
/// Bad requests a second in a release, and in a pull request, where sender and daemon share two busy
/// cores with the build.
const FLOOD_PER_SECOND: f64 = 20_000.0;
const SHORT_FLOOD_PER_SECOND: f64 = 2_000.0;
/// From so many seconds on it is a release.
const RELEASE_SECONDS: u32 = 60;
/// A p99 below this is as good as the machine's noise.
const NOISE_MS: f64 = 60.0;
/// How often the two are measured until one pair is as it should be.
const TRIES: u32 = 3;
/// Memory may differ by this much without meaning anything: buffers of connections, pages of caches.
const RSS_SLACK: u64 = 12 << 20;

/// Webhooks that nobody signed, in every way that gets past the checks which cost nothing.
fn forged(mode: Mode, stranger: Option<&RsaSigner>) -> Result<Arc<Pool>> {
    let mut bad = Vec::new();
    for seq in 0..64 {
        let body = sample("invoice.created", &Shape { seq, ..Shape::default() });
        let signatures = match (mode, stranger) {
            (Mode::Hmac, _) => vec![
                Some(sign_hmac(&Secret::from("nobody's key".to_owned()), body.as_bytes())),
                Some(sign_hmac(&Secret::from("nobody's key".to_owned()), b"another body")),
                Some("AAAA".to_owned()),
                None,
            ],
            // Whole tokens, with another key: the dearest thing that a stranger can send.
            (Mode::Jwt, Some(stranger)) => vec![Some(sign_jwt(stranger, &body, ISSUER)?)],
            (Mode::Jwt, None) => Vec::new(),
        };
        for signature in signatures {
            let headers = signature.map(|text| ("X-Lago-Signature".to_owned(), text)).into_iter().collect();
            bad.push(PreparedWebhook::new("default", "", headers, body.clone()));
        }
    }
    Ok(Arc::new(Pool::new(bad)))
}

fn journal_bytes(rig: &Rig) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(rig.scratch.file("state"))? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

async fn good(rig: &Rig, pool: &Arc<Pool>, seconds: u32, ledger: &mut Ledger) -> Result<f64> {
    let options = LoadOptions {
        pacing: Pacing::Open { per_second: GOOD_PER_SECOND },
        duration: Some(Duration::from_secs(u64::from(seconds))),
        record: true,
        keep_alive: false,
        ..LoadOptions::new(rig.target())
    };
    let LoadOutcome { report, sent } = load::run(options, Arc::clone(pool), &LoadControl::new()).await?;
    ledger.extend_sent(sent);
    ensure!(report.ok == report.requests && report.errors.is_empty(), "good webhooks failed: {:?}", report.errors);
    Ok(report.latency_ms.p99)
}

/// Sends forged requests at a rate until stopped; all of them must be refused. Returns how many.
async fn flood(
    rig: &Rig,
    pool: &Arc<Pool>,
    per_second: f64,
    control: &LoadControl,
    seconds: u32,
) -> Result<(u64, f64)> {
    let options = LoadOptions {
        connections: 16,
        pacing: Pacing::Open { per_second },
        duration: Some(Duration::from_secs(u64::from(seconds))),
        ..LoadOptions::new(rig.target())
    };
    let report = load::run(options, Arc::clone(pool), control).await?.report;
    ensure!(report.ok == 0, "{} forged requests were accepted", report.ok);
    let refused = report.errors.get("status 401").copied().unwrap_or_default();
    ensure!(refused == report.requests, "of {} forged requests: {:?}", report.requests, report.errors);
    Ok((refused, report.requests as f64 / report.seconds))
}

/// T17: a flood of forged requests, in both modes: each is a 401, nothing of them is kept – the journal
/// does not grow by a byte, no key is remembered, memory stays – and webhooks that Lago signed are
/// answered as before, within twice the time.
pub(crate) async fn a_flood_of_forgeries_costs_the_good_ones_little(trial: Trial) -> Result<Outcome> {
    let rate = if trial.count >= RELEASE_SECONDS { FLOOD_PER_SECOND } else { SHORT_FLOOD_PER_SECOND };
    let (mut refused, mut notes) = (0, Vec::new());
    for mode in [Mode::Hmac, Mode::Jwt] {
        let (count, note) = one_flood(&trial, mode, rate).await.with_context(|| format!("{mode:?}"))?;
        refused += count;
        notes.push(note);
    }
    Ok(Outcome::new(refused, notes.join("; ")))
}

async fn one_flood(trial: &Trial, mode: Mode, rate: f64) -> Result<(u64, String)> {
    let rig = Rig::started(mode, &[]).await?;
    let stranger = tokio::task::spawn_blocking(RsaSigner::generate).await??;
    let bad = forged(mode, Some(&stranger))?;
    let pool = rig.pool(64)?;
    let mut ledger = Ledger::new();
    let baseline = good(&rig, &pool, trial.count, &mut ledger).await?;
    rig.drained().await?;

    // Alone: what is kept of it would be seen to the byte. The first second fills buffers.
    flood(&rig, &bad, rate, &LoadControl::new(), 1).await?;
    let keys = rig.metrics().await?.sum("journal_dedupe_keys", &[]);
    let (bytes, memory) = (journal_bytes(&rig)?, rig.rss_bytes()?);
    let (mut refused, reached) = flood(&rig, &bad, rate, &LoadControl::new(), trial.count).await?;
    let grown = journal_bytes(&rig)?.abs_diff(bytes);
    ensure!(grown == 0, "the journal changed by {grown} bytes");
    let more = rig.metrics().await?.sum("journal_dedupe_keys", &[]) - keys;
    // The gauge is read now and then: keys of the good ones may still be missing in it.
    ensure!(more <= GOOD_PER_SECOND * f64::from(trial.count), "{more} keys of forged requests are remembered");
    let rise = rig.rss_bytes()?.saturating_sub(memory);
    ensure!(rise <= RSS_SLACK, "memory rose by {rise} bytes");

    // Beside good ones. A busy machine is slow at times; what a flood costs, it costs every time.
    let (mut baseline, mut during) = (baseline, f64::INFINITY);
    for again in 0..TRIES {
        if again > 0 {
            baseline = good(&rig, &pool, trial.count, &mut ledger).await?;
        }
        let control = LoadControl::new();
        let (p99, among) = tokio::join!(
            async {
                let p99 = good(&rig, &pool, trial.count, &mut ledger).await;
                control.stop();
                p99
            },
            flood(&rig, &bad, rate, &control, trial.count + 60),
        );
        during = p99?;
        refused += among?.0;
        if during <= (2.0 * baseline).max(NOISE_MS) {
            break;
        }
        ensure!(again + 1 < TRIES, "p99 of good webhooks is {during:.1} ms in the flood, {baseline:.1} ms without");
    }

    let counted: f64 = rig.metrics().await?.sum("lago_webhooks_refused_total", &[]);
    ensure!(counted >= refused as f64, "{counted} refusals were counted of {refused}");
    let report = rig.settle(ledger, &format!("T17-{}", trial.seed)).await?;
    let note = format!(
        "{mode:?}: {reached:.0}/s, good p99 {during:.1} ms ({baseline:.1}), 0 B, {} MiB more, {} good",
        rise >> 20,
        report.accepted
    );
    Ok((refused, note))
}
