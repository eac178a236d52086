// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The command line, as any user on any machine has it, and what the README says of the tests:
//! nothing here needs root or BPF.

use std::fs;
use std::process::{Command, Output};

fn lsm_nice(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lsm-nice"))
        .args(args)
        .output()
        .expect("cannot run lsm-nice")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Wrong usage: exit status 2, and an error that says what is wrong.
#[track_caller]
fn is_wrong_usage(args: &[&str], named: &str) {
    let output = lsm_nice(args);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
    assert!(
        error.starts_with("lsm-nice: error:") && error.contains(named),
        "{args:?}: {error}"
    );
    assert_eq!(text(&output.stdout), "", "{args:?}");
}

#[test]
fn help_names_every_option_and_the_exit_statuses() {
    let output = lsm_nice(&["--help"]);
    let help = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stderr), "");
    for part in [
        "check",
        "lsm-nice status [NAME] [--follow]",
        "lsm-nice release NAME",
        "--pin <NAME>",
        "--replace",
        "-p, --pid",
        "-n, --floor",
        "-20 to 19",
        "guard the process that is acted upon",
        "guard the process that calls; sockets that it has open stay usable",
        "-v, --verbose",
        "-h, --help",
        "-V, --version",
        "Exit status: 0",
    ] {
        assert!(help.contains(part), "no {part:?} in\n{help}");
    }
}

#[test]
fn short_help_works() {
    let output = lsm_nice(&["-h"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("Usage: lsm-nice"));
}

#[test]
fn help_of_check_names_json() {
    let output = lsm_nice(&["check", "--help"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("--json"));
}

#[test]
fn version_names_libbpf_too() {
    for option in ["--version", "-V"] {
        let output = lsm_nice(&[option]);
        assert_eq!(output.status.code(), Some(0));
        let version = text(&output.stdout);
        let libbpf = version
            .strip_prefix(concat!("lsm-nice ", env!("CARGO_PKG_VERSION"), " (libbpf "))
            .and_then(|rest| rest.strip_suffix(")\n"))
            .unwrap_or_else(|| panic!("{version:?}"));
        let numbers: Vec<_> = libbpf.split('.').map(str::parse::<u32>).collect();
        assert!(
            numbers.len() == 2 && numbers.iter().all(Result::is_ok),
            "{version:?}"
        );
    }
}

#[test]
fn a_pid_that_no_process_can_have_is_wrong_usage() {
    for pid in ["0", "-1", "abc", "99999999999", "", "1.5"] {
        is_wrong_usage(&["--pid", pid], "--pid");
        is_wrong_usage(&["-p", pid], "--pid");
    }
    is_wrong_usage(&["--pid"], "--pid");
}

#[test]
fn wrong_usage_is_told_by_the_status_where_nobody_reads() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full");
    let status = Command::new(env!("CARGO_BIN_EXE_lsm-nice"))
        .args(["--floor", "99"])
        .stderr(full.expect("/dev/full"))
        .status();
    assert_eq!(status.expect("cannot run lsm-nice").code(), Some(2));
}

#[test]
fn a_floor_out_of_range_is_wrong_usage() {
    for floor in ["20", "-21", "x", "99999999999", ""] {
        is_wrong_usage(&["--floor", floor], "--floor");
        is_wrong_usage(&["-n", floor], "--floor");
    }
    is_wrong_usage(&["--floor"], "--floor");
}

#[test]
fn a_negative_floor_is_no_option() {
    // PID_MAX_LIMIT is far lower: nobody has this PID, so that no guard can start.
    for floor in [
        ["--floor", "-5"].as_slice(),
        &["--floor=-20"],
        &["-n", "-5"],
        &["-n-5"],
    ] {
        let output = lsm_nice(&[floor, &["--pid", "2147483647"]].concat());
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{floor:?}: {error}");
        assert!(error.contains("2147483647"), "{floor:?}: {error}");
    }
}

#[test]
fn an_unknown_rule_is_wrong_usage_and_the_known_ones_are_listed() {
    for rules in ["fifo", "nice,fifo", "nice,", "NICE", "nice sched", ""] {
        is_wrong_usage(&["--rule", rules], "nice, sched, io");
        is_wrong_usage(&["-r", "sched", "-r", rules], "nice, sched, io");
    }
    is_wrong_usage(&["--rule"], "--rule");
    is_wrong_usage(&["check", "--rule", "nice"], "--rule");
}

#[test]
fn a_pin_without_a_target_or_with_a_wrong_name_is_wrong_usage() {
    is_wrong_usage(&["--pin", "web"], "--pin needs --pid or --cgroup");
    is_wrong_usage(&["--pin", "web", "--", "true"], "cannot be used with");
    is_wrong_usage(&["--pin", "web", "--pid", "1", "--json"], "--json");
    is_wrong_usage(&["--replace", "--pid", "1"], "--pin");
    let long = "x".repeat(65);
    for name in [
        "", ".", "..", "a/b", "a.b", "a+new", "-x", "a b", "\u{e9}", &long,
    ] {
        let pin = format!("--pin={name}");
        is_wrong_usage(&[&pin, "--pid", "1"], "name");
        is_wrong_usage(&["release", "--", name], "name");
        is_wrong_usage(&["status", "--", name], "name");
    }
    is_wrong_usage(&["release"], "NAME");
    is_wrong_usage(&["status", "--follow"], "NAME");
}

#[test]
fn a_tree_needs_a_pid() {
    is_wrong_usage(&["--tree"], "--pid");
    is_wrong_usage(&["--tree", "--cgroup", "/"], "--pid");
    is_wrong_usage(&["--tree", "--", "true"], "--pid");
}

#[test]
fn what_lsm_nice_does_not_know_is_wrong_usage() {
    is_wrong_usage(&["--no-such-option"], "--no-such-option");
    is_wrong_usage(&["-x"], "-x");
    is_wrong_usage(&["no-such-command"], "no-such-command");
    is_wrong_usage(&["4242"], "4242");
    is_wrong_usage(&["-10"], "-1");
    is_wrong_usage(&["--quiet", "--verbose"], "--verbose");
}

#[test]
fn nothing_behind_the_dashes_is_wrong_usage() {
    is_wrong_usage(&["--"], "COMMAND");
    is_wrong_usage(&["--floor", "5", "--"], "COMMAND");
    // which takes none, and only looks
    assert_ne!(lsm_nice(&["status", "--"]).status.code(), Some(2));
}

#[test]
fn check_takes_no_stray_arguments() {
    is_wrong_usage(&["check", "stray"], "stray");
    is_wrong_usage(&["check", "--floor", "1"], "--floor");
    is_wrong_usage(&["check", "--audit"], "--audit");
    is_wrong_usage(&["check", "--quiet"], "--quiet");
    is_wrong_usage(&["check", "--pid", "1"], "--pid");
    is_wrong_usage(&["--floor", "1", "check"], "check");
}

/// Which live tests the tables of ways name, and that each row names one.
#[test]
fn every_way_in_the_readme_has_a_live_test() {
    let read =
        |path: &str| fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let readme = read("README.md");
    let mut rows = Vec::new();
    for table in readme.split("\n| way |").skip(1) {
        let lines = table.lines().skip(2);
        rows.extend(lines.take_while(|line| line.starts_with('|')));
    }
    assert!(rows.len() > 30, "the tables have {} rows", rows.len());
    let mut named = Vec::new();
    for row in rows {
        let cell = row.trim_end_matches(" |").rsplit(" | ").next();
        for test in cell.unwrap_or_default().split(", ") {
            let (module, name) = test
                .trim_matches('`')
                .split_once("::")
                .unwrap_or_else(|| panic!("no live test is named in {row}"));
            let source = read(&format!("tests/live/{module}.rs"));
            assert!(
                source.contains(&format!("\nfn {name}() {{")),
                "no test {test}"
            );
            named.push(name);
        }
    }
    let scope = read("tests/live/scope.rs") + &read("tests/live/heap.rs");
    let tests = scope.lines().filter_map(|line| line.strip_prefix("fn so_"));
    for test in tests.filter_map(|line| line.strip_suffix("() {")) {
        let test = format!("so_{test}");
        assert!(
            named.contains(&test.as_str()),
            "{test} is in no row of the tables"
        );
    }
}
