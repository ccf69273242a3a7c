//! The figures of a journal in PostgreSQL, beside plain inserts, and of several replicas over one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kit_workbench::database::Database;
use kit_workbench::load::Pool;
use serde_json::json;
use tokio_postgres::NoTls;
use tokio_postgres::types::Type;

use super::Bench;
use crate::measure::median;
use crate::record::{Bar, rounded};
use crate::servers::{Receiver, Variant};
use crate::wrk;

/// Connections of the sender to one replica, and rows of one plain insert: what may be in one commit.
const CONNECTIONS: u32 = 64;
/// Replicas over one journal.
const REPLICAS: usize = 3;
const MADE: &str = "CREATE TABLE plain (seq bigserial PRIMARY KEY, key text NOT NULL UNIQUE, body bytea NOT NULL)";
const INSERT: &str =
    "INSERT INTO plain (key, body) SELECT * FROM unnest($1::text[], $2::bytea[]) ON CONFLICT DO NOTHING";

impl Bench<'_> {
    /// Durable accepts beside one loop that inserts the same bodies, as many at once as there are senders.
    pub(super) async fn postgres(&mut self) -> Result<()> {
        let (database, pool) = (Database::start(&[])?, self.stage.pool(false)?);
        let mut ratios = Vec::new();
        for round in 0..self.options.rounds {
            let name = format!("plain{round}");
            database.create(&name)?;
            let plain = inserted(&database.url(&name), &pool, Duration::from_secs(self.options.seconds)).await?;
            self.records.put("postgres", "plain inserts", json!({ "events_per_second": rounded(plain) }))?;
            let name = format!("journal{round}");
            database.create(&name)?;
            let ours = self.accepted(&database, &name, 1, CONNECTIONS).await?;
            ratios.push(ours / plain);
        }
        let what = format!("durable accepts over plain inserts of {CONNECTIONS} rows");
        self.records.bar("postgres", &what, median(ratios), Bar::AtLeast(0.6))
    }

    /// Several replicas over one journal beside one: with as many senders each, and as many in all.
    pub(super) async fn replicas(&mut self) -> Result<()> {
        let database = Database::start(&[])?;
        let (mut each, mut in_all) = (Vec::new(), Vec::new());
        for round in 0..self.options.rounds {
            let mut rate = async |name: &str, replicas, connections| {
                let name = format!("{name}{round}");
                database.create(&name)?;
                self.accepted(&database, &name, replicas, connections).await
            };
            let one = rate("one", 1, CONNECTIONS).await?;
            let many = rate("many", 1, CONNECTIONS * REPLICAS as u32).await?;
            let three = rate("three", REPLICAS, CONNECTIONS).await?;
            each.push(three / one);
            in_all.push(three / many);
        }
        let what = format!("{REPLICAS} replicas over one, as many senders in all");
        self.records.put("replicas", "ratio", json!({ "what": what, "seen": rounded(median(in_all)) }))?;
        let what = format!("{REPLICAS} replicas over one, {CONNECTIONS} senders each");
        self.records.bar("replicas", &what, median(each), Bar::AtLeast(1.5))
    }

    /// Accepts a second of so many replicas over one journal, nothing delivered meanwhile.
    async fn accepted(&mut self, database: &Database, name: &str, replicas: usize, connections: u32) -> Result<f64> {
        let mut receivers: Vec<Receiver> = Vec::with_capacity(replicas);
        for _ in 0..replicas {
            let (folder, journal) = self.empty("postgres")?;
            let settings = [("SIDECAR_JOURNAL__ENGINE", "postgres".to_owned()), ("DATABASE_URL", database.url(name))];
            receivers.push(self.stage.start_with(Variant::ALONE, folder, &journal, &settings).await?);
        }
        let webhooks = self.stage.webhooks(Variant::ALONE);
        let drives =
            receivers.iter().map(|receiver| wrk::drive(receiver.address, self.webhooks(&webhooks, connections, false)));
        let (mut rate, mut p50, mut p99, mut group) = (0.0, 0.0_f64, 0.0_f64, 0.0);
        for seen in futures_util::future::join_all(drives).await {
            let seen = seen?;
            anyhow::ensure!(seen.not_2xx == 0 && seen.broken == 0, "{seen:?}");
            rate += seen.rate();
            (p50, p99) = (p50.max(seen.p50_ms), p99.max(seen.p99_ms));
        }
        for receiver in receivers {
            let metrics = receiver.metrics().await?;
            let commits = metrics.sum("journal_group_events_count", &[]);
            group += metrics.sum("journal_group_events_sum", &[]) / commits.max(1.0) / replicas as f64;
            receiver.end().await?;
        }
        let figures = json!({
            "replicas": replicas, "connections_each": connections, "rate": rounded(rate), "p50_ms": p50, "p99_ms": p99,
            "events_per_commit": rounded(group),
        });
        self.records.put("replicas", "outrigger on PostgreSQL", figures)?;
        Ok(rate)
    }
}

/// Rows a second that one connection inserts, [`CONNECTIONS`] in each durable statement.
async fn inserted(url: &str, pool: &Pool, time: Duration) -> Result<f64> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    let connection = tokio::spawn(connection);
    client.batch_execute(MADE).await?;
    let insert = client.prepare_typed(INSERT, &[Type::TEXT_ARRAY, Type::BYTEA_ARRAY]).await?;
    let (begin, mut rows, mut bodies) = (Instant::now(), 0_u64, pool.iter().cycle());
    while begin.elapsed() < time {
        let keys: Vec<String> = (0..CONNECTIONS).map(|_| uuid::Uuid::new_v4().to_string()).collect();
        let bodies: Vec<&[u8]> = bodies.by_ref().take(keys.len()).map(|webhook| &webhook.body[..]).collect();
        rows += client.execute(&insert, &[&keys, &bodies]).await?;
    }
    let rate = rows as f64 / begin.elapsed().as_secs_f64();
    drop(client);
    connection.await.context("the connection is cut off")??;
    Ok(rate)
}
