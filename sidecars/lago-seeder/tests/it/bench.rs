//! A stand-in for Lago, and seeders for it.

use std::sync::Mutex;
use std::time::Duration;

use kit::client::{ClientOptions, http_client};
use kit::secret::Secret;
use kit_lago::LagoServer;
use kit_lago::api::LagoApi;
use kit_lago::management::{Kind, Object};
use kit_lago::stand_in::billing::Profile;
use lago_seeder::{Catalogue, Entry, Mode, Outcome, Report, RunError, Seeder, Settings};
use reqwest::Client;
use serde_json::Value;

pub(crate) const KEY: &str = "lago-api-key-0123456789";
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) fn key() -> Secret {
    Secret::from(KEY.to_owned())
}

pub(crate) struct Bench {
    pub(crate) lago: LagoServer,
    pub(crate) api: LagoApi,
    pub(crate) client: Client,
}

/// Waits for Lago, and registers endpoints unseen.
pub(crate) fn settings() -> Settings {
    Settings { prune: false, wait: SOON, wait_for_endpoint: Duration::ZERO }
}

impl Bench {
    pub(crate) async fn start(profile: Profile) -> Self {
        Self::with(LagoServer::start(profile, key()).await.unwrap())
    }

    pub(crate) fn with(lago: LagoServer) -> Self {
        let (api, client) = connect(&lago.url());
        Self { lago, api, client }
    }

    pub(crate) async fn run(&self, catalogue: &Catalogue, mode: Mode) -> Report {
        self.try_run(catalogue, settings(), mode).await.unwrap()
    }

    pub(crate) async fn apply(&self, catalogue: &Catalogue) -> Report {
        self.run(catalogue, Mode::Apply).await
    }

    pub(crate) async fn look(&self, catalogue: &Catalogue) -> Report {
        self.run(catalogue, Mode::Look).await
    }

    pub(crate) async fn prune(&self, catalogue: &Catalogue, mode: Mode) -> Report {
        self.try_run(catalogue, Settings { prune: true, ..settings() }, mode).await.unwrap()
    }

    pub(crate) async fn try_run(
        &self,
        catalogue: &Catalogue,
        settings: Settings,
        mode: Mode,
    ) -> Result<Report, RunError> {
        Seeder::new((&self.api, &self.client), catalogue, (settings, mode), &|_| ()).run().await
    }

    /// What it said beside the report.
    pub(crate) async fn overheard(
        &self,
        catalogue: &Catalogue,
        settings: Settings,
    ) -> (Result<Report, RunError>, Vec<String>) {
        let said = Mutex::new(Vec::new());
        let note = |notice: lago_seeder::Notice<'_>| said.lock().unwrap().push(format!("{notice:?}"));
        let result = Seeder::new((&self.api, &self.client), catalogue, (settings, Mode::Apply), &note).run().await;
        (result, said.into_inner().unwrap())
    }

    /// What Lago has, by what it is known by.
    pub(crate) async fn object(&self, kind: Kind, id: &str) -> Object {
        let all = self.api.objects(kind).await.unwrap();
        let is_it = |object: &Object| object.get(kind.identity()).and_then(Value::as_str) == Some(id);
        match kind {
            Kind::WebhookEndpoint => all.into_iter().find(is_it).unwrap(),
            _ => self.api.find(kind, id).await.unwrap().unwrap(),
        }
    }

    /// How often the catalogue of Lago was changed.
    pub(crate) fn writes(&self) -> u64 {
        self.lago.counts().managed_writes
    }
}

pub(crate) fn connect(url: &str) -> (LagoApi, Client) {
    let client = http_client(&ClientOptions::default()).unwrap();
    (LagoApi::new(client.clone(), url, &key()).unwrap(), client)
}

pub(crate) fn shipped(name: &str) -> Catalogue {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/lago").join(name);
    Catalogue::read(&path).unwrap()
}

pub(crate) fn catalogue(text: &str) -> Catalogue {
    Catalogue::parse(text).unwrap()
}

/// The entry of this object.
#[track_caller]
pub(crate) fn entry<'a>(report: &'a Report, id: &str) -> &'a Entry {
    report.entries.iter().find(|entry| entry.id == id).unwrap_or_else(|| panic!("no {id} in {report:#?}"))
}

/// Names of the fields that are different.
pub(crate) fn fields(entry: &Entry) -> Vec<&str> {
    entry.changes.iter().map(|change| change.field.as_str()).collect()
}

#[track_caller]
pub(crate) fn all_are(report: &Report, outcome: Outcome) {
    assert!(report.entries.iter().all(|entry| entry.outcome == outcome), "{report:#?}");
}
