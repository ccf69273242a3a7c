//! One closed window: so many publishes, all of their confirms, all returns until then, matched by `message_id`.
//!
//! lapin hands a returned message to whichever confirm is resolved next, not to its own (4.12.3,
//! `src/returned_messages.rs`, `src/acknowledgement.rs`): with several publishes under way an unroutable one looks
//! delivered, and a good one returned. But it hands out each exactly once, and the broker returns a message before it
//! confirms it, so that after the last confirm of a window all its returns have been handed out to somebody.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{Channel, Confirmation};
use tokio::time::Instant;

use crate::error::AmqpError;
use crate::message::Outgoing;

/// What became of one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Confirmed, and not returned.
    Kept,
    /// The broker has no queue for it: the reply code and text.
    Returned(String),
    /// The broker would not keep it.
    Nacked,
    /// Nobody knows.
    Unknown,
}

/// What became of a window, and why it broke off, if it did: its channel is of no use then.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) fates: Vec<Fate>,
    pub(crate) broken: Option<AmqpError>,
}

/// A step of a window that goes on takes no longer than so many times what it may stand still.
const AT_MOST: u32 = 6;

/// How long the steps of a window may stand still: a window that is large, or a broker that is slow, is no broker that has
/// gone, and what is given up is published once more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) publish: Duration,
    pub(crate) confirm: Duration,
}

/// Waits for `work` for as long as `done` grows within each `limit`; `None` where it does not, or all of it takes too long.
async fn going_on<T>(limit: Duration, done: &AtomicUsize, work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    let until = Instant::now() + limit * AT_MOST;
    loop {
        let before = done.load(Ordering::Relaxed);
        match tokio::time::timeout_at(until.min(Instant::now() + limit), &mut work).await {
            Ok(result) => return Some(result),
            Err(_) if done.load(Ordering::Relaxed) > before && Instant::now() < until => {}
            Err(_) => return None,
        }
    }
}

/// Publishes one window on a channel that nobody else publishes on.
pub(crate) async fn publish(
    channel: &Channel,
    exchange: &ShortString,
    messages: &[&Outgoing],
    limits: Limits,
) -> Published {
    let mut fates = vec![Fate::Unknown; messages.len()];
    let mut broken = None;
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    // All at once: each publish waits until its bytes are written, and one by one that is a system call each.
    let written = AtomicUsize::new(0);
    let published = join_all(messages.iter().map(async |message| {
        let (key, properties) = (message.routing_key.clone(), message.properties.clone());
        let published = channel.basic_publish(exchange.clone(), key, options, &message.body, properties).await;
        written.fetch_add(1, Ordering::Relaxed);
        published
    }));
    let confirms = match going_on(limits.publish, &written, published).await {
        Some(confirms) => confirms,
        None => {
            let error = format!("the connection did not take the messages within {:?}", limits.publish);
            return Published { fates, broken: Some(AmqpError::Lost(error)) };
        }
    };
    // Since the last one that came, and not for all of them.
    let until = Instant::now() + limits.confirm * AT_MOST;
    let mut deadline = Instant::now() + limits.confirm;
    let mut returned: HashMap<String, String> = HashMap::new();
    let mut strays = 0;
    for (fate, confirm) in fates.iter_mut().zip(confirms) {
        let confirm = match confirm {
            Ok(confirm) => confirm,
            Err(error) => {
                broken = worse(broken, AmqpError::from_lapin(&error));
                continue;
            }
        };
        let confirmation = match tokio::time::timeout_at(deadline, confirm).await {
            Ok(Ok(confirmation)) => {
                deadline = until.min(Instant::now() + limits.confirm);
                confirmation
            }
            Ok(Err(error)) => {
                broken = worse(broken, AmqpError::from_lapin(&error));
                continue;
            }
            Err(_) => {
                broken = worse(broken, AmqpError::Lost(format!("no confirm within {:?}", limits.confirm)));
                continue;
            }
        };
        let (own, message) = match confirmation {
            Confirmation::Ack(message) => (Fate::Kept, message),
            Confirmation::Nack(message) => (Fate::Nacked, message),
            // Confirms are on for every channel here.
            Confirmation::NotRequested => (Fate::Unknown, None),
        };
        *fate = own;
        if let Some(message) = message {
            let reason = format!("{} {}", message.reply_code, message.reply_text);
            match message.delivery.properties.message_id() {
                Some(id) => drop(returned.insert(id.to_string(), reason)),
                None => strays += 1,
            }
        }
    }
    for (fate, message) in fates.iter_mut().zip(messages) {
        if let Some(reason) = returned.remove(&message.id) {
            *fate = Fate::Returned(reason);
        }
    }
    strays += returned.len();
    if strays > 0 || broken.is_some() && fates.contains(&Fate::Unknown) {
        distrust(&mut fates, strays, &mut broken);
    }
    Published { fates, broken }
}

/// Where a return belongs to nobody, or the window broke off – the return of a confirmed message may have been handed to
/// a confirm that failed – only what is proven stays.
fn distrust(fates: &mut [Fate], strays: usize, broken: &mut Option<AmqpError>) {
    for fate in fates.iter_mut().filter(|fate| **fate == Fate::Kept) {
        *fate = Fate::Unknown;
    }
    if strays > 0 {
        let error = AmqpError::Lost(format!("the broker returned {strays} messages that nobody published"));
        *broken = worse(broken.take(), error);
    }
}

/// The error that says more: what the broker said of the channel, before that something came on one that it had closed,
/// before what was not heard. Each publish and confirm of a window has one of its own, in any order.
fn worse(known: Option<AmqpError>, new: AmqpError) -> Option<AmqpError> {
    let says = |error: &AmqpError| match error {
        AmqpError::Lost(_) if error.is_of_a_closed_channel() => 1,
        AmqpError::Lost(_) => 0,
        _ => 2,
    };
    match known {
        Some(known) if says(&known) >= says(&new) => Some(known),
        _ => Some(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which error the first of a window's messages has is chance: whether one of them closes the channel is not.
    #[test]
    fn of_a_windows_errors_the_one_that_says_most_is_kept_whichever_comes_first() {
        let lost = AmqpError::Lost("invalid connection state: Error".to_owned());
        let closed = AmqpError::Lost("CHANNEL_ERROR - expected 'channel.open'".to_owned());
        let refused = AmqpError::Precondition("PRECONDITION_FAILED - invalid expiration".to_owned());
        for (errors, expected) in [
            ([&lost, &closed, &lost], &closed),
            ([&closed, &lost, &lost], &closed),
            ([&lost, &closed, &refused], &refused),
            ([&refused, &closed, &lost], &refused),
        ] {
            let kept = errors.into_iter().cloned().fold(None, worse);
            assert_eq!(kept.as_ref(), Some(expected), "{errors:?}");
        }
    }
}
