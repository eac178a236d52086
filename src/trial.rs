// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The child that a guard proves itself on: it sleeps while lsm-nice changes its priority, and makes
//! the calls that rules forbid to the caller.

use std::io;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::io::{Errno, read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    DumpableBehavior, Pid, WaitOptions, getpid, set_dumpable_behavior, wait, waitpid,
};

use crate::output::Failure;

/// What the child does when it is told: system calls alone, as it was made by fork(2).
pub type Call = fn() -> io::Result<()>;

pub struct Child {
    /// Who acts: the child, or after [`Child::fork`] its child.
    pub pid: Pid,
    first: Pid,
    /// A call here, or None to fork. The child lives until the last writer is gone, so it cannot
    /// outlive lsm-nice.
    ask: Option<OwnedFd>,
    /// Where the PID of each child comes from that is ready, and the errno of each call.
    answer: OwnedFd,
}

impl Child {
    pub fn spawn() -> Result<Self> {
        let (asked, ask) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
        let (answer, say) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
        if let Some(pid) = fork().context("cannot start a child for the trial")? {
            let mut child = Self {
                pid,
                first: pid,
                ask: Some(ask),
                answer,
            };
            drop(say);
            child.is_ready()?;
            // its number would be somebody else's here
            if child.pid != pid {
                return Err(Failure::new(
                    "what lsm-nice starts is in another PID namespace than lsm-nice",
                    "unshare --pid --fork --mount-proc lsm-nice …; nsenter without --no-fork",
                )
                .into());
            }
            return Ok(child);
        }
        drop(ask);
        // with the capabilities of its file lsm-nice is not, and what /proc has of a child is root's
        let _ = set_dumpable_behavior(DumpableBehavior::Dumpable);
        // an autogroup of its own, which the trial of that door changes, before lsm-nice goes on
        let _ = rustix::process::setsid();
        tell(&say, getpid().as_raw_pid());
        while let Ok(asked) = receive(&asked) {
            // SAFETY: sent by lsm-nice, of which this is a fork: the same code is there.
            let call =
                unsafe { std::mem::transmute::<[u8; size_of::<usize>()], Option<Call>>(asked) };
            let answer = match call {
                Some(call) => call()
                    .err()
                    .map_or(0, |error| error.raw_os_error().unwrap_or(-1)),
                None => match fork() {
                    Ok(None) => getpid().as_raw_pid(),
                    Ok(Some(_)) => break,
                    Err(_) => 0,
                },
            };
            tell(&say, answer);
        }
        while wait(WaitOptions::empty()).is_ok() {}
        exit()
    }

    /// Makes the child fork. Its child acts from then on.
    pub fn fork(&mut self) -> Result<()> {
        self.ask(None)?;
        self.is_ready()
    }

    /// Makes the child call.
    pub fn call(&self, call: Call) -> Result<io::Result<()>> {
        self.ask(Some(call))?;
        Ok(match self.answer()? {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        })
    }

    fn ask(&self, call: Option<Call>) -> Result<()> {
        let asked = call.map_or(0, |call| call as usize);
        let ask = self.ask.as_ref().context(GONE)?;
        write(ask, &asked.to_ne_bytes()).context(GONE)?;
        Ok(())
    }

    fn answer(&self) -> Result<i32> {
        receive(&self.answer).map(i32::from_ne_bytes).context(GONE)
    }

    fn is_ready(&mut self) -> Result<()> {
        let pid = Pid::from_raw(self.answer()?);
        self.pid = pid.context("a child for the trial could not be started")?;
        Ok(())
    }
}

const GONE: &str = "the child for the trial is gone";

impl Drop for Child {
    fn drop(&mut self) {
        self.ask = None;
        let _ = waitpid(Some(self.first), WaitOptions::empty());
    }
}

/// fork(2): the PID of the child, or None in it. Only for children that then make system calls
/// alone, and while lsm-nice has a single thread.
pub fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: as above.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// What was written at once, which a pipe keeps together.
fn receive<const N: usize>(pipe: &OwnedFd) -> Result<[u8; N], Errno> {
    let mut bytes = [0; N];
    loop {
        match read(pipe, &mut bytes) {
            Ok(length) if length == N => return Ok(bytes),
            Ok(_) => return Err(Errno::PIPE),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn tell(say: &OwnedFd, number: i32) {
    let _ = write(say, &number.to_ne_bytes());
}

/// Ends a child at once, with none of the exit handlers of lsm-nice.
fn exit() -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(0) }
}
