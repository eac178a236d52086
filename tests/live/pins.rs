// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! `--pin`, `--replace`, `status` and `release`: guards that outlive their maker.

use std::fs;
use std::io::{self, Read, pipe};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{PidfdFlags, Signal, pidfd_open};
use serde_json::Value;

use crate::agent::Agent;
use crate::bpf::Loaded;
use crate::cgroups::Cgroup;
use crate::events::events;
use crate::helpers::{
    Lsm, Report, accepts, eventually, heavy, pid, refuses, set_nice, status_field,
};

tests!(
    a_pinned_guard_outlives_its_maker,
    what_a_pinned_guard_guards_passes_it_on,
    the_pins_are_for_root_alone,
    a_name_in_use_is_refused,
    of_two_that_pin_a_name_at_once_one_does,
    a_failure_half_way_leaves_no_trace,
    a_crash_half_way_is_named_and_released,
    a_crash_of_release_is_named_and_released,
    without_bpffs_it_is_mounted_or_the_command_is_named,
    a_directory_of_another_user_is_refused,
    status_tells_what_a_guard_guards_and_has_done,
    status_shows_a_guard_that_is_not_pinned_with_its_holder,
    status_tells_a_target_that_has_gone,
    a_kernel_thread_is_guarded_and_not_gone,
    status_tells_where_a_guarded_cgroup_is_and_when_it_is_gone,
    status_and_release_take_root,
    a_damaged_guard_is_named_and_released,
    release_of_a_missing_name_lists_the_names,
    release_of_one_guard_leaves_the_others,
    a_guard_that_another_process_holds_is_not_called_released,
    events_of_a_pinned_guard_are_followed_by_one_reader,
    a_quiet_guard_cannot_be_followed,
    what_a_follower_does_not_print_is_counted_or_left_to_the_next,
    a_follower_goes_on_with_the_guard_that_replaces,
    a_replaced_guard_has_the_new_options_and_the_old_targets,
    a_replaced_guard_keeps_its_cgroup_unless_it_is_given_another,
    a_guarded_shell_can_replace_its_guard,
    a_missing_guard_is_not_replaced,
    a_failed_replace_leaves_the_old_guard,
    a_guard_of_another_version_is_replaced_where_its_layout_is_known,
    replaces_under_a_hammer_let_nothing_through,
    whatever_a_kill_interrupts_is_named_and_released,
);

const DIR: &str = "/sys/fs/bpf/lsm-nice";

/// A name that is released at the end of a test, however that ends.
struct Name(&'static str);

impl Name {
    #[track_caller]
    fn pin(name: &'static str, options: &str) -> Self {
        let report = Lsm::run(&format!("--pin {name} {options}"));
        report
            .exited(0)
            .says("lsm-nice: guarding ")
            .says(&format!("pinned as {name}"));
        Self(name)
    }

    #[track_caller]
    fn replace(&self, options: &str) -> Report {
        let report = Lsm::run(&format!("--pin {} --replace {options}", self.0));
        report.exited(0).says("lsm-nice: guarding ");
        report
    }

    #[track_caller]
    fn release(self) -> Report {
        let report = Lsm::run(&format!("release {}", self.0));
        report
            .exited(0)
            .says(&format!("lsm-nice: released {}", self.0));
        assert!(left().is_empty(), "{:?}", left());
        report
    }

    #[track_caller]
    fn status(&self) -> Value {
        let report = Lsm::run(&format!("status {} --json", self.0));
        assert!(report.stderr.is_empty(), "{report}");
        let mut rows = rows(&report);
        assert_eq!(rows.len(), 1, "{report}");
        let row = rows.remove(0);
        assert_eq!(row["name"], self.0, "{report}");
        report.exited(i32::from(!row["problem"].is_null()));
        row
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = Command::new("lsm-nice").args(["release", self.0]).output();
    }
}

fn rows(report: &Report) -> Vec<Value> {
    let lines = report.stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}\n{report}")))
        .collect()
}

/// All guards.
#[track_caller]
fn status() -> Vec<Value> {
    rows(&Lsm::run("status --json"))
}

/// What is in the directory of pins.
fn left() -> Vec<String> {
    let Ok(entries) = fs::read_dir(DIR) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("a pin").file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Where the kernel takes a moment to detach.
#[track_caller]
fn soon_accepts(number: i32, nice: i32) {
    let free = eventually(|| set_nice(number, nice).ok());
    assert!(free.is_some(), "{number} stays guarded");
}

fn a_pinned_guard_outlives_its_maker() {
    let before = Loaded::now();
    let target = Agent::start();
    // a session of its own, that ends with it
    let report = Lsm::run_in(
        &["setsid", "--wait"],
        &format!("--pid {} --pin web", target.pid),
    );
    let web = Name("web");
    report.exited(0).says(&format!(
        "lsm-nice: guarding process {} (live), pinned as web: ",
        target.pid
    ));
    refuses(target.pid, -1);
    accepts(target.pid, 10);
    refuses(target.pid, -20);
    let row = web.status();
    assert_eq!((&row["denied"], &row["problem"]), (&2.into(), &Value::Null));
    web.release().counted(2);
    accepts(target.pid, -1);
    before.is_not_exceeded();
}

fn what_a_pinned_guard_guards_passes_it_on() {
    let mut target = Agent::start();
    let web = Name::pin("web", &format!("--pid {}", target.pid));
    let child = target.child("fork");
    refuses(child, -1);
    let thread = target.thread();
    refuses(thread, -1);
    target.exec();
    refuses(target.pid, -1);
    drop(web);
    let alone = Name::pin("web", &format!("--pid {} --no-children", target.pid));
    let child = target.child("fork");
    accepts(child, -1);
    refuses(target.pid, -1);
    drop(alone);
}

fn the_pins_are_for_root_alone() {
    let target = Agent::start();
    let _web = Name::pin("web", &format!("--pid {}", target.pid));
    for dir in [DIR, "/sys/fs/bpf/lsm-nice/web"] {
        let mode = fs::metadata(dir).expect("a directory").permissions().mode();
        assert_eq!(mode & 0o7777, 0o700, "{dir}");
    }
    for pin in fs::read_dir("/sys/fs/bpf/lsm-nice/web").expect("pins") {
        let pin = pin.expect("a pin");
        let mode = pin.metadata().expect("a pin").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{pin:?}");
    }
}

fn a_name_in_use_is_refused() {
    let (target, other) = (Agent::start(), Agent::start());
    let web = Name::pin("web", &format!("--pid {}", target.pid));
    Lsm::run(&format!("--pid {} --pin web", other.pid))
        .refused_to_start()
        .says("there is a guard web already")
        .says("--replace");
    accepts(other.pid, -1);
    refuses(target.pid, -1);
    web.release().counted(1);
}

fn of_two_that_pin_a_name_at_once_one_does() {
    let before = Loaded::now();
    let targets = [Agent::start(), Agent::start()];
    let makers =
        [0, 1].map(|i: usize| Lsm::spawn(&[], &format!("--pid {} --pin web", targets[i].pid)));
    let web = Name("web");
    let reports = makers.map(Lsm::wait);
    let winner = reports.iter().position(|report| report.code() == Some(0));
    let winner = winner.unwrap_or_else(|| panic!("{}\n{}", reports[0], reports[1]));
    reports[1 - winner]
        .refused_to_start()
        .says("there is a guard web already");
    refuses(targets[winner].pid, -1);
    soon_accepts(targets[1 - winner].pid, -1);
    assert_eq!(web.status()["problem"], Value::Null);
    web.release();
    before.is_not_exceeded();
}

/// What a call of lsm-nice is to come to.
#[derive(Clone, Copy)]
enum Fate {
    Error(Errno),
    Killed,
}

const RENAME: (libc::c_long, Option<u32>) = (libc::SYS_renameat2, None);
const PIN: (libc::c_long, Option<u32>) = (libc::SYS_bpf, Some(libbpf_sys::BPF_OBJ_PIN));
const LOAD: (libc::c_long, Option<u32>) = (libc::SYS_bpf, Some(libbpf_sys::BPF_PROG_LOAD));

/// lsm-nice with a system call, or where its first argument is that, that does not succeed.
#[track_caller]
fn run_without((call, first): (libc::c_long, Option<u32>), fate: Fate, options: &str) -> Report {
    let code = |code: u32| u16::try_from(code).expect("an opcode");
    let load = code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS);
    let jump = code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
    let exit = code(libc::BPF_RET | libc::BPF_K);
    let insn = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let action = match fate {
        Fate::Error(errno) => libc::SECCOMP_RET_ERRNO | errno.raw_os_error().cast_unsigned(),
        Fate::Killed => libc::SECCOMP_RET_KILL_PROCESS,
    };
    let call = u32::try_from(call).expect("a number of a system call");
    // struct seccomp_data: the call at 0, the low half of its first argument at 16
    let filter = [
        insn(load, 0, 0, 0),
        insn(jump, 0, 3, call),
        insn(load, 0, 0, 16),
        match first {
            Some(first) => insn(jump, 0, 1, first),
            None => insn(load, 0, 0, 0),
        },
        insn(exit, 0, 0, action),
        insn(exit, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let words: Vec<_> = ["lsm-nice"].into_iter().chain(options.split(' ')).collect();
    Lsm::launch(&words, |command| {
        // SAFETY: a system call alone, with a filter that was copied into the closure.
        unsafe {
            command.pre_exec(move || {
                let program = libc::sock_fprog {
                    len: 6,
                    filter: filter.as_ptr().cast_mut(),
                };
                match libc::prctl(
                    libc::PR_SET_SECCOMP,
                    libc::SECCOMP_MODE_FILTER,
                    &raw const program,
                ) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            });
        }
    })
    .wait()
}

fn a_failure_half_way_leaves_no_trace() {
    let before = Loaded::now();
    let target = Agent::start();
    let options = format!("--pid {} --pin web", target.pid);
    for call in [PIN, RENAME] {
        let report = run_without(call, Fate::Error(Errno::NOSPC), &options);
        report
            .exited(1)
            .never_says("guarding")
            .says("lsm-nice: error: cannot pin the guard in /sys/fs/bpf/lsm-nice/web: ")
            .says("No space left on device");
        assert!(left().is_empty(), "{:?}", left());
        soon_accepts(target.pid, -1);
        accepts(target.pid, 0);
    }
    before.is_not_exceeded();
    // as in a sandbox
    run_without(LOAD, Fate::Error(Errno::PERM), &options)
        .refused_to_start()
        .says("the kernel refuses to load a BPF LSM program (EPERM)");
    // the filter lets the rest pass
    let nothing = run_without((libc::SYS_reboot, None), Fate::Killed, &options);
    let web = Name("web");
    nothing.exited(0);
    web.release();
}

fn a_crash_half_way_is_named_and_released() {
    let before = Loaded::now();
    let target = Agent::start();
    let web = Name("web");
    let options = format!("--pid {} --pin web", target.pid);
    for call in [PIN, RENAME] {
        let report = run_without(call, Fate::Killed, &options);
        assert_eq!(report.code(), None, "{report}");
        assert_eq!(left(), ["web+new"]);
        let row = web.status();
        assert_eq!(row["problem"], "a crash has left parts of it");
        assert_eq!(row["fix"], "lsm-nice release web");
        Lsm::run(&options)
            .refused_to_start()
            .says("left half-way by a crash")
            .says("lsm-nice release web");
        Lsm::run("--pin web --replace")
            .refused_to_start()
            .says("there is only what a crash has left");
        Lsm::run("release web").exited(0);
        assert!(left().is_empty(), "{:?}", left());
        soon_accepts(target.pid, -1);
        accepts(target.pid, 0);
    }
    // a replace, before the two are exchanged, and after
    let web = Name::pin("web", &format!("--pid {}", target.pid));
    for (call, exchanged) in [(PIN, false), (RENAME, false), (RENAME, true)] {
        run_without(call, Fate::Killed, "--pin web --replace -n 5");
        assert_eq!(left(), ["web", "web+new"]);
        if exchanged {
            let [web, new] = ["web", "web+new"].map(|name| format!("{DIR}/{name}"));
            renameat_with(CWD, &web, CWD, &new, RenameFlags::EXCHANGE).expect("pins");
            refuses(target.pid, 4);
        }
        refuses(target.pid, -1);
        let row = web.status();
        assert_eq!(row["problem"], "a crash has left parts of it");
        assert_eq!(row["floor"], if exchanged { 5 } else { 0 });
        // which another one clears
        web.replace("-n 3");
        assert_eq!(left(), ["web"]);
        refuses(target.pid, 2);
        accepts(target.pid, 4);
        assert_eq!(web.status()["problem"], Value::Null);
        web.replace("");
        accepts(target.pid, 0);
    }
    run_without(RENAME, Fate::Killed, "--pin web --replace");
    web.release();
    accepts(target.pid, -1);
    before.is_not_exceeded();
}

fn a_crash_of_release_is_named_and_released() {
    let target = Agent::start();
    let web = Name::pin("web", &format!("--pid {}", target.pid));
    for call in [libc::SYS_unlink, libc::SYS_rmdir] {
        let report = run_without((call, None), Fate::Killed, "release web");
        assert_eq!(report.code(), None, "{report}");
        if call == libc::SYS_rmdir {
            assert_eq!(
                web.status()["problem"],
                "nothing of it is attached: it guards nobody"
            );
            soon_accepts(target.pid, -1);
        } else {
            // nothing was removed yet
            assert_eq!(web.status()["problem"], Value::Null);
            refuses(target.pid, -1);
        }
    }
    web.release();
}

fn without_bpffs_it_is_mounted_or_the_command_is_named() {
    let target = Agent::start();
    while fs::exists(DIR).expect("/sys") || is_bpffs() {
        unmount("/sys/fs/bpf", UnmountFlags::empty()).expect("to unmount bpffs");
    }
    Lsm::run("status").exited(0).says("no guard stands");
    for command in ["release web", "status web", "status web --follow"] {
        Lsm::run(command)
            .refused_to_start()
            .says("there is no pinned guard web");
    }
    let report = run_without(
        (libc::SYS_mount, None),
        Fate::Error(Errno::PERM),
        &format!("--pid {} --pin web", target.pid),
    );
    report
        .refused_to_start()
        .says("bpffs is not mounted, and cannot be: ")
        .says("fix: as root of the host: mount -t bpf bpf /sys/fs/bpf");
    assert!(!is_bpffs());
    // what is mounted in a namespace ends with it
    for wrapper in [
        &["unshare", "--mount"][..],
        &["unshare", "--pid", "--fork", "--mount-proc"],
    ] {
        Lsm::run_in(wrapper, "--cgroup /sys/fs/cgroup --pin web")
            .refused_to_start()
            .says("it would end with the namespace");
    }
    let web = Name::pin("web", &format!("--pid {}", target.pid));
    assert!(is_bpffs());
    let mode = fs::metadata("/sys/fs/bpf")
        .expect("bpffs")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
    refuses(target.pid, -1);
    web.release();
}

fn is_bpffs() -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc");
    mounts
        .lines()
        .any(|line| line.contains(" /sys/fs/bpf bpf "))
}

fn a_directory_of_another_user_is_refused() {
    let target = Agent::start();
    let _ = fs::remove_dir(DIR);
    fs::DirBuilder::new()
        .mode(0o777)
        .create(DIR)
        .expect("bpffs");
    chown(DIR, Some(1000), Some(1000)).expect("a user");
    for options in [
        &format!("--pid {} --pin web", target.pid),
        "release web",
        "status",
    ] {
        fs::DirBuilder::new()
            .create(format!("{DIR}/web"))
            .expect("bpffs");
        let refused = Lsm::run(options);
        fs::remove_dir(format!("{DIR}/web")).expect("bpffs");
        refused
            .refused_to_start()
            .says("is not a directory of lsm-nice's own")
            .says("fix: rm -r /sys/fs/bpf/lsm-nice");
    }
    soon_accepts(target.pid, -1);
    accepts(target.pid, 0);
    chown(DIR, Some(0), Some(0)).expect("root");
    Lsm::run(&format!("--pid {} --pin web", target.pid))
        .refused_to_start()
        .says("is open to other users")
        .says("fix: chmod 700 /sys/fs/bpf/lsm-nice");
    fs::remove_dir(DIR).expect("bpffs");
}

fn status_tells_what_a_guard_guards_and_has_done() {
    let mut targets = [Agent::start(), Agent::start()];
    targets.sort_by_key(|target| target.pid);
    let child = targets[0].child("fork");
    let web = Name::pin(
        "web",
        &format!(
            "--pid {} --pid {} --tree -n 5 --rule nice,io -v",
            targets[0].pid, targets[1].pid
        ),
    );
    refuses(targets[0].pid, 4);
    refuses(child, 4);
    accepts(targets[1].pid, 6);
    let row = web.status();
    assert_eq!(row["version"], "0.1.0");
    assert_eq!(row["holder"], Value::Null);
    assert_eq!(row["rules"], serde_json::json!(["nice", "io"]));
    assert_eq!((&row["floor"], &row["audit"]), (&5.into(), &false.into()));
    assert_eq!(
        (&row["guarded"], &row["children"]),
        (&3.into(), &true.into())
    );
    assert_eq!((&row["denied"], &row["audited"]), (&2.into(), &0.into()));
    assert_eq!((&row["allowed"], &row["lost"]), (&1.into(), &0.into()));
    assert_eq!(row["cgroup"], Value::Null);
    let mut named = row["targets"].as_array().expect("targets").clone();
    named.sort_by_key(|target| target["pid"].as_i64());
    let expected = targets
        .iter()
        .map(|target| serde_json::json!({"pid": target.pid, "comm": "live", "alive": true}))
        .collect::<Vec<_>>();
    assert_eq!(named, expected);
    let since = row["since"].as_str().expect("a time");
    let since = DateTime::parse_from_rfc3339(since).expect("a time of RFC 3339");
    let age = (Utc::now() - since.to_utc()).num_seconds();
    assert!((0..60).contains(&age), "{age} s ago: {row}");

    let report = Lsm::run("status");
    for words in [
        "web ",
        "guarded    3 processes, and what they start\n",
        "refuses    rules nice,io, floor 5\n",
        "so far     2 refused, 1 allowed\n",
    ] {
        assert!(report.stdout.contains(words), "{words}\n{report}");
    }
    web.replace("--audit --no-children");
    let row = web.status();
    assert_eq!(
        (&row["audit"], &row["children"]),
        (&true.into(), &false.into())
    );
    assert_eq!(row["denied"], 0);
}

fn status_shows_a_guard_that_is_not_pinned_with_its_holder() {
    let target = Agent::start();
    let guards = [
        Lsm::start(&format!("--pid {}", target.pid)),
        Lsm::start(&format!(
            "--pid {} --no-children --rule nice -n 3 -q",
            target.pid
        )),
    ];
    refuses(target.pid, -1);
    let rows = status();
    for (guard, children, floor) in [(&guards[0], true, 0), (&guards[1], false, 3)] {
        let row = rows
            .iter()
            .find(|row| row["holder"] == guard.pid())
            .unwrap_or_else(|| panic!("{rows:?}"));
        assert_eq!(
            (&row["name"], &row["problem"]),
            (&Value::Null, &Value::Null)
        );
        assert_eq!(
            (&row["children"], &row["floor"]),
            (&children.into(), &floor.into())
        );
        assert_eq!(
            row["targets"],
            serde_json::json!([{"pid": target.pid, "comm": "live", "alive": true}])
        );
    }
    assert_eq!(rows.len(), 2);
    let text = Lsm::run("status").stdout;
    assert!(
        text.contains(&format!("held by process {}", guards[0].pid())),
        "{text}"
    );
    for guard in guards {
        guard.end();
    }
    assert_eq!(status(), Vec::<Value>::new());
}

fn status_tells_a_target_that_has_gone() {
    let (target, other) = (Agent::start(), Agent::start());
    let (gone, stays) = (target.pid, other.pid);
    let web = Name::pin("web", &format!("--pid {gone} --pid {stays}"));
    target.quit();
    let row = web.status();
    let targets = row["targets"].as_array().expect("targets");
    for (pid, alive) in [(gone, false), (stays, true)] {
        assert!(
            targets
                .iter()
                .any(|target| target["pid"] == pid && target["alive"] == alive),
            "{pid}: {row}"
        );
    }
    assert_eq!(row["guarded"], 1);
    let text = Lsm::run("status web").stdout;
    assert!(
        text.contains(&format!("process {gone} (live, gone)")),
        "{text}"
    );
}

fn a_kernel_thread_is_guarded_and_not_gone() {
    const KTHREADD: i32 = 2;
    let web = Name::pin("web", &format!("--no-children --pid {KTHREADD}"));
    refuses(KTHREADD, -1);
    let row = web.status();
    assert_eq!(row["targets"][0]["alive"], true, "{row}");
    assert_eq!(row["guarded"], 1);
    web.release();
}

fn status_tells_where_a_guarded_cgroup_is_and_when_it_is_gone() {
    let cgroup = Cgroup::new("pinned/below");
    let target = Agent::start();
    let web = Name::pin("web", &cgroup.option());
    cgroup.take(target.pid);
    refuses(target.pid, -1);
    let row = web.status();
    assert_eq!(
        row["cgroup"],
        serde_json::json!({"path": cgroup.path(), "alive": true})
    );
    assert_eq!((&row["guarded"], &row["denied"]), (&1.into(), &1.into()));
    target.quit();
    drop(cgroup);
    let gone = eventually(|| {
        let row = web.status();
        (row["cgroup"] == serde_json::json!({"path": null, "alive": false})).then_some(row)
    });
    assert_eq!(gone.expect("a cgroup that is gone")["guarded"], 0);
    web.release();
}

fn status_and_release_take_root() {
    let target = Agent::start();
    let web = Name::pin("web", &format!("--pid {}", target.pid));
    let user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"];
    Lsm::run_in(&user, &format!("--pid {} --pin other", target.pid))
        .refused_to_start()
        .says("CAP_BPF");
    for command in ["status", "release web", "status web --follow"] {
        Lsm::run_in(&user, command)
            .refused_to_start()
            .says("CAP_SYS_ADMIN")
            .says("sudo");
    }
    refuses(target.pid, -1);
    web.release();
}

fn a_damaged_guard_is_named_and_released() {
    let before = Loaded::now();
    let target = Agent::start();
    let dir = format!("{DIR}/web");
    for (lost, problem) in [
        (&["task_setnice"][..], "1 of 7 links are not pinned"),
        (&["marks", "events"][..], "not pinned: events, marks"),
    ] {
        let web = Name::pin("web", &format!("--pid {}", target.pid));
        for pin in lost {
            fs::remove_file(format!("{dir}/{pin}")).expect("a pin");
        }
        let row = eventually(|| Some(web.status()).filter(|row| row["problem"] == problem));
        assert!(row.is_some(), "{}", web.status());
        let report = Lsm::run("status");
        report.exited(1);
        assert!(
            report.stdout.contains(&format!(
                "PROBLEM    {problem}\n  fix        lsm-nice release web; or, without a gap, --pin web --replace"
            )),
            "{report}"
        );
        web.release();
        soon_accepts(target.pid, -1);
        accepts(target.pid, 0);
    }
    let web = Name::pin("web", &format!("--pid {}", target.pid));
    for pin in fs::read_dir(&dir).expect("pins") {
        fs::remove_file(pin.expect("a pin").path()).expect("a pin");
    }
    let problem = "nothing of it is attached: it guards nobody";
    assert!(eventually(|| (web.status()["problem"] == problem).then_some(())).is_some());
    Lsm::run("--pin web --replace").refused_to_start();
    web.release();
    before.is_not_exceeded();
}

fn release_of_a_missing_name_lists_the_names() {
    let target = Agent::start();
    Lsm::run("release nobody")
        .refused_to_start()
        .says("there is no pinned guard nobody");
    let _web = Name::pin("web", &format!("--pid {}", target.pid));
    let _other = Name::pin("other", &format!("--pid {}", target.pid));
    for command in ["release nobody", "status nobody", "status nobody --follow"] {
        Lsm::run(command)
            .refused_to_start()
            .says("there is no pinned guard nobody")
            .says("name one of other, web");
    }
}

fn release_of_one_guard_leaves_the_others() {
    let target = Agent::start();
    let web = Name::pin("web", &format!("--pid {} -n 5", target.pid));
    let other = Name::pin("other", &format!("--pid {}", target.pid));
    Lsm::run("release web").exited(0);
    accepts(target.pid, 3);
    refuses(target.pid, -1);
    assert_eq!(left(), ["other"]);
    drop(other);
    drop(web);
    accepts(target.pid, -1);
}

fn a_guard_that_another_process_holds_is_not_called_released() {
    let target = Agent::start();
    let web = Name::pin("web", &format!("--pid {}", target.pid));
    // SAFETY: a string; the result is a descriptor of this process alone.
    let link = unsafe {
        let link = libbpf_sys::bpf_obj_get(c"/sys/fs/bpf/lsm-nice/web/task_setnice".as_ptr());
        assert!(link >= 0);
        OwnedFd::from_raw_fd(link)
    };
    Lsm::run("release web").refused_to_start().says(&format!(
        "the guard web is not pinned any more, and process {} holds it",
        std::process::id()
    ));
    refuses(target.pid, -1);
    let rows = status();
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(rows[0]["holder"], std::process::id());
    drop(link);
    soon_accepts(target.pid, -1);
    drop(web);
}

/// A follower that reads.
#[track_caller]
fn follow(options: &str) -> Lsm {
    follow_with(options, |_| {})
}

#[track_caller]
fn follow_with(options: &str, change: impl FnOnce(&mut Command)) -> Lsm {
    let words: Vec<_> = ["lsm-nice", "status"]
        .into_iter()
        .chain(options.split(' '))
        .collect();
    let follower = Lsm::launch(&words, change);
    let reads = eventually(|| follower.stderr().contains("following").then_some(()));
    assert!(reads.is_some(), "{}", follower.stderr());
    follower
}

fn events_of_a_pinned_guard_are_followed_by_one_reader() {
    let target = Agent::start();
    let web = Name::pin("web", &format!("--pid {}", target.pid));
    // what nobody has read yet is kept
    refuses(target.pid, -1);
    let follower = follow("web --follow --json");
    Lsm::run("status web --follow")
        .refused_to_start()
        .says("another lsm-nice follows web already");
    refuses(target.pid, -2);
    let both = eventually(|| (follower.stdout().lines().count() == 2).then_some(()));
    assert!(both.is_some(), "{}", follower.stdout());
    let held = status_field(follower.pid(), "CapEff").expect("capabilities");
    assert_eq!(held, "0000008000200000", "CAP_BPF and CAP_SYS_ADMIN");
    follower.signal(Signal::USR1);
    assert!(
        eventually(|| follower
            .stderr()
            .contains("so far: 2 refused\n")
            .then_some(()))
        .is_some()
    );
    let report = follower.end();
    report.says("lsm-nice: the guard web stands: 2 refused\n");
    let events = events(&report);
    let asked = events.iter().map(|event| &event["asked"]["nice"]);
    assert!(asked.eq([-1, -2]), "{events:?}");
    let exe = events.iter().map(|event| &event["caller"]["exe"]);
    assert!(exe.eq(["live"; 2]), "{events:?}");

    // the next one may read then
    let follower = follow("web --follow");
    refuses(target.pid, -3);
    assert!(eventually(|| follower.stdout().contains("0 -> -3").then_some(())).is_some());
    web.release();
    let report = follower.wait();
    report
        .exited(0)
        .says("lsm-nice: the guard web has ended: 3 refused\n");
}

fn what_a_follower_does_not_print_is_counted_or_left_to_the_next() {
    const CALLS: usize = 2000;
    let target = Agent::start();
    let web = Name::pin("web", &format!("--pid {}", target.pid));
    let (mut reader, writer) = pipe().expect("a pipe");
    let first = follow_with("web --follow", |command| {
        command.stdout(writer);
    });
    for _ in 0..CALLS {
        assert_eq!(set_nice(target.pid, -1), Err(Errno::PERM));
    }
    let first = first.end();
    let mut taken = String::new();
    reader.read_to_string(&mut taken).expect("what was printed");
    let next = follow("web --follow");
    let rest = |next: &Lsm| next.stdout().lines().count();
    let lost = first.counts().lost as usize;
    let left = CALLS - lost - taken.lines().count();
    assert!(left > 300, "{left} left, {lost} lost\n{first}");
    let all = eventually(|| (rest(&next) >= left).then_some(()));
    assert!(all.is_some(), "{left} were left, {}", rest(&next));
    assert_eq!(rest(&next), left);
    next.end();

    // as before head(1)
    let (reader, writer) = pipe().expect("a pipe");
    let headed = follow_with("web --follow", |command| {
        command.stdout(writer);
    });
    drop(reader);
    refuses(target.pid, -1);
    let headed = headed.wait();
    headed.exited(0);
    let (headed, first) = (headed.counts(), first.counts());
    assert_eq!(headed.refused, CALLS as u64 + 1);
    // what the kernel found no room for is no more than the first has said
    assert!((1..=first.lost + 1).contains(&headed.lost), "{headed:?}");
    web.release();
}

fn a_quiet_guard_cannot_be_followed() {
    let target = Agent::start();
    let _web = Name::pin("web", &format!("--pid {} --quiet", target.pid));
    refuses(target.pid, -1);
    Lsm::run("status web --follow")
        .refused_to_start()
        .says("--quiet");
}

fn a_follower_goes_on_with_the_guard_that_replaces() {
    let target = Agent::start();
    let web = Name::pin("web", &format!("--pid {}", target.pid));
    let follower = follow("web --follow --json");
    refuses(target.pid, -1);
    web.replace("-n 5");
    let again =
        |n| eventually(|| (follower.stderr().matches("following web").count() == n).then_some(()));
    assert!(again(2).is_some(), "{}", follower.stderr());
    refuses(target.pid, 3);
    web.replace("-n 6");
    assert!(again(3).is_some(), "{}", follower.stderr());
    refuses(target.pid, 4);
    web.release();
    let report = follower.wait();
    report
        .exited(0)
        .says("lsm-nice: the guard web was replaced: 1 refused\n")
        .says("lsm-nice: the guard web has ended: 1 refused\n");
    let asked: Vec<_> = events(&report)
        .iter()
        .map(|event| (event["asked"]["nice"].clone(), event["floor"].clone()))
        .collect();
    assert_eq!(
        asked,
        [(-1, 0), (3, 5), (4, 6)].map(|(asked, floor)| (asked.into(), floor.into()))
    );
}

fn a_replaced_guard_has_the_new_options_and_the_old_targets() {
    let before = Loaded::now();
    let (mut target, added) = (Agent::start(), Agent::start());
    let web = Name::pin("web", &format!("--pid {}", target.pid));
    let child = target.child("fork");
    refuses(child, -1);
    let report = web.replace(&format!("--pid {} -n 5", added.pid));
    report.says(&format!(
        "guarding process {} (live), all that web guarded, pinned as web: no nice value below 5",
        added.pid
    ));
    for number in [target.pid, child, added.pid] {
        accepts(number, 6);
        refuses(number, 4);
    }
    let later = target.child("fork");
    refuses(later, 4);
    let row = web.status();
    assert_eq!(
        row["targets"].as_array().expect("targets").len(),
        2,
        "{row}"
    );
    assert_eq!(row["guarded"], 4);
    // audit: nothing is refused any more, and the marks stay
    web.replace("-n 5 --audit");
    for number in [target.pid, child, later, added.pid] {
        accepts(number, 1);
    }
    assert_eq!(web.status()["audited"], 4);
    web.replace("--rule sched");
    accepts(target.pid, -1);
    web.replace("");
    for number in [target.pid, child, later, added.pid] {
        refuses(number, -2);
    }
    assert_eq!(left(), ["web"]);
    web.release().counted(4);
    for number in [target.pid, child, later, added.pid] {
        accepts(number, -2);
    }
    before.is_not_exceeded();
}

fn a_replaced_guard_keeps_its_cgroup_unless_it_is_given_another() {
    let (first, second) = (Cgroup::new("first"), Cgroup::new("second"));
    let (inside, beside) = (Agent::start(), Agent::start());
    first.take(inside.pid);
    second.take(beside.pid);
    let web = Name::pin("web", &first.option());
    web.replace("-n 5");
    refuses(inside.pid, 4);
    accepts(beside.pid, 4);
    assert_eq!(web.status()["cgroup"]["path"], first.path());
    web.replace(&format!("{} -n 5", second.option()));
    accepts(inside.pid, 4);
    refuses(beside.pid, 3);
    assert_eq!(web.status()["cgroup"]["path"], second.path());
    web.release();
}

fn a_guarded_shell_can_replace_its_guard() {
    let mut shell = Agent::start();
    let web = Name::pin("web", &format!("--pid {}", shell.pid));
    // lsm-nice and the child that it tries the guard on inherit the old guard
    let script = "lsm-nice --pin web --replace -n 5 && lsm-nice --pin web --replace -n 7";
    let replaced = Command::new("sh")
        .arg("-c")
        .arg(format!("lsm-nice --pin web --replace --pid $$ && {script}"))
        .output()
        .expect("a shell");
    assert!(
        replaced.status.success(),
        "{}",
        String::from_utf8_lossy(&replaced.stderr)
    );
    refuses(shell.pid, 6);
    let child = shell.child("fork");
    refuses(child, 6);
    assert_eq!(web.status()["problem"], Value::Null);
    web.release();
}

fn a_missing_guard_is_not_replaced() {
    let target = Agent::start();
    Lsm::run(&format!("--pid {} --pin web --replace", target.pid))
        .refused_to_start()
        .says("there is no pinned guard web");
    accepts(target.pid, -1);
    assert!(left().is_empty());
}

fn a_failed_replace_leaves_the_old_guard() {
    let target = Agent::start();
    let web = Name::pin("web", &format!("--pid {} -n 5", target.pid));
    for call in [PIN, RENAME] {
        run_without(
            call,
            Fate::Error(Errno::NOSPC),
            "--pin web --replace -n -20",
        )
        .exited(1);
        refuses(target.pid, 4);
        assert_eq!(left(), ["web"]);
        let row = web.status();
        assert_eq!((&row["floor"], &row["problem"]), (&5.into(), &Value::Null));
    }
    web.release();
}

/// lsm-nice as it would be in another version. Its name for itself is data, or part of the code.
fn other_version(version: &str, layout: &str) -> String {
    let path = ["/bin", "/usr/bin", "/sbin", "/usr/sbin"]
        .map(|dir| format!("{dir}/lsm-nice"))
        .into_iter()
        .find(|path| Path::new(path).exists())
        .expect("lsm-nice");
    let mut bytes = fs::read(path).expect("lsm-nice");
    for (from, to) in [("lsm-nice 0.1.0, ", version), ("layout 5", layout)] {
        let found: Vec<_> = (0..bytes.len() - from.len())
            .filter(|at| bytes[*at..].starts_with(from.as_bytes()))
            .collect();
        assert!(!found.is_empty(), "lsm-nice does not have {from:?} in it");
        for at in found {
            bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        }
    }
    let path = "/tmp/lsm-nice-other";
    fs::write(path, bytes).expect("a file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("a file");
    path.into()
}

fn a_guard_of_another_version_is_replaced_where_its_layout_is_known() {
    let target = Agent::start();
    let _web = Name("web");
    let older = other_version("lsm-nice 0.0.9, ", "layout 5");
    let pid = target.pid.to_string();
    let pin = |path: &str| Lsm::launch(&[path, "--pid", &pid, "--pin", "web"], |_| {}).wait();
    pin(&older).exited(0);
    let web = Name("web");
    let row = web.status();
    assert_eq!(
        (&row["version"], &row["problem"]),
        (&"0.0.9".into(), &Value::Null)
    );
    web.replace("-n 5");
    refuses(target.pid, 4);
    assert_eq!(web.status()["version"], "0.1.0");
    web.release();

    let stranger = other_version("lsm-nice 0.2.0, ", "layout 6");
    pin(&stranger).exited(0);
    let web = Name("web");
    refuses(target.pid, -1);
    let row = web.status();
    assert_eq!(row["version"], "0.2.0");
    assert_eq!(
        row["problem"],
        "it is of another version of lsm-nice, which alone can read it"
    );
    Lsm::run("status").exited(1);
    Lsm::run("--pin web --replace")
        .refused_to_start()
        .says("made by lsm-nice 0.2.0")
        .says("lsm-nice release web, then pin it anew");
    Lsm::run("status web --follow").refused_to_start();
    refuses(target.pid, -1);
    web.release();
    soon_accepts(target.pid, -1);
}

fn replaces_under_a_hammer_let_nothing_through() {
    let start = Instant::now();
    let (mut target, other) = (Agent::start(), Agent::start());
    let victims = [target.pid, target.thread(), target.child("fork"), other.pid];
    assert_eq!(target.call("no-zombies"), Ok(()));
    let web = Name::pin(
        "web",
        &format!("--pid {} --pid {} --tree", target.pid, other.pid),
    );
    let stop = AtomicBool::new(false);
    let [attempts, children, raised, asked] = [const { AtomicU64::new(0) }; 4];
    let attempt = |number: i32| {
        attempts.fetch_add(1, Relaxed);
        if set_nice(number, -1).is_ok() {
            raised.fetch_add(1, Relaxed);
        }
    };
    let replaces = heavy(100);
    // Between two blows: who wakes up preempts the replace wherever it is, and who never sleeps
    // leaves it a quarter of one CPU. A process to start is a longer blow.
    let pause = |ms| thread::sleep(Duration::from_millis(ms));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                victims.into_iter().for_each(attempt);
                pause(1);
            }
        });
        scope.spawn(|| {
            // whenever it is asked for, it is there
            while !stop.load(Relaxed) {
                let report = Lsm::run("status --json");
                let rows = rows(&report);
                // beside one that is in the making, where that takes long
                let (web, others): (Vec<_>, Vec<_>) =
                    rows.iter().partition(|row| row["name"] == "web");
                assert_eq!(web.len(), 1, "{report}");
                assert!(others.iter().all(|row| row["holder"].is_i64()), "{report}");
                let problem = &web[0]["problem"];
                assert!(
                    problem.is_null() || *problem == "another lsm-nice changes it",
                    "{report}"
                );
                asked.fetch_add(1, Relaxed);
                pause(10);
            }
        });
        let (stop, children, attempt) = (&stop, &children, &attempt);
        scope.spawn(move || {
            while !stop.load(Relaxed) {
                let child = target.child("fork");
                children.fetch_add(1, Relaxed);
                attempt(child);
                let _ = rustix::process::kill_process(pid(child), Signal::KILL);
                pause(1);
            }
        });
        let result = std::panic::catch_unwind(|| {
            for floor in 0..replaces {
                web.replace(&format!("-n {} -q", floor % 3));
            }
        });
        stop.store(true, Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    println!(
        "{replaces} replaces in {} s: {} attempts on {} processes, {} succeeded; {} times status",
        start.elapsed().as_secs(),
        attempts.load(Relaxed),
        children.load(Relaxed) + 3,
        raised.load(Relaxed),
        asked.load(Relaxed)
    );
    assert_eq!(raised.load(Relaxed), 0);
    assert!(attempts.load(Relaxed) > replaces as u64);
    assert_eq!(web.status()["problem"], Value::Null);
    web.release();
}

fn whatever_a_kill_interrupts_is_named_and_released() {
    let before = Loaded::now();
    let target = Agent::start();
    let options = format!("--pid {} --pin web", target.pid);
    let start = Instant::now();
    let whole = Name::pin("web", &format!("--pid {}", target.pid));
    let most = start.elapsed() * 5 / 4;
    whole.release();
    let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).expect("inotify");
    inotify::add_watch(&changes, DIR, WatchFlags::CREATE).expect("a watch");
    // the first pin is seen at once, or the end of who does not come to it
    let first_pin = |maker: i32| {
        let ended = pidfd_open(pid(maker), PidfdFlags::empty()).expect("a pidfd");
        let mut fds = [&changes, &ended].map(|fd| PollFd::new(fd, PollFlags::IN));
        poll(&mut fds, None).expect("poll");
    };
    let mut rng = fastrand::Rng::with_seed(7);
    let rounds = heavy(500);
    let [mut none, mut half, mut all] = [0; 3];
    for _ in 0..rounds {
        let maker = Lsm::spawn(&[], &options);
        if rng.bool() {
            thread::sleep(most.mul_f32(rng.f32()));
        } else {
            // while it pins, which it does in no time
            first_pin(maker.spawned());
            thread::sleep(Duration::from_micros(rng.u64(..3000)));
        }
        // may have ended by itself
        let _ = rustix::process::kill_process(pid(maker.spawned()), Signal::KILL);
        maker.wait();
        while rustix::io::read(&changes, &mut [0; 4096]).is_ok() {}
        let web = Name("web");
        let report = Lsm::run("status --json");
        match &rows(&report)[..] {
            [] => {
                none += 1;
                assert!(left().is_empty(), "{:?}\n{report}", left());
                std::mem::forget(web);
            }
            [row] if row["problem"].is_null() => {
                all += 1;
                assert_eq!(row["name"], "web", "{report}");
                refuses(target.pid, -1);
                web.release();
            }
            [row] => {
                half += 1;
                assert_eq!(
                    (&row["name"], &row["problem"]),
                    (&"web".into(), &"a crash has left parts of it".into())
                );
                web.release();
            }
            _ => panic!("{report}"),
        }
        // nothing holds that was not named
        soon_accepts(target.pid, -1);
        accepts(target.pid, 0);
    }
    println!("{rounds} kills: {none} left nothing, {half} a part, {all} a guard");
    assert!(none > 0 && half > 0 || rounds < 20);
    assert!(left().is_empty(), "{:?}", left());
    before.is_not_exceeded();
}
