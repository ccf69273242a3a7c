#![allow(clippy::unwrap_used)]

use super::*;
use crate::gateway::{Behaviour, Gateway, GatewayOptions};
use crate::scratch::Scratch;

const SOON: Duration = Duration::from_secs(60);

fn shell(script: &str) -> DaemonCommand {
    DaemonCommand::new("/bin/sh").args(["-c", script])
}

#[tokio::test]
async fn an_exit_code_is_read_with_all_output() {
    let mut process = shell("echo out; echo err >&2; exit 78").spawn().unwrap();

    let exit = process.wait(SOON).await.unwrap();

    assert_eq!(exit.code, Some(78));
    assert_eq!(process.stdout(), "out\n");
    assert_eq!(process.stderr(), "err\n");
    assert_eq!(process.try_exit().unwrap(), Some(exit));
    assert_eq!(process.kill9().await.unwrap(), exit);
    process.term().unwrap();
}

#[tokio::test]
async fn the_environment_holds_what_was_given_and_nothing_else() {
    let variables = vec![("SIDECAR_X".to_owned(), "a b".to_owned())];
    let mut process = DaemonProcess::spawn("/bin/sh", ["-c", "env"], variables).unwrap();
    process.wait(SOON).await.unwrap();

    let stdout = process.stdout();
    let mut names: Vec<&str> = stdout
        .lines()
        .filter_map(|line| line.split_once('=').map(|(name, _)| name))
        // The shell adds these itself.
        .filter(|name| !matches!(*name, "PWD" | "_" | "SHLVL" | "OLDPWD" | "TMPDIR"))
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["PATH", "SIDECAR_X"]);
    assert!(stdout.contains("SIDECAR_X=a b\n"));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let error = DaemonCommand::new("/nowhere/daemon").spawn().unwrap_err();

    assert_eq!(error.to_string(), "start /nowhere/daemon");
}

#[tokio::test]
async fn values_of_variables_are_not_shown() {
    let command = shell("true").env("LAGO_API_KEY", "hunter2");

    let text = format!("{command:?}");

    assert!(text.contains("LAGO_API_KEY"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn listeners_are_read_from_the_log() {
    let mut process = shell(
        r#"echo '{"message":"listening","listener":"admin","address":"127.0.0.1:81"}'
           echo 'no json'
           echo '{"message":"listening","listener":"public","address":"127.0.0.1:80"}'
           sleep 60"#,
    )
    .spawn()
    .unwrap();

    let public = process.address("public", SOON).await.unwrap();
    let admin = process.address("admin", SOON).await.unwrap();

    assert_eq!((public.port(), admin.port()), (80, 81));
    let short = Duration::from_millis(20);
    let error = process.address("other", short).await.unwrap_err();
    assert!(matches!(error, ProcessError::TimedOut { .. }), "{error}");
    assert_eq!(process.log().len(), 2);
}

#[tokio::test]
async fn an_announcement_just_before_the_end_is_not_overlooked() {
    let mut process = shell(r#"echo '{"listener":"public","address":"127.0.0.1:80"}'"#).spawn().unwrap();

    let public = process.address("public", SOON).await.unwrap();

    assert_eq!(public.port(), 80);
}

#[tokio::test]
async fn a_daemon_that_dies_while_waited_for_is_reported_with_its_last_words() {
    let script = "echo 'SIDECAR_X is missing' >&2; exit 78";
    let waits = [
        shell(script).spawn().unwrap().address("public", SOON).await.unwrap_err(),
        {
            let nobody = crate::scratch::free_address().unwrap();
            let mut process = shell(script).spawn().unwrap();
            process.wait_ready(nobody, SOON).await.unwrap_err()
        },
        {
            let mut process = shell(script).spawn().unwrap();
            process.wait_for_line(|_| false, SOON).await.unwrap_err()
        },
    ];
    for error in waits {
        assert!(matches!(&error, ProcessError::Ended { exit, .. } if exit.code == Some(78)), "{error}");
        assert!(error.to_string().contains("SIDECAR_X is missing"), "{error}");
    }
}

#[tokio::test]
async fn readiness_is_waited_for() {
    // The stand-in gateway plays the admin listener: not ready twice, then ready.
    let admin = Gateway::start(GatewayOptions {
        behaviour: Behaviour::Script(vec![Behaviour::status(503), Behaviour::status(503)]),
        ..GatewayOptions::default()
    })
    .await
    .unwrap();
    let mut process = shell("sleep 60").spawn().unwrap();

    process.wait_ready(admin.addr(), SOON).await.unwrap();
    assert_eq!(admin.received()[2].path, "/readyz");

    admin.set_behaviour(Behaviour::Status(503, Vec::new(), b"journal: full".to_vec()));
    let short = Duration::from_millis(50);
    let error = process.wait_ready(admin.addr(), short).await.unwrap_err();
    assert!(error.to_string().contains("journal: full"), "{error}");
}

#[tokio::test]
async fn sigterm_can_be_answered_and_sigkill_cannot() {
    let script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.02; done";
    let mut polite = shell(script).spawn().unwrap();
    polite.wait_for_line(|line| line == "up", SOON).await.unwrap();
    polite.term().unwrap();
    assert_eq!(polite.wait(SOON).await.unwrap().code, Some(0));
    assert_eq!(polite.stdout(), "up\nbye\n");

    let mut killed = shell(script).spawn().unwrap();
    killed.wait_for_line(|line| line == "up", SOON).await.unwrap();
    let exit = killed.kill9().await.unwrap();
    assert_eq!((exit.code, exit.signal), (None, Some(9)));
    assert_eq!(exit.to_string(), "signal 9");
}

#[tokio::test]
async fn a_frozen_process_does_nothing_until_thawed() {
    let mut process = shell("while :; do echo tick; sleep 0.01; done").spawn().unwrap();
    process.wait_for_line(|line| line == "tick", SOON).await.unwrap();

    process.freeze().unwrap();
    let status = format!("/proc/{}/status", process.pid());
    let deadline = Instant::now() + SOON;
    while !std::fs::read_to_string(&status).unwrap().contains("State:\tT") {
        assert!(Instant::now() < deadline, "not stopped");
        tokio::task::yield_now().await;
    }
    process.thaw().unwrap();

    let before = process.stdout().lines().count();
    let deadline = Instant::now() + SOON;
    while process.stdout().lines().count() <= before {
        assert!(Instant::now() < deadline, "not thawed");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn dropping_it_kills_it_and_what_its_wrapper_started() {
    let process = shell("sleep 600 & echo $!; wait").wrapped("/usr/bin/env", ["A=b"]).spawn();
    let mut process = process.unwrap();
    let line = process.wait_for_line(|line| !line.is_empty(), SOON).await;
    let grandchild = format!("/proc/{}/stat", line.unwrap());

    drop(process);

    let gone = |path: &str| match std::fs::read_to_string(path) {
        // An orphan that nobody reaps in this environment stays as a zombie.
        Ok(stat) => stat.contains(") Z"),
        Err(_) => true,
    };
    let deadline = Instant::now() + SOON;
    while !gone(&grandchild) {
        assert!(Instant::now() < deadline, "the grandchild lives");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn memory_and_descriptors_can_be_read_while_it_lives() {
    let mut process = shell("echo up; sleep 60").spawn().unwrap();
    process.wait_for_line(|line| line == "up", SOON).await.unwrap();

    assert!(process.rss_bytes().unwrap() > 100_000);
    assert!(process.open_fds().unwrap() >= 3);

    process.kill9().await.unwrap();
    assert!(process.rss_bytes().is_err());
    assert!(process.open_fds().is_err());
}

#[tokio::test]
async fn output_is_bounded_and_the_file_has_all_of_it() {
    let scratch = Scratch::new("process").unwrap();
    let file = scratch.file("log");
    for _ in 0..2 {
        let mut process = shell("seq 1 15000; printf 'no line end'").log_file(&file).spawn().unwrap();
        process.wait(SOON).await.unwrap();
        assert_eq!(process.lines_let_go(), 0);
        assert!(process.stdout().ends_with("15000\nno line end\n"));
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 30_002);

    let mut chatty = shell("seq 1 25000; head -c 200000 /dev/zero | tr '\\0' x").spawn().unwrap();
    chatty.wait(SOON).await.unwrap();
    assert_eq!(chatty.lines_let_go(), 5_001);
    assert_eq!(chatty.stdout().lines().last().unwrap().len(), 64 * 1024);
}
