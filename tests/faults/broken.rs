//! Environments that nobody should be able to start with.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kit_workbench::process::DaemonCommand;
use outrigger_tests::binaries;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::rig::{DAEMON, Mode, Rig};

const END_DEADLINE: Duration = Duration::from_secs(30);
/// Stands in for every secret of the table; must not be seen again.
const CANARY: &str = "canary-5e1f7ab0-short";
const LONG_CANARY: &str = "canary-5e1f7ab0-long-enough-to-be-a-token-of-the-api";

/// One broken environment: what is set (or, with `None`, taken away) on top of a right one, and the
/// variables that the lines must name, in any order, one a line.
struct Case {
    changes: Vec<(&'static str, Option<String>)>,
    named: Vec<&'static str>,
}

fn case(changes: &[(&'static str, &str)], named: &[&'static str]) -> Case {
    // A minus stands for a variable that is not set.
    let changes = changes.iter().map(|(name, value)| (*name, (*value != "-").then(|| (*value).to_owned())));
    Case { changes: changes.collect(), named: named.to_vec() }
}

/// One variable with one value, and the line names it.
fn wrong(name: &'static str, value: &str) -> Case {
    case(&[(name, value)], &[name])
}

fn table(rig: &Rig) -> Result<Vec<Case>> {
    let write =
        |name: &str, content: &str| -> Result<String> { Ok(rig.scratch.write(name, content)?.display().to_string()) };
    let absent = rig.scratch.file("absent").display().to_string();
    let (empty, short) = (write("empty", "\n")?, write("short", CANARY)?);
    let (text, long) = (write("text", CANARY)?, write("long", LONG_CANARY)?);
    let binary = rig.scratch.file("binary");
    std::fs::write(&binary, [0xff, 0xfe, 0x00, 0x80])?;
    let binary = binary.display().to_string();
    let folder = rig.scratch.path().display().to_string();
    let gateway = "BRAIN_GATEWAY_URL";
    let hmac_file = "LAGO_WEBHOOK_HMAC_KEY_FILE";
    Ok(vec![
        // What must be set.
        case(&[(gateway, "-")], &[gateway]),
        case(&[(gateway, "")], &[gateway]),
        case(&[(hmac_file, "-")], &[hmac_file]),
        case(&[(hmac_file, "-"), ("SIDECAR_LAGO__SIGNATURE", "-")], &["SIDECAR_LAGO__SIGNATURE"]),
        case(&[("SIDECAR_LAGO__SIGNATURE", "jwt"), (hmac_file, "-")], &["LAGO_WEBHOOK_PUBLIC_KEY_FILE"]),
        case(&[("SIDECAR_LAGO__SIGNATURE", "jwt"), ("LAGO_API_URL", "http://lago:3000")], &["LAGO_API_KEY_FILE"]),
        // The gateway's address.
        wrong(gateway, "gateway:8000"),
        wrong(gateway, "ftp://gateway"),
        wrong(gateway, "http://"),
        wrong(gateway, &format!("http://user:{CANARY}@gateway")),
        wrong(gateway, &format!("http://gateway/?key={CANARY}")),
        wrong(gateway, "not a url"),
        wrong("SIDECAR_GATEWAY__PATH", "no-slash"),
        wrong("SIDECAR_GATEWAY__PATH", "/{secret}"),
        wrong("SIDECAR_GATEWAY__FORMAT", "xml"),
        wrong("SIDECAR_GATEWAY__ORDER", "random"),
        wrong("SIDECAR_GATEWAY__CONCURRENCY", "0"),
        wrong("SIDECAR_GATEWAY__CONCURRENCY", "many"),
        wrong("SIDECAR_GATEWAY__CONCURRENCY", "-1"),
        wrong("SIDECAR_GATEWAY__RATE_PER_SECOND", "fast"),
        wrong("SIDECAR_GATEWAY__TIMEOUT__CONNECT_SECONDS", "0"),
        wrong("SIDECAR_GATEWAY__TIMEOUT__TOTAL_SECONDS", "soon"),
        wrong("SIDECAR_GATEWAY__TIMEOUT__READ_SECONDS", "1e99"),
        wrong("SIDECAR_GATEWAY__RETRY__SCHEDULE_SECONDS", "5,-1"),
        wrong("SIDECAR_GATEWAY__RETRY__STATUSES", "200"),
        wrong("SIDECAR_GATEWAY__CIRCUIT__FAILURES", "0"),
        wrong("SIDECAR_GATEWAY__CIRCUIT__PROBE_SECONDS", "NaN"),
        wrong("SIDECAR_GATEWAY__CA_FILE", &absent),
        wrong("SIDECAR_GATEWAY__CA_FILE", &text),
        wrong("SIDECAR_GATEWAY__SIGNING_SECRET_FILE", &absent),
        wrong("SIDECAR_GATEWAY__SIGNING_SECRET_FILE", &text),
        wrong("SIDECAR_GATEWAY__SIGNING_SECRET_FILE", &empty),
        // Who signs.
        wrong("SIDECAR_LAGO__SIGNATURE", "rsa"),
        wrong("SIDECAR_LAGO__SIGNATURE", "HS256"),
        wrong(hmac_file, &absent),
        wrong(hmac_file, &empty),
        wrong(hmac_file, &binary),
        wrong(hmac_file, &folder),
        case(&[("LAGO_WEBHOOK_HMAC_KEY", CANARY)], &[hmac_file]),
        case(
            &[("SIDECAR_LAGO__SIGNATURE", "jwt"), ("LAGO_WEBHOOK_PUBLIC_KEY_FILE", &absent)],
            &["LAGO_WEBHOOK_PUBLIC_KEY_FILE"],
        ),
        case(
            &[("SIDECAR_LAGO__SIGNATURE", "jwt"), ("LAGO_WEBHOOK_PUBLIC_KEY_FILE", &text)],
            &["LAGO_WEBHOOK_PUBLIC_KEY_FILE"],
        ),
        case(
            &[("SIDECAR_LAGO__SIGNATURE", "jwt"), ("LAGO_API_URL", "lago:3000"), ("LAGO_API_KEY", CANARY)],
            &["LAGO_API_URL"],
        ),
        case(
            &[
                ("SIDECAR_LAGO__SIGNATURE", "jwt"),
                ("LAGO_API_URL", "http://lago"),
                ("LAGO_API_KEY", CANARY),
                ("LAGO_API_KEY_FILE", &text),
            ],
            &["LAGO_API_KEY"],
        ),
        wrong("SIDECAR_LAGO__BODY_LIMIT_BYTES", "10"),
        wrong("SIDECAR_LAGO__BODY_LIMIT_BYTES", "4MiB"),
        wrong("SIDECAR_LAGO__HEAD_LIMIT_BYTES", "100"),
        wrong("SIDECAR_LAGO__PUBLIC_KEY_REFRESH_SECONDS", "-5"),
        // The journal.
        wrong("SIDECAR_JOURNAL__PATH", &format!("{absent}/journal.db")),
        wrong("SIDECAR_JOURNAL__PATH", "/proc/journal.db"),
        wrong("SIDECAR_JOURNAL__PATH", &format!("{text}/journal.db")),
        wrong("SIDECAR_JOURNAL__PATH", &text),
        wrong("SIDECAR_JOURNAL__QUEUE", "0"),
        wrong("SIDECAR_JOURNAL__WAIT_SECONDS", "0"),
        wrong("SIDECAR_JOURNAL__MAX_BYTES", "5"),
        wrong("SIDECAR_JOURNAL__DEDUPE_DAYS", "0"),
        wrong("SIDECAR_JOURNAL__RETENTION__DAYS", "-1"),
        // The listeners.
        wrong("SIDECAR_LISTEN__PUBLIC", "8080"),
        wrong("SIDECAR_LISTEN__PUBLIC", "localhost"),
        wrong("SIDECAR_LISTEN__PUBLIC", "192.0.2.1:0"),
        case(&[("SIDECAR_LISTEN__ADMIN", &rig.public.to_string())], &["SIDECAR_LISTEN__ADMIN"]),
        case(&[("SIDECAR_LISTEN__PUBLIC", &rig.gateway.addr().to_string())], &["SIDECAR_LISTEN__PUBLIC"]),
        wrong("SIDECAR_LISTEN__MAX_CONNECTIONS", "0"),
        wrong("SIDECAR_LISTEN__HEAD_TIMEOUT_SECONDS", "0"),
        wrong("SIDECAR_LISTEN__MEMORY_BUDGET_BYTES", "1"),
        // Less than what one request may have: such a request would never be read to its end.
        wrong("SIDECAR_LISTEN__MEMORY_BUDGET_BYTES", "5000000"),
        case(&[("SIDECAR_LAGO__BODY_LIMIT_BYTES", "67108864")], &["SIDECAR_LISTEN__MEMORY_BUDGET_BYTES"]),
        // The admin token.
        wrong("SIDECAR_ADMIN__TOKEN_FILE", &short),
        wrong("SIDECAR_ADMIN__TOKEN_FILE", &absent),
        wrong("SIDECAR_ADMIN__TOKEN_FILE", &empty),
        case(&[("SIDECAR_ADMIN__TOKEN_FILE", "-"), ("SIDECAR_ADMIN__TOKEN", CANARY)], &["SIDECAR_ADMIN__TOKEN"]),
        case(&[("SIDECAR_ADMIN__TOKEN_FILE", &long), ("SIDECAR_ADMIN__TOKEN", LONG_CANARY)], &["SIDECAR_ADMIN__TOKEN"]),
        // Everything else.
        wrong("LOG_LEVEL", "loud"),
        wrong("LOG_JSON", "perhaps"),
        wrong("SIDECAR_STOP__DRAIN_SECONDS", "never"),
        case(&[("SIDECAR_GATEWAI__URL", "http://gateway")], &["SIDECAR_GATEWAI"]),
        wrong("SIDECAR_LISTEN__PUBLICK", "0.0.0.0:80"),
        wrong("SIDECAR_LAGO__HMAC_KEYS", CANARY),
        wrong("SIDECAR_JOURNAL", "journal.db"),
        case(&[("SIDECAR_CONFIG", &absent)], &["--config"]),
        // Several mistakes are told at once, one line each.
        case(
            &[(gateway, "x"), ("SIDECAR_LISTEN__PUBLIC", "y"), ("LOG_LEVEL", "z"), ("SIDECAR_JOURNAL__QUEUE", "q")],
            &[gateway, "SIDECAR_LISTEN__PUBLIC", "LOG_LEVEL", "SIDECAR_JOURNAL__QUEUE"],
        ),
        case(
            &[
                (hmac_file, &absent),
                ("SIDECAR_ADMIN__TOKEN_FILE", &absent),
                ("SIDECAR_GATEWAY__SIGNING_SECRET_FILE", &absent),
            ],
            &[hmac_file, "SIDECAR_ADMIN__TOKEN_FILE", "SIDECAR_GATEWAY__SIGNING_SECRET_FILE"],
        ),
    ])
}

/// F32: a journal of another user, as a restore by root leaves it, and parts of one, as root's `sqlite3` does.
pub(crate) async fn a_journal_that_cannot_be_written_is_named(_: Trial) -> Result<Outcome> {
    let mut rig = Rig::new(Mode::Hmac, &[]).await?;
    rig.start().await?;
    rig.kill().await?;
    // Where this is root, who may write everything, the daemon is another user.
    let is_root = std::fs::metadata(rig.scratch.path())?.uid() == 0;
    let state = rig.journal_path().parent().context("the journal has a folder")?.to_owned();
    let program = rig.scratch.file("daemon");
    std::fs::copy(binaries::daemon(DAEMON)?, &program)?;
    for (path, mode) in [(rig.scratch.path().to_owned(), 0o777), (state, 0o777), (program.clone(), 0o755)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    for file in std::fs::read_dir(rig.scratch.path())? {
        let file = file?.path();
        if file.is_file() && file != program {
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o666))?;
        }
    }
    let beside = |suffix: &str| format!("{}{suffix}", rig.journal_path().display());
    let all = ["", "-wal", "-shm", ".lock"].map(beside);
    for wrong in &all {
        for file in &all {
            let mode = if file == wrong { 0o644 } else { 0o666 };
            let mode = if is_root || file != wrong { mode } else { 0o444 };
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode))?;
        }
        let before = std::fs::read(wrong)?;
        let mut command = DaemonCommand::new(&program).envs(rig.environment().to_vec());
        if is_root {
            command =
                command.wrapped("/usr/bin/setpriv", ["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]);
        }
        let mut process = command.spawn()?;
        let exit = process.wait(END_DEADLINE).await.with_context(|| format!("it started with {wrong}"))?;
        let said = process.stderr();
        ensure!(exit.code == Some(78) && said.lines().count() == 1, "{wrong}: {exit}: {said}");
        ensure!(said.contains(&format!("{wrong} (SIDECAR_JOURNAL__PATH)")), "{wrong} is not named: {said}");
        ensure!(said.contains("ermission denied"), "{wrong}: no reason: {said}");
        ensure!(std::fs::read(wrong)? == before, "{wrong} was changed");
    }
    Ok(Outcome::new(all.len(), "exit 78, the file named"))
}

/// F32: with any of these environments the daemon does not start, exits with 78, and says so in one
/// line per mistake that names the variable and shows no secret.
pub(crate) async fn a_broken_environment_is_told_in_one_line_per_mistake(trial: Trial) -> Result<Outcome> {
    let rig = Rig::new(Mode::Hmac, &[]).await?;
    let cases = table(&rig)?;
    let mut wrong = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        trial.progress(u32::try_from(number)?);
        if let Err(error) = judge(&rig, case).await {
            wrong.push(format!("{:?}: {error:#}", case.changes));
        }
        ensure!(!rig.journal_path().exists() || number > 0, "a journal was made for a daemon that did not start");
    }
    ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    Ok(Outcome::new(cases.len(), "exit 78, one line a mistake"))
}

async fn judge(rig: &Rig, case: &Case) -> Result<()> {
    let mut environment = rig.environment().to_vec();
    for (name, value) in &case.changes {
        environment.retain(|(known, _)| known != name);
        environment.extend(value.clone().map(|value| ((*name).to_owned(), value)));
    }
    let mut process = DaemonCommand::new(binaries::daemon(DAEMON)?).envs(environment).spawn()?;
    let exit = process.wait(END_DEADLINE).await.context("it started")?;
    let said = process.stderr();
    ensure!(exit.code == Some(78), "{exit}: {said}");
    ensure!(
        said.lines().count() == case.named.len(),
        "{} lines for {} mistakes: {said}",
        said.lines().count(),
        case.named.len()
    );
    for name in &case.named {
        let found = said.lines().any(|line| names(line, name));
        ensure!(found, "no line names {name}: {said}");
    }
    let all = said + &process.stdout();
    ensure!(!all.contains("canary"), "a secret is shown: {all}");
    ensure!(!all.contains("panicked"), "it panicked: {all}");
    Ok(())
}

/// Whether a line names a variable, and not only one that begins like it.
fn names(line: &str, name: &str) -> bool {
    line.split(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')).any(|word| word == name)
        || line.starts_with(&format!("{name} "))
}

/// F32: what only other users may read or write is said as well. As root everything may be read, so
/// this looks at the messages where it can.
pub(crate) async fn a_folder_that_cannot_be_written_is_named(_: Trial) -> Result<Outcome> {
    let mut rig = Rig::new(Mode::Hmac, &[]).await?;
    let folder = rig.scratch.file("read-only");
    std::fs::create_dir(&folder)?;
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o555))?;
    let probe = folder.join("probe");
    if std::fs::write(&probe, b"").is_ok() {
        // Root: a read-only file system refuses it too.
        std::fs::remove_file(&probe)?;
        rig.set("SIDECAR_JOURNAL__PATH", "/sys/journal.db");
    } else {
        rig.set("SIDECAR_JOURNAL__PATH", &folder.join("journal.db").display().to_string());
    }
    judge(&rig, &Case { changes: Vec::new(), named: vec!["SIDECAR_JOURNAL__PATH"] }).await?;
    Ok(Outcome::new(1_u64, "exit 78"))
}
