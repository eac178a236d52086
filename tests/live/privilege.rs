// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! What lsm-nice may still do once a guard stands.

use std::fs;
use std::process::{Command, Stdio};

use libtest_mimic::Trial;
use rustix::process::Signal;

use crate::agent::Agent;
use crate::helpers::{
    Lsm, Report, accepts, child_of, eventually, has_task_storage, ignoring, kernel_is, pid,
    refuses, run, status_field, threads,
};

tests!(
    a_guard_of_one_process_keeps_no_capability,
    a_guard_with_marks_keeps_cap_bpf_alone,
    cap_sys_admin_stands_in_for_cap_bpf,
    a_guard_of_a_command_can_signal_it_whoever_it_becomes,
    command_has_what_lsm_nice_was_started_with,
    nobody_traces_a_guard_without_cap_sys_ptrace,
    a_guard_starts_while_others_write_to_autogroups,
    a_user_guards_by_the_capabilities_of_the_binary,
    too_little_locked_memory_is_named_with_the_fix,
);

const DEBUGFS: &str = "/sys/kernel/debug";

/// For who lacks CAP_SYS_ADMIN the kernel takes one such write in 100 ms, of all on the machine.
fn a_guard_starts_while_others_write_to_autogroups() {
    let target = Agent::start();
    let without = ["setpriv", "--bounding-set=-sys_admin"];
    // where 6.1 is asked whether it is preemptible, as systemd has it
    run("mount", &["-t", "debugfs", "debugfs", DEBUGFS]).exited(0);
    let script = "while :; do echo 0 2>/dev/null >/proc/self/autogroup; done";
    let mut writer = Command::new(without[0])
        .args([without[1], "sh", "-c", script])
        .stderr(Stdio::null())
        .spawn()
        .expect("setpriv");
    let lsm = Lsm::start_in(&without, &format!("--pid {}", target.pid));
    writer.kill().expect("a shell that writes");
    writer.wait().expect("a shell that writes");
    run("umount", &[DEBUGFS]).exited(0);
    refuses(target.pid, -1);
    lsm.end();
}

/// With them lsm-nice is not dumpable, and /proc has it and its children as root's.
fn a_user_guards_by_the_capabilities_of_the_binary() {
    const DIR: &str = "/tmp/capable";
    let target = Agent::at_nice(-7);
    fs::create_dir_all(DIR).expect("a directory");
    run("mount", &["-t", "tmpfs", "tmpfs", DIR]).exited(0);
    let binary = format!("{DIR}/lsm-nice");
    fs::copy("/bin/lsm-nice", &binary).expect("a copy");
    // linux/capability.h: struct vfs_cap_data, all effective
    let held = CAP_BPF | CAP_PERFMON | CAP_SYS_NICE;
    let mut capabilities = [0; 20];
    for (at, number) in [0x0200_0001, held as u32, 0, (held >> 32) as u32]
        .into_iter()
        .enumerate()
    {
        capabilities[at * 4..][..4].copy_from_slice(&number.to_le_bytes());
    }
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&binary, "security.capability", &capabilities, flags).expect("an xattr");
    // debugfs, where 6.1 is asked whether it is preemptible; /proc, where others are hidden; a shell
    // of the user, who has no capability; before 5.11 BPF counts as locked memory
    let script = "mount -t debugfs -o mode=755 debugfs /sys/kernel/debug &&
        mount -t proc -o hidepid=2 proc /proc && ulimit -l unlimited &&
        exec setpriv --reuid=1000 --regid=1000 --clear-groups sh -c 'exec \"$@\"' sh \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", script, "sh"];
    let of_target = target.pid.to_string();
    let words = [
        &wrapper[..],
        &[&binary, "--no-children", "--pid", &of_target],
    ]
    .concat();
    let mut lsm = Lsm::launch(&words, |_| {});
    lsm.must_guard();
    refuses(target.pid, -1);
    let warned = format!(
        "warning: process {} is at nice -7, below the floor 0: left as it is",
        target.pid
    );
    target.quit();
    lsm.wait().exited(0).says(&warned);
    run("umount", &[DIR]).exited(0);
}

fn too_little_locked_memory_is_named_with_the_fix() {
    let target = Agent::start();
    let script = "ulimit -l 64 && exec setpriv --bounding-set=-sys_resource \"$@\"";
    let wrapper = ["sh", "-c", script, "sh"];
    Lsm::run_in(&wrapper, &format!("--no-children --pid {}", target.pid))
        .refused_to_start()
        .says("lsm-nice may have 64 KiB")
        .says("fix: ulimit -l unlimited");
    accepts(target.pid, -1);
}

/// What needs marks is ignored where the kernel has none.
pub fn trials() -> Vec<Trial> {
    let needs_marks = [
        "with_marks",
        "cap_sys_admin",
        "a_command_can",
        "command_has",
    ];
    let missing = needs_marks.map(|what| (!has_task_storage(), what));
    // from 5.11 on it is not counted
    let all = [&missing[..], &[(kernel_is(5, 11), "locked_memory")]].concat();
    ignoring(tests(), &all)
}

const CAP_KILL: u64 = 1 << 5; // linux/capability.h
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_SYS_NICE: u64 = 1 << 23;
const CAP_PERFMON: u64 = 1 << 38;
const CAP_BPF: u64 = 1 << 39;

#[track_caller]
fn keeps(lsm: &Lsm, capabilities: u64) {
    for tid in threads(lsm.pid()) {
        let status = fs::read_to_string(format!("/proc/{tid}/status"));
        // the thread that takes off what has found the targets ends soon
        if status.is_err() && tid != lsm.pid() {
            continue;
        }
        let status = status.expect("a status");
        let holds = |field: &str, expected: &str| {
            let line = status.lines().find(|line| line.starts_with(field));
            let held = line.map(|line| line[field.len()..].trim());
            assert_eq!(held, Some(expected), "{field} of thread {tid}");
        };
        for (field, expected) in [
            ("CapEff:", capabilities),
            ("CapPrm:", capabilities),
            ("CapInh:", 0),
            ("CapAmb:", 0),
        ] {
            holds(field, &format!("{expected:016x}"));
        }
        holds("NoNewPrivs:", "1");
    }
}

fn a_guard_of_one_process_keeps_no_capability() {
    let target = Agent::start();
    let lsm = Lsm::start(&format!("--pid {} --no-children", target.pid));
    keeps(&lsm, 0);
    refuses(target.pid, -1);
    lsm.signal(Signal::USR1);
    assert!(eventually(|| lsm.stderr().contains("so far: 1 refused").then_some(())).is_some());
    target.quit();
    lsm.wait().exited(0).counted(1);
}

fn a_guard_with_marks_keeps_cap_bpf_alone() {
    let mut target = Agent::start();
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    keeps(&lsm, CAP_BPF);
    let child = target.child("spawn-alone");
    refuses(child, -1);
    // for which it asks who is left
    rustix::process::kill_process(pid(target.pid), Signal::KILL).expect("the target");
    assert!(eventually(|| (status_field(child, "PPid")? == "1").then_some(())).is_some());
    refuses(child, -1);
    rustix::process::kill_process(pid(child), Signal::KILL).expect("its child");
    lsm.wait().exited(0).counted(2);
}

fn cap_sys_admin_stands_in_for_cap_bpf() {
    let target = Agent::start();
    let wrapper = ["setpriv", "--bounding-set=-bpf,-perfmon"];
    let lsm = Lsm::start_in(&wrapper, &format!("--pid {}", target.pid));
    keeps(&lsm, CAP_SYS_ADMIN);
    refuses(target.pid, -1);
    target.quit();
    lsm.wait().exited(0).counted(1);
}

fn a_guard_of_a_command_can_signal_it_whoever_it_becomes() {
    let user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"];
    let lsm = Lsm::command(&[&["--"], &user[..], &["sleep", "100"]].concat());
    keeps(&lsm, CAP_BPF | CAP_KILL);
    let command = child_of(lsm.pid());
    let became = eventually(|| status_field(command, "Uid").filter(|uid| uid.starts_with("1000")));
    assert!(became.is_some());
    lsm.signal(Signal::TERM);
    lsm.wait().exited(128 + 15);
}

fn command_has_what_lsm_nice_was_started_with() {
    let own = fs::read_to_string("/proc/self/status").expect("/proc");
    let report = Lsm::launch(&["lsm-nice", "--", "cat", "/proc/self/status"], |_| {}).wait();
    report.exited(0);
    for field in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "NoNewPrivs:"] {
        let of = |status: &str| {
            status
                .lines()
                .find(|line| line.starts_with(field))
                .map(str::to_string)
        };
        assert_eq!(of(&report.stdout), of(&own));
    }
}

fn nobody_traces_a_guard_without_cap_sys_ptrace() {
    // newer kernels let CAP_PERFMON, or CAP_SYS_ADMIN in its place, read /proc/PID/maps too
    const WITHOUT: &str = "--bounding-set=-sys_ptrace,-perfmon,-sys_admin";
    let target = Agent::start();
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    let maps = |of: i32| -> Report {
        let file = format!("/proc/{of}/maps");
        run("setpriv", &[WITHOUT, "cat", &file])
    };
    // one like any other
    let ordinary = format!("setpriv {WITHOUT} sleep 100 >/dev/null 2>&1 & echo $!");
    let ordinary = run("sh", &["-c", &ordinary]);
    let ordinary: i32 = ordinary.stdout.trim().parse().expect("a PID");
    let sleeps = || fs::read_to_string(format!("/proc/{ordinary}/comm")).ok();
    assert!(eventually(|| sleeps().filter(|comm| comm == "sleep\n")).is_some());
    maps(ordinary).exited(0);
    maps(lsm.pid()).exited(1).says("Permission denied");
    rustix::process::kill_process(pid(ordinary), Signal::KILL).expect("sleep");
    lsm.end();
}
