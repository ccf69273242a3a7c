//! Asking the workers: a few processes of this same binary, started when they are needed, killed when they take too
//! long, and started again.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kit_journal::BodyDigest;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::Semaphore;

use super::wire::{ANSWER_HEAD, COMPLAINT_BYTES, answer_head, request};
use super::{Question, worker};

/// An answer that has not come after so many times the processor time a program may use does not come: the worker
/// is stopped, or the machine gives it no processor at all.
const WAITS: u32 = 20;
/// So often a question may cost its worker before the program is to blame.
const SUSPECTED: u32 = 3;
/// Questions that are suspected at a time; a few bytes each.
const SUSPECTS: usize = 1024;

/// What a program may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JqLimits {
    /// Processes at most.
    pub workers: usize,
    /// Seconds of processor time for one answer; up to one more is given.
    pub seconds: u32,
    /// Bytes of memory of one process, everything included.
    pub memory_bytes: u64,
    /// Bytes of one answer.
    pub answer_bytes: usize,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JqError {
    /// The program does not work for this event: the same the next time.
    #[error("jq: {0}")]
    Failed(String),
    /// No worker can be had; later there may be one.
    #[error("jq cannot be run: {0}")]
    Away(String),
}

impl JqError {
    /// The same error, and what it is about.
    #[must_use]
    pub(crate) fn with(self, told: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Failed(why) => Self::Failed(told(why)),
            away => away,
        }
    }
}

/// Runs programs.
#[derive(Debug)]
pub struct Jq {
    limits: JqLimits,
    idle: Mutex<Vec<Worker>>,
    permits: Semaphore,
    suspects: Mutex<Suspects>,
}

/// Questions whose worker ended, or said nothing, and nobody knows why: by a digest of program and document, how often.
type Suspects = HashMap<[u8; 32], u32>;

#[derive(Debug)]
struct Worker {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
}

/// How a worker ended before it answered.
enum Ended {
    /// By what it was asked to do.
    Of(String),
    /// By something else.
    Otherwise(String),
    /// Not at all: it says nothing, and has not used up its processor time.
    Silent(String),
}

impl Jq {
    /// Starts nothing yet.
    pub fn new(limits: JqLimits) -> Self {
        let permits = Semaphore::new(limits.workers.max(1));
        Self { limits, idle: Mutex::default(), permits, suspects: Mutex::default() }
    }

    /// What its programs may use.
    pub(crate) fn limits(&self) -> JqLimits {
        self.limits
    }

    /// Asks a program about one JSON document. Never hangs: programs before it are bounded as well.
    ///
    /// # Errors
    /// [`JqError::Failed`] for whatever the program does wrong, also that it takes too long, too much memory, or
    /// says too much. [`JqError::Away`] where no process can be started, and where it ends of something else or gets no
    /// processor: whoever is killed for memory is seldom the one that took it, and a machine that stands still says nothing
    /// of a program. Whatever that happens to `SUSPECTED` times is the program's fault after all.
    pub async fn ask(&self, question: Question, program: &str, input: &[u8]) -> Result<Vec<u8>, JqError> {
        let permit = self.permits.acquire().await;
        let _permit = permit.map_err(|_| JqError::Away("stopping".to_owned()))?;
        let request = request(question, self.limits.answer_bytes, program, input);
        let mut again = true;
        loop {
            let mut worker = self.worker()?;
            // Dropping a worker kills it: when it did not answer, and when nobody waits for the answer any more.
            match self.answer(&mut worker, &request).await {
                Ok(answer) => {
                    self.acquit(&request);
                    self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
                    return answer.map_err(JqError::Failed);
                }
                Err(Ended::Of(why)) => return Err(JqError::Failed(why)),
                // Somebody killed it while it was idle, or now: once more with a new one tells.
                Err(Ended::Otherwise(_)) if again => again = false,
                Err(Ended::Otherwise(why) | Ended::Silent(why)) => return Err(self.suspect(&request, why)),
            }
        }
    }

    /// What it means that nobody knows why there is no answer.
    fn suspect(&self, request: &[u8], why: String) -> JqError {
        let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        if suspects.len() >= SUSPECTS {
            suspects.clear();
        }
        let digest = BodyDigest::of(request).0;
        let times = suspects.entry(digest).or_default();
        *times += 1;
        if *times < SUSPECTED {
            return JqError::Away(why);
        }
        suspects.remove(&digest);
        JqError::Failed(why)
    }

    fn acquit(&self, request: &[u8]) {
        let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        if !suspects.is_empty() {
            suspects.remove(&BodyDigest::of(request).0);
        }
    }

    fn worker(&self) -> Result<Worker, JqError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.map_or_else(|| self.start(), Ok)
    }

    fn start(&self) -> Result<Worker, JqError> {
        let mut command = tokio::process::Command::from(command(self.limits));
        let mut child = command.kill_on_drop(true).spawn().map_err(|error| JqError::Away(error.to_string()))?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(stdin), Some(stdout)) => Ok(Worker { child, stdin, stdout }),
            _ => Err(JqError::Away("it has no pipes".to_owned())),
        }
    }

    async fn answer(&self, worker: &mut Worker, request: &[u8]) -> Result<Result<Vec<u8>, String>, Ended> {
        let most = self.limits.answer_bytes.max(COMPLAINT_BYTES);
        let exchange = async {
            worker.stdin.write_all(request).await?;
            let mut head = [0; ANSWER_HEAD];
            worker.stdout.read_exact(&mut head).await?;
            let (value, length) = answer_head(head);
            if length > most {
                return Err(std::io::ErrorKind::InvalidData.into());
            }
            let mut text = vec![0; length];
            worker.stdout.read_exact(&mut text).await?;
            let text = if value { Ok(text) } else { Err(String::from_utf8_lossy(&text).into_owned()) };
            Ok::<_, std::io::Error>(text)
        };
        let limit = Duration::from_secs(u64::from(self.limits.seconds)) * WAITS;
        match tokio::time::timeout(limit, exchange).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                // What it ended of is known a moment later; one that goes on without answering is killed by the drop.
                let ended = tokio::time::timeout(Duration::from_secs(1), worker.child.wait()).await;
                Err(match ended {
                    Ok(Ok(status)) => why(status, &self.limits),
                    _ => Ended::Otherwise(error.to_string()),
                })
            }
            Err(_) => Err(Ended::Silent(format!("no answer within {} s", limit.as_secs()))),
        }
    }
}

/// What the end of a worker says about what it was asked.
fn why(status: ExitStatus, limits: &JqLimits) -> Ended {
    match status.signal().and_then(Signal::from_named_raw) {
        Some(Signal::XCPU) => Ended::Of(format!("takes more than {} s of processor time", limits.seconds)),
        Some(Signal::ABORT) => Ended::Of(format!("takes more than {} bytes of memory", limits.memory_bytes)),
        Some(Signal::SEGV | Signal::BUS) => Ended::Of("calls itself too deeply".to_owned()),
        _ => Ended::Otherwise(format!("its process ended: {status}")),
    }
}

/// This binary once more, with nothing of this process: no variable, no file, no folder.
fn command(limits: JqLimits) -> std::process::Command {
    use std::os::unix::process::CommandExt as _;
    let program = PathBuf::from("/proc/self/exe");
    let arguments =
        [OsString::from(worker::COMMAND), limits.memory_bytes.to_string().into(), limits.seconds.to_string().into()];
    let mut command = std::process::Command::new(program);
    command.arg0("outrigger-jq").args(arguments).env_clear().current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// Compiles programs in a process of their own and says what is wrong with each. Blocks for as long as that takes.
pub fn check_programs(limits: JqLimits, programs: &[&str]) -> Vec<Result<(), String>> {
    programs.iter().map(|program| check_program(limits, program)).collect()
}

fn check_program(limits: JqLimits, program: &str) -> Result<(), String> {
    if program.len() > super::PROGRAM_BYTES {
        return Err(format!("is longer than {} bytes", super::PROGRAM_BYTES));
    }
    let cannot = |error: std::io::Error| format!("cannot be compiled, jq does not run here: {error}");
    let mut child = command(limits).spawn().map_err(cannot)?;
    let mut answer = Vec::new();
    let asked = child.stdin.take().map_or(Ok(()), |mut stdin| {
        // Closed after it: the worker answers and ends.
        stdin.write_all(&request(Question::Compiles, 0, program, b""))
    });
    let most = (ANSWER_HEAD + COMPLAINT_BYTES) as u64;
    let read = child.stdout.take().map_or(Ok(0), |stdout| stdout.take(most).read_to_end(&mut answer));
    let status = child.wait().map_err(cannot)?;
    match answer.split_first_chunk::<ANSWER_HEAD>() {
        Some((head, text)) => match answer_head(*head) {
            (true, _) => Ok(()),
            (false, _) => Err(String::from_utf8_lossy(text).into_owned()),
        },
        None => Err(match (asked.and(read), why(status, &limits)) {
            (_, Ended::Of(why) | Ended::Otherwise(why) | Ended::Silent(why)) => format!("cannot be compiled: {why}"),
        }),
    }
}
