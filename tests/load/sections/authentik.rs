//! The figures of the event forwarder, beside the stand-in for Authentik: both run here, the daemon on its own.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kit_authentik::emulator::{AuthentikServer, Generation, NewEvent, User};
use outrigger_tests::rig::Rig;
use serde_json::json;

use super::{Bench, MIB};
use crate::measure::median;
use crate::record::{Bar, rounded};

/// Events that no webhook has brought.
const MISSED: u32 = 10_000;
/// Who causes them.
const USERS: u32 = 500;
/// Seconds between two looks of the idle one, and how many of them.
const INTERVAL: f64 = 0.5;
const INTERVALS: u32 = 20;
const DEADLINE: Duration = Duration::from_secs(120);

impl Bench<'_> {
    /// What it takes while nothing happens, and how soon events are there that happened while it was away.
    pub(super) async fn authentik(&mut self) -> Result<()> {
        let (mut memory, mut asked, mut caught_up) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.options.rounds {
            let authentik = AuthentikServer::start(Generation::V2026_2).await?;
            let (url, token, interval) = (authentik.url(), authentik.token(), INTERVAL.to_string());
            let settings = [
                ("AUTHENTIK_URL", url.as_str()),
                ("AUTHENTIK_TOKEN", &token),
                ("SIDECAR_POLL__INTERVAL_SECONDS", &interval),
            ];
            let mut rig = Rig::forwarder_started(&settings).await?;
            let begin = Instant::now();
            while authentik.counts().event_pages < 2 {
                ensure!(begin.elapsed() < DEADLINE, "Authentik is not asked: {:?}", authentik.counts());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let before = authentik.counts().requests;
            tokio::time::sleep(Duration::from_secs_f64(INTERVAL) * INTERVALS).await;
            let per_interval = (authentik.counts().requests - before) as f64 / f64::from(INTERVALS);
            let rss = rig.rss_bytes()? as f64 / MIB;
            let figures = json!({ "rss_mib": rounded(rss), "requests_per_interval": rounded(per_interval) });
            self.records.put("authentik", "idle, the poller on", figures)?;
            memory.push(rss);
            asked.push(per_interval);

            rig.kill().await?;
            for n in 0..MISSED {
                let user = User::new(i64::from(10 + n % USERS), &format!("user{}", n % USERS));
                authentik.happen(NewEvent::login(&user));
            }
            let (begin, before) = (Instant::now(), authentik.counts().requests);
            rig.start().await?;
            rig.gateway.wait_for_unique(u64::from(MISSED), DEADLINE).await?;
            let seconds = begin.elapsed().as_secs_f64();
            let requests = authentik.counts().requests - before;
            let figures = json!({ "events": MISSED, "seconds": rounded(seconds), "requests": requests });
            self.records.put("authentik", "missed events to the gateway, from the start of the daemon", figures)?;
            caught_up.push(seconds);
            rig.stop().await?;
        }
        self.records.bar("authentik", "MiB idle, the poller on", median(memory), Bar::AtMost(12.0))?;
        self.records.bar("authentik", "requests to Authentik an interval, idle", median(asked), Bar::AtMost(1.0))?;
        let what = format!("seconds from the start to {MISSED} missed events at the gateway");
        self.records.bar("authentik", &what, median(caught_up), Bar::AtMost(5.0))
    }
}
