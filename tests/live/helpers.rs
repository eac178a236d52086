// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! lsm-nice as a process, and questions to the kernel about others.

use std::env;
use std::fmt;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl, memfd_create};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, getpriority_process, kill_process, setpriority_process};

/// How long anything may take. An emulated machine is slow, and its host may be busy.
const DEADLINE: Duration = Duration::from_secs(60);

/// How many rounds a test makes that makes `full` of them where it has the time.
pub fn heavy(full: usize) -> usize {
    let percent = match env::var("LIVE_HEAVY") {
        Ok(percent) => percent.parse().expect("LIVE_HEAVY is a number, in percent"),
        Err(_) => 10,
    };
    (full * percent / 100).max(1)
}

/// The tests, of which those are ignored that are named by a part of their name and cannot run here.
pub fn ignoring(tests: Vec<Trial>, missing: &[(bool, &str)]) -> Vec<Trial> {
    for (_, what) in missing {
        let known = tests.iter().any(|test| test.name().contains(what));
        assert!(known, "no test is named {what:?}");
    }
    let ignored = |test: &Trial| {
        let mut missing = missing.iter();
        missing.any(|(missing, what)| *missing && test.name().contains(what))
    };
    let tests = tests.into_iter();
    tests
        .map(|test| {
            let ignored = ignored(&test);
            test.with_ignored_flag(ignored)
        })
        .collect()
}

/// Asks until there is an answer, or gives up after the deadline.
pub fn eventually<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        let answer = ask();
        if answer.is_some() || start.elapsed() > DEADLINE {
            return answer;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// What a program has said and how it ended. Prints as all of it.
pub struct Report {
    command: String,
    status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Report {
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    #[track_caller]
    pub fn exited(&self, code: i32) -> &Self {
        assert!(
            self.code() == Some(code),
            "exit status {code} was expected\n{self}"
        );
        self
    }

    /// Something on stderr.
    #[track_caller]
    pub fn says(&self, text: &str) -> &Self {
        assert!(
            self.stderr.contains(text),
            "{text:?} was expected on stderr\n{self}"
        );
        self
    }

    #[track_caller]
    pub fn never_says(&self, text: &str) -> &Self {
        assert!(
            !self.stderr.contains(text) && !self.stdout.contains(text),
            "{text:?} was not expected\n{self}"
        );
        self
    }

    /// An end of lsm-nice without a guard, for a reason that it could name.
    #[track_caller]
    pub fn refused_to_start(&self) -> &Self {
        self.exited(1)
            .never_says("guarding")
            .never_says("libbpf")
            .never_says("panicked");
        assert!(
            self.stderr.starts_with("lsm-nice: error: ") && self.stderr.contains("\n  fix: "),
            "an error and its fix were expected\n{self}"
        );
        self
    }

    /// What the last line of lsm-nice says that was refused.
    #[track_caller]
    pub fn counted(&self, refused: u64) -> &Self {
        assert!(
            self.counts().refused == refused,
            "a last line with {refused} refused was expected\n{self}"
        );
        self
    }

    /// The last line of lsm-nice.
    #[track_caller]
    pub fn counts(&self) -> Counts {
        let last = self.stderr.lines().last().unwrap_or_default();
        Counts::read(last).unwrap_or_else(|| panic!("a summary was expected\n{self}"))
    }
}

/// The numbers of a summary.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    pub refused: u64,
    pub audited: u64,
    pub allowed: u64,
    pub lost: u64,
}

impl Counts {
    /// Of a line such as `lsm-nice: the guard has ended: 3 refused, 1 events lost`.
    pub fn read(line: &str) -> Option<Self> {
        let (_, numbers) = line.strip_prefix("lsm-nice: ")?.rsplit_once(": ")?;
        let mut counts = Self::default();
        for number in numbers.split(", ") {
            let (number, of) = number.split_once(' ')?;
            let count = match of {
                "refused" => &mut counts.refused,
                "would have been refused" => &mut counts.audited,
                "allowed" => &mut counts.allowed,
                "events lost" => &mut counts.lost,
                _ => return None,
            };
            *count = number.parse().ok()?;
        }
        Some(counts)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}\n--- stdout\n{}--- stderr\n{}---",
            self.command, self.status, self.stdout, self.stderr
        )
    }
}

/// A file that a program writes to, and that can be read meanwhile without blocking.
struct Capture(File);

impl Capture {
    fn new() -> Self {
        let file = memfd_create("capture", MemfdFlags::CLOEXEC).expect("a memfd");
        // a memfd does not keep two that write at once from the same place
        fcntl_setfl(&file, OFlags::APPEND).expect("a memfd");
        Self(File::from(file))
    }

    fn writer(&self) -> File {
        File::from(self.0.as_fd().try_clone_to_owned().expect("a descriptor"))
    }

    /// All that was written. The file's position belongs to the writers.
    fn text(&self) -> String {
        let length = self.0.metadata().expect("the size of a memfd").len();
        let mut bytes = vec![0; usize::try_from(length).expect("a size")];
        self.0.read_exact_at(&mut bytes, 0).expect("a memfd");
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// A running program whose output is kept.
pub struct Lsm {
    child: Child,
    command: String,
    stdout: Capture,
    stderr: Capture,
    ended: bool,
}

impl Lsm {
    /// A guard that stands, with these options.
    #[track_caller]
    pub fn start(options: &str) -> Self {
        Self::start_in(&[], options)
    }

    /// A guard that stands, started by another program such as unshare(1).
    #[track_caller]
    pub fn start_in(wrapper: &[&str], options: &str) -> Self {
        let mut lsm = Self::spawn(wrapper, options);
        lsm.must_guard();
        lsm
    }

    /// lsm-nice from its start to its end, which must come by itself.
    #[track_caller]
    pub fn run(options: &str) -> Report {
        Self::run_in(&[], options)
    }

    #[track_caller]
    pub fn run_in(wrapper: &[&str], options: &str) -> Report {
        Self::spawn(wrapper, options).wait()
    }

    /// On a kernel that can guard a single process alone, the options say that this is wanted.
    pub fn spawn(wrapper: &[&str], options: &str) -> Self {
        Self::spawn_with(wrapper, options, |_| {})
    }

    /// A guard that stands, whose start `change` changed.
    #[track_caller]
    pub fn start_with(options: &str, change: impl FnOnce(&mut Command)) -> Self {
        let mut lsm = Self::spawn_with(&[], options, change);
        lsm.must_guard();
        lsm
    }

    fn spawn_with(wrapper: &[&str], options: &str, change: impl FnOnce(&mut Command)) -> Self {
        let subcommand = ["check", "status", "release"]
            .iter()
            .any(|name| options.starts_with(name));
        let plain = !has_task_storage() && !subcommand && !options.contains("--no-children");
        let words: Vec<_> = wrapper
            .iter()
            .copied()
            .chain(["lsm-nice"])
            .chain(plain.then_some("--no-children"))
            .chain(options.split_whitespace())
            .collect();
        Self::launch(&words, change)
    }

    /// Every lsm-nice of these tests is started here, as `change` wants it.
    pub fn launch(words: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let (stdout, stderr) = (Capture::new(), Capture::new());
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .env_remove("NOTIFY_SOCKET")
            .stdout(stdout.writer())
            .stderr(stderr.writer());
        change(&mut command);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {words:?}: {error}"));
        Self {
            child,
            command: words.join(" "),
            stdout,
            stderr,
            ended: false,
        }
    }

    /// A guard that stands, of `lsm-nice OPTIONS -- COMMAND`.
    #[track_caller]
    pub fn command(words: &[&str]) -> Self {
        let mut lsm = Self::launch(&[&["lsm-nice"], words].concat(), |_| {});
        lsm.must_guard();
        lsm
    }

    #[track_caller]
    pub fn must_guard(&mut self) {
        let stands = eventually(|| {
            let ended = self.child.try_wait().expect("a child").is_some();
            let stands = self
                .stderr()
                .lines()
                .any(|line| line.starts_with("lsm-nice: guarding"));
            (stands || ended).then_some(stands && !ended)
        });
        assert!(stands == Some(true), "{} does not guard", self.command);
    }

    /// Fails where the guard has ended, or is about to.
    #[track_caller]
    pub fn must_still_guard(&mut self) {
        self.must_guard();
        // What would end it has been sent before; a process that sleeps has nothing left to do.
        let stat = || fs::read_to_string(format!("/proc/{}/stat", self.pid())).ok();
        let asleep = eventually(|| stat().filter(|stat| stat.contains(") S ")));
        assert!(asleep.is_some(), "{} does not wait", self.command);
        self.must_guard();
    }

    /// lsm-nice itself, also where another program has started it.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        let mut pid = self.spawned();
        let found = eventually(|| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).expect("a running program");
            let found = comm == "lsm-nice\n";
            // Who started it goes on a moment before execve(2) has given it its name.
            if let (false, &[child]) = (found, children(pid).as_slice()) {
                pid = child;
            }
            found.then_some(())
        });
        assert!(found.is_some(), "{} runs no lsm-nice", self.command);
        pid
    }

    /// What was started: lsm-nice, or the program that starts it.
    pub fn spawned(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a PID")
    }

    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(pid(self.pid()), signal).expect("lsm-nice, to be signalled");
    }

    /// Waits for an end that must come.
    #[track_caller]
    pub fn wait(mut self) -> Report {
        let Some(status) = eventually(|| self.child.try_wait().expect("a child")) else {
            panic!("{} does not end", self.command);
        };
        self.ended = true;
        Report {
            command: self.command.clone(),
            status,
            stdout: self.stdout(),
            stderr: self.stderr(),
        }
    }

    /// Ends the guard as a user does.
    #[track_caller]
    pub fn end(self) -> Report {
        self.signal(Signal::TERM);
        let report = self.wait();
        report.exited(0);
        report
    }

    /// Ends lsm-nice as the kernel does when memory is short.
    #[track_caller]
    pub fn kill(self) {
        self.signal(Signal::KILL);
        self.wait();
    }
}

impl Drop for Lsm {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if thread::panicking() {
            let (out, err) = (self.stdout(), self.stderr());
            eprintln!("{}:\n--- stdout\n{out}--- stderr\n{err}---", self.command);
        }
        // One that another program has started first: it would outlive that program.
        for pid in descendants(self.spawned()) {
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program of the system.
pub fn run(program: &str, args: &[&str]) -> Report {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    Report {
        command: format!("{program} {}", args.join(" ")),
        status: ExitStatus::from_raw(output.status.into_raw()),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// renice(1) of util-linux.
pub fn renice(nice: i32, pid: i32) -> Report {
    run("renice", &["-n", &nice.to_string(), "-p", &pid.to_string()])
}

pub fn pid(number: i32) -> Pid {
    Pid::from_raw(number).expect("a PID")
}

pub fn nice_of(number: i32) -> i32 {
    getpriority_process(Some(pid(number)))
        .unwrap_or_else(|error| panic!("nice of process {number}: {error}"))
}

/// setpriority(2) for a process or thread.
pub fn set_nice(number: i32, nice: i32) -> Result<(), Errno> {
    setpriority_process(Some(pid(number)), nice)
}

/// Everything but a guard lets root do this.
#[track_caller]
pub fn accepts(number: i32, nice: i32) {
    let before = nice_of(number);
    let result = set_nice(number, nice);
    let after = nice_of(number);
    assert!(
        result == Ok(()) && after == nice,
        "{number} was to go from nice {before} to {nice}: {result:?}, and is at {after}"
    );
}

/// What a guard does: EPERM, and nothing has changed.
#[track_caller]
pub fn refuses(number: i32, nice: i32) {
    let before = nice_of(number);
    let result = set_nice(number, nice);
    let after = nice_of(number);
    assert!(
        result == Err(Errno::PERM) && after == before,
        "nice {nice} for {number}, which was at {before}, was to be EPERM: {result:?}, and it is \
         at {after}"
    );
}

/// The children of a process. A process that ends meanwhile has none.
pub fn children(pid: i32) -> Vec<i32> {
    fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok())
        .flat_map(|line| {
            line.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect()
}

pub fn descendants(pid: i32) -> Vec<i32> {
    children(pid)
        .into_iter()
        .flat_map(|child| [descendants(child), vec![child]].concat())
        .collect()
}

/// The one child of a process, as soon as it has one.
pub fn child_of(pid: i32) -> i32 {
    let children = eventually(|| Some(children(pid)).filter(|children| !children.is_empty()));
    match children.as_deref() {
        Some(&[child]) => child,
        other => panic!("process {pid} was to have one child and has {other:?}"),
    }
}

/// All threads of a process.
pub fn threads(pid: i32) -> Vec<i32> {
    fs::read_dir(format!("/proc/{pid}/task"))
        .expect("the threads of a process")
        .map(|entry| {
            let name = entry.expect("a thread").file_name();
            name.to_str()
                .and_then(|tid| tid.parse().ok())
                .expect("a TID")
        })
        .collect()
}

/// The value of a field in /proc/PID/status.
pub fn status_field(pid: i32, field: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().to_string())
}

/// Whether this kernel can mark tasks, which every guard but that of a single process needs.
pub fn has_task_storage() -> bool {
    kernel_is(5, 13)
}

/// Whether this kernel is of that version or later.
pub fn kernel_is(major: u32, minor: u32) -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse::<u32>().expect("the version of a kernel"));
    (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
}

const SECURITYFS: &str = "/sys/kernel/security";

pub fn securityfs_is_mounted() -> bool {
    fs::exists(format!("{SECURITYFS}/lsm")).expect("/sys")
}

pub fn unmount_securityfs() {
    while securityfs_is_mounted() {
        unmount(SECURITYFS, UnmountFlags::empty()).expect("to unmount securityfs");
    }
}

pub fn mount_securityfs() {
    if !securityfs_is_mounted() {
        mount(
            "securityfs",
            SECURITYFS,
            "securityfs",
            MountFlags::empty(),
            None,
        )
        .expect("to mount securityfs");
    }
}
