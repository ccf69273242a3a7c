//! `lago`: what lago-seeder does, by hand – show, apply and check a catalogue, and take care of the RSA key, also beside the
//! one that Lago signs with.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use kit::client::{ClientOptions, http_client};
use kit::secret::Secret;
use kit_lago::api::{LagoApi, api_key};
use kit_lago::signature::{RsaKey, RsaKeys};
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
    #[command(
        after_help = "Example: outrigger lago keys --file private.pem --create --env-file lago.env\n\
                            Example: outrigger lago keys --lago-version v1.16.0\n\
                            Example: outrigger lago keys check --file private.pem --api-url http://lago-api:3000",
        args_conflicts_with_subcommands = true
    )]
    Keys {
        #[command(flatten)]
        arguments: keys::Arguments,
        #[command(subcommand)]
        verb: Option<KeysVerb>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysVerb {
    /// Ask Lago whether it signs with this key.
    #[command(after_help = "Example: outrigger lago keys check --file private.pem --api-url http://lago-api:3000\n\
                            Example: outrigger lago keys check --public-file lago-rsa.pub --json")]
    Check(CheckArguments),
}

/// Which key is meant to be Lago's. Without a file the one in LAGO_RSA_PRIVATE_KEY.
#[derive(Args, Debug)]
pub(crate) struct CheckArguments {
    /// File with the private key in PEM.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// File with the public key in PEM, or several: LAGO_WEBHOOK_PUBLIC_KEY_FILE of the webhook processor.
    #[arg(long, value_name = "FILE")]
    public_file: Option<PathBuf>,
    #[command(flatten)]
    lago: LagoConnection,
}

/// Which Lago. The key itself is taken from LAGO_API_KEY only: an argument is there for everybody to read.
#[derive(Args, Debug)]
pub(crate) struct LagoConnection {
    /// Lago's API.
    #[arg(long, env = "LAGO_API_URL", value_name = "URL")]
    api_url: String,
    /// File with the organisation's API key; or set LAGO_API_KEY.
    #[arg(long, env = "LAGO_API_KEY_FILE", value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// PEM file with certificate authorities to trust beside the platform's.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

impl LagoConnection {
    /// Lago's API, and what else is asked over the same client.
    pub(crate) fn open(&self) -> anyhow::Result<(LagoApi, reqwest::Client, Secret)> {
        let value = std::env::var("LAGO_API_KEY").ok().filter(|key| !key.is_empty()).map(Secret::from);
        let file = self.api_key_file.as_deref();
        // A file that is named wins over a variable that is merely there.
        let key = api_key(value.as_ref().filter(|_| file.is_none()), file)?;
        let key =
            key.context("no API key: give --api-key-file, or set LAGO_API_KEY (in Lago: Developers, API keys)")?;
        let client = http_client(&ClientOptions { ca_file: self.ca_file.clone(), ..ClientOptions::default() })?;
        Ok((LagoApi::new(client.clone(), &self.api_url, &key)?, client, key))
    }
}

/// Which Lago, and what is to be in it.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The catalogue file.
    #[arg(long, value_name = "FILE")]
    catalogue: PathBuf,
    #[command(flatten)]
    lago: LagoConnection,
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
        Verb::Keys { verb: Some(KeysVerb::Check(arguments)), .. } => check_keys(&arguments, json).await.map(ended),
        Verb::Keys { arguments, verb: None } => {
            let variable = std::env::var("LAGO_RSA_PRIVATE_KEY").ok();
            show(&keys::examine(&arguments, variable.as_deref()), json).map(ended)
        }
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
    let (api, client, _) = arguments.lago.open()?;
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

/// Judges the keys that are here, and compares them with the one that Lago hands out.
async fn check_keys(arguments: &CheckArguments, json: bool) -> anyhow::Result<bool> {
    let (_, client, key) = arguments.lago.open()?;
    let variable = std::env::var("LAGO_RSA_PRIVATE_KEY").ok().filter(|value| !value.is_empty());
    let mut findings = Vec::new();
    let mut own: Vec<(String, Vec<RsaKey>)> = Vec::new();
    let is_private = arguments.file.is_some() || variable.is_some();
    if is_private {
        let private = keys::Arguments { file: arguments.file.clone(), ..keys::Arguments::default() };
        findings = keys::examine(&private, variable.as_deref());
        if let Some(key) = keys::public_half(&private, variable.as_deref()) {
            let name =
                arguments.file.as_ref().map_or("LAGO_RSA_PRIVATE_KEY".to_owned(), |file| file.display().to_string());
            own.push((name, vec![key]));
        }
    }
    if let Some(file) = &arguments.public_file {
        let shown = file.display();
        let text = std::fs::read_to_string(file).with_context(|| format!("read {shown}"))?;
        let keys = RsaKeys::from_pem(&text).with_context(|| format!("use {shown}"))?;
        own.push((shown.to_string(), keys.keys().to_vec()));
    }
    if !is_private && own.is_empty() {
        bail!("no key: give --file or --public-file, or set LAGO_RSA_PRIVATE_KEY");
    }
    let served = crate::doctor::served_key(&client, &arguments.lago.api_url, &key).await?;
    for (name, keys) in own {
        findings.push(keys::served(&name, &keys, &served));
    }
    show(&findings, json)
}

/// Prints what was found; whether all of it is good.
fn show(findings: &[keys::Finding], json: bool) -> anyhow::Result<bool> {
    if json {
        output::json(&findings)?;
    } else {
        findings.iter().try_for_each(|finding| output::line(format_args!("{}", safe(&keys::line(finding)))))?;
    }
    Ok(findings.iter().all(|finding| finding.ok))
}
