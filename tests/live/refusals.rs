// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! A kernel that was booted with `lsm=lockdown,yama`: programs load and attach, and never run.

use std::fs;

use crate::agent::Agent;
use crate::check::{all_for_want_of, rows};
use crate::helpers::{Lsm, accepts, unmount_securityfs};

tests!(
    a_guard_of_a_process_is_refused_with_the_complete_parameter,
    a_guard_of_lsm_nice_itself_is_refused,
    a_floor_that_refuses_nothing_is_refused_too,
    check_fails_and_names_the_complete_parameter,
    check_says_so_in_json,
    // the last, as nothing lifts a lockdown
    check_names_a_lockdown_and_what_hides_the_trial,
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

fn check_names_a_lockdown_and_what_hides_the_trial() {
    fs::write("/sys/kernel/security/lockdown", "confidentiality").expect("a lockdown");
    let report = Lsm::run("check");
    report.exited(1);
    let row = |name: &str| {
        let mut rows = report.stdout.lines();
        let row = rows.find(|line| line.split(' ').next() == Some(name));
        row.unwrap_or_else(|| panic!("no {name}: {report}"))
    };
    assert!(row("lockdown").contains("FAILED"), "{report}");
    assert!(
        report
            .stdout
            .contains("boot without lockdown=confidentiality"),
        "{report}"
    );
    // the kernel's own words are "Invalid argument"
    assert!(row("trial").ends_with("FAILED  see lockdown"), "{report}");
    unmount_securityfs();
    Lsm::run("")
        .refused_to_start()
        .says("boot without lockdown=confidentiality");
}
