// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! A fuzzer of the doors: random calls by agents, each judged by what the kernel says of the tasks
//! afterwards. `LIVE_HEAVY=100` makes the full number of them.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use libc::{PRIO_PGRP, PRIO_PROCESS, PRIO_USER};
use rustix::io::Errno;

use crate::agent::{Agent, this_binary};
use crate::doors::in_session;
use crate::helpers::{Lsm, heavy, set_nice};
use crate::sys::{
    self, Attr, BATCH, Call, Compat, DEADLINE, EXT, FIFO, FLAG_KEEP_PARAMS, FLAG_KEEP_POLICY, IDLE,
    IO_BE, IO_PGRP, IO_PROCESS, IO_RT, IO_USER, LOW, NOWHERE, Native, OTHER, Outside,
    RESET_ON_FORK, RR, State, Table, try_state,
};

tests!(
    random_calls_from_outside_raise_nobody,
    random_calls_from_within_raise_nobody,
    many_callers_at_once_raise_nobody,
);

const DOORS: [&str; 11] = [
    "setpriority PROCESS",
    "setpriority PGRP",
    "setpriority USER",
    "nice (32-bit)",
    "sched_setscheduler",
    "sched_setparam",
    "sched_setattr",
    "autogroup",
    "ioprio_set PROCESS",
    "ioprio_set PGRP",
    "ioprio_set USER",
];

/// Whom a call is for: a process of two more threads, with a user, a session and a process group of
/// its own. In the group of the guarded one there is a process that is not guarded.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Guarded,
    Free,
}

const UIDS: [i32; 2] = [4721, 4722];

/// What the fuzzer knows.
struct World {
    /// None where nobody is guarded.
    floor: Option<i32>,
    /// The caller is the guarded process.
    inside: bool,
    /// Nobody else makes calls.
    alone: bool,
    tasks: [Vec<i32>; 2],
    autogroups: [File; 2],
}

#[derive(Debug)]
enum Act {
    Call(Table, Call, [i64; 3]),
    Autogroup(String),
}

/// A call, and what to expect of it.
#[derive(Debug)]
struct Attempt {
    door: usize,
    side: Side,
    act: Act,
    /// The tasks that it names: one, or all of the side.
    task: Option<usize>,
    /// What it reads from memory.
    memory: Vec<u8>,
    /// A rule forbids it, where its target is guarded and the kernel would do it.
    forbidden: Forbidden,
}

#[derive(Clone, Copy, Debug)]
enum Forbidden {
    Is(bool),
    /// A nice value below the floor where this is added to the present one.
    Increment(i64),
}

fn highest_io(floor: i32) -> i64 {
    i64::from((floor + 20) / 5)
}

impl World {
    fn tasks(&self, side: Side) -> &[i32] {
        &self.tasks[side as usize]
    }

    /// A number that names a task, or now and then nobody.
    fn name(&self, rng: &mut Rng, side: Side, task: usize) -> i64 {
        match rng.u32(..100) {
            0 => -1,
            1 => i32::MAX.into(),
            2..30 if self.inside && side == Side::Guarded && task == 0 => 0,
            _ => self.tasks(side)[task].into(),
        }
    }

    fn attempt(&self, rng: &mut Rng) -> Attempt {
        // without a guard the same numbers have to be drawn
        let floor = self.floor.unwrap_or_default();
        let side = if rng.u32(..3) > 0 {
            Side::Guarded
        } else {
            Side::Free
        };
        let mut door = match rng.usize(..DOORS.len() + 4) {
            door if door < DOORS.len() => door,
            door if door < DOORS.len() + 3 => 6,
            _ => 4,
        };
        if door == 3 && !(self.inside && side == Side::Guarded) {
            door = 0;
        }
        let table = if rng.bool() && door != 3 {
            Native
        } else {
            Compat
        };
        let own = self.inside && side == Side::Guarded && rng.bool();
        let group = if own {
            0
        } else {
            i64::from(self.tasks(side)[0])
        };
        let user = if own {
            0
        } else {
            i64::from(UIDS[side as usize])
        };
        let mut task = Some(rng.usize(..3));
        let mut memory = Vec::new();
        let (call, args, forbidden) = match door {
            0..=2 => {
                let nice = nice(rng);
                let (which, who) = match door {
                    0 => (PRIO_PROCESS, self.name(rng, side, task.unwrap_or_default())),
                    1 => (PRIO_PGRP, group),
                    _ => (PRIO_USER, user),
                };
                if door > 0 {
                    task = None;
                }
                let args = [i64::from(which), who, nice.into()];
                (Call::Setpriority, args, Forbidden::Is(nice < floor))
            }
            3 => {
                task = Some(0);
                let increment = rng.i64(-45..=45);
                let forbidden = Forbidden::Increment(increment);
                (Call::Nice, [increment, 0, 0], forbidden)
            }
            4 => {
                let (policy, priority) = class(rng);
                let flag = if rng.u32(..4) == 0 { RESET_ON_FORK } else { 0 };
                memory = priority.to_ne_bytes().to_vec();
                let who = self.name(rng, side, task.unwrap_or_default());
                let args = [who, i64::from(policy) | flag, pointer(rng)];
                (
                    Call::Setscheduler,
                    args,
                    Forbidden::Is(is_above_other(policy)),
                )
            }
            5 => {
                let (_, priority) = class(rng);
                memory = priority.to_ne_bytes().to_vec();
                let who = self.name(rng, side, task.unwrap_or_default());
                let args = [who, pointer(rng), 0];
                (Call::Setparam, args, Forbidden::Is(false))
            }
            6 => {
                let mut attr = attr(rng);
                if attr.policy == DEADLINE {
                    attr = without_bandwidth(attr);
                    // it would run for a microsecond in two seconds
                    if self.floor.is_none() && self.inside && side == Side::Guarded {
                        attr.policy = IDLE;
                    }
                }
                memory = attr.bytes();
                let who = self.name(rng, side, task.unwrap_or_default());
                let flags = i64::from(rng.u32(..50) == 0);
                let args = [who, pointer(rng), flags];
                (Call::Setattr, args, Forbidden::Is(forbids(&attr, floor)))
            }
            7 => {
                let nice = rng.i32(-24..=23);
                let text = match rng.u32(..50) {
                    0 => "x".into(),
                    _ => nice.to_string(),
                };
                return Attempt {
                    door,
                    side,
                    act: Act::Autogroup(text),
                    task: None,
                    memory,
                    forbidden: Forbidden::Is(nice < floor),
                };
            }
            _ => {
                let (class, level) = (rng.i64(0..=4), rng.i64(0..=8));
                let hint = match rng.u32(..4) {
                    0 => rng.i64(0..1024) << 3,
                    _ => 0,
                };
                let high = match rng.u32(..20) {
                    0 => rng.i64(0..1 << 15) << 16,
                    _ => 0,
                };
                let ioprio = class << 13 | level | hint | high;
                // level 8 is a hint
                let level = level & 7;
                let forbidden = class == IO_RT || class == IO_BE && level < highest_io(floor);
                let (which, who) = match door {
                    8 => (IO_PROCESS, self.name(rng, side, task.unwrap_or_default())),
                    9 => (IO_PGRP, group),
                    // the kernel takes 0 for root, not for the caller's own user
                    _ => (IO_USER, UIDS[side as usize].into()),
                };
                if door > 8 {
                    task = None;
                }
                let args = [which, who, ioprio];
                (Call::IoprioSet, args, Forbidden::Is(forbidden))
            }
        };
        Attempt {
            door,
            side,
            act: Act::Call(table, call, args),
            task,
            memory,
            forbidden,
        }
    }

    fn perform(&self, attempt: &Attempt) -> Result<(), Errno> {
        match &attempt.act {
            Act::Call(table, call, args) => {
                if !attempt.memory.is_empty() {
                    sys::poke(&attempt.memory);
                }
                sys::call(*table, *call, *args)
            }
            Act::Autogroup(text) => {
                let file = &self.autogroups[attempt.side as usize];
                rustix::io::write(file, text.as_bytes()).map(drop)
            }
        }
    }

    fn autogroup(&self, side: Side) -> i32 {
        let mut text = [0; 64];
        let file = &self.autogroups[side as usize];
        let length = file.read_at(&mut text, 0).expect("an autogroup");
        let text = String::from_utf8_lossy(&text[..length]);
        let number = text.trim().rsplit(' ').next().map(str::parse);
        number.and_then(Result::ok).expect("a nice value")
    }

    /// The states of the tasks that a call named.
    fn states(&self, attempt: &Attempt) -> Vec<State> {
        let tasks = self.tasks(attempt.side);
        let named = match attempt.task {
            Some(task) => &tasks[task..=task],
            None => tasks,
        };
        named.iter().map(|tid| sys::state(*tid)).collect()
    }
}

fn nice(rng: &mut Rng) -> i32 {
    match rng.u32(..20) {
        0 => i32::MIN,
        1 => i32::MAX,
        2 => rng.i32(..),
        _ => rng.i32(-24..=23),
    }
}

/// Mostly what the kernel takes.
fn class(rng: &mut Rng) -> (u32, i32) {
    let policy = match rng.u32(..20) {
        0 => 4,
        1 => u32::MAX,
        2 => rng.u32(8..100),
        _ => rng
            .choice([OTHER, FIFO, RR, BATCH, IDLE, DEADLINE, EXT])
            .unwrap_or(OTHER),
    };
    let priority = match (rng.u32(..20), policy) {
        (0, _) => rng.i32(-1..=101),
        (_, FIFO | RR) => rng.i32(1..=99),
        _ => 0,
    };
    (policy, priority)
}

fn attr(rng: &mut Rng) -> Attr {
    let (policy, priority) = class(rng);
    let mut attr = match policy {
        DEADLINE => Attr::deadline(),
        policy => Attr::real_time(policy, priority.cast_unsigned()),
    };
    attr.nice = nice(rng);
    attr.flags = match rng.u32(..40) {
        0 => rng.u64(..),
        1..=9 => rng.u64(..0x80),
        10..=14 => FLAG_KEEP_POLICY,
        15..=17 => FLAG_KEEP_PARAMS,
        18..=20 => FLAG_KEEP_POLICY | FLAG_KEEP_PARAMS,
        _ => 0,
    };
    attr.size = match rng.u32(..20) {
        0 => rng.choice([1, 47, 57, 4097]).unwrap_or(0),
        1 => rng.choice([0, 48, 64, 4096]).unwrap_or(0),
        _ => Attr::SIZE,
    };
    attr
}

/// So little that the kernel's account of the time that it has promised, which all share, does not
/// change.
fn without_bandwidth(attr: Attr) -> Attr {
    Attr {
        runtime: 1024,
        deadline: 2_000_000_000,
        period: 2_000_000_000,
        ..attr
    }
}

fn pointer(rng: &mut Rng) -> i64 {
    match rng.u32(..60) {
        0 => 0,
        1 => -1,
        2 => NOWHERE,
        3 => NOWHERE - 2,
        _ => LOW,
    }
}

fn is_above_other(policy: u32) -> bool {
    matches!(policy, FIFO | RR | DEADLINE)
}

/// Whether rules nice and sched forbid this of a process that is in no class above OTHER.
fn forbids(attr: &Attr, floor: i32) -> bool {
    let keeps_policy = attr.flags & FLAG_KEEP_POLICY != 0;
    let keeps_params = attr.flags & FLAG_KEEP_PARAMS != 0;
    match attr.policy {
        _ if keeps_policy => !keeps_params && attr.nice < floor,
        FIFO | RR | DEADLINE => true,
        OTHER | BATCH | EXT => !keeps_params && attr.nice < floor,
        _ => false,
    }
}

fn is_below_ceiling(state: &State, floor: i32) -> bool {
    let (class, level) = (state.io >> 13 & 7, state.io & 7);
    !is_above_other(state.policy)
        && state.nice >= floor
        && state.priority == 0
        && class != IO_RT
        && (class != IO_BE || level >= highest_io(floor))
}

/// For each side and door: calls, refused, allowed, failed otherwise.
type Counts = [[[u64; 4]; DOORS.len()]; 2];

#[derive(Default)]
struct Outcome {
    counts: Counts,
    /// Calls of sched_setattr(2) and writes to autogroup that no rule forbids, refused as their caller
    /// was preempted, and asked again.
    preempted: u64,
    /// What must not happen.
    broken: Vec<String>,
    /// A line for each call on the side that is free: what came of it.
    log: String,
}

impl Outcome {
    fn broke(&mut self, what: String) {
        if self.broken.len() < 5 {
            self.broken.push(what);
        }
    }

    fn write(&self, name: &str) {
        let mut text = String::new();
        for number in self.counts.as_flattened().as_flattened() {
            write!(text, "{number} ").expect("room");
        }
        write!(text, "{}", self.preempted).expect("room");
        for what in &self.broken {
            write!(text, "\n{what}").expect("room");
        }
        fs::write(name, text).expect("a file of results");
        fs::write(format!("{name}.log"), &self.log).expect("a file of results");
    }

    fn read(name: &str) -> Self {
        let text = fs::read_to_string(name).expect("a file of results");
        let mut lines = text.lines();
        let mut numbers = lines
            .next()
            .expect("numbers")
            .split(' ')
            .map(|number| number.parse().expect("a number"));
        let mut outcome = Self::default();
        for count in outcome.counts.as_flattened_mut().as_flattened_mut() {
            *count = numbers.next().expect("a count");
        }
        outcome.preempted = numbers.next().expect("a count");
        outcome.broken = lines.map(String::from).collect();
        outcome.log = fs::read_to_string(format!("{name}.log")).expect("a file of results");
        outcome
    }
}

/// The calls of one caller.
fn calls(world: &World, seed: u64, count: usize) -> Outcome {
    let mut rng = Rng::with_seed(seed);
    let mut outcome = Outcome::default();
    for number in 0..count {
        let attempt = world.attempt(&mut rng);
        let forbidden = match (attempt.forbidden, attempt.task, world.floor) {
            (Forbidden::Is(forbidden), ..) => forbidden,
            (Forbidden::Increment(by), Some(task), Some(floor)) => {
                let nice = sys::state(world.tasks(attempt.side)[task]).nice;
                (i64::from(nice) + by.clamp(-40, 40)).clamp(-20, 19) < floor.into()
            }
            _ => false,
        };
        let mut result = world.perform(&attempt);
        // Whose note was lost is refused, an autogroup's writer whoever it is for: asked again, what is
        // refused by right is refused again.
        let may_be_lost = match attempt.side {
            Side::Guarded => !forbidden && (attempt.door == 6 || attempt.door == 7),
            Side::Free => attempt.door == 7,
        };
        let mut again = 0..20;
        while may_be_lost && result == Err(Errno::PERM) && again.next().is_some() {
            result = world.perform(&attempt);
            outcome.preempted += u64::from(result.is_ok());
        }
        let states = world.states(&attempt);

        let count = &mut outcome.counts[attempt.side as usize][attempt.door];
        count[0] += 1;
        count[match result {
            Err(Errno::PERM) => 1,
            Ok(()) => 2,
            Err(_) => 3,
        }] += 1;
        let told = || format!("call {number}: {attempt:?} gave {result:?}, and {states:?}");
        match (attempt.side, world.floor) {
            (Side::Free, _) if !world.alone => match result {
                // nor does the hook know whose autogroup is written
                Err(Errno::PERM) if attempt.door == 7 => outcome.preempted += 1,
                Err(Errno::PERM) => outcome.broke(told()),
                _ => {}
            },
            (Side::Free, _) => {
                let errno = result.err().map_or(0, Errno::raw_os_error);
                let autogroup = match attempt.act {
                    Act::Autogroup(_) => world.autogroup(Side::Free),
                    Act::Call(..) => 0,
                };
                log(&mut outcome.log, &attempt, errno, autogroup, &states);
            }
            (Side::Guarded, None) => {}
            (Side::Guarded, Some(floor)) => {
                let autogroup = match attempt.act {
                    Act::Autogroup(_) => world.autogroup(Side::Guarded),
                    Act::Call(..) => floor,
                };
                let raised = !states.iter().all(|state| is_below_ceiling(state, floor));
                // what another caller adds to is not known
                let known = world.alone || matches!(attempt.forbidden, Forbidden::Is(_));
                let wrongly = known
                    && match result {
                        Ok(()) => forbidden,
                        // who is preempted all the time loses each note
                        Err(Errno::PERM) if may_be_lost && !world.alone => {
                            outcome.preempted += 1;
                            false
                        }
                        Err(Errno::PERM) => !forbidden,
                        Err(_) => false,
                    };
                if raised || wrongly || autogroup < floor {
                    outcome.broke(told());
                }
            }
        }
    }
    if let Some(floor) = world.floor {
        for tid in world.tasks(Side::Guarded) {
            let state = sys::state(*tid);
            if !is_below_ceiling(&state, floor) {
                outcome.broke(format!("at the end task {tid} is at {state:?}"));
            }
        }
    }
    // left with the little bandwidth of a deadline, it would take hours to exit
    for tid in world.tasks.iter().flatten() {
        assert_eq!(Outside.setscheduler(Native, *tid, OTHER.into(), 0), Ok(()));
    }
    outcome
}

/// The call, as far as it is the same for other processes, and what came of it.
fn log(log: &mut String, attempt: &Attempt, errno: i32, autogroup: i32, states: &[State]) {
    let door = DOORS[attempt.door];
    let argument = match &attempt.act {
        Act::Call(_, _, args) => args[2].to_string(),
        Act::Autogroup(text) => text.clone(),
    };
    write!(
        log,
        "{door}, {argument}, task {:?}: errno {errno}, ",
        attempt.task
    )
    .expect("room");
    write!(log, "autogroup {autogroup}").expect("room");
    for state in states {
        let State {
            policy,
            flags,
            nice,
            priority,
            io,
        } = state;
        write!(log, "; {policy} {flags} {nice} {priority} {io}").expect("room");
    }
    log.push('\n');
}

fn list(tasks: &[i32]) -> String {
    let words: Vec<_> = tasks.iter().map(ToString::to_string).collect();
    words.join(",")
}

fn parse_list(word: &str) -> Vec<i32> {
    word.split(',')
        .map(|tid| tid.parse().expect("a TID"))
        .collect()
}

/// What an agent is told.
pub fn obey(words: &[&str]) -> Option<i32> {
    match words {
        [
            "fuzz",
            name,
            seed,
            count,
            floor,
            inside,
            alone,
            guarded,
            free,
        ] => {
            // a deadline that is missed sends it, where the process had asked for that
            // SAFETY: signal(2) with a disposition of the kernel's own.
            unsafe { libc::signal(libc::SIGXCPU, libc::SIG_IGN) };
            let tasks = [parse_list(guarded), parse_list(free)];
            let open = |tasks: &[i32]| {
                OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(sys::autogroup_file(tasks[0]))
                    .expect("an autogroup")
            };
            let world = World {
                floor: floor.parse().ok(),
                inside: *inside == "inside",
                alone: *alone == "alone",
                autogroups: [open(&tasks[0]), open(&tasks[1])],
                tasks,
            };
            let seed = seed.parse().expect("a seed");
            calls(&world, seed, count.parse().expect("a count")).write(name);
        }
        ["flood", cpu, free] => flood(cpu, &parse_list(free)),
        ["attack", name, cpu, wakes, floor, guarded] => {
            let wakes = wakes.parse().expect("a count");
            let floor = floor.parse().expect("a floor");
            attack(cpu, wakes, floor, parse_list(guarded)[0]).write(name);
        }
        _ => return None,
    }
    Some(0)
}

/// A process that may set its own priority and that of anybody, of a user of its own.
fn target(side: Side) -> (Agent, Vec<i32>) {
    const CAPABILITIES: &str = "+sys_nice,+sys_admin,+dac_override";
    let mut agent = Agent::with(|command| {
        *command = Command::new("setpriv");
        command
            .args(["--reuid", &UIDS[side as usize].to_string()])
            .args(["--inh-caps", CAPABILITIES, "--ambient-caps", CAPABILITIES])
            .arg(this_binary().get_program())
            .arg("agent");
        in_session(command);
    });
    let tasks = vec![agent.pid, agent.thread(), agent.thread()];
    if side == Side::Guarded {
        agent.child("fork");
    }
    (agent, tasks)
}

fn result_file(name: &str) -> String {
    let name = format!("/dev/shm/fuzz-{name}");
    for file in [name.clone(), format!("{name}.log")] {
        fs::write(&file, "").expect("a file of results");
        let anybody = fs::Permissions::from_mode(0o666);
        fs::set_permissions(&file, anybody).expect("a file of results");
    }
    name
}

fn print(what: &str, outcome: &Outcome, start: Instant) {
    let total: u64 = outcome
        .counts
        .as_flattened()
        .iter()
        .map(|count| count[0])
        .sum();
    println!(
        "\nfuzz, {what}: {total} calls in {:.1} s, {} refused as their caller was preempted\n\
         {:22} {:>26}   {:>26}",
        start.elapsed().as_secs_f32(),
        outcome.preempted,
        "calls refused passed other",
        "guarded",
        "unguarded"
    );
    for (door, name) in DOORS.iter().enumerate() {
        print!("{name:22}");
        for side in &outcome.counts {
            let [calls, refused, passed, other] = side[door];
            print!(" {calls:>7} {refused:>6} {passed:>6} {other:>5} ");
        }
        println!();
    }
}

/// The same calls with a guard, and without one.
fn fuzz(inside: bool, seed: u64, floor: i32) {
    let count = heavy(110_000);
    let place = if inside { "inside" } else { "outside" };
    let run = |guarded: bool| {
        let start = Instant::now();
        let (mut target, tasks) = target(Side::Guarded);
        let (free, free_tasks) = self::target(Side::Free);
        let lsm = guarded.then(|| {
            let options = format!("--pid {} -n {floor} --rule nice,sched,io", target.pid);
            Lsm::start(&options)
        });
        // nobody is above the ceiling when it starts
        let start_at = floor.max(0);
        for tid in &tasks {
            assert_eq!(set_nice(*tid, start_at), Ok(()));
        }
        let file = sys::autogroup_file(target.pid);
        fs::write(file, start_at.to_string()).expect("an autogroup");
        let floor = if guarded {
            floor.to_string()
        } else {
            "none".into()
        };
        let name = result_file(&format!("{place}-{guarded}"));
        let command = format!(
            "fuzz {name} {seed} {count} {floor} {place} alone {} {}",
            list(&tasks),
            list(&free_tasks)
        );
        let mut root = Agent::start();
        let caller = if inside { &mut target } else { &mut root };
        assert_eq!(caller.ask(&command), 0);
        let outcome = Outcome::read(&name);
        let what = if guarded {
            "guarded"
        } else {
            "the same unguarded"
        };
        print(
            &format!("from {place}, seed {seed}, {what}"),
            &outcome,
            start,
        );
        assert!(outcome.broken.is_empty(), "{}", outcome.broken.join("\n"));
        if let Some(lsm) = lsm {
            lsm.end();
        }
        drop(free);
        outcome
    };
    let (with, without) = (run(true), run(false));
    let mut differ = with.log.lines().zip(without.log.lines()).enumerate();
    if let Some((at, (with, without))) = differ.find(|(_, (with, without))| with != without) {
        panic!("call {at} on an unguarded process: with a guard {with}\nand without {without}");
    }
    assert_eq!(with.log.len(), without.log.len());
    // some, where the count is small
    let few = 5 + count as u64 / 1000;
    assert!(with.preempted <= few, "{} preempted", with.preempted);
    for (door, name) in DOORS.iter().enumerate() {
        let [calls, refused, passed, _] = with.counts[0][door];
        let nothing_to_refuse = door == 5;
        assert!(
            calls == 0 && door == 3 || passed > 0 && (refused > 0 || nothing_to_refuse),
            "{name} was to be refused and to pass"
        );
    }
}

fn random_calls_from_outside_raise_nobody() {
    fuzz(false, 1, 0);
}

fn random_calls_from_within_raise_nobody() {
    fuzz(true, 2, 5);
}

const STOP: &str = "/dev/shm/fuzz-stop";

fn stay_on(cpu: &str) {
    let cpu: usize = cpu.parse().expect("a CPU");
    let mask = 1u64 << cpu;
    // SAFETY: a mask of the size that is said.
    let set = unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, 8, &raw const mask) };
    assert_eq!(set, 0, "CPU {cpu}");
}

/// Sets an unguarded process until there is a file [`STOP`], with a pause of some length each time,
/// so that an attacker may find it at any place of a call.
fn flood(cpu: &str, tasks: &[i32]) {
    stay_on(cpu);
    let mut rng = Rng::with_seed(3);
    while !fs::exists(STOP).expect("/dev/shm") {
        for _ in 0..1000 {
            let attr = Attr::nice(OTHER, rng.i32(-20..=19));
            let tid = tasks[rng.usize(..tasks.len())];
            let set = Outside.setattr(Native, tid, &attr);
            assert_eq!(set, Ok(()), "an unguarded process");
            for _ in 0..rng.u32(..2000) {
                std::hint::spin_loop();
            }
        }
    }
}

/// Wakes by a timer, preempts whoever runs there, and asks at once for what is forbidden. What it
/// asks for last is allowed, so that this is what it noted.
fn attack(cpu: &str, wakes: usize, floor: i32, target: i32) -> Outcome {
    stay_on(cpu);
    assert_eq!(Outside.setscheduler(Native, 0, FIFO.into(), 50), Ok(()));
    let mut rng = Rng::with_seed(cpu.len() as u64);
    let mut outcome = Outcome::default();
    let good = Attr::nice(OTHER, 10);
    for wake in 0..wakes {
        thread::sleep(Duration::from_nanos(rng.u64(1000..150_000)));
        let bad = match wake % 3 {
            0 => Attr::nice(OTHER, floor - 1),
            1 => Attr::nice(BATCH, -20),
            _ => Attr::real_time(FIFO, 1),
        };
        let result = Outside.setattr(Native, target, &bad);
        let state = try_state(target);
        if result != Err(Errno::PERM) || !state.is_some_and(|state| is_below_ceiling(&state, floor))
        {
            outcome.broke(format!(
                "wake {wake}: {bad:?} gave {result:?}, and {state:?}"
            ));
        }
        outcome.counts[0][6][0] += 1;
        outcome.counts[0][6][1] += 1;
        match Outside.setattr(Native, target, &good) {
            Ok(()) => outcome.counts[0][6][2] += 1,
            Err(Errno::PERM) => outcome.preempted += 1,
            Err(error) => outcome.broke(format!("{good:?}: {error}")),
        }
        outcome.counts[0][6][0] += 1;
    }
    assert_eq!(Outside.setscheduler(Native, 0, OTHER.into(), 0), Ok(()));
    outcome
}

/// Two that fuzz, from outside and from within; and on each of two CPUs, as far as there are two, a
/// flood and an attack.
fn many_callers_at_once_raise_nobody() {
    let _ = fs::remove_file(STOP);
    let start = Instant::now();
    let floor = 0;
    let cpus: Vec<_> = (0..thread::available_parallelism().map_or(1, |n| n.get().min(2)))
        .map(|cpu| cpu.to_string())
        .collect();
    let (mut target, tasks) = target(Side::Guarded);
    let (_free, free_tasks) = self::target(Side::Free);
    let lsm = Lsm::start(&format!("--pid {} --rule nice,sched,io", target.pid));
    let (guarded, free) = (list(&tasks), list(&free_tasks));
    let (count, wakes) = (heavy(40_000), heavy(100_000));
    let mut outcomes = Vec::new();
    thread::scope(|scope| {
        let floods: Vec<_> = cpus
            .iter()
            .map(|cpu| {
                let command = format!("flood {cpu} {free}");
                scope.spawn(move || assert_eq!(Agent::start().ask(&command), 0))
            })
            .collect();
        let mut others = Vec::new();
        for cpu in &cpus {
            let name = result_file(&format!("attack-{cpu}"));
            let command = format!("attack {name} {cpu} {wakes} {floor} {guarded}");
            others.push(scope.spawn(move || {
                assert_eq!(Agent::start().ask(&command), 0);
                (format!("attacks on CPU {cpu}"), Outcome::read(&name))
            }));
        }
        for (place, agent) in [("outside", None), ("inside", Some(&mut target))] {
            let name = result_file(place);
            let seed = place.len();
            let command =
                format!("fuzz {name} {seed} {count} {floor} {place} together {guarded} {free}");
            others.push(scope.spawn(move || {
                let mut root = Agent::start();
                let caller = agent.unwrap_or(&mut root);
                assert_eq!(caller.ask(&command), 0);
                (format!("together, from {place}"), Outcome::read(&name))
            }));
        }
        outcomes.extend(
            others
                .into_iter()
                .map(|other| other.join().expect("a caller")),
        );
        fs::write(STOP, "").expect("a file");
        for flood in floods {
            flood.join().expect("a flood");
        }
    });
    for (what, outcome) in &outcomes {
        print(what, outcome, start);
    }
    let broken: Vec<_> = outcomes
        .iter()
        .filter(|(_, outcome)| !outcome.broken.is_empty())
        .map(|(what, outcome)| format!("{what}: {}", outcome.broken.join("\n")))
        .collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    for (what, outcome) in &outcomes {
        assert!(outcome.counts[0][6][2] > 0, "{what}: nothing passed");
    }
    for tid in tasks {
        assert!(is_below_ceiling(&sys::state(tid), floor));
    }
    lsm.end();
}
