// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The hard tests: a storm of processes that all try to raise each other, and a crowd of them.

use std::ffi::c_void;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{
    Pid, WaitOptions, getpid, getppid, getpriority_process, setpriority_pgrp, setpriority_process,
};

use crate::agent::Agent;
use crate::bpf::Loaded;
use crate::helpers::{
    Lsm, accepts, child_of, children, eventually, heavy, pid, set_nice, status_field,
};

tests!(
    in_a_storm_of_processes_not_one_raises_another,
    in_a_storm_inside_a_container_not_one_raises_another,
    every_one_of_a_crowd_is_guarded,
);

/// What the processes of a storm share: a file that each of them maps.
const FILE: &str = "/dev/shm/storm";

#[derive(Clone, Copy)]
enum Kind {
    Fork,
    Vfork,
    Clone,
    Sibling,
    Thread,
    Orphan,
    Exec,
}
const KINDS: [&str; 7] = [
    "fork", "vfork", "clone", "sibling", "thread", "orphan", "exec",
];

/// Zeroes at the start, as the kernel makes a file.
struct Counts {
    /// Processes and threads that have tried, by the way in which they were made.
    made: [AtomicU64; KINDS.len()],
    refused: AtomicU64,
    /// Attempts on one that had exited.
    gone: AtomicU64,
    /// What must not happen: attempts that succeeded,
    raised: AtomicU64,
    /// tasks that found themselves raised,
    born_raised: AtomicU64,
    /// and calls that failed in another way.
    failed: AtomicU64,
    /// The process group of the storm, once it rages; how many it makes, and who is done.
    ready: AtomicU64,
    goal: AtomicU64,
}

impl Counts {
    fn map() -> &'static Self {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(FILE)
            .expect("a file of shared memory");
        file.set_len(size_of::<Self>() as u64).expect("its size");
        // SAFETY: a new mapping of a file of this size, never unmapped; its type takes any bytes.
        unsafe {
            let address = libc::mmap(
                std::ptr::null_mut(),
                size_of::<Self>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            );
            assert_ne!(address, libc::MAP_FAILED, "{}", io::Error::last_os_error());
            &*address.cast::<Self>()
        }
    }

    fn total(&self) -> u64 {
        self.made.iter().map(|made| made.load(Relaxed)).sum()
    }

    /// A system call alone, for children that share memory with others.
    fn attempt(&self, who: Option<Pid>) {
        let counter = match setpriority_process(who, -1) {
            Err(Errno::PERM) => &self.refused,
            Err(Errno::SRCH) => &self.gone,
            Ok(()) => &self.raised,
            Err(_) => &self.failed,
        };
        counter.fetch_add(1, Relaxed);
    }

    /// The first acts of each task: itself, its process, and the parent of that.
    fn newborn(&self, kind: Kind) {
        if getpriority_process(None).is_ok_and(|nice| nice < 0) {
            self.born_raised.fetch_add(1, Relaxed);
        }
        self.attempt(None);
        self.attempt(Some(getpid()));
        self.attempt(getppid());
        self.made[kind as usize].fetch_add(1, Relaxed);
    }
}

/// Room for a child on a stack of its own. A child that has its own memory has its own copy too.
struct Stack(*mut c_void);

impl Stack {
    fn new() -> Self {
        Self(Vec::leak(vec![0u128; 2048]).as_mut_ptr_range().end.cast())
    }

    fn clone(&self, born: extern "C" fn(*mut c_void) -> i32, flags: i32, of: &Counts) -> i32 {
        let argument = std::ptr::from_ref(of).cast_mut().cast();
        // SAFETY: one task at a time runs on the stack, which is never freed; what runs there makes
        // system calls and counts in the memory that all share.
        let pid = unsafe { libc::clone(born, self.0, flags, argument) };
        if pid < 0 {
            of.failed.fetch_add(1, Relaxed);
        }
        pid
    }
}

fn counts(argument: *mut c_void) -> &'static Counts {
    // SAFETY: what Stack::clone passes: a mapping that is never unmapped.
    unsafe { &*argument.cast::<Counts>() }
}

extern "C" fn born_by_vfork(argument: *mut c_void) -> i32 {
    counts(argument).newborn(Kind::Vfork);
    0
}

extern "C" fn born_by_clone(argument: *mut c_void) -> i32 {
    counts(argument).newborn(Kind::Clone);
    0
}

extern "C" fn born_as_sibling(argument: *mut c_void) -> i32 {
    counts(argument).newborn(Kind::Sibling);
    0
}

/// Threads of this process that are done.
static DONE: AtomicU64 = AtomicU64::new(0);

extern "C" fn born_as_thread(argument: *mut c_void) -> i32 {
    counts(argument).newborn(Kind::Thread);
    DONE.fetch_add(1, Relaxed);
    0
}

extern "C" fn execs(_: *mut c_void) -> i32 {
    let arguments = [c"live".as_ptr(), c"leaf".as_ptr(), std::ptr::null()];
    // SAFETY: strings that live, and a null pointer at the end of each list.
    unsafe {
        libc::execve(
            c"/proc/self/exe".as_ptr(),
            arguments.as_ptr(),
            [std::ptr::null()].as_ptr(),
        )
    };
    1
}

fn exit() -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(0) }
}

/// fork(2): the PID of the child, 0 in it.
fn fork(of: &Counts) -> i32 {
    // SAFETY: the child makes system calls alone, or starts threads that do.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        of.failed.fetch_add(1, Relaxed);
    }
    pid
}

const AS_THREAD: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;

/// Makes a process of one kind, or several threads, and tries to raise what it has made.
fn make(kind: Kind, stacks: &[Stack], of: &Counts) {
    let at_once = libc::CLONE_VM | libc::CLONE_VFORK;
    let child = match kind {
        Kind::Vfork => stacks[0].clone(born_by_vfork, at_once | libc::SIGCHLD, of),
        Kind::Clone => stacks[0].clone(born_by_clone, libc::CLONE_VM | libc::SIGCHLD, of),
        // The kernel takes its signal from ours.
        Kind::Sibling => stacks[0].clone(born_as_sibling, at_once | libc::CLONE_PARENT, of),
        Kind::Fork | Kind::Thread | Kind::Orphan | Kind::Exec => match fork(of) {
            0 => {
                of.newborn(Kind::Fork);
                match kind {
                    Kind::Thread => {
                        for stack in stacks {
                            attempt_child(of, stack.clone(born_as_thread, AS_THREAD, of));
                        }
                        while DONE.load(Relaxed) < stacks.len() as u64 {
                            rustix::thread::sched_yield();
                        }
                    }
                    Kind::Orphan => match fork(of) {
                        0 => of.newborn(Kind::Orphan),
                        grandchild => attempt_child(of, grandchild),
                    },
                    Kind::Exec => {
                        attempt_child(of, stacks[0].clone(execs, AS_THREAD, of));
                        loop {
                            rustix::thread::sched_yield();
                        }
                    }
                    _ => {}
                }
                exit()
            }
            child => child,
        },
    };
    attempt_child(of, child);
    // They are reaped by the kernel, so this ends with an error once all have exited.
    while rustix::process::wait(WaitOptions::empty()).is_ok() {}
}

fn attempt_child(of: &Counts, child: i32) {
    if let Some(child) = Pid::from_raw(child).filter(|_| child > 0) {
        of.attempt(Some(child));
    }
}

/// `live rage`: makes processes from several at once until there are enough.
pub fn rage() -> ! {
    const MAKERS: usize = 4;
    let of = Counts::map();
    let stacks: Vec<_> = (0..4).map(|_| Stack::new()).collect();
    // SAFETY: system calls on numbers. Orphans stay in the guarded tree, so that the parent of each
    // is guarded; nobody waits for anybody by PID, so the kernel may reap; a group of our own.
    unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        libc::setpgid(0, 0);
    }
    of.ready.store(1, Relaxed);
    let goal = of.goal.load(Relaxed);
    for maker in 0..MAKERS {
        if fork(of) != 0 {
            continue;
        }
        // so that a short storm has each kind too
        let mut round = maker * 10;
        while of.total() < goal {
            let kind = match round % 40 {
                39 => Kind::Exec,
                round => match round % 6 {
                    0 => Kind::Fork,
                    1 => Kind::Vfork,
                    2 => Kind::Clone,
                    3 => Kind::Sibling,
                    4 => Kind::Thread,
                    _ => Kind::Orphan,
                },
            };
            make(kind, &stacks, of);
            round += 1;
        }
        exit();
    }
    while rustix::process::wait(WaitOptions::empty()).is_ok() {}
    exit()
}

/// `live leaf`: what the exec of a storm ends in.
pub fn leaf() -> ! {
    Counts::map().newborn(Kind::Exec);
    exit()
}

/// Starts a storm as the COMMAND of a guard, and attacks it from outside all the while.
fn storm(wrapper: &[&str], goal: usize) {
    let _ = fs::remove_file(FILE);
    let of = Counts::map();
    of.goal.store(goal as u64, Relaxed);
    let mut neighbour = Agent::start();
    let start = Instant::now();
    let words = [wrapper, &["lsm-nice", "--", "live", "rage"]].concat();
    let mut lsm = Lsm::launch(&words, |_| {});
    lsm.must_guard();
    eventually(|| (of.ready.load(Relaxed) == 1).then_some(())).expect("a storm");
    let root = child_of(lsm.pid());
    let (mut attacks, mut free) = (0, 0);
    let mut last = (0, Instant::now());
    while status_field(root, "State").is_some_and(|state| !state.starts_with('Z')) {
        for _ in 0..20 {
            // Reaches also those that have not run yet, as soon as they are listed.
            match setpriority_pgrp(Some(pid(root)), -1) {
                Err(Errno::PERM) => attacks += 1,
                Err(Errno::SRCH) => break,
                other => panic!("a group of guarded processes was raised: {other:?}"),
            }
        }
        accepts(neighbour.pid, -5);
        accepts(neighbour.pid, 0);
        free += 2;
        if of.total() != last.0 {
            last = (of.total(), Instant::now());
        }
        assert!(
            last.1.elapsed() < Duration::from_secs(60),
            "the storm stands still at {} of {goal}",
            last.0
        );
        thread::sleep(Duration::from_millis(5));
    }
    accepts(neighbour.child("fork"), -1);
    let report = lsm.wait();
    report.exited(0);

    let seconds = start.elapsed().as_secs();
    let made: Vec<_> = KINDS
        .iter()
        .zip(&of.made)
        .map(|(kind, made)| format!("{kind} {}", made.load(Relaxed)))
        .collect();
    let get = |counter: &AtomicU64| counter.load(Relaxed);
    let (refused, gone) = (get(&of.refused), get(&of.gone));
    println!(
        "storm: {} processes and threads ({}) in {seconds} s; {} attempts: {refused} refused, \
         {gone} came too late, {} succeeded; {attacks} attacks on the group; {free} settings of a \
         neighbour",
        of.total(),
        made.join(", "),
        refused + gone + get(&of.raised) + get(&of.failed),
        get(&of.raised),
    );
    assert_eq!(get(&of.raised), 0, "attempts that succeeded");
    assert_eq!(get(&of.born_raised), 0, "tasks raised by somebody else");
    assert_eq!(get(&of.failed), 0, "calls that failed for another reason");
    assert!(of.total() >= goal as u64);
    assert!(of.made.iter().all(|made| get(made) > 0), "{made:?}");
    assert!(
        refused + gone >= 3 * of.total(),
        "each was to try three times"
    );
    let counts = report.counts();
    let denied = counts.refused;
    assert_eq!(
        report.stdout.lines().count() as u64 + counts.lost,
        denied,
        "events printed and lost"
    );
    assert!(denied >= refused + attacks, "{denied} refused for lsm-nice");
}

fn in_a_storm_of_processes_not_one_raises_another() {
    storm(&[], heavy(100_000));
}

fn in_a_storm_inside_a_container_not_one_raises_another() {
    storm(
        &["unshare", "--pid", "--fork", "--mount-proc"],
        heavy(20_000),
    );
}

fn every_one_of_a_crowd_is_guarded() {
    let size = heavy(10_000);
    let before = Loaded::now();
    let mut target = Agent::start();
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    assert_eq!(target.ask(&format!("herd {size}")), 0);
    let all = children(target.pid);
    assert_eq!(all.len(), size);
    let refused = |child: &&i32| set_nice(**child, -1) == Err(Errno::PERM);
    assert_eq!(all.iter().filter(refused).count(), size);
    target.quit();
    lsm.wait().exited(0).counted(size as u64);
    before.is_not_exceeded();
}
