// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! COMMAND: started first, held until the guard stands, then executed.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

use anyhow::{Context, Result};
use rustix::io::{Errno, read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::trial::fork;

/// Exit statuses as env(1) and timeout(1) have them.
pub const FAILED: u8 = 125;
const CANNOT_EXECUTE: u8 = 126;
const NOT_FOUND: u8 = 127;
const KILLED: i32 = 128;

pub struct Command {
    pub pid: Pid,
    /// A byte here lets the child go on to its exec. It exits where the last writer is gone.
    go: OwnedFd,
    /// The errno of an exec that failed; closed by one that did not.
    failed: OwnedFd,
}

impl Command {
    /// Forks the child before anything of lsm-nice changes what it inherits.
    pub fn hold(words: &[OsString]) -> Result<Self> {
        let words = words
            .iter()
            .map(|word| CString::new(word.clone().into_vec()))
            .collect::<Result<Vec<_>, _>>()
            .context("COMMAND has a NUL byte")?;
        let (wait, go) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
        let (failed, fail) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
        let mut argv: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
        argv.push(ptr::null());
        if let Some(pid) = fork().context("cannot start COMMAND")? {
            // SAFETY: a disposition of the kernel's own. Where it came ignored, the kernel would keep
            // no status of COMMAND, and its PID could be another's when a signal is handed on.
            unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
            return Ok(Self { pid, go, failed });
        }
        drop(go);
        let mut byte = [0];
        while let Err(Errno::INTR) = read(&wait, &mut byte) {}
        if byte != [0] {
            // SAFETY: argv ends with a null pointer and outlives the call; nothing here uses the
            // descriptors that are closed.
            unsafe {
                for (signal, action) in &IGNORED {
                    libc::signal(*signal, action.load(Ordering::Relaxed));
                }
                for (fd, closed) in (0..).zip(&CLOSED) {
                    if closed.load(Ordering::Relaxed) {
                        libc::close(fd);
                    }
                }
                libc::execvp(argv[0], argv.as_ptr());
            }
            let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
            let _ = write(&fail, &errno.to_ne_bytes());
        }
        // SAFETY: ends the child, with none of the exit handlers of lsm-nice.
        unsafe { libc::_exit(FAILED.into()) }
    }

    /// Lets the child execute COMMAND. An exec that fails is an error and the exit status for it.
    pub fn execute(&self) -> Result<(), (ExitCode, io::Error)> {
        let mut errno = [0; size_of::<i32>()];
        // a child that a signal has ended by now says so in its status
        let _ = write(&self.go, b"g");
        let told = loop {
            match read(&self.failed, &mut errno) {
                Err(Errno::INTR) => {}
                result => break result.is_ok_and(|length| length == errno.len()),
            }
        };
        if !told {
            return Ok(());
        }
        let error = io::Error::from_raw_os_error(i32::from_ne_bytes(errno));
        let status = match error.kind() {
            io::ErrorKind::NotFound => NOT_FOUND,
            _ => CANNOT_EXECUTE,
        };
        Err((ExitCode::from(status), error))
    }

    /// The exit status of COMMAND, which has exited.
    pub fn status(&self) -> Result<ExitCode> {
        let status = loop {
            match waitpid(Some(self.pid), WaitOptions::empty()) {
                Err(Errno::INTR) => {}
                result => break result.context("cannot wait for COMMAND")?,
            }
        };
        let code = status.and_then(|(_, status)| {
            status
                .exit_status()
                .or_else(|| status.terminating_signal().map(|signal| KILLED + signal))
        });
        Ok(code
            .and_then(|code| u8::try_from(code).ok())
            .map_or(ExitCode::FAILURE, ExitCode::from))
    }

    /// Hands on to COMMAND the signals that lsm-nice is sent while it runs, and writes `stop` for
    /// those that come later. What the terminal sends reaches the whole foreground process group,
    /// COMMAND too, and is not repeated.
    pub fn forward_signals(&self, stop: &OwnedFd) -> Result<()> {
        COMMAND.store(self.pid.as_raw_pid(), Ordering::Relaxed);
        STOP.store(stop.as_raw_fd(), Ordering::Relaxed);
        for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGHUP] {
            // SAFETY: zero is a valid sigaction, and the handler makes system calls alone.
            let result = unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = forward as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
                let mut old: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, ptr::null(), &mut old);
                if old.sa_sigaction == libc::SIG_IGN {
                    continue;
                }
                libc::sigaction(signal, &action, ptr::null_mut())
            };
            if result < 0 {
                return Err(io::Error::last_os_error()).context("cannot handle signals");
            }
        }
        Ok(())
    }
}

/// Signals for writes that fail, which lsm-nice ignores, and what was to become of them before: a
/// reader that is gone and a file that may not grow are errors, and the guard stands.
static IGNORED: [(libc::c_int, AtomicUsize); 2] = [
    (libc::SIGPIPE, AtomicUsize::new(libc::SIG_DFL)),
    (libc::SIGXFSZ, AtomicUsize::new(libc::SIG_DFL)),
];

/// Which of the standard descriptors were closed, before the Rust runtime opened /dev/null there.
static CLOSED: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];

/// Called before the runtime starts.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;

extern "C" fn before_main() {
    for (signal, action) in &IGNORED {
        // SAFETY: a disposition of the kernel's own.
        let old = unsafe { libc::signal(*signal, libc::SIG_IGN) };
        action.store(old, Ordering::Relaxed);
    }
    for (fd, closed) in (0..).zip(&CLOSED) {
        // SAFETY: takes numbers.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        closed.store(flags < 0, Ordering::Relaxed);
    }
}

static COMMAND: AtomicI32 = AtomicI32::new(0);
static STOP: AtomicI32 = AtomicI32::new(-1);
/// COMMAND has exited, and not by a signal of the terminal that lsm-nice has still to handle.
static HAS_EXITED: AtomicBool = AtomicBool::new(false);

/// What the terminal sends from now on is for lsm-nice.
pub fn has_exited() {
    HAS_EXITED.store(true, Ordering::Relaxed);
}

extern "C" fn forward(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo; all calls are system calls alone; errno is put back
    // for what was interrupted.
    unsafe {
        let errno = *libc::__errno_location();
        let command = COMMAND.load(Ordering::Relaxed);
        let sent_by_a_process = (*info).si_code <= 0;
        // a terminal that goes away tells the leader of its session alone
        let hung_up = signal == libc::SIGHUP && libc::getsid(0) == libc::getpid();
        let sent_here = sent_by_a_process || hung_up;
        let mut exited: libc::siginfo_t = std::mem::zeroed();
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        let known = libc::waitid(libc::P_PID, command.cast_unsigned(), &mut exited, options);
        if known == 0 && exited.si_pid() == 0 {
            if sent_here {
                libc::kill(command, signal);
            }
        } else if sent_here || HAS_EXITED.load(Ordering::Relaxed) {
            let one = 1u64.to_ne_bytes();
            libc::write(STOP.load(Ordering::Relaxed), one.as_ptr().cast(), one.len());
        }
        *libc::__errno_location() = errno;
    }
}
