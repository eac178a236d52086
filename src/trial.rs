// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The child that a guard proves itself on: it sleeps while lsm-nice sets its nice value.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::io::{Errno, read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, getpid, waitpid};

pub struct Child {
    pub pid: Pid,
    /// A byte here makes the child fork. It lives until the last writer is gone, so it cannot
    /// outlive lsm-nice.
    ask: Option<OwnedFd>,
    /// Where the PID of a grandchild comes from.
    answer: OwnedFd,
}

impl Child {
    pub fn spawn() -> Result<Self> {
        let (asked, ask) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
        let (answer, say) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
        match fork().context("cannot start a child for the trial")? {
            None => {
                drop(ask);
                // an autogroup of its own, which the trial of that door may change
                let _ = rustix::process::setsid();
                while let Ok(1) | Err(Errno::INTR) = read(&asked, &mut [0u8]) {
                    if let Ok(None) = fork() {
                        let pid = getpid().as_raw_pid();
                        let _ = write(&say, &pid.to_ne_bytes());
                        while let Err(Errno::INTR) = read(&asked, &mut [0u8]) {}
                        exit();
                    }
                }
                while rustix::process::wait(WaitOptions::empty()).is_ok() {}
                exit()
            }
            Some(pid) => Ok(Self {
                pid,
                ask: Some(ask),
                answer,
            }),
        }
    }

    /// Makes the child fork, and returns the PID of its child.
    pub fn fork(&self) -> Result<Pid> {
        let mut pid = [0; size_of::<i32>()];
        self.ask
            .as_ref()
            .and_then(|ask| write(ask, b"f").ok())
            .and_then(|_| read(&self.answer, &mut pid).ok())
            .and_then(|_| Pid::from_raw(i32::from_ne_bytes(pid)))
            .context("the child for the trial cannot start another")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.ask = None;
        let _ = waitpid(Some(self.pid), WaitOptions::empty());
    }
}

/// fork(2): the PID of the child, or None in it. Only for children that then make system calls
/// alone, and while lsm-nice has a single thread.
pub fn fork() -> std::io::Result<Option<Pid>> {
    // SAFETY: as above.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// Ends a child at once, with none of the exit handlers of lsm-nice.
fn exit() -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(0) }
}
