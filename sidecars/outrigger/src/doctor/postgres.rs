//! PostgreSQL, as the journals of sidecars use it: reached, let in, and taking writes.

use kit::error::chain;
use kit_journal::{ProbeError, ask_database};

use super::finding::{POSTGRES_AWAY, POSTGRES_READ_ONLY, POSTGRES_REFUSED, SETTING};
use super::{ANSWER_WITHIN, Asking};
use crate::finding::Finding;

const CHECK: &str = "postgres";

pub(crate) async fn examine(asking: &Asking<'_>) -> Vec<Finding> {
    let url = match asking.settings.secret("DATABASE_URL") {
        Ok(Some(url)) => url,
        Ok(None) => return vec![Finding::unset(CHECK, "DATABASE_URL_FILE (or DATABASE_URL)")],
        Err(error) => return vec![Finding::of(&SETTING, chain(&error))],
    };
    // Whoever names authorities for the database wants TLS there; those of --ca-file are for the others.
    let ca_file = asking.settings.path("SIDECAR_JOURNAL__DATABASE_CA_FILE");
    vec![match ask_database(&url, ca_file, ANSWER_WITHIN).await {
        Ok(answer) if answer.is_writable => {
            Finding::good(CHECK, format!("{} answers, PostgreSQL {}", answer.shown, answer.version))
        }
        Ok(answer) => Finding::of(&POSTGRES_READ_ONLY, format!("{} takes no writes", answer.shown)),
        Err(error @ ProbeError::Url(_)) => Finding::of(&SETTING, chain(&error)),
        Err(error @ ProbeError::Refused { .. }) => Finding::of(&POSTGRES_REFUSED, chain(&error)),
        Err(error @ ProbeError::Away { .. }) => Finding::of(&POSTGRES_AWAY, chain(&error)),
    }]
}
