//! The process that runs jq: no secret in its environment, no file open but its two pipes, a bound on memory and on
//! processor time. It ends when nobody asks any more.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, BufReader};
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::Question;
use super::program::Program;
use super::wire::{read_request, write_answer};

/// The hidden sub-command of every binary that may run jq.
pub const COMMAND: &str = "jq-worker";
/// Compiled programs that are kept; a table has fewer.
const PROGRAMS: usize = 256;

/// Runs the worker where the arguments ask for it; call it first in `main`, before anything else is done.
pub fn main_if_asked(arguments: &[OsString]) -> Option<ExitCode> {
    if arguments.get(1).is_none_or(|argument| argument != COMMAND) {
        return None;
    }
    let number = |at: usize| arguments.get(at)?.to_str()?.parse::<u64>().ok();
    let (Some(memory), Some(seconds)) = (number(2), number(3)) else { return Some(ExitCode::FAILURE) };
    Some(match run(memory, seconds) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

fn run(memory_bytes: u64, seconds: u64) -> io::Result<()> {
    let fixed = |limit: u64| Rlimit { current: Some(limit), maximum: Some(limit) };
    // Its memory holds bodies.
    setrlimit(Resource::Core, fixed(0))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    setrlimit(Resource::As, fixed(memory_bytes))?;
    setrlimit(Resource::Fsize, fixed(0))?;
    // The three that are open stay open.
    setrlimit(Resource::Nofile, fixed(3))?;
    let mut programs: HashMap<String, Program> = HashMap::new();
    let (mut from, mut to) = (BufReader::new(io::stdin().lock()), io::stdout().lock());
    while let Some(request) = read_request(&mut from)? {
        limit_time(seconds)?;
        let answer = match programs.get(&request.program) {
            Some(program) => answer(program, request.question, &request.input, request.answer_bytes),
            None => Program::compile(&request.program).and_then(|program| {
                let answer = answer(&program, request.question, &request.input, request.answer_bytes);
                if programs.len() >= PROGRAMS {
                    programs.clear();
                }
                programs.insert(request.program, program);
                answer
            }),
        };
        write_answer(&mut to, &answer)?;
    }
    Ok(())
}

fn answer(program: &Program, question: Question, input: &[u8], answer_bytes: usize) -> Result<Vec<u8>, String> {
    match question {
        Question::Compiles => Ok(Vec::new()),
        question => program.run(question, input, answer_bytes),
    }
}

/// The kernel ends this process when it has used that much more processor time: a bound that holds when whoever asks
/// is gone, and that waiting for the processor does not use up. The kernel counts whole seconds.
fn limit_time(seconds: u64) -> io::Result<()> {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let used = Duration::new(u64::try_from(used.tv_sec).unwrap_or(0), 0).as_secs();
    setrlimit(Resource::Cpu, Rlimit { current: Some(used + 1 + seconds), maximum: None })?;
    Ok(())
}
