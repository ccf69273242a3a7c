//! Being asked to end: Ctrl-C at a terminal, SIGTERM from a script or a container.

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Takes over both signals from the moment it is made, so that none is lost between two waits and
/// whatever has to be put away can be.
#[derive(Debug)]
pub(crate) struct Interrupt {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupt {
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("take over the signals");
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Waits for either.
    pub(crate) async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
