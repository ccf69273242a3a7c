//! `send`: webhooks as Lago sends them.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use kit_lago::sample::{Shape, sample};
use kit_lago::sender::Sender;
use kit_lago::webhook_type;
use serde::Serialize;

use crate::keys::SigningKey;
use crate::output::{self, safe, say};

#[derive(Debug, Args)]
#[command(after_help = "Example: LAGO_WEBHOOK_HMAC_KEY=… outrigger send --type invoice.created --count 3")]
pub(crate) struct Arguments {
    /// Where to.
    #[arg(long, default_value = "http://127.0.0.1:8081/webhooks/lago")]
    url: String,
    /// Webhook type; any name, a built-in sample is made for it.
    #[arg(long = "type", default_value = "invoice.created", value_name = "TYPE")]
    webhook_type: String,
    /// Send this body instead of a sample.
    #[arg(long, value_name = "FILE", conflicts_with = "webhook_type")]
    file: Option<PathBuf>,
    /// How many.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// X-Lago-Unique-Key; a fresh one for each webhook otherwise.
    #[arg(long)]
    unique_key: Option<String>,
    /// Tenant: external id of the customer in samples.
    #[arg(long)]
    customer: Option<String>,
    /// organization_id in samples; empty leaves it out, as Lago before v1.33.3 does.
    #[arg(long)]
    organization_id: Option<String>,
    /// Fees of an invoice in samples.
    #[arg(long, default_value_t = 1)]
    fees: usize,
    #[command(flatten)]
    key: SigningKey,
    /// List every type Lago has, and stop.
    #[arg(long)]
    list_types: bool,
}

#[derive(Serialize)]
struct Sent {
    unique_key: String,
    status: u16,
    latency_ms: f64,
    answer: String,
}

pub(crate) async fn run(arguments: Arguments, json: bool) -> anyhow::Result<ExitCode> {
    if arguments.list_types {
        list_types(json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let signing = arguments.key.signing()?;
    let sender = Sender::new(&arguments.url).context("--url must be http://host:port/path")?;
    let mut failed = 0;
    for number in 0..arguments.count {
        let body = body(&arguments, number)?;
        let mut delivery = signing.delivery(&arguments.webhook_type, body)?;
        if let Some(key) = &arguments.unique_key {
            delivery.unique_key.clone_from(key);
        }
        let answer = sender.send_once(&delivery).await.with_context(|| format!("send to {}", arguments.url))?;
        failed += u64::from(!answer.is_success());
        let sent = Sent {
            unique_key: delivery.unique_key,
            status: answer.status,
            latency_ms: answer.latency.as_secs_f64() * 1000.0,
            answer: safe(&String::from_utf8_lossy(&answer.body)),
        };
        if json {
            output::json_line(&sent)?;
        } else {
            say!("{} {} {:.1} ms {}", sent.status, sent.unique_key, sent.latency_ms, sent.answer);
        }
    }
    if failed > 0 {
        bail!("{failed} of {} were not taken", arguments.count);
    }
    Ok(ExitCode::SUCCESS)
}

fn body(arguments: &Arguments, number: u64) -> anyhow::Result<String> {
    if let Some(file) = &arguments.file {
        return std::fs::read_to_string(file).with_context(|| format!("read {} as UTF-8", file.display()));
    }
    let mut shape = Shape { seq: unique_sequence(number), fees: arguments.fees, ..Shape::default() };
    if let Some(customer) = &arguments.customer {
        shape.customer.clone_from(customer);
    }
    match arguments.organization_id.as_deref() {
        Some("") => shape.organization_id = None,
        Some(id) => shape.organization_id = Some(id.to_owned()),
        None => {}
    }
    Ok(sample(&arguments.webhook_type, &shape))
}

/// Samples of two runs differ, so that the second run is not mistaken for a replay of the first.
fn unique_sequence(number: u64) -> u64 {
    u64::from(fastrand::u32(..)) << 20 | number
}

fn list_types(json: bool) -> anyhow::Result<()> {
    if json {
        let names: Vec<&str> = webhook_type::all().iter().map(|kind| kind.name).collect();
        return output::json(&names);
    }
    let mut table = output::table(&["type", "payload key", "since", "meaning"]);
    for kind in webhook_type::all() {
        table.add_row(vec![kind.name, kind.object_type, kind.since.unwrap_or("v1.16.0 or before"), kind.description]);
    }
    say!("{table}");
    Ok(())
}
