//! Keeping Lago's public key: fetched when none is known, looked at again at start and after a
//! signature that does not match, remembered in the journal so that a restart does not need Lago.

use std::time::Duration;

use kit::admin::Part;
use kit::client::{ClientError, ClientOptions, http_client};
use kit::clock::SharedClock;
use kit::lifecycle::StopToken;
use kit::secret::Secret;
use kit_journal::Journal;
use kit_lago::public_key::fetch_public_key;
use tokio::time::Instant;

use crate::keyring::{Keyring, Remembered};

/// Between attempts while no key is known: Lago may start later than we do.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// An old key leaves at most this long after its time.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Fetches the key and keeps it current.
#[derive(Debug)]
pub(crate) struct KeyWorker {
    client: reqwest::Client,
    api_url: String,
    api_key: Secret,
    keyring: Keyring,
    journal: Journal,
    clock: SharedClock,
    ready: Part,
    refresh: Duration,
    overlap: Duration,
    remembered: Remembered,
    /// The journal has not taken what is remembered yet.
    unstored: bool,
}

/// How the worker behaves.
#[derive(Debug)]
pub(crate) struct KeySettings {
    pub(crate) api_url: String,
    pub(crate) api_key: Secret,
    pub(crate) refresh: Duration,
    pub(crate) overlap: Duration,
}

impl KeyWorker {
    pub(crate) async fn new(
        settings: KeySettings,
        keyring: Keyring,
        journal: Journal,
        clock: SharedClock,
        ready: Part,
    ) -> Result<Self, ClientError> {
        let client = http_client(&ClientOptions::default())?;
        let stored = journal.read(|reader| reader.value(Remembered::NAME)).await.unwrap_or_else(|error| {
            tracing::warn!(error = %error, "the remembered public key cannot be read, it will be fetched: {error}");
            None
        });
        let worker = Self {
            client,
            api_url: settings.api_url,
            api_key: settings.api_key,
            keyring,
            journal,
            clock,
            ready,
            refresh: settings.refresh,
            overlap: settings.overlap,
            remembered: Remembered::from_stored(stored.as_deref()),
            unstored: false,
        };
        worker.publish();
        Ok(worker)
    }

    /// Makes the accepted keys known to the intake.
    fn publish(&self) {
        let keys = self.remembered.accepted(self.clock.now(), self.overlap);
        if keys.is_empty() {
            self.ready.set_not_ready("Lago's public key is not known yet (LAGO_API_URL, LAGO_API_KEY_FILE)");
        } else {
            self.ready.set_ready();
        }
        self.keyring.set(keys);
    }

    pub(crate) async fn run(mut self, stop: StopToken) -> Result<(), std::convert::Infallible> {
        let mut wait = FIRST_WAIT;
        // The first look is taken at once: the key may have changed while we were away.
        let mut next_fetch = Some(Instant::now());
        let mut fetched_at: Option<Instant> = None;
        loop {
            let fetch_at = next_fetch.unwrap_or_else(|| Instant::now() + LOOK_EVERY);
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                () = self.keyring.doubted(), if next_fetch.is_none() => {
                    // At most one fetch an interval, whatever forgers send.
                    let earliest = fetched_at.map_or_else(Instant::now, |at| at + self.refresh);
                    next_fetch = Some(earliest.max(Instant::now()));
                    continue;
                }
                () = tokio::time::sleep_until(fetch_at) => {}
            }
            if next_fetch.is_some() {
                fetched_at = Some(Instant::now());
                let known = tokio::select! {
                    () = stop.stopped() => return Ok(()),
                    known = self.fetch() => known,
                };
                if known || !self.keyring.current().is_empty() {
                    next_fetch = None;
                    wait = FIRST_WAIT;
                } else {
                    next_fetch = Some(Instant::now() + wait.mul_f64(0.8 + 0.4 * fastrand::f64()));
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
            self.store().await;
            self.publish();
        }
    }

    /// Has the key on disk, so that a restart while Lago is away has one.
    async fn store(&mut self) {
        if !self.unstored {
            return;
        }
        match self.journal.put_value(Remembered::NAME, self.remembered.to_stored()).await {
            Ok(()) => self.unstored = false,
            Err(error) => {
                let error = kit::error::chain(&error);
                tracing::warn!(error = %error, "Lago's public key cannot be remembered yet: {error}");
            }
        }
    }

    /// One attempt; true when Lago answered with a key.
    async fn fetch(&mut self) -> bool {
        let pem = match fetch_public_key(&self.client, &self.api_url, &self.api_key).await {
            Ok(pem) => pem,
            Err(error) => {
                let error = kit::error::chain(&error);
                tracing::warn!(error = %error, "Lago's public key cannot be fetched: {error}");
                return false;
            }
        };
        match self.remembered.take(&pem, self.clock.now()) {
            Ok(new) => {
                if new {
                    tracing::info!("Lago's public key fetched, it is a new one");
                }
                self.unstored |= new;
                self.store().await;
                true
            }
            Err(error) => {
                tracing::error!(error = %error, "Lago's public key cannot be used: {error}");
                false
            }
        }
    }
}
