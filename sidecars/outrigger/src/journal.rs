//! `journal copy`: a journal moved from one engine to the other, or to another place of the same. What is done is in
//! `kit_journal::copy`; here is how the two places are named, and what is shown.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use kit::secret::{self, Secret};
use kit_journal::copy::{self, Database, Doing, Place, Plan, Report, Step};
use kit_journal::engine::DedupeBounds;

use crate::interrupt::Interrupt;
use crate::output::{self, safe, say};

const HELP: &str = "\
PLACE is one of
  a path                   a journal file (SIDECAR_JOURNAL__PATH of the daemon)
  postgres                 the database of DATABASE_URL or DATABASE_URL_FILE
  @FILE                    the database whose URL is in FILE
  postgres://USER@HOST/DB  a database that asks for no password

Stop the daemon first, every replica of it. The source is only read. The copy is usable when the command has ended with 0; \
until then daemons refuse it, and the same command goes on where it was cut off.

Example: outrigger journal copy --from /var/lib/outrigger/journal.db --to postgres
Example: outrigger journal copy --from postgres --to /var/lib/outrigger/journal.db";

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Copy a stopped daemon's journal to another engine or another place, and check that both are equal.
    #[command(after_help = HELP)]
    Copy(Arguments),
}

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Where the journal is.
    #[arg(long, value_name = "PLACE")]
    from: String,
    /// Where the copy is to be: nothing, an empty schema, or an unfinished copy of the same journal.
    #[arg(long, value_name = "PLACE")]
    to: String,
    /// The schema it is in, of a database.
    #[arg(long, value_name = "NAME", env = "SIDECAR_JOURNAL__SCHEMA", default_value = "outrigger")]
    from_schema: String,
    /// The schema it is to be in, of a database.
    #[arg(long, value_name = "NAME", env = "SIDECAR_JOURNAL__SCHEMA", default_value = "outrigger")]
    to_schema: String,
    /// PEM file with the certificate authorities of the databases.
    #[arg(long, value_name = "FILE", env = "SIDECAR_JOURNAL__DATABASE_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// The target may be a database that holds other programs' tables too.
    #[arg(long, env = "SIDECAR_JOURNAL__ALLOW_SHARED_DATABASE")]
    allow_shared_database: bool,
    /// What the journal is called in a database: the name of the daemon's SIDECAR_JOURNAL__PATH without folder and
    /// extension [default: as the source is called].
    #[arg(long)]
    name: Option<String>,
    /// Carry events over that do not match their checksum. Those that are still to be delivered become dead letters.
    #[arg(long)]
    keep_damaged: bool,
}

impl Arguments {
    fn place(&self, named: &str, schema: &str) -> anyhow::Result<Place> {
        let url = if named == "postgres" {
            let value = std::env::var("DATABASE_URL").ok().map(Secret::from);
            let file = std::env::var_os("DATABASE_URL_FILE").map(PathBuf::from);
            let url = secret::resolve("DATABASE_URL", value.as_ref(), "DATABASE_URL_FILE", file.as_deref())?;
            url.context("postgres: set DATABASE_URL or DATABASE_URL_FILE")?
        } else if let Some(file) = named.strip_prefix('@') {
            let url = secret::resolve("the URL", None, "the file of the URL", Some(file.as_ref()))?;
            url.context("the file of the URL is empty")?
        } else if named.starts_with("postgres://") || named.starts_with("postgresql://") {
            if has_password(named) {
                bail!(
                    "a password on the command line is seen by everybody on this host: set DATABASE_URL and name the place \
                     postgres, or put the URL into a file and name it @FILE"
                );
            }
            Secret::from(named.to_owned())
        } else {
            return Ok(Place::Sqlite(PathBuf::from(named)));
        };
        let (ca_file, schema) = (self.ca_file.clone(), schema.to_owned());
        Ok(Place::Postgres(Database { url, ca_file, schema, allow_shared: self.allow_shared_database }))
    }
}

/// Whether a URL names a password, before the host or among its parameters.
fn has_password(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (front, query) = rest.split_once('?').unwrap_or((rest, ""));
    let user = front.rsplit_once('@').map_or("", |(user, _)| user);
    user.contains(':') || query.split('&').any(|pair| pair.starts_with("password="))
}

pub(crate) async fn run(verb: Verb, json: bool) -> anyhow::Result<()> {
    let Verb::Copy(arguments) = verb;
    let plan = Plan {
        from: arguments.place(&arguments.from, &arguments.from_schema).context("--from")?,
        to: arguments.place(&arguments.to, &arguments.to_schema).context("--to")?,
        name: arguments.name.clone(),
        keep_damaged: arguments.keep_damaged,
        dedupe: DedupeBounds::default(),
    };
    let mut interrupt = Interrupt::listen()?;
    let bar = output::bar(0, "{msg} {human_pos}/{human_len} {bar:40} {eta}");
    let shown = bar.clone();
    let copied = tokio::task::spawn_blocking(move || {
        let mut doing = None;
        copy::copy(&plan, &mut |step| show_step(&shown, step, &mut doing, json))
    });
    let report = tokio::select! {
        copied = copied => Some(copied.context("the copy was cut off")?),
        () = interrupt.wait() => None,
    };
    bar.finish_and_clear();
    let Some(report) = report else { bail!("interrupted; the same command goes on") };
    show(&report?, json)
}

/// On a terminal the bar, and elsewhere a line when something else is begun.
fn show_step(bar: &ProgressBar, step: Step, doing: &mut Option<Doing>, json: bool) {
    let word = match step.doing {
        Doing::Copying => "copying",
        Doing::Comparing => "comparing",
    };
    if *doing != Some(step.doing) {
        *doing = Some(step.doing);
        if bar.is_hidden() && !json {
            // Nobody may listen any more; the copy is what counts.
            let _ = output::line(format_args!("{word} …"));
        }
    }
    bar.set_length(step.total);
    bar.set_message(format!("{word} {}", step.table.name()));
    bar.set_position(step.done);
}

fn show(report: &Report, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(report);
    }
    let mut table = output::table(&["part", "records", "sha-256, in both"]);
    for tally in &report.tables {
        table.add_row([tally.table.name().to_owned(), tally.rows.to_string(), tally.sha256.clone()]);
    }
    say!("{table}");
    if report.damaged_events > 0 {
        let named = report.damaged.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        say!("{} events are damaged, and so they are in the copy: positions {named}", report.damaged_events);
    }
    if let Some(passed) = &report.passed {
        say!("{passed}; they are not in the copy");
    }
    let name = safe(&report.journal);
    let already = if report.was_finished { " (it was finished before)" } else { "" };
    say!("the journal {name} with {} events is at {}{already}", report.last_position, report.to);
    say!("start the daemon there, and never again at {}: it would deliver once more what was pending", report.from);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_found_wherever_a_url_may_hold_one() {
        for (url, expected) in [
            ("postgres://user:secret@host/db", true),
            ("postgres://user:se@cret@host:5432,other/db", true),
            ("postgres://host/db?user=u&password=secret", true),
            ("postgres://user@host:5432/db?sslmode=require", false),
            ("postgresql://host/db", false),
        ] {
            assert_eq!(has_password(url), expected, "{url}");
        }
    }
}
