//! A question from outside: is the database there, does it let us in, would it take writes. Nothing is made or changed.

use std::path::PathBuf;
use std::time::Duration;

use kit::secret::Secret;
use tokio_postgres::config::TargetSessionAttrs;

use super::address::Address;
use super::hosts;
use super::tls::Tls;
use crate::error::JournalError;

/// What a database said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseAnswer {
    /// Host and database, for messages; never the password.
    pub shown: String,
    /// The server's version.
    pub version: String,
    /// Whether it takes writes: a standby and a server that is set to read only do not.
    pub is_writable: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The address cannot be right.
    #[error("DATABASE_URL {0}")]
    Url(String),
    /// Nobody answers there in time.
    #[error("{shown} does not answer")]
    Away {
        /// Host and database.
        shown: String,
        /// Why, where it is known.
        #[source]
        source: Option<tokio_postgres::Error>,
    },
    /// A server answers and does not let us in.
    #[error("{shown} refuses us: {reason}")]
    Refused {
        /// Host and database.
        shown: String,
        /// The server's own words, or those of TLS.
        reason: String,
    },
}

/// Asks the database at `url`, as the journal would connect to it.
///
/// # Errors
/// [`ProbeError`]. No variant shows the password.
pub async fn ask_database(
    url: &Secret,
    ca_file: Option<PathBuf>,
    within: Duration,
) -> Result<DatabaseAnswer, ProbeError> {
    let mut address = Address::parse(url, ca_file, "outrigger").map_err(ProbeError::Url)?;
    // One that takes no writes is an answer here.
    address.config.target_session_attrs(TargetSessionAttrs::Any);
    let shown = address.shown.split(", schema").next().unwrap_or_default().to_owned();
    let away = |source| ProbeError::Away { shown: shown.clone(), source };
    let tls = Tls::new(&address.trust).map_err(ProbeError::Url)?;
    let ask = async {
        let (client, connection) = match hosts::connect(&address, &tls, within).await {
            Ok(made) => made,
            Err(JournalError::Database(error)) => return Err(failed(error, &shown)),
            Err(_) => return Err(away(None)),
        };
        let task = tokio::spawn(async move { drop(connection.await) });
        let question = "SELECT current_setting('server_version'), \
             NOT pg_is_in_recovery() AND current_setting('default_transaction_read_only') = 'off'";
        // Without a prepared statement: a pooler may stand between.
        let rows = client.simple_query(question).await.map_err(|error| failed(error, &shown))?;
        task.abort();
        let row = rows.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let text = |column| row.and_then(|row| row.get(column)).unwrap_or_default().to_owned();
        Ok(DatabaseAnswer { shown: shown.clone(), version: text(0), is_writable: text(1) == "t" })
    };
    tokio::time::timeout(within, ask).await.unwrap_or_else(|_| Err(away(None)))
}

/// A server that speaks is told from one that is not there.
fn failed(error: tokio_postgres::Error, shown: &str) -> ProbeError {
    let is_io = std::error::Error::source(&error).is_some_and(|source| source.is::<std::io::Error>());
    match error.as_db_error() {
        Some(said) => ProbeError::Refused { shown: shown.to_owned(), reason: said.message().to_owned() },
        // A wrong password is found out by ourselves where there is none; TLS is refused by ourselves too.
        None if !is_io && !error.is_closed() => {
            ProbeError::Refused { shown: shown.to_owned(), reason: kit::error::chain(&error) }
        }
        None => ProbeError::Away { shown: shown.to_owned(), source: Some(error) },
    }
}
