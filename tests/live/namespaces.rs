// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! A guard from inside a container, whose PIDs and clocks are its own.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::agent::Agent;
use crate::bpf::read_iterators;
use crate::helpers::{Lsm, accepts, child_of, nice_of, refuses, run, set_nice, status_field};

tests!(
    a_pid_of_an_inner_namespace_is_guarded_and_its_outer_namesake_is_not,
    who_reads_the_iterator_of_a_start_has_no_namesake_guarded,
    a_process_of_an_inner_namespace_is_guarded_from_outside,
    lsm_nice_in_a_pid_namespace_guards_itself,
    another_namespaces_proc_is_refused_with_the_fix,
    where_children_are_in_another_namespace_nobody_is_touched,
    a_target_inside_a_time_namespace_is_guarded,
);

const CONTAINER: [&str; 4] = ["unshare", "--pid", "--fork", "--mount-proc"];
const SHIFTED: [&str; 5] = ["unshare", "-T", "--boottime", "1000000", "--fork"];

/// The PID that a process has here, by the one that it has in an inner namespace.
fn outer(inner: i32) -> i32 {
    fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .find(|&pid: &i32| {
            status_field(pid, "NSpid").is_some_and(|pids| {
                let pids: Vec<_> = pids.split_whitespace().collect();
                pids.len() > 1 && pids.last() == Some(&inner.to_string().as_str())
            })
        })
        .unwrap_or_else(|| panic!("nobody has PID {inner} in an inner namespace"))
}

/// A container, a process outside, and by its PID here one inside, which has there the PID of the other.
fn namesakes() -> (Agent, Agent, i32) {
    let (mut container, namesake) = (Agent::forked_by(&CONTAINER), Agent::start());
    let inner = namesake.pid;
    assert_eq!(container.call(&format!("clone {inner}")), Ok(()));
    let target = outer(inner);
    assert_ne!(target, inner);
    (container, namesake, target)
}

fn a_pid_of_an_inner_namespace_is_guarded_and_its_outer_namesake_is_not() {
    let (container, namesake, target) = namesakes();
    let inner = namesake.pid;
    let init = container.pid.to_string();
    let enter = ["nsenter", "--target", &init, "--pid", "--mount"];
    let lsm = Lsm::start_in(&enter, &format!("--pid {inner}"));
    refuses(target, -10);
    accepts(target, 10);
    let renice = ["renice", "-n", "-10", "-p", &inner.to_string()];
    run(enter[0], &[&enter[1..], &renice].concat())
        .exited(1)
        .says("Operation not permitted");
    accepts(inner, -10);
    assert!(
        lsm.stderr().contains(&format!("guarding process {inner} ")),
        "the PID of the inner namespace was expected: {}",
        lsm.stderr()
    );
    lsm.end().counted(2);
    accepts(target, -10);
}

/// As `status` does, which may run while another guard starts.
fn who_reads_the_iterator_of_a_start_has_no_namesake_guarded() {
    let (container, namesake, target) = namesakes();
    let inner = namesake.pid;
    let init = container.pid.to_string();
    let enter = ["nsenter", "--target", &init, "--pid", "--mount"];
    let start = Instant::now();
    let stop = AtomicBool::new(false);
    let ours = thread::scope(|scope| {
        scope.spawn(|| {
            // also where a start fails
            while !stop.load(Relaxed) && start.elapsed() < Duration::from_secs(60) {
                read_iterators();
            }
        });
        let ours = [(); 3].map(|()| {
            let lsm = Lsm::start_in(&enter, &format!("--pid {inner}"));
            let ours = (set_nice(inner, -10), set_nice(target, -10));
            lsm.end();
            ours
        });
        stop.store(true, Relaxed);
        ours
    });
    assert_eq!(ours, [(Ok(()), Err(Errno::PERM)); 3]);
}

fn a_process_of_an_inner_namespace_is_guarded_from_outside() {
    let mut container = Agent::forked_by(&CONTAINER);
    let lsm = Lsm::start(&format!("--pid {}", container.pid));
    refuses(container.pid, -10);
    assert!(container.call("nice -1").is_err());
    lsm.end().counted(2);
}

fn lsm_nice_in_a_pid_namespace_guards_itself() {
    let lsm = Lsm::start_in(&CONTAINER, "");
    let init = lsm.pid();
    assert!(lsm.stderr().contains("process 1:"), "{}", lsm.stderr());
    refuses(init, -10);
    accepts(init, 10);
    lsm.end().counted(1);
}

fn another_namespaces_proc_is_refused_with_the_fix() {
    let target = Agent::start();
    Lsm::run_in(
        &["unshare", "--pid", "--fork"],
        &format!("--pid {}", target.pid),
    )
    .refused_to_start()
    .says("/proc does not show the PID namespace")
    .says("fix: mount -t proc proc /proc");
    accepts(target.pid, -10);
    // which has no trial, as its child would be another process there
    let report = Lsm::run_in(&["unshare", "--pid", "--fork"], "check");
    report.exited(1);
    for row in [
        "proc           FAILED  /proc does not show",
        "trial          FAILED  see proc\n",
    ] {
        assert!(report.stdout.contains(row), "{report}");
    }
}

/// unshare(1) without --fork: the children of lsm-nice are in another namespace than itself.
fn where_children_are_in_another_namespace_nobody_is_touched() {
    let target = Agent::start();
    let guard = format!("--pid {}", target.pid);
    for options in [&guard, "check"] {
        Lsm::run_in(&["unshare", "--pid"], options)
            .exited(1)
            .never_says("guarding");
        let policy = run("chrt", &["-p", "1"]).stdout;
        assert!(policy.contains("SCHED_OTHER"), "{policy}");
        assert_eq!(nice_of(1), 0, "{options}");
    }
    let report = Lsm::run_in(&["unshare", "--pid"], &guard);
    report.refused_to_start();
    report.says("is in another PID namespace").says("--fork");
    accepts(target.pid, -10);
}

fn a_target_inside_a_time_namespace_is_guarded() {
    let target = Agent::forked_by(&SHIFTED);
    assert_eq!(
        status_field(target.pid, "PPid").map(|parent| child_of(parent.parse().expect("a PID"))),
        Some(target.pid)
    );
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    refuses(target.pid, -10);
    accepts(target.pid, 10);
    lsm.end().counted(1);
}
