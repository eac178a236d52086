// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! What lsm-nice does not promise: each way to more CPU or I/O that no rule covers, shown to be
//! open, so that what the README says of it stays true.

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libtest_mimic::Trial;
use rustix::io::Errno;
use rustix::thread::gettid;

use crate::agent::Agent;
use crate::cgroups::Cgroup;
use crate::doors::with_session;
use crate::helpers::{Lsm, eventually, ignoring, kernel_is, refuses};
use crate::sys::{
    Attr, EXT, FIFO, FLAG_KEEP_PARAMS, FLAG_KEEP_POLICY, FLAG_UTIL_CLAMP_MIN, IO_BE, IO_PROCESS,
    IO_RT, Native, OTHER, Outside, Within, allowed, autogroup, autogroup_file, effective_priority,
    has_policy, insisted, io, refused, state,
};
use crate::writes::has_uring;

tests!(
    so_the_weight_of_a_cgroup_is_out_of_scope,
    so_a_move_to_another_cgroup_is_out_of_scope,
    so_the_autogroup_of_a_new_session_is_out_of_scope,
    so_an_unguarded_writer_through_an_unguarded_member_of_the_session_is_out_of_scope,
    so_a_guarded_writer_of_another_session_is_out_of_scope,
    so_the_io_priority_of_a_request_by_io_uring_is_out_of_scope,
    so_the_io_priority_of_a_request_by_aio_is_out_of_scope,
    so_uclamp_is_out_of_scope,
    so_the_length_of_a_slice_is_out_of_scope,
    so_priority_inheritance_is_out_of_scope,
    so_a_sched_ext_scheduler_is_out_of_scope,
    so_an_io_context_that_an_unguarded_process_shares_is_out_of_scope,
);

/// Ignored where the kernel has no such way.
pub fn trials() -> Vec<Trial> {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let cpu = controllers.split_whitespace().any(|name| name == "cpu");
    let missing = [
        (!cpu, "cgroup"),
        (!has_uring(), "io_uring"),
        (!has_uclamp(), "uclamp"),
        (!has_slices(), "slice"),
        (!has_policy(EXT), "sched_ext"),
        // 7.3 does not show what is lent in /proc/PID/stat
        (kernel_is(7, 0), "priority_inheritance"),
    ];
    ignoring(tests(), &missing)
}

fn guard(pid: i32) -> Lsm {
    Lsm::start(&format!("--pid {pid} --rule nice,sched,io"))
}

const KEEP: u64 = FLAG_KEEP_POLICY | FLAG_KEEP_PARAMS;

fn clamp() -> Attr {
    Attr {
        util_min: 1024,
        ..Attr::new(OTHER).flags(KEEP | FLAG_UTIL_CLAMP_MIN)
    }
}

fn has_uclamp() -> bool {
    Outside.setattr(Native, Agent::start().pid, &clamp()) == Ok(())
}

fn slice() -> Attr {
    Attr {
        runtime: 100_000_000,
        ..Attr::new(OTHER)
    }
}

fn slice_of(pid: i32) -> u64 {
    let mut attr = Attr::default();
    // SAFETY: attr is as large as is said.
    let got = unsafe {
        libc::syscall(
            libc::SYS_sched_getattr,
            pid,
            &raw mut attr,
            size_of::<Attr>(),
            0,
        )
    };
    assert_eq!(got, 0, "{}", io::Error::last_os_error());
    attr.runtime
}

fn has_slices() -> bool {
    let agent = Agent::start();
    let set = Outside.setattr(Native, agent.pid, &slice());
    set == Ok(()) && slice_of(agent.pid) == slice().runtime
}

/// A cgroup with the controller of CPU time, and that given back at the end.
struct Weighted(Cgroup);

const CONTROL: &str = "/sys/fs/cgroup/cgroup.subtree_control";

impl Weighted {
    fn new(name: &str, weight: &str) -> Self {
        fs::write(CONTROL, "+cpu").expect("the controller");
        let cgroup = Cgroup::new(name);
        fs::write(cgroup.path.join("cpu.weight"), weight).expect("a weight");
        Self(cgroup)
    }
}

fn place(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("a cgroup")
}

fn so_the_weight_of_a_cgroup_is_out_of_scope() {
    let target = Agent::start();
    let cgroup = Weighted::new("weighted", "100");
    cgroup.0.take(target.pid);
    let lsm = guard(target.pid);
    let weight = cgroup.0.path.join("cpu.weight");
    fs::write(&weight, "10000").expect("a weight");
    assert_eq!(fs::read_to_string(&weight).expect("a weight"), "10000\n");
    let nice = cgroup.0.path.join("cpu.weight.nice");
    fs::write(&nice, "-20").expect("a weight");
    assert_eq!(fs::read_to_string(&nice).expect("a weight"), "-20\n");
    let limit = cgroup.0.path.join("cpu.max");
    for (text, read) in [("1000 100000", "1000 100000\n"), ("max", "max 100000\n")] {
        fs::write(&limit, text).expect("a limit");
        assert_eq!(fs::read_to_string(&limit).expect("a limit"), read);
    }
    lsm.end().counted(0);
}

fn so_a_move_to_another_cgroup_is_out_of_scope() {
    let target = Agent::start();
    let (low, high) = (Weighted::new("low", "1"), Weighted::new("high", "10000"));
    low.0.take(target.pid);
    let lsm = guard(target.pid);
    high.0.take(target.pid);
    assert!(place(target.pid).contains("/high"));
    lsm.end().counted(0);
}

fn so_the_autogroup_of_a_new_session_is_out_of_scope() {
    let mut target = with_session();
    let child = target.child("fork");
    let pid = target.pid;
    let lsm = guard(pid);
    let path = autogroup_file(pid);
    assert_eq!(Outside.write("write", &path, "19"), Ok(()));
    assert_eq!(autogroup(pid), 19);
    // a leader of a process group cannot, its child can
    assert_eq!(target.call("setsid"), Err(Errno::PERM));
    let mut member = Agent::start();
    let member_pid = member.pid;
    let path = autogroup_file(member_pid);
    let _lsm = guard(member_pid);
    let session = autogroup(member_pid);
    assert_eq!(Outside.write("write", &path, "19"), Ok(()));
    assert_eq!(autogroup(member_pid), 19);
    assert_eq!(member.call("setsid"), Ok(()));
    assert_eq!(autogroup(member_pid), 0);
    assert_eq!(autogroup(child), 19);
    // that of these tests, which the agent has left
    let own = autogroup_file(rustix::process::getpid().as_raw_pid());
    assert_eq!(Outside.write("write", &own, &session.to_string()), Ok(()));
    lsm.end();
}

fn so_an_unguarded_writer_through_an_unguarded_member_of_the_session_is_out_of_scope() {
    let mut target = with_session();
    let member = target.child("fork");
    let lsm = Lsm::start(&format!("--no-children --pid {}", target.pid));
    let through = |pid| Outside.write("write", &autogroup_file(pid), "-10");
    assert_eq!(through(target.pid), Err(Errno::PERM));
    assert_eq!(autogroup(target.pid), 0);
    let (result, lost) = insisted(|| through(member));
    assert_eq!((result, autogroup(target.pid)), (Ok(()), -10));
    lsm.end().counted(1 + lost);
}

fn so_a_guarded_writer_of_another_session_is_out_of_scope() {
    let (mut target, mut writer) = (with_session(), with_session());
    let member = target.child("fork");
    let guard = |pid| Lsm::start(&format!("--no-children --pid {pid}"));
    let guards = [guard(target.pid), guard(writer.pid)];
    let mut through = |pid| Within(&mut writer).write("write", &autogroup_file(pid), "-10");
    assert_eq!(through(target.pid), Err(Errno::PERM));
    assert_eq!(autogroup(target.pid), 0);
    let (result, lost) = insisted(|| through(member));
    assert_eq!((result, autogroup(target.pid)), (Ok(()), -10));
    for (guard, refused) in guards.into_iter().zip([1, 0]) {
        let report = guard.end();
        // by either of them
        if lost == 0 {
            report.counted(refused);
        }
    }
}

const A_FILE: &str = "/dev/shm/a-file";

fn so_the_io_priority_of_a_request_by_io_uring_is_out_of_scope() {
    a_request("uring-read");
}

fn so_the_io_priority_of_a_request_by_aio_is_out_of_scope() {
    a_request("aio-read");
}

fn a_request(how: &str) {
    fs::write(A_FILE, "text").expect("a file");
    let mut target = Agent::start();
    let lsm = guard(target.pid);
    let mut read = |ioprio| target.call(&format!("{how} {A_FILE} {ioprio}"));
    // the kernel looks at it: there is no class 5
    assert_eq!(read(io(5, 0)), Err(Errno::INVAL));
    assert_eq!(read(io(IO_RT, 0)), Ok(()));
    lsm.end().counted(0);
    fs::remove_file(A_FILE).expect("a file");
}

fn so_uclamp_is_out_of_scope() {
    let mut target = Agent::start();
    let pid = target.pid;
    let _lsm = guard(pid);
    allowed(pid, "uclamp", || Outside.setattr(Native, pid, &clamp()));
    allowed(pid, "uclamp", || {
        Within(&mut target).setattr(Native, 0, &clamp())
    });
}

fn so_the_length_of_a_slice_is_out_of_scope() {
    let mut target = Agent::start();
    let pid = target.pid;
    let _lsm = guard(pid);
    allowed(pid, "a slice", || Outside.setattr(Native, pid, &slice()));
    assert_eq!(slice_of(pid), slice().runtime);
    let short = Attr {
        runtime: 100_000,
        ..slice()
    };
    allowed(pid, "a slice", || {
        Within(&mut target).setattr(Native, 0, &short)
    });
    assert_eq!(slice_of(pid), short.runtime);
}

/// A real-time thread waits for a futex that the guarded process owns, which lends its priority.
fn so_priority_inheritance_is_out_of_scope() {
    let target = Agent::start();
    let pid = target.pid;
    let _lsm = guard(pid);
    let before = (effective_priority(pid), state(pid));
    // who owns the futex is all that it holds
    let futex = Box::leak(Box::new(pid));
    let address = (&raw mut *futex).expose_provenance();
    let waiter = thread::spawn(move || {
        let own = gettid().as_raw_pid();
        assert_eq!(Outside.setscheduler(Native, own, FIFO.into(), 50), Ok(()));
        let until = SystemTime::now() + Duration::from_secs(5);
        let until = until.duration_since(UNIX_EPOCH).expect("a time");
        let until = libc::timespec {
            tv_sec: until.as_secs().cast_signed(),
            tv_nsec: until.subsec_nanos().into(),
        };
        // SAFETY: an aligned int that is never freed, and a time that lives.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                address,
                libc::FUTEX_LOCK_PI | libc::FUTEX_PRIVATE_FLAG,
                0,
                &raw const until,
            )
        };
    });
    let lent = eventually(|| (effective_priority(pid) == -51).then_some(()));
    assert!(lent.is_some(), "priority {}", effective_priority(pid));
    assert_eq!(state(pid), before.1);
    refuses(pid, -1);
    waiter.join().expect("a waiter");
    assert_eq!(effective_priority(pid), before.0);
}

/// Which processes it schedules how, a scheduler of BPF decides; what lsm-nice sees is the class.
fn so_a_sched_ext_scheduler_is_out_of_scope() {
    let mut target = Agent::start();
    let pid = target.pid;
    let _lsm = guard(pid);
    let state = allowed(pid, "EXT", || {
        Within(&mut target).setattr(Native, 0, &Attr::new(EXT))
    });
    assert_eq!(state.policy, EXT);
}

/// clone(2) with CLONE_IO makes two processes share one I/O priority: it is set by way of either.
fn so_an_io_context_that_an_unguarded_process_shares_is_out_of_scope() {
    let mut target = Agent::start();
    let pid = target.pid;
    // there is nothing to share before
    let set = Outside.ioprio_set(IO_PROCESS, pid, io(IO_BE, 7));
    assert_eq!(set, Ok(()));
    let child = target.child(&format!("clone3 {}", libc::CLONE_IO));
    let _lsm = Lsm::start(&format!("--pid {pid} --no-children --rule io"));
    let set = |pid| Outside.ioprio_set(IO_PROCESS, pid, io(IO_RT, 0));
    refused(pid, "real-time", || set(pid));
    assert_eq!(set(child), Ok(()));
    assert_eq!(state(pid).io, io(IO_RT, 0));
}
