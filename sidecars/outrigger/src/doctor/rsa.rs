//! Lago's RSA key: its forms, and whether the half that Lago serves is the one that is meant.

use kit::error::chain;
use kit::secret::Secret;
use kit_lago::public_key::{FetchError, fetch_public_key};
use kit_lago::signature::{LagoPrivateKey, RsaKey, RsaKeys};

use super::Asking;
use super::finding::{LAGO_KEY_LACKS, RSA_FORM, RSA_NOT_SERVED, RSA_NOT_VERIFIED, RSA_TWO, SETTING};
use crate::finding::Finding;

const CHECK: &str = "rsa-key";
const FILE: &str = "OUTRIGGER_LAGO_RSA_KEY_FILE";
const VARIABLE: &str = "LAGO_RSA_PRIVATE_KEY";
const PUBLIC_FILE: &str = "LAGO_WEBHOOK_PUBLIC_KEY_FILE";

const ASK_LAGO: &str = "set LAGO_API_URL and LAGO_API_KEY_FILE, and see what is said of lago";

/// Looks at every key that there is, and asks Lago for its own where that may be asked.
pub(crate) async fn examine(asking: &Asking<'_>, lago: Option<(&str, &Secret)>) -> Vec<Finding> {
    let settings = asking.settings;
    let mut findings = Vec::new();
    let mut private: Vec<(&str, RsaKey)> = Vec::new();
    if let Some(path) = settings.path(FILE) {
        match std::fs::read_to_string(&path) {
            Err(error) => {
                findings.push(Finding::of(&SETTING, format!("{FILE}: cannot read {}: {error}", path.display())))
            }
            Ok(text) => match LagoPrivateKey::from_pem(&text) {
                Ok(key) => private.push((FILE, key.public_key().clone())),
                Err(error) => findings.push(Finding::of(&RSA_FORM, format!("{}: {error}", path.display()))),
            },
        }
    }
    if let Some(value) = settings.get(VARIABLE) {
        match LagoPrivateKey::from_variable(value) {
            Ok(key) => private.push((VARIABLE, key.public_key().clone())),
            Err(error) => findings.push(Finding::of(&RSA_FORM, format!("{VARIABLE}: {error}"))),
        }
    }
    if let [(_, one), (_, other)] = private.as_slice()
        && one != other
    {
        findings.push(Finding::of(&RSA_TWO, format!("{VARIABLE} and the file of {FILE} are different keys")));
    }
    let public = settings.path(PUBLIC_FILE).map(|path| {
        let text = std::fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()));
        text.and_then(|text| RsaKeys::from_pem(&text).map_err(|error| format!("{}: {error}", path.display())))
    });
    let verified = match public {
        Some(Ok(keys)) => Some(keys),
        Some(Err(error)) => {
            findings.push(Finding::of(&SETTING, format!("{PUBLIC_FILE}: {error}")));
            None
        }
        None => None,
    };
    if findings.is_empty() && private.is_empty() && verified.is_none() {
        return vec![Finding::unset(CHECK, &format!("{FILE}, {VARIABLE} or {PUBLIC_FILE}"))];
    }
    let Some((url, key)) = lago else {
        for (name, key) in &private {
            let text = format!("{name}: RSA, {} bits, {}; not compared with Lago's", key.bits(), key.fingerprint());
            findings.push(Finding::unknown(CHECK, text, ASK_LAGO));
        }
        if let Some(keys) = &verified {
            let text = format!("{PUBLIC_FILE}: {} keys, RSA; not compared with Lago's", keys.keys().len());
            findings.push(Finding::unknown(CHECK, text, ASK_LAGO));
        }
        return findings;
    };
    let served = match served_key(&asking.client, url, key).await {
        Ok(served) => served,
        Err(error @ FetchError::Forbidden) => {
            findings.push(Finding::of(&LAGO_KEY_LACKS, chain(&error)));
            return findings;
        }
        Err(error) => {
            findings.push(Finding::unknown(
                CHECK,
                format!("Lago's key is not to be had: {}", chain(&error)),
                "docker-compose logs --tail 50 lago-api",
            ));
            return findings;
        }
    };
    for (name, key) in &private {
        findings.push(if *key == served {
            Finding::good(CHECK, format!("Lago signs with the key of {name} ({})", served.fingerprint()))
        } else {
            let text = format!("{name} is {}, Lago serves {}", key.fingerprint(), served.fingerprint());
            Finding::of(&RSA_NOT_SERVED, text)
        });
    }
    if let Some(keys) = verified {
        findings.push(if keys.keys().contains(&served) {
            Finding::good(CHECK, format!("{PUBLIC_FILE} holds the key that Lago serves"))
        } else {
            Finding::of(
                &RSA_NOT_VERIFIED,
                format!("{PUBLIC_FILE} does not hold the key that Lago serves ({})", served.fingerprint()),
            )
        });
    }
    findings
}

/// The public half that Lago hands out.
///
/// # Errors
/// [`FetchError`].
pub(crate) async fn served_key(client: &reqwest::Client, url: &str, key: &Secret) -> Result<RsaKey, FetchError> {
    let pem = fetch_public_key(client, url, key).await?;
    Ok(RsaKey::from_pem(&pem).map_err(kit_lago::public_key::AnswerError::Key)?)
}
