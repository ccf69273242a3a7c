//! `rule test`: what the bridge's rules make of an event, without a daemon, without Temporal and without sending anything.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use kit::config::{Source, load};
use serde_json::{Map, Value};
use temporal_event_bridge::config::{Config, well_known};
use temporal_event_bridge::preview::{Preview, preview};

use crate::output::{self, safe, say};

/// The rules are the same wherever Temporal is.
const ADDRESS: (&str, &str) = ("TEMPORAL_ADDRESS", "temporal:7233");

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Show which rule matches an event and the request that Temporal would get; sends nothing.
    Test(Arguments),
}

#[derive(Debug, Args)]
#[command(after_help = "Example: outrigger rule test --event payment-failure.json --config temporal-event-bridge.toml")]
pub(crate) struct Arguments {
    /// The event: a CloudEvent in structured mode, as the bridge takes it.
    #[arg(long, value_name = "FILE")]
    event: PathBuf,
    /// Configuration of the bridge; the environment wins over it, as for the daemon.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(crate) async fn run(verb: Verb, json: bool) -> anyhow::Result<ExitCode> {
    let Verb::Test(arguments) = verb;
    let mut source = Source::of_process(arguments.config.clone(), &well_known());
    if !source.env.iter().any(|(name, _)| name == ADDRESS.0) {
        source.env.push((ADDRESS.0.to_owned(), ADDRESS.1.to_owned()));
    }
    let config: Config =
        load(&source).map_err(|errors| anyhow!("the configuration cannot be used: {}", errors.0.join("; ")))?;
    let body = std::fs::read(&arguments.event).with_context(|| format!("read {}", arguments.event.display()))?;
    let told = preview(&config, &body)
        .await
        .map_err(|mistakes| anyhow!("{} cannot be tried: {}", arguments.event.display(), mistakes.join("; ")))?;
    if json {
        output::json(&told)?;
    } else {
        show(&told)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(told: &Preview) -> anyhow::Result<()> {
    say!("event {} {} {}", safe(&told.event_type), safe(told.subject.as_deref().unwrap_or("-")), told.id);
    for rule in &told.rules {
        let result = rule.why_not.as_deref().map_or("matches".to_owned(), |why| format!("no: {}", safe(why)));
        say!("rule {}: {result}", rule.rule);
    }
    say!("{}", safe(&told.result));
    if let Some(request) = &told.request {
        say!("  {}", request.call);
        fields(&request.fields)?;
        if let Some(signal) = &request.signal_on_conflict {
            say!("  where the workflow is running: SignalWorkflowExecution");
            fields(signal)?;
        }
    }
    Ok(())
}

fn fields(fields: &Map<String, Value>) -> anyhow::Result<()> {
    for (name, value) in fields {
        say!("  {name}: {}", safe(&value.to_string()));
    }
    Ok(())
}
