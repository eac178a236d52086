// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! Nothing sheds the guard: every way to make a process, and what a process can do to itself.

use std::fs;

use libc::{CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWTIME, CLONE_NEWUSER, CLONE_PARENT};
use libtest_mimic::Trial;
use rustix::process::{Signal, WaitOptions, kill_process, waitpid};

use crate::agent::Agent;
use crate::bpf::Loaded;
use crate::cgroups::Cgroup;
use crate::helpers::{
    Lsm, accepts, children, eventually, ignoring, kernel_is, pid, refuses, status_field, threads,
};

tests!(
    a_child_by_fork_is_guarded,
    a_child_by_vfork_is_guarded,
    a_child_by_clone_with_our_memory_is_guarded,
    a_child_by_posix_spawn_is_guarded,
    a_child_forked_by_another_thread_is_guarded,
    a_child_with_clone_parent_is_guarded,
    a_child_born_in_another_cgroup_is_guarded,
    a_grandchild_whose_parent_is_dead_is_guarded,
    a_grandchild_given_to_a_subreaper_is_guarded,
    a_child_keeps_the_guard_when_its_parent_has_ended,
    a_child_that_execs_in_a_thread_stays_guarded,
    a_process_that_execs_in_a_thread_hands_the_guard_on,
    threads_are_guarded_by_the_hundred,
    a_process_that_becomes_a_user_stays_guarded,
    a_process_that_unshares_its_user_namespace_stays_guarded,
    a_process_that_unshares_mounts_and_time_stays_guarded,
    a_child_inside_a_new_pid_namespace_is_guarded,
    a_process_that_enters_another_pid_namespace_stays_guarded,
    a_traced_process_hands_the_guard_on,
    a_stranger_traced_by_a_guarded_process_is_free,
    an_unguarded_process_and_its_children_are_free,
    of_two_guards_a_child_has_both,
    the_last_of_many_generations_is_guarded,
    when_the_last_has_ended_nothing_is_left,
    a_fork_that_cannot_be_marked_fails,
);

/// Memory for a mark never runs out before 6.4, where a limit is no limit for it.
pub fn trials() -> Vec<Trial> {
    ignoring(tests(), &[(!kernel_is(6, 4), "cannot_be_marked")])
}

/// A child made as `command` says can be lowered and not raised, until the guard ends.
fn inherits(command: &str) {
    let mut target = Agent::start();
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    let child = target.child(command);
    refuses(child, -1);
    accepts(child, 5);
    refuses(child, -20);
    lsm.end().counted(2);
    accepts(child, -1);
}

fn a_child_by_fork_is_guarded() {
    inherits("fork");
}

fn a_child_by_vfork_is_guarded() {
    inherits("vfork");
}

fn a_child_by_clone_with_our_memory_is_guarded() {
    inherits("share");
}

fn a_child_by_posix_spawn_is_guarded() {
    inherits("spawn");
}

fn a_child_forked_by_another_thread_is_guarded() {
    inherits("fork-in-thread");
}

fn a_child_with_clone_parent_is_guarded() {
    let mut target = Agent::start();
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    let child = target.child(&format!("clone3 {CLONE_PARENT}"));
    // It is a child of ours, and we are not guarded.
    let own = std::process::id().to_string();
    assert_eq!(status_field(child, "PPid"), Some(own));
    refuses(child, -1);
    lsm.end().counted(1);
    target.quit();
    let _ = waitpid(Some(pid(child)), WaitOptions::empty());
}

fn a_child_born_in_another_cgroup_is_guarded() {
    let cgroup = Cgroup::new("birthplace");
    inherits(&format!("into {}", cgroup.path()));
}

fn a_grandchild_whose_parent_is_dead_is_guarded() {
    let mut target = Agent::start();
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    let orphan = target.child("orphan");
    assert_eq!(status_field(orphan, "PPid").as_deref(), Some("1"));
    refuses(orphan, -1);
    lsm.end().counted(1);
}

fn a_grandchild_given_to_a_subreaper_is_guarded() {
    let mut target = Agent::start();
    assert_eq!(target.call("subreaper"), Ok(()));
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    let orphan = target.child("orphan");
    let parent = target.pid.to_string();
    assert_eq!(status_field(orphan, "PPid"), Some(parent));
    refuses(orphan, -1);
    lsm.end().counted(1);
}

fn a_child_keeps_the_guard_when_its_parent_has_ended() {
    let mut target = Agent::start();
    let mut lsm = Lsm::start(&format!("--pid {}", target.pid));
    let child = target.child("spawn-alone");
    target.quit();
    lsm.must_still_guard();
    refuses(child, -1);
    accepts(child, 3);
    kill_process(pid(child), Signal::KILL).expect("the child");
    lsm.wait().exited(0).counted(1);
}

fn a_child_that_execs_in_a_thread_stays_guarded() {
    let mut target = Agent::start();
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    let child = target.child("child-execs-in-thread");
    let name = || status_field(child, "Name").filter(|name| name != "live");
    eventually(name).expect("an exec by a thread of the child");
    refuses(child, -1);
    accepts(child, 1);
    lsm.end().counted(1);
}

fn a_process_that_execs_in_a_thread_hands_the_guard_on() {
    let mut target = Agent::start();
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    for _ in 0..5 {
        target.exec();
        refuses(target.pid, -1);
        refuses(target.thread(), -1);
        refuses(target.child("fork-in-thread"), -1);
        refuses(target.child("fork"), -1);
    }
    lsm.end().counted(20);
}

fn threads_are_guarded_by_the_hundred() {
    let mut target = Agent::start();
    (0..50).for_each(|_| assert!(target.thread() > 0));
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    (0..50).for_each(|_| assert!(target.thread() > 0));
    let threads = threads(target.pid);
    assert_eq!(threads.len(), 101);
    for &thread in &threads {
        refuses(thread, -1);
        accepts(thread, 1);
    }
    lsm.end().counted(101);
}

fn a_process_that_becomes_a_user_stays_guarded() {
    let mut target = Agent::start();
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    target.call("setuid 1000").expect("a change of user");
    assert_eq!(
        status_field(target.pid, "Uid").as_deref(),
        Some("1000\t1000\t1000\t1000")
    );
    refuses(target.pid, -1);
    accepts(target.pid, 1);
    refuses(target.child("fork"), -1);
    lsm.end().counted(2);
}

/// A guarded process that unshares stays guarded, with what it makes then.
fn unshares(flags: i32) {
    let mut target = Agent::start();
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    assert_eq!(target.call(&format!("unshare {flags}")), Ok(()));
    refuses(target.pid, -1);
    accepts(target.pid, 1);
    refuses(target.child("fork"), -1);
    refuses(target.child("orphan"), -1);
    lsm.end().counted(3);
}

fn a_process_that_unshares_its_user_namespace_stays_guarded() {
    unshares(CLONE_NEWUSER);
}

fn a_process_that_unshares_mounts_and_time_stays_guarded() {
    unshares(CLONE_NEWNS);
    unshares(CLONE_NEWNS | CLONE_NEWTIME);
}

fn a_child_inside_a_new_pid_namespace_is_guarded() {
    let mut target = Agent::start();
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    assert_eq!(target.call(&format!("unshare {CLONE_NEWPID}")), Ok(()));
    let child = target.child("fork");
    let inner = status_field(child, "NSpid").expect("its PIDs");
    assert_eq!(inner, format!("{child}\t1"));
    refuses(child, -1);
    accepts(child, 1);
    lsm.end().counted(1);
    inherits(&format!("clone3 {CLONE_NEWPID}"));
    inherits(&format!("clone3 {}", CLONE_NEWPID | CLONE_NEWUSER));
}

fn a_process_that_enters_another_pid_namespace_stays_guarded() {
    let container = Agent::forked_by(&["unshare", "--pid", "--fork", "--mount-proc"]);
    let mut target = Agent::start();
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    let path = format!("/proc/{}/ns/pid", container.pid);
    assert_eq!(target.call(&format!("setns {path}")), Ok(()));
    let child = target.child("fork");
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).expect("a namespace");
    assert_eq!(namespace(child), namespace(container.pid));
    refuses(child, -1);
    refuses(target.pid, -1);
    accepts(container.pid, -1);
    lsm.end().counted(2);
}

fn a_traced_process_hands_the_guard_on() {
    let (mut tracer, mut target) = (Agent::start(), Agent::start());
    let trace = format!("trace {}", target.pid);
    assert_eq!(tracer.call(&trace), Ok(()));
    let tracer_of = status_field(target.pid, "TracerPid");
    assert_eq!(tracer_of, Some(tracer.pid.to_string()));
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    refuses(target.pid, -1);
    refuses(target.child("fork"), -1);
    refuses(target.child("fork-in-thread"), -1);
    accepts(tracer.pid, -1);
    // Its parent for the kernel, and yet not what it inherits from.
    accepts(tracer.child("fork"), -1);
    tracer.quit();
    refuses(target.pid, -1);
    lsm.end().counted(4);
}

fn a_stranger_traced_by_a_guarded_process_is_free() {
    let (mut tracer, mut stranger) = (Agent::start(), Agent::start());
    let lsm = Lsm::start(&format!("--pid {}", tracer.pid));
    let trace = format!("trace {}", stranger.pid);
    assert_eq!(tracer.call(&trace), Ok(()));
    refuses(tracer.pid, -1);
    accepts(stranger.pid, -1);
    accepts(stranger.child("fork"), -1);
    lsm.end().counted(1);
    // A process is not reaped by its parent before its tracer has seen it end.
    tracer.quit();
}

fn an_unguarded_process_and_its_children_are_free() {
    let (target, mut other) = (Agent::start(), Agent::start());
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    for made in [
        "fork",
        "vfork",
        "share",
        "spawn",
        "orphan",
        "fork-in-thread",
    ] {
        accepts(other.child(made), -1);
    }
    accepts(other.thread(), -1);
    accepts(other.pid, -1);
    lsm.end().counted(0);
}

fn of_two_guards_a_child_has_both() {
    let mut target = Agent::start();
    let strict = Lsm::start(&format!("--pid {} -n 5", target.pid));
    let child = target.child("fork");
    let loose = Lsm::start(&format!("--pid {}", target.pid));
    let grandchild = target.child("orphan");
    refuses(grandchild, 4);
    refuses(child, 4);
    strict.end().counted(2);
    accepts(child, -1);
    accepts(grandchild, 4);
    refuses(grandchild, -1);
    loose.end().counted(1);
}

fn the_last_of_many_generations_is_guarded() {
    let script = "down() { if [ $1 = 0 ]; then live act setpriority 0 0 -1; \
                  else (down $(($1 - 1)); true); fi; }; down 30";
    let report = Lsm::launch(&["lsm-nice", "-q", "--", "sh", "-c", script], |_| {}).wait();
    report.exited(0).counted(1);
    assert_eq!(report.stdout, format!("{}\n", libc::EPERM), "{report}");
}

fn when_the_last_has_ended_nothing_is_left() {
    let before = Loaded::now();
    let mut target = Agent::start();
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    let made: Vec<_> = ["fork", "spawn", "orphan", "share"]
        .iter()
        .map(|made| target.child(made))
        .collect();
    for child in made {
        refuses(child, -1);
    }
    target.quit();
    lsm.wait()
        .exited(0)
        .says("the last guarded process has exited")
        .counted(4);
    before.is_not_exceeded();
}

/// Marks are made of the memory of lsm-nice: where its cgroup has none left, there is no mark.
fn a_fork_that_cannot_be_marked_fails() {
    let control = "/sys/fs/cgroup/cgroup.subtree_control";
    fs::write(control, "+memory").expect("the controller");
    let cgroup = Cgroup::new("memory");
    let limit = |bytes: &str| fs::write(cgroup.path.join("memory.max"), bytes).expect("a limit");
    let mut target = Agent::start();
    let join = format!("echo $$ >{}/cgroup.procs; exec \"$@\"", cgroup.path());
    let options = format!("--pid {}", target.pid);
    let lsm = Lsm::start_in(&["sh", "-c", &join, "sh"], &options);
    let adjust = format!("/proc/{}/oom_score_adj", lsm.pid());
    fs::write(adjust, "-1000").expect("lsm-nice, not to be killed instead");
    // its second thread still allocates when it starts, which may be late
    let waits = |tid: &i32| status_field(*tid, "State").is_some_and(|state| state.starts_with('S'));
    let all_wait = || threads(lsm.pid()).iter().all(waits).then_some(());
    assert!(eventually(all_wait).is_some());

    limit("0");
    // the kernel has some in stock
    let mut made = Vec::new();
    let failure = (0..1000).find_map(|_| {
        let pid = target.ask("fork");
        made.extend((pid > 0).then_some(pid));
        (pid < 0).then_some(-pid)
    });
    assert_eq!(failure, Some(libc::ENOMEM), "after {} forks", made.len());
    limit("max");
    let fork = || Some(target.ask("fork")).filter(|pid| *pid > 0);
    made.extend(eventually(fork));

    let children = children(target.pid);
    assert_eq!(children, made);
    for child in &children {
        refuses(*child, -1);
    }
    lsm.end().counted(children.len() as u64);
    drop(cgroup);
    fs::write(control, "-memory").expect("the controller");
}
