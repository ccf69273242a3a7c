//! Whose journal it is. Another daemon would deliver its events to its own gateway, and keep every event of its own waiting
//! for sinks that only the first one has.

use kit::run::StartError;
use kit_journal::Journal;

use crate::start::configuration;

/// The value of a journal that says so.
const OWNER: &str = "journal.daemon";

/// Makes a journal that is nobody's, or was made before this was written down, the one of `daemon`.
///
/// # Errors
/// It is another daemon's: exit code 78. A journal that cannot be asked or told is not in the way of a start.
pub(crate) async fn claim(journal: &Journal, daemon: &str, place: &str) -> Result<(), StartError> {
    match journal.read(|reader| reader.value(OWNER)).await {
        Ok(Some(owner)) if owner == daemon.as_bytes() => Ok(()),
        Ok(Some(owner)) => {
            let owner = String::from_utf8_lossy(&owner);
            Err(configuration(format!(
                "SIDECAR_JOURNAL__PATH: {place} is the journal of {owner}: {daemon} needs one of its own"
            )))
        }
        Ok(None) => {
            let value = (OWNER.to_owned(), daemon.as_bytes().to_vec());
            if let Err(error) = journal.append_recording(Vec::new(), vec![value]).await {
                tracing::warn!(error = %error, "whose journal it is cannot be written down: {error}");
            }
            Ok(())
        }
        Err(error) => {
            let error = kit::error::chain(&error);
            tracing::warn!(error = %error, "whose journal it is cannot be read: {error}");
            Ok(())
        }
    }
}
