//! A journal with many queued events, made through the journal itself.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use kit::clock::SystemClock;
use kit_journal::engine::Action;
use kit_journal::{BodyDigest, Dedupe, EventHead, EventId, Journal, JournalSection, NewEvent};
use kit_workbench::load::Pool;

/// Appends so many events with keys of their own; the sinks are known and paused.
pub(crate) fn make(path: &Path, pool: &Pool, events: u64, sinks: &[&str]) -> Result<()> {
    let section = JournalSection { path: path.to_owned(), ..JournalSection::default() };
    let mut registry = prometheus_client::registry::Registry::default();
    let (journal, task) = Journal::open(&section, Arc::new(SystemClock), &mut registry)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        for sink in sinks.iter().map(|sink| (*sink).to_owned()) {
            journal.act(vec![Action::Register { sink: sink.clone() }, Action::Pause { sink, paused: true }]).await?;
        }
        let mut pending = futures_util::stream::FuturesUnordered::new();
        for (number, webhook) in (0..events).zip(pool.iter().cycle()) {
            if pending.len() >= 1_000 {
                futures_util::StreamExt::next(&mut pending).await.context("an append is pending")??;
            }
            pending.push(journal.append(event(number, &webhook.body)));
        }
        while let Some(appended) = futures_util::StreamExt::next(&mut pending).await {
            appended?;
        }
        anyhow::Ok(())
    })?;
    drop(journal);
    task.close();
    Ok(())
}

fn event(number: u64, body: &[u8]) -> NewEvent {
    let key = uuid::Uuid::from_u64_pair(number, number).to_string();
    let description = kit_lago::describe(body, "default", &key);
    let head = EventHead {
        id: EventId::derive(&description.source, &key, Some(&BodyDigest::of(body))),
        source: description.source,
        event_type: description.event_type,
        subject: description.subject,
        key,
        scope: None,
        tenant: description.tenant,
        unattributed: description.tenant_unattributed,
        time: description.time,
        alias: description.type_alias,
        conflict: false,
        json: description.is_json,
        traceparent: None,
        tracestate: None,
        headers: Vec::new(),
    };
    NewEvent { head, body: body.to_vec(), dedupe: Dedupe::KeyAndBody }
}
