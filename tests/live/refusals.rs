// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! A kernel that was booted with `lsm=lockdown,yama`: programs load and attach, and never run.

use crate::agent::Agent;
use crate::check::{all_for_want_of, rows};
use crate::helpers::{Lsm, accepts};

tests!(
    a_guard_of_a_process_is_refused_with_the_complete_parameter,
    a_guard_of_lsm_nice_itself_is_refused,
    a_floor_that_refuses_nothing_is_refused_too,
    check_fails_and_names_the_complete_parameter,
    check_says_so_in_json,
);

const PARAMETER: &str = "lsm=lockdown,yama,bpf";

fn a_guard_of_a_process_is_refused_with_the_complete_parameter() {
    let target = Agent::start();
    Lsm::run(&format!("--pid {}", target.pid))
        .refused_to_start()
        .says("bpf is not among the active LSMs")
        .says(PARAMETER);
    accepts(target.pid, -10);
}

fn a_guard_of_lsm_nice_itself_is_refused() {
    Lsm::run("").refused_to_start().says(PARAMETER);
    Lsm::run("-v").exited(1).says(PARAMETER);
}

fn a_floor_that_refuses_nothing_is_refused_too() {
    Lsm::run("--floor -20").refused_to_start().says(PARAMETER);
}

fn check_fails_and_names_the_complete_parameter() {
    let report = Lsm::run("check");
    report.exited(1).never_says("guarding");
    let failed = report
        .stdout
        .lines()
        .find(|line| line.starts_with("lsm-list"));
    assert!(
        failed.is_some_and(|line| line.contains("FAILED")) && report.stdout.contains(PARAMETER),
        "{report}"
    );
}

fn check_says_so_in_json() {
    let report = Lsm::run("check --json");
    report.exited(1);
    let failed: Vec<_> = rows(&report)
        .into_iter()
        .filter(|row| row["ok"] == false)
        .collect();
    let names: Vec<_> = failed
        .iter()
        .filter_map(|row| row["requirement"].as_str())
        .filter(|name| *name != "children")
        .collect();
    assert_eq!(names, all_for_want_of("lsm-list"), "{report}");
    assert!(
        failed[0]["fix"]
            .as_str()
            .is_some_and(|fix| fix.contains(PARAMETER)),
        "{report}"
    );
}
