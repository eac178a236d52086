// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! A process that does what it is told: this binary again, as `live agent`. It takes commands on
//! stdin, one a line, and answers each with a number, an errno where something can fail.

use std::fs::{self, File};
use std::io::{self, BufRead, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::helpers::{self, eventually};
use crate::{doors, kin, sys};

/// An agent that runs until it is dropped.
pub struct Agent {
    child: Child,
    answers: io::BufReader<std::process::ChildStdout>,
    pub pid: i32,
}

impl Agent {
    pub fn start() -> Self {
        Self::with(|_| {})
    }

    pub fn at_nice(nice: i32) -> Self {
        let agent = Self::start();
        helpers::accepts(agent.pid, nice);
        agent
    }

    /// Starts an agent as `change` wants it: with another user, in a process group.
    pub fn with(change: impl FnOnce(&mut Command)) -> Self {
        let mut command = this_binary();
        change(command.arg("agent"));
        Self::spawn(command)
    }

    /// Starts an agent as a grandchild, by a program such as unshare(1) that forks first.
    pub fn forked_by(wrapper: &[&str]) -> Self {
        let mut command = Command::new(wrapper[0]);
        command
            .args(&wrapper[1..])
            .arg(this_binary().get_program())
            .arg("agent");
        let mut agent = Self::spawn(command);
        agent.pid = helpers::child_of(agent.pid);
        agent
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let answers = io::BufReader::new(child.stdout.take().expect("a pipe"));
        let pid = i32::try_from(child.id()).expect("a PID");
        let mut agent = Self {
            child,
            answers,
            pid,
        };
        assert_eq!(agent.answer(), READY, "of a new agent");
        agent
    }

    /// Gives a command, and returns the answer.
    pub fn ask(&mut self, command: &str) -> i32 {
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        writeln!(stdin, "{command}").unwrap_or_else(|error| panic!("agent, {command}: {error}"));
        self.answer()
    }

    fn answer(&mut self) -> i32 {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("an answer");
        line.trim()
            .parse()
            .unwrap_or_else(|_| panic!("the agent answered {line:?}"))
    }

    /// Makes the agent call something that gives an errno.
    pub fn call(&mut self, command: &str) -> Result<(), Errno> {
        match self.ask(command) {
            0 => Ok(()),
            errno => Err(Errno::from_raw_os_error(errno)),
        }
    }

    /// Makes a process as `command` says, and returns its PID.
    #[track_caller]
    pub fn child(&mut self, command: &str) -> i32 {
        let pid = self.ask(command);
        assert!(pid > 0, "the agent's {command} failed: errno {}", -pid);
        pid
    }

    /// Starts a thread, and returns its TID.
    pub fn thread(&mut self) -> i32 {
        self.ask("thread")
    }

    /// Names a thread of the agent.
    pub fn name(&mut self, tid: i32, name: &[u8]) {
        let name = sys::to_hex(name);
        assert_eq!(self.call(&format!("name {tid} {name}")), Ok(()));
    }

    /// Makes another thread than the leader call execve(2).
    pub fn exec(&mut self) {
        assert_eq!(self.ask("exec"), READY, "of an agent after exec");
    }

    /// Lets the agent exit, and reaps it.
    pub fn quit(self) {}
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let ended = eventually(|| self.child.try_wait().ok().flatten()).is_some();
        if !ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        assert!(ended || thread::panicking(), "an agent is stuck");
    }
}

/// By its path, so that the process has its name.
pub fn this_binary() -> Command {
    Command::new(std::env::current_exe().expect("the path of live"))
}

/// What an agent says when it waits for its first command.
const READY: i32 = 1_000_000;

/// Obeys one command, and answers.
pub fn act(command: &str) -> ! {
    obey(command.as_bytes());
    std::process::exit(0)
}

/// The life of an agent.
pub fn serve() -> ! {
    answer(READY);
    obey(commands());
    // Without exit handlers: the leader may be gone.
    // SAFETY: ends the process.
    unsafe { libc::_exit(0) }
}

/// Not std's stdin: a thread that exits keeps the lock on it.
fn commands() -> impl BufRead {
    let stdin = io::stdin().as_fd().try_clone_to_owned();
    io::BufReader::new(File::from(stdin.expect("a stdin")))
}

fn obey(commands: impl BufRead) {
    for line in commands.lines() {
        let line = line.expect("a command");
        let words: Vec<_> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<i32>().expect("a number");
        answer(match words[0] {
            "setpriority" => {
                let (which, who) = (number(1), number(2));
                // SAFETY: takes numbers, returns a number.
                errno(unsafe {
                    libc::setpriority(which.cast_unsigned(), who.cast_unsigned(), number(3))
                })
            }
            "nice" => nice(number(1)),
            #[cfg(target_arch = "x86_64")]
            "nice32" => nice32(number(1)),
            "thread" => start_thread(),
            "clone" => clone_as(number(1)).map_or_else(Errno::raw_os_error, |_| 0),
            // the name of a thread, in hex as it may be any bytes
            "name" => match fs::write(
                format!("/proc/self/task/{}/comm", number(1)),
                sys::from_hex(words[2]),
            ) {
                Ok(()) => 0,
                Err(error) => error.raw_os_error().unwrap_or(-1),
            },
            // SAFETY: a disposition of the kernel's own.
            "no-zombies" => errno(unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) } as i32),
            "exec" => exec_in_thread(),
            "leave" => leave(),
            _ => doors::obey(&words).unwrap_or_else(|| kin::obey(&words)),
        });
    }
}

fn answer(number: i32) {
    let mut out = io::stdout().lock();
    writeln!(out, "{number}").expect("somebody who listens");
}

pub fn errno(returned: i32) -> i32 {
    match returned {
        -1 => io::Error::last_os_error().raw_os_error().unwrap_or(-1),
        _ => 0,
    }
}

/// nice(3), which glibc makes of getpriority(2) and setpriority(2).
fn nice(increment: i32) -> i32 {
    // SAFETY: the errno of this thread; -1 is a valid answer of nice(3).
    unsafe { *libc::__errno_location() = 0 };
    // SAFETY: takes a number, returns a number.
    let value = unsafe { libc::nice(increment) };
    if value == -1 {
        return io::Error::last_os_error().raw_os_error().unwrap_or(-1);
    }
    0
}

/// nice(2) itself, which 32-bit programs alone can call on x86-64.
#[cfg(target_arch = "x86_64")]
fn nice32(increment: i32) -> i32 {
    const NR_NICE: i32 = 34;
    let returned: i32;
    // SAFETY: a system call that takes a number and touches no memory; rbx, which the compiler
    // keeps for itself, is given back.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {increment}",
            "int 0x80",
            "xchg rbx, {increment}",
            increment = inout(reg) i64::from(increment) => _,
            inlateout("eax") NR_NICE => returned,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    -returned
}

fn start_thread() -> i32 {
    let (send, receive) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let _ = send.send(rustix::thread::gettid().as_raw_pid());
        loop {
            thread::park();
        }
    });
    receive.recv().expect("a TID")
}

fn exec_in_thread() -> ! {
    thread::spawn(|| {
        let error = this_binary().arg("agent").exec();
        panic!("exec: {error}");
    });
    loop {
        thread::park();
    }
}

/// The leader exits, another thread goes on: /proc shows a zombie that runs.
fn leave() -> ! {
    thread::spawn(|| {
        answer(0);
        obey(commands());
        // SAFETY: ends the process.
        unsafe { libc::_exit(0) }
    });
    // SAFETY: ends this thread alone. Its stack stays, as that of the leader.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!()
}

/// A child that has this very PID, in the caller's PID namespace.
pub fn clone_as(pid: i32) -> Result<Pid, Errno> {
    // SAFETY: all zeroes is a valid clone_args.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.exit_signal = libc::SIGCHLD.cast_unsigned().into();
    args.set_tid = (&raw const pid).addr() as u64;
    args.set_tid_size = 1;
    // SAFETY: like fork(2), with arguments that live; the child makes system calls alone.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) } {
        0 => loop {
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
        },
        pid => i32::try_from(pid)
            .ok()
            .and_then(|pid| Pid::from_raw(pid).filter(|_| pid > 0))
            .ok_or_else(|| {
                Errno::from_io_error(&io::Error::last_os_error()).expect("an errno of clone3")
            }),
    }
}

/// A child of this process that has the PID of one that was reaped.
pub struct Successor {
    pid: Pid,
}

impl Successor {
    pub fn of(pid: i32) -> Self {
        match clone_as(pid) {
            Ok(pid) => Self { pid },
            Err(error) => panic!("clone3 with set_tid {pid}: {error}"),
        }
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        let _ = kill_process(self.pid, Signal::KILL);
        let _ = waitpid(Some(self.pid), WaitOptions::empty());
    }
}
