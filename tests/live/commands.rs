// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! `lsm-nice -- COMMAND`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::helpers::{Lsm, Report, accepts, child_of, eventually, pid, refuses, status_field};

tests!(
    the_first_act_of_a_command_is_refused,
    the_guarding_line_comes_before_any_output_of_the_command,
    what_a_command_starts_is_guarded,
    no_children_guards_the_command_alone,
    the_exit_status_is_the_commands,
    a_command_killed_by_a_signal_gives_128_and_its_number,
    a_command_that_is_not_found_gives_127,
    a_command_that_cannot_be_executed_gives_126,
    where_lsm_nice_fails_the_status_is_125_and_the_command_does_not_run,
    a_command_is_found_in_path,
    environment_and_directory_are_as_lsm_nice_got_them,
    standard_input_and_output_are_as_lsm_nice_got_them,
    limits_are_as_lsm_nice_got_them,
    signal_mask_and_ignored_signals_are_as_lsm_nice_got_them,
    no_descriptor_leaks_into_the_command,
    descriptors_that_came_closed_are_closed_for_the_command,
    the_command_is_in_the_process_group_and_session_of_lsm_nice,
    signals_sent_to_lsm_nice_reach_the_command,
    signals_of_the_terminal_reach_the_command_once,
    a_terminal_that_goes_away_hangs_up_the_command,
    a_daemon_keeps_the_guard_up_and_the_status_is_the_commands,
    sigterm_ends_the_guard_of_a_daemon_once_the_command_has_exited,
    the_signal_that_ends_the_command_leaves_its_daemon_guarded,
    kill_9_of_lsm_nice_leaves_the_command_free,
    a_command_that_lsm_nice_did_not_live_to_guard_does_not_run,
);

/// lsm-nice from its start to its end, with what std's Command can change about the start.
#[track_caller]
fn changed(words: &[&str], change: impl FnOnce(&mut Command)) -> Report {
    Lsm::launch(&[&["lsm-nice"], words].concat(), change).wait()
}

#[track_caller]
fn run(words: &[&str]) -> Report {
    changed(words, |_| {})
}

/// A program that prints how it was started says the same when lsm-nice started it.
#[track_caller]
fn says_the_same(words: &[&str], change: impl Fn(&mut Command)) -> String {
    let without = Lsm::launch(words, &change).wait();
    let with = changed(&[&["--"], words].concat(), &change);
    without.exited(0);
    with.exited(0).says("guarding");
    assert_eq!(with.stdout, without.stdout, "{with}");
    without.stdout
}

fn the_first_act_of_a_command_is_refused() {
    for _ in 0..5 {
        let report = run(&["-q", "--", "live", "act", "setpriority", "0", "0", "-1"]);
        report.exited(0).counted(1);
        assert_eq!(report.stdout, format!("{}\n", libc::EPERM), "{report}");
    }
    let report = run(&[
        "-n",
        "-5",
        "--",
        "live",
        "act",
        "setpriority",
        "0",
        "0",
        "-5",
    ]);
    report.exited(0).counted(0);
    assert_eq!(report.stdout, "0\n", "{report}");
}

fn the_guarding_line_comes_before_any_output_of_the_command() {
    let merged = ["sh", "-c", r#"exec "$@" 2>&1"#, "sh", "lsm-nice", "--"];
    let report = Lsm::launch(&[&merged[..], &["echo", "COMMAND"]].concat(), |_| {}).wait();
    report.exited(0);
    let at = |text| report.stdout.find(text).expect(text);
    assert!(at("lsm-nice: guarding") < at("COMMAND"), "{report}");
}

fn what_a_command_starts_is_guarded() {
    let script = "renice -n -5 -p $$; (renice -n -5 -p $$); nice -n -5 true; \
                  live act setpriority 0 0 -1 & wait; renice -n 5 -p $$";
    let report = run(&["--", "sh", "-c", script]);
    report.exited(0).counted(4);
    assert!(
        report.stdout.contains(&format!("{}\n", libc::EPERM)),
        "{report}"
    );
}

fn no_children_guards_the_command_alone() {
    let script = "live act setpriority 0 0 -1; exec live act setpriority 0 0 -1";
    let report = run(&["-q", "--no-children", "--", "sh", "-c", script]);
    report.exited(0).counted(1);
    assert_eq!(report.stdout, format!("0\n{}\n", libc::EPERM), "{report}");
}

fn the_exit_status_is_the_commands() {
    for status in [0, 1, 7, 125, 255] {
        run(&["--", "sh", "-c", &format!("exit {status}")])
            .exited(status)
            .says("guarding");
    }
}

fn a_command_killed_by_a_signal_gives_128_and_its_number() {
    for (signal, status) in [("KILL", 137), ("TERM", 143), ("SEGV", 139)] {
        run(&["--", "sh", "-c", &format!("kill -{signal} $$")]).exited(status);
    }
}

fn a_command_that_is_not_found_gives_127() {
    for command in ["/nonexistent", "nonexistent", "./nonexistent"] {
        run(&["--", command])
            .exited(127)
            .says(command)
            .never_says("panicked");
    }
}

fn a_command_that_cannot_be_executed_gives_126() {
    let file = "/tmp/not-executable";
    fs::write(file, "#!/bin/sh\n").expect("a file");
    for command in ["/tmp", file] {
        run(&["--", command])
            .exited(126)
            .says(command)
            .never_says("panicked");
    }
}

fn where_lsm_nice_fails_the_status_is_125_and_the_command_does_not_run() {
    let ordinary = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"];
    let says = ["echo", "started"];
    for words in [
        [&ordinary[..], &["lsm-nice", "--"], &says].concat(),
        [&["lsm-nice", "--pid", "2147483647", "--"], &says[..]].concat(),
        [&["lsm-nice", "--cgroup", "/nonexistent", "--"], &says[..]].concat(),
    ] {
        Lsm::launch(&words, |_| {})
            .wait()
            .exited(125)
            .says("lsm-nice: error: ")
            .never_says("guarding")
            .never_says("started");
    }
}

fn a_command_is_found_in_path() {
    let dir = "/tmp/of-path";
    fs::create_dir_all(dir).expect("a directory");
    let program = format!("{dir}/found-in-path");
    fs::write(&program, "#!/bin/sh\necho found\n").expect("a file");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a file of ours");
    let path = format!("{dir}:{}", std::env::var("PATH").expect("PATH"));
    let report = changed(&["--", "found-in-path"], |command| {
        command.env("PATH", &path);
    });
    report.exited(0);
    assert_eq!(report.stdout, "found\n", "{report}");
}

fn environment_and_directory_are_as_lsm_nice_got_them() {
    let said = says_the_same(&["sh", "-c", "pwd; umask; env | grep -v ^_="], |command| {
        command.current_dir("/proc/sys").env("GREETING", "hel lo");
        command.env_remove("LANG");
    });
    assert!(
        said.starts_with("/proc/sys\n") && said.contains("GREETING=hel lo\n"),
        "{said}"
    );
}

fn standard_input_and_output_are_as_lsm_nice_got_them() {
    let path = "/tmp/standard-input";
    fs::write(path, "one\ntwo\n").expect("a file");
    let said = says_the_same(
        &[
            "sh",
            "-c",
            "read line; echo $line; cat; readlink /proc/self/fd/0",
        ],
        |command| {
            command.stdin(File::open(path).expect("the file"));
        },
    );
    assert_eq!(said, format!("one\ntwo\n{path}\n"));
}

fn limits_are_as_lsm_nice_got_them() {
    let said = says_the_same(&["cat", "/proc/self/limits"], |command| {
        let limit = |resource, soft, hard| {
            let limit = libc::rlimit {
                rlim_cur: soft,
                rlim_max: hard,
            };
            // SAFETY: a valid limit.
            match unsafe { libc::setrlimit(resource, &limit) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        // SAFETY: a system call for each, on numbers.
        unsafe {
            command.pre_exec(move || {
                limit(libc::RLIMIT_MEMLOCK, 12288, 16384)?;
                limit(libc::RLIMIT_NOFILE, 77, 99)?;
                limit(libc::RLIMIT_CORE, 0, 1)
            });
        }
    });
    assert!(said.contains("12288") && said.contains("77"), "{said}");
}

fn signal_mask_and_ignored_signals_are_as_lsm_nice_got_them() {
    for (of_writes, ignored) in [
        (libc::SIG_DFL, "0000000000010001"),
        (libc::SIG_IGN, "0000000001011001"),
    ] {
        signals_are_as_lsm_nice_got_them(of_writes, ignored);
    }
}

fn signals_are_as_lsm_nice_got_them(of_writes: libc::sighandler_t, ignored: &str) {
    let said = says_the_same(&["grep", "^Sig[BIC]", "/proc/self/status"], |command| {
        // SAFETY: system calls alone, on values of this closure.
        unsafe {
            command.pre_exec(move || {
                libc::signal(libc::SIGHUP, libc::SIG_IGN);
                // lsm-nice has to learn the exit status all the same
                libc::signal(libc::SIGCHLD, libc::SIG_IGN);
                libc::signal(libc::SIGPIPE, of_writes);
                libc::signal(libc::SIGXFSZ, of_writes);
                let mut set = std::mem::zeroed();
                libc::sigaddset(&raw mut set, libc::SIGUSR1);
                libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
                Ok(())
            });
        }
    });
    assert_eq!(
        said,
        format!("SigBlk:\t0000000000000200\nSigIgn:\t{ignored}\nSigCgt:\t0000000000000000\n")
    );
}

fn no_descriptor_leaks_into_the_command() {
    says_the_same(&["sh", "-c", "exec ls /proc/self/fd"], |_| {});
}

fn descriptors_that_came_closed_are_closed_for_the_command() {
    let said = says_the_same(&["sh", "-c", "exec ls /proc/self/fd"], |command| {
        // SAFETY: a system call alone.
        unsafe {
            command.pre_exec(|| {
                libc::close(0);
                Ok(())
            });
        }
    });
    // where ls has the directory
    assert_eq!(said, "0\n1\n2\n");
}

fn the_command_is_in_the_process_group_and_session_of_lsm_nice() {
    let script = "cut -d ' ' -f 5,6,7,8 /proc/$PPID/stat /proc/$$/stat";
    let report = run(&["--", "sh", "-c", script]);
    report.exited(0);
    let lines: Vec<_> = report.stdout.lines().collect();
    assert!(lines.len() == 2 && lines[0] == lines[1], "{report}");
}

fn signals_sent_to_lsm_nice_reach_the_command() {
    for signal in [Signal::TERM, Signal::HUP, Signal::INT, Signal::QUIT] {
        let lsm = Lsm::command(&["--", "sleep", "1000"]);
        let command = child_of(lsm.pid());
        lsm.signal(signal);
        lsm.wait().exited(128 + signal.as_raw());
        assert_eq!(
            status_field(command, "State"),
            None,
            "COMMAND is still there"
        );
    }
}

/// A terminal: the end that its user has, and the path of the other.
fn terminal() -> (File, String) {
    // SAFETY: a new descriptor, unlocked for others by the two calls after it.
    let master = unsafe {
        let fd = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
        assert!(fd >= 0 && libc::grantpt(fd) == 0 && libc::unlockpt(fd) == 0);
        File::from_raw_fd(fd)
    };
    let mut name = [0; 64];
    // SAFETY: a buffer of that size.
    let result = unsafe { libc::ptsname_r(master.as_raw_fd(), name.as_mut_ptr(), name.len()) };
    assert_eq!(result, 0, "the name of a terminal");
    // SAFETY: ptsname_r wrote a string.
    let name = unsafe { std::ffi::CStr::from_ptr(name.as_ptr()) };
    (master, name.to_str().expect("a name").to_string())
}

/// The leader of the session of a terminal, of which it has standard input alone.
fn on_a_terminal(words: &[&str]) -> (File, Lsm) {
    let (master, name) = terminal();
    let slave = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NOCTTY);
        Stdio::from(options.open(&name).expect("a terminal"))
    };
    let lsm = Lsm::launch(words, |command| {
        command.stdin(slave());
        // SAFETY: system calls alone.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
    });
    (master, lsm)
}

fn a_terminal_that_goes_away_hangs_up_the_command() {
    let (master, mut lsm) = on_a_terminal(&["lsm-nice", "--", "sleep", "1000"]);
    lsm.must_guard();
    let command = child_of(lsm.pid());
    let comm = || fs::read_to_string(format!("/proc/{command}/comm")).ok();
    let runs = || comm().filter(|comm| comm == "sleep\n");
    eventually(runs).expect("a COMMAND");
    drop(master);
    lsm.wait().exited(128 + libc::SIGHUP);
}

fn signals_of_the_terminal_reach_the_command_once() {
    const TIMES: usize = 20;
    // Says what it got at once; `wait` is what a trap interrupts.
    // It starts its child with SIGINT ignored, which else may come before the child does that itself.
    let script =
        "trap '' INT; sleep 1000 & trap 'echo INT' INT; echo ready; while :; do wait; done";
    let (mut master, mut lsm) = on_a_terminal(&["lsm-nice", "--", "sh", "-c", script]);
    let count = |lsm: &Lsm| lsm.stdout().matches("INT\n").count();
    eventually(|| lsm.stdout().contains("ready").then_some(())).expect("a COMMAND that waits");
    for sent in 1..=TIMES {
        master.write_all(b"\x03").expect("a terminal");
        eventually(|| (count(&lsm) >= sent).then_some(())).expect("a SIGINT of the terminal");
        assert_eq!(count(&lsm), sent, "SIGINTs, of {sent} that were typed");
    }
    // One that lsm-nice alone gets is handed on. It would be lost in one that still waits there.
    lsm.must_still_guard();
    lsm.signal(Signal::INT);
    eventually(|| (count(&lsm) > TIMES).then_some(())).expect("a SIGINT that is handed on");
    assert_eq!(count(&lsm), TIMES + 1);
    let command = child_of(lsm.pid());
    let sleeping = child_of(command);
    kill_process(pid(command), Signal::KILL).expect("COMMAND");
    kill_process(pid(sleeping), Signal::KILL).expect("its child");
    lsm.wait().exited(137);
}

/// A guard whose COMMAND has exited with status 7, and the daemon that it left.
fn daemon() -> (Lsm, i32) {
    let script = "(setsid sleep 1000 & echo $!); exit 7";
    let lsm = Lsm::command(&["--", "sh", "-c", script]);
    let daemon = eventually(|| lsm.stdout().trim().parse().ok()).expect("the PID of a daemon");
    let gone = || {
        status_field(child_of(lsm.pid()), "State")?
            .starts_with('Z')
            .then_some(())
    };
    eventually(gone).expect("the end of COMMAND");
    (lsm, daemon)
}

fn a_daemon_keeps_the_guard_up_and_the_status_is_the_commands() {
    let (mut lsm, daemon) = daemon();
    lsm.must_still_guard();
    refuses(daemon, -1);
    accepts(daemon, 1);
    kill_process(pid(daemon), Signal::KILL).expect("the daemon");
    lsm.wait()
        .exited(7)
        .says("the last guarded process")
        .counted(1);
}

fn sigterm_ends_the_guard_of_a_daemon_once_the_command_has_exited() {
    let (mut lsm, daemon) = daemon();
    lsm.must_still_guard();
    refuses(daemon, -1);
    lsm.signal(Signal::TERM);
    lsm.wait().exited(7).counted(1);
    accepts(daemon, -1);
    kill_process(pid(daemon), Signal::KILL).expect("the daemon");
}

fn the_signal_that_ends_the_command_leaves_its_daemon_guarded() {
    for by_the_terminal in [false, true].repeat(3) {
        let script = "setsid sleep 1000 & echo $!; exec sleep 1000";
        let (mut master, mut lsm) = on_a_terminal(&["lsm-nice", "--", "sh", "-c", script]);
        lsm.must_guard();
        let command = child_of(lsm.pid());
        let sleeps = |of| (status_field(of, "Name")? == "sleep").then_some(());
        let daemon = eventually(|| lsm.stdout().trim().parse().ok()).expect("the PID of a daemon");
        eventually(|| sleeps(daemon).and(sleeps(command))).expect("a COMMAND and a daemon");
        match by_the_terminal {
            true => master.write_all(b"\x03").expect("a terminal"),
            false => lsm.signal(Signal::INT),
        }
        eventually(|| {
            status_field(command, "State")?
                .starts_with('Z')
                .then_some(())
        })
        .expect("the end of COMMAND");
        lsm.must_still_guard();
        refuses(daemon, -1);
        lsm.signal(Signal::INT);
        lsm.wait().exited(128 + libc::SIGINT).counted(1);
        kill_process(pid(daemon), Signal::KILL).expect("the daemon");
    }
}

fn kill_9_of_lsm_nice_leaves_the_command_free() {
    let lsm = Lsm::command(&["--", "sleep", "1000"]);
    let command = child_of(lsm.pid());
    // lsm-nice says that it guards before it lets COMMAND go
    let runs = || (status_field(command, "Name")? == "sleep").then_some(());
    assert_eq!(eventually(runs), Some(()), "COMMAND is to run");
    refuses(command, -1);
    lsm.kill();
    accepts(command, -1);
    kill_process(pid(command), Signal::KILL).expect("COMMAND");
}

fn a_command_that_lsm_nice_did_not_live_to_guard_does_not_run() {
    for delay in 0..20 {
        let lsm = Lsm::launch(&["lsm-nice", "--", "echo", "started"], |_| {});
        thread::sleep(Duration::from_millis(delay * 10));
        // by what was started, which may not have its name yet
        kill_process(pid(lsm.spawned()), Signal::KILL).expect("lsm-nice, to be killed");
        let report = lsm.wait();
        if report.stderr.contains("guarding") {
            break;
        }
        report.never_says("started");
    }
}
