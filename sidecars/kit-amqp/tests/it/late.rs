//! A broker that ends the connection for what comes on a channel it has closed. With the real one that is a race: lapin
//! has to have queued a publish before it reads `channel.close`, and to send it after `channel.close-ok`. The answer of
//! RabbitMQ 3.10.8 is given here each time, at the moment it hurts most: when the next channel is opened.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use kit::secret::Secret;
use kit_amqp::AmqpSection;
use kit_delivery::{Failure, Sink as _};
use kit_workbench::broker::Broker;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use crate::publishing::{event, failure, section, sink};

const CHANNEL_OPEN: [u8; 4] = [0, 20, 0, 10];
const BASIC_PUBLISH: [u8; 4] = [0, 60, 0, 40];
const CHANNEL_CLOSE_OK: [u8; 4] = [0, 20, 0, 41];
const EXPECTED: &[u8] = b"CHANNEL_ERROR - expected 'channel.open'";

/// The broker refuses a window and then its connection: the rest is published on the next one, and has the outcome that the
/// broker gave it.
pub(crate) async fn check(broker: &Broker) {
    let own = section(broker, "late", "late.q");
    sink(&own).deliver(&event(1, "lago.x")).await;
    broker.ctl(&["add_user", "reader", "reader"]).await.unwrap();
    broker.ctl(&["set_permissions", "reader", ".*", "^$", ".*"]).await.unwrap();
    let ended = Arc::new(AtomicU32::new(0));
    let address = ending(broker.addr(), End::OpenedLate, Arc::clone(&ended)).await.unwrap();
    let url = format!("amqp://reader:reader@{address}");
    let sink = sink(&AmqpSection { url: Some(Secret::from(url)), declare: false, ..own.clone() });
    let events: Vec<_> = (0..64).map(|number| event(number, "lago.x")).collect();

    let outcomes = sink.deliver_all(&events).await;

    assert!(outcomes.iter().all(|outcome| failure(outcome) == Some(Failure::Denied)), "{outcomes:?}");
    assert!(ended.load(Ordering::Relaxed) > 1, "no connection was ended");
    // Alone, on the connection that this left behind.
    let outcome = sink.deliver(&events[0]).await;
    assert_eq!(failure(&outcome), Some(Failure::Denied), "{outcome:?}");

    // A broker that ends every connection as soon as something is published is not asked for ever.
    let (ended, begin) = (Arc::new(AtomicU32::new(0)), Instant::now());
    let address = ending(broker.addr(), End::Published, Arc::clone(&ended)).await.unwrap();
    let sink = crate::publishing::sink(&AmqpSection { url: Some(Secret::from(format!("amqp://{address}"))), ..own });
    let outcomes = sink.deliver_all(&events).await;
    assert!(outcomes.iter().all(|outcome| failure(outcome) == Some(Failure::Unreachable)), "{outcomes:?}");
    let ended = ended.load(Ordering::Relaxed);
    assert!(ended < 140, "{ended} connections within {:?}", begin.elapsed());
}

/// When a connection is ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// At the first channel that is opened after a refused one.
    OpenedLate,
    /// At the first message.
    Published,
}

/// Passes connections on to `broker`, and ends each.
async fn ending(broker: SocketAddr, end: End, ended: Arc<AtomicU32>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let ended = Arc::clone(&ended);
            tokio::spawn(async move { between(client, TcpStream::connect(broker).await?, end, &ended).await });
        }
    });
    Ok(address)
}

async fn between(client: TcpStream, broker: TcpStream, end: End, ended: &AtomicU32) -> io::Result<()> {
    client.set_nodelay(true)?;
    broker.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_broker, to_broker) = broker.into_split();
    tokio::select! {
        // Its head is no frame, and goes in one piece.
        up = up(&mut from_client, to_broker, end) => up?,
        down = tokio::io::copy(&mut from_broker, &mut to_client) => return down.map(drop),
    }
    ended.fetch_add(1, Ordering::Relaxed);
    to_client.write_all(&connection_close()).await?;
    // Until it has agreed to that and gone.
    tokio::io::copy(&mut from_client, &mut tokio::io::sink()).await.map(drop)
}

/// Returns where the connection is to be ended.
async fn up(client: &mut OwnedReadHalf, mut broker: OwnedWriteHalf, end: End) -> io::Result<()> {
    let mut protocol = [0; 8];
    client.read_exact(&mut protocol).await?;
    broker.write_all(&protocol).await?;
    let mut is_closed = false;
    loop {
        let mut head = [0; 7];
        client.read_exact(&mut head).await?;
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut rest = vec![0; size + 1];
        client.read_exact(&mut rest).await?;
        let is_end = match end {
            End::OpenedLate => is_closed && rest.starts_with(&CHANNEL_OPEN),
            End::Published => rest.starts_with(&BASIC_PUBLISH),
        };
        if head[0] == 1 && is_end {
            return Ok(());
        }
        is_closed |= head[0] == 1 && rest.starts_with(&CHANNEL_CLOSE_OK);
        broker.write_all(&head).await?;
        broker.write_all(&rest).await?;
    }
}

/// `connection.close` with 504, for `channel.open`.
fn connection_close() -> Vec<u8> {
    let mut payload = vec![0, 10, 0, 50];
    payload.extend(504_u16.to_be_bytes());
    payload.push(u8::try_from(EXPECTED.len()).unwrap());
    payload.extend(EXPECTED);
    payload.extend(CHANNEL_OPEN);
    let mut frame = vec![1, 0, 0];
    frame.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend(payload);
    frame.push(0xce);
    frame
}
