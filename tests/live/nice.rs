// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! Rule nice: what is refused, and what is not.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

use libc::{PRIO_PGRP, PRIO_PROCESS, PRIO_USER};
use rustix::io::Errno;
use rustix::process::{Pid, Uid, setpriority_pgrp, setpriority_user};

use crate::agent::Agent;
use crate::bpf::{Foreign, When};
use crate::helpers::{Lsm, accepts, nice_of, refuses, renice, run, set_nice, threads};

tests!(
    renice_lowers_a_guarded_process_and_cannot_raise_it,
    setpriority_of_the_process_is_refused,
    setpriority_of_a_process_group_refuses_its_guarded_member_alone,
    setpriority_of_a_user_refuses_the_guarded_process_alone,
    nice_from_within_is_refused,
    nice_of_the_32_bit_table_is_refused,
    setpriority_from_within_is_refused,
    values_beyond_the_range_are_judged_as_the_kernel_cuts_them,
    another_thread_is_guarded_from_outside_and_from_within,
    threads_that_start_later_are_guarded,
    a_thread_that_execs_stays_guarded,
    a_process_whose_leader_has_exited_is_guarded,
    an_unguarded_process_is_untouched,
    with_no_children_a_child_is_not_guarded,
    floor_minus_20_refuses_nothing,
    floor_minus_5_holds,
    floor_0_holds_and_is_the_default,
    floor_19_holds,
    a_value_below_the_floor_is_refused_where_the_process_is_lower_still,
    the_kernels_own_refusal_stays_and_is_not_counted,
    the_refusal_of_an_earlier_program_is_kept,
    a_guard_starts_where_another_program_refuses_every_negative_value,
    of_two_guards_the_strictest_wins_and_each_ends_alone,
);

fn renice_lowers_a_guarded_process_and_cannot_raise_it() {
    let target = Agent::start();
    let _lsm = Lsm::start(&format!("--pid {}", target.pid));

    renice(10, target.pid).exited(0);
    assert_eq!(nice_of(target.pid), 10);

    renice(-10, target.pid)
        .exited(1)
        .says("Operation not permitted");
    assert_eq!(nice_of(target.pid), 10);
}

fn setpriority_of_the_process_is_refused() {
    let target = Agent::start();
    let _lsm = Lsm::start(&format!("--pid {}", target.pid));
    refuses(target.pid, -10);
    accepts(target.pid, 10);
    accepts(target.pid, 0);
    refuses(target.pid, -1);
}

fn setpriority_of_a_process_group_refuses_its_guarded_member_alone() {
    let target = Agent::with(|command| {
        command.process_group(0);
    });
    let other = Agent::with(|command| {
        command.process_group(target.pid);
    });
    let lsm = Lsm::start(&format!("--pid {}", target.pid));

    let group = Pid::from_raw(target.pid);
    assert_eq!(setpriority_pgrp(group, -10), Err(Errno::PERM));
    assert_eq!((nice_of(target.pid), nice_of(other.pid)), (0, -10));
    assert_eq!(setpriority_pgrp(group, 10), Ok(()));
    assert_eq!((nice_of(target.pid), nice_of(other.pid)), (10, 10));
    lsm.end().counted(1);
}

fn setpriority_of_a_user_refuses_the_guarded_process_alone() {
    const UID: u32 = 4711;
    let start = || {
        Agent::with(|command| {
            command.uid(UID);
        })
    };
    let (target, other) = (start(), start());
    let lsm = Lsm::start(&format!("--pid {}", target.pid));

    let uid = Uid::from_raw(UID);
    assert_eq!(setpriority_user(uid, -10), Err(Errno::PERM));
    assert_eq!((nice_of(target.pid), nice_of(other.pid)), (0, -10));
    assert_eq!(setpriority_user(uid, 10), Ok(()));
    assert_eq!((nice_of(target.pid), nice_of(other.pid)), (10, 10));
    lsm.end().counted(1);
}

fn nice_from_within_is_refused() {
    nice_from_within("nice");
}

fn nice_of_the_32_bit_table_is_refused() {
    nice_from_within("nice32");
}

fn nice_from_within(call: &str) {
    let mut target = Agent::start();
    let _lsm = Lsm::start(&format!("--pid {}", target.pid));
    assert_eq!(target.call(&format!("{call} -1")), Err(Errno::PERM));
    assert_eq!(nice_of(target.pid), 0);
    assert_eq!(target.call(&format!("{call} 5")), Ok(()));
    assert_eq!(nice_of(target.pid), 5);
    assert_eq!(target.call(&format!("{call} -6")), Err(Errno::PERM));
    assert_eq!(nice_of(target.pid), 5);
    assert_eq!(target.call(&format!("{call} -5")), Ok(()));
    assert_eq!(nice_of(target.pid), 0);
}

fn setpriority_from_within_is_refused() {
    const UID: u32 = 4712;
    let mut target = Agent::with(|command| {
        command.process_group(0);
    });
    let mut user = Agent::with(|command| {
        // Its own user, with the right to raise itself: setpriv keeps the capability.
        *command = Command::new("setpriv");
        command.args(["--reuid", &UID.to_string()]);
        command.args(["--inh-caps", "+sys_nice", "--ambient-caps", "+sys_nice"]);
        command.arg(env::current_exe().expect("the path of live"));
        command.arg("agent");
    });
    let _lsm = Lsm::start(&format!("--pid {}", target.pid));
    let _other = Lsm::start(&format!("--pid {}", user.pid));

    for (agent, calls) in [
        (&mut target, [PRIO_PROCESS, PRIO_PGRP].as_slice()),
        (&mut user, &[PRIO_USER]),
    ] {
        for which in calls {
            let set = |nice: i32| format!("setpriority {which} 0 {nice}");
            assert_eq!(agent.call(&set(-10)), Err(Errno::PERM), "which {which}");
            assert_eq!(nice_of(agent.pid), 0, "which {which}");
            assert_eq!(agent.call(&set(10)), Ok(()), "which {which}");
            assert_eq!(agent.call(&set(0)), Ok(()), "which {which}");
            assert_eq!(nice_of(agent.pid), 0, "which {which}");
        }
    }
}

fn values_beyond_the_range_are_judged_as_the_kernel_cuts_them() {
    let target = Agent::start();
    let lsm = Lsm::start(&format!("--pid {} --floor -20", target.pid));
    assert_eq!(set_nice(target.pid, -100), Ok(()));
    assert_eq!(nice_of(target.pid), -20);
    lsm.end().counted(0);

    let lsm = Lsm::start(&format!("--pid {} --floor 19", target.pid));
    assert_eq!(set_nice(target.pid, i32::MAX), Ok(()));
    assert_eq!(nice_of(target.pid), 19);
    refuses(target.pid, i32::MIN);
    lsm.end().counted(1);
}

fn another_thread_is_guarded_from_outside_and_from_within() {
    let mut target = Agent::start();
    let thread = target.thread();
    let _lsm = Lsm::start(&format!("--pid {}", target.pid));
    refuses(thread, -10);
    let from_within = target.call(&format!("setpriority {PRIO_PROCESS} {thread} -10"));
    assert_eq!(from_within, Err(Errno::PERM));
    assert_eq!(nice_of(thread), 0);
    accepts(thread, 10);
    assert_eq!(nice_of(target.pid), 0);
}

fn threads_that_start_later_are_guarded() {
    let mut target = Agent::start();
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    for _ in 0..8 {
        target.thread();
    }
    let threads = threads(target.pid);
    assert!(threads.len() >= 9, "threads: {threads:?}");
    for &thread in &threads {
        refuses(thread, -1);
        accepts(thread, 1);
    }
    lsm.end().counted(threads.len() as u64);
}

fn a_thread_that_execs_stays_guarded() {
    let mut target = Agent::start();
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    target.exec();
    refuses(target.pid, -10);
    assert_eq!(target.call("nice -1"), Err(Errno::PERM));
    accepts(target.pid, 10);
    lsm.end().counted(2);
}

fn a_process_whose_leader_has_exited_is_guarded() {
    let mut target = Agent::start();
    target.call("leave").expect("a thread that goes on");
    let mut lsm = Lsm::start(&format!("--pid {}", target.pid));
    let others = || {
        let mut threads = threads(target.pid);
        threads.retain(|&thread| thread != target.pid);
        threads
    };
    assert_eq!(others().len(), 1, "threads beside the leader");
    refuses(others()[0], -10);
    accepts(others()[0], 10);
    lsm.must_still_guard();
    target.quit();
    lsm.wait().exited(0).says("has exited");
}

fn an_unguarded_process_is_untouched() {
    let (target, other) = (Agent::start(), Agent::start());
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    accepts(other.pid, -10);
    accepts(other.pid, -20);
    renice(-15, other.pid).exited(0);
    assert_eq!(nice_of(other.pid), -15);
    lsm.end().counted(0);
}

fn with_no_children_a_child_is_not_guarded() {
    const CHILD: i32 = 30_000;
    let mut target = Agent::start();
    let _lsm = Lsm::start(&format!("--pid {} --no-children", target.pid));
    assert_eq!(target.call(&format!("clone {CHILD}")), Ok(()));
    accepts(CHILD, -10);
    run("kill", &["-9", &CHILD.to_string()]).exited(0);
}

/// The lowest value that a floor allows, and the next one.
fn floor(options: &str, floor: i32) {
    let target = Agent::at_nice(19);
    let lsm = Lsm::start(&format!("--pid {} {options}", target.pid));
    accepts(target.pid, 19);
    accepts(target.pid, floor);
    let mut denied = 0;
    for nice in [floor - 1, -20] {
        if (-20..floor).contains(&nice) {
            refuses(target.pid, nice);
            denied += 1;
        }
    }
    accepts(target.pid, floor);
    lsm.end().counted(denied);
}

fn floor_minus_20_refuses_nothing() {
    floor("--floor -20", -20);
}

fn floor_minus_5_holds() {
    floor("--floor -5", -5);
    floor("-n -5", -5);
}

fn floor_0_holds_and_is_the_default() {
    floor("--floor 0", 0);
    floor("", 0);
}

fn floor_19_holds() {
    floor("-n 19", 19);
}

fn a_value_below_the_floor_is_refused_where_the_process_is_lower_still() {
    let target = Agent::at_nice(-15);
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    let warning = format!(
        "lsm-nice: warning: process {} (live) is at nice -15",
        target.pid
    );
    assert!(
        lsm.stderr().starts_with(&warning),
        "{warning:?} was expected: {}",
        lsm.stderr()
    );
    assert_eq!(nice_of(target.pid), -15);
    refuses(target.pid, -10);
    refuses(target.pid, -15);
    assert_eq!(nice_of(target.pid), -15);
    accepts(target.pid, 0);
    refuses(target.pid, -15);
}

fn the_kernels_own_refusal_stays_and_is_not_counted() {
    let mut target = Agent::with(|command| {
        command.uid(1000);
    });
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    let mut set = |nice: i32| target.call(&format!("setpriority {PRIO_PROCESS} 0 {nice}"));
    assert_eq!(set(-10), Err(Errno::ACCESS));
    assert_eq!(set(10), Ok(()));
    assert_eq!(set(5), Err(Errno::ACCESS));
    assert_eq!(nice_of(target.pid), 10);
    lsm.end().counted(0);
}

fn the_refusal_of_an_earlier_program_is_kept() {
    let target = Agent::start();
    let _foreign = Foreign::attach(When::Is(15), libc::EACCES).expect("a program on the hook");
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    assert_eq!(set_nice(target.pid, 15), Err(Errno::ACCESS));
    assert_eq!(nice_of(target.pid), 0);
    refuses(target.pid, -1);
    accepts(target.pid, 10);
    lsm.end().counted(1);
    assert_eq!(set_nice(target.pid, 15), Err(Errno::ACCESS));
}

fn a_guard_starts_where_another_program_refuses_every_negative_value() {
    let target = Agent::start();
    let foreign = Foreign::attach(When::Below(0), libc::EPERM).expect("a program on the hook");
    let _lsm = Lsm::start(&format!("--pid {}", target.pid));
    drop(foreign);
    refuses(target.pid, -10);
}

fn of_two_guards_the_strictest_wins_and_each_ends_alone() {
    let target = Agent::start();
    let start = |floor: i32| Lsm::start(&format!("--pid {} -n {floor}", target.pid));
    for (first, second) in [(0, 5), (5, 0)] {
        let (first, second) = (start(first), start(second));
        refuses(target.pid, 4);
        accepts(target.pid, 5);
        refuses(target.pid, -1);
        drop((first, second));
        accepts(target.pid, 0);
    }

    let (strict, loose) = (start(5), start(0));
    strict.end();
    accepts(target.pid, 4);
    refuses(target.pid, -1);

    let strict = start(5);
    loose.end();
    refuses(target.pid, 4);
    accepts(target.pid, 5);
    strict.end().counted(1);
    accepts(target.pid, -1);
}
