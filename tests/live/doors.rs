// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! Rule nice where setpriority(2) is not what asks: sched_setattr(2) and /proc/PID/autogroup.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use libtest_mimic::Trial;
use rustix::io::Errno;
use rustix::process::setpriority_process;

use crate::agent::Agent;
use crate::helpers::{Lsm, accepts, heavy, ignoring, nice_of, refuses, run};
use crate::sys::{
    Attr, BATCH, Call, Caller, Compat, DEADLINE, FIFO, FLAG_KEEP_PARAMS, FLAG_KEEP_POLICY,
    FLAG_RESET_ON_FORK, IDLE, LOW, NOWHERE, Native, OTHER, Outside, Within, allowed, autogroup,
    autogroup_file, insisted, policies_with_nice, refused, repeated, state,
};
use crate::writes::{WAYS, has_uring};
use crate::{fuzz, heap, sys, writes};

tests!(
    a_low_nice_by_sched_setattr_is_refused_for_each_class_that_has_one,
    a_low_nice_by_sched_setattr_is_refused_from_within,
    any_thread_is_guarded_from_sched_setattr,
    sched_setattr_holds_at_other_floors,
    a_nice_that_idle_does_not_have_is_no_request,
    a_low_nice_for_whatever_class_it_has_is_refused,
    parameters_that_are_kept_are_no_request,
    reset_on_fork_hides_nothing,
    a_sched_attr_of_any_size_is_read_as_the_kernel_reads_it,
    bad_sched_setattr_keeps_the_kernels_errno,
    a_present_nice_below_the_floor_is_no_request,
    a_sched_attr_rewritten_during_the_call_raises_nobody,
    an_outside_writer_cannot_raise_the_autogroup_of_a_guarded_process,
    a_guarded_writer_cannot_raise_its_own_autogroup,
    a_guarded_writer_cannot_raise_its_own_autogroup_by_another_member,
    a_guarded_writer_may_raise_the_autogroup_of_another_session,
    another_thread_of_a_guarded_writer_is_guarded,
    no_way_to_write_raises_an_autogroup,
    no_way_to_write_from_within_raises_an_autogroup,
    no_way_to_write_from_within_raises_it_by_another_member,
    bad_writes_to_autogroup_keep_the_kernels_errno,
    what_one_call_noted_is_of_no_use_to_the_next,
);

/// The tests of io_uring are ignored where the kernel has none.
pub fn trials() -> Vec<Trial> {
    ignoring(tests(), &[(!has_uring(), "no_way_to_write")])
}

/// What the tests of doors and rules tell an agent.
pub fn obey(words: &[&str]) -> Option<i32> {
    match words[0] {
        "setsid" => Some(match rustix::process::setsid() {
            Ok(_) => 0,
            Err(error) => error.raw_os_error(),
        }),
        "stale" => Some(use_stale_notes(words)),
        _ => sys::obey(words)
            .or_else(|| writes::obey(words))
            .or_else(|| fuzz::obey(words))
            .or_else(|| heap::obey(words)),
    }
}

/// In a session of its own, and so in an autogroup of its own.
pub fn with_session() -> Agent {
    Agent::with(in_session)
}

pub fn in_session(command: &mut Command) {
    // SAFETY: setsid(2), between fork and exec.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(drop).map_err(io::Error::from));
    }
}

/// The setting of a nice value by sched_setattr(2).
fn set(caller: &mut Caller<'_>, tid: i32, attr: &Attr) -> Result<(), Errno> {
    caller.setattr(Native, tid, attr)
}

fn a_low_nice_by_sched_setattr_is_refused_for_each_class_that_has_one() {
    let policies = policies_with_nice();
    let target = Agent::start();
    let pid = target.pid;
    let lsm = Lsm::start(&format!("--pid {pid}"));
    for &from in &policies {
        for &policy in &policies {
            allowed(pid, "a class", || {
                set(&mut Outside, pid, &Attr::nice(from, 5))
            });
            for nice in [-1, -20, i32::MIN] {
                let attr = Attr::nice(policy, nice);
                refused(pid, &format!("{attr:?}"), || set(&mut Outside, pid, &attr));
            }
            for nice in [0, 7, 19] {
                let attr = Attr::nice(policy, nice);
                let state = allowed(pid, &format!("{attr:?}"), || set(&mut Outside, pid, &attr));
                assert_eq!((state.policy, state.nice), (policy, nice));
            }
        }
    }
    let report = lsm.end();
    assert!(report.stderr.contains(" refused"), "{report}");
}

fn a_low_nice_by_sched_setattr_is_refused_from_within() {
    let mut target = Agent::start();
    let thread = target.thread();
    let pid = target.pid;
    let _lsm = Lsm::start(&format!("--pid {pid}"));
    for table in [Native, Compat] {
        for whom in [0, pid, thread] {
            let task = if whom == 0 { pid } else { whom };
            let mut within = Within(&mut target);
            for (policy, nice) in [(OTHER, -1), (BATCH, -20)] {
                let what = format!("{table:?} {whom} {policy} {nice}");
                let attr = Attr::nice(policy, nice);
                refused(task, &what, || within.setattr(table, whom, &attr));
                let attr = Attr::nice(policy, 3);
                let state = allowed(task, &what, || within.setattr(table, whom, &attr));
                assert_eq!((state.policy, state.nice), (policy, 3), "{what}");
            }
            allowed(task, "nice 0", || {
                within.setattr(table, whom, &Attr::new(OTHER))
            });
        }
    }
}

fn any_thread_is_guarded_from_sched_setattr() {
    let mut target = Agent::start();
    let _lsm = Lsm::start(&format!("--pid {}", target.pid));
    let threads = [target.thread(), target.thread(), target.pid];
    for thread in threads {
        let low = Attr::nice(BATCH, -1);
        refused(thread, "a thread", || set(&mut Outside, thread, &low));
        let attr = Attr::nice(BATCH, 4);
        allowed(thread, "a thread", || set(&mut Outside, thread, &attr));
    }
}

fn sched_setattr_holds_at_other_floors() {
    for floor in [-20, -5, 10, 19] {
        let target = Agent::at_nice(19);
        let pid = target.pid;
        let _lsm = Lsm::start(&format!("--pid {pid} -n {floor}"));
        let attr = Attr::nice(OTHER, floor);
        let state = allowed(pid, "the floor", || set(&mut Outside, pid, &attr));
        assert_eq!(state.nice, floor);
        if floor > -20 {
            let attr = Attr::nice(OTHER, floor - 1);
            refused(pid, "below the floor", || set(&mut Outside, pid, &attr));
        }
    }
}

fn a_nice_that_idle_does_not_have_is_no_request() {
    let target = Agent::at_nice(5);
    let pid = target.pid;
    let lsm = Lsm::start(&format!("--pid {pid}"));
    let state = allowed(pid, "IDLE", || {
        set(&mut Outside, pid, &Attr::nice(IDLE, -20))
    });
    assert_eq!((state.policy, state.nice), (IDLE, 5));
    // back by the call that fills the present one in
    allowed(pid, "OTHER", || {
        Outside.setscheduler(Native, pid, OTHER.into(), 0)
    });
    assert_eq!(nice_of(pid), 5);
    lsm.end();
}

fn a_low_nice_for_whatever_class_it_has_is_refused() {
    let target = Agent::at_nice(5);
    let pid = target.pid;
    let _lsm = Lsm::start(&format!("--pid {pid}"));
    for policy in policies_with_nice() {
        allowed(pid, "a class", || {
            set(&mut Outside, pid, &Attr::nice(policy, 5))
        });
        let keep = |nice| Attr::nice(OTHER, nice).flags(FLAG_KEEP_POLICY);
        refused(pid, "a low nice", || set(&mut Outside, pid, &keep(-1)));
        let state = allowed(pid, "nice 6", || set(&mut Outside, pid, &keep(6)));
        assert_eq!((state.policy, state.nice), (policy, 6));
    }
}

fn parameters_that_are_kept_are_no_request() {
    for nice in [5, -15] {
        let target = Agent::at_nice(nice);
        let pid = target.pid;
        let _lsm = Lsm::start(&format!("--pid {pid}"));
        for flags in [FLAG_KEEP_PARAMS, FLAG_KEEP_PARAMS | FLAG_KEEP_POLICY] {
            let attr = Attr::nice(OTHER, -20).flags(flags);
            let state = allowed(pid, &format!("{attr:?}"), || set(&mut Outside, pid, &attr));
            assert_eq!((state.policy, state.nice), (OTHER, nice));
        }
    }
}

fn reset_on_fork_hides_nothing() {
    let target = Agent::start();
    let pid = target.pid;
    let _lsm = Lsm::start(&format!("--pid {pid}"));
    let with = |policy, nice| Attr::nice(policy, nice).flags(FLAG_RESET_ON_FORK);
    for policy in [OTHER, BATCH] {
        refused(pid, "reset on fork", || {
            set(&mut Outside, pid, &with(policy, -1))
        });
        let state = allowed(pid, "reset on fork", || {
            set(&mut Outside, pid, &with(policy, 1))
        });
        assert_eq!(
            (state.policy, state.nice, state.flags),
            (policy, 1, FLAG_RESET_ON_FORK)
        );
        let low = with(policy, -1).flags(FLAG_RESET_ON_FORK | FLAG_KEEP_POLICY);
        refused(pid, "reset on fork", || set(&mut Outside, pid, &low));
    }
}

fn a_sched_attr_of_any_size_is_read_as_the_kernel_reads_it() {
    let target = Agent::start();
    let pid = target.pid;
    let _lsm = Lsm::start(&format!("--pid {pid}"));
    // 0 is the first size, 48; what is larger than the kernel's own has to end in zeroes
    for size in [0, 48, 56, 57, 64, 128, 4096] {
        let attr = |nice| Attr {
            size,
            ..Attr::nice(OTHER, nice)
        };
        refused(pid, &format!("size {size}"), || {
            set(&mut Outside, pid, &attr(-1))
        });
        let state = allowed(pid, &format!("size {size}"), || {
            set(&mut Outside, pid, &attr(2))
        });
        assert_eq!(state.nice, 2);
    }
}

fn bad_sched_setattr_keeps_the_kernels_errno() {
    let target = Agent::start();
    let pid = target.pid;
    let lsm = Lsm::start(&format!("--pid {pid}"));
    let before = state(pid);
    let low = Attr::nice(OTHER, -20);
    let sized = |size| Attr { size, ..low };
    for (attr, errno) in [
        (sized(1), Errno::TOOBIG),
        (sized(47), Errno::TOOBIG),
        (sized(4097), Errno::TOOBIG),
        (sized(u32::MAX), Errno::TOOBIG),
        (Attr::nice(4, -20), Errno::INVAL),
        (Attr::nice(8, -20), Errno::INVAL),
        (Attr::nice(99, -20), Errno::INVAL),
        (Attr::nice(u32::MAX, -20), Errno::INVAL),
        (low.flags(1 << 31), Errno::INVAL),
        (low.flags(1 << 63), Errno::INVAL),
        (Attr { priority: 1, ..low }, Errno::INVAL),
        (Attr::real_time(FIFO, 0), Errno::INVAL),
        (Attr::real_time(FIFO, 100), Errno::INVAL),
        (Attr::new(DEADLINE), Errno::INVAL),
    ] {
        assert_eq!(set(&mut Outside, pid, &attr), Err(errno), "{attr:?}");
    }
    let mut bytes = low.bytes();
    bytes.extend([0u8; 16]);
    bytes.extend([1]);
    bytes[0] = u8::try_from(bytes.len()).expect("a small size");
    Outside.poke(&bytes);
    let call = |who: i64, pointer, flags| sys::call(Native, Call::Setattr, [who, pointer, flags]);
    assert_eq!(call(pid.into(), LOW, 0), Err(Errno::TOOBIG), "a tail");
    Outside.poke(&low.bytes());
    for (who, pointer, flags, errno) in [
        (pid.into(), 0, 0, Errno::INVAL),
        (pid.into(), NOWHERE, 0, Errno::FAULT),
        (pid.into(), -1, 0, Errno::FAULT),
        (pid.into(), NOWHERE - 8, 0, Errno::FAULT),
        (pid.into(), LOW, 1, Errno::INVAL),
        (-1, LOW, 0, Errno::INVAL),
        (i64::from(i32::MAX), LOW, 0, Errno::SRCH),
    ] {
        let result = call(who, pointer, flags);
        assert_eq!(result, Err(errno), "{who} {pointer:#x} {flags}");
    }
    assert_eq!(state(pid), before);
    lsm.end().counted(0);
}

fn a_present_nice_below_the_floor_is_no_request() {
    let mut target = Agent::at_nice(-15);
    let pid = target.pid;
    let lsm = Lsm::start(&format!("--pid {pid}"));
    run("chrt", &["-b", "-p", "0", &pid.to_string()]).exited(0);
    let is = |policy| assert_eq!((state(pid).policy, state(pid).nice), (policy, -15));
    is(BATCH);
    run("chrt", &["-o", "-p", "0", &pid.to_string()]).exited(0);
    is(OTHER);
    for table in [Native, Compat] {
        for policy in [BATCH, IDLE, OTHER] {
            let set = Outside.setscheduler(table, pid, policy.into(), 0);
            assert_eq!(set, Ok(()), "{table:?} {policy}");
            is(policy);
            assert_eq!(Outside.setparam(table, pid, 0), Ok(()));
            is(policy);
            let set = Within(&mut target).setscheduler(table, 0, policy.into(), 0);
            assert_eq!(set, Ok(()), "{table:?} {policy}");
            is(policy);
        }
    }
    for policy in [OTHER, BATCH] {
        let attr = Attr::nice(policy, -15);
        refused(pid, "its own nice", || set(&mut Outside, pid, &attr));
        let attr = attr.flags(FLAG_KEEP_POLICY);
        refused(pid, "its own nice", || set(&mut Outside, pid, &attr));
    }
    is(OTHER);
    lsm.end().counted(4);
}

/// How long it may take until two threads have met.
const PATIENCE: Duration = Duration::from_secs(60);

/// A second thread rewrites what a call of the first one reads.
fn a_sched_attr_rewritten_during_the_call_raises_nobody() {
    let mut target = Agent::start();
    let pid = target.pid;
    let lsm = Lsm::start(&format!("--pid {pid}"));
    let rounds = heavy(50_000);
    for bad in [Attr::nice(OTHER, -20), Attr::real_time(FIFO, 50)] {
        let good = Attr::nice(OTHER, 10);
        let mut shared = good;
        let address = (&raw mut shared).expose_provenance();
        let stop = AtomicBool::new(false);
        let (mut passed, mut denied) = (0, 0);
        let start = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| {
                let shared = std::ptr::with_exposed_provenance_mut::<Attr>(address);
                let mut random = fastrand::Rng::with_seed(1);
                while !stop.load(Relaxed) {
                    for attr in [bad, good] {
                        // SAFETY: memory that outlives this thread, and that no Rust code reads.
                        unsafe { shared.write_volatile(attr) };
                        for _ in 0..random.u32(..500) {
                            std::hint::spin_loop();
                        }
                    }
                }
            });
            let mut round = 0;
            // on one CPU the threads take turns, and few rounds may all be in one of them
            while round < rounds || (passed.min(denied) == 0 && start.elapsed() < PATIENCE) {
                round += 1;
                let args = [pid.into(), address as i64, 0];
                match sys::call(Native, Call::Setattr, args) {
                    Ok(()) => passed += 1,
                    Err(Errno::PERM) => denied += 1,
                    // half of one and half of the other
                    Err(Errno::INVAL) => {}
                    Err(error) => panic!("sched_setattr: {error}"),
                }
                let now = state(pid);
                let raised = now.nice < 0 || now.policy != OTHER;
                if raised {
                    stop.store(true, Relaxed);
                }
                assert!(!raised, "raised to {now:?} while {bad:?} was written");
            }
            stop.store(true, Relaxed);
        });
        println!("double read: {passed} passed, {denied} refused");
        assert!(passed > 0 && denied > 0, "the structs were to be mixed");
    }
    refused(pid, "a low nice", || {
        set(&mut Within(&mut target), 0, &Attr::nice(OTHER, -1))
    });
    lsm.end();
}

fn an_outside_writer_cannot_raise_the_autogroup_of_a_guarded_process() {
    let target = with_session();
    let pid = target.pid;
    let lsm = Lsm::start(&format!("--pid {pid} -n -5"));
    let write = |nice: i32| Outside.write("write", &autogroup_file(pid), &nice.to_string());
    for (nice, result) in [
        (10, Ok(())),
        (-6, Err(Errno::PERM)),
        (0, Ok(())),
        (-20, Err(Errno::PERM)),
        (-5, Ok(())),
        (-6, Err(Errno::PERM)),
        (19, Ok(())),
    ] {
        let before = autogroup(pid);
        assert_eq!(write(nice), result, "{nice}");
        let after = if result.is_ok() { nice } else { before };
        assert_eq!(autogroup(pid), after);
    }
    lsm.end().counted(3);
    assert_eq!(write(-20), Ok(()));
}

fn a_guarded_writer_cannot_raise_its_own_autogroup() {
    let mut target = with_session();
    let pid = target.pid;
    let _lsm = Lsm::start(&format!("--pid {pid}"));
    for path in ["/proc/self/autogroup", &autogroup_file(pid)] {
        let mut write = |nice: &str| Within(&mut target).write("write", path, nice);
        assert_eq!(write("-1"), Err(Errno::PERM), "{path}");
        assert_eq!(autogroup(pid), 0);
        assert_eq!(write("5"), Ok(()), "{path}");
        assert_eq!(autogroup(pid), 5);
        assert_eq!(write("0"), Ok(()), "{path}");
        assert_eq!(write("-20"), Err(Errno::PERM), "{path}");
        assert_eq!(autogroup(pid), 0);
    }
}

/// A session with a guarded process in it, and one that is not guarded.
fn shared_session() -> (Agent, i32, Lsm) {
    let mut target = with_session();
    let member = target.child("fork");
    let lsm = Lsm::start(&format!("--no-children --pid {}", target.pid));
    accepts(member, -1);
    (target, member, lsm)
}

fn a_guarded_writer_cannot_raise_its_own_autogroup_by_another_member() {
    let (mut target, member, _lsm) = shared_session();
    let path = autogroup_file(member);
    let mut within = Within(&mut target);
    assert_eq!(within.write("write", &path, "-1"), Err(Errno::PERM));
    assert_eq!(autogroup(member), 0);
    assert_eq!(within.write("write", &path, "3"), Ok(()));
    assert_eq!(autogroup(member), 3);
}

fn a_guarded_writer_may_raise_the_autogroup_of_another_session() {
    let (mut target, other) = (with_session(), with_session());
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    let path = autogroup_file(other.pid);
    let (result, lost) = insisted(|| Within(&mut target).write("write", &path, "-10"));
    assert_eq!(result, Ok(()));
    assert_eq!((autogroup(other.pid), autogroup(target.pid)), (-10, 0));
    lsm.end().counted(lost);
}

fn another_thread_of_a_guarded_writer_is_guarded() {
    let mut target = with_session();
    let _lsm = Lsm::start(&format!("--pid {}", target.pid));
    let mut write = |path: &str, nice| target.call(&format!("write-in-thread write {path} {nice}"));
    assert_eq!(write("/proc/self/autogroup", -1), Err(Errno::PERM));
    assert_eq!(write("/proc/self/autogroup", 1), Ok(()));
    assert_eq!(autogroup(target.pid), 1);
}

/// What a way to write gives for who is not guarded.
fn unguarded(way: &str) -> Result<(), Errno> {
    let other = with_session();
    let path = autogroup_file(other.pid);
    let result = repeated(|| Outside.write(way, &path, "-7"));
    assert_ne!(result, Err(Errno::PERM), "{way}");
    let nice = if result.is_ok() { -7 } else { 0 };
    assert_eq!(autogroup(other.pid), nice, "{way}");
    result
}

/// `pid` is in the autogroup that the writes are for.
fn every_way_is_refused(pid: i32, mut write: impl FnMut(&str, &str) -> Result<(), Errno>) {
    for way in WAYS {
        match unguarded(way) {
            Ok(()) => {
                assert_eq!(write(way, "-7"), Err(Errno::PERM), "{way}");
                assert_eq!(autogroup(pid), 0, "{way}");
                assert_eq!(write(way, "7"), Ok(()), "{way}");
                assert_eq!(autogroup(pid), 7, "{way}");
                assert_eq!(write(way, "0"), Ok(()), "{way}");
            }
            Err(error) => {
                println!("{way} cannot write to this file: {error}");
                assert!(write(way, "-7").is_err(), "{way}");
                assert_eq!(autogroup(pid), 0, "{way}");
            }
        }
    }
}

fn no_way_to_write_raises_an_autogroup() {
    let target = with_session();
    let _lsm = Lsm::start(&format!("--pid {}", target.pid));
    let path = autogroup_file(target.pid);
    every_way_is_refused(target.pid, |way, nice| Outside.write(way, &path, nice));
}

fn no_way_to_write_from_within_raises_an_autogroup() {
    let mut target = with_session();
    let _lsm = Lsm::start(&format!("--pid {}", target.pid));
    let path = autogroup_file(target.pid);
    every_way_is_refused(target.pid, |way, nice| {
        Within(&mut target).write(way, &path, nice)
    });
}

fn no_way_to_write_from_within_raises_it_by_another_member() {
    let (mut target, member, _lsm) = shared_session();
    let path = autogroup_file(member);
    every_way_is_refused(member, |way, nice| {
        Within(&mut target).write(way, &path, nice)
    });
}

fn bad_writes_to_autogroup_keep_the_kernels_errno() {
    let target = with_session();
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    let path = autogroup_file(target.pid);
    for text in ["-21", "20", "99999", "-2147483648", "x", "1.5"] {
        let result = Outside.write("write", &path, text);
        assert_eq!(result, Err(Errno::INVAL), "{text}");
    }
    assert_eq!(autogroup(target.pid), 0);
    lsm.end().counted(0);
}

/// Asks for what is allowed, which is noted, and in the same breath for what is not: how many of
/// these passed. `whom` is guarded, and is 0 for a process that is guarded itself.
fn use_stale_notes(words: &[&str]) -> i32 {
    let number = |at: usize| words[at].parse::<i32>().expect("a number");
    let (rounds, whom, other) = (number(1), number(2), number(3));
    let open = |pid: &str| {
        let path = format!("/proc/{pid}/autogroup");
        fs::OpenOptions::new()
            .write(true)
            .open(path)
            .expect("an autogroup")
    };
    let own_file = open(if whom == 0 { "self" } else { words[2] });
    let other_file = open(words[3]);
    let write = |file: &fs::File, nice: &[u8]| rustix::io::write(file, nice).is_ok();
    let pid = rustix::process::Pid::from_raw(whom);
    let nice = |nice| setpriority_process(pid, nice).is_ok();
    let mut caller = Outside;
    let mut attr = |who, nice| {
        caller
            .setattr(Native, who, &Attr::nice(OTHER, nice))
            .is_ok()
    };
    let fails = || sys::call(Native, Call::Setattr, [whom.into(), NOWHERE, 0]).is_ok();
    // Again where the note was lost: whose autogroup it is is not known then.
    let beside = || (0..10).any(|_| write(&other_file, b"-5"));
    let mut passed = 0;
    for round in 0..rounds {
        // what passes first, or fails before it is noted
        match round % 12 {
            0..=2 => assert!(beside(), "another session"),
            3 => assert!(nice(5), "a nice value above the floor"),
            4 => assert!(write(&own_file, b"5"), "a nice value above the floor"),
            5 => assert!(attr(other, -5), "another process"),
            6..=9 => drop(attr(whom, 10)),
            10 => drop(nice(-5)),
            _ => drop(write(&own_file, b"-5")),
        }
        if round % 12 == 8 {
            fails();
        }
        passed += i32::from(match round % 12 {
            0 | 3 | 4 | 9 | 10 => write(&own_file, b"-5"),
            1 | 11 => nice(-5),
            7 => Outside.setscheduler(Native, whom, FIFO.into(), 1).is_ok(),
            _ => attr(whom, -5),
        });
    }
    passed
}

fn what_one_call_noted_is_of_no_use_to_the_next() {
    let mut target = with_session();
    let other = with_session();
    let _lsm = Lsm::start(&format!("--pid {}", target.pid));
    let (pid, rounds) = (target.pid, heavy(20_000));
    let stays = || {
        let state = state(pid);
        assert!(state.nice >= 0 && state.policy == OTHER, "{state:?}");
        assert!(autogroup(pid) >= 0);
    };
    let command = format!("stale {rounds} 0 {}", other.pid);
    assert_eq!(target.ask(&command), 0, "calls from within that passed");
    stays();
    let command = format!("stale {rounds} {pid} {}", other.pid);
    let words: Vec<_> = command.split(' ').collect();
    assert_eq!(use_stale_notes(&words), 0, "calls that passed");
    stays();
    refuses(pid, -1);
}
