//! `postgres-init` against a real PostgreSQL, and what fills `.env`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use kit_workbench::database::Database;
use kit_workbench::scratch::{Scratch, free_port};
use outrigger_tests::binaries::repository;

/// A server, and the script as the container has it.
struct Init {
    database: Database,
    secrets: Scratch,
    variables: Vec<(&'static str, String)>,
}

impl Init {
    fn new() -> Self {
        let database = Database::start(&["log_statement=all", "log_min_duration_statement=0"]).unwrap();
        let secrets = Scratch::new("secrets").unwrap();
        secrets.write("postgres-password", "the-administrators\n").unwrap();
        secrets.write("authentik-database-password", "authentiks-own\n").unwrap();
        // The roles of the workbench's own server and of ours are two.
        database.sql("postgres", "CREATE ROLE postgres SUPERUSER LOGIN PASSWORD 'the-administrators'").unwrap();
        let variables = vec![("TEMPORAL_DATABASE_PASSWORD", "temporals-own".to_owned())];
        Self { database, secrets, variables }
    }

    fn command(&self, databases: &str) -> Command {
        let mut command = Command::new("bash");
        let config = repository().join("config/postgres");
        command.arg(config.join("init.sh")).env_clear().env("PATH", "/usr/bin:/bin");
        command.env("INIT_LIST", config.join("databases")).env("INIT_SECRETS", self.secrets.path());
        command.env("INIT_HOST", "127.0.0.1").env("INIT_PORT", self.database.port().to_string());
        command.env("INIT_ADMIN_PASSWORD_FILE", self.secrets.file("postgres-password"));
        command.env("INIT_DATABASES", databases).env("INIT_WITHIN", "60").envs(self.variables.clone());
        command
    }

    /// Runs it, and returns what it says.
    fn run(&self, databases: &str) -> String {
        let output = self.command(databases).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    }

    /// Runs it with other variables, and returns what it complains about.
    fn refused(&self, databases: &str, variables: &[(&str, &str)]) -> String {
        let output = self.command(databases).envs(variables.iter().copied()).output().unwrap();
        assert!(!output.status.success(), "not refused: {}", said(&output));
        String::from_utf8(output.stderr).unwrap()
    }

    /// As somebody who is no administrator.
    fn sql_as(&self, user: &str, password: &str, database: &str, statement: &str) -> Result<String, String> {
        let url = format!("postgresql://{user}:{password}@127.0.0.1:{}/{database}", self.database.port());
        let output =
            Command::new("psql").args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statement, &url]).output().unwrap();
        if output.status.success() { Ok(said(&output).trim().to_owned()) } else { Err(said(&output)) }
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn databases_roles_and_extensions_are_made_once_and_kept() {
    let init = Init::new();

    let first = init.run("authentik temporal temporal_visibility");
    init.sql_as("authentik", "authentiks-own", "authentik", "CREATE TABLE kept AS SELECT 42 AS answer").unwrap();
    let second = init.run("authentik temporal temporal_visibility");

    assert!(first.contains("database authentik is made") && first.contains("temporal_visibility is made"), "{first}");
    assert!(second.contains("database authentik is there") && !second.contains("is made"), "{second}");
    assert_eq!(init.sql_as("authentik", "authentiks-own", "authentik", "SELECT answer FROM kept").unwrap(), "42");
    let extension = "SELECT extname FROM pg_extension WHERE extname = 'btree_gin'";
    assert_eq!(init.sql_as("temporal", "temporals-own", "temporal_visibility", extension).unwrap(), "btree_gin");
    // A role is let into what is its own, and nowhere else.
    let elsewhere = init.sql_as("temporal", "temporals-own", "authentik", "SELECT 1").unwrap_err();
    assert!(elsewhere.contains("permission denied for database"), "{elsewhere}");
    let log = init.database.log();
    assert!(log.contains("string_to_array"), "the server does not log statements, so the next lines prove nothing");
    for password in ["authentiks-own", "temporals-own"] {
        assert!(!log.contains(password), "the password {password} is in the server's log");
    }
}

/// `rake db:create` of Lago's `scripts/migrate.sh`: Rails goes on when the database is there (42P04), and ends when it may not be
/// made (42501), which PostgreSQL looks at first.
#[test]
fn lago_s_migrations_may_find_its_database_there() {
    let mut init = Init::new();
    init.variables.push(("LAGO_DATABASE_PASSWORD", "lagos-own".to_owned()));
    // As an earlier version of the list has made it.
    init.database.sql("postgres", "CREATE ROLE lago LOGIN PASSWORD 'lagos-own'").unwrap();
    init.database.sql("postgres", "CREATE DATABASE lago OWNER lago").unwrap();

    init.run("lago authentik");
    let again = init.run("lago authentik");

    let create = "CREATE DATABASE lago ENCODING = 'unicode'";
    let said = init.sql_as("lago", "lagos-own", "postgres", create).unwrap_err();
    assert!(said.contains("already exists"), "{said}");
    assert!(again.contains("database lago is there"), "{again}");
    // Nobody else may.
    let said = init.sql_as("authentik", "authentiks-own", "postgres", "CREATE DATABASE mine").unwrap_err();
    assert!(said.contains("permission denied"), "{said}");
}

#[test]
fn a_password_follows_its_secret() {
    let mut init = Init::new();
    init.run("authentik temporal");

    init.secrets.write("authentik-database-password", "another'; --\\one").unwrap();
    init.variables = vec![("TEMPORAL_DATABASE_PASSWORD", "changed".to_owned())];
    init.run("authentik temporal");

    assert!(init.sql_as("authentik", "authentiks-own", "authentik", "SELECT 1").is_err());
    assert_eq!(init.sql_as("temporal", "changed", "temporal", "SELECT 1").unwrap(), "1");
    // Only the right password lets it say that everything is there.
    assert!(init.run("authentik").contains("authentik is there"));
}

#[test]
fn an_administrator_of_a_managed_server_is_enough_and_none_is_needed_when_all_is_there() {
    let mut init = Init::new();
    init.database.sql("postgres", "CREATE ROLE manager LOGIN CREATEROLE CREATEDB PASSWORD 'the-managers'").unwrap();
    init.secrets.write("postgres-password", "the-managers").unwrap();
    init.variables.push(("INIT_ADMIN_USER", "manager".to_owned()));

    init.run("authentik temporal_visibility");

    fs::remove_file(init.secrets.file("postgres-password")).unwrap();
    assert!(init.run("authentik temporal_visibility").contains("temporal_visibility is there"));
    let missing = init.refused("temporal", &[]);
    assert!(missing.contains("compose/secrets/postgres-password"), "{missing}");
}

#[test]
fn two_at_the_same_time_make_everything_once() {
    let init = Init::new();

    let running: Vec<_> =
        (0..4).map(|_| init.command("authentik temporal temporal_visibility").spawn().unwrap()).collect();

    for mut child in running {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(init.sql_as("temporal", "temporals-own", "temporal_visibility", "SELECT 1").unwrap(), "1");
}

#[test]
fn what_is_wrong_is_named() {
    let init = Init::new();
    let list = init
        .secrets
        .write(
            "list",
            "bad bad env:BAD_PASSWORD pgvector\nodd odd plain -\ngone gone env:BAD_PASSWORD nothing\n\
             much much env:BAD_PASSWORD - superuser\n",
        )
        .unwrap();

    let check = |databases: &str, variables: &[(&str, &str)], expected: &str| {
        let said = init.refused(databases, variables);
        assert!(said.contains(expected), "expected {expected:?} in {said:?}");
        assert!(!said.contains("hunter2"), "{said}");
    };
    let with_list = [("INIT_LIST", list.to_str().unwrap()), ("BAD_PASSWORD", "hunter2")];
    check("plane-typo", &[], "no line for database plane-typo in config/postgres/databases");
    check("outrigger", &[], "make the file compose/secrets/outrigger-database-password");
    check("temporal", &[("TEMPORAL_DATABASE_PASSWORD", "")], "fill in TEMPORAL_DATABASE_PASSWORD");
    check("bad", &with_list, "the extension of pgvector is called vector");
    check("odd", &with_list, "'plain': it is file:<secret> or env:<VARIABLE>");
    check("gone", &with_list, "extension nothing cannot be made in database gone");
    check("much", &with_list, "the right 'superuser'");
    let nobody = free_port().unwrap().to_string();
    check("", &[("INIT_PORT", &nobody), ("INIT_WITHIN", "1")], "does not answer");
    let other = format!("127.0.0.1:{nobody}");
    check("", &[("INIT_WAIT_FOR", &other), ("INIT_WITHIN", "1")], &format!("{other} does not answer"));
}

/// A folder as `compose/` is, with `.env` and secrets.
fn filled(env: &str, secrets: &[(&str, &str)]) -> (Scratch, Output) {
    let folder = Scratch::new("compose").unwrap();
    fs::create_dir(folder.file("secrets")).unwrap();
    fs::copy(repository().join("compose/fill-env"), folder.file("fill-env")).unwrap();
    let generated =
        "# lago-secret hex32 COMMENTED\nlago-secret hex32 LAGO_SECRET\nredis hex32 REDIS_PASSWORD\nfile-only hex32\n";
    folder.write("secrets/generated", generated).unwrap();
    folder.write(".env", env).unwrap();
    for (name, value) in secrets {
        folder.write(&format!("secrets/{name}"), value).unwrap();
    }
    let output = Command::new("bash").arg(folder.file("fill-env")).output().unwrap();
    (folder, output)
}

fn env_of(folder: &Path) -> String {
    fs::read_to_string(folder.join(".env")).unwrap()
}

#[test]
fn generated_secrets_are_written_into_empty_lines_of_env_once() {
    let env = "# LAGO_SECRET=\nA=1\nLAGO_SECRET=\nXLAGO_SECRET=\nREDIS_PASSWORD=mine\n\nCOMMENTED=\n";

    let (folder, output) = filled(env, &[("lago-secret", "abc\n"), ("redis", "other\n")]);

    assert!(output.status.success(), "{}", said(&output));
    let expected = "# LAGO_SECRET=\nA=1\nLAGO_SECRET=abc\nXLAGO_SECRET=\nREDIS_PASSWORD=mine\n\nCOMMENTED=\n";
    assert_eq!(env_of(folder.path()), expected);
    assert!(!said(&output).contains("abc"), "{}", said(&output));
    let again = Command::new("bash").arg(folder.file("fill-env")).output().unwrap();
    assert_eq!((said(&again).as_str(), env_of(folder.path()).as_str()), ("", expected));
}

#[test]
fn a_secret_that_cannot_stand_in_env_is_refused_and_nothing_is_changed() {
    for (secret, expected) in [(None, "secrets/redis is missing or empty"), (Some("a b$c"), "cannot stand in .env")] {
        let secrets: Vec<_> =
            [("lago-secret", "abc")].into_iter().chain(secret.map(|value| ("redis", value))).collect();

        let (folder, output) = filled("LAGO_SECRET=\nREDIS_PASSWORD=\n", &secrets);

        assert!(!output.status.success() && said(&output).contains(expected), "{}", said(&output));
        assert_eq!(env_of(folder.path()), "LAGO_SECRET=\nREDIS_PASSWORD=\n");
    }
}
