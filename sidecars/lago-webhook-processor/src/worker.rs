//! Keeping Lago's public key: fetched when none is known, looked at again at start and after a
//! signature that does not match, remembered in the journal so that a restart does not need Lago.
//! When Lago is asked is [`Asking`]'s to say: times in, times out.

use std::path::PathBuf;
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

/// Between attempts that Lago does not answer: it may start later than we do.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How long a signature that matches no key is a reason to ask again. Lago tries a webhook at once, after 3 s and after
/// 18 s more, and then no more: `app/services/webhooks/send_http_service.rb` in getlago/lago-api at v1.16.0.
const DOUBT_LASTS: Duration = Duration::from_secs(30);
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
    /// Certificate authorities for the address.
    pub(crate) ca_file: Option<PathBuf>,
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
        let client = http_client(&ClientOptions { ca_file: settings.ca_file, ..ClientOptions::default() })?;
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
        let mut asking = Asking::new(Instant::now(), self.refresh);
        let mut look_at = Instant::now() + LOOK_EVERY;
        loop {
            let wake_at = asking.due.map_or(look_at, |due| due.min(look_at));
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                () = self.keyring.doubted() => {
                    asking.doubted(Instant::now());
                    continue;
                }
                () = tokio::time::sleep_until(wake_at) => {}
            }
            if asking.due.is_some_and(|due| due <= Instant::now()) {
                asking.begun(Instant::now());
                let fetched = tokio::select! {
                    () = stop.stopped() => return Ok(()),
                    fetched = self.fetch() => fetched,
                };
                let knows_one = !self.keyring.current().is_empty();
                asking.ended(Instant::now(), fetched, knows_one, 0.8 + 0.4 * fastrand::f64());
            }
            look_at = Instant::now() + LOOK_EVERY;
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

    async fn fetch(&mut self) -> Fetched {
        let pem = match fetch_public_key(&self.client, &self.api_url, &self.api_key).await {
            Ok(pem) => pem,
            Err(error) => {
                let error = kit::error::chain(&error);
                tracing::warn!(error = %error, "Lago's public key cannot be fetched: {error}");
                return Fetched::Nothing;
            }
        };
        match self.remembered.take(&pem, self.clock.now()) {
            Ok(new) => {
                if new {
                    tracing::info!("Lago's public key fetched, it is a new one");
                }
                self.unstored |= new;
                self.store().await;
                if new { Fetched::New } else { Fetched::Known }
            }
            Err(error) => {
                tracing::error!(error = %error, "Lago's public key cannot be used: {error}");
                Fetched::Nothing
            }
        }
    }
}

/// What one attempt brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fetched {
    /// A key that was not known.
    New,
    /// The newest key that is known.
    Known,
    /// No answer, or none that holds a key.
    Nothing,
}

/// When Lago is asked next.
#[derive(Debug)]
struct Asking {
    due: Option<Instant>,
    begun_at: Option<Instant>,
    doubted_at: Option<Instant>,
    /// After the next attempt that brings nothing.
    wait: Duration,
    interval: Duration,
}

impl Asking {
    /// The first look is taken at once: the key may have changed while we were away.
    fn new(now: Instant, interval: Duration) -> Self {
        Self { due: Some(now), begun_at: None, doubted_at: None, wait: FIRST_WAIT, interval }
    }

    /// A signature matched no key: Lago may have another one, or may be about to hand it out. Whatever forgers send, an
    /// interval has one fetch.
    fn doubted(&mut self, now: Instant) {
        self.doubted_at = Some(now);
        let earliest = self.begun_at.map_or(now, |at| at + self.interval).max(now);
        self.due = Some(self.due.map_or(earliest, |due| due.min(earliest)));
    }

    fn begun(&mut self, now: Instant) {
        self.begun_at = Some(now);
        self.due = None;
    }

    /// A doubt is answered by a new key only. The same key again may come from a part of Lago that has not been started
    /// anew yet, and no answer says nothing: both are reasons to ask again.
    fn ended(&mut self, now: Instant, fetched: Fetched, knows_one: bool, jitter: f64) {
        let next = self.begun_at.map_or(now, |at| at + self.interval.max(FIRST_WAIT));
        let in_doubt = self.doubted_at.is_some_and(|at| next < at + DOUBT_LASTS);
        if fetched == Fetched::New {
            self.doubted_at = None;
        }
        self.due = match fetched {
            Fetched::New => None,
            Fetched::Known => in_doubt.then_some(next),
            Fetched::Nothing if in_doubt => Some(next),
            Fetched::Nothing if knows_one => Some(next.max(now + self.wait.mul_f64(jitter))),
            Fetched::Nothing => Some(now + self.wait.mul_f64(jitter)),
        };
        self.wait = if fetched == Fetched::Nothing { (self.wait * 2).min(LONGEST_WAIT) } else { FIRST_WAIT };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(5);

    /// The seconds at which Lago is asked until `end`, when each attempt brings `fetched`, a key is known and signatures
    /// fail to match at `doubts`.
    fn asked(doubts: &[u64], fetched: impl Fn(u64) -> Fetched, end: u64) -> Vec<u64> {
        let start = Instant::now();
        let mut asking = Asking::new(start, INTERVAL);
        let mut at = Vec::new();
        for second in 0..end {
            let now = start + Duration::from_secs(second);
            if doubts.contains(&second) {
                asking.doubted(now);
            }
            if asking.due.is_some_and(|due| due <= now) {
                asking.begun(now);
                asking.ended(now, fetched(second), true, 1.0);
                at.push(second);
            }
        }
        at
    }

    #[test]
    fn a_doubt_is_followed_up_until_a_new_key_comes_and_not_for_ever() {
        assert_eq!(asked(&[100], |_| Fetched::Known, 400), [0, 100, 105, 110, 115, 120, 125]);
        let rotated_at_112 = |second| if second < 112 { Fetched::Known } else { Fetched::New };
        assert_eq!(asked(&[100], rotated_at_112, 400), [0, 100, 105, 110, 115]);
        let back_at_112 = |second| if (50..112).contains(&second) { Fetched::Nothing } else { Fetched::New };
        assert_eq!(asked(&[100], back_at_112, 400), [0, 100, 105, 110, 115]);
    }

    #[test]
    fn an_attempt_without_an_answer_is_made_again_also_where_a_key_is_known() {
        let up_at_40 = |second| if second < 40 { Fetched::Nothing } else { Fetched::Known };
        assert_eq!(asked(&[], up_at_40, 400), [0, 5, 10, 15, 23, 39, 69]);
    }

    #[test]
    fn whatever_forgers_send_an_interval_has_one_fetch() {
        let always: Vec<u64> = (0..60).collect();
        assert_eq!(asked(&always, |_| Fetched::Known, 60), [0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55]);
        assert_eq!(asked(&always, |_| Fetched::Nothing, 60), [0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55]);
    }

    #[test]
    fn a_long_interval_is_kept() {
        let start = Instant::now();
        let mut asking = Asking::new(start, Duration::from_secs(60));
        asking.begun(start);
        asking.ended(start, Fetched::Nothing, true, 1.0);
        asking.doubted(start + Duration::from_secs(10));
        assert_eq!(asking.due, Some(start + Duration::from_secs(60)));
    }
}
