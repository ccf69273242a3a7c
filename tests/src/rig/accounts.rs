//! The end of a run: everything delivered, the daemon stopped, and every invariant checked.

use anyhow::{Result, bail, ensure};
use kit_workbench::ledger::{EndRecord, Expectations, ExpectedEnd, GATEWAY, Ledger, Report};

use super::{Rig, STOP_LIMIT};
use crate::journal_file;

impl Rig {
    /// Lets everything be delivered, stops the daemon and checks every invariant: against the sender,
    /// the gateway, the metrics, the file and the log.
    ///
    /// # Errors
    /// One of them does not hold; the message says which and where the evidence lies.
    pub async fn settle(self, ledger: Ledger, evidence: &str) -> Result<Report> {
        let (ledger, report) = self.account(ledger).await?;
        if !report.is_clean() {
            let file = std::env::temp_dir().join(format!("outrigger-{evidence}.jsonl"));
            ledger.write_jsonl(&file)?;
            bail!("the ledger is broken, see {}\n{report}", file.display());
        }
        Ok(report)
    }

    /// As [`Self::settle`], for experiments in which something must be found: says what is.
    ///
    /// # Errors
    /// The daemon cannot be drained, stopped or read.
    pub async fn account(mut self, mut ledger: Ledger) -> Result<(Ledger, Report)> {
        ledger.counters(self.drained().await?);
        let (exit, took) = self.stop().await?;
        ledger.end(EndRecord::new(self.daemon, ExpectedEnd::Code(0), exit));
        ensure!(took <= STOP_LIMIT, "stopping took {took:?}");
        let contents = journal_file::read(&self.journal_path()).await?;
        ledger.counters(contents.counters(GATEWAY, "drained")?);
        ledger.stored(contents.event_ids);
        let unrecorded = self.gateway.counts().unrecorded;
        ensure!(
            unrecorded == 0,
            "the gateway has not recorded {unrecorded} requests: the run is too long to be judged"
        );
        self.gateway.with_received(|received| ledger.extend_received(received));
        self.scan(&mut ledger)?;
        let expectations = Expectations { signed: true, ..Expectations::default() };
        let report = ledger.check(&expectations);
        Ok((ledger, report))
    }

    /// Searches everything the daemon printed for secrets and panics.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn scan(&self, ledger: &mut Ledger) -> Result<()> {
        let secrets: Vec<(&str, &[u8])> = self.secrets.iter().map(|(label, text)| (*label, text.as_bytes())).collect();
        let log = std::fs::read(self.scratch.file("daemon.log"))?;
        ledger.scan_output("daemon.log", &log, &secrets);
        Ok(())
    }
}
