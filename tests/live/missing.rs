// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! A kernel that does not let every door be guarded: this one, where its BTF lacks a function.

use std::fs;

use crate::agent::Agent;
use crate::check::rows;
use crate::doors::with_session;
use crate::helpers::{Lsm, accepts, set_nice};
use crate::sys::{
    Attr, FIFO, IO_PROCESS, IO_RT, Native, OTHER, Outside, RR, autogroup_file, io, state,
};

tests!(
    a_door_that_cannot_be_guarded_is_refused_with_the_reason,
    with_best_effort_a_door_that_cannot_be_guarded_alone_is_open,
    with_best_effort_a_guard_of_nothing_is_refused,
    check_names_what_cannot_be_guarded,
);

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const ALTERED: &str = "/tmp/btf";

const SETSCHEDULER: &str = "__sched_setscheduler";
const AUTOGROUP: &str = "proc_sched_autogroup_set_nice";

fn number(btf: &[u8], at: usize) -> usize {
    let bytes = btf[at..at + 4].try_into().expect("four bytes");
    u32::from_le_bytes(bytes) as usize
}

/// Where BTF has a function: a struct btf_type, which is its name, its kind and its prototype.
fn entry(btf: &[u8], function: &str) -> usize {
    const KIND_FUNC: usize = 12;
    let header = number(btf, 4);
    let (types, strings) = (header + number(btf, 8), header + number(btf, 16));
    let name = format!("\0{function}\0");
    let mut names = btf[strings..].windows(name.len());
    let name = names
        .position(|part| part == name.as_bytes())
        .expect(function)
        + 1;
    let found = (types..strings)
        .step_by(4)
        .find(|at| number(btf, *at) == name && number(btf, at + 4) >> 24 & 0x1f == KIND_FUNC);
    found.expect(function)
}

/// Where lsm-nice sees BTF in which a function has no name.
fn where_it_lacks(function: &str) -> [String; 6] {
    let mut btf = fs::read(VMLINUX).expect("BTF");
    let at = entry(&btf, function);
    btf[at..at + 4].fill(0);
    fs::write(ALTERED, btf).expect("a file");
    let hide = format!("mount --bind {ALTERED} {VMLINUX} && exec \"$@\"");
    ["unshare", "--mount", "sh", "-c", &hide, "sh"].map(String::from)
}

fn words(wrapper: &[String; 6]) -> [&str; 6] {
    wrapper.each_ref().map(String::as_str)
}

fn a_door_that_cannot_be_guarded_is_refused_with_the_reason() {
    for function in [SETSCHEDULER, AUTOGROUP] {
        let target = Agent::start();
        let wrapper = where_it_lacks(function);
        Lsm::run_in(&words(&wrapper), &format!("--pid {}", target.pid))
            .refused_to_start()
            .says("error: rule nice cannot be enforced here: ")
            .says(&format!("has no {function} that could be traced"))
            .says("fix: --best-effort");
        accepts(target.pid, -10);
    }
}

/// The ways by which a process can be raised.
fn open(pid: i32) -> Vec<&'static str> {
    let setattr = |attr: &Attr| Outside.setattr(Native, pid, attr);
    let results = [
        ("setpriority", set_nice(pid, -5)),
        ("nice by setattr", setattr(&Attr::nice(OTHER, -6))),
        (
            "autogroup",
            Outside.write("write", &autogroup_file(pid), "-7"),
        ),
        ("FIFO", Outside.setscheduler(Native, pid, FIFO.into(), 1)),
        ("RR by setattr", setattr(&Attr::real_time(RR, 1))),
        ("io", Outside.ioprio_set(IO_PROCESS, pid, io(IO_RT, 0))),
    ];
    results
        .into_iter()
        .filter_map(|(way, result)| result.is_ok().then_some(way))
        .collect()
}

fn with_best_effort_a_door_that_cannot_be_guarded_alone_is_open() {
    for (function, warnings, ways) in [
        (
            SETSCHEDULER,
            [
                "warning: rule nice is open at sched_setattr(2): ",
                "warning: rule sched is open at sched_setscheduler(2), ",
            ]
            .as_slice(),
            ["nice by setattr", "FIFO", "RR by setattr"].as_slice(),
        ),
        (
            AUTOGROUP,
            &["warning: rule nice is open at /proc/PID/autogroup: "],
            &["autogroup"],
        ),
    ] {
        let target = with_session();
        let wrapper = where_it_lacks(function);
        let options = format!("--pid {} --rule nice,sched,io --best-effort", target.pid);
        let lsm = Lsm::start_in(&words(&wrapper), &options);
        assert_eq!(open(target.pid), ways, "without {function}");
        let report = lsm.end();
        report.counted(6 - ways.len() as u64);
        assert_eq!(report.stderr.matches("warning: ").count(), warnings.len());
        for warning in warnings {
            report.says(warning);
        }
        report.says("rule nice with doors open").says(function);
    }
}

fn with_best_effort_a_guard_of_nothing_is_refused() {
    let target = Agent::start();
    let wrapper = where_it_lacks(SETSCHEDULER);
    let options = format!("--pid {} --rule sched --best-effort", target.pid);
    Lsm::run_in(&words(&wrapper), &options)
        .refused_to_start()
        .says("nothing of what was asked for");
    assert_eq!(state(target.pid).policy, OTHER);
    accepts(target.pid, -10);
}

fn check_names_what_cannot_be_guarded() {
    for (function, failed) in [
        (SETSCHEDULER, ["rule-nice", "rule-sched"].as_slice()),
        (AUTOGROUP, &["rule-nice"]),
    ] {
        let wrapper = where_it_lacks(function);
        let report = Lsm::run_in(&words(&wrapper), "check --json");
        // what is left can be guarded
        report.exited(0);
        let rows = rows(&report);
        let rules = rows.iter().filter(|row| row["ok"] == false);
        let rules: Vec<_> = rules
            .filter(|row| row["requirement"] != "children")
            .collect();
        let names: Vec<_> = rules.iter().map(|row| &row["requirement"]).collect();
        assert_eq!(names, failed, "{report}");
        for row in rules {
            let detail = row["detail"].as_str();
            assert!(
                detail.is_some_and(|detail| detail.contains(function)),
                "{report}"
            );
        }
    }
}
