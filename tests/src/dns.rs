//! A name server over UDP that says what a test wants: an address, that there is none, that it does
//! not know, or nothing. Source: RFC 1035 section 4.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::UdpSocket;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// These addresses; none for other kinds of record.
    Addresses(Vec<Ipv4Addr>),
    /// NXDOMAIN: there is no such name.
    NoSuchName,
    /// SERVFAIL: the server cannot say.
    Failure,
    /// REFUSED: it does not want to.
    Refused,
    /// No answer at all.
    Silence,
    /// Bytes that are no answer.
    Garbage,
}

/// A running name server. Dropping it closes its port.
#[derive(Debug)]
pub struct NameServer {
    state: Arc<State>,
    _stop: DropGuard,
}

#[derive(Debug)]
struct State {
    answer: Mutex<Answer>,
    questions: AtomicU64,
}

/// `TYPE A` and `CLASS IN`, the length of a head, and how long answers may be kept: a resolver that
/// keeps them longer than it may is found out.
const TYPE_A: [u8; 2] = [0, 1];
const CLASS_IN: [u8; 2] = [0, 1];
const HEAD: usize = 12;
const TTL_SECONDS: u32 = 1;

impl NameServer {
    /// Begins to answer.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn start(address: SocketAddr, answer: Answer) -> io::Result<Self> {
        let socket = UdpSocket::bind(address).await?;
        let state = Arc::new(State { answer: Mutex::new(answer), questions: AtomicU64::new(0) });
        let stop = CancellationToken::new();
        tokio::spawn({
            let (state, stop) = (Arc::clone(&state), stop.clone());
            async move {
                let mut question = [0; 512];
                while let Some(Ok((length, peer))) = stop.run_until_cancelled(socket.recv_from(&mut question)).await {
                    state.questions.fetch_add(1, Ordering::Relaxed);
                    let answer = state.answer.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    if let Some(bytes) = reply(&question[..length], &answer) {
                        // Whoever asked may be gone.
                        let _ = socket.send_to(&bytes, peer).await;
                    }
                }
            }
        });
        Ok(Self { state, _stop: stop.drop_guard() })
    }

    /// Answers like this from now on.
    pub fn set(&self, answer: Answer) {
        *self.state.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }

    /// Questions so far.
    pub fn questions(&self) -> u64 {
        self.state.questions.load(Ordering::Relaxed)
    }
}

fn reply(question: &[u8], answer: &Answer) -> Option<Vec<u8>> {
    let (code, addresses) = match answer {
        Answer::Silence => return None,
        Answer::Garbage => return Some(vec![0xff; 40]),
        Answer::Addresses(addresses) => (0, addresses.as_slice()),
        Answer::Failure => (2, &[][..]),
        Answer::NoSuchName => (3, &[][..]),
        Answer::Refused => (5, &[][..]),
    };
    // One question: labels, each with its length, up to the empty one; then type and class.
    let labels = question.get(HEAD..)?.iter().scan(0_u8, |left, byte| {
        let end = *left == 0 && *byte == 0;
        *left = if *left == 0 { *byte } else { *left - 1 };
        (!end).then_some(())
    });
    let end = HEAD + labels.count() + 1;
    let asked = question.get(HEAD..end + 4)?;
    let addresses = if asked.get(asked.len() - 4..asked.len() - 2)? == TYPE_A { addresses } else { &[] };
    let mut reply = question.get(..2)?.to_vec();
    // An answer, from the authority, recursion wished and available.
    reply.extend_from_slice(&[0x85, 0x80 | code, 0, 1, 0, u8::try_from(addresses.len()).ok()?, 0, 0, 0, 0]);
    reply.extend_from_slice(asked);
    for address in addresses {
        // The name is the one at the beginning of the question.
        reply.extend_from_slice(&[0xc0, HEAD as u8]);
        reply.extend_from_slice(&TYPE_A);
        reply.extend_from_slice(&CLASS_IN);
        reply.extend_from_slice(&TTL_SECONDS.to_be_bytes());
        reply.extend_from_slice(&[0, 4]);
        reply.extend_from_slice(&address.octets());
    }
    Some(reply)
}
