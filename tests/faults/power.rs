//! Power cuts: the journal lies on a filesystem that loses, in the middle of its work, whatever is not on
//! the device. The senders' account lies elsewhere.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit_workbench::Moment;
use kit_workbench::ledger::{Crash, EndRecord, ExpectedEnd, Invariant, Ledger, Report, SentRequest};
use kit_workbench::load::{self, LoadControl, LoadOptions};
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::journal_file;
use outrigger_tests::power::{Disk, FileSystem};
use outrigger_tests::rig::{DAEMON, Mode, Rig, START_DEADLINE, UNSETTLED};
use outrigger_tests::strace::Injection;

/// Ready again within this time after the power is back, checks of the filesystem not counted.
const READY_LIMIT: Duration = Duration::from_secs(2);
/// Cuts that one journal goes through before everything is settled and a new one begins: looking through a
/// whole journal after every cut must stay quick.
const CUTS_PER_JOURNAL: u32 = 20;

/// F3: on ext4 no power cut loses an event whose 2xx was read before it.
pub(crate) async fn a_power_cut_on_ext4_loses_nothing(trial: Trial) -> Result<Outcome> {
    a_power_cut_loses_nothing(trial, FileSystem::Ext4, processor).await
}

/// F3: nor on xfs.
pub(crate) async fn a_power_cut_on_xfs_loses_nothing(trial: Trial) -> Result<Outcome> {
    a_power_cut_loses_nothing(trial, FileSystem::Xfs, processor).await
}

async fn processor() -> Result<Rig> {
    Rig::new(Mode::Hmac, &[]).await
}

/// Clients never stop sending. The power is cut at a random time, also while the daemon starts: the very
/// first time and after an earlier cut.
pub(crate) async fn a_power_cut_loses_nothing<F: Future<Output = Result<Rig>>>(
    mut trial: Trial,
    kind: FileSystem,
    rig: fn() -> F,
) -> Result<Outcome> {
    let disk = match Disk::create(kind) {
        Ok(disk) => disk,
        Err(error) => return Outcome::skipped_if_refused(error.context(format!("no {kind} on a loop device"))),
    };
    let mut totals = Totals::default();
    let mut done = 0;
    while done < trial.count {
        let last = trial.count.min(done + CUTS_PER_JOURNAL);
        let mut powered = PoweredRig::new(&disk, rig().await?)?;
        let sending = Sending::start(&powered.rig, |options| options)?;
        for cut in done..last {
            trial.progress(cut);
            let described = || format!("cut {} on {kind}", cut + 1);
            if cut == done || trial.random.u8(0..5) == 0 {
                // Not waiting for luck, here and below: the random moment is the experiment.
                let moment = Duration::from_micros(trial.random.u64(0..=25_000));
                powered.cut_while_starting(moment).await.with_context(described)?;
                totals.while_starting += 1;
            } else {
                let ready = powered.start().await.with_context(described)?;
                totals.slowest = totals.slowest.max(ready);
                tokio::time::sleep(trial.millis(5, 200)).await;
                powered.cut().await.with_context(described)?;
            }
        }
        done = last;
        let ready = powered.start().await?;
        totals.slowest = totals.slowest.max(ready);
        let sent = sending.stop().await?;
        totals.add(&powered.settle(sent, &format!("F3-{kind}-{}", trial.seed)).await?);
    }
    ensure!(totals.slowest <= READY_LIMIT, "ready {:?} after a cut", totals.slowest);
    Ok(Outcome::new(trial.count, totals.to_string()))
}

/// F6: a disk that says it has synced and has not is out of the promise, and the checker notices: this is
/// the proof that the experiments above would see a loss.
pub(crate) async fn a_disk_that_lies_is_noticed(mut trial: Trial) -> Result<Outcome> {
    let (mut lost, mut accepted) = (0, 0);
    for round in 0..trial.count {
        trial.progress(round);
        let kind = if round % 2 == 0 { FileSystem::Ext4 } else { FileSystem::Xfs };
        let disk = match Disk::create(kind) {
            Ok(disk) => disk,
            Err(error) => return Outcome::skipped_if_refused(error.context(format!("no {kind} on a loop device"))),
        };
        let mut powered = PoweredRig::new(&disk, Rig::new(Mode::Hmac, &[]).await?)?;
        powered.start().await?;
        // Made honestly, so that only events can get lost.
        let lie = Injection::new("fdatasync,fsync", "retval=0").attach(powered.rig.process()?).await?;
        let sending = Sending::start(&powered.rig, |options| LoadOptions { connections: 2, ..options })?;
        sending.wait_for(20 + trial.random.u64(0..=50)).await?;
        let sent = sending.stop().await?;
        // The lie goes on over the cut: the first honest sync would take along what was written before.
        powered.cut().await?;
        let lies = lie.detach().await?;
        powered.start().await?;
        let (_, report) = powered.account(sent).await?;
        let missing = report.count(Invariant::I1);
        ensure!(missing > 0, "round {round}: the disk lied {lies} times on {kind} and nobody noticed\n{report}");
        lost += missing;
        accepted += report.accepted;
    }
    Ok(Outcome::new(trial.count, format!("noticed each time: {lost} of {accepted} lost")))
}

/// A load that goes on until it is stopped.
pub(crate) struct Sending {
    control: LoadControl,
    task: tokio::task::JoinHandle<Result<load::LoadOutcome, load::LoadError>>,
}

impl Sending {
    /// Starts the rig's usual load, with changes. Duplicates are not sent: one would heal the loss of its
    /// original.
    pub(crate) fn start(rig: &Rig, change: impl FnOnce(LoadOptions) -> LoadOptions) -> Result<Self> {
        let (control, options, pool) = (LoadControl::new(), change(rig.load()), rig.pool(64)?);
        let task = tokio::spawn({
            let control = control.clone();
            async move { load::run(options, pool, &control).await }
        });
        Ok(Self { control, task })
    }

    /// Waits until so many requests are answered 2xx.
    pub(crate) async fn wait_for(&self, wanted: u64) -> Result<()> {
        let begin = Instant::now();
        while self.control.ok() < wanted {
            ensure!(begin.elapsed() < START_DEADLINE, "only {} of {wanted} were accepted", self.control.ok());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// Lets it end and returns every request.
    pub(crate) async fn stop(self) -> Result<Vec<SentRequest>> {
        self.control.stop();
        Ok(self.task.await??.sent)
    }
}

/// A rig whose journal lies on a disk with a power switch, and its ledger.
pub(crate) struct PoweredRig<'a> {
    pub(crate) rig: Rig,
    pub(crate) ledger: Ledger,
    pub(crate) disk: &'a Disk,
    /// From just before each cut until the next start.
    pub(crate) blind: Vec<(Moment, Moment)>,
    /// A cut whose effects are not over: deliveries may be repeated until the daemon is ready again.
    pub(crate) unsettled: Option<Moment>,
}

impl<'a> PoweredRig<'a> {
    /// With an empty filesystem on the disk. The daemon is not started.
    pub(crate) fn new(disk: &'a Disk, mut rig: Rig) -> Result<Self> {
        tokio::task::block_in_place(|| disk.format())?;
        rig.place_journal(disk.folder());
        Ok(Self { rig, ledger: Ledger::new(), disk, blind: Vec::new(), unsettled: None })
    }

    /// Starts the daemon; returns how long it took to be ready.
    pub(crate) async fn start(&mut self) -> Result<Duration> {
        let ready = self.rig.start().await?;
        if let Some(from) = self.unsettled.take() {
            let what = "power cut".to_owned();
            self.ledger.crash(Crash { what, from, until: Moment::now(), in_flight: UNSETTLED });
        }
        Ok(ready)
    }

    /// Cuts the power of the running daemon, and gives it back.
    pub(crate) async fn cut(&mut self) -> Result<()> {
        let exit = self.cut_and_kill().await?;
        self.ledger.end(EndRecord::new(DAEMON, ExpectedEnd::Signal(9), exit));
        self.restore()
    }

    /// Starts the daemon and cuts the power so long after.
    async fn cut_while_starting(&mut self, moment: Duration) -> Result<()> {
        let command = self.rig.command()?;
        self.rig.spawn(&command)?;
        tokio::time::sleep(moment).await;
        // A start that fails on the dead disk is as good as a kill.
        self.cut_and_kill().await?;
        self.restore()
    }

    async fn cut_and_kill(&mut self) -> Result<kit_workbench::process::Exit> {
        // What is answered during the cut does not count: a filesystem that is being shut down may say that
        // it has synced. Power does not fail in that way.
        let from = Moment::now();
        tokio::task::block_in_place(|| self.disk.cut())?;
        let exit = self.rig.kill().await?;
        self.blind.push((from, Moment::now()));
        self.unsettled.get_or_insert(from);
        Ok(exit)
    }

    /// Unmounts, checks and mounts the filesystem; nobody has a file open on it.
    pub(crate) fn restore(&mut self) -> Result<()> {
        tokio::task::block_in_place(|| {
            self.disk.restore()?;
            journal_file::check_store(&self.rig.journal_path(), self.rig.scratch.path())
        })?;
        // A client may read an answer that was on its way when the daemon died.
        if let Some((_, until)) = self.blind.last_mut() {
            *until = Moment::now();
        }
        Ok(())
    }

    /// Whether what was answered then does not count.
    pub(crate) fn is_blind(&self, at: Moment) -> bool {
        self.blind.iter().any(|(from, until)| (*from..=*until).contains(&at))
    }

    /// As [`Rig::settle`].
    pub(crate) async fn settle(mut self, mut sent: Vec<SentRequest>, evidence: &str) -> Result<Report> {
        self.forget_blind(&mut sent);
        self.ledger.extend_sent(sent);
        self.rig.settle(self.ledger, evidence).await
    }

    /// As [`Rig::account`].
    async fn account(mut self, mut sent: Vec<SentRequest>) -> Result<(Ledger, Report)> {
        self.forget_blind(&mut sent);
        self.ledger.extend_sent(sent);
        self.rig.account(self.ledger).await
    }

    /// Requests whose answer does not count become requests of unknown outcome.
    fn forget_blind(&self, sent: &mut [SentRequest]) {
        for request in sent {
            if request.answered.is_some_and(|at| self.is_blind(at)) {
                (request.answered, request.status, request.event_id, request.duplicate) = (None, None, None, None);
            }
        }
    }
}

/// What many journals went through.
#[derive(Default)]
struct Totals {
    accepted: u64,
    redelivered: u64,
    while_starting: u32,
    slowest: Duration,
}

impl Totals {
    fn add(&mut self, report: &Report) {
        self.accepted += report.accepted;
        self.redelivered += report.redelivered;
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { accepted, redelivered, while_starting, slowest } = self;
        write!(
            f,
            "{accepted} accepted, 0 lost, {redelivered} delivered again, \
             {while_starting} cuts during a start, ready after {} ms at most",
            slowest.as_millis()
        )
    }
}
