// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! What lsm-nice costs: run as root in a VM whose clock counts instructions, by benches/run.
//!
//! Prints a line of JSON for each figure. Everything is measured in one boot: first without any
//! program, then with empty ones on the same hooks, then with lsm-nice. `bench quick` measures the
//! calls alone. Of what was measured, elsewhere, `bench draw DIR` writes the table and the plots, and
//! `bench compare BASE NEW` fails where a call costs more than it did.

mod plot;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, PipeWriter, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::json;

/// Batches of each figure, and calls in each: few enough that most batches see no timer interrupt.
const BATCHES: usize = 15;
const CALLS: usize = 100;
const STARTS: usize = 7;
const RULES: &str = "nice,sched,io,heap-exec,inet";
const CGROUP: &str = "/sys/fs/cgroup/bench";

/// The programs of the default guard, and what they are attached to, for loaders that are told.
const PROGRAMS: [(&str, &str); 7] = [
    ("note_autogroup", "proc_sched_autogroup_set_nice"),
    ("note_setscheduler", "__sched_setscheduler"),
    ("task_alloc", "task_alloc"),
    ("task_newtask", "task_newtask"),
    ("task_setnice", "task_setnice"),
    ("task_setscheduler", "task_setscheduler"),
    ("walk", "task"),
];

/// A system call with a value that rules allow, and with one that they forbid.
struct Call {
    name: &'static str,
    allowed: fn() -> i64,
    forbidden: fn() -> i64,
}

static CALLS_OF_RULES: [Call; 6] = [
    Call {
        name: "setpriority",
        // SAFETY: takes numbers.
        allowed: || unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 5) }.into(),
        // SAFETY: as above.
        forbidden: || unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -5) }.into(),
    },
    Call {
        name: "sched_setscheduler",
        allowed: || setscheduler(libc::SCHED_BATCH, 0),
        forbidden: || setscheduler(libc::SCHED_FIFO, 1),
    },
    Call {
        name: "sched_setattr",
        allowed: || setattr(5),
        forbidden: || setattr(-5),
    },
    Call {
        name: "ioprio_set",
        allowed: || ioprio(2 << 13 | 7),
        forbidden: || ioprio(1 << 13),
    },
    Call {
        name: "mprotect",
        allowed: || protect(mapped(), libc::PROT_READ),
        forbidden: || protect(heap(), libc::PROT_EXEC),
    },
    Call {
        name: "socket",
        allowed: || socket(libc::AF_UNIX),
        forbidden: || socket(libc::AF_INET),
    },
];

fn setscheduler(policy: i32, priority: i32) -> i64 {
    let param = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: param outlives the call.
    unsafe { libc::sched_setscheduler(0, policy, &param) }.into()
}

fn setattr(nice: i32) -> i64 {
    // SAFETY: numbers alone, for which zero is valid.
    let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
    attr.size = size_of::<libc::sched_attr>() as u32;
    attr.sched_nice = nice;
    // SAFETY: attr is as large as it says.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) }
}

fn ioprio(value: i32) -> i64 {
    // SAFETY: takes numbers.
    unsafe { libc::syscall(libc::SYS_ioprio_set, 1, 0, value) }
}

/// A page of its own, and one of the heap; made before anything is measured.
fn mapped() -> usize {
    static PAGE: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *PAGE.get_or_init(|| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, flags, -1, 0) };
        assert_ne!(page, libc::MAP_FAILED);
        page.addr()
    })
}

fn heap() -> usize {
    static PAGE: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    // SAFETY: makes the heap longer by what malloc(3) does not know of.
    *PAGE.get_or_init(|| {
        unsafe { libc::sbrk(3 * 4096) }
            .addr()
            .next_multiple_of(4096)
    })
}

/// Once with more, once with less: a protection that is there already would be no change.
fn protect(page: usize, more: libc::c_int) -> i64 {
    let page = page as *mut libc::c_void;
    let base = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: nobody else uses the page.
    unsafe { libc::mprotect(page, 4096, base | more) }.into()
}

fn socket(family: libc::c_int) -> i64 {
    // SAFETY: takes numbers; the descriptor is closed at once.
    unsafe {
        let fd = libc::socket(family, libc::SOCK_DGRAM, 0);
        if fd < 0 { -1 } else { libc::close(fd).into() }
    }
}

/// Ways to a new task, from the call to the end of the child.
static FORKS: [(&str, fn()); 3] = [
    ("fork+exit", || {
        // SAFETY: the child ends at once.
        let pid = unsafe { libc::fork() };
        reap(pid);
    }),
    ("vfork+exit", || {
        extern "C" fn child(_: *mut libc::c_void) -> libc::c_int {
            0
        }
        let mut stack = [0u128; 512];
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: the child has a stack of its own, and is over when the call returns.
        let pid = unsafe {
            let top = stack.as_mut_ptr().add(stack.len());
            libc::clone(child, top.cast(), flags, std::ptr::null_mut())
        };
        reap(pid);
    }),
    ("thread", || {
        thread::Builder::new()
            .stack_size(16384)
            .spawn(|| {})
            .expect("a thread")
            .join()
            .expect("a thread that ends");
    }),
];

fn reap(pid: i32) {
    if pid == 0 {
        // SAFETY: ends the child.
        unsafe { libc::syscall(libc::SYS_exit_group, 0) };
    }
    // SAFETY: waits for a child, and asks nothing of it.
    let reaped = unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) };
    assert_eq!(reaped, pid);
}

/// Instructions of the guest so far, as its clock counts them: of all, or of this thread alone.
fn now(clock: libc::clockid_t) -> i64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: time outlives the call.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// One figure: the median of all batches, and the range of the middle half of them.
fn print(kind: &str, name: &str, case: &str, mut figures: Vec<f64>) {
    figures.sort_by(f64::total_cmp);
    let at = |part: usize| figures[(figures.len() - 1) * part / 4];
    let line = json!({
        "kind": kind, "name": name, "case": case, "n": figures.len(),
        "median": at(2), "low": at(1), "high": at(3),
        "least": figures[0], "most": figures[figures.len() - 1],
    });
    println!("{line}");
}

/// Instructions of one call. The first batch warms caches and is not counted.
fn per_call(clock: libc::clockid_t, calls: usize, mut call: impl FnMut()) -> Vec<f64> {
    let mut batch = || {
        let start = now(clock);
        for _ in 0..calls {
            call();
        }
        (now(clock) - start) as f64 / calls as f64
    };
    batch();
    (0..BATCHES).map(|_| batch()).collect()
}

/// All calls, by a thread that reads its own clock, as a reader of events runs in between.
fn measure_calls(case: &str, refused: bool) {
    for call in &CALLS_OF_RULES {
        let forbidden = if refused { -1 } else { 0 };
        for (value, run, expected) in [
            ("forbidden", call.forbidden, forbidden),
            ("allowed", call.allowed, 0),
        ] {
            assert_eq!(run(), expected, "{} {value} in case {case}", call.name);
            let figures = per_call(libc::CLOCK_THREAD_CPUTIME_ID, CALLS, || {
                run();
            });
            print("call", &format!("{} {value}", call.name), case, figures);
        }
        // back to where it was
        (call.allowed)();
        setscheduler(libc::SCHED_OTHER, 0);
    }
    let control = per_call(libc::CLOCK_THREAD_CPUTIME_ID, CALLS, || {
        // SAFETY: takes nothing.
        unsafe { libc::syscall(libc::SYS_getppid) };
    });
    print("call", "getppid", case, control);
}

fn measure_forks(case: &str) {
    for (name, fork) in FORKS {
        print(
            "fork",
            name,
            case,
            per_call(libc::CLOCK_MONOTONIC, 20, fork),
        );
    }
}

fn setpriority(case: &str, refused: bool) {
    let call = &CALLS_OF_RULES[0];
    assert_eq!((call.forbidden)() < 0, refused, "{case}");
    let figures = per_call(libc::CLOCK_THREAD_CPUTIME_ID, CALLS, || {
        (call.forbidden)();
    });
    print("scale", "setpriority forbidden", case, figures);
    (call.allowed)();
}

/// A program that says on stderr that it stands.
struct Guard {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Guard {
    fn start(words: &[&str]) -> Self {
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {words:?}: {error}"));
        let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut said = String::new();
        while !said.contains("lsm-nice: guarding") && !said.contains("ready") {
            let read = stderr.read_line(&mut said).expect("a line");
            assert!(read > 0, "{words:?}: {said}");
        }
        Self { child, stderr }
    }

    fn lsm_nice(options: &str) -> Self {
        Self::start(&[&["lsm-nice"][..], &Vec::from_iter(options.split(' '))].concat())
    }

    fn status(&self, field: &str) -> f64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("status");
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|line| line.trim_end_matches("kB").trim().parse().ok());
        kib.expect("a number")
    }

    /// Ends it, and returns the last line that it says.
    fn end(mut self) -> String {
        // SAFETY: takes numbers.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGINT) };
        let said = self.stderr.lines().map_while(Result::ok).last();
        self.child.wait().expect("the end of a guard");
        said.unwrap_or_default()
    }
}

/// Another process, which waits until it is guarded and then runs on as this program.
struct Caller {
    pid: i32,
    go: PipeWriter,
}

impl Caller {
    fn fork(run: impl FnOnce()) -> Self {
        let (mut wait, go) = std::io::pipe().expect("a pipe");
        // SAFETY: there is one thread.
        match unsafe { libc::fork() } {
            0 => {
                drop(go);
                // as who is not guarded has it from the first call on: the kernel asks for a
                // capability (can_nice()) where a value is below the present one alone
                (CALLS_OF_RULES[0].forbidden)();
                wait.read_exact(&mut [0]).expect("a pipe");
                run();
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) }
            }
            pid => Self { pid, go },
        }
    }

    /// Lets it run, to its end.
    fn run(mut self) {
        self.go.write_all(b"g").expect("a caller that waits");
        let mut status = 0;
        // SAFETY: a child, and a place for its status.
        unsafe { libc::waitpid(self.pid, &mut status, 0) };
        assert_eq!(status, 0, "a caller has failed");
    }
}

/// A process that sleeps, and as many children of it.
struct Sleeper(i32);

impl Sleeper {
    fn start(children: usize) -> Self {
        // SAFETY: there is one thread, and the new processes make system calls alone.
        let pid = unsafe {
            let pid = libc::fork();
            if pid == 0 {
                let is_parent = (0..children).all(|_| libc::fork() != 0);
                if !is_parent {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                }
                loop {
                    libc::pause();
                }
            }
            pid
        };
        let list = || fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        while list().expect("children").split_whitespace().count() < children {
            thread::sleep(Duration::from_millis(100));
        }
        Self(pid)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // SAFETY: takes numbers; a child of this process.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

/// What a call costs, by what is on its hook and who makes it.
fn calls(forks: bool) {
    let measure = |case: &str, refused: bool, forks: bool| {
        measure_calls(case, refused);
        if forks {
            measure_forks(case);
        }
    };
    measure("no program", false, forks);
    let empty = [
        "setnice",
        "setscheduler",
        "note",
        "setioprio",
        "mprotect",
        "create",
        "alloc",
    ];
    let empty = Guard::start(&[&["loader", "/bin/empty.bpf.o"][..], &empty].concat());
    measure("empty program", false, forks);
    empty.end();

    let other = Sleeper::start(0);
    let guard = Guard::lsm_nice(&format!(
        "-q --rule {RULES} --no-children --pid {}",
        other.0
    ));
    measure("not guarded, beside one process", false, forks);
    guard.end();
    let guard = Guard::lsm_nice(&format!("-q --rule {RULES} --pid {}", other.0));
    measure("not guarded", false, forks);
    guard.end();
    for (options, case, forks) in [
        ("-q", "guarded, no events", forks),
        // a fork then would count what the reader still has to print
        ("-n 0", "guarded, with events", false),
    ] {
        let caller = Caller::fork(|| measure(case, true, forks));
        let guard = Guard::lsm_nice(&format!("{options} --rule {RULES} --pid {}", caller.pid));
        caller.run();
        guard.end();
    }
}

/// What the number of the guarded, the depth of a cgroup and the number of guards change.
fn scale() {
    setpriority("no program", false);
    let measure = |case: &str, caller: Caller, guards: Vec<Guard>| {
        setpriority(&format!("not guarded, {case}"), false);
        caller.run();
        guards.into_iter().for_each(|guard| drop(guard.end()));
    };
    for size in [1, 10, 1000, 10_000] {
        let case = format!("{size} guarded");
        let name = format!("guarded, {case}");
        let crowd = Sleeper::start(size - 1);
        let caller = Caller::fork(move || setpriority(&name, true));
        let options = format!("-q --tree --pid {} --pid {}", caller.pid, crowd.0);
        let guard = Guard::lsm_nice(&options);
        measure(&case, caller, vec![guard]);
    }
    for depth in [1, 5, 10] {
        let case = format!("cgroup at depth {depth}");
        let name = format!("guarded, {case}");
        let dir = format!("{CGROUP}{}", "/x".repeat(depth - 1));
        fs::create_dir_all(&dir).expect("a cgroup");
        let caller = Caller::fork(move || setpriority(&name, true));
        fs::write(format!("{dir}/cgroup.procs"), caller.pid.to_string()).expect("a cgroup");
        let guard = Guard::lsm_nice(&format!("-q --cgroup {dir}"));
        measure(&case, caller, vec![guard]);
    }
    for number in [1, 2, 4, 8] {
        let case = format!("{number} guards");
        let name = format!("guarded, {case}");
        let caller = Caller::fork(move || setpriority(&name, true));
        let options = format!("-q --pid {}", caller.pid);
        let guards = (0..number).map(|_| Guard::lsm_nice(&options)).collect();
        measure(&case, caller, guards);
    }
}

/// Events under a flood, by the size of the ring buffer: each size is a build of its own.
fn events() {
    const EVENTS: u32 = 100_000;
    for size in ["64 KiB", "256 KiB", "1 MiB", "4 MiB"] {
        let program = format!("lsm-nice-{}", size.replace(' ', ""));
        let mut figures: [Vec<f64>; 3] = Default::default();
        for _ in 0..STARTS {
            let caller = Caller::fork(|| {
                for _ in 0..EVENTS {
                    (CALLS_OF_RULES[0].forbidden)();
                }
            });
            let guard = Guard::start(&[&program, "--pid", &caller.pid.to_string()]);
            let ran = || {
                let path = format!("/proc/{}/schedstat", guard.child.id());
                let stat = fs::read_to_string(path).expect("schedstat");
                let ran = stat
                    .split(' ')
                    .next()
                    .and_then(|ran| ran.parse::<f64>().ok());
                ran.expect("a number")
            };
            let (start, before) = (now(libc::CLOCK_MONOTONIC), ran());
            caller.run();
            let seconds = (now(libc::CLOCK_MONOTONIC) - start) as f64 / 1e9;
            // what is left in the ring is read after the flood
            thread::sleep(Duration::from_millis(500));
            let reader = ran() - before;
            let last = guard.end();
            let lost = last
                .rsplit_once(", ")
                .and_then(|(_, lost)| lost.strip_suffix(" events lost"));
            let lost = lost.map_or(0.0, |lost| lost.parse().expect("a number"));
            let read = f64::from(EVENTS) - lost;
            figures[0].push(f64::from(EVENTS) / seconds);
            figures[1].push(reader / read);
            figures[2].push(100.0 * lost / f64::from(EVENTS));
        }
        let [rate, reader, lost] = figures;
        print("events", "events a second", size, rate);
        print("events", "reader, instructions an event", size, reader);
        print("events", "lost, percent", size, lost);
    }
}

/// lsm-nice beside other loaders of the same programs.
fn starts() {
    let target = Sleeper::start(0);
    let pid = target.0.to_string();
    let object = "/bin/lsm_nice.bpf.o".to_string();
    let names = PROGRAMS.map(|(name, _)| name.to_string());
    let functions = PROGRAMS.map(|(name, function)| format!("{name}:{function}"));
    let words = |first: &[&str], rest: &[String]| {
        let first = first.iter().map(ToString::to_string);
        first.chain(rest.iter().cloned()).collect::<Vec<_>>()
    };
    for (case, words) in [
        ("lsm-nice", words(&["lsm-nice", "--pid", &pid], &[])),
        ("libbpf, in C", words(&["loader", &object], &names)),
        ("aya", words(&["aya-loader", &object], &functions)),
    ] {
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let mut figures: [Vec<f64>; 4] = Default::default();
        for _ in 0..STARTS {
            let start = now(libc::CLOCK_MONOTONIC);
            let guard = Guard::start(&words);
            figures[0].push((now(libc::CLOCK_MONOTONIC) - start) as f64 / 1e6);
            thread::sleep(Duration::from_millis(200));
            figures[1].push(guard.status("VmHWM:"));
            figures[2].push(guard.status("VmRSS:"));
            let start = now(libc::CLOCK_MONOTONIC);
            guard.end();
            figures[3].push((now(libc::CLOCK_MONOTONIC) - start) as f64 / 1e6);
        }
        let [ready, peak, blocked, end] = figures;
        print("start", "exec to enforcement, ms", case, ready);
        print("start", "SIGINT to exit, ms", case, end);
        print("start", "memory at the peak, KiB", case, peak);
        print("start", "memory once blocked, KiB", case, blocked);
        let size = fs::metadata(format!("/bin/{}", words[0]))
            .expect("a binary")
            .len();
        print(
            "start",
            "size of the binary, KiB",
            case,
            vec![size as f64 / 1024.0],
        );
    }
}

/// bpftool with the same programs, which exits when they are attached, and leaves pins.
fn autoattach() {
    let words = "--library-path /bin /bin/bpftool prog loadall /bin/autoattach.bpf.o \
                 /sys/fs/bpf/bench autoattach";
    let mount = ["-t", "bpf", "bpf", "/sys/fs/bpf"];
    let mounted = Command::new("mount").args(mount).status();
    assert!(mounted.is_ok_and(|status| status.success()), "bpffs");
    let mut ready = Vec::new();
    for _ in 0..STARTS {
        let start = now(libc::CLOCK_MONOTONIC);
        let output = Command::new("ld.so").args(words.split(' ')).output();
        ready.push((now(libc::CLOCK_MONOTONIC) - start) as f64 / 1e6);
        let output = output.expect("cannot run bpftool");
        let links = fs::read_dir("/sys/fs/bpf/bench").map(Iterator::count);
        let all = output.status.success() && links.is_ok_and(|links| links == PROGRAMS.len());
        assert!(all, "{output:?}");
        fs::remove_dir_all("/sys/fs/bpf/bench").expect("pins");
        // the kernel takes them off by itself
        thread::sleep(Duration::from_secs(2));
    }
    print("start", "exec to enforcement, ms", "bpftool", ready);
}

/// What the kernel does after it has booted would count as part of a fork.
fn settle() {
    let start = now(libc::CLOCK_MONOTONIC);
    while now(libc::CLOCK_MONOTONIC) - start < 5_000_000_000 {
        for (_, fork) in FORKS {
            fork();
        }
    }
}

fn measure(quick: bool) {
    // SAFETY: a disposition of the kernel's own. What runs in the background of a shell without job
    // control ignores the signal that ends guards here.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
    mapped();
    heap();
    if !quick {
        settle();
    }
    calls(!quick);
    if !quick {
        scale();
        starts();
        autoattach();
        events();
    }
}

fn main() -> Result<ExitCode, plot::Error> {
    // cargo adds --bench
    let words = env::args().skip(1).filter(|word| word != "--bench");
    let words: Vec<_> = words.collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => measure(false),
        ["quick"] => measure(true),
        ["draw", dir] => plot::draw(Path::new(dir))?,
        ["compare", base, new] => return plot::compare(Path::new(base), Path::new(new)),
        _ => return Err("bench [quick], bench draw DIR, or bench compare BASE NEW".into()),
    }
    Ok(ExitCode::SUCCESS)
}
