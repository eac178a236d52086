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
    /// Where the PID of each child comes from that is ready.
    answer: OwnedFd,
}

impl Child {
    pub fn spawn() -> Result<Self> {
        let (asked, ask) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
        let (answer, say) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
        if let Some(pid) = fork().context("cannot start a child for the trial")? {
            let child = Self {
                pid,
                ask: Some(ask),
                answer,
            };
            drop(say);
            child.answer()?;
            return Ok(child);
        }
        drop(ask);
        // an autogroup of its own, which the trial of that door changes, before lsm-nice goes on
        let _ = rustix::process::setsid();
        tell_pid(&say);
        while let Ok(1) | Err(Errno::INTR) = read(&asked, &mut [0u8]) {
            if let Ok(None) = fork() {
                tell_pid(&say);
                while let Err(Errno::INTR) = read(&asked, &mut [0u8]) {}
                exit();
            }
        }
        while rustix::process::wait(WaitOptions::empty()).is_ok() {}
        exit()
    }

    /// Makes the child fork, and returns the PID of its child.
    pub fn fork(&self) -> Result<Pid> {
        let ask = self
            .ask
            .as_ref()
            .context("the child for the trial is gone")?;
        write(ask, b"f").context("the child for the trial is gone")?;
        self.answer()
    }

    fn answer(&self) -> Result<Pid> {
        let mut pid = [0; size_of::<i32>()];
        while let Err(Errno::INTR) = read(&self.answer, &mut pid) {}
        Pid::from_raw(i32::from_ne_bytes(pid)).context("a child for the trial could not be started")
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

fn tell_pid(say: &OwnedFd) {
    let _ = write(say, &getpid().as_raw_pid().to_ne_bytes());
}

/// Ends a child at once, with none of the exit handlers of lsm-nice.
fn exit() -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(0) }
}
