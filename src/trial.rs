// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The child that a guard proves itself on: it sleeps while lsm-nice sets its nice value.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

pub struct Child {
    pub pid: Pid,
    /// The child lives until the last writer of its pipe is gone, so it cannot outlive lsm-nice.
    _hold: OwnedFd,
}

impl Child {
    pub fn spawn() -> Result<Self> {
        let (read, hold) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
        // SAFETY: lsm-nice has a single thread yet, and the child makes system calls alone.
        match unsafe { libc::fork() } {
            0 => {
                drop(hold);
                while rustix::io::read(&read, &mut [0u8; 1]) == Err(Errno::INTR) {}
                // SAFETY: ends the child at once, with none of the parent's exit handlers.
                unsafe { libc::_exit(0) }
            }
            pid => Ok(Self {
                pid: Pid::from_raw(pid)
                    .filter(|_| pid > 0)
                    .ok_or_else(std::io::Error::last_os_error)
                    .context("cannot start a child for the trial")?,
                _hold: hold,
            }),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = kill_process(self.pid, Signal::KILL);
        let _ = waitpid(Some(self.pid), WaitOptions::empty());
    }
}
