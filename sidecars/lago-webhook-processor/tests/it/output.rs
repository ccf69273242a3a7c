//! Who reads standard output, and who does not.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kit_lago::sender::{Sender, Signing};
use kit_workbench::raw;
use kit_workbench::scratch::{Scratch, free_address};

use crate::bench::*;

/// A log driver that hangs, or a `| tee` that was stopped.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_reads_the_log_and_webhooks_are_taken_all_the_same() {
    let scratch = Scratch::new("output").unwrap();
    let (public, admin) = (free_address().unwrap(), free_address().unwrap());
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_lago-webhook-processor"))
        .env_clear()
        .envs([
            ("BRAIN_GATEWAY_URL", "http://127.0.0.1:9".to_owned()),
            ("LAGO_WEBHOOK_HMAC_KEY", HMAC_KEY.to_owned()),
            ("SIDECAR_JOURNAL__PATH", scratch.file("j.db").display().to_string()),
            ("SIDECAR_LISTEN__PUBLIC", public.to_string()),
            ("SIDECAR_LISTEN__ADMIN", admin.to_string()),
            ("LOG_LEVEL", "debug".to_owned()),
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + DEADLINE;
    while !raw::get(admin, "/readyz", DEADLINE).await.is_ok_and(|ready| ready.status == 200) {
        assert!(Instant::now() < deadline, "it never became ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let sender = Sender::new(&format!("http://{public}/webhooks/lago")).unwrap();

    // Each refusal is a line of some 200 bytes; a pipe holds 64 KiB.
    let forged = Signing::Hmac("another-key-another-key-another-key".to_owned().into());
    for _ in 0..1_000 {
        let sending = sender.send_once(&forged.delivery("fee.created", "{}").unwrap()).await;
        assert_eq!(sending.unwrap().status, 401);
    }
    let taken = sender.send_once(&hmac().delivery("fee.created", "{}").unwrap()).await.unwrap();

    assert_eq!(taken.status, 200);
    assert_eq!(raw::get(admin, "/livez", DEADLINE).await.unwrap().status, 200);
    let stop = Command::new("kill").arg(daemon.id().to_string()).status().unwrap();
    assert!(stop.success());
    let deadline = Instant::now() + DEADLINE;
    let ended = loop {
        if let Some(ended) = daemon.try_wait().unwrap() {
            break ended;
        }
        if Instant::now() > deadline {
            daemon.kill().unwrap();
            panic!("it does not end");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(ended.code(), Some(0));
}
