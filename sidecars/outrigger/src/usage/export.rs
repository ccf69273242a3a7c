//! `usage export`: what Lago has been sent, as a file that `import` takes. For a Lago that went back to a dump and lost it: the
//! tracker itself sends nothing again that was taken once, and what it has booked as taken stays booked.

use std::io::Write as _;

use clap::Args;
use futures_util::TryStreamExt as _;
use serde_json::Value;

use super::look::bodies;
use crate::admin::{Admin, Filter};
use crate::events;
use crate::output;

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Received by the tracker at or after, for example 2026-11-21T04:00:00Z. Earlier does no harm: Lago knows what it has.
    #[arg(long, value_name = "TIME")]
    since: String,
    /// Received before.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

/// Prints a line for each event that Lago has confirmed, as Lago was sent it; newest first, which is nothing to Lago.
pub(crate) async fn run(admin: &Admin, arguments: &Arguments) -> anyhow::Result<()> {
    let (since, until) = (Some(arguments.since.clone()), arguments.until.clone());
    let filter = Filter { since, until, sink: Some("lago".to_owned()), ..Filter::default() };
    let mut query = filter.query();
    query.push(("state", "delivered".to_owned()));
    let (mut written, mut others) = (0_u64, 0_u64);
    let bar = output::bar(0, "{human_pos} events written, {per_sec}");
    events::walk(admin, &query, events::LARGEST_PAGE, async |page| {
        let mut bodies = bodies(admin, &page.events);
        while let Some(body) = bodies.try_next().await? {
            let body = body.and_then(|body| String::from_utf8(body).ok());
            match body.filter(|body| is_usage(body)) {
                // As it was sent, byte for byte: it is one line, or is made one without touching a value.
                Some(body) => {
                    output::line(format_args!("{}", body.replace(['\n', '\r'], " ")))?;
                    written += 1;
                }
                None => others += 1,
            }
        }
        bar.set_position(written);
        Ok(true)
    })
    .await?;
    bar.finish_and_clear();
    // What is not usage was not sent to Lago: the tracker's own tales.
    let _ = writeln!(std::io::stderr(), "{written} events, {others} others left out");
    Ok(())
}

/// Whether it is an event as Lago takes it.
fn is_usage(body: &str) -> bool {
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    ["transaction_id", "code", "external_subscription_id"].iter().all(|name| body[name].is_string())
}
