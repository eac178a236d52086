// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! What lsm-nice says of the requests that it judges: events, counters, audit.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use libc::{PRIO_PROCESS, PRIO_USER};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, Uid, getpid, setpriority_pgrp, setpriority_user};
use rustix::thread::gettid;
use serde_json::{Value, json};

use crate::agent::{Agent, this_binary};
use crate::bpf::Present;
use crate::cgroups::Cgroup;
use crate::doors::with_session;
use crate::helpers::{
    Counts, Lsm, Report, accepts, child_of, eventually, has_task_storage, heavy, pid, refuses, run,
    set_nice, status_field,
};
use crate::sys::{
    Attr, BATCH, Compat, FIFO, IO_BE, IO_PGRP, IO_PROCESS, IO_RT, Native, OTHER, Outside,
    RESET_ON_FORK, RR, Within, autogroup_file, io,
};

tests!(
    every_door_is_reported_with_who_asked_whom_for_what,
    a_real_time_task_that_is_given_another_priority_is_reported_with_both,
    a_thread_is_named_beside_its_process,
    a_caller_is_named_by_its_uid,
    a_caller_that_has_exited_is_named_by_its_executable,
    an_executable_with_a_strange_name_is_named_all_the_same,
    another_user_is_named_for_each_of_its_processes,
    who_is_not_to_be_seen_from_a_container_has_no_pid,
    a_caller_in_a_container_beside_has_no_pid,
    a_container_is_seen_from_outside_by_the_pids_of_outside,
    the_time_is_right_inside_a_time_namespace,
    text_is_one_line_an_event_in_columns,
    no_byte_of_a_name_does_harm,
    colour_is_for_terminals_alone,
    audit_refuses_nothing_and_reports_what_a_guard_refuses,
    audit_holds_for_every_kind_of_target,
    v_reports_what_is_allowed_for_guarded_processes_alone,
    q_prints_no_event_and_makes_no_ring_buffer,
    sigusr1_prints_one_summary_and_the_guard_stays,
    a_reader_that_reads_nothing_holds_nobody_up,
    a_terminal_that_nobody_reads_holds_nobody_up,
    a_reader_that_has_gone_is_named_once_and_the_guard_stays,
    a_reader_that_goes_as_the_guard_ends_loses_no_count,
    a_full_disk_is_named_once_and_the_guard_stays,
    a_file_that_may_not_grow_is_named_once_and_the_guard_stays,
    lines_stay_whole_where_a_command_writes_between_them,
    an_event_is_read_at_once_when_idle,
    a_flood_is_counted_to_the_last_and_eats_no_memory,
);

const CONTAINER: [&str; 4] = ["unshare", "--pid", "--fork", "--mount-proc"];

/// The requests of a test that are refused, each with its event and when it was made.
#[derive(Default)]
struct Story(Vec<(DateTime<Utc>, DateTime<Utc>, Value)>);

impl Story {
    #[track_caller]
    fn refused(&mut self, event: Value, call: impl FnOnce() -> Result<(), Errno>) {
        let before = Utc::now();
        let result = call();
        assert_eq!(result, Err(Errno::PERM), "{event}");
        self.0.push((before, Utc::now(), event));
    }

    /// Ends the guard, which must have told the story, no more and no less.
    #[track_caller]
    fn must_be_told(self, lsm: Lsm) {
        let report = lsm.end();
        report.counted(self.0.len() as u64);
        let told = events(&report);
        assert_eq!(told.len(), self.0.len(), "{report}");
        for ((before, after, expected), mut event) in self.0.into_iter().zip(told) {
            let time = event["time"].take();
            let time = time.as_str().expect("a time");
            // the clocks are read one after the other, maybe not at once
            let leeway = TimeDelta::milliseconds(50);
            let at = DateTime::parse_from_rfc3339(time).expect("a time of RFC 3339");
            assert!(
                (before - leeway..=after + leeway).contains(&at.to_utc()),
                "{time} is not from {before} to {after}: {expected}"
            );
            let fraction = time.split_once('.').map_or("", |(_, rest)| rest);
            let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
            assert_eq!(digits, 9, "nanoseconds of {time}");
            event.as_object_mut().expect("an object").remove("time");
            assert_eq!(event, expected);
        }
    }
}

/// The events that were printed as JSON.
#[track_caller]
pub fn events(report: &Report) -> Vec<Value> {
    objects(&report.stdout)
}

#[track_caller]
fn objects(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| match serde_json::from_str(line) {
            Ok(value @ Value::Object(_)) => value,
            other => panic!("{line:?} is no JSON object: {other:?}"),
        })
        .collect()
}

fn task(pid: i32, tid: i32, comm: &str) -> Value {
    json!({"pid": pid, "tid": tid, "comm": comm})
}

/// A task with its user and executable.
fn caller(task: Value, uid: u32, exe: &str) -> Value {
    let mut caller = task;
    caller["uid"] = uid.into();
    caller["exe"] = exe.into();
    caller
}

/// The name of an executable, that of the tests.
fn live() -> String {
    let path = this_binary().get_program().to_owned();
    let path = path.to_str().expect("a name");
    path.rsplit('/').next().unwrap_or_default().into()
}

fn agent(agent: &Agent) -> Value {
    task(agent.pid, agent.pid, &live())
}

/// This thread, as a caller.
fn here() -> Value {
    let comm = fs::read_to_string("/proc/thread-self/comm").expect("a name");
    let (pid, tid) = (getpid().as_raw_pid(), gettid().as_raw_pid());
    caller(task(pid, tid, comm.trim_end()), 0, &live())
}

fn nice(value: i32) -> Value {
    json!({"nice": value})
}

fn class(policy: &str, priority: i32) -> Value {
    json!({"policy": policy, "priority": priority})
}

fn level(class: &str, level: i32) -> Value {
    json!({"class": class, "level": level})
}

/// This thread in a class in which hardly anybody preempts it: what was noted of its calls counts
/// then (note.h).
struct Undisturbed;

impl Undisturbed {
    fn start() -> Self {
        Outside
            .setscheduler(Native, 0, FIFO.into(), 1)
            .expect("a class");
        Self
    }
}

impl Drop for Undisturbed {
    fn drop(&mut self) {
        let _ = Outside.setscheduler(Native, 0, OTHER.into(), 0);
    }
}

fn every_door_is_reported_with_who_asked_whom_for_what() {
    let mut target = with_session();
    let p = target.pid;
    Outside
        .write("write", &autogroup_file(p), "2")
        .expect("an autogroup");
    accepts(p, 4);
    Outside
        .ioprio_set(IO_PROCESS, p, io(IO_BE, 5))
        .expect("an I/O priority");
    let lsm = Lsm::start(&format!("--json -n -3 --rule nice,sched,io --pid {p}"));
    // told later, so that the time is not that of the telling
    lsm.signal(Signal::STOP);

    let (whom, who) = (agent(&target), here());
    let itself = caller(agent(&target), 0, &live());
    let event = |rule, hook, call, caller: &Value, asked, had| {
        json!({
            "verdict": "denied", "rule": rule, "hook": hook, "call": call, "target": &whom,
            "caller": caller, "asked": asked, "had": had, "floor": -3,
        })
    };
    let mut story = Story::default();

    let setnice = |call, who, asked| event("nice", "task_setnice", call, who, nice(asked), nice(4));
    story.refused(setnice("setpriority", &who, -10), || set_nice(p, -10));
    story.refused(setnice("setpriority", &who, -20), || set_nice(p, i32::MIN));
    story.refused(setnice("setpriority", &who, -4), || {
        setpriority_pgrp(Some(pid(p)), -4)
    });
    story.refused(setnice("setpriority", &itself, -11), || {
        target.call(&format!("setpriority {PRIO_PROCESS} 0 -11"))
    });
    // the increment is to the present value
    story.refused(setnice("nice", &itself, -5), || target.call("nice32 -9"));

    let undisturbed = Undisturbed::start();
    let hook = "task_setscheduler";
    for (table, policy, asked) in [(Native, OTHER, -12), (Compat, BATCH, -4)] {
        let event = event("nice", hook, "sched_setattr", &who, nice(asked), nice(4));
        story.refused(event, || {
            Outside.setattr(table, p, &Attr::nice(policy, asked))
        });
    }
    let sched = |call, asked| event("sched", hook, call, &who, asked, class("SCHED_OTHER", 0));
    for (attr, asked) in [
        (Attr::real_time(FIFO, 7), class("SCHED_FIFO", 7)),
        (Attr::deadline(), class("SCHED_DEADLINE", 0)),
    ] {
        story.refused(sched("sched_setattr", asked), || {
            Outside.setattr(Native, p, &attr)
        });
    }
    for (table, policy, priority, asked) in [
        (Native, i64::from(RR), 3, class("SCHED_RR", 3)),
        (Compat, i64::from(FIFO), 99, class("SCHED_FIFO", 99)),
        (
            Native,
            i64::from(RR) | RESET_ON_FORK,
            1,
            class("SCHED_RR", 1),
        ),
    ] {
        story.refused(sched("sched_setscheduler", asked), || {
            Outside.setscheduler(table, p, policy, priority)
        });
    }
    let autogroup = event(
        "nice",
        "task_setnice",
        "autogroup",
        &who,
        nice(-10),
        nice(2),
    );
    story.refused(autogroup, || {
        Outside.write("write", &autogroup_file(p), "-10")
    });
    drop(undisturbed);

    let ioprio = |asked| {
        let had = level("best-effort", 5);
        event("io", "task_setioprio", "ioprio_set", &who, asked, had)
    };
    story.refused(ioprio(level("real-time", 4)), || {
        Outside.ioprio_set(IO_PROCESS, p, io(IO_RT, 4))
    });
    story.refused(ioprio(level("best-effort", 2)), || {
        Outside.ioprio_set(IO_PGRP, p, io(IO_BE, 2))
    });

    thread::sleep(Duration::from_millis(300));
    lsm.signal(Signal::CONT);
    story.must_be_told(lsm);
}

fn a_real_time_task_that_is_given_another_priority_is_reported_with_both() {
    let target = Agent::start();
    let p = target.pid;
    Outside
        .setscheduler(Native, p, FIFO.into(), 5)
        .expect("FIFO");
    let lsm = Lsm::start(&format!("--json --pid {p}"));
    let who = here();
    let event = |call, asked| {
        json!({
            "verdict": "denied", "rule": "sched", "hook": "task_setscheduler", "call": call,
            "target": agent(&target), "caller": &who, "asked": asked,
            "had": class("SCHED_FIFO", 5), "floor": 0,
        })
    };
    let mut story = Story::default();
    let undisturbed = Undisturbed::start();
    for table in [Native, Compat] {
        story.refused(event("sched_setparam", class("SCHED_FIFO", 9)), || {
            Outside.setparam(table, p, 9)
        });
    }
    story.refused(event("sched_setscheduler", class("SCHED_RR", 4)), || {
        Outside.setscheduler(Native, p, RR.into(), 4)
    });
    drop(undisturbed);
    story.must_be_told(lsm);
}

/// A refusal by setpriority(2), of nice 0.
fn denied(target: &Value, caller: &Value, asked: i32) -> Value {
    json!({
        "verdict": "denied", "rule": "nice", "hook": "task_setnice", "call": "setpriority",
        "target": target, "caller": caller, "asked": nice(asked), "had": nice(0), "floor": 0,
    })
}

fn a_thread_is_named_beside_its_process() {
    let mut target = Agent::start();
    let tid = target.thread();
    target.name(tid, b"a worker");
    let lsm = Lsm::start(&format!("--json --pid {}", target.pid));
    let mut story = Story::default();
    thread::scope(|scope| {
        let asks = || {
            let who = here();
            assert_ne!(who["pid"], who["tid"]);
            assert_eq!(who["comm"], "who asks");
            let whom = task(target.pid, tid, "a worker");
            story.refused(denied(&whom, &who, -10), || set_nice(tid, -10));
            story.refused(denied(&agent(&target), &who, -9), || {
                set_nice(target.pid, -9)
            });
        };
        let name = thread::Builder::new().name("who asks".into());
        name.spawn_scoped(scope, asks).expect("a thread");
    });
    story.must_be_told(lsm);
}

/// An agent of a user, with the right to raise anybody.
fn with_cap_sys_nice(uid: u32) -> Agent {
    Agent::with(|command| {
        let live = this_binary();
        *command = Command::new("setpriv");
        command.args(["--reuid", &uid.to_string()]);
        command.args(["--inh-caps", "+sys_nice", "--ambient-caps", "+sys_nice"]);
        command.arg(live.get_program()).arg("agent");
    })
}

fn with_uid(uid: u32) -> Agent {
    Agent::with(|command| {
        command.uid(uid);
    })
}

fn a_caller_is_named_by_its_uid() {
    const UID: u32 = 4712;
    let target = Agent::start();
    let mut asks = with_cap_sys_nice(UID);
    asks.name(asks.pid, b"other name");
    let lsm = Lsm::start(&format!("--json --pid {}", target.pid));
    let mut story = Story::default();
    let who = caller(task(asks.pid, asks.pid, "other name"), UID, &live());
    story.refused(denied(&agent(&target), &who, -10), || {
        asks.call(&format!("setpriority {PRIO_PROCESS} {} -10", target.pid))
    });
    story.must_be_told(lsm);

    // one without rights may lower others of its user, not below the floor
    let (target, mut asks) = (with_uid(UID), with_uid(UID));
    let lsm = Lsm::start(&format!("--json -n 10 --pid {}", target.pid));
    let mut story = Story::default();
    let mut event = denied(&agent(&target), &caller(agent(&asks), UID, &live()), 5);
    event["floor"] = 10.into();
    story.refused(event, || {
        asks.call(&format!("setpriority {PRIO_PROCESS} {} 5", target.pid))
    });
    story.must_be_told(lsm);
}

/// What a program that has exited since asked, of a target at nice 0.
fn asked_by(program: &str) -> Value {
    let target = Agent::start();
    let lsm = Lsm::start(&format!("--json --pid {}", target.pid));
    run(program, &["-n", "-10", "-p", &target.pid.to_string()]).exited(1);
    let report = lsm.end();
    let mut event = events(&report).pop().expect("an event");
    assert_eq!(event["target"], agent(&target));
    assert_eq!((&event["asked"], &event["had"]), (&nice(-10), &nice(0)));
    event["caller"].take()
}

fn a_caller_that_has_exited_is_named_by_its_executable() {
    let caller = asked_by("renice");
    assert_eq!(caller["exe"], "renice");
    assert_eq!(caller["comm"], "renice");
    assert_eq!(caller["uid"], 0);
    assert!(
        caller["pid"].as_i64().is_some_and(|pid| pid > 1),
        "{caller}"
    );
}

fn an_executable_with_a_strange_name_is_named_all_the_same() {
    const ROOM: usize = 63;
    let renice = fs::canonicalize("/bin/renice").expect("renice");
    let long = "0123456789".repeat(10);
    for (name, exe) in [
        (long.as_bytes(), &long[..ROOM]),
        (b"a\nb\"\\\x1b", "a\nb\"\\\x1b"),
        (b"\xff\xfe\xc3", "\u{fffd}\u{fffd}\u{fffd}"),
    ] {
        let path = [b"/tmp/", name].concat();
        let path = OsStr::from_bytes(&path);
        fs::copy(&renice, path).expect("a copy");
        // run by a name that a string can have
        let link = "/tmp/link-to-renice";
        let _ = fs::remove_file(link);
        std::os::unix::fs::symlink(path, link).expect("a link");
        assert_eq!(asked_by(link)["exe"], exe);
        fs::remove_file(path).expect("a file of ours");
    }
}

fn another_user_is_named_for_each_of_its_processes() {
    const UID: u32 = 4713;
    let (target, _other) = (with_uid(UID), with_uid(UID));
    let lsm = Lsm::start(&format!("--json --pid {}", target.pid));
    let mut story = Story::default();
    story.refused(denied(&agent(&target), &here(), -7), || {
        setpriority_user(Uid::from_raw(UID), -7)
    });
    let mut asks = with_cap_sys_nice(0);
    let who = caller(agent(&asks), 0, &live());
    story.refused(denied(&agent(&target), &who, -8), || {
        asks.call(&format!("setpriority {PRIO_USER} {UID} -8"))
    });
    story.must_be_told(lsm);
}

/// lsm-nice in a container, where it is PID 1 and guards itself.
fn contained() -> (Lsm, Value) {
    let lsm = Lsm::start_in(&CONTAINER, "--json");
    (lsm, task(1, 1, "lsm-nice"))
}

/// A caller that lsm-nice cannot see.
fn unseen(mut caller: Value) -> Value {
    caller["pid"] = Value::Null;
    caller["tid"] = Value::Null;
    caller
}

fn who_is_not_to_be_seen_from_a_container_has_no_pid() {
    let (lsm, itself) = contained();
    let init = lsm.pid();
    let mut story = Story::default();
    story.refused(denied(&itself, &unseen(here()), -10), || {
        set_nice(init, -10)
    });

    let enter = |lsm: &Lsm| lsm.pid().to_string();
    let mut inside = Agent::forked_by(&["nsenter", "--target", &enter(&lsm), "--pid"]);
    let inner = status_field(inside.pid, "NSpid").expect("PIDs");
    let inner = inner
        .split_whitespace()
        .last()
        .and_then(|pid| pid.parse().ok());
    let inner = inner.expect("a PID");
    assert_ne!(inner, inside.pid);
    let who = caller(task(inner, inner, &live()), 0, &live());
    story.refused(denied(&itself, &who, -9), || {
        inside.call(&format!("setpriority {PRIO_PROCESS} 1 -9"))
    });
    story.must_be_told(lsm);
}

fn a_caller_in_a_container_beside_has_no_pid() {
    // as deep as that of lsm-nice, and with a /proc in which lsm-nice is to be seen
    let mut beside = Agent::forked_by(&["unshare", "--pid", "--fork"]);
    let (lsm, itself) = contained();
    // as Undisturbed
    Outside
        .setscheduler(Native, beside.pid, FIFO.into(), 1)
        .expect("a class");
    let who = unseen(caller(agent(&beside), 0, &live()));
    let mut event = denied(&itself, &who, -10);
    event["call"] = "autogroup".into();
    let mut story = Story::default();
    let file = autogroup_file(lsm.pid());
    story.refused(event, || Within(&mut beside).write("write", &file, "-10"));
    story.must_be_told(lsm);
}

fn a_container_is_seen_from_outside_by_the_pids_of_outside() {
    let mut container = Agent::forked_by(&CONTAINER);
    let lsm = Lsm::start(&format!("--json --pid {}", container.pid));
    let mut story = Story::default();
    let who = caller(agent(&container), 0, &live());
    story.refused(denied(&agent(&container), &who, -10), || {
        container.call(&format!("setpriority {PRIO_PROCESS} 1 -10"))
    });
    story.must_be_told(lsm);
}

fn the_time_is_right_inside_a_time_namespace() {
    let target = Agent::start();
    for offset in ["1000000", "-1"] {
        let shifted = ["unshare", "-T", "--boottime", offset, "--fork"];
        let lsm = Lsm::start_in(&shifted, &format!("--json --pid {}", target.pid));
        let mut story = Story::default();
        let event = denied(&agent(&target), &here(), -10);
        story.refused(event, || set_nice(target.pid, -10));
        story.must_be_told(lsm);
    }
}

fn text_is_one_line_an_event_in_columns() {
    let mut target = Agent::at_nice(4);
    let p = target.pid;
    let comm = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).expect("a name");
    let lsm = Lsm::start(&format!("-n -3 --rule nice,sched,io --pid {p}"));
    let mut expected = Vec::new();
    for name in ["x", "fifteen letters", "some name"] {
        target.name(p, name.as_bytes());
        let calls = [
            "setpriority nice 4 -> -10, floor -3",
            "sched_setscheduler SCHED_OTHER -> SCHED_RR",
            "ioprio_set none -> real-time 4",
        ];
        refuses(p, -10);
        let undisturbed = Undisturbed::start();
        assert!(Outside.setscheduler(Native, p, RR.into(), 3).is_err());
        drop(undisturbed);
        assert!(Outside.ioprio_set(IO_PROCESS, p, io(IO_RT, 4)).is_err());
        expected.extend(calls.map(|call| (name, call)));
    }
    let report = lsm.end();
    let lines: Vec<_> = report.stdout.lines().collect();
    assert_eq!(lines.len(), expected.len(), "{report}");
    let own = getpid().as_raw_pid();
    let from = format!("{} {own}", comm(own).trim_end());
    let mut columns = None;
    for (line, (name, call)) in lines.into_iter().zip(expected) {
        let (time, _) = line.split_once(' ').expect("columns");
        DateTime::parse_from_rfc3339(time).expect("a time of RFC 3339");
        // a long name is cut
        let whom = line.split(" on ").nth(1).expect("a target");
        assert!(whom.starts_with(&name[..name.len().min(8)]), "{line}");
        assert!(whom.contains(&format!(" {p} ")), "{line}");
        assert!(line.contains(&format!(" denied  {from} ")), "{line}");
        assert!(line.ends_with(call), "{line}");
        assert!(line.len() < 120, "{line}");
        let at = |part: &str| {
            let bytes = line.find(part).unwrap_or_else(|| panic!("{part}: {line}"));
            line[..bytes].chars().count()
        };
        let these = (at(" denied"), at(" on "), at(call));
        assert_eq!(these, *columns.get_or_insert(these), "{report}");
    }
}

/// Names of every byte, alone and among others; and some that terminals or decoders stumble over.
fn names() -> Vec<Vec<u8>> {
    const ROOM: usize = 15;
    let alone = (0..=u8::MAX).map(|byte| vec![b'a', byte, b'z']);
    let first = (0..=u8::MAX).map(|byte| vec![byte]);
    let runs = (1..=u8::MAX - 14).map(|byte| (byte..=byte + 14).collect());
    let known = [
        "\x1b[2J\x1b[31mred",
        "\n\r\nTue Jan 1\r",
        "\u{202e}abc\u{200b}",
        "\u{9b}31m",
        "\"\\\"}\n{",
        "\u{e9}t\u{e9} \u{1f980}",
        "\u{5d0}\u{5d1}\u{5d2}",
        "abc\u{345}\u{fe0f}",
    ]
    .map(|name| name.as_bytes().to_vec());
    let cut = [
        b"123456789012\xf0\x9f\x98".to_vec(),
        b"\xc3".to_vec(),
        b"\xed\xa0\x80".to_vec(),
        b"\xf8\x88\x80\x80\x80".to_vec(),
    ];
    let any = (0..heavy(3000)).map(|_| (0..ROOM).map(|_| fastrand::u8(..)).collect());
    alone
        .chain(first)
        .chain(runs)
        .chain(known)
        .chain(cut)
        .chain(any)
        .collect()
}

fn no_byte_of_a_name_does_harm() {
    let names = names();
    let mut target = Agent::start();
    let p = target.pid;
    let (text, json) = ("/tmp/events.text", "/tmp/events.json");
    let audit = |options: &str, path: &str| {
        let file = File::create(path).expect("a file");
        Lsm::start_with(&format!("--audit {options} --pid {p}"), |command| {
            command.stdout(file);
        })
    };
    let both = [audit("", text), audit("--json", json)];
    for name in &names {
        target.name(p, name);
        assert_eq!(
            target.call(&format!("setpriority {PRIO_PROCESS} 0 -1")),
            Ok(())
        );
    }
    for lsm in both {
        let counts = Counts {
            audited: names.len() as u64,
            ..Counts::default()
        };
        assert_eq!(lsm.end().counts(), counts);
    }

    let text = String::from_utf8(fs::read(text).expect("a file")).expect("UTF-8");
    assert_eq!(text.lines().count(), names.len());
    for line in text.lines() {
        let hostile = |c: char| c.is_control() || "\u{202e}\u{200b}\u{fe0f}\u{fffd}".contains(c);
        assert!(!line.contains(hostile), "{line:?}");
        assert!(line.chars().count() < 120, "{line:?}");
        let columns = line.matches(" on ").count() == 1 && line.contains(" audited ");
        let call = line.contains(" setpriority nice ");
        assert!(columns && call, "{line:?}");
    }
    let json = String::from_utf8(fs::read(json).expect("a file")).expect("UTF-8");
    let events = objects(&json);
    assert_eq!(events.len(), names.len());
    for (event, name) in events.iter().zip(&names) {
        let before_nul = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let comm = String::from_utf8_lossy(before_nul);
        assert_eq!(event["target"], task(p, p, &comm));
        assert_eq!(event["caller"], caller(task(p, p, &comm), 0, &live()));
    }
}

/// Reads what lsm-nice writes, waiting for it.
struct Reader {
    from: File,
    bytes: Vec<u8>,
}

impl Reader {
    /// A pipe as stdout of lsm-nice, of one page.
    fn pipe() -> (Self, OwnedFd) {
        let (from, to) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        rustix::pipe::fcntl_setpipe_size(&to, 4096).expect("a small pipe");
        (Self::new(from), to)
    }

    /// A terminal as stdout of lsm-nice.
    fn terminal() -> (Self, OwnedFd) {
        let (mut main, mut side) = (-1, -1);
        let null = std::ptr::null_mut();
        // SAFETY: writes two descriptors, which nobody else has.
        let fds = unsafe {
            let done = libc::openpty(&raw mut main, &raw mut side, null, null.cast(), null.cast());
            assert_eq!(done, 0, "a terminal: {}", io::Error::last_os_error());
            // others would hold the terminal open
            [main, side].map(|fd| {
                libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
                OwnedFd::from_raw_fd(fd)
            })
        };
        let [main, side] = fds;
        (Self::new(main), side)
    }

    fn new(from: OwnedFd) -> Self {
        Self {
            from: File::from(from),
            bytes: Vec::new(),
        }
    }

    #[track_caller]
    fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let line: Vec<_> = self.bytes.drain(..=end).collect();
                return String::from_utf8(line).expect("UTF-8");
            }
            let mut fds = [PollFd::new(&self.from, PollFlags::IN)];
            let patience = Timespec {
                tv_sec: 30,
                tv_nsec: 0,
            };
            assert_eq!(poll(&mut fds, Some(&patience)), Ok(1), "nothing is printed");
            let mut some = [0; 4096];
            let length = self.from.read(&mut some).expect("a line");
            assert!(length > 0, "nothing more is printed");
            self.bytes.extend_from_slice(&some[..length]);
        }
    }

    /// What is left once nobody writes any more.
    fn rest(mut self) -> String {
        match self.from.read_to_end(&mut self.bytes) {
            Ok(_) => {}
            // so ends a terminal
            Err(error) if error.raw_os_error() == Some(libc::EIO) => {}
            Err(error) => panic!("{error}"),
        }
        String::from_utf8(self.bytes).expect("UTF-8")
    }
}

fn colour_is_for_terminals_alone() {
    let target = Agent::start();
    let line = |terminal: bool, options: &str, no_color: Option<&str>| {
        let (mut reader, out) = if terminal {
            Reader::terminal()
        } else {
            Reader::pipe()
        };
        let lsm = Lsm::start_with(&format!("{options} --pid {}", target.pid), |command| {
            command.stdout(out).env_remove("NO_COLOR");
            if let Some(value) = no_color {
                command.env("NO_COLOR", value);
            }
        });
        refuses(target.pid, -1);
        let line = reader.line();
        lsm.end().counted(1);
        line
    };
    for (terminal, options, no_color, colour) in [
        (true, "", None, true),
        // NO_COLOR counts where it is not empty
        (true, "", Some(""), true),
        (true, "", Some("1"), false),
        (true, "--json", None, false),
        (false, "", None, false),
    ] {
        let line = line(terminal, options, no_color);
        assert_eq!(line.contains('\x1b'), colour, "{line:?}");
        assert!(line.contains("denied"), "{line:?}");
        if colour {
            assert!(line.contains(" \x1b[31mdenied \x1b[m "), "{line:?}");
        }
    }
}

/// Requests of each rule: those that a guard at floor 0 refuses, and those that it does not.
fn requests(target: &Agent) -> Vec<Result<(), Errno>> {
    let p = target.pid;
    let _undisturbed = Undisturbed::start();
    let file = autogroup_file(p);
    vec![
        set_nice(p, -10),
        set_nice(p, 10),
        setpriority_pgrp(Some(pid(p)), -1),
        Outside.setattr(Native, p, &Attr::nice(OTHER, -5)),
        Outside.setattr(Native, p, &Attr::nice(BATCH, 5)),
        Outside.setattr(Native, p, &Attr::real_time(RR, 7)),
        Outside.setscheduler(Compat, p, FIFO.into(), 3),
        Outside.setscheduler(Native, p, OTHER.into(), 0),
        Outside.write("write", &file, "-10"),
        Outside.write("write", &file, "10"),
        Outside.ioprio_set(IO_PROCESS, p, io(IO_RT, 4)),
        Outside.ioprio_set(IO_PROCESS, p, io(IO_BE, 1)),
        Outside.ioprio_set(IO_PROCESS, p, io(IO_BE, 7)),
    ]
}

fn audit_refuses_nothing_and_reports_what_a_guard_refuses() {
    let told = |options: &str| {
        let target = with_session();
        let rules = "--json --rule nice,sched,io";
        let lsm = Lsm::start(&format!("{rules} {options} --pid {}", target.pid));
        let results = requests(&target);
        accepts(target.pid, 5);
        let report = lsm.end();
        let mut events = events(&report);
        for event in &mut events {
            // of another process, in the state that the audited requests have made
            for differs in ["time", "target", "had"] {
                event.as_object_mut().expect("an object").remove(differs);
            }
        }
        (results, events, report)
    };
    let (results, denied, report) = told("");
    let refused = results.iter().filter(|result| **result == Err(Errno::PERM));
    let refused = refused.count();
    assert_eq!(refused, 8, "{results:?}");
    let counts = Counts {
        refused: refused as u64,
        ..Counts::default()
    };
    assert_eq!(report.counts(), counts, "{report}");
    assert_eq!(denied.len(), refused, "{report}");

    let (results, mut audited, report) = told("--audit");
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let counts = Counts {
        audited: refused as u64,
        ..Counts::default()
    };
    assert_eq!(report.counts(), counts, "{report}");
    report.says("audit: nothing is refused");
    for event in &mut audited {
        assert_eq!(event["verdict"], "audited");
        event["verdict"] = "denied".into();
    }
    assert_eq!(audited, denied);
}

fn audit_holds_for_every_kind_of_target() {
    let is_told = |report: &Report, whom: i64, had: i32| {
        let events = events(report);
        assert_eq!(events.len(), 1, "{report}");
        let event = &events[0];
        assert_eq!(event["verdict"], "audited", "{report}");
        assert_eq!(event["target"]["pid"], whom, "{report}");
        assert_eq!(event["asked"], nice(-1), "{report}");
        assert_eq!(event["had"], nice(had), "{report}");
        let counts = Counts {
            audited: 1,
            ..Counts::default()
        };
        assert_eq!(report.counts(), counts, "{report}");
    };
    let target = Agent::start();
    let p = target.pid;
    let audits = |options: &str| {
        let lsm = Lsm::start(&format!("--audit --json {options}"));
        accepts(p, -1);
        accepts(p, 0);
        is_told(&lsm.end(), p.into(), 0);
    };
    audits(&format!("--pid {p} --no-children"));
    if has_task_storage() {
        audits(&format!("--pid {p}"));
        audits(&format!("--pid {p} --tree"));
        let cgroup = Cgroup::new("audited");
        cgroup.take(p);
        audits(&cgroup.option());
    }
    let script = "echo $$ >/tmp/audited; exec live act setpriority 0 0 -1 >>/tmp/audited";
    let words = [
        "lsm-nice",
        "--audit",
        "--json",
        "--no-children",
        "--",
        "sh",
        "-c",
        script,
    ];
    let report = Lsm::launch(&words, |_| {}).wait();
    report.exited(0);
    let said = fs::read_to_string("/tmp/audited").expect("a file");
    let (command, answer) = said.split_once('\n').expect("two lines");
    assert_eq!(answer, "0\n", "{report}");
    is_told(&report, command.parse().expect("a PID"), 0);
}

fn v_reports_what_is_allowed_for_guarded_processes_alone() {
    let (target, other) = (with_session(), Agent::start());
    let p = target.pid;
    let lsm = Lsm::start(&format!("-v --json --rule nice,sched --pid {p}"));
    let who = here();
    let event = |verdict: &str, call: &str, asked: i32, had: i32| {
        let mut event = denied(&agent(&target), &who, asked);
        event["verdict"] = verdict.into();
        event["call"] = call.into();
        event["had"] = nice(had);
        event
    };
    let class = |asked: &str, had: &str| {
        json!({
            "verdict": "allowed", "rule": "sched", "hook": "task_setscheduler",
            "call": "sched_setscheduler", "target": agent(&target), "caller": &who,
            "asked": class(asked, 0), "had": class(had, 0), "floor": 0,
        })
    };
    accepts(other.pid, 7);
    accepts(other.pid, -7);
    accepts(p, 5);
    refuses(p, -5);
    let undisturbed = Undisturbed::start();
    let file = autogroup_file(p);
    Outside.write("write", &file, "3").expect("an autogroup");
    for policy in [BATCH, OTHER] {
        let set = Outside.setscheduler(Native, p, policy.into(), 0);
        set.expect("a class");
        Outside
            .setscheduler(Native, other.pid, policy.into(), 0)
            .expect("a class");
    }
    drop(undisturbed);
    // no business of these rules
    run("taskset", &["-p", "1", &p.to_string()]).exited(0);
    Outside
        .ioprio_set(IO_PROCESS, p, io(IO_BE, 7))
        .expect("an I/O priority");

    let report = lsm.end();
    let mut told = events(&report);
    for event in &mut told {
        event.as_object_mut().expect("an object").remove("time");
    }
    let expected = [
        event("allowed", "setpriority", 5, 0),
        event("denied", "setpriority", -5, 5),
        event("allowed", "autogroup", 3, 0),
        class("SCHED_BATCH", "SCHED_OTHER"),
        class("SCHED_OTHER", "SCHED_BATCH"),
    ];
    assert_eq!(told, expected, "{report}");
    let counts = Counts {
        refused: 1,
        allowed: 4,
        ..Counts::default()
    };
    assert_eq!(report.counts(), counts, "{report}");
}

fn q_prints_no_event_and_makes_no_ring_buffer() {
    let target = Agent::start();
    let ring_buffers = |options: &str| {
        let before = Present::now();
        let lsm = Lsm::start(&format!("{options} --pid {}", target.pid));
        let made = before.added().ring_buffers;
        refuses(target.pid, -1);
        let report = lsm.end();
        report.counted(1);
        (made, report.stdout)
    };
    assert_eq!(ring_buffers("-q"), (0, String::new()));
    assert_eq!(ring_buffers("-q --json"), (0, String::new()));
    let (made, stdout) = ring_buffers("");
    assert!(made == 1 && stdout.lines().count() == 1, "{made} {stdout}");
}

fn sigusr1_prints_one_summary_and_the_guard_stays() {
    let target = Agent::start();
    for options in ["", "-q", "-v", "--audit"] {
        let mut lsm = Lsm::start(&format!("{options} --pid {}", target.pid));
        let so_far = |lsm: &Lsm| -> Vec<Counts> {
            let stderr = lsm.stderr();
            let lines = stderr
                .lines()
                .filter(|line| line.starts_with("lsm-nice: so far: "));
            lines
                .map(|line| Counts::read(line).expect("a summary"))
                .collect()
        };
        let mut expected = Vec::new();
        let mut counts = Counts::default();
        for _ in 0..3 {
            lsm.signal(Signal::USR1);
            expected.push(counts);
            eventually(|| (so_far(&lsm).len() == expected.len()).then_some(())).expect("a summary");
            assert_eq!(so_far(&lsm), expected);
            match options {
                "--audit" => {
                    accepts(target.pid, -1);
                    counts.audited += 1;
                }
                _ => {
                    refuses(target.pid, -1);
                    counts.refused += 1;
                }
            }
            accepts(target.pid, 1);
            counts.allowed += u64::from(options == "-v");
        }
        lsm.must_still_guard();
        let report = lsm.end();
        assert_eq!(report.counts(), counts, "{report}");
        let printed = match options {
            "-q" => 0,
            _ => counts.refused + counts.audited + counts.allowed,
        };
        assert_eq!(report.stdout.lines().count() as u64, printed, "{report}");
    }
}

fn a_reader_that_reads_nothing_holds_nobody_up() {
    let rest = nobody_reads(Reader::pipe());
    assert!(rest.ends_with('\n'), "the last line is cut: {rest}");
}

fn a_terminal_that_nobody_reads_holds_nobody_up() {
    nobody_reads(Reader::terminal());
}

/// Makes more requests than the ring buffer and the output hold; returns what was printed.
fn nobody_reads((reader, out): (Reader, OwnedFd)) -> String {
    const CALLS: u64 = 8000;
    let target = Agent::start();
    let mut lsm = Lsm::start_with(&format!("--json --pid {}", target.pid), |command| {
        command.stdout(out);
    });
    let mut slowest = Duration::ZERO;
    for _ in 0..CALLS {
        let start = Instant::now();
        assert_eq!(set_nice(target.pid, -1), Err(Errno::PERM));
        slowest = slowest.max(start.elapsed());
    }
    assert!(slowest < Duration::from_secs(1), "a call took {slowest:?}");
    lsm.must_still_guard();
    refuses(target.pid, -1);
    lsm.signal(Signal::USR1);
    let so_far = || lsm.stderr().contains("so far: 8001 refused").then_some(());
    eventually(so_far).expect("a summary");

    let start = Instant::now();
    lsm.signal(Signal::TERM);
    // what a terminal has taken goes when nobody has it open any more
    eventually(|| lsm.stderr().contains("has ended").then_some(())).expect("an end");
    let took = start.elapsed();
    assert!(took < Duration::from_secs(15), "the end took {took:?}");
    let report = lsm.wait();
    report.exited(0);
    let counts = report.counts();
    let rest = reader.rest();
    // a terminal may have taken a part of the last
    let end = rest.rfind('\n').map_or(0, |end| end + 1);
    let delivered = objects(&rest[..end]).len() as u64;
    println!(
        "nobody reads: {} refused, the slowest in {slowest:?}; {delivered} printed, {} lost; \
         ended in {took:?}",
        counts.refused, counts.lost
    );
    assert_eq!(counts.refused, CALLS + 1, "{report}");
    assert!(delivered > 0 && counts.lost > 0, "{report}");
    assert_eq!(delivered + counts.lost, counts.refused, "{report}");
    rest
}

/// What is said of an output that takes nothing any more, and the lines that it took.
fn loses_its_output(lsm: Lsm, target: &Agent, printed: u64, why: &str) {
    const CALLS: u64 = 300;
    let mut lsm = lsm;
    let warning = "warning: events end here, the guard stands";
    for _ in 0..CALLS {
        refuses(target.pid, -1);
    }
    eventually(|| lsm.stderr().contains(warning).then_some(())).expect("a warning");
    for _ in 0..CALLS {
        refuses(target.pid, -1);
    }
    lsm.must_still_guard();
    accepts(target.pid, 1);
    accepts(target.pid, 0);
    let report = lsm.end();
    report.says(why);
    assert_eq!(report.stderr.matches(warning).count(), 1, "{report}");
    let counts = Counts {
        refused: printed + 2 * CALLS,
        lost: 2 * CALLS,
        ..Counts::default()
    };
    assert_eq!(report.counts(), counts, "{report}");
}

fn a_reader_that_has_gone_is_named_once_and_the_guard_stays() {
    let target = Agent::start();
    for options in ["", "--json"] {
        let (mut reader, out) = Reader::pipe();
        let lsm = Lsm::start_with(&format!("{options} --pid {}", target.pid), |command| {
            command.stdout(out);
        });
        // as head -n 1 does
        refuses(target.pid, -1);
        reader.line();
        drop(reader);
        loses_its_output(lsm, &target, 1, "Broken pipe");
    }
}

fn a_reader_that_goes_as_the_guard_ends_loses_no_count() {
    let target = Agent::start();
    let (reader, out) = Reader::pipe();
    let lsm = Lsm::start_with(&format!("--pid {}", target.pid), |command| {
        command.stdout(out);
    });
    // stopped, it sees the end of its target together with the events
    lsm.signal(Signal::STOP);
    let stopped = || {
        status_field(lsm.pid(), "State")?
            .starts_with('T')
            .then_some(())
    };
    assert_eq!(eventually(stopped), Some(()), "lsm-nice is to stop");
    (0..3).for_each(|_| refuses(target.pid, -1));
    drop(reader);
    target.quit();
    lsm.signal(Signal::CONT);
    lsm.wait()
        .exited(0)
        .says("warning: the last events cannot be printed: stdout: Broken pipe")
        .says("and the guard ended: 3 refused, 3 events lost");
}

fn a_full_disk_is_named_once_and_the_guard_stays() {
    let target = Agent::start();
    let lsm = Lsm::start_with(&format!("--pid {}", target.pid), |command| {
        let full = OpenOptions::new().write(true).open("/dev/full");
        command.stdout(full.expect("/dev/full"));
    });
    loses_its_output(lsm, &target, 0, "No space left on device");
}

fn a_file_that_may_not_grow_is_named_once_and_the_guard_stays() {
    let target = Agent::start();
    const MOST: u64 = 8192;
    fs::write("/tmp/limited", [b'\n'; MOST as usize]).expect("a file");
    let lsm = Lsm::start_with(&format!("--pid {}", target.pid), |command| {
        let file = OpenOptions::new().append(true).open("/tmp/limited");
        command.stdout(file.expect("a file"));
        // SAFETY: a system call alone, on values of this closure.
        unsafe {
            command.pre_exec(|| {
                let limit = libc::rlimit {
                    rlim_cur: MOST,
                    rlim_max: MOST,
                };
                libc::setrlimit(libc::RLIMIT_FSIZE, &limit);
                Ok(())
            });
        }
    });
    loses_its_output(lsm, &target, 0, "File too large");
}

fn lines_stay_whole_where_a_command_writes_between_them() {
    let rounds = heavy(20_000);
    let (mut reader, out) = Reader::pipe();
    let script =
        format!("i=0; while [ $i -lt {rounds} ]; do echo COMMAND $i; i=$((i + 1)); done; sleep 1");
    let words = [
        "lsm-nice",
        "--json",
        "--no-children",
        "--",
        "sh",
        "-c",
        &script,
    ];
    let mut lsm = Lsm::launch(&words, |command| {
        command.stdout(out);
    });
    // both wait for the reader, and so write in turns
    let slowly = thread::spawn(move || {
        let mut some = [0; 4096];
        loop {
            match reader.from.read(&mut some).expect("a pipe") {
                0 => return reader.rest(),
                length => reader.bytes.extend_from_slice(&some[..length]),
            }
            thread::sleep(Duration::from_millis(1));
        }
    });
    lsm.must_guard();
    let command = child_of(lsm.pid());
    let mut refused = 0;
    while status_field(command, "State").is_some_and(|state| !state.starts_with('Z')) {
        // more than is written at once
        lsm.signal(Signal::STOP);
        for _ in 0..100 {
            match set_nice(command, -1) {
                Err(Errno::PERM) => refused += 1,
                other => assert_eq!(other, Err(Errno::SRCH)),
            }
        }
        lsm.signal(Signal::CONT);
        thread::sleep(Duration::from_millis(5));
    }
    let report = lsm.wait();
    let text = slowly.join().expect("a reader");
    let (mut events, mut others) = (0, 0);
    for line in text.lines() {
        match line.strip_prefix("COMMAND ") {
            Some(number) => {
                number.parse::<u32>().unwrap_or_else(|_| panic!("{line:?}"));
                others += 1;
            }
            None => events += objects(line).len() as u64,
        }
    }
    let counts = report.counts();
    println!(
        "lines: {others} of COMMAND among {events} events, {} lost",
        counts.lost
    );
    assert_eq!(others, rounds, "{report}");
    assert_eq!(counts.refused, refused, "{report}");
    assert_eq!(events + counts.lost, refused, "{report}");
}

fn an_event_is_read_at_once_when_idle() {
    const ROUNDS: usize = 51;
    let target = Agent::start();
    let (mut reader, out) = Reader::pipe();
    let lsm = Lsm::start_with(&format!("--pid {}", target.pid), |command| {
        command.stdout(out);
    });
    let mut took: Vec<_> = (0..ROUNDS)
        .map(|_| {
            thread::sleep(Duration::from_millis(20));
            let start = Instant::now();
            assert_eq!(set_nice(target.pid, -1), Err(Errno::PERM));
            reader.line();
            start.elapsed()
        })
        .collect();
    took.sort();
    println!(
        "latency: from the call to the line, median {:?}, worst {:?} of {ROUNDS}",
        took[ROUNDS / 2],
        took[ROUNDS - 1]
    );
    assert!(took[ROUNDS / 2] < Duration::from_secs(1), "{took:?}");
    lsm.end().counted(ROUNDS as u64);
}

/// The most memory that a process has had since [`forget_peak`], in KiB.
fn peak(pid: i32) -> u64 {
    let line = status_field(pid, "VmHWM").expect("a process");
    let number = line.trim_end_matches(" kB").parse();
    number.expect("a number of KiB")
}

/// The start takes more than all that follows.
fn forget_peak(pid: i32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("a process");
}

/// Two callers at a time, each on a CPU of its own where there are two, make so many requests; says
/// how many were refused.
fn flood(target: i32, calls: u64) -> u64 {
    let refused = AtomicU64::new(0);
    thread::scope(|scope| {
        for cpu in 0..2 {
            let refused = &refused;
            scope.spawn(move || {
                let mut cpus = rustix::thread::CpuSet::new();
                cpus.set(cpu);
                // fails where there is one CPU
                let _ = rustix::thread::sched_setaffinity(None, &cpus);
                for _ in 0..calls / 2 {
                    let result = set_nice(target, -1);
                    refused.fetch_add(u64::from(result == Err(Errno::PERM)), Relaxed);
                }
            });
        }
    });
    refused.into_inner()
}

fn a_flood_is_counted_to_the_last_and_eats_no_memory() {
    // beside what a short flood takes: some pages that it did not touch
    const MORE: u64 = 512;
    let calls = heavy(1_000_000) as u64;
    let target = Agent::start();
    let (from, to) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    let lsm = Lsm::start_with(&format!("--pid {}", target.pid), |command| {
        command.stdout(to);
    });
    let reader = thread::spawn(move || {
        let (mut lines, mut from) = (0, File::from(from));
        let mut bytes = vec![0; 1 << 16];
        loop {
            match from.read(&mut bytes).expect("a pipe") {
                0 => return lines,
                length => {
                    lines += bytes[..length]
                        .iter()
                        .filter(|byte| **byte == b'\n')
                        .count() as u64;
                }
            }
        }
    });
    let pid = lsm.pid();
    forget_peak(pid);
    let idle = peak(pid);
    // the whole ring buffer is touched
    let mut refused = flood(target.pid, 20_000);
    let before = peak(pid);
    let start = Instant::now();
    refused += flood(target.pid, calls);
    let took = start.elapsed();
    let after = peak(pid);
    assert_eq!(
        refused,
        calls / 2 * 2 + 20_000,
        "some calls were not refused"
    );

    let report = lsm.end();
    let counts = report.counts();
    let delivered = reader.join().expect("a reader");
    println!(
        "flood: {refused} refused, {delivered} printed, {} lost; {:.0} refusals and {:.0} lines a \
         second; lsm-nice had {idle} KiB when idle, {before} KiB after 20000 and {after} KiB at most",
        counts.lost,
        calls as f64 / took.as_secs_f64(),
        delivered as f64 / took.as_secs_f64(),
    );
    assert_eq!(counts.refused, refused, "{report}");
    assert_eq!(delivered + counts.lost, refused, "{report}");
    assert!(after <= before + MORE, "{before} KiB became {after} KiB");
}
