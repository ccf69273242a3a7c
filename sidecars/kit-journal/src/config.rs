//! The `[journal]` section of every daemon's configuration.

use std::path::PathBuf;
use std::sync::Arc;

use kit::config::{Problems, WellKnown};
use kit::secret::Secret;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::postgres::{Address, is_plain_name};

/// Variables known under names of their own; they are looked at where the engine is `postgres`.
pub const WELL_KNOWN: [WellKnown; 2] = [
    WellKnown { env: "DATABASE_URL", path: "journal.database_url" },
    WellKnown { env: "DATABASE_URL_FILE", path: "journal.database_url_file" },
];

/// What keeps the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// A file of this daemon alone.
    #[default]
    Sqlite,
    /// A PostgreSQL database (14 or later), which several replicas of the daemon may share.
    Postgres,
}

/// Where and how events are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JournalSection {
    /// `sqlite`, a file of this daemon alone, or `postgres`, a database that several replicas of it may share.
    pub engine: EngineKind,
    /// The journal file. Its directory must exist, be writable and lie on a local file system
    /// (not a network mount, not a container's writable layer). With `engine` `postgres` only the file's name counts,
    /// without its extension: it is the journal's name, the same for all replicas.
    pub path: PathBuf,
    /// The database, as `postgres://user:password@host:5432/database`; several hosts with commas between. `sslmode` is
    /// `disable`, `prefer` (default), `require`, `verify-ca` or `verify-full`, as in libpq. Read where `engine` is
    /// `postgres`.
    pub database_url: Option<Secret>,
    /// File with that URL.
    pub database_url_file: Option<PathBuf>,
    /// PEM file with the certificate authorities of the database, for `verify-ca` and `verify-full`; as `sslrootcert`
    /// in the URL. Without it `verify-full` asks the platform's.
    pub database_ca_file: Option<PathBuf>,
    /// The schema that holds the journal, made where it is missing. One for every daemon.
    pub schema: String,
    /// Keeps the journal in a database that holds other programs' tables too. Without it such a database is refused:
    /// most likely it is a neighbour's.
    pub allow_shared_database: bool,
    /// Largest size in bytes of what the journal holds; above it webhooks are answered 503 until
    /// deliveries and the retention make room. 0 means no limit but the disk's.
    pub max_bytes: u64,
    /// How long a deduplication key is remembered, in days that the journal was open. A shorter time than `retention.days`
    /// counts as that.
    pub dedupe_days: f64,
    /// How many appends may wait for the disk before further ones are answered 503. Their bodies may be 48 MiB together.
    pub queue: usize,
    /// How long a webhook waits for the disk before it is answered 503, in seconds. Below the sender's own
    /// patience, Lago's being 30 s; what is stored all the same is known when it comes again.
    pub wait_seconds: f64,
    /// How long what has been delivered stays.
    pub retention: RetentionSection,
}

impl Default for JournalSection {
    fn default() -> Self {
        Self {
            engine: EngineKind::Sqlite,
            path: PathBuf::from("/var/lib/outrigger/journal.db"),
            database_url: None,
            database_url_file: None,
            database_ca_file: None,
            schema: "outrigger".to_owned(),
            allow_shared_database: false,
            max_bytes: 0,
            dedupe_days: 90.0,
            queue: 4096,
            wait_seconds: 20.0,
            retention: RetentionSection::default(),
        }
    }
}

/// How long what has been delivered stays. Undelivered and parked events are never removed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionSection {
    /// Days that a delivered body and its attempts stay readable and replayable, counted while the
    /// journal is open. Audit records stay as long as deduplication keys do.
    pub days: f64,
    /// Bytes of journal above which the oldest delivered bodies go earlier.
    pub max_bytes: u64,
}

impl Default for RetentionSection {
    fn default() -> Self {
        Self { days: 7.0, max_bytes: 1 << 30 }
    }
}

impl JournalSection {
    /// Above this many bytes delivered events go early: in time for new ones where the journal has a
    /// maximum.
    pub(crate) fn bytes_to_keep(&self) -> u64 {
        match self.max_bytes {
            0 => self.retention.max_bytes,
            maximum => self.retention.max_bytes.min(maximum / 5 * 4),
        }
    }

    /// The journal's name among those of one database.
    pub(crate) fn name(&self) -> String {
        self.path.file_stem().map_or_else(|| "journal".to_owned(), |stem| stem.to_string_lossy().into_owned())
    }

    /// Where the database is.
    ///
    /// # Errors
    /// The setting that is wrong, and what is wrong with it.
    pub(crate) fn address(&self) -> Result<Arc<Address>, (&'static str, String)> {
        let field = if self.database_url_file.is_some() { "database_url_file" } else { "database_url" };
        let (value, file) = (self.database_url.as_ref(), self.database_url_file.as_deref());
        let url = kit::secret::resolve("DATABASE_URL", value, "DATABASE_URL_FILE", file);
        let url = url.map_err(|error| (field, error.to_string()))?;
        let url = url.ok_or((field, "must be set where SIDECAR_JOURNAL__ENGINE is postgres".to_owned()))?;
        let address = Address::parse(&url, self.database_ca_file.clone(), &self.schema);
        address.map(Arc::new).map_err(|what| (field, what))
    }

    /// Checks what only reading files can tell: the database's URL, where there is one.
    pub fn check(&self, prefix: &str, problems: &mut Problems) {
        if self.engine == EngineKind::Postgres
            && let Err((field, what)) = self.address()
        {
            problems.add(&format!("{prefix}.{field}"), &what);
        }
    }

    /// Checks the values; `prefix` is the section's path in the configuration.
    pub fn validate(&self, prefix: &str, problems: &mut Problems) {
        if self.path.as_os_str().is_empty() || self.path.file_name().is_none() {
            problems.add(&format!("{prefix}.path"), "must name a file, for example /var/lib/outrigger/journal.db");
        }
        if self.engine == EngineKind::Postgres && !is_plain_name(&self.schema) {
            let what =
                "must be a name of a-z, 0-9 and _ that does not begin with a digit or pg_, for example outrigger";
            problems.add(&format!("{prefix}.schema"), what);
        }
        for (name, days) in [("dedupe_days", self.dedupe_days), ("retention.days", self.retention.days)] {
            if !days.is_finite() || days <= 0.0 || days > 36_500.0 {
                problems.add(&format!("{prefix}.{name}"), "must be a number of days above 0 and at most 36500");
            }
        }
        if !(1..=1_000_000).contains(&self.queue) {
            problems.add(&format!("{prefix}.queue"), "must be between 1 and 1000000");
        }
        if !(0.1..=3600.0).contains(&self.wait_seconds) {
            problems.add(&format!("{prefix}.wait_seconds"), "must be a number of seconds from 0.1 to 3600");
        }
        if self.max_bytes != 0 && self.max_bytes < 4 << 20 {
            problems.add(&format!("{prefix}.max_bytes"), "must be 0 (no limit) or at least 4194304");
        }
    }
}
