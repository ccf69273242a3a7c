//! The keys that webhooks are signed with, from arguments and the environment.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::Args;
use kit::secret::{self, Secret};
use kit_lago::sender::Signing;
use kit_lago::signature::RsaSigner;

/// Which key signs. The HMAC key itself is taken from `LAGO_WEBHOOK_HMAC_KEY` only: an argument is
/// there for everybody to read.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct SigningKey {
    /// File with the HMAC key; or set LAGO_WEBHOOK_HMAC_KEY.
    #[arg(long, env = "LAGO_WEBHOOK_HMAC_KEY_FILE", value_name = "FILE")]
    pub(crate) hmac_key_file: Option<PathBuf>,
    /// File with Lago's RSA private key in PEM: sign a JWT instead.
    // No `conflicts_with`: the HMAC key may be there only because the environment has it.
    #[arg(long, value_name = "FILE")]
    pub(crate) rsa_key_file: Option<PathBuf>,
    /// Issuer of the JWT: the LAGO_API_URL of Lago's worker.
    #[arg(long, default_value = "http://lago-api:3000", value_name = "URL")]
    pub(crate) issuer: String,
}

impl SigningKey {
    pub(crate) fn signing(&self) -> anyhow::Result<Signing> {
        if let Some(file) = &self.rsa_key_file {
            let pem = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
            let signer = RsaSigner::from_pem(&pem).with_context(|| format!("use {}", file.display()))?;
            return Ok(Signing::Jwt(Arc::new(signer), self.issuer.clone()));
        }
        match hmac_keys(self.hmac_key_file.as_deref())?.into_iter().next() {
            Some(key) => Ok(Signing::Hmac(key)),
            None => bail!("no key: set LAGO_WEBHOOK_HMAC_KEY, or give --hmac-key-file or --rsa-key-file"),
        }
    }
}

/// The HMAC keys of the file or the environment.
pub(crate) fn hmac_keys(file: Option<&std::path::Path>) -> anyhow::Result<Vec<Secret>> {
    let value = std::env::var("LAGO_WEBHOOK_HMAC_KEY").ok().filter(|key| !key.is_empty()).map(Secret::from);
    // A file that is named wins over a variable that is merely there.
    let value = value.filter(|_| file.is_none());
    Ok(secret::resolve_lines("LAGO_WEBHOOK_HMAC_KEY", value.as_ref(), "--hmac-key-file", file)?)
}
