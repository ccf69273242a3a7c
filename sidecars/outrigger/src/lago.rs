//! `lago`: what lago-seeder does, by hand – show, apply and check a catalogue, and take care of the RSA key.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use kit::client::{ClientOptions, http_client};
use kit::secret::Secret;
use kit_lago::api::{LagoApi, api_key};
use lago_seeder::{Catalogue, Mode, Notice, Seeder, Settings, keys};

use crate::output::{self, safe, say};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Show what apply would do; changes nothing.
    #[command(after_help = "Example: outrigger lago plan --catalogue config/lago/catalogue.toml --prune")]
    Plan(Arguments),
    /// Make Lago as the catalogue says.
    #[command(after_help = "Example: outrigger lago apply --catalogue config/lago/catalogue.toml")]
    Apply(Arguments),
    /// As plan; ends with 1 where Lago is not as the catalogue says.
    #[command(after_help = "Example: outrigger lago check --catalogue config/lago/catalogue.toml --json")]
    Check(Arguments),
    /// Make or check Lago's RSA key, in the forms that a version takes.
    #[command(after_help = "Example: outrigger lago keys --file private.pem --create --env-file lago.env\n\
                            Example: outrigger lago keys --lago-version v1.16.0")]
    Keys(keys::Arguments),
}

/// Which Lago, and what is to be in it. The key itself is taken from LAGO_API_KEY only: an argument is there for everybody to
/// read.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The catalogue file.
    #[arg(long, value_name = "FILE")]
    catalogue: PathBuf,
    /// Lago's API.
    #[arg(long, env = "LAGO_API_URL", value_name = "URL")]
    api_url: String,
    /// File with the organisation's API key; or set LAGO_API_KEY.
    #[arg(long, env = "LAGO_API_KEY_FILE", value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// PEM file with certificate authorities to trust beside the platform's.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Delete what Lago has and the catalogue does not, of the kinds that the catalogue has any of.
    #[arg(long)]
    prune: bool,
    /// Seconds that Lago is waited for.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait: u64,
    /// Seconds that something is waited for to answer at a webhook endpoint before that is registered. Without it endpoints are
    /// registered unseen: this machine may not reach what Lago reaches.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    wait_for_endpoint: u64,
}

pub(crate) async fn run(verb: Verb, json: bool) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Plan(arguments) => catalogue(&arguments, Mode::Look, json).await.map(|_| ExitCode::SUCCESS),
        Verb::Check(arguments) => catalogue(&arguments, Mode::Look, json).await.map(ended),
        Verb::Apply(arguments) => catalogue(&arguments, Mode::Apply, json).await.map(ended),
        Verb::Keys(arguments) => examine_keys(&arguments, json).map(ended),
    }
}

fn ended(is_good: bool) -> ExitCode {
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Goes through a catalogue; whether Lago is as it says.
async fn catalogue(arguments: &Arguments, mode: Mode, json: bool) -> anyhow::Result<bool> {
    let catalogue = match Catalogue::read(&arguments.catalogue) {
        Ok(catalogue) => catalogue,
        // All of them at once, each on its line.
        Err(errors) => bail!("the catalogue is not right:\n{errors}"),
    };
    let value = std::env::var("LAGO_API_KEY").ok().filter(|key| !key.is_empty()).map(Secret::from);
    let file = arguments.api_key_file.as_deref();
    // A file that is named wins over a variable that is merely there.
    let key = api_key(value.as_ref().filter(|_| file.is_none()), file)?;
    let key = key.context("no API key: give --api-key-file, or set LAGO_API_KEY (in Lago: Developers, API keys)")?;
    let client = http_client(&ClientOptions { ca_file: arguments.ca_file.clone(), ..ClientOptions::default() })?;
    let api = LagoApi::new(client.clone(), &arguments.api_url, &key)?;
    let settings = Settings {
        prune: arguments.prune,
        wait: Duration::from_secs(arguments.wait),
        wait_for_endpoint: Duration::from_secs(arguments.wait_for_endpoint),
    };
    let report = Seeder::new((&api, &client), &catalogue, (settings, mode), &tell).run().await?;
    if json {
        output::json(&report)?;
    } else {
        for entry in report.entries.iter().filter(|entry| !entry.is_silent()) {
            entry.to_string().lines().try_for_each(|line| output::line(format_args!("{}", safe(line))))?;
        }
        say!("Lago {}: {}", safe(&report.lago), report.summary());
    }
    Ok(report.is_settled())
}

/// What happens meanwhile, where it takes time.
fn tell(notice: Notice<'_>) {
    let mut err = std::io::stderr();
    let _ = match notice {
        Notice::Waiting { reason, left } => {
            writeln!(err, "waiting for Lago, up to {} s more: {}", left.as_secs(), safe(reason))
        }
        Notice::WaitingForEndpoint { url, left } => {
            writeln!(err, "waiting for something to answer at {}, up to {} s more", safe(url), left.as_secs())
        }
        Notice::Up { .. } | Notice::Entry(_) => Ok(()),
    };
}

fn examine_keys(arguments: &keys::Arguments, json: bool) -> anyhow::Result<bool> {
    let findings = keys::examine(arguments, std::env::var("LAGO_RSA_PRIVATE_KEY").ok().as_deref());
    if json {
        output::json(&findings)?;
    } else {
        findings.iter().try_for_each(|finding| output::line(format_args!("{}", safe(&keys::line(finding)))))?;
    }
    Ok(findings.iter().all(|finding| finding.ok))
}
