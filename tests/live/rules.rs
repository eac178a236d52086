// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! Rules sched and io, what they leave alone, each rule by itself, and the programs that users have.

use std::collections::BTreeSet;
use std::time::Duration;
use std::{fs, thread};

use libc::PRIO_PROCESS;
use libtest_mimic::Trial;
use rustix::io::Errno;

use crate::agent::Agent;
use crate::bpf::Present;
use crate::cgroups::Cgroup;
use crate::helpers::{
    Lsm, Report, accepts, descendants, has_task_storage, ignoring, nice_of, refuses, renice, run,
    status_field,
};
use crate::sys::{
    Attr, BATCH, Call, Caller, Compat, DEADLINE, EXT, FIFO, FLAG_KEEP_PARAMS, FLAG_KEEP_POLICY,
    FLAG_RESET_ON_FORK, IDLE, IO_BE, IO_IDLE, IO_NONE, IO_PGRP, IO_PROCESS, IO_RT, IO_USER, Native,
    OTHER, Outside, RESET_ON_FORK, RR, Within, X32, allowed, has_policy, io, refused, repeated,
    state, try_state,
};

tests!(
    fifo_and_rr_by_sched_setscheduler_are_refused,
    fifo_rr_and_deadline_by_sched_setattr_are_refused,
    the_real_time_classes_are_refused_for_any_thread,
    the_classes_that_are_not_above_other_pass,
    the_32_bit_table_is_guarded,
    the_x32_table_raises_nobody,
    a_process_that_is_fifo_already_is_named_and_can_only_be_lowered,
    bad_real_time_requests_keep_the_kernels_errno,
    affinity_passes,
    a_move_to_another_cpuset_passes,
    timer_slack_passes,
    ioprio_set_of_the_process_is_judged_by_class_and_level,
    ioprio_set_from_within_is_refused,
    the_io_levels_follow_the_floor,
    hint_bits_hide_no_io_level,
    ioprio_set_of_a_group_stops_at_the_guarded_process,
    ioprio_set_of_a_user_is_refused_for_the_guarded_process,
    bad_ioprio_set_keeps_the_kernels_errno,
    a_process_that_is_at_real_time_io_already_is_named,
    rule_nice_alone_lets_fifo_and_io_pass,
    rule_nice_alone_refuses_what_resets_a_child_above_the_floor,
    a_process_that_is_deadline_already_is_not_made_to_reset_its_children,
    rule_sched_alone_lets_nice_and_io_pass,
    rule_io_alone_lets_nice_and_fifo_pass,
    by_default_io_is_not_guarded,
    rules_come_with_commas_and_repeated,
    nothing_is_loaded_that_the_rules_do_not_need,
    chrt_cannot_raise,
    ionice_cannot_raise,
    taskset_and_renice_do_what_is_allowed,
    a_command_cannot_be_raised_by_its_own_tools,
    python_cannot_raise_itself,
    stress_ng_gets_no_class_above_other,
);

/// Ignored where the kernel does not have what a test is about.
pub fn trials() -> Vec<Trial> {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let cpuset = controllers.split_whitespace().any(|name| name == "cpuset");
    let missing = [
        (!cpuset, "a_move_to_another_cpuset_passes"),
        (!has_task_storage(), "stress_ng_gets_no_class_above_other"),
    ];
    ignoring(tests(), &missing)
}

const ALL: &str = "--rule nice,sched,io";

fn guard(pid: i32, options: &str) -> Lsm {
    Lsm::start(&format!("--pid {pid} {options}"))
}

fn fifo_and_rr_by_sched_setscheduler_are_refused() {
    let mut target = Agent::start();
    let pid = target.pid;
    let lsm = guard(pid, "");
    for policy in [FIFO, RR] {
        for flag in [0, RESET_ON_FORK] {
            for priority in [1, 50, 99] {
                let policy = i64::from(policy) | flag;
                refused(pid, "from outside", || {
                    Outside.setscheduler(Native, pid, policy, priority)
                });
                for whom in [0, pid] {
                    refused(pid, "from within", || {
                        Within(&mut target).setscheduler(Native, whom, policy, priority)
                    });
                }
            }
        }
    }
    lsm.end().counted(36);
}

/// What rule sched refuses, by sched_setattr(2).
fn real_time_attrs() -> Vec<Attr> {
    let low = Attr {
        nice: 19,
        ..Attr::real_time(FIFO, 50)
    };
    [
        Attr::real_time(FIFO, 1),
        Attr::real_time(RR, 99),
        Attr::deadline(),
        low,
    ]
    .into_iter()
    .flat_map(|attr| [0, FLAG_RESET_ON_FORK].map(|flags| attr.flags(flags)))
    .collect()
}

fn fifo_rr_and_deadline_by_sched_setattr_are_refused() {
    let mut target = Agent::start();
    let pid = target.pid;
    let lsm = guard(pid, "");
    let attrs = real_time_attrs();
    for attr in &attrs {
        let what = format!("{attr:?}");
        refused(pid, &what, || Outside.setattr(Native, pid, attr));
        for whom in [0, pid] {
            refused(pid, &what, || {
                Within(&mut target).setattr(Native, whom, attr)
            });
        }
    }
    lsm.end().counted(3 * attrs.len() as u64);
    // and nothing but the guard has refused it
    for attr in &attrs {
        assert_eq!(Outside.setattr(Native, pid, attr), Ok(()), "{attr:?}");
    }
}

fn the_real_time_classes_are_refused_for_any_thread() {
    let mut target = Agent::start();
    let before = target.thread();
    let _lsm = guard(target.pid, "");
    let after = target.thread();
    for thread in [before, after] {
        for table in [Native, Compat] {
            refused(thread, "a thread", || {
                Outside.setscheduler(table, thread, FIFO.into(), 1)
            });
            refused(thread, "a thread", || {
                Within(&mut target).setscheduler(table, thread, RR.into(), 1)
            });
            for attr in real_time_attrs() {
                refused(thread, "a thread", || Outside.setattr(table, thread, &attr));
                refused(thread, "a thread", || {
                    Within(&mut target).setattr(table, thread, &attr)
                });
            }
        }
    }
}

fn the_classes_that_are_not_above_other_pass() {
    let mut target = Agent::start();
    let pid = target.pid;
    let lsm = guard(pid, ALL);
    let ext = has_policy(EXT).then_some(EXT);
    let policies: Vec<_> = [BATCH, IDLE, OTHER].into_iter().chain(ext).collect();
    for table in [Native, Compat] {
        for &policy in &policies {
            for flag in [0, RESET_ON_FORK] {
                let legacy = i64::from(policy) | flag;
                let result = Outside.setscheduler(table, pid, legacy, 0);
                assert_eq!((result, state(pid).policy), (Ok(()), policy));
                let result = Within(&mut target).setscheduler(table, 0, OTHER.into(), 0);
                assert_eq!((result, state(pid).policy), (Ok(()), OTHER));
                let result = Within(&mut target).setscheduler(table, 0, legacy, 0);
                assert_eq!((result, state(pid).policy), (Ok(()), policy));
                assert_eq!(Outside.setparam(table, pid, 0), Ok(()));
                let attr = Attr::nice(OTHER, 0);
                allowed(pid, "OTHER", || Outside.setattr(table, pid, &attr));
                let attr = Attr::nice(policy, 0);
                let state = allowed(pid, "a class", || {
                    Within(&mut target).setattr(table, 0, &attr)
                });
                assert_eq!(state.policy, policy);
            }
        }
    }
    lsm.end();
}

fn the_32_bit_table_is_guarded() {
    let mut target = Agent::start();
    let pid = target.pid;
    let lsm = guard(pid, ALL);
    let process = PRIO_PROCESS.into();
    for mut caller in [Outside, Within(&mut target)] {
        let who = i64::from(pid);
        refused(pid, "setpriority", || {
            caller.call(Compat, Call::Setpriority, [process, who, -1])
        });
        refused(pid, "sched_setscheduler", || {
            caller.setscheduler(Compat, pid, FIFO.into(), 1)
        });
        for attr in [
            Attr::nice(OTHER, -1),
            Attr::real_time(RR, 1),
            Attr::deadline(),
        ] {
            refused(pid, "sched_setattr", || caller.setattr(Compat, pid, &attr));
        }
        refused(pid, "ioprio_set", || {
            caller.call(Compat, Call::IoprioSet, [IO_PROCESS, who, io(IO_RT, 7)])
        });
        let set = caller.call(Compat, Call::Setpriority, [process, who, 4]);
        assert_eq!((set, nice_of(pid)), (Ok(()), 4));
        let set = caller.call(Compat, Call::IoprioSet, [IO_PROCESS, who, io(IO_BE, 6)]);
        assert_eq!((set, state(pid).io), (Ok(()), io(IO_BE, 6)));
        let set = caller.call(Compat, Call::IoprioSet, [IO_PROCESS, who, 0]);
        assert_eq!(set, Ok(()));
    }
    refused(pid, "nice", || {
        Within(&mut target).call(Compat, Call::Nice, [-5, 0, 0])
    });
    let set = Within(&mut target).call(Compat, Call::Nice, [-4, 0, 0]);
    assert_eq!((set, nice_of(pid)), (Ok(()), 0));
    lsm.end().counted(13);
}

/// The kernel has that table or not: it refuses, or there is no such call.
fn the_x32_table_raises_nobody() {
    let mut target = Agent::start();
    let pid = target.pid;
    let _lsm = guard(pid, ALL);
    for mut caller in [Outside, Within(&mut target)] {
        let who = i64::from(pid);
        let process = PRIO_PROCESS.into();
        let before = state(pid);
        let results = [
            caller.call(X32, Call::Setpriority, [process, who, -1]),
            caller.setscheduler(X32, pid, FIFO.into(), 1),
            caller.setattr(X32, pid, &Attr::nice(OTHER, -1)),
            caller.setattr(X32, pid, &Attr::deadline()),
            caller.call(X32, Call::IoprioSet, [IO_PROCESS, who, io(IO_RT, 7)]),
        ];
        for result in results {
            assert!(
                matches!(result, Err(Errno::PERM | Errno::NOSYS)),
                "{results:?}"
            );
        }
        assert_eq!(state(pid), before);
    }
}

fn a_process_that_is_fifo_already_is_named_and_can_only_be_lowered() {
    for (policy, name) in [
        (FIFO, "SCHED_FIFO"),
        (RR, "SCHED_RR"),
        (DEADLINE, "SCHED_DEADLINE"),
    ] {
        let target = Agent::start();
        let pid = target.pid;
        let attr = match policy {
            DEADLINE => Attr::deadline(),
            policy => Attr::real_time(policy, 10),
        };
        assert_eq!(Outside.setattr(Native, pid, &attr), Ok(()));
        let lsm = guard(pid, "");
        let warning =
            format!("lsm-nice: warning: process {pid} (live) is in {name}: left as it is");
        assert!(lsm.stderr().contains(&warning), "{}", lsm.stderr());
        assert_eq!(state(pid).policy, policy);
        if policy != DEADLINE {
            for table in [Native, Compat] {
                for priority in [10, 1, 99] {
                    refused(pid, "its own class", || {
                        Outside.setparam(table, pid, priority)
                    });
                }
            }
        }
        refused(pid, "its own class", || Outside.setattr(Native, pid, &attr));
        let keep = attr.flags(FLAG_KEEP_POLICY);
        refused(pid, "its own class", || Outside.setattr(Native, pid, &keep));
        let keep = attr.flags(FLAG_KEEP_POLICY | FLAG_KEEP_PARAMS);
        allowed(pid, "all kept", || Outside.setattr(Native, pid, &keep));
        assert_eq!(Outside.setscheduler(Native, pid, OTHER.into(), 0), Ok(()));
        assert_eq!(state(pid).policy, OTHER);
        refused(pid, "back again", || Outside.setattr(Native, pid, &attr));
        refused(pid, "back again", || {
            Outside.setscheduler(Native, pid, FIFO.into(), 1)
        });
        lsm.end();
    }
}

fn bad_real_time_requests_keep_the_kernels_errno() {
    let target = Agent::start();
    let pid = target.pid;
    let lsm = guard(pid, "");
    let before = state(pid);
    for (policy, priority) in [
        (i64::from(FIFO), 0),
        (FIFO.into(), 100),
        (FIFO.into(), -1),
        (OTHER.into(), 1),
        (DEADLINE.into(), 1),
        (4, 0),
        (-1, 1),
        (99, 1),
        (i64::from(FIFO) | 1 << 29, 1),
    ] {
        let result = Outside.setscheduler(Native, pid, policy, priority);
        assert_eq!(result, Err(Errno::INVAL), "{policy:#x} {priority}");
    }
    assert_eq!(Outside.setparam(Native, pid, 1), Err(Errno::INVAL));
    let call = |who: i64, pointer| {
        crate::sys::call(Native, Call::Setscheduler, [who, FIFO.into(), pointer])
    };
    assert_eq!(call(pid.into(), 0), Err(Errno::INVAL));
    assert_eq!(call(pid.into(), crate::sys::NOWHERE), Err(Errno::FAULT));
    Outside.poke(&1i32.to_ne_bytes());
    assert_eq!(call(-1, crate::sys::LOW), Err(Errno::INVAL));
    assert_eq!(call(i32::MAX.into(), crate::sys::LOW), Err(Errno::SRCH));
    assert_eq!(state(pid), before);
    lsm.end().counted(0);
}

fn affinity_passes() {
    let mut target = Agent::start();
    let thread = target.thread();
    let lsm = guard(target.pid, ALL);
    for task in [target.pid, thread] {
        run("taskset", &["-p", "1", &task.to_string()]).exited(0);
        let cpus = status_field(task, "Cpus_allowed").expect("a mask");
        assert!(cpus.trim_start_matches(['0', ',']) == "1", "{cpus}");
    }
    let command = format!(
        "syscall {} 0 8 {}",
        libc::SYS_sched_setaffinity,
        crate::sys::LOW
    );
    Within(&mut target).poke(&1u64.to_ne_bytes());
    assert_eq!(target.call(&command), Ok(()));
    lsm.end().counted(0);
}

fn a_move_to_another_cpuset_passes() {
    let control = "/sys/fs/cgroup/cgroup.subtree_control";
    fs::write(control, "+cpuset").expect("the controller");
    let target = Agent::start();
    let cgroup = Cgroup::new("a-cpuset");
    let lsm = guard(target.pid, ALL);
    fs::write(cgroup.path.join("cpuset.cpus"), "0").expect("a cpuset");
    cgroup.take(target.pid);
    let place = fs::read_to_string(format!("/proc/{}/cgroup", target.pid)).expect("a cgroup");
    assert!(place.contains("/a-cpuset"), "{place}");
    fs::write("/sys/fs/cgroup/cgroup.procs", target.pid.to_string()).expect("the way back");
    lsm.end().counted(0);
    drop(cgroup);
    fs::write(control, "-cpuset").expect("the controller");
}

fn timer_slack_passes() {
    let target = Agent::start();
    let lsm = guard(target.pid, ALL);
    let path = format!("/proc/{}/timerslack_ns", target.pid);
    fs::write(&path, "1").expect("timer slack");
    assert_eq!(fs::read_to_string(&path).expect("timer slack").trim(), "1");
    lsm.end().counted(0);
}

const IO: &str = "--rule io";

/// Which I/O priorities a floor allows.
fn io_by_floor(caller: &mut Caller<'_>, pid: i32, who: i32, floor: i32) {
    let highest = i64::from((floor + 20) / 5);
    let mut set = |ioprio| caller.ioprio_set(IO_PROCESS, who, ioprio);
    for level in 0..8 {
        let what = format!("level {level} at floor {floor}");
        refused(pid, &what, || set(io(IO_RT, level)));
        if level < highest {
            refused(pid, &what, || set(io(IO_BE, level)));
        } else {
            assert_eq!(set(io(IO_BE, level)), Ok(()), "{what}");
            assert_eq!(state(pid).io, io(IO_BE, level), "{what}");
        }
    }
    assert_eq!(set(io(IO_IDLE, 0)), Ok(()));
    assert_eq!(state(pid).io >> 13, IO_IDLE);
    refused(pid, "up again", || set(io(IO_RT, 0)));
    assert_eq!(set(io(IO_NONE, 0)), Ok(()));
    assert_eq!(state(pid).io >> 13 & IO_RT, 0);
}

fn ioprio_set_of_the_process_is_judged_by_class_and_level() {
    let mut target = Agent::start();
    let thread = target.thread();
    let lsm = guard(target.pid, IO);
    for task in [target.pid, thread] {
        io_by_floor(&mut Outside, task, task, 0);
    }
    lsm.end().counted(2 * (8 + 4 + 1));
}

fn ioprio_set_from_within_is_refused() {
    let mut target = Agent::start();
    let thread = target.thread();
    let pid = target.pid;
    let lsm = guard(pid, IO);
    for (task, who) in [(pid, 0), (pid, pid), (thread, thread)] {
        io_by_floor(&mut Within(&mut target), task, who, 0);
    }
    lsm.end().counted(3 * (8 + 4 + 1));
}

fn the_io_levels_follow_the_floor() {
    for floor in [-20, -16, -15, -1, 4, 5, 19] {
        let target = Agent::start();
        let _lsm = guard(target.pid, &format!("{IO} --floor {floor}"));
        io_by_floor(&mut Outside, target.pid, target.pid, floor);
    }
}

/// The hints are known since 6.5; before, a level with other bits is no valid one.
fn hint_bits_hide_no_io_level() {
    let target = Agent::start();
    let pid = target.pid;
    let _lsm = guard(pid, IO);
    let other = Agent::start();
    for hint in (3..13).map(|bit| 1 << bit).chain([0x1ff8]) {
        for (class, level) in [(IO_RT, 0), (IO_RT, 7), (IO_BE, 0), (IO_BE, 3)] {
            let ioprio = io(class, level) | hint;
            let known = Outside.ioprio_set(IO_PROCESS, other.pid, ioprio);
            let before = state(pid);
            let result = Outside.ioprio_set(IO_PROCESS, pid, ioprio);
            let expected = known.and(Err(Errno::PERM));
            assert_eq!(result, expected, "{ioprio:#x}");
            assert_eq!(state(pid), before);
        }
        let ioprio = io(IO_BE, 5) | hint;
        let known = Outside.ioprio_set(IO_PROCESS, other.pid, ioprio);
        assert_eq!(Outside.ioprio_set(IO_PROCESS, pid, ioprio), known);
    }
    // bits above the 16 that the kernel keeps
    for high in [1 << 16, 1 << 20, 1 << 31] {
        for ioprio in [io(IO_RT, 0), io(IO_BE, 0)] {
            let known = Outside.ioprio_set(IO_PROCESS, other.pid, ioprio | high);
            let result = Outside.ioprio_set(IO_PROCESS, pid, ioprio | high);
            assert_eq!(result, known.and(Err(Errno::PERM)), "{:#x}", ioprio | high);
        }
    }
}

fn ioprio_set_of_a_group_stops_at_the_guarded_process() {
    use std::os::unix::process::CommandExt;
    let target = Agent::with(|command| {
        command.process_group(0);
    });
    let group = target.pid;
    let other = Agent::with(|command| {
        command.process_group(group);
    });
    let lsm = guard(target.pid, IO);
    let set = |ioprio| Outside.ioprio_set(IO_PGRP, group, ioprio);
    let before = state(group);
    assert_eq!(set(io(IO_BE, 0)), Err(Errno::PERM));
    assert_eq!(state(group), before);
    assert_eq!(set(io(IO_BE, 7)), Ok(()));
    assert_eq!(
        (state(group).io, state(other.pid).io),
        (io(IO_BE, 7), io(IO_BE, 7))
    );
    assert_eq!(set(io(IO_RT, 7)), Err(Errno::PERM));
    assert_eq!(state(group).io, io(IO_BE, 7));
    // the members come in an order of the kernel's own: nobody, or the other one
    assert!([io(IO_BE, 7), io(IO_RT, 7)].contains(&state(other.pid).io));
    lsm.end().counted(2);
}

fn ioprio_set_of_a_user_is_refused_for_the_guarded_process() {
    use std::os::unix::process::CommandExt;
    const UID: i32 = 4715;
    let start = || {
        Agent::with(|command| {
            command.uid(UID.cast_unsigned());
        })
    };
    let (target, _other) = (start(), start());
    let lsm = guard(target.pid, IO);
    let set = |ioprio| Outside.ioprio_set(IO_USER, UID, ioprio);
    refused(target.pid, "real-time", || set(io(IO_RT, 0)));
    refused(target.pid, "best-effort 3", || set(io(IO_BE, 3)));
    assert_eq!(set(io(IO_BE, 4)), Ok(()));
    assert_eq!(state(target.pid).io, io(IO_BE, 4));
    lsm.end().counted(2);
}

fn bad_ioprio_set_keeps_the_kernels_errno() {
    let target = Agent::start();
    let pid = target.pid;
    let lsm = guard(pid, IO);
    let before = state(pid);
    for (which, who, ioprio, errno) in [
        (IO_PROCESS, pid, io(4, 0), Errno::INVAL),
        (IO_PROCESS, pid, io(5, 7), Errno::INVAL),
        (IO_PROCESS, pid, io(IO_NONE, 1), Errno::INVAL),
        (0, pid, io(IO_RT, 0), Errno::INVAL),
        (4, pid, io(IO_RT, 0), Errno::INVAL),
        (IO_PROCESS, i32::MAX, io(IO_RT, 0), Errno::SRCH),
        (IO_PGRP, i32::MAX, io(IO_RT, 0), Errno::SRCH),
    ] {
        let result = Outside.ioprio_set(which, who, ioprio);
        assert_eq!(result, Err(errno), "{which} {who} {ioprio:#x}");
    }
    assert_eq!(state(pid), before);
    lsm.end().counted(0);
}

fn a_process_that_is_at_real_time_io_already_is_named() {
    for (ioprio, name) in [
        (io(IO_RT, 2), "real-time 2"),
        (io(IO_BE, 1), "best-effort 1"),
    ] {
        let target = Agent::start();
        let pid = target.pid;
        assert_eq!(Outside.ioprio_set(IO_PROCESS, pid, ioprio), Ok(()));
        let lsm = guard(pid, IO);
        let warning = format!("warning: process {pid} (live) is at I/O priority {name}: left as");
        assert!(lsm.stderr().contains(&warning), "{}", lsm.stderr());
        assert_eq!(state(pid).io, ioprio);
        refused(pid, "what it has", || {
            Outside.ioprio_set(IO_PROCESS, pid, ioprio)
        });
        let lower = Outside.ioprio_set(IO_PROCESS, pid, io(IO_BE, 4));
        assert_eq!((lower, state(pid).io), (Ok(()), io(IO_BE, 4)));
        lsm.end();
    }
}

/// What the rules refuse, one after another: nice, FIFO, and real-time I/O.
fn passes(pid: i32) -> [bool; 3] {
    let setattr = |attr: &Attr| repeated(|| Outside.setattr(Native, pid, attr));
    let nice = [
        crate::helpers::set_nice(pid, -5),
        setattr(&Attr::nice(OTHER, -5)),
        repeated(|| Outside.write("write", &crate::sys::autogroup_file(pid), "-5")),
    ];
    let sched = [
        Outside.setscheduler(Native, pid, FIFO.into(), 1),
        setattr(&Attr::real_time(RR, 1)),
    ];
    let io = [Outside.ioprio_set(IO_PROCESS, pid, io(IO_RT, 0))];
    let all = |results: &[Result<(), Errno>]| {
        assert!(
            results.iter().all(|result| *result == results[0]),
            "{results:?}"
        );
        results[0].is_ok()
    };
    let passed = [all(&nice), all(&sched), all(&io)];
    let _ = Outside.setscheduler(Native, pid, OTHER.into(), 0);
    passed
}

fn rules(options: &str, refused: [bool; 3]) {
    let target = crate::doors::with_session();
    let lsm = guard(target.pid, options);
    assert_eq!(
        passes(target.pid),
        refused.map(|refused| !refused),
        "{options}"
    );
    lsm.end();
    assert_eq!(passes(target.pid), [true; 3], "after {options}");
}

fn rule_nice_alone_lets_fifo_and_io_pass() {
    rules("--rule nice", [true, false, false]);
}

/// The kernel puts the child of a real-time process that is to be reset at nice 0 (sched_fork()).
fn rule_nice_alone_refuses_what_resets_a_child_above_the_floor() {
    let target = Agent::at_nice(15);
    let pid = target.pid;
    let _lsm = Lsm::start(&format!("--pid {pid} -n 10 --rule nice"));
    let set = |policy| Outside.setscheduler(Native, pid, policy, 1);
    let fifo = i64::from(FIFO);
    let resets = Attr::real_time(FIFO, 1).flags(FLAG_RESET_ON_FORK);
    refused(pid, "FIFO, reset", || set(fifo | RESET_ON_FORK));
    refused(pid, "FIFO, reset", || Outside.setattr(Native, pid, &resets));
    allowed(pid, "FIFO", || set(fifo));
    allowed(pid, "DEADLINE", || {
        Outside.setattr(Native, pid, &Attr::deadline())
    });
    keeps_class_and_gets_no_reset(pid);
}

/// With its parameters a process keeps its class, so that the policy is a mere word.
fn keeps_class_and_gets_no_reset(pid: i32) {
    let attr = Attr::nice(OTHER, 19).flags(FLAG_KEEP_PARAMS | FLAG_RESET_ON_FORK);
    refused(pid, "reset alone", || Outside.setattr(Native, pid, &attr));
}

fn a_process_that_is_deadline_already_is_not_made_to_reset_its_children() {
    let (target, other) = (Agent::at_nice(15), Agent::at_nice(15));
    let pid = target.pid;
    let deadline = Attr::deadline();
    Outside.setattr(Native, pid, &deadline).expect("DEADLINE");
    let _guards = [pid, other.pid].map(|pid| Lsm::start(&format!("--pid {pid} -n 10")));
    keeps_class_and_gets_no_reset(pid);
    let attr = Attr::nice(OTHER, 15).flags(FLAG_KEEP_PARAMS | FLAG_RESET_ON_FORK);
    allowed(other.pid, "reset", || {
        Outside.setattr(Native, other.pid, &attr)
    });
}

fn rule_sched_alone_lets_nice_and_io_pass() {
    rules("--rule sched", [false, true, false]);
}

fn rule_io_alone_lets_nice_and_fifo_pass() {
    rules("--rule io", [false, false, true]);
}

fn by_default_io_is_not_guarded() {
    rules("", [true, true, false]);
}

fn rules_come_with_commas_and_repeated() {
    rules("--rule nice,io", [true, false, true]);
    rules("-r sched -r io", [false, true, true]);
    rules("--rule nice --rule sched,io", [true, true, true]);
}

/// The kernel cuts names at 15 bytes.
fn nothing_is_loaded_that_the_rules_do_not_need() {
    let target = Agent::start();
    for (rules, needed) in [
        (
            "nice",
            [
                "note_autogroup",
                "note_setschedul",
                "task_setnice",
                "task_setschedul",
            ]
            .as_slice(),
        ),
        ("sched", &["note_setschedul", "task_setschedul"]),
        ("io", &["task_setioprio"]),
        (
            "sched,io",
            &["note_setschedul", "task_setioprio", "task_setschedul"],
        ),
    ] {
        let before = Present::now();
        let lsm = guard(target.pid, &format!("--no-children --rule {rules}"));
        let present = before.added();
        assert_eq!(present.programs, needed, "{rules}");
        assert_eq!(present.attached, needed, "{rules}");
        assert_eq!(present.task_storages, 0, "{rules}");
        lsm.end();
    }
}

fn not_permitted(report: &Report) {
    report.exited(1).says("Operation not permitted");
}

fn chrt(arguments: &str, pid: i32) -> Report {
    let mut words: Vec<_> = arguments.split(' ').collect();
    let pid = pid.to_string();
    words.push(&pid);
    run("chrt", &words)
}

fn chrt_cannot_raise() {
    let mut target = Agent::start();
    let thread = target.thread();
    let lsm = guard(target.pid, "");
    for task in [target.pid, thread] {
        let is = |policy| assert_eq!(state(task).policy, policy);
        for raise in [
            "-f -p 1",
            "-r -p 99",
            "-R -f -p 1",
            "-d -T 1000000 -D 100000000 -P 100000000 -p 0",
        ] {
            not_permitted(&chrt(raise, task));
            is(OTHER);
        }
        chrt("-b -p 0", task).exited(0);
        is(BATCH);
        chrt("-i -p 0", task).exited(0);
        is(IDLE);
        chrt("-o -p 0", task).exited(0);
        is(OTHER);
    }
    not_permitted(&chrt("-a -f -p 1", target.pid));
    assert_eq!(state(target.pid).policy, OTHER);
    assert_eq!(state(thread).policy, OTHER);
    lsm.end();
}

fn ionice_cannot_raise() {
    let target = Agent::start();
    let lsm = guard(target.pid, IO);
    let pid = target.pid.to_string();
    let ionice = |arguments: &str| {
        let mut words: Vec<_> = arguments.split(' ').collect();
        words.extend(["-p", &pid]);
        run("ionice", &words)
    };
    for raise in ["-c 1 -n 7", "-c 1 -n 0", "-c 2 -n 3", "-c 2 -n 0"] {
        not_permitted(&ionice(raise));
    }
    ionice("-c 2 -n 4").exited(0);
    assert_eq!(state(target.pid).io, io(IO_BE, 4));
    ionice("-c 2 -n 7").exited(0);
    assert_eq!(state(target.pid).io, io(IO_BE, 7));
    ionice("-c 3").exited(0);
    assert_eq!(state(target.pid).io >> 13, IO_IDLE);
    lsm.end().counted(4);
}

fn taskset_and_renice_do_what_is_allowed() {
    let target = Agent::start();
    let pid = target.pid;
    let lsm = guard(pid, ALL);
    let word = pid.to_string();
    run("taskset", &["-c", "-p", "0", &word]).exited(0);
    let answer = run("taskset", &["-c", "-p", &word]);
    answer.exited(0);
    assert!(answer.stdout.ends_with("affinity list: 0\n"), "{answer}");
    renice(3, pid).exited(0);
    assert_eq!(nice_of(pid), 3);
    renice(0, pid).exited(0);
    not_permitted(&renice(-1, pid));
    assert_eq!(nice_of(pid), 0);
    accepts(pid, 1);
    refuses(pid, -20);
    lsm.end().counted(2);
}

/// nice, chrt and ionice as a command of lsm-nice, which runs another in its turn.
fn a_command_cannot_be_raised_by_its_own_tools() {
    let command = |words: &str| {
        let words: Vec<_> = [
            "lsm-nice",
            "-q",
            "--no-children",
            "--rule",
            "nice,sched,io",
            "--",
        ]
        .into_iter()
        .chain(words.split(' '))
        .collect();
        Lsm::launch(&words, |_| {}).wait()
    };
    let report = command("nice -n -5 nice");
    report.exited(0).says("Operation not permitted");
    assert_eq!(report.stdout, "0\n", "{report}");
    let report = command("nice -n 5 nice");
    report.exited(0);
    assert_eq!(report.stdout, "5\n", "{report}");
    for raise in ["chrt -f 1 true", "chrt -r 1 true"] {
        not_permitted(&command(raise));
    }
    command("chrt -b 0 true").exited(0);
    command("ionice -c 1 true").says("Operation not permitted");
    command("ionice -c 2 -n 7 true").exited(0);
    command("taskset -c 0 true").exited(0);
}

fn python_cannot_raise_itself() {
    let program = "\
import os
for call in (
    lambda: os.setpriority(os.PRIO_PROCESS, 0, -5),
    lambda: os.nice(-5),
    lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
    lambda: os.setpriority(os.PRIO_PROCESS, 0, 5),
):
    try:
        call()
        print('passed')
    except OSError as error:
        print(error.strerror)
print(os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0))
";
    let says = |words: &[&str]| {
        let words = [words, &["python3", "-I", "-S", "-c", program]].concat();
        let report = Lsm::launch(&words, |_| {}).wait();
        report.exited(0);
        report.stdout.lines().map(String::from).collect::<Vec<_>>()
    };
    let no = "Operation not permitted";
    assert_eq!(
        says(&[]),
        ["passed", "passed", "passed", "passed", "passed", "5 3"]
    );
    assert_eq!(
        says(&["lsm-nice", "--quiet", "--no-children", "--"]),
        [no, no, no, "passed", "passed", "5 3"]
    );
}

/// The classes that a program and all that it starts are seen in, and what it says.
fn classes(program: &str, args: &[&str]) -> (BTreeSet<u32>, Report) {
    let own = std::process::id().cast_signed();
    thread::scope(|scope| {
        let running = scope.spawn(|| run(program, args));
        let mut seen = BTreeSet::new();
        while !running.is_finished() {
            let tasks = descendants(own).into_iter().filter_map(try_state);
            seen.extend(tasks.map(|state| state.policy));
            thread::sleep(Duration::from_millis(1));
        }
        (seen, running.join().expect("a report"))
    })
}

/// It asks for one class after another, by every call that there is.
fn stress_ng_gets_no_class_above_other() {
    let stress = ["--schedpolicy", "2", "--timeout", "3"];
    let above = BTreeSet::from([FIFO, RR, DEADLINE]);
    let (seen, report) = classes("stress-ng", &stress);
    report.exited(0);
    assert!(!seen.is_disjoint(&above), "{seen:?}\n{report}");

    let (seen, report) = classes("lsm-nice", &[&["--", "stress-ng"], &stress[..]].concat());
    assert!(seen.is_disjoint(&above), "{seen:?}\n{report}");
    report.says(" refused").never_says(": 0 refused");
}
