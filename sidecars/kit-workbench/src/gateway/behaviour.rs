//! How the stand-in gateway answers, well or badly.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::ReceivedHead;

/// What the platform's gateway says when an event was taken up.
///
/// Source: contracts of the reference platform, `POST /api/triggers/webhook/{path}`.
const PROCESSED: &[u8] = br#"{"status":"processed","matches":1,"executions":[{"result":{"status":"started"}}]}"#;
/// What it says, with status 200 as well, when nothing was interested in the event.
const IGNORED: &[u8] = br#"{"status":"ignored"}"#;

/// Decides a behaviour from the request.
pub type Decide = Arc<dyn Fn(&ReceivedHead) -> Behaviour + Send + Sync>;

/// What the gateway does with a request after it has read all of it.
#[derive(Clone, Default)]
pub enum Behaviour {
    /// 200 with the body of a gateway that started a workflow.
    #[default]
    Ok,
    /// 200 with the body of a gateway that had no use for the event: not a delivery, although the
    /// status says so.
    Ignored,
    /// A status with headers and a body. A status outside 200–999, or a header that HTTP does not
    /// allow, becomes a 500 that says so. 2xx counts as taken.
    Status(u16, Vec<(String, String)>, Vec<u8>),
    /// Waits, then goes on as told.
    Slow(Duration, Box<Behaviour>),
    /// Answers as told, the body one byte at a time with this pause before each.
    Drip(Duration, Box<Behaviour>),
    /// Answers as told, but resets the connection after this many bytes of the body.
    Cut(usize, Box<Behaviour>),
    /// Sends these bytes in place of an answer and closes: what no HTTP library would send. Whether
    /// they amount to taking the event over is for the caller to say.
    Wire(Vec<u8>, bool),
    /// Resets the connection without an answer.
    Reset,
    /// Never answers; the connection stays open until the client gives up.
    Drop,
    /// One behaviour per request in turn, then [`Behaviour::Ok`].
    Script(Vec<Behaviour>),
    /// Decided per request.
    ByRequest(Decide),
}

impl Behaviour {
    /// A bare status without headers or body.
    pub fn status(status: u16) -> Self {
        Self::Status(status, Vec::new(), Vec::new())
    }

    /// A status that asks to come back after so many seconds.
    pub fn retry_after(status: u16, retry_after: &str) -> Self {
        Self::Status(status, vec![("retry-after".to_owned(), retry_after.to_owned())], Vec::new())
    }

    /// A 200 with this JSON body.
    pub fn json(body: &str) -> Self {
        Self::Status(200, vec![("content-type".to_owned(), "application/json".to_owned())], body.as_bytes().to_vec())
    }

    /// This behaviour after a pause.
    pub fn after(self, pause: Duration) -> Self {
        Self::Slow(pause, Box::new(self))
    }

    /// Decided per request by `decide`.
    pub fn by_request(decide: impl Fn(&ReceivedHead) -> Behaviour + Send + Sync + 'static) -> Self {
        Self::ByRequest(Arc::new(decide))
    }

    /// Refuses the first `failures` attempts of every event with `status`, then takes it.
    pub fn failing_first(failures: u32, status: u16) -> Self {
        Self::by_request(move |head| if head.attempt <= failures { Self::status(status) } else { Self::Ok })
    }
}

impl fmt::Debug for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("Ok"),
            Self::Ignored => f.write_str("Ignored"),
            Self::Status(status, headers, body) => {
                write!(f, "Status({status}, {headers:?}, {} bytes)", body.len())
            }
            Self::Slow(pause, inner) => write!(f, "Slow({pause:?}, {inner:?})"),
            Self::Drip(pause, inner) => write!(f, "Drip({pause:?}, {inner:?})"),
            Self::Cut(bytes, inner) => write!(f, "Cut({bytes}, {inner:?})"),
            Self::Wire(bytes, taken) => write!(f, "Wire({} bytes, {taken})", bytes.len()),
            Self::Reset => f.write_str("Reset"),
            Self::Drop => f.write_str("Drop"),
            Self::Script(steps) => f.debug_tuple("Script").field(steps).finish(),
            Self::ByRequest(_) => f.write_str("ByRequest(…)"),
        }
    }
}

/// The present behaviour; a script is used up step by step.
#[derive(Debug)]
pub(super) enum Current {
    Always(Behaviour),
    Steps(VecDeque<Behaviour>),
}

impl Current {
    pub(super) fn of(behaviour: Behaviour) -> Self {
        match behaviour {
            Behaviour::Script(steps) => Self::Steps(steps.into()),
            other => Self::Always(other),
        }
    }

    pub(super) fn next(&mut self) -> Behaviour {
        match self {
            Self::Always(behaviour) => behaviour.clone(),
            Self::Steps(steps) => steps.pop_front().unwrap_or_default(),
        }
    }
}

/// A behaviour resolved to what happens on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) pause: Duration,
    pub(super) end: Ending,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Answer {
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
        /// Whether the event counts as taken over by the gateway.
        taken: bool,
        pace: Pace,
    },
    Wire {
        bytes: Vec<u8>,
        taken: bool,
    },
    Reset,
    Silence,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    AtOnce,
    PerByte(Duration),
    CutAfter(usize),
}

/// A decision may return another decision or a script; deeper than this it is a loop.
const RESOLVE_DEPTH: usize = 16;

impl Plan {
    pub(super) fn resolve(behaviour: Behaviour, head: &ReceivedHead) -> Self {
        let mut pause = Duration::ZERO;
        let mut pace = Pace::AtOnce;
        let mut behaviour = behaviour;
        for _ in 0..RESOLVE_DEPTH {
            behaviour = match behaviour {
                Behaviour::Slow(more, inner) => {
                    pause += more;
                    *inner
                }
                Behaviour::Drip(every, inner) => {
                    pace = Pace::PerByte(every);
                    *inner
                }
                Behaviour::Cut(bytes, inner) => {
                    pace = Pace::CutAfter(bytes);
                    *inner
                }
                Behaviour::ByRequest(decide) => decide(head),
                // A script inside another behaviour has no place to keep its progress: its first
                // step stands for it.
                Behaviour::Script(steps) => steps.into_iter().next().unwrap_or_default(),
                Behaviour::Wire(bytes, taken) => {
                    return Self { pause, end: Ending::Wire { bytes, taken } };
                }
                Behaviour::Reset => {
                    return Self { pause, end: Ending::Reset };
                }
                Behaviour::Drop => {
                    return Self { pause, end: Ending::Silence };
                }
                Behaviour::Ok => return Self::answer(pause, pace, 200, json(), PROCESSED, true),
                Behaviour::Ignored => {
                    return Self::answer(pause, pace, 200, json(), IGNORED, false);
                }
                Behaviour::Status(status, headers, body) => {
                    let taken = (200..300).contains(&status);
                    return Self::answer(pause, pace, status, headers, &body, taken);
                }
            };
        }
        let why = b"the gateway's behaviour does not come to an end";
        Self::answer(pause, pace, 500, Vec::new(), why, false)
    }

    fn answer(
        pause: Duration,
        pace: Pace,
        status: u16,
        headers: Vec<(String, String)>,
        body: &[u8],
        taken: bool,
    ) -> Self {
        // An answer that breaks off was never read by the client, so nothing was taken over as far
        // as the client may know.
        let taken = taken && !matches!(pace, Pace::CutAfter(_));
        Self { pause, end: Ending::Answer { status, headers, body: body.to_vec(), taken, pace } }
    }
}

fn json() -> Vec<(String, String)> {
    vec![("content-type".to_owned(), "application/json".to_owned())]
}
