// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! Which process is guarded, and which PIDs are refused.

use std::fs;
use std::process::Command;

use rustix::process::Signal;

use crate::agent::{Agent, Successor};
use crate::bpf::is_loaded;
use crate::helpers::{Lsm, accepts, eventually, refuses};

tests!(
    without_arguments_lsm_nice_guards_itself,
    the_process_that_starts_a_guard_may_be_guarded,
    a_pid_that_is_used_again_is_not_guarded,
    a_missing_pid_is_refused,
    a_thread_is_refused_and_its_process_named,
    a_zombie_is_refused,
);

fn without_arguments_lsm_nice_guards_itself() {
    let other = Agent::start();
    let lsm = Lsm::start("");
    refuses(lsm.pid(), -1);
    accepts(lsm.pid(), 10);
    refuses(lsm.pid(), -20);
    accepts(other.pid, -1);
    lsm.end().says("lsm-nice itself").counted(2);
}

fn the_process_that_starts_a_guard_may_be_guarded() {
    let own = std::process::id().cast_signed();
    let outer = Lsm::start(&format!("--pid {own} --no-children"));
    let target = Agent::start();
    let inner = Lsm::start(&format!("--pid {}", target.pid));
    refuses(target.pid, -1);
    refuses(own, -1);
    inner.end().counted(1);
    accepts(target.pid, -1);
    outer.end().counted(1);
}

fn a_pid_that_is_used_again_is_not_guarded() {
    let target = Agent::start();
    let pid = target.pid;
    let lsm = Lsm::start(&format!("--pid {pid}"));
    refuses(pid, -10);

    // lsm-nice does not see the end of its target: the kernel alone decides now.
    lsm.signal(Signal::STOP);
    target.quit();
    let successor = Successor::of(pid);
    accepts(pid, -10);
    assert!(is_loaded("task_setnice"), "the guard has gone too early");

    lsm.signal(Signal::CONT);
    lsm.wait().exited(0).says("has exited").counted(1);
    drop(successor);
}

fn a_missing_pid_is_refused() {
    let target = Agent::start();
    let pid = target.pid;
    target.quit();
    Lsm::run(&format!("--pid {pid}"))
        .refused_to_start()
        .says(&format!("there is no running process {pid}\n"));
    Lsm::run("--pid 2147483647")
        .refused_to_start()
        .says("there is no running process 2147483647\n");
}

fn a_thread_is_refused_and_its_process_named() {
    let mut target = Agent::start();
    let thread = target.thread();
    let process = target.pid;
    Lsm::run(&format!("--pid {thread}"))
        .refused_to_start()
        .says(&format!("{thread} is a thread of process {process}"))
        .says(&format!("fix: lsm-nice --pid {process}\n"));
}

fn a_zombie_is_refused() {
    let mut zombie = Command::new("true").spawn().expect("true(1)");
    let stat = format!("/proc/{}/stat", zombie.id());
    eventually(|| {
        fs::read_to_string(&stat)
            .ok()?
            .contains(") Z ")
            .then_some(())
    })
    .expect("a zombie");
    Lsm::run(&format!("--pid {}", zombie.id()))
        .refused_to_start()
        .says(&format!("there is no running process {}\n", zombie.id()));
    zombie.wait().expect("a child");
}
