// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! `lsm-nice check` where a guard holds.

use std::fs;

use libtest_mimic::Trial;
use serde_json::Value;

use crate::helpers::{
    Lsm, Report, has_task_storage, ignoring, kernel_is, mount_securityfs, securityfs_is_mounted,
    unmount_securityfs,
};

tests!(
    check_passes_with_a_row_for_each_requirement,
    check_speaks_json,
    check_names_what_a_restricted_root_lacks,
    where_debugfs_is_closed_the_boot_tells_whether_the_kernel_is_preemptible,
);

/// Elsewhere it makes no difference.
pub fn trials() -> Vec<Trial> {
    let asks = kernel_is(5, 12) && !kernel_is(6, 2);
    ignoring(tests(), &[(!asks, "where_debugfs_is_closed")])
}

pub const REQUIREMENTS: [&str; 20] = [
    "kernel",
    "bpf-lsm",
    "btf",
    "securityfs",
    "lsm-list",
    "lockdown",
    "proc",
    "capabilities",
    "hook",
    "ftrace",
    "preemption",
    "children",
    "rule-nice",
    "rule-sched",
    "rule-io",
    "rule-heap",
    "rule-heap-exec",
    "rule-socket",
    "rule-inet",
    "trial",
];

/// What fails where that requirement is not there.
pub fn all_for_want_of(requirement: &'static str) -> Vec<&'static str> {
    let of_rules = REQUIREMENTS
        .into_iter()
        .filter(|name| name.starts_with("rule-"));
    [requirement]
        .into_iter()
        .chain(of_rules)
        .chain(["trial"])
        .collect()
}

/// The rows of `check --json`.
#[track_caller]
pub fn rows(report: &Report) -> Vec<Value> {
    let rows: Vec<Value> = report
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}\n{report}")))
        .collect();
    let names: Vec<_> = rows
        .iter()
        .filter_map(|row| row["requirement"].as_str())
        .collect();
    assert_eq!(names, REQUIREMENTS, "{report}");
    for row in &rows {
        let mut keys: Vec<_> = row.as_object().expect("an object").keys().collect();
        keys.sort();
        assert_eq!(keys, ["detail", "fix", "ok", "requirement"], "{report}");
        assert!(
            row["ok"].is_boolean() && row["detail"].is_string(),
            "{report}"
        );
        assert!(row["fix"].is_null() || row["fix"].is_string(), "{report}");
    }
    rows
}

/// Whether this kernel is to have what a row is about: not marks for children on 5.10.
fn is_here(requirement: &str) -> bool {
    requirement != "children" || has_task_storage()
}

fn check_passes_with_a_row_for_each_requirement() {
    let report = Lsm::run("check");
    report.exited(0);
    assert_eq!(report.stderr, "", "{report}");
    let rows: Vec<Vec<_>> = report
        .stdout
        .lines()
        .filter(|line| !line.starts_with(' '))
        .map(|line| line.split_whitespace().take(2).collect())
        .collect();
    let mark = |name| if is_here(name) { "ok" } else { "FAILED" };
    let expected: Vec<_> = REQUIREMENTS
        .iter()
        .map(|name| vec![*name, mark(name)])
        .collect();
    assert_eq!(rows, expected, "{report}");
}

fn check_speaks_json() {
    unmount_securityfs();
    let report = Lsm::run("check --json");
    report.exited(0);
    assert!(securityfs_is_mounted(), "check is to mount it");
    for row in rows(&report) {
        let here = row["requirement"].as_str().is_some_and(is_here);
        assert!(
            row["ok"] == here && row["fix"].is_null() == here,
            "{report}"
        );
    }
}

fn check_names_what_a_restricted_root_lacks() {
    if !securityfs_is_mounted() {
        mount_securityfs();
    }
    let report = Lsm::run_in(
        &["setpriv", "--bounding-set=-bpf,-perfmon,-sys_admin"],
        "check --json",
    );
    report.exited(1);
    let failed: Vec<_> = rows(&report)
        .into_iter()
        .filter(|row| row["ok"] == false)
        .collect();
    let failed: Vec<_> = failed
        .iter()
        .filter_map(|row| row["requirement"].as_str())
        .filter(|requirement| is_here(requirement))
        // before 6.2 it is asked of debugfs, which takes CAP_SYS_ADMIN
        .filter(|requirement| *requirement != "preemption")
        .collect();
    assert_eq!(failed, all_for_want_of("capabilities"), "{report}");
}

/// Lockdown closes it, which secure boot brings. In any other case it may say something else by now.
fn where_debugfs_is_closed_the_boot_tells_whether_the_kernel_is_preemptible() {
    const LOCKED: &str = "none [integrity] confidentiality\n";
    const VOLUNTARY: &str = "CONFIG_PREEMPT_VOLUNTARY=y\nCONFIG_PREEMPT_DYNAMIC=y\n";
    const FULL: &str = "# CONFIG_PREEMPT_VOLUNTARY is not set\nCONFIG_PREEMPT=y\n";
    if !securityfs_is_mounted() {
        mount_securityfs();
    }
    let uname = rustix::system::uname();
    let config = format!("/boot/config-{}", uname.release().to_string_lossy());
    fs::create_dir_all("/boot").expect("/boot");
    for (lockdown, line, built, preemptible) in [
        (LOCKED, "quiet", None, true),
        (LOCKED, "quiet", Some(VOLUNTARY), false),
        (LOCKED, "quiet", Some(FULL), true),
        (LOCKED, "preempt=full preempt=none quiet", None, false),
        (
            LOCKED,
            "preempt=none preempt=full quiet",
            Some(VOLUNTARY),
            true,
        ),
        (LOCKED, "quiet -- preempt=none", Some(FULL), true),
        (
            "[none] integrity confidentiality\n",
            "preempt=none",
            Some(VOLUNTARY),
            true,
        ),
    ] {
        fs::write("/tmp/lockdown", lockdown).expect("a file");
        fs::write("/tmp/cmdline", line).expect("a file");
        match built {
            Some(built) => fs::write(&config, built).expect("a configuration"),
            None => drop(fs::remove_file(&config)),
        }
        let script = "mount --bind /tmp/cmdline /proc/cmdline &&
            mount --bind /tmp/lockdown /sys/kernel/security/lockdown &&
            exec setpriv --bounding-set=-sys_admin \"$@\"";
        let wrapper = ["unshare", "--mount", "sh", "-c", script, "sh"];
        let report = Lsm::run_in(&wrapper, "check --json");
        report.exited(preemptible.into());
        let rows = rows(&report);
        let row = rows.iter().find(|row| row["requirement"] == "preemption");
        assert_eq!(
            row.expect("a row")["ok"],
            !preemptible,
            "{line} {built:?} {report}"
        );
    }
    let _ = fs::remove_file(&config);
}
