//! The other side of a broker: what lies in a queue, read by a client of our own.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::StreamExt as _;
use kit_workbench::broker::Broker;
use lapin::options::{
    BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions,
    QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

/// How long the broker may take for one answer.
const ANSWER: Duration = Duration::from_secs(60);

/// A client of a broker.
#[derive(Debug)]
pub struct Client {
    _connection: Connection,
    /// Its channel, with confirms on.
    pub channel: Channel,
}

/// What lay in a queue: of each message id its bodies, in the order they came.
pub type Found = BTreeMap<String, Vec<Vec<u8>>>;

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn connect(broker: &Broker) -> Result<Self> {
        let connecting = async {
            let connection = Connection::connect(&broker.url(), ConnectionProperties::default()).await?;
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok::<_, lapin::Error>(Self { _connection: connection, channel })
        };
        Ok(tokio::time::timeout(ANSWER, connecting).await.context("no answer of the broker")??)
    }

    /// Takes everything out of a queue that nobody publishes to meanwhile.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn drain(&self, queue: &str, found: &mut Found) -> Result<()> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        loop {
            let declared = self.channel.queue_declare(queue.into(), passive, FieldTable::default());
            let declared = tokio::time::timeout(ANSWER, declared).await.context("no answer of the broker")??;
            if declared.message_count() == 0 {
                return Ok(());
            }
            let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
            let consuming = self.channel.basic_consume(queue.into(), "drain".into(), options, FieldTable::default());
            let mut consumer = tokio::time::timeout(ANSWER, consuming).await.context("no answer of the broker")??;
            let (mut left, mut is_cancelled) = (declared.message_count(), false);
            // What came before the end of the consumer was said is taken too: the broker has let go of it.
            while let Some(message) = tokio::time::timeout(ANSWER, consumer.next()).await.context("no message")? {
                let message = message?;
                let id = message.properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default();
                found.entry(id).or_default().push(message.data);
                left = left.saturating_sub(1);
                if left == 0 && !is_cancelled {
                    is_cancelled = true;
                    self.channel.basic_cancel("drain".into(), BasicCancelOptions::default()).await?;
                }
            }
        }
    }

    /// Publishes to a queue and waits for the confirm.
    ///
    /// # Errors
    /// It is not confirmed.
    pub async fn publish(&self, queue: &str, id: &str, content_type: &str, body: &[u8]) -> Result<()> {
        let properties = BasicProperties::default()
            .with_message_id(id.into())
            .with_content_type(content_type.into())
            .with_delivery_mode(2);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let published =
            async { self.channel.basic_publish("".into(), queue.into(), options, body, properties).await?.await };
        let confirmed = tokio::time::timeout(ANSWER, published).await.context("no confirm")??;
        anyhow::ensure!(confirmed.is_ack() && confirmed.take_message().is_none(), "{queue} did not take a message");
        Ok(())
    }

    /// Deletes a queue.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn delete_queue(&self, queue: &str) -> Result<()> {
        self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        Ok(())
    }

    /// Makes a queue that outlives a restart.
    ///
    /// # Errors
    /// The broker does not answer, or has another one of that name.
    pub async fn declare(&self, queue: &str) -> Result<()> {
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(queue.into(), durable, FieldTable::default()).await?;
        Ok(())
    }

    /// Messages that lie in a queue.
    ///
    /// # Errors
    /// There is none of that name; the channel is closed then.
    pub async fn messages(&self, queue: &str) -> Result<u32> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        Ok(self.channel.queue_declare(queue.into(), passive, FieldTable::default()).await?.message_count())
    }

    /// Empties a queue.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn purge(&self, queue: &str) -> Result<()> {
        self.channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await?;
        Ok(())
    }

    /// Deletes an exchange.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn delete_exchange(&self, exchange: &str) -> Result<()> {
        self.channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await?;
        Ok(())
    }

    /// Binds a queue to an exchange.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn bind(&self, queue: &str, exchange: &str, pattern: &str) -> Result<()> {
        let options = lapin::options::QueueBindOptions::default();
        let table = FieldTable::default();
        self.channel.queue_bind(queue.into(), exchange.into(), pattern.into(), options, table).await?;
        Ok(())
    }

    /// Takes a binding away.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn unbind(&self, queue: &str, exchange: &str, pattern: &str) -> Result<()> {
        self.channel.queue_unbind(queue.into(), exchange.into(), pattern.into(), FieldTable::default()).await?;
        Ok(())
    }
}
