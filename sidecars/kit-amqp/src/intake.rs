//! The consumer of a queue, that is ended and begun again on one channel: what was taken stays taken meanwhile.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::{Stream, StreamExt as _, future};
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::connection::within;
use crate::error::AmqpError;

/// How long the broker may take for an answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How a message has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// It is done, one way or the other.
    Done,
    /// The broker has it back, because all were wanted back.
    GivenBack,
    /// The broker has it back, because it has waited for too long. So many were taken at a time when it came.
    Expired(u16),
}

/// How many messages are taken at a time, whatever becomes of consumers and connections.
#[derive(Debug)]
pub(crate) struct Width {
    now: AtomicU16,
    /// A connection has ended with messages on it. One of them may be the reason, and RabbitMQ 4 gives up what it has sent
    /// too often (rabbitmq.com/docs/quorum-queues, "delivery-limit"): they are to come to it one by one, and not all of
    /// them with it.
    is_careful: AtomicBool,
}

impl Width {
    pub(crate) fn new(prefetch: u16) -> Self {
        Self { now: AtomicU16::new(prefetch), is_careful: AtomicBool::new(false) }
    }
}

/// A consumer that comes and goes.
pub(crate) struct Intake<'a> {
    pub(crate) channel: Channel,
    queue: ShortString,
    prefetch: u16,
    state: State,
    /// Whether messages that wait are to be given back.
    back: watch::Sender<bool>,
    /// How many are taken at a time: the prefetch. After all were given back one, so that only that one is counted as sent
    /// again should it come to nothing, and twice as many where it did: the broker sends the same one first again, and
    /// those behind it may be well.
    width: &'a Width,
    /// How many were done at this width.
    done: u16,
    /// The broker was asked for messages on this channel: some may have been on their way when it ended.
    has_asked: bool,
    /// First, next and longest wait after messages were given back.
    waits: (Duration, Duration, Duration),
    not_before: Instant,
}

enum State {
    Off,
    On { consumer: Consumer, prefetch: u16 },
    Ending(Ending<Consumer>),
}

/// A consumer that was ended, as far as it has not come to its end. What has is remembered, because it is said once.
struct Ending<S> {
    /// What still comes.
    rest: Option<S>,
    /// The broker's answer.
    answer: Option<BoxFuture<'static, Result<(), AmqpError>>>,
}

impl<T, S: Stream<Item = lapin::Result<T>> + Unpin> Ending<S> {
    /// What still comes, or `None` once nothing does and the broker has answered. May be dropped and called again.
    async fn next(&mut self) -> Result<Option<T>, AmqpError> {
        while self.rest.is_some() || self.answer.is_some() {
            let Self { rest, answer } = self;
            // Polled together: nothing comes to an end while what came before it is not taken.
            tokio::select! {
                biased;
                next = of(rest.as_mut().map(|rest| rest.next())) => match next {
                    Some(next) => return Ok(Some(next?)),
                    None => self.rest = None,
                },
                result = of(answer.as_mut()) => {
                    self.answer = None;
                    result?;
                }
            }
        }
        Ok(None)
    }
}

/// Waits for what may be there, or for ever.
async fn of<F: Future>(wanted: Option<F>) -> F::Output {
    match wanted {
        Some(wanted) => wanted.await,
        None => future::pending().await,
    }
}

impl<'a> Intake<'a> {
    /// `width` is how many are taken at a time, `prefetch` the most of that.
    pub(crate) fn new(
        channel: Channel,
        queue: &ShortString,
        (prefetch, width): (u16, &'a Width),
        waits: (Duration, Duration),
    ) -> Self {
        Self {
            channel,
            queue: queue.clone(),
            prefetch,
            state: State::Off,
            back: watch::Sender::new(false),
            width,
            done: 0,
            has_asked: false,
            waits: (waits.0, waits.0, waits.1),
            not_before: Instant::now(),
        }
    }

    /// Whether messages that wait are to be given back, from now on.
    pub(crate) fn back(&self) -> watch::Receiver<bool> {
        self.back.subscribe()
    }

    /// Takes messages, unless that is so already or it is too soon; `under_way` are here.
    ///
    /// # Errors
    /// The broker does not let us.
    pub(crate) async fn begin(&mut self, under_way: usize) -> Result<(), AmqpError> {
        let wanted = self.width();
        match &self.state {
            State::On { prefetch, .. } if *prefetch == wanted => return Ok(()),
            State::On { .. } => {
                self.end();
                return Ok(());
            }
            State::Ending(_) => return Ok(()),
            State::Off => {}
        }
        // The broker counts what a consumer has not acknowledged, and not what is left of the one before it.
        if under_way > usize::from(wanted / 2) {
            return Ok(());
        }
        if *self.back.borrow() {
            if under_way > 0 {
                return Ok(());
            }
            self.back.send_replace(false);
            let (_, next, most) = self.waits;
            self.not_before = Instant::now() + next;
            self.waits.1 = (next * 2).min(most);
        }
        if Instant::now() < self.not_before {
            return Ok(());
        }
        let options = BasicQosOptions { global: false };
        within(ANSWER, "set the prefetch", self.channel.basic_qos(wanted, options)).await?;
        self.has_asked = true;
        let (queue, options) = (self.queue.clone(), BasicConsumeOptions::default());
        let consuming = self.channel.basic_consume(queue, ShortString::default(), options, FieldTable::default());
        let consumer = within(ANSWER, "let us consume", consuming).await?;
        self.state = State::On { consumer, prefetch: wanted };
        tracing::info!(queue = %self.queue, "messages are taken from queue {}", self.queue);
        Ok(())
    }

    /// Whether messages are taken; what was on its way still comes.
    pub(crate) fn is_on(&self) -> bool {
        matches!(self.state, State::On { .. })
    }

    /// Takes no more messages. What is here stays here.
    pub(crate) fn end(&mut self) {
        match std::mem::replace(&mut self.state, State::Off) {
            State::On { consumer, .. } => {
                let (channel, tag) = (self.channel.clone(), consumer.tag());
                let ending = async move {
                    within(ANSWER, "end the consumer", channel.basic_cancel(tag, BasicCancelOptions::default())).await
                };
                let mut ended = ending.boxed();
                // Asked for now, so that it comes to the broker before what is given back.
                if let Some(result) = (&mut ended).now_or_never() {
                    ended = future::ready(result).boxed();
                }
                self.state = State::Ending(Ending { rest: Some(consumer), answer: Some(ended) });
            }
            state => self.state = state,
        }
    }

    /// Takes no more messages, and has those that wait given back.
    pub(crate) fn give_back(&mut self, why: &str) {
        self.end();
        if !self.back.send_replace(true) {
            self.width.now.store(1, Ordering::Relaxed);
            let queue = &self.queue;
            tracing::warn!(queue = %queue, reason = %why, "messages that cannot be taken go back to queue {queue}: {why}");
        }
    }

    /// The connection has ended while `under_way` messages were here, or on their way.
    pub(crate) fn suspect(&self, under_way: usize) {
        if under_way > 0 || self.has_asked {
            self.width.now.store(1, Ordering::Relaxed);
            self.width.is_careful.store(true, Ordering::Relaxed);
        }
    }

    /// How many are taken at a time while it is tried whether any can be taken; `None` when that is not in question.
    pub(crate) fn probe(&self) -> Option<u16> {
        Some(self.width()).filter(|width| *width < self.prefetch)
    }

    /// How many are taken at a time.
    pub(crate) fn width(&self) -> u16 {
        self.width.now.load(Ordering::Relaxed)
    }

    /// A message has left.
    pub(crate) fn left(&mut self, left: Left) {
        if *self.back.borrow() {
            return;
        }
        match left {
            Left::Done => {
                self.waits.1 = self.waits.0;
                if !self.width.is_careful.load(Ordering::Relaxed) {
                    self.width.now.store(self.prefetch, Ordering::Relaxed);
                    return;
                }
                self.done = self.done.saturating_add(1);
                if self.done >= self.width() {
                    self.done = 0;
                    self.twice_as_many(self.width());
                }
            }
            // Once for all that came at that width.
            Left::Expired(width) if width == self.width() => self.twice_as_many(width),
            Left::Expired(_) | Left::GivenBack => {}
        }
    }

    fn twice_as_many(&self, width: u16) {
        let wider = width.saturating_mul(2).min(self.prefetch);
        self.width.now.store(wider, Ordering::Relaxed);
        if wider == self.prefetch {
            self.width.is_careful.store(false, Ordering::Relaxed);
        }
    }

    /// The next message; `None` once no more will come of a consumer that was ended. May be dropped and called again.
    ///
    /// # Errors
    /// The channel is of no use any more.
    pub(crate) async fn next(&mut self) -> Result<Option<Delivery>, AmqpError> {
        match &mut self.state {
            State::Off => future::pending().await,
            State::On { consumer, .. } => match consumer.next().await {
                Some(delivery) => Ok(Some(delivery?)),
                None => Err(AmqpError::Missing("the broker ended the consumer: was the queue deleted?".to_owned())),
            },
            State::Ending(ending) => {
                let next = ending.next().await;
                if !matches!(next, Ok(Some(_))) {
                    self.state = State::Off;
                }
                next
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures_util::stream;
    use tokio::sync::oneshot;

    use super::*;

    /// lapin says the end of a consumer once; whoever waits for it waits for other things too, and begins again.
    #[tokio::test]
    async fn an_end_that_was_seen_is_not_waited_for_again() {
        let (answer, answered) = oneshot::channel();
        let answered = async move {
            let _ = answered.await;
            Ok(())
        };
        let rest = stream::iter([Some(Ok(1)), None]).chain(stream::pending());
        let mut rest = Box::pin(rest);
        // One that yields its end once, and is silent after that.
        let rest = stream::poll_fn(move |cx| rest.as_mut().poll_next(cx).map(Option::flatten));
        let mut ending = Ending { rest: Some(rest), answer: Some(answered.boxed()) };

        assert_eq!(ending.next().await.unwrap(), Some(1));
        assert!(ending.next().now_or_never().is_none());
        answer.send(()).unwrap();
        let next = tokio::time::timeout(Duration::from_secs(5), ending.next()).await;
        assert_eq!(next.unwrap().unwrap(), None);
    }

    /// The answer may come before the end of what comes.
    #[tokio::test]
    async fn an_answer_that_was_heard_is_not_waited_for_again() {
        let (more, mut comes) = tokio::sync::mpsc::unbounded_channel();
        let rest = stream::poll_fn(move |cx| comes.poll_recv(cx));
        let mut ending = Ending { rest: Some(rest), answer: Some(future::ready(Ok(())).boxed()) };

        assert!(ending.next().now_or_never().is_none());
        more.send(Ok(2)).unwrap();
        assert_eq!(ending.next().await.unwrap(), Some(2));
        drop(more);
        assert_eq!(ending.next().await.unwrap(), None);
    }
}
