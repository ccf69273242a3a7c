//! The walkthroughs, typed in: their blocks are run in one bash, as a user other than root, and must show what the page
//! says. Nothing is run that is not on the page, but for where its variables point.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use kit_workbench::database::server_user;
use kit_workbench::scratch::{Scratch, free_ports};
use outrigger_tests::binaries::{command_line, daemon};
use rustix::process::{Pid, Signal, kill_process_group};

/// How long a block may take, and how long it is asked again for what it is to show: a broker that starts on a busy machine.
const BLOCK_DEADLINE: Duration = Duration::from_secs(120);
/// How long what a page has left behind may take to end when it is asked to.
const END_DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);

/// A block of commands on a page.
#[derive(Debug, Default, PartialEq, Eq)]
struct Block {
    /// Where it begins.
    line: usize,
    commands: String,
    /// It only looks, and may do so again.
    is_look: bool,
    /// What it shows, where the page says.
    shows: Option<String>,
}

/// The blocks of a page: `sh` is run once, `sh look` until it shows what it is to show, `text` is what the block before
/// it shows. Another kind is a mistake: it would not be run.
fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let Some(kind) = line.strip_prefix("```") else { continue };
        let inner: Vec<&str> =
            lines.by_ref().map(|(_, line)| line).take_while(|line| !line.starts_with("```")).collect();
        let inner = inner.join("\n") + "\n";
        match kind {
            "sh" | "sh look" => {
                blocks.push(Block { line: number + 1, commands: inner, is_look: kind != "sh", shows: None });
            }
            "text" => {
                let before = blocks.last_mut().filter(|block| block.shows.is_none());
                before.unwrap_or_else(|| panic!("line {}: nothing shows this", number + 1)).shows = Some(inner);
            }
            other => panic!("line {}: a block of kind {other:?} is not run", number + 1),
        }
    }
    blocks
}

/// Whether these lines are the promised ones. White space counts as one space, empty lines as none, and `…` stands for
/// anything within a line.
fn is_as_promised(shown: &str, promised: &str) -> bool {
    let lines = |text: &str| -> Vec<String> {
        let plain = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        plain.filter(|line| !line.is_empty()).collect()
    };
    let (shown, promised) = (lines(shown), lines(promised));
    shown.len() == promised.len() && shown.iter().zip(&promised).all(|(shown, promised)| fits(shown, promised))
}

fn fits(shown: &str, promised: &str) -> bool {
    let Some((first, rest)) = promised.split_once('…') else { return shown == promised };
    let Some(mut left) = shown.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('…').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.ends_with(last)
}

/// One bash with everything that is started in it, in a process group of its own. Dropping it ends them all.
struct Terminal {
    scratch: Scratch,
    bash: Child,
    /// What it says itself: a line for each block that has ended.
    ended: Receiver<String>,
}

impl Terminal {
    fn open(variables: &[(&str, String)]) -> Self {
        let scratch = Scratch::new("walkthrough").unwrap();
        // Copies: where the build lies need not be open to the other user.
        let programs = scratch.file("bin");
        let home = scratch.file("home");
        for folder in [&programs, &home] {
            fs::create_dir(folder).unwrap();
        }
        for program in [command_line().unwrap(), daemon("lago-webhook-processor").unwrap()] {
            fs::copy(&program, programs.join(program.file_name().unwrap())).unwrap();
        }
        hand_over(scratch.path());
        hand_over(&programs);
        hand_over(&home);
        let mut command = Command::new("/bin/bash");
        command.env_clear().env("PATH", format!("{}:/usr/bin:/bin", programs.display())).env("HOME", &home);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        command.current_dir(&home).stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        if let Some((user, group)) = server_user() {
            command.uid(user).gid(group);
        }
        let mut bash = command.spawn().unwrap();
        let (say, ended) = channel();
        let output = BufReader::new(bash.stdout.take().unwrap());
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| say.send(line)));
        let mut terminal = Self { scratch, bash, ended };
        // Where this test is killed, its end of bash's input is closed, and what was started goes with bash.
        terminal.type_in("trap 'trap \"\" TERM; kill -TERM 0' EXIT");
        terminal
    }

    fn type_in(&mut self, line: &str) {
        writeln!(self.bash.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Runs a block and returns what it has shown.
    fn run(&mut self, block: &Block) -> String {
        let file = |kind: &str| self.scratch.file(&format!("{:03}.{kind}", block.line));
        let (script, out, err) = (file("sh"), file("out"), file("err"));
        fs::write(&script, &block.commands).unwrap();
        hand_over(&script);
        let files = format!("</dev/null >'{}' 2>'{}'", out.display(), err.display());
        let sourced = format!(". '{}' {files}", script.display());
        // The first command that fails ends a block; what looks changes nothing, so it may fail and be asked again.
        self.type_in(&match block.is_look {
            true => format!("(set -e; {sourced}); echo ended"),
            false => format!("set -e; {sourced}; set +e; echo ended"),
        });
        let answer = self.ended.recv_timeout(BLOCK_DEADLINE);
        let shown = fs::read_to_string(&out).unwrap_or_default();
        assert!(
            answer.is_ok(),
            "line {}: {answer:?}\n{}\nit shows\n{shown}\n{}",
            block.line,
            block.commands,
            fs::read_to_string(&err).unwrap_or_default()
        );
        shown
    }

    fn group(&self) -> Pid {
        Pid::from_child(&self.bash)
    }

    /// What runs in bash's group beside it.
    fn others(&self) -> Vec<String> {
        let group = self.group().as_raw_nonzero().get();
        let mut others = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let pid = entry.file_name().to_string_lossy().parse::<i32>().ok().filter(|pid| *pid != group);
            let stat = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok());
            // The name may hold anything; behind its last parenthesis come state, parent and group. A zombie has ended.
            let Some((head, tail)) = stat.as_deref().and_then(|stat| stat.rsplit_once(')')) else { continue };
            let fields: Vec<&str> = tail.split_whitespace().collect();
            if fields[2] == group.to_string() && fields[0] != "Z" {
                others.push(head.to_owned());
            }
        }
        others
    }

    fn others_end(&self) -> bool {
        let deadline = Instant::now() + END_DEADLINE;
        while !self.others().is_empty() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Not waited for before the end: so long its id, which is the group's, is nobody else's.
        let group = self.group();
        let _ = kill_process_group(group, Signal::TERM);
        if !self.others_end() {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.bash.kill();
        let _ = self.bash.wait();
    }
}

fn hand_over(path: &Path) {
    if let Some((user, group)) = server_user() {
        chown(path, Some(user), Some(group)).unwrap();
    }
}

/// Types in a whole page.
fn walk(page: &str, variables: &[(&str, String)]) {
    let mut terminal = Terminal::open(variables);
    for block in blocks(page) {
        let deadline = Instant::now() + BLOCK_DEADLINE;
        loop {
            let shown = terminal.run(&block);
            let Some(promised) = &block.shows else { break };
            if is_as_promised(&shown, promised) {
                break;
            }
            assert!(
                block.is_look && Instant::now() < deadline,
                "line {}:\n{}\nis to show\n{promised}\nand shows\n{shown}",
                block.line,
                block.commands
            );
            std::thread::sleep(POLL);
        }
    }
    assert!(terminal.others_end(), "left behind: {:?}", terminal.others());
    let files: Vec<_> = fs::read_dir(terminal.scratch.file("home")).unwrap().collect();
    assert!(files.is_empty(), "left behind: {files:?}");
}

#[test]
fn two_replicas_one_postgresql_and_one_rabbitmq_do_what_the_page_says() {
    let page = crate::read("docs/walkthroughs/two-replicas.md");
    let ports: [u16; 9] = free_ports().unwrap();
    let [database, broker, node, mapper, listeners @ ..] = ports.map(|port| port.to_string());
    let [gateway, webhooks_1, admin_1, webhooks_2, admin_2] = listeners.map(|port| format!("127.0.0.1:{port}"));
    let variables = [
        ("DATABASE_PORT", database),
        ("BROKER_PORT", broker),
        ("BROKER_NODE_PORT", node),
        ("BROKER_MAPPER_PORT", mapper),
        ("GATEWAY", gateway),
        ("WEBHOOKS_1", webhooks_1),
        ("ADMIN_1", admin_1),
        ("WEBHOOKS_2", webhooks_2),
        ("ADMIN_2", admin_2),
    ];
    for (name, _) in &variables {
        assert!(page.contains(&format!("${{{name}:=")), "the page does not introduce {name}");
    }

    walk(&page, &variables);
}

#[test]
fn a_page_is_taken_apart() {
    let page = "# A\n```sh\na\nb\n```\n\n```text\nc\n```\n```sh look\nd\n```\n";

    let found = blocks(page);

    let first = Block { line: 2, commands: "a\nb\n".to_owned(), is_look: false, shows: Some("c\n".to_owned()) };
    let second = Block { line: 10, commands: "d\n".to_owned(), is_look: true, shows: None };
    assert_eq!(found, [first, second]);
}

#[test]
fn what_differs_from_the_page_is_noticed() {
    assert!(is_as_promised(" sink   delivered\n ──────\n gateway   5   –  \n", "sink delivered\n───…\ngateway 5 –\n"));
    assert!(is_as_promised("200 k 1.5 ms {\"id\":\"x\"}\n", "200 … ms {\"id\":\"…\"}"));
    for (shown, promised) in [
        ("gateway 4", "gateway 5"),
        ("gateway 5 extra", "gateway 5"),
        ("a\nb", "a"),
        ("a", "a\nb"),
        ("", "…"),
        ("200 k ms {\"duplicate\":true}", "200 … ms {\"duplicate\":false}"),
        ("aba", "ab…ba"),
    ] {
        assert!(!is_as_promised(shown, promised), "{shown:?} is not {promised:?}");
    }
}
