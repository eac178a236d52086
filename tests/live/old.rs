// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! A kernel without task storage, 5.10: a single process can be guarded there, and nothing else.

use crate::agent::Agent;
use crate::bpf::Loaded;
use crate::helpers::{Lsm, Report, accepts, refuses};

tests!(
    what_this_kernel_cannot_guard_is_refused_with_what_it_can,
    a_command_that_this_kernel_cannot_guard_is_not_started,
    a_command_alone_is_guarded,
);

/// lsm-nice with these words alone: the harness adds none.
fn lsm_nice(options: &str) -> Report {
    let words: Vec<_> = ["lsm-nice"]
        .into_iter()
        .chain(options.split_whitespace())
        .collect();
    Lsm::launch(&words, |_| {}).wait()
}

fn names_what_would_work(report: &Report) {
    report
        .says("5.13")
        .says("--no-children")
        .never_says("guarding");
}

fn what_this_kernel_cannot_guard_is_refused_with_what_it_can() {
    let (first, second) = (Agent::start(), Agent::start());
    let before = Loaded::now();
    for options in [
        format!("--pid {}", first.pid),
        format!("--pid {} --tree --no-children", first.pid),
        format!("--pid {} --pid {} --no-children", first.pid, second.pid),
        "--cgroup /sys/fs/cgroup --no-children".to_string(),
        format!("--pid {} --no-children --pin web", first.pid),
    ] {
        let report = lsm_nice(&options);
        report.refused_to_start();
        names_what_would_work(&report);
    }
    accepts(first.pid, -1);
    before.is_not_exceeded();
    let _lsm = Lsm::start(&format!("--no-children --pid {}", first.pid));
    refuses(first.pid, -1);
    let report = Lsm::run("status");
    report.exited(0);
    let target = format!("targets    process {} (live)\n", first.pid);
    assert!(report.stdout.contains(&target), "{report}");
}

fn a_command_that_this_kernel_cannot_guard_is_not_started() {
    let report = lsm_nice("-- echo started");
    report.exited(125).never_says("started");
    names_what_would_work(&report);
}

fn a_command_alone_is_guarded() {
    let report = lsm_nice("-q --no-children -- live act setpriority 0 0 -1");
    report.exited(0).says("guarding");
    assert_eq!(report.stdout, format!("{}\n", libc::EPERM), "{report}");
}
