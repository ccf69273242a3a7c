//! `load`: many signed webhooks, and how long each took.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use kit_lago::sender;
use kit_workbench::load::{self, LagoWebhooks, LoadControl, LoadOptions, Pacing, Pool, Signing, Target};

use crate::interrupt::Interrupt;
use crate::keys::SigningKey;
use crate::output::{self, say};

#[derive(Debug, Args)]
#[command(after_help = "Example: outrigger load --connections 64 --duration 10\n\
                        Example: outrigger load --rate 1000 --duration 30 --body-bytes 4096 --json")]
pub(crate) struct Arguments {
    /// Where to.
    #[arg(long, default_value = "http://127.0.0.1:8081/webhooks/lago")]
    url: String,
    /// Connections at the same time.
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Webhooks per second, whatever the answers (open loop); without it each connection sends the
    /// next when the last is answered.
    #[arg(long)]
    rate: Option<f64>,
    /// Seconds.
    #[arg(long, default_value_t = 10.0)]
    duration: f64,
    /// Stop after this many.
    #[arg(long)]
    count: Option<u64>,
    /// Size of a body at least; invoices grow by fees.
    #[arg(long)]
    body_bytes: Option<usize>,
    /// Type of the webhooks; all of Lago's in turn when it is `all`.
    #[arg(long = "type", default_value = "invoice.created")]
    webhook_type: String,
    /// Open a connection for each webhook, as Lago does.
    #[arg(long)]
    close: bool,
    /// So many of a hundred repeat an earlier one.
    #[arg(long, default_value_t = 0.0)]
    duplicates_percent: f64,
    #[command(flatten)]
    key: SigningKey,
}

pub(crate) async fn run(arguments: Arguments, json: bool) -> anyhow::Result<ExitCode> {
    let signing = match arguments.key.signing()? {
        sender::Signing::Hmac(key) => Signing::Hmac(key),
        sender::Signing::Jwt(signer, issuer) => Signing::Jwt { signer, issuer },
    };
    let mut webhooks = LagoWebhooks::new("default", signing);
    webhooks.body_bytes = arguments.body_bytes;
    webhooks.types = if arguments.webhook_type == "all" { Vec::new() } else { vec![arguments.webhook_type.clone()] };
    webhooks.count = 256;
    let pool = Arc::new(Pool::lago(&webhooks)?);
    let target = Target::resolve(&arguments.url).await.context("--url")?;
    let duration = Duration::try_from_secs_f64(arguments.duration).context("--duration must be 0 or more")?;
    let options = LoadOptions {
        connections: arguments.connections,
        keep_alive: !arguments.close,
        pacing: arguments.rate.map_or(Pacing::Closed, |per_second| Pacing::Open { per_second }),
        duplicates_percent: arguments.duplicates_percent,
        requests: arguments.count,
        duration: Some(duration),
        ..LoadOptions::new(target)
    };
    let control = LoadControl::new();
    let mut interrupt = Interrupt::listen()?;
    let outcome = {
        let running = load::run(options, pool, &control);
        tokio::pin!(running);
        let bar = output::bar(duration.as_millis().try_into().unwrap_or(u64::MAX), "{wide_bar} {msg} {elapsed}");
        let started = std::time::Instant::now();
        loop {
            tokio::select! {
                outcome = &mut running => {
                    bar.finish_and_clear();
                    break outcome?;
                }
                () = interrupt.wait() => control.stop(),
                () = tokio::time::sleep(Duration::from_millis(200)) => {
                    bar.set_position(started.elapsed().as_millis().try_into().unwrap_or(u64::MAX));
                    bar.set_message(format!("{} sent, {} taken", control.requests(), control.ok()));
                }
            }
        }
    };
    let report = outcome.report;
    if json {
        output::json(&report)?;
    } else {
        say!("{} webhooks in {:.1} s: {:.0}/s, {} taken", report.requests, report.seconds, report.rps, report.ok);
        let latency = &report.latency_ms;
        say!(
            "latency in ms: p50 {:.2}, p90 {:.2}, p99 {:.2}, p99.9 {:.2}, longest {:.2}",
            latency.p50,
            latency.p90,
            latency.p99,
            latency.p999,
            latency.max
        );
        for (kind, count) in &report.errors {
            say!("{count} failed: {kind}");
        }
    }
    Ok(if report.ok == report.requests { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
