//! Lago's RSA public keys that are accepted now: the current one, and a former one for a while.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use kit::clock::Timestamp;
use kit_lago::signature::{KeyError, MAX_RSA_KEYS, RsaKey, RsaKeys};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// The keys, shared by the intake that reads and the worker that changes them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keyring {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    keys: RwLock<Arc<RsaKeys>>,
    /// A signature did not match: perhaps Lago has a new key.
    doubt: Notify,
}

impl Keyring {
    pub(crate) fn fixed(keys: RsaKeys) -> Self {
        let ring = Self::default();
        ring.set(keys);
        ring
    }

    pub(crate) fn current(&self) -> Arc<RsaKeys> {
        Arc::clone(&self.shared.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set(&self, keys: RsaKeys) {
        *self.shared.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }

    pub(crate) fn doubt(&self) {
        self.shared.doubt.notify_one();
    }

    pub(crate) async fn doubted(&self) {
        self.shared.doubt.notified().await;
    }
}

/// The fetched keys as the journal remembers them, newest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Remembered {
    keys: Vec<RememberedKey>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct RememberedKey {
    pem: String,
    /// Another key took its place then.
    replaced_at: Option<Timestamp>,
}

impl Remembered {
    /// Name of the value in the journal.
    pub(crate) const NAME: &'static str = "lago.public_key";

    /// What the journal holds; something unreadable counts as nothing.
    pub(crate) fn from_stored(stored: Option<&[u8]>) -> Self {
        stored.and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default()
    }

    pub(crate) fn to_stored(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Takes a fetched key; true when it is a new one.
    pub(crate) fn take(&mut self, pem: &str, now: Timestamp) -> Result<bool, KeyError> {
        let fetched = RsaKey::from_pem(pem)?;
        let known = |key: &RememberedKey| RsaKey::from_pem(&key.pem).is_ok_and(|key| key == fetched);
        if self.keys.first().is_some_and(known) {
            return Ok(false);
        }
        self.keys.retain(|key| !known(key));
        for key in &mut self.keys {
            key.replaced_at.get_or_insert(now);
        }
        self.keys.insert(0, RememberedKey { pem: fetched.to_pem(), replaced_at: None });
        self.keys.truncate(MAX_RSA_KEYS);
        Ok(true)
    }

    /// The keys accepted at `now`: the current one, and former ones within the overlap.
    pub(crate) fn accepted(&self, now: Timestamp, overlap: Duration) -> RsaKeys {
        let keys = self
            .keys
            .iter()
            .filter(|key| key.replaced_at.is_none_or(|at| now.since(at) < overlap))
            .filter_map(|key| RsaKey::from_pem(&key.pem).ok())
            .take(MAX_RSA_KEYS);
        RsaKeys::new(keys.collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use kit_lago::signature::RsaSigner;

    #[test]
    fn an_old_key_is_accepted_for_the_overlap_and_survives_a_restart() {
        let (first, second) = (RsaSigner::generate().unwrap(), RsaSigner::generate().unwrap());
        let overlap = Duration::from_secs(60);
        let at = |seconds: i64| Timestamp::from_millis(seconds * 1000);
        let mut remembered = Remembered::default();

        assert!(remembered.take(&first.public_pem(), at(0)).unwrap());
        assert!(!remembered.take(&first.public_pem(), at(1)).unwrap());
        assert!(remembered.take(&second.public_pem(), at(10)).unwrap());
        let remembered = Remembered::from_stored(Some(&remembered.to_stored()));

        assert_eq!(remembered.accepted(at(69), overlap).keys(), [second.public_key(), first.public_key()]);
        assert_eq!(remembered.accepted(at(70), overlap).keys(), [second.public_key()]);
        assert!(Remembered::from_stored(Some(b"garbage")).accepted(at(0), overlap).is_empty());
    }
}
