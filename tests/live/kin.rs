// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! Every way in which an agent makes processes and threads, and what it can do to itself. What it
//! made waits, and ends when the agent ends.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, getpid, waitpid};

use crate::agent::{errno, this_binary};

/// The end of a pipe that all children read, and the one that the agent alone holds.
static LIFELINE: LazyLock<(OwnedFd, OwnedFd)> =
    LazyLock::new(|| pipe_with(PipeFlags::CLOEXEC).expect("a pipe"));

/// What an agent is asked beyond its own priority: a PID or 0, or a negative errno for one that
/// makes a process.
pub fn obey(words: &[&str]) -> i32 {
    LazyLock::force(&LIFELINE);
    let number = |at: usize| words[at].parse::<i32>().expect("a number");
    match words[0] {
        "fork" => sleeper(0, None),
        "clone3" => sleeper(number(1), None),
        "into" => sleeper(0, Some(words[1])),
        "share" => sleeper_with_our_memory(libc::SIGCHLD),
        "vfork" => vfork(),
        "spawn" => spawn(),
        "spawn-alone" => alone(),
        "orphan" => orphan(),
        "fork-in-thread" => in_thread(|| sleeper(0, None)),
        "child-execs-in-thread" => child_execs_in_thread(),
        "herd" => herd(number(1)),
        "hop" => {
            // SAFETY: signal(2) with a disposition of the kernel's own: nobody waits for these.
            unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
            (0..number(1))
                .map(|_| hop())
                .find(|pid| *pid < 0)
                .unwrap_or(0)
        }
        "hop-in-threads" => {
            (0..number(1)).for_each(|_| thread_hop());
            0
        }
        "exec-in-threads" => exec_in_threads(),
        // SAFETY: these take numbers, and change this process alone.
        "subreaper" => errno(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) }),
        // SAFETY: as above.
        "setuid" => errno(unsafe { libc::setuid(number(1).cast_unsigned()) }),
        // SAFETY: as above.
        "unshare" => errno(unsafe { libc::unshare(number(1)) }),
        "setns" => setns(words[1]),
        "trace" => trace(number(1)),
        other => panic!("an agent does not know {other:?}"),
    }
}

/// fork(2) and its flags by clone3(2); the child is born in a cgroup where one is given.
fn fork(flags: i32, cgroup: Option<&str>) -> i32 {
    // SAFETY: all zeroes is a valid clone_args.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(flags.cast_unsigned());
    if flags & libc::CLONE_PARENT == 0 {
        args.exit_signal = libc::SIGCHLD.cast_unsigned().into();
    }
    let cgroup = cgroup.map(|path| File::open(path).expect("a cgroup"));
    if let Some(cgroup) = &cgroup {
        const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd().cast_unsigned().into();
    }
    // SAFETY: like fork(2), with arguments that live. The agent has one thread that allocates.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    match i32::try_from(pid) {
        Ok(-1) | Err(_) => -io::Error::last_os_error().raw_os_error().unwrap_or(-1),
        Ok(pid) => pid,
    }
}

fn sleeper(flags: i32, cgroup: Option<&str>) -> i32 {
    match fork(flags, cgroup) {
        0 => sleep(),
        pid => pid,
    }
}

/// The life of a child: system calls alone, so that it may share the memory of the agent.
fn sleep() -> ! {
    close_ours();
    while let Err(Errno::INTR) = read(&LIFELINE.0, &mut [0u8]) {}
    // SAFETY: ends the process, or what has a PID of its own.
    unsafe { libc::_exit(0) }
}

/// The agent's end of the lifeline, in a child that has descriptors of its own.
fn close_ours() {
    // SAFETY: the child alone has this copy, and nothing in it uses or drops it.
    unsafe { libc::close(LIFELINE.1.as_raw_fd()) };
}

/// The PID of a child that has our memory.
static BORN: AtomicI32 = AtomicI32::new(0);

extern "C" fn born(_: *mut c_void) -> i32 {
    BORN.store(getpid().as_raw_pid(), Ordering::Release);
    sleep()
}

/// clone(2) with CLONE_VM: another process on a stack of its own.
fn sleeper_with_our_memory(flags: i32) -> i32 {
    let stack = Vec::leak(vec![0u128; 4096]).as_mut_ptr_range().end;
    // SAFETY: the stack is never freed; the child makes system calls alone.
    let pid = unsafe {
        libc::clone(
            born,
            stack.cast(),
            flags | libc::CLONE_VM,
            std::ptr::null_mut(),
        )
    };
    match pid {
        -1 => -io::Error::last_os_error().raw_os_error().unwrap_or(-1),
        pid => pid,
    }
}

/// What vfork(2) does: the caller, a thread, stands still until the child exits.
fn vfork() -> i32 {
    BORN.store(0, Ordering::Relaxed);
    thread::spawn(|| sleeper_with_our_memory(libc::CLONE_VFORK | libc::SIGCHLD));
    loop {
        match BORN.load(Ordering::Acquire) {
            0 => thread::yield_now(),
            pid => return pid,
        }
    }
}

/// cat(1), which reads until the agent ends.
fn cat() -> Command {
    let mut cat = Command::new("cat");
    let lifeline = LIFELINE.0.as_fd().try_clone_to_owned();
    cat.stdin(lifeline.expect("a descriptor"));
    cat
}

/// posix_spawn(3), which std calls where nothing is to be done between fork and exec.
fn spawn() -> i32 {
    cat().spawn().expect("cat").id().cast_signed()
}

/// A child that outlives the agent.
fn alone() -> i32 {
    let sleep = Command::new("sleep")
        .arg("1000")
        .stdout(Stdio::null())
        .spawn();
    sleep.expect("sleep").id().cast_signed()
}

/// A grandchild whose parent exits.
fn orphan() -> i32 {
    let (told, tell) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    match fork(0, None) {
        0 => {
            let pid = sleeper(0, None);
            let _ = write(&tell, &pid.to_ne_bytes());
            // SAFETY: ends the process.
            unsafe { libc::_exit(0) }
        }
        child => {
            let mut pid = [0; 4];
            read(&told, &mut pid).expect("a PID");
            let _ = waitpid(Pid::from_raw(child), WaitOptions::empty());
            i32::from_ne_bytes(pid)
        }
    }
}

fn in_thread(act: fn() -> i32) -> i32 {
    thread::spawn(act).join().expect("a thread")
}

/// A child whose second thread calls execve(2): its leader is replaced.
fn child_execs_in_thread() -> i32 {
    match fork(0, None) {
        0 => {
            close_ours();
            thread::spawn(|| panic!("exec: {}", cat().exec()));
            loop {
                thread::park();
            }
        }
        pid => pid,
    }
}

/// Many children at once.
fn herd(size: i32) -> i32 {
    (0..size)
        .map(|_| sleeper(0, None))
        .find(|pid| *pid < 0)
        .unwrap_or(0)
}

fn agent_lives() -> bool {
    let mut fds = [PollFd::new(&LIFELINE.0, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())) == Ok(0)
}

/// A line of processes, each the child of the one before, which exits: never twice the same.
fn hop() -> i32 {
    match fork(0, None) {
        0 => {
            close_ours();
            while agent_lives() {
                match fork(0, None) {
                    0 => {}
                    // Out of PIDs for a moment.
                    error if error < 0 => {}
                    // SAFETY: ends the process.
                    _ => unsafe { libc::_exit(0) },
                }
            }
            // SAFETY: as above.
            unsafe { libc::_exit(0) }
        }
        pid => pid,
    }
}

/// A line of threads, each started by the one before, which exits.
fn thread_hop() {
    while thread::Builder::new()
        .stack_size(64 << 10)
        .spawn(thread_hop)
        .is_err()
    {
        thread::yield_now();
    }
}

/// A child that replaces its leader by exec from another thread, and the next one again.
fn exec_in_threads() -> i32 {
    match fork(0, None) {
        0 => {
            close_ours();
            // Reads the end of the agent where the others have their lifeline.
            // SAFETY: duplicates a descriptor of ours.
            unsafe { libc::dup2(LIFELINE.0.as_raw_fd(), 0) };
            exec_again()
        }
        pid => pid,
    }
}

/// `live again`: the next life of [`exec_in_threads`].
pub fn exec_again() -> ! {
    let stdin = io::stdin();
    let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
    if poll(&mut fds, Some(&Timespec::default())) != Ok(0) {
        std::process::exit(0);
    }
    thread::spawn(|| panic!("exec: {}", this_binary().arg("again").exec()));
    loop {
        thread::park();
    }
}

fn setns(path: &str) -> i32 {
    let namespace = File::open(path).expect("a namespace");
    // SAFETY: a descriptor of ours.
    errno(unsafe { libc::setns(namespace.as_raw_fd(), 0) })
}

/// Becomes the tracer of a process, and lets it go on.
fn trace(pid: i32) -> i32 {
    let none = std::ptr::null_mut::<c_void>();
    // SAFETY: requests without an address.
    if unsafe { libc::ptrace(libc::PTRACE_ATTACH, pid, none, none) } < 0 {
        return io::Error::last_os_error().raw_os_error().unwrap_or(-1);
    }
    // SAFETY: waits for a process, and wants no status of it.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) };
    // SAFETY: as above.
    match unsafe { libc::ptrace(libc::PTRACE_CONT, pid, none, none) } {
        0 => 0,
        _ => io::Error::last_os_error().raw_os_error().unwrap_or(-1),
    }
}
