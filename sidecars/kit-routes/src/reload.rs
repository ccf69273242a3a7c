//! A file of routes that changes while the daemon runs: read on SIGHUP and when it is another one, all or nothing.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use kit::admin::Part;
use kit::clock::{SharedClock, Timestamp};
use kit::lifecycle::StopToken;
use serde::Deserialize;
use tokio::signal::unix::Signal;

use crate::config::RouteSection;
use crate::jq::{Jq, JqLimits};
use crate::metrics::RouteMetrics;
use crate::start::compile_all;
use crate::table::Table;

/// Longest distance of attempts to read a file again that was refused.
const READ_AGAIN_MAX: Duration = Duration::from_secs(60);

/// Largest file of routes.
const FILE_BYTES: u64 = 4 << 20;

/// A routes file as it is written.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoutesFile {
    /// Sinks that get what no route has matched. All, when empty.
    pub default_route: Vec<String>,
    /// The routes.
    pub route: Vec<RouteSection>,
}

/// Reads a routes file.
///
/// # Errors
/// Unreadable, too large, no TOML, or without any route: a file that is just being written looks like that, and would
/// send everything everywhere.
pub fn read_file(path: &Path) -> Result<RoutesFile, String> {
    let cannot = |error: std::io::Error| format!("{}: {error}", path.display());
    let length = std::fs::metadata(path).map_err(cannot)?.len();
    if length > FILE_BYTES {
        return Err(format!("{}: is larger than {FILE_BYTES} bytes", path.display()));
    }
    let text = std::fs::read_to_string(path).map_err(cannot)?;
    let file: RoutesFile = toml::from_str(&text)
        .map_err(|error| format!("{}: {}", path.display(), kit::config::malformed(&text, &error)))?;
    if file.route.is_empty() {
        return Err(format!("{}: has no [[route]]; for none at all, unset SIDECAR_ROUTES__FILE", path.display()));
    }
    Ok(file)
}

/// Routes in force, with what runs their programs.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) table: Table,
    pub(crate) jq: Arc<Jq>,
    pub(crate) sections: RoutesFile,
}

/// What is in force now, shared by everything that asks.
#[derive(Clone, Debug)]
pub(crate) struct Current {
    loaded: Arc<RwLock<Arc<Loaded>>>,
    news: Arc<Mutex<News>>,
}

/// How the routes came to be what they are.
#[derive(Clone, Debug)]
pub(crate) struct News {
    pub(crate) since: Timestamp,
    pub(crate) problem: Option<String>,
}

impl Current {
    pub(crate) fn new(loaded: Loaded, since: Timestamp) -> Self {
        let news = Arc::new(Mutex::new(News { since, problem: None }));
        Self { loaded: Arc::new(RwLock::new(Arc::new(loaded))), news }
    }

    pub(crate) fn get(&self) -> Arc<Loaded> {
        Arc::clone(&self.loaded.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn news(&self) -> News {
        self.news.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What makes two looks at a file alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    There { device: u64, inode: u64, length: u64, modified: (i64, i64), changed: (i64, i64) },
    NotThere(std::io::ErrorKind),
}

impl Look {
    pub(crate) fn at(path: &Path) -> Self {
        match std::fs::metadata(path) {
            Ok(metadata) => Self::of(&metadata),
            Err(error) => Self::NotThere(error.kind()),
        }
    }

    fn of(metadata: &Metadata) -> Self {
        Self::There {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Watches the file of the routes, or waits for a SIGHUP to say that there is none.
pub(crate) struct Watch {
    pub(crate) current: Current,
    /// The file, and how it looked before it was read.
    pub(crate) file: Option<(PathBuf, Look)>,
    pub(crate) every: Duration,
    pub(crate) sinks: Vec<String>,
    pub(crate) limits: JqLimits,
    pub(crate) metrics: RouteMetrics,
    pub(crate) ready: Part,
    pub(crate) clock: SharedClock,
    /// SIGHUP, taken over before anything else runs: it would end the process.
    pub(crate) hangups: Signal,
}

impl Watch {
    /// Runs until stopped.
    pub(crate) async fn run(mut self, stop: StopToken) -> Result<(), std::convert::Infallible> {
        let Some((path, mut taken)) = self.file.clone() else {
            loop {
                tokio::select! {
                    () = stop.stopped() => return Ok(()),
                    _ = self.hangups.recv() => {
                        tracing::info!("SIGHUP received, and there is nothing to read again: SIDECAR_ROUTES__FILE is not set");
                    }
                }
            }
        };
        let mut seen = taken.clone();
        // Not every refusal is the file's fault: a process that could not be started, a disk that could not be read.
        let mut again: Option<(Instant, Duration)> = None;
        loop {
            let asked = tokio::select! {
                () = stop.stopped() => return Ok(()),
                _ = self.hangups.recv() => true,
                () = tokio::time::sleep(self.every) => false,
            };
            let now = Look::at(&path);
            // A file that is being written changes from look to look; who sends a signal says that it is done.
            let settled = now == std::mem::replace(&mut seen, now.clone());
            let is_due = settled && again.is_some_and(|(due, _)| Instant::now() >= due);
            if asked || is_due || (settled && now != taken) {
                let is_same = !asked && now == taken;
                taken = now;
                // Programs are compiled one after the other, and there may be hundreds.
                tokio::select! {
                    () = stop.stopped() => return Ok(()),
                    is_taken = self.read(&path, is_same) => again = match again.filter(|_| is_same) {
                        _ if is_taken => None,
                        None => Some((Instant::now() + self.every, self.every)),
                        Some((_, wait)) => {
                            let wait = (wait * 2).clamp(self.every, READ_AGAIN_MAX.max(self.every));
                            Some((Instant::now() + wait, wait))
                        }
                    },
                }
            }
        }
    }

    /// Whether what is in force is what the file says. `again`: the file is the one that was refused before.
    async fn read(&self, path: &Path, again: bool) -> bool {
        let (path, sinks, limits) = (path.to_owned(), self.sinks.clone(), self.limits);
        let old = self.current.get();
        let read = tokio::task::spawn_blocking(move || {
            let sections = read_file(&path)?;
            if sections == old.sections {
                return Ok(None);
            }
            let table = compile_all(&sections.route, &sections.default_route, &sinks, limits)
                .map_err(|mistakes| format!("{}: {}", path.display(), mistakes.join("; ")))?;
            Ok(Some(Loaded { table, jq: Arc::clone(&old.jq), sections }))
        });
        match read.await.unwrap_or_else(|_| Err("reading it panicked".to_owned())) {
            Ok(loaded) => {
                self.take(loaded);
                true
            }
            Err(problem) => {
                // Said once, as long as it stays the same.
                if !again || self.current.news().problem.as_ref() != Some(&problem) {
                    self.refuse(problem);
                }
                false
            }
        }
    }

    fn take(&self, loaded: Option<Loaded>) {
        if let Some(loaded) = loaded {
            let routes = loaded.table.names().count();
            self.metrics.prepare(&loaded.table);
            *self.current.loaded.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
            self.current.news.lock().unwrap_or_else(PoisonError::into_inner).since = self.clock.now();
            tracing::info!(routes, "routes read again, {routes} are in force from now on");
        } else {
            tracing::info!("routes read again, they are the same");
        }
        self.metrics.reloaded(true);
        self.current.news.lock().unwrap_or_else(PoisonError::into_inner).problem = None;
        self.ready.set_ready();
    }

    fn refuse(&self, problem: String) {
        tracing::error!(error = %problem, "routes cannot be read again, those before stay in force: {problem}");
        self.metrics.reloaded(false);
        self.ready.set_ready_but("the routes file cannot be used, the routes before it are in force");
        self.current.news.lock().unwrap_or_else(PoisonError::into_inner).problem = Some(problem);
    }
}
