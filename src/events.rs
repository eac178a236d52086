// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! Events: what the kernel side reports, printed to stdout as text or JSON.

use std::cell::RefCell;
use std::env;
use std::io::{self, IsTerminal};
use std::mem::{self, offset_of};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use chrono::{DateTime, Local, SecondsFormat, Utc};
use libbpf_rs::{MapCore, RingBuffer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::{Errno, write};
use rustix::stdio::stdout;
use serde::Serialize;
use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use crate::guard::shared::{self, named};
use crate::guard::{Clock, event, reports};
use crate::output::printable;
use crate::rules::{Rule, Values};

/// Events that are read at once. The next ones are read when these are written.
const BATCH: usize = 256;
/// Batches before the caller may look after something else.
const BATCHES: usize = 16;
/// PIPE_BUF: a pipe that has room at all takes as much without blocking.
const CHUNK: usize = 4096;
/// How long a reader may take at the end.
const PATIENCE: Duration = Duration::from_secs(2);

/// The columns of a name and a PID: what keeps the longest line of text under 120.
const TASK_WIDTH: usize = 16;

pub struct Events {
    out: OwnedFd,
    ring: RingBuffer<'static>,
    /// Read from the ring.
    read: Rc<RefCell<Vec<event>>>,
    printer: Printer,
    /// To be written.
    lines: Vec<u8>,
    undelivered: u64,
    closed: bool,
}

impl Events {
    /// Reads `events`, a ring buffer of reports.
    pub fn open(events: &dyn MapCore, clock: Clock, floor: i32, json: bool) -> Result<Self> {
        let read = Rc::new(RefCell::new(Vec::with_capacity(BATCH)));
        let taken = read.clone();
        Ok(Self {
            out: output().context("cannot duplicate stdout")?,
            ring: reports(events, move |event| taken.borrow_mut().push(*event))?,
            read,
            printer: Printer::new(clock, floor, json),
            lines: Vec::new(),
            undelivered: 0,
            closed: false,
        })
    }

    /// Readable where there are events.
    pub fn ring(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as the ring buffer.
        unsafe { BorrowedFd::borrow_raw(self.ring.epoll_fd()) }
    }

    /// Writable where the reader takes something.
    pub fn output(&self) -> BorrowedFd<'_> {
        self.out.as_fd()
    }

    /// Whether the reader has to take something before there can be more.
    pub fn is_blocked(&self) -> bool {
        !self.lines.is_empty()
    }

    /// How many events were read and could not be printed.
    pub fn undelivered(&self) -> u64 {
        self.undelivered
    }

    /// Prints what is there, as far as the reader takes it without waiting. Says whether there was
    /// anything.
    pub fn print(&mut self) -> Result<bool, Errno> {
        if self.closed {
            self.discard();
            return Ok(false);
        }
        for batch in 0..BATCHES {
            if !self.is_blocked() && !self.read() {
                return Ok(batch > 0);
            }
            if !self.write(Duration::ZERO)? {
                break;
            }
        }
        Ok(true)
    }

    /// Prints what is left, unless the reader takes too long, and counts what is not printed.
    pub fn finish(&mut self) -> Result<(), Errno> {
        let start = Instant::now();
        let mut result = Ok(true);
        while !self.closed && result.is_ok() {
            if !self.is_blocked() && !self.read() {
                break;
            }
            let left = PATIENCE.saturating_sub(start.elapsed());
            result = self.write(left);
            if result == Ok(false) && left.is_zero() {
                break;
            }
        }
        self.discard();
        result.map(|_| ())
    }

    /// Prints what was read, and leaves the rest to who reads the same events next.
    pub fn leave(&mut self) -> Result<(), Errno> {
        let result = self.write(PATIENCE);
        self.give_up();
        result.map(|_| ())
    }

    /// Prints no more: the reader is gone.
    pub fn close(&mut self) {
        self.closed = true;
        self.discard();
    }

    /// Makes lines of a batch of events; false where there are none.
    fn read(&mut self) -> bool {
        self.ring.consume_raw_n(BATCH);
        let mut events = self.read.borrow_mut();
        self.printer.look_at_the_clock();
        for event in events.iter() {
            self.lines
                .extend_from_slice(self.printer.line(event).as_bytes());
        }
        let any = !events.is_empty();
        events.clear();
        any
    }

    /// Counts the lines that cannot be printed.
    fn give_up(&mut self) {
        self.undelivered += self.lines.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.lines.clear();
    }

    /// Counts what cannot be printed.
    fn discard(&mut self) {
        self.give_up();
        while self.ring.consume_raw_n(BATCH) > 0 {
            let mut events = self.read.borrow_mut();
            self.undelivered += events.len() as u64;
            events.clear();
        }
    }

    /// Writes all lines, or returns false where the reader has not taken any for so long.
    fn write(&mut self, patience: Duration) -> Result<bool, Errno> {
        let mut written = 0;
        let result = loop {
            let rest = &self.lines[written..];
            if rest.is_empty() {
                break Ok(true);
            }
            let mut fds = [PollFd::new(&self.out, PollFlags::OUT)];
            let timeout = Timespec::try_from(patience).unwrap_or_default();
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) | Err(Errno::INTR) => break Ok(false),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
            match write(&self.out, &rest[..whole_lines(rest)]) {
                Ok(length) => written += length,
                Err(Errno::INTR | Errno::AGAIN) => break Ok(false),
                Err(error) => break Err(error),
            }
        };
        self.lines.drain(..written);
        result
    }
}

/// A pipe or a terminal is opened anew: others may fill it after it was found writable, and that it
/// does not block is not to be changed for them.
fn output() -> io::Result<OwnedFd> {
    let out = stdout();
    let is_pipe =
        fstat(out).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
    if is_pipe || io::stdout().is_terminal() {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        // fails where nobody reads any more
        if let Ok(own) = open("/proc/self/fd/1", flags, Mode::empty()) {
            return Ok(own);
        }
    }
    out.try_clone_to_owned()
}

/// How much to write at once, so that nobody who writes to the same pipe comes in between a line,
/// and the last one is never cut.
fn whole_lines(lines: &[u8]) -> usize {
    let most = lines.len().min(CHUNK);
    let end = lines[..most].iter().rposition(|byte| *byte == b'\n');
    end.map_or(most, |end| end + 1)
}

struct Printer {
    clock: Clock,
    floor: i32,
    json: bool,
    colour: bool,
    /// What the time of day is ahead of the kernel's clock, ns.
    ahead: i64,
    /// The last second that was printed, and how, as most events are in it too.
    second: i64,
    printed: String,
    /// The last event, and its line, as a flood is of events that differ by nanoseconds alone.
    last: event,
    line: String,
}

#[derive(Serialize)]
struct Json<'a> {
    time: String,
    verdict: &'a str,
    rule: Option<&'a str>,
    hook: &'a str,
    call: Option<&'a str>,
    target: Task,
    caller: Caller,
    asked: Option<Value>,
    had: Option<Value>,
    floor: i32,
}

#[derive(Serialize)]
struct Task {
    pid: Option<i32>,
    tid: Option<i32>,
    comm: String,
}

#[derive(Serialize)]
struct Caller {
    #[serde(flatten)]
    task: Task,
    uid: u32,
    exe: String,
}

impl Printer {
    fn new(clock: Clock, floor: i32, json: bool) -> Self {
        let colour = io::stdout().is_terminal()
            && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            clock,
            floor,
            json,
            colour,
            ahead: 0,
            second: i64::MIN,
            printed: String::new(),
            last: event::default(),
            line: String::new(),
        }
    }

    /// Both clocks are read at once, before a batch of events.
    fn look_at_the_clock(&mut self) {
        let now = Utc::now().timestamp_nanos_opt().unwrap_or_default();
        self.ahead = now - self.clock.age(0);
    }

    fn line(&mut self, event: &event) -> &str {
        let time = event.time.cast_signed() + self.ahead;
        let second = time.div_euclid(1_000_000_000);
        // text has no nanoseconds
        if !self.json && second == self.second && but_time(event) == but_time(&self.last) {
            return &self.line;
        }
        if second != self.second {
            self.second = second;
            let time = DateTime::from_timestamp(second, 0).unwrap_or_default();
            let time = time.with_timezone(&Local);
            self.printed = time.to_rfc3339_opts(SecondsFormat::Secs, false);
        }
        self.last = *event;
        let mut line = mem::take(&mut self.line);
        line.clear();
        match self.json {
            true => self.json(event, time.rem_euclid(1_000_000_000), &mut line),
            false => self.text(event, &mut line),
        }
        line.push('\n');
        self.line = line;
        &self.line
    }

    fn text(&self, event: &event, line: &mut String) {
        let (verdict, colour) = verdict_of(event);
        *line += &self.printed;
        let (on, off) = match self.colour {
            true => (colour, "\x1b[m"),
            false => ("", ""),
        };
        for part in [" ", on, verdict, &"       "[verdict.len()..], off, " "] {
            *line += part;
        }
        cell(&event.caller, line);
        let rule = Rule::by_bit(event.rule.0);
        // who calls is the target
        if !rule.is_some_and(|rule| rule.of_caller) {
            *line += " on ";
            cell(&event.target, line);
        }
        *line += " ";
        *line += call_of(event).unwrap_or_else(|| hook_of(event));
        *line += " ";
        if let Some(rule) = rule {
            *line += &(rule.change)(had(event), asked(event), self.floor);
        }
    }

    fn json(&self, event: &event, nanoseconds: i64, line: &mut String) {
        // up to the second, and the offset of the time zone
        let (time, offset) = self.printed.split_at(self.printed.len().min(19));
        let time = format!("{time}.{nanoseconds:09}{offset}");
        let rule = Rule::by_bit(event.rule.0);
        let value = |values: &[i64]| rule.map(|rule| (rule.value)(values));
        let json = Json {
            time,
            verdict: verdict_of(event).0,
            rule: rule.map(|rule| rule.name),
            hook: hook_of(event),
            call: call_of(event),
            target: task(&event.target),
            caller: Caller {
                task: task(&event.caller),
                uid: event.uid,
                exe: name(&event.exe),
            },
            asked: asked(event).and_then(value),
            had: had(event)
                .filter(|_| rule.is_some_and(|rule| !rule.of_caller))
                .and_then(value),
            floor: self.floor,
        };
        // fails only for maps with other keys than strings
        let json = serde_json::to_string(&json).unwrap_or_default();
        for c in json.chars() {
            match c {
                // JSON takes these as they are, a terminal takes them for commands
                '\u{7f}'..='\u{9f}' => *line += &format!("\\u{:04x}", u32::from(c)),
                c => line.push(c),
            }
        }
    }
}

/// All that is behind the time.
fn but_time(event: &event) -> &[u8] {
    // SAFETY: numbers without padding.
    let bytes = unsafe { plain::as_bytes(event) };
    &bytes[offset_of!(event, verdict)..]
}

fn verdict_of(event: &event) -> (&'static str, &'static str) {
    match event.verdict {
        shared::verdict::DENIED => ("denied", "\x1b[31m"),
        shared::verdict::AUDITED => ("audited", "\x1b[33m"),
        _ => ("allowed", "\x1b[32m"),
    }
}

fn hook_of(event: &event) -> &'static str {
    match event.hook {
        shared::hook::HOOK_TASK_SETNICE => "task_setnice",
        shared::hook::HOOK_TASK_SETSCHEDULER => "task_setscheduler",
        shared::hook::HOOK_FILE_MPROTECT => "file_mprotect",
        shared::hook::HOOK_SOCKET_CREATE => "socket_create",
        _ => "task_setioprio",
    }
}

fn call_of(event: &event) -> Option<&'static str> {
    Some(match event.call {
        shared::call::CALL_NICE => "nice",
        shared::call::CALL_SETPRIORITY => "setpriority",
        shared::call::CALL_AUTOGROUP => "autogroup",
        shared::call::CALL_SETPARAM => "sched_setparam",
        shared::call::CALL_SETSCHEDULER => "sched_setscheduler",
        shared::call::CALL_SETATTR => "sched_setattr",
        shared::call::CALL_IOPRIO_SET => "ioprio_set",
        shared::call::CALL_MPROTECT => "mprotect",
        shared::call::CALL_PKEY_MPROTECT => "pkey_mprotect",
        shared::call::CALL_SOCKET => "socket",
        shared::call::CALL_SOCKETPAIR => "socketpair",
        _ => return None,
    })
}

fn asked(event: &event) -> Values<'_> {
    (event.known != 0).then_some(&event.asked)
}

/// What the target had, as far as it is known who that is.
fn had(event: &event) -> Values<'_> {
    (event.target.comm[0] != 0 || event.target.pid != 0).then_some(&event.had)
}

/// Adds a name and a PID, cut to their columns, and filled up.
fn cell(task: &named, line: &mut String) {
    let pid = seen(task.pid).map_or("?".into(), |pid| pid.to_string());
    let mut comm = printable(text(&task.comm));
    let room = TASK_WIDTH - 1 - pid.len();
    // a column is not a char: some take two
    let mut width = comm.width();
    if width > room {
        while comm.width() > room - 1 {
            comm.pop();
        }
        comm.push('…');
        width = comm.width();
    }
    for part in [&comm, " ", &pid, &" ".repeat(room - width)] {
        *line += part;
    }
}

fn task(task: &named) -> Task {
    Task {
        pid: seen(task.pid),
        tid: seen(task.tid),
        comm: name(&task.comm),
    }
}

/// A PID of lsm-nice's namespace; a task outside of it has none.
fn seen(pid: i32) -> Option<i32> {
    (pid != 0).then_some(pid)
}

/// The bytes before the NUL.
pub fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn name(bytes: &[u8]) -> String {
    String::from_utf8_lossy(text(bytes)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::RULES;

    fn line(event: &event, json: bool) -> String {
        let mut printer = Printer::new(Clock::default(), -20, json);
        printer.colour = false;
        let line = printer.line(event);
        line.strip_suffix('\n').expect("a line").into()
    }

    fn named(pid: i32, comm: &[u8]) -> named {
        let mut named = named {
            pid,
            tid: pid,
            ..named::default()
        };
        named.comm[..comm.len()].copy_from_slice(comm);
        named
    }

    /// Whatever the kernel side may report of a rule, or nearly so.
    fn events() -> Vec<event> {
        use shared::{call as c, hook as h, verdict as v};
        let classes = [0, 1, 2, 3, 5, 6, 7];
        let values = |bit: u32, asked: i64| match bit {
            1 => [asked.rem_euclid(40) - 20, 0, 0],
            2 => match classes[asked.rem_euclid(7) as usize] {
                real_time @ 1..=2 => [real_time, 99, 0],
                class => [class, 0, 0],
            },
            4 => [asked.rem_euclid(4) << 13 | 7, 0, 0],
            8 | 16 => [0x7fff_ffff_f000 - asked, 0x7fff_ffff_f000, asked % 16],
            _ => [asked % 46, asked % 11, asked],
        };
        let setattr = (h::HOOK_TASK_SETSCHEDULER, c::CALL_SETATTR);
        let doors = [
            (1, (h::HOOK_TASK_SETNICE, c::CALL_SETPRIORITY)),
            (1, (h::HOOK_TASK_SETNICE, c::CALL_NICE)),
            (1, (h::HOOK_TASK_SETNICE, c::CALL_AUTOGROUP)),
            (1, setattr),
            (2, setattr),
            (2, (h::HOOK_TASK_SETSCHEDULER, c::CALL_SETSCHEDULER)),
            (2, (h::HOOK_TASK_SETSCHEDULER, c::CALL_SETPARAM)),
            (4, (h::HOOK_TASK_SETIOPRIO, c::CALL_IOPRIO_SET)),
            (8, (h::HOOK_FILE_MPROTECT, c::CALL_MPROTECT)),
            (16, (h::HOOK_FILE_MPROTECT, c::CALL_PKEY_MPROTECT)),
            (32, (h::HOOK_SOCKET_CREATE, c::CALL_SOCKET)),
            (64, (h::HOOK_SOCKET_CREATE, c::CALL_SOCKETPAIR)),
        ];
        let tasks = [
            named(4_194_303, b"fifteen letters"),
            named(1, b""),
            named(0, b"gone"),
            named(
                4_194_303,
                "\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}".as_bytes(),
            ),
            named(
                4_194_303,
                "\u{4e2d}\u{6587}\u{4e2d}\u{6587}\u{4e2d}".as_bytes(),
            ),
        ];
        let mut events = Vec::new();
        for (bit, (on_hook, by)) in doors {
            for decided in [v::DENIED, v::AUDITED, v::ALLOWED] {
                for value in 0..40 {
                    for task in &tasks {
                        let asked = values(bit, value);
                        // sched_setscheduler(2) and sched_setparam(2) cannot ask for DEADLINE
                        if bit == 2 && asked[0] == 6 && by != c::CALL_SETATTR {
                            continue;
                        }
                        events.push(event {
                            verdict: decided,
                            rule: shared::rule(bit),
                            hook: on_hook,
                            call: by,
                            target: *task,
                            caller: tasks[0],
                            known: (value % 5 != 4).into(),
                            asked,
                            had: match values(bit, -value) {
                                _ if bit == 2 => [6, 0],
                                [first, second, _] => [first, second],
                            },
                            ..event::default()
                        });
                    }
                }
            }
        }
        assert!(
            RULES
                .iter()
                .all(|row| doors.iter().any(|(bit, _)| *bit == row.bit))
        );
        events
    }

    #[test]
    fn no_line_of_text_has_120_columns() {
        for event in &events() {
            let line = line(event, false);
            assert!(line.width() < 120, "{}: {line}", line.width());
        }
    }

    #[test]
    fn a_line_is_of_its_event_whatever_was_printed_before() {
        let mut printer = Printer::new(Clock::default(), -20, false);
        printer.colour = false;
        for mut event in events() {
            for later in [0, 1, 1_000_000_000] {
                event.time = later;
                let own = line(&event, false);
                assert_eq!(printer.line(&event), own + "\n");
            }
            event.time += 1;
            event.caller.pid += 1;
            let own = line(&event, false);
            assert_eq!(printer.line(&event), own + "\n");
        }
    }

    #[test]
    fn the_columns_of_all_lines_are_the_same() {
        let columns = |event: &event| {
            let line = line(event, false);
            let before = |part: &str| line[..line.find(part).expect("a column")].width();
            let call = call_of(event).expect("a call");
            (before(" on "), before(&format!(" {call} ")))
        };
        let mut events = events();
        events.retain(|event| Rule::by_bit(event.rule.0).is_some_and(|rule| !rule.of_caller));
        let first = columns(&events[0]);
        assert!(events.iter().all(|event| columns(event) == first));
    }

    #[test]
    fn names_and_pids_are_cut_to_their_column() {
        for (task, expected) in [
            (named(12, b"live"), "live 12"),
            (named(0, b"live"), "live ?"),
            (
                named(4_194_303, b"fifteen letters"),
                "fifteen\u{2026} 4194303",
            ),
            (named(42, b"\x1b[2J\n\xff"), "?[2J?? 42"),
            (named(7, b""), " 7"),
        ] {
            let mut line = String::new();
            cell(&task, &mut line);
            assert_eq!(line.trim_end(), expected);
        }
    }

    #[test]
    fn what_is_not_known_is_null_or_a_question_mark() {
        let mut event = events()[0];
        event.rule = shared::rule(2);
        event.call = shared::call::CALL_SETATTR;
        event.hook = shared::hook::HOOK_TASK_SETSCHEDULER;
        event.target = named::default();
        event.known = 0;
        let text = line(&event, false);
        assert!(text.ends_with(" sched_setattr ? -> ?"), "{text}");
        let json: Value = serde_json::from_str(&line(&event, true)).expect("JSON");
        for field in ["asked", "had"] {
            assert_eq!(json[field], Value::Null);
        }
        assert_eq!(json["target"]["pid"], Value::Null);
        assert_eq!(json["target"]["tid"], Value::Null);
    }

    #[test]
    fn another_priority_of_the_same_class_is_a_change() {
        let mut event = events()[0];
        event.rule = shared::rule(2);
        for (had, asked, change) in [
            ([1, 10], [1, 5, 0], "SCHED_FIFO 10 -> SCHED_FIFO 5"),
            ([2, 10], [1, 5, 0], "SCHED_RR -> SCHED_FIFO"),
            ([1, 10], [1, -1, 0], "SCHED_FIFO 10 -> SCHED_FIFO"),
        ] {
            (event.had, event.asked) = (had, asked);
            assert!(line(&event, false).ends_with(change), "{change}");
        }
    }

    #[test]
    fn what_is_written_at_once_ends_with_a_line() {
        assert_eq!(whole_lines(b"one\ntwo\nthr"), 8);
        assert_eq!(whole_lines(b"one"), 3);
        let long = [[b'x'; CHUNK - 2].as_slice(), b"\nyyy\n"].concat();
        assert_eq!(whole_lines(&long), CHUNK - 1);
    }
}
