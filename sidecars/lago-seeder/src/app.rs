//! The one-shot: arguments, configuration, log lines, exit code.

use clap::{Args, Subcommand};
use kit::client::http_client;
use kit::config::{LogSection, Problems, WellKnown};
use kit::lifecycle::exit;
use kit::one_shot::{OneShot, say};
use kit_lago::api::LagoApi;

use crate::catalogue::Catalogue;
use crate::config::{Config, well_known};
use crate::lago::RunError;
use crate::report::{Entry, Outcome};
use crate::seeder::{Mode, Seeder};
use crate::{Notice, keys};

/// The one-shot.
#[derive(Debug)]
pub struct LagoSeeder;

/// What it is to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make Lago as the catalogue says. Done where nothing else is asked for.
    Apply(Prune),
    /// Show what apply would do.
    Plan(Prune),
    /// As plan, and end with 1 where there is something to do.
    Check(Prune),
    /// Make or check Lago's RSA key.
    Keys(keys::Arguments),
    /// Print the page about the catalogue's fields as Markdown.
    CatalogueReference,
}

/// What is to become of the rest.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Prune {
    /// Delete what Lago has and the catalogue does not, of the kinds that the catalogue has any of.
    #[arg(long)]
    prune: bool,
}

impl OneShot for LagoSeeder {
    const NAME: &'static str = "lago-seeder";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const ABOUT: &'static str =
        "Brings an organisation in Lago to what a catalogue file says, and ends. Run again, it changes nothing.";
    type Config = Config;
    type Verb = Verb;

    fn well_known() -> Vec<WellKnown> {
        well_known()
    }

    fn log(config: &Config) -> &LogSection {
        &config.log
    }

    fn check(config: &Config, problems: &mut Problems) {
        if let Err(message) = config.lago.key() {
            problems.add("lago.api_key_file", &message);
        }
        if let Err(error) = http_client(&config.lago.client()) {
            problems.add("lago.ca_file", &kit::error::chain(&error));
        }
        if let Err(errors) = Catalogue::read(&config.catalogue.file) {
            errors.0.iter().for_each(|line| problems.add("catalogue.file", line));
        }
    }

    fn without_configuration(verb: &Verb) -> Option<u8> {
        match verb {
            Verb::CatalogueReference => Some(say(&crate::catalogue::reference())),
            Verb::Keys(arguments) => Some(keys::main(arguments)),
            Verb::Apply(_) | Verb::Plan(_) | Verb::Check(_) => None,
        }
    }

    async fn run(config: Config, verb: Option<Verb>) -> u8 {
        let (mode, prune, fails_on_difference) = match verb {
            Some(Verb::Plan(prune)) => (Mode::Look, prune, false),
            Some(Verb::Check(prune)) => (Mode::Look, prune, true),
            Some(Verb::Apply(prune)) => (Mode::Apply, prune, true),
            _ => (Mode::Apply, Prune::default(), true),
        };
        let parts = Catalogue::read(&config.catalogue.file)
            .map_err(|errors| errors.to_string())
            .and_then(|catalogue| Ok((catalogue, connect(&config)?)));
        let (catalogue, (api, client)) = match parts {
            Ok(parts) => parts,
            Err(message) => {
                tracing::error!("{message}");
                return exit::CONFIG;
            }
        };
        let settings = config.settings(prune.prune);
        let seeder = Seeder::new((&api, &client), &catalogue, (settings, mode), &log);
        match seeder.run().await {
            Ok(report) => {
                let summary = report.summary();
                if report.is_settled() || !fails_on_difference {
                    tracing::info!(lago.version = %report.lago, "{summary}");
                    exit::DRAINED
                } else {
                    tracing::error!(lago.version = %report.lago, "Lago is not as the catalogue says: {summary}");
                    if mode == Mode::Apply && report.only_waits() { exit::LOCKED } else { exit::DIED }
                }
            }
            Err(error) => {
                tracing::error!("{error}");
                code(&error)
            }
        }
    }
}

/// The exit code of a run that came to no end.
fn code(error: &RunError) -> u8 {
    match error {
        RunError::Away { .. } => exit::LOCKED,
        RunError::Denied => exit::CONFIG,
        RunError::Other(_) => exit::DIED,
    }
}

fn connect(config: &Config) -> Result<(LagoApi, reqwest::Client), String> {
    let key = config.lago.key()?;
    let client = http_client(&config.lago.client()).map_err(|error| kit::error::chain(&error))?;
    let url = config.lago.api_url.as_deref().unwrap_or_default();
    let api = LagoApi::new(client.clone(), url, &key).map_err(|error| error.to_string())?;
    Ok((api, client))
}

/// A line for each thing that was found, done or waited for.
fn log(notice: Notice<'_>) {
    match notice {
        Notice::Waiting { reason, left } => {
            tracing::warn!(reason, "Lago is not there yet, waiting up to {} s more: {reason}", left.as_secs());
        }
        Notice::Up { version } => tracing::info!(lago.version = version, "Lago {version} is up"),
        Notice::WaitingForEndpoint { url, left } => {
            tracing::warn!(url, "nothing answers at {url} yet, waiting up to {} s more", left.as_secs());
        }
        Notice::Entry(entry) => log_entry(entry),
    }
}

fn log_entry(entry: &Entry) {
    let (kind, id) = (entry.kind.noun(), entry.id.as_str());
    let fields: Vec<&str> = entry.changes.iter().map(|change| change.field.as_str()).collect();
    let fields = fields.join(",");
    if !entry.problems.is_empty() {
        tracing::error!(object.kind = kind, object.id = id, object.fields = fields, "{entry}");
    } else if entry.is_silent() {
        tracing::debug!(object.kind = kind, object.id = id, "{entry}");
    } else if matches!(entry.outcome, Outcome::Extra | Outcome::Unavailable) {
        tracing::warn!(object.kind = kind, object.id = id, "{entry}");
    } else {
        tracing::info!(object.kind = kind, object.id = id, object.fields = fields, "{entry}");
    }
}
