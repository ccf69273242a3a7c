//! `listen`: a gateway on this machine.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use kit::secret;
use kit_workbench::gateway::{Behaviour, Gateway, GatewayOptions, Received};

use crate::interrupt::Interrupt;
use crate::output::{self, safe};

/// Requests remembered at most, until their answer is printed.
const KEPT: usize = 10_000;

#[derive(Debug, Args)]
#[command(after_help = "Example: outrigger listen --addr 127.0.0.1:8000 --secret-file signing-secret")]
pub(crate) struct Arguments {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8000")]
    addr: SocketAddr,
    /// File with Standard Webhooks secrets (whsec_…), one a line: verify signatures.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// What to answer.
    #[arg(long, value_enum, default_value_t = Answer::Ok)]
    answer: Answer,
    /// Wait this long before answering, in seconds.
    #[arg(long, default_value_t = 0.0, value_name = "SECONDS")]
    delay: f64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Answer {
    /// 200.
    #[value(name = "200")]
    Ok,
    /// 200, but with the body of a gateway that had no use for the event.
    Ignored,
    /// 400: the event becomes a dead letter.
    #[value(name = "400")]
    Refuse,
    /// 429 with Retry-After: 5.
    #[value(name = "429")]
    TooMany,
    /// 500.
    #[value(name = "500")]
    Fail,
    /// 200 after 20 seconds.
    Slow,
    /// No answer at all.
    Drop,
    /// The connection is reset.
    Reset,
}

pub(crate) async fn run(arguments: Arguments, json: bool) -> anyhow::Result<()> {
    let secrets = secret::resolve_lines("", None, "--secret-file", arguments.secret_file.as_deref())?;
    let behaviour = match arguments.answer {
        Answer::Ok => Behaviour::Ok,
        Answer::Ignored => Behaviour::Ignored,
        Answer::Refuse => Behaviour::status(400),
        Answer::TooMany => Behaviour::retry_after(429, "5"),
        Answer::Fail => Behaviour::status(500),
        Answer::Slow => Behaviour::Ok.after(Duration::from_secs(20)),
        Answer::Drop => Behaviour::Drop,
        Answer::Reset => Behaviour::Reset,
    };
    let delay = Duration::try_from_secs_f64(arguments.delay).context("--delay must be 0 or more")?;
    let mut interrupt = Interrupt::listen()?;
    let gateway = Gateway::start(GatewayOptions {
        addr: arguments.addr,
        secrets: secrets.iter().map(|secret| secret.expose().to_owned()).collect(),
        keep_headers: false,
        record_limit: KEPT * 2,
        behaviour: if delay.is_zero() { behaviour } else { behaviour.after(delay) },
        on_received: Some(Arc::new(move |received| print(received, json))),
        ..GatewayOptions::default()
    })
    .await
    .with_context(|| format!("listen on {}", arguments.addr))?;
    let _ = writeln!(std::io::stderr(), "listening on {}, Ctrl-C ends", gateway.url());
    loop {
        tokio::select! {
            () = interrupt.wait() => break,
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                // Only the lines count; what was received is let go before it adds up.
                if gateway.with_received(<[Received]>::len) > KEPT {
                    gateway.forget();
                }
            }
        }
    }
    gateway.stop().await;
    Ok(())
}

fn print(received: &Received, json: bool) {
    if json {
        let _ = output::json_line(received);
        return;
    }
    let signature = match received.signature_ok {
        Some(true) => "signature ok",
        Some(false) => "SIGNATURE WRONG",
        None => "not verified",
    };
    let line = format!(
        "{} {} {:<40} {} {} {signature} {} bytes",
        received.at,
        if received.answered == 0 { "–".to_owned() } else { received.answered.to_string() },
        safe(received.event_type.as_deref().unwrap_or("?")),
        safe(received.subject.as_deref().unwrap_or("–")),
        safe(received.event_id.as_deref().unwrap_or("–")),
        received.body_len,
    );
    // Whoever reads the lines may have gone; the gateway goes on.
    let _ = writeln!(std::io::stdout(), "{line}");
}
