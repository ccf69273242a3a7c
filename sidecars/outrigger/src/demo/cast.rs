//! Who takes part: Lago's keys, the gateway, and the processor as a process of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kit::secret::Secret;
use kit_lago::sender::Signing;
use kit_lago::signature::RsaSigner;
use kit_workbench::gateway::{Gateway, GatewayOptions};
use kit_workbench::process::{DaemonCommand, DaemonProcess};
use kit_workbench::scratch::{Scratch, free_ports};

use crate::RUN_PROCESSOR;

/// Issuer of the stand-in's tokens.
const ISSUER: &str = "http://lago-api:3000";
const START_WITHIN: Duration = Duration::from_secs(10);
const STOP_WITHIN: Duration = Duration::from_secs(10);

pub(super) struct Cast {
    pub(super) public: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) gateway: Gateway,
    pub(super) hmac: Signing,
    pub(super) jwt: Signing,
    pub(super) token_file: PathBuf,
    pub(super) hmac_key_file: PathBuf,
    command: DaemonCommand,
    processor: DaemonProcess,
    /// Removed at the end.
    _scratch: Scratch,
}

impl Cast {
    pub(super) async fn assemble() -> anyhow::Result<Self> {
        let scratch = Scratch::new("outrigger-demo").context("make a temporary directory")?;
        let random = |bytes: usize| STANDARD.encode((0..bytes).map(|_| fastrand::u8(..)).collect::<Vec<_>>());
        let secret = format!("whsec_{}", random(32));
        let hmac_key = uuid::Uuid::new_v4().to_string();
        let signer = Arc::new(RsaSigner::generate().context("make an RSA key")?);
        let gateway = Gateway::start(GatewayOptions { secrets: vec![secret.clone()], ..GatewayOptions::default() });
        let gateway = gateway.await.context("start the gateway")?;

        let token_file = scratch.write("token", random(32))?;
        let hmac_key_file = scratch.write("hmac-key", &hmac_key)?;
        let secret_file = scratch.write("signing-secret", &secret)?;
        let public_key_file = scratch.write("lago-public.pem", signer.public_pem())?;
        // The addresses stay the same when the processor is started again.
        let [public, admin] = free_ports::<2>()?.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let path = |path: &PathBuf| path.display().to_string();
        let program = std::env::current_exe().context("find this program")?;
        let command = DaemonCommand::new(program).args([RUN_PROCESSOR]).log_file(scratch.file("processor.log")).envs(
            [
                ("LAGO_WEBHOOK_HMAC_KEY_FILE", path(&hmac_key_file)),
                ("SIDECAR_LAGO__SIGNATURE", "hmac".to_owned()),
                ("SIDECAR_LAGO__ORGANIZATIONS__ACME__SIGNATURE", "jwt".to_owned()),
                ("SIDECAR_LAGO__ORGANIZATIONS__ACME__PUBLIC_KEY_FILE", path(&public_key_file)),
                ("SIDECAR_LAGO__ORGANIZATIONS__ACME__ISSUER", ISSUER.to_owned()),
                ("BRAIN_GATEWAY_URL", gateway.url()),
                ("SIDECAR_GATEWAY__SIGNING_SECRET_FILE", path(&secret_file)),
                ("SIDECAR_GATEWAY__CIRCUIT__PROBE_SECONDS", "0.2".to_owned()),
                ("SIDECAR_GATEWAY__CIRCUIT__PROBE_MAX_SECONDS", "1".to_owned()),
                ("SIDECAR_JOURNAL__PATH", path(&scratch.file("journal.db"))),
                ("SIDECAR_LISTEN__PUBLIC", public.to_string()),
                ("SIDECAR_LISTEN__ADMIN", admin.to_string()),
                ("SIDECAR_ADMIN__TOKEN_FILE", path(&token_file)),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        let processor = start(&command, admin).await?;
        Ok(Self {
            public,
            admin,
            gateway,
            hmac: Signing::Hmac(Secret::from(hmac_key)),
            jwt: Signing::Jwt(signer, ISSUER.to_owned()),
            token_file,
            hmac_key_file,
            command,
            processor,
            _scratch: scratch,
        })
    }

    /// SIGKILL, and a new start on the same journal.
    pub(super) async fn kill_and_restart(&mut self) -> anyhow::Result<()> {
        self.processor.kill9().await.context("kill the processor")?;
        self.processor = start(&self.command, self.admin).await?;
        Ok(())
    }

    /// SIGTERM; it must drain and exit with 0.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.processor.term()?;
        let exit = self.processor.wait(STOP_WITHIN).await?;
        self.gateway.stop().await;
        if exit.code != Some(0) {
            bail!("exit code {:?}", exit.code);
        }
        Ok(())
    }
}

async fn start(command: &DaemonCommand, admin: SocketAddr) -> anyhow::Result<DaemonProcess> {
    let mut processor = command.spawn().context("start the processor")?;
    if let Err(error) = processor.wait_ready(admin, START_WITHIN).await {
        bail!("the processor is not ready: {error}\n{}", processor.stderr());
    }
    Ok(processor)
}
