//! A signal that every connection waits for and that hardly ever comes.
//!
//! A connection's task looks at it whenever it is polled, several times for each request. A cancellation token takes two locks for
//! that, which all connections share; here it is one load, and the token is asked once for each task.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// Raised once, for good.
#[derive(Debug, Default)]
pub(super) struct Signal {
    raised: AtomicBool,
    token: CancellationToken,
}

impl Signal {
    /// Wakes whoever waits.
    pub(super) fn raise(&self) {
        // Before anybody is woken: who is looks at nothing else.
        self.raised.store(true, Ordering::SeqCst);
        self.token.cancel();
    }

    pub(super) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::SeqCst)
    }

    /// Waits for it; given to [`Waiting`].
    pub(super) fn raised(&self) -> WaitForCancellationFuture<'_> {
        self.token.cancelled()
    }
}

/// One task's waiting for a [`Signal`].
pub(super) struct Waiting<'a, 'f> {
    signal: &'a Signal,
    future: Pin<&'f mut WaitForCancellationFuture<'a>>,
    /// Who is woken as things are.
    registered: Option<Waker>,
}

impl<'a, 'f> Waiting<'a, 'f> {
    pub(super) fn new(signal: &'a Signal, future: Pin<&'f mut WaitForCancellationFuture<'a>>) -> Self {
        Self { signal, future, registered: None }
    }

    /// True when it has been raised; otherwise the task is woken then.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        if self.signal.is_raised() {
            return true;
        }
        if self.registered.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return false;
        }
        self.registered = Some(cx.waker().clone());
        self.future.as_mut().poll(cx) == Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    async fn wait(signal: &Signal) {
        let raised = pin!(signal.raised());
        let mut waiting = Waiting::new(signal, raised);
        // Looked at before as often as a busy connection does.
        poll_fn(|cx| {
            for _ in 0..3 {
                assert!(!waiting.poll(cx));
            }
            Poll::Ready(())
        })
        .await;
        poll_fn(|cx| if waiting.poll(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// Also those that have looked before, and whose task is polled by another waker later.
    #[tokio::test]
    async fn whoever_waits_is_woken() {
        let signal = Arc::new(Signal::default());
        let (first, second) = (Arc::clone(&signal), Arc::clone(&signal));
        let waiting = tokio::spawn(async move { wait(&first).await });
        let beside = tokio::spawn(async move { tokio::join!(wait(&second), wait(&second)) });
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(!signal.is_raised() && !waiting.is_finished() && !beside.is_finished());

        signal.raise();

        let all = async { (waiting.await, beside.await) };
        let (one, both) = tokio::time::timeout(Duration::from_secs(10), all).await.expect("they are woken");
        assert!(one.is_ok() && both.is_ok() && signal.is_raised());
    }

    #[tokio::test]
    async fn a_task_that_moves_to_another_waker_is_woken_too() {
        let signal = Signal::default();
        let raised = pin!(signal.raised());
        let mut waiting = Waiting::new(&signal, raised);
        assert!(!waiting.poll(&mut Context::from_waker(Waker::noop())));
        let wait = async {
            poll_fn(|cx| if waiting.poll(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
        };
        let raise = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            signal.raise();
        };
        let both = async { tokio::join!(wait, raise) };
        assert!(tokio::time::timeout(Duration::from_secs(10), both).await.is_ok());
    }
}
