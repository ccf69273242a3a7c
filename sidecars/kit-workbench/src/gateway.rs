//! A stand-in for the platform's gateway: takes events over HTTP, keeps what it received, checks
//! signatures, and can be slow, wrong, mute or gone. It shares no code with the sinks it receives
//! from.

mod behaviour;
mod received;
mod server;
mod signature;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kit::stand_in::{ANY_PORT, StandIn};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use self::behaviour::{Behaviour, Decide};
pub use self::received::{Format, Received, ReceivedHead};

use self::behaviour::Current;
use self::signature::VerifyingSecret;
use crate::Moment;

/// Called with every request once it is answered, or decided not to be.
pub type OnReceived = Arc<dyn Fn(&Received) + Send + Sync>;

/// How to set up a [`Gateway`].
#[derive(Clone)]
pub struct GatewayOptions {
    /// Where to listen; default port 0 on 127.0.0.1.
    pub addr: SocketAddr,
    /// Standard Webhooks secrets, `whsec_…`. With none, signatures are not judged.
    pub secrets: Vec<String>,
    /// How far a signature's time may be from ours; `None` does not look. Default 5 minutes, what
    /// the specification recommends.
    pub signature_tolerance: Option<Duration>,
    /// How many requests are kept; further ones are answered but only counted. Default 1,000,000.
    pub record_limit: usize,
    /// Whether the headers of each request are kept. Default true.
    pub keep_headers: bool,
    /// Whether the body of each request is kept. Default false.
    pub keep_bodies: bool,
    /// A larger body is answered with 413 and not recorded. Default 64 MiB.
    pub body_limit_bytes: usize,
    /// A file to which every receipt and every answer is appended as one line of JSON
    /// ([`JournalLine`]): the receiver's evidence, to lie outside any file system under test.
    pub journal: Option<PathBuf>,
    /// Called for every request.
    pub on_received: Option<OnReceived>,
    /// The behaviour to begin with.
    pub behaviour: Behaviour,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        Self {
            addr: ANY_PORT,
            secrets: Vec::new(),
            signature_tolerance: Some(Duration::from_secs(300)),
            record_limit: 1_000_000,
            keep_headers: true,
            keep_bodies: false,
            body_limit_bytes: 64 * 1024 * 1024,
            journal: None,
            on_received: None,
            behaviour: Behaviour::Ok,
        }
    }
}

impl fmt::Debug for GatewayOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayOptions")
            .field("addr", &self.addr)
            .field("secrets", &self.secrets.len())
            .field("behaviour", &self.behaviour)
            .finish_non_exhaustive()
    }
}

/// Why a gateway could not be started.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The address is taken or not ours.
    #[error("listen on {address}")]
    Bind {
        /// The wanted address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The journal file cannot be opened.
    #[error("open the gateway's journal {}", path.display())]
    Journal {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A secret has another form.
    #[error("secret {number} is not whsec_ followed by the Base64 of 24 to 64 bytes")]
    Secret {
        /// Its position in the list, from 1.
        number: usize,
    },
}

/// The deadline of a wait passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("waited {waited:?} for {wanted} at the gateway and saw {seen}")]
pub struct WaitError {
    /// How many were waited for.
    pub wanted: u64,
    /// How many there were.
    pub seen: u64,
    /// How long was waited.
    pub waited: Duration,
}

/// One line of the gateway's journal file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JournalLine {
    /// A request was read completely.
    Received(Box<Received>),
    /// It was answered; without such a line it never was.
    Answered {
        /// The request's number.
        number: u64,
        /// The status.
        status: u16,
        /// When the answer was handed to the connection.
        at: Moment,
        /// Whether the gateway took the event over.
        taken: bool,
    },
}

/// How much a gateway has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Requests read completely, whatever became of them.
    pub received: u64,
    /// Requests answered such that the gateway took the event over.
    pub taken: u64,
    /// Different events taken over. Those without an id count each time.
    pub unique: u64,
    /// Requests that were not kept because the record limit was reached.
    pub unrecorded: u64,
    /// Requests whose signature was missing or wrong.
    pub bad_signatures: u64,
}

/// A running stand-in gateway. Dropping it closes the port and all connections.
pub struct Gateway {
    shared: Arc<Shared>,
    address: SocketAddr,
    running: Mutex<Option<StandIn<Shared>>>,
}

/// What the connections and the handle have in common.
pub(crate) struct Shared {
    secrets: Vec<VerifyingSecret>,
    options: GatewayOptions,
    state: Mutex<State>,
    counts: watch::Sender<Counts>,
}

struct State {
    behaviour: Current,
    received: Vec<Received>,
    attempts: HashMap<String, u32>,
    taken_ids: HashSet<String>,
    counts: Counts,
    journal: Option<std::fs::File>,
}

impl Gateway {
    /// Starts listening. Requests are taken from the moment this returns.
    ///
    /// # Errors
    /// See [`GatewayError`].
    pub async fn start(options: GatewayOptions) -> Result<Self, GatewayError> {
        let mut secrets = Vec::new();
        for (index, secret) in options.secrets.iter().enumerate() {
            let number = index + 1;
            let parsed = VerifyingSecret::parse(secret);
            secrets.push(parsed.ok_or(GatewayError::Secret { number })?);
        }
        let journal = match &options.journal {
            None => None,
            Some(path) => Some(
                std::fs::OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(path)
                    .map_err(|source| GatewayError::Journal { path: path.clone(), source })?,
            ),
        };
        let address = options.addr;
        let shared = Arc::new(Shared {
            secrets,
            state: Mutex::new(State {
                behaviour: Current::of(options.behaviour.clone()),
                received: Vec::new(),
                attempts: HashMap::new(),
                taken_ids: HashSet::new(),
                counts: Counts::default(),
                journal,
            }),
            options,
            counts: watch::Sender::new(Counts::default()),
        });
        let running = listen(address, &shared).await?;
        Ok(Self { shared, address: running.address(), running: Mutex::new(Some(running)) })
    }

    /// Where it listens, or listened before [`Self::stop`].
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Its address as a URL without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes what it does with requests from now on. Those being answered are not touched.
    pub fn set_behaviour(&self, behaviour: Behaviour) {
        self.shared.state().behaviour = Current::of(behaviour);
    }

    /// Everything received so far, in order of arrival. A request being answered is in it with
    /// `answered` 0.
    pub fn received(&self) -> Vec<Received> {
        self.shared.state().received.clone()
    }

    /// Looks at what was received without copying it. The gateway stands still meanwhile.
    pub fn with_received<T>(&self, look: impl FnOnce(&[Received]) -> T) -> T {
        look(&self.shared.state().received)
    }

    /// Forgets everything received; numbers go on.
    pub fn forget(&self) {
        let mut state = self.shared.state();
        state.received.clear();
        state.attempts.clear();
        state.taken_ids.clear();
        state.counts = Counts { received: state.counts.received, ..Counts::default() };
        self.shared.counts.send_replace(state.counts);
    }

    /// How much it has seen.
    pub fn counts(&self) -> Counts {
        *self.shared.counts.borrow()
    }

    /// Waits until `wanted` requests have been received since the start, and returns all.
    ///
    /// # Errors
    /// [`WaitError`] at the deadline.
    pub async fn wait_for(&self, wanted: usize, deadline: Duration) -> Result<Vec<Received>, WaitError> {
        self.wait(wanted as u64, deadline, |counts| counts.received).await?;
        Ok(self.received())
    }

    /// Waits until `wanted` different events have been taken over.
    ///
    /// # Errors
    /// [`WaitError`] at the deadline.
    pub async fn wait_for_unique(&self, wanted: u64, deadline: Duration) -> Result<(), WaitError> {
        self.wait(wanted, deadline, |counts| counts.unique).await
    }

    async fn wait(&self, wanted: u64, deadline: Duration, count: impl Fn(&Counts) -> u64) -> Result<(), WaitError> {
        let mut counts = self.shared.counts.subscribe();
        let enough = counts.wait_for(|counts| count(counts) >= wanted);
        match tokio::time::timeout(deadline, enough).await {
            Ok(Ok(_)) => Ok(()),
            // The sender lives in `self.shared`, so only the deadline gets here.
            _ => Err(WaitError { wanted, seen: count(&self.counts()), waited: deadline }),
        }
    }

    /// Goes down: closes the port and breaks every connection with whatever it was doing. When
    /// this returns, new connections are refused. Records stay.
    pub async fn stop(&self) {
        let running = lock(&self.running).take();
        if let Some(running) = running {
            running.stop().await;
        }
    }

    /// Comes back on the address it had. Does nothing while it runs.
    ///
    /// # Errors
    /// [`GatewayError::Bind`] when somebody else has taken the port.
    pub async fn restart_on_same_port(&self) -> Result<(), GatewayError> {
        if self.is_running() {
            return Ok(());
        }
        let running = listen(self.address, &self.shared).await?;
        *lock(&self.running) = Some(running);
        Ok(())
    }

    /// Whether the port is open.
    pub fn is_running(&self) -> bool {
        lock(&self.running).is_some()
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("address", &self.address)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

async fn listen(address: SocketAddr, shared: &Arc<Shared>) -> Result<StandIn<Shared>, GatewayError> {
    StandIn::start(address, Arc::clone(shared)).await.map_err(|source| GatewayError::Bind { address, source })
}

/// A panic elsewhere must not hide what was recorded before it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

#[cfg(test)]
mod tests;
