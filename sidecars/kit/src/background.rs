//! Threads for what may come later: where the processors are full, whoever accepts is served first
//! (`docs/adr/0026-accepting-comes-first.md`).

use rustix::process::{getpriority_process, setpriority_process};
use tokio::runtime::{Builder, Handle, Runtime};

/// How much further back than the rest of the process, from 0 to 19. A thread at 10 gets a tenth of the time of one at 0 that
/// it shares a processor with, so that what may come later is never left out.
const NICE: i32 = 10;
/// The last place there is.
const LAST: i32 = 19;
const NAME: &str = "background";

/// A runtime of its own that begins with the first task. Its threads give way to all others of the process.
#[derive(Debug, Default)]
pub(crate) struct Background(Option<Runtime>);

impl Background {
    /// Where to run what may come later; here, where no further threads can be had.
    pub(crate) fn handle(&mut self) -> Handle {
        if self.0.is_none() {
            match begin() {
                Ok(runtime) => self.0 = Some(runtime),
                Err(error) => {
                    tracing::warn!(error = %error, "no threads of their own for deliveries, they share those of the listeners: {error}");
                }
            }
        }
        self.0.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }
}

/// A runtime must not be waited for on a thread of another one.
impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

fn begin() -> std::io::Result<Runtime> {
    // Not so much further back than the thread that starts one: that may be one of these. What Linux takes as a process's
    // own number is the calling thread's.
    let nice = (getpriority_process(None)? + NICE).min(LAST);
    Builder::new_multi_thread()
        .worker_threads(crate::run::WORKERS)
        .thread_name(NAME)
        .thread_keep_alive(crate::run::KEEP_THREADS)
        .on_thread_start(move || {
            // Where it is refused they are threads like any other.
            let _ = setpriority_process(None, nice);
        })
        .enable_all()
        .build()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::convert::Infallible;

    use super::*;
    use crate::lifecycle::{Shell, Signals, exit};

    /// Of the calling thread.
    fn nice() -> i32 {
        getpriority_process(None).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_may_come_later_and_what_it_spawns_gives_way_and_nothing_else_does() {
        let others = nice();
        let later = (others + NICE).min(LAST);
        let mut shell = Shell::new();
        let (tell, told) = tokio::sync::oneshot::channel();
        let (stop, both) = (shell.stop_token(), shell.stop_token());
        shell.spawn_in_background("deliveries", async move {
            let spawned = tokio::spawn(async { nice() }).await.unwrap();
            let blocking = tokio::task::spawn_blocking(nice).await.unwrap();
            tell.send([nice(), spawned, blocking]).unwrap();
            stop.stopped().await;
            Ok::<_, Infallible>(())
        });
        let stop = shell.stop_token();
        shell.spawn("listener", async move {
            assert_eq!(told.await.unwrap(), [later; 3]);
            assert_eq!(tokio::task::spawn_blocking(nice).await.unwrap(), others);
            assert_eq!(nice(), others);
            both.stop();
            stop.stopped().await;
            Ok::<_, Infallible>(())
        });

        assert_eq!(shell.run(std::time::Duration::from_secs(5), Signals::receive()).await, exit::DRAINED);
    }
}
