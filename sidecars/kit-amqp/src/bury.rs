//! Dead letters of a consumed queue: a message as it was, as far as a frame takes it, with where it came from and why.

use kit::clock::SharedClock;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use tokio::sync::Semaphore;

use crate::message::Outgoing;
use crate::publisher::Publisher;
use crate::source::Message;
use crate::window::Fate;

/// Bytes of a reason that are written to a dead letter.
const REASON_BYTES: usize = 1024;
/// Bytes of the frame of properties that are no headers: seven texts of at most 256 bytes, and what has a fixed size.
const PROPERTY_BYTES: usize = 2048;
/// Header that names the headers which had no room.
const DROPPED: &str = "x-dropped-headers";
/// Header that says which `message_id` is ours, because the message had none.
const NAMED: &str = "x-generated-message-id";
/// Dead letters on their way at a time. Each takes a channel, and a connection has few of them.
const AT_A_TIME: usize = 16;

/// Publishes dead letters of one queue.
pub(crate) struct Graveyard {
    publisher: Publisher,
    /// The queue they came from.
    pub(crate) queue: ShortString,
    /// The queue they go to.
    pub(crate) dead: ShortString,
    clock: SharedClock,
    places: Semaphore,
}

impl Graveyard {
    /// From one queue to the other.
    pub(crate) fn new(publisher: Publisher, queue: ShortString, dead: ShortString, clock: SharedClock) -> Self {
        Self { publisher, queue, dead, clock, places: Semaphore::new(AT_A_TIME) }
    }

    /// Publishes a message to the queue of dead letters.
    ///
    /// # Errors
    /// Why it is not certain that it lies there.
    pub(crate) async fn bury(
        &self,
        message: &Message,
        properties: &BasicProperties,
        reason: &str,
    ) -> Result<(), String> {
        let _place = self.places.acquire().await.map_err(|error| error.to_string())?;
        let frame_max = self.publisher.frame_max().await.map_err(|error| error.to_string())?;
        let mut headers = self.headers(message, properties, reason, frame_max.saturating_sub(PROPERTY_BYTES));
        // Should it be returned, that is all it is known by.
        let (id, properties) = match message.message_id.as_ref().filter(|id| !id.is_empty()) {
            Some(id) => (id.clone(), kept(properties)),
            None => {
                let id = format!("{:032x}", fastrand::u128(..));
                headers.insert(NAMED.into(), AMQPValue::LongString(id.as_str().into()));
                (id.clone(), kept(properties).with_message_id(id.into()))
            }
        };
        let outgoing = Outgoing {
            id,
            routing_key: self.dead.clone(),
            properties: properties.with_headers(headers),
            body: message.body.clone().into(),
        };
        let published = self.publisher.publish(&[&outgoing]).await.map_err(|error| error.to_string())?;
        match published.fates.first() {
            Some(Fate::Kept) => Ok(()),
            Some(Fate::Returned(reason)) => Err(format!("queue {} is not there: {reason}", self.dead)),
            Some(Fate::Nacked) => Err(format!("queue {} would not keep a dead letter", self.dead)),
            _ => Err(published.broken.map_or_else(|| "nothing was said of it".to_owned(), |error| error.to_string())),
        }
    }

    /// The message's own headers and ours, in at most `most` bytes: the largest of its own are left out, and named.
    fn headers(&self, message: &Message, properties: &BasicProperties, reason: &str, most: usize) -> FieldTable {
        let now = self.clock.now().to_string();
        let reason = cut(reason);
        let mut headers = FieldTable::default();
        for (name, value) in [
            ("x-rejected-reason", reason),
            ("x-rejected-at", now.as_str()),
            ("x-original-queue", self.queue.as_str()),
            ("x-original-exchange", message.exchange.as_str()),
            ("x-original-routing-key", message.routing_key.as_str()),
        ] {
            headers.insert(name.into(), AMQPValue::LongString(value.into()));
        }
        let own = properties.headers().iter().flat_map(FieldTable::inner);
        // The broker would publish by these once more, to this very queue among others.
        let own =
            own.filter(|(name, _)| !matches!(name.as_str(), "CC" | "BCC") && !headers.contains_key(name.as_str()));
        let mut own: Vec<_> = own.map(|(name, value)| (entry_bytes(name, value), name, value)).collect();
        own.sort_unstable_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1)));
        let mut total = table_bytes(&headers) + own.iter().map(|(bytes, ..)| bytes).sum::<usize>();
        let mut dropped = String::new();
        let mut own = own.into_iter().peekable();
        // With room for the note.
        while total > most.saturating_sub(REASON_BYTES + DROPPED.len() + 8)
            && let Some((bytes, name, _)) = own.next()
        {
            total -= bytes;
            if dropped.len() <= REASON_BYTES {
                dropped += &format!("{}{name} ({bytes} bytes)", if dropped.is_empty() { "" } else { ", " });
            }
        }
        for (_, name, value) in own {
            headers.insert(name.clone(), value.clone());
        }
        if !dropped.is_empty() {
            headers.insert(DROPPED.into(), AMQPValue::LongString(cut(&dropped).into()));
        }
        headers
    }
}

/// The properties that a dead letter keeps: not its expiration, and not the user, whom the broker compares with us.
fn kept(properties: &BasicProperties) -> BasicProperties {
    let mut kept = BasicProperties::default().with_delivery_mode(2);
    if let Some(value) = properties.content_type() {
        kept = kept.with_content_type(value.clone());
    }
    if let Some(value) = properties.content_encoding() {
        kept = kept.with_content_encoding(value.clone());
    }
    if let Some(value) = properties.message_id() {
        kept = kept.with_message_id(value.clone());
    }
    if let Some(value) = properties.timestamp() {
        kept = kept.with_timestamp(*value);
    }
    if let Some(value) = properties.kind() {
        kept = kept.with_type(value.clone());
    }
    if let Some(value) = properties.app_id() {
        kept = kept.with_app_id(value.clone());
    }
    kept
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(REASON_BYTES)]
}

/// Bytes of an entry of a table on the wire, or a few more.
///
/// Source: AMQP 0-9-1 specification, section 4.2.5.5, with RabbitMQ's types (rabbitmq.com/amqp-0-9-1-errata).
fn entry_bytes(name: &ShortString, value: &AMQPValue) -> usize {
    1 + name.as_str().len() + value_bytes(value)
}

fn table_bytes(table: &FieldTable) -> usize {
    4 + table.inner().iter().map(|(name, value)| entry_bytes(name, value)).sum::<usize>()
}

fn value_bytes(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::LongString(text) => 4 + text.as_bytes().len(),
        AMQPValue::ShortString(text) => 4 + text.as_str().len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.len(),
        AMQPValue::FieldTable(table) => table_bytes(table),
        AMQPValue::FieldArray(array) => 4 + array.as_slice().iter().map(value_bytes).sum::<usize>(),
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_bytes_of_headers_are_those_on_the_wire() {
        let mut table = FieldTable::default();
        table.insert("text".into(), AMQPValue::LongString("x".repeat(300).into()));
        table.insert("number".into(), AMQPValue::LongLongInt(7));
        let mut inner = FieldTable::default();
        inner.insert("a".into(), AMQPValue::LongString("b".into()));
        table.insert("table".into(), AMQPValue::FieldTable(inner));

        // 4 + (1 + 4 + 1 + 4 + 300) + (1 + 6 + 1 + 8) + (1 + 5 + 1 + 4 + (1 + 1 + 1 + 4 + 1))
        assert_eq!(table_bytes(&table), 4 + 310 + 16 + 19);
    }
}
