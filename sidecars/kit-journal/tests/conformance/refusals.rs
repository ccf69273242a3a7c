//! What is not fit to keep a journal in is refused, untouched, with what would mend it.

use std::path::PathBuf;

use kit::secret::Secret;
use kit_journal::engine::Commit;
use kit_journal::{JournalSection, OpenError};
use kit_workbench::database::Pooler;

use crate::bench::*;

fn refusal(section: &JournalSection) -> String {
    kit::error::chain(&open(section).map(drop).unwrap_err())
}

fn has_journal(database: &str) -> bool {
    server().sql(database, "SELECT count(*) FROM pg_namespace WHERE nspname = 'outrigger'").unwrap() != "0"
}

#[test]
fn a_neighbours_database_is_refused_unless_it_is_allowed() {
    let database = new_database();
    let section = section_at(server().url(&database));
    server().sql(&database, "CREATE TABLE invoices (id int)").unwrap();

    let said = refusal(&section);
    assert!(said.contains("public.invoices") && said.contains("SIDECAR_JOURNAL__ALLOW_SHARED_DATABASE=true"), "{said}");
    assert!(!said.contains("workbench"), "no password: {said}");
    assert!(!has_journal(&database), "nothing was changed");

    let allowed = JournalSection { allow_shared_database: true, ..section.clone() };
    open(&allowed).unwrap();
    assert!(has_journal(&database));
}

/// Replicas that run would go on, and none could be started any more.
#[test]
fn a_table_that_comes_to_a_journal_in_use_stops_no_replica() {
    let database = new_database();
    let section = section_at(server().url(&database));
    open(&section).unwrap();
    server().sql(&database, "CREATE TABLE public.scratch (id int)").unwrap();

    open(&section).unwrap();

    let second = JournalSection { schema: "second".to_owned(), ..section };
    assert!(refusal(&second).contains("public.scratch"), "a new journal is not made there");
}

/// As a failover to a server that is set up otherwise, or somebody's bulk load.
#[test]
fn a_commit_is_on_the_disk_whatever_the_database_is_set_to_meanwhile() {
    let mut bench = Bench::postgres();
    bench.append(vec![append("a", "{}")]);
    let database = bench.database.clone();
    let watch = format!(
        "ALTER DATABASE {database} SET synchronous_commit = off;
         CREATE TABLE public.seen (setting text);
         CREATE FUNCTION public.see() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN INSERT INTO public.seen VALUES (current_setting(''synchronous_commit'')); RETURN NULL; END';
         CREATE TRIGGER see AFTER INSERT ON outrigger.events EXECUTE FUNCTION public.see()"
    );
    server().sql(&database, &watch).unwrap();
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()";
    server().sql(&database, end).unwrap();

    bench.append(vec![append("b", "{}")]);

    assert_eq!(server().sql(&database, "SELECT DISTINCT setting FROM public.seen").unwrap(), "on");
}

/// The first replica of a new version changes the tables under those of the old one.
#[test]
fn a_replica_that_is_older_than_the_tables_writes_nothing_more_and_is_over() {
    let mut bench = Bench::postgres();
    bench.append(vec![append("a", "{}")]);
    server().sql(&bench.database, "UPDATE outrigger.head SET version = version + 1").unwrap();

    let mut commit = Commit { appends: vec![append("b", "{}")], ..Commit::default() };
    let error = bench.engine().commit(&mut commit).unwrap_err().to_string();

    assert!(error.contains("a newer version has brought the journal's tables to version 2"), "{error}");
    assert_eq!(bench.engine().over().as_deref(), Some(error.as_str()));
    assert_eq!(server().sql(&bench.database, "SELECT last_seq FROM outrigger.head").unwrap(), "1");
}

#[test]
fn extensions_and_other_journals_are_no_neighbours() {
    let database = new_database();
    server().sql(&database, "CREATE EXTENSION pg_trgm; CREATE SCHEMA theirs; DROP SCHEMA theirs").unwrap();
    let section = section_at(server().url(&database));
    open(&section).unwrap();
    let second = JournalSection { schema: "second".to_owned(), path: PathBuf::from("/x/second.db"), ..section.clone() };
    open(&second).unwrap();
    open(&section).unwrap();
}

#[test]
fn a_schema_belongs_to_one_daemon() {
    let database = new_database();
    let section = section_at(server().url(&database));
    open(&section).unwrap();
    let other = JournalSection { path: PathBuf::from("/var/lib/outrigger/lago-usage-tracker.db"), ..section.clone() };
    let said = refusal(&other);
    assert!(said.contains("\"lago-usage-tracker\"") && said.contains("SIDECAR_JOURNAL__SCHEMA"), "{said}");

    server().sql(&database, "CREATE SCHEMA foreigner; CREATE TABLE foreigner.t (id int)").unwrap();
    let theirs = JournalSection { schema: "foreigner".to_owned(), allow_shared_database: true, ..section };
    assert!(refusal(&theirs).contains("the schema is another program's"));
}

#[test]
fn a_schema_that_was_made_for_us_is_taken_without_the_right_to_make_one() {
    let database = new_database();
    server()
        .sql(&database, "CREATE ROLE plain LOGIN PASSWORD 'workbench'; CREATE SCHEMA outrigger AUTHORIZATION plain")
        .unwrap();
    let section = section_at(server().url(&database).replace("//outrigger:", "//plain:"));
    let opened = open(&section).unwrap();
    drop(opened);
    open(&section).unwrap();
}

#[test]
fn a_user_without_rights_is_told_which_to_give() {
    let database = new_database();
    server().sql(&database, "CREATE ROLE guest LOGIN PASSWORD 'workbench'").unwrap();
    let section = section_at(server().url(&database).replace("//outrigger:", "//guest:"));
    let said = refusal(&section);
    let grant = format!("GRANT CREATE ON DATABASE \"{database}\" TO \"guest\"");
    assert!(said.contains("permission denied for database") && said.contains(&grant), "{said}");

    open(&section_at(server().url(&database))).unwrap();
    let said = refusal(&section);
    assert!(said.contains("permission denied for") && said.contains("belongs to the user that made it"), "{said}");
}

#[test]
fn a_newer_journal_is_refused_untouched() {
    let database = new_database();
    let section = section_at(server().url(&database));
    open(&section).unwrap();
    server().sql(&database, "UPDATE outrigger.head SET version = 99").unwrap();
    let error = open(&section).map(drop).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 99, .. }), "{error}");
    assert_eq!(server().sql(&database, "SELECT version FROM outrigger.head").unwrap(), "99");
}

#[test]
fn replicas_may_start_for_the_first_time_side_by_side() {
    let database = new_database();
    let section = section_at(server().url(&database));
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..6).map(|_| scope.spawn(|| open(&section).map(drop))).collect();
        for one in all {
            one.join().unwrap().unwrap();
        }
    });
}

#[test]
fn an_encoding_that_cannot_hold_every_text_is_refused() {
    let database = new_database();
    let latin = format!("{database}_latin");
    let create = format!("CREATE DATABASE {latin} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
    server().sql("postgres", &create).unwrap();
    let said = refusal(&section_at(server().url(&latin)));
    assert!(said.contains("LATIN1") && said.contains("UTF8"), "{said}");
}

#[test]
fn a_pooler_that_takes_no_transactions_is_named_at_start() {
    let database = new_database();
    let pooler = Pooler::start(server(), "statement").unwrap();
    let said = refusal(&section_at(pooler.url(&database)));
    assert!(said.contains("session or transaction mode"), "{said}");
}

#[test]
fn a_server_that_is_not_there_or_takes_no_writes_is_told_without_the_password() {
    let database = new_database();
    let wrong = section_at(server().url(&database).replace("workbench", "topsecret"));
    let said = refusal(&wrong);
    assert!(said.contains("password authentication failed") && !said.contains("topsecret"), "{said}");

    let free = kit_workbench::scratch::free_port().unwrap();
    let section = section_at(format!("postgres://outrigger:topsecret@127.0.0.1:{free}/x"));
    let said = refusal(&section);
    assert!(said.contains(&format!("127.0.0.1:{free}/x")) && !said.contains("topsecret"), "{said}");
    assert!(!format!("{section:?}").contains("topsecret"));

    let mistaken = JournalSection { database_url: Some(Secret::from("mysql://u:topsecret@h/d".to_owned())), ..section };
    let said = refusal(&mistaken);
    assert!(said.contains("must begin with postgres://") && !said.contains("topsecret"), "{said}");
}
