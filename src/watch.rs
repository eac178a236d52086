// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! What ends a guard: a signal, the last guarded process, the cgroup.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::process::{Pid, getpid};

use crate::cgroup::Cgroup;
use crate::command::Command;
use crate::guard::{Guard, walked};
use crate::output::status;
use crate::target::Target;

pub enum Ended {
    Stopped,
    Exited,
    Gone,
}

pub struct Watch<'a> {
    targets: &'a [Target],
    cgroup: Option<&'a Cgroup>,
    command: Option<&'a Target>,
    /// Written by each signal that would end lsm-nice.
    stop: OwnedFd,
}

impl<'a> Watch<'a> {
    pub fn new(
        targets: &'a [Target],
        cgroup: Option<&'a Cgroup>,
        command: Option<&Command>,
    ) -> Result<Self> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .context("cannot make an eventfd")?;
        match command {
            Some(command) => command.forward_signals(&stop)?,
            None => stop_on_signals(&stop)?,
        }
        Ok(Self {
            targets,
            cgroup,
            command: command
                .and_then(|command| targets.iter().find(|target| target.pid == command.pid)),
            stop,
        })
    }

    /// Blocks until nothing is left to guard, or a signal came.
    ///
    /// It waits for one guarded process at a time, the oldest as it is likely to last, and asks the
    /// kernel for another when that has exited.
    pub fn wait(&self, guard: &mut Guard<'_>) -> Result<Ended> {
        let mut cgroup = self.cgroup;
        loop {
            let process = self.running(guard)?;
            if let Some(gone) = cgroup.take_if(|cgroup| cgroup.is_gone())
                && process.is_some()
            {
                status!("cgroup {} is gone", gone.path.display());
            }
            if process.is_none() && cgroup.is_none() {
                return Ok(if self.targets.is_empty() {
                    Ended::Gone
                } else {
                    Ended::Exited
                });
            }
            let mut fds = vec![PollFd::new(&self.stop, PollFlags::IN)];
            fds.extend(process.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
            fds.extend(cgroup.map(|cgroup| PollFd::new(&cgroup.removals, PollFlags::IN)));
            match poll(&mut fds, None) {
                Err(Errno::INTR) => continue,
                result => result.context("cannot wait for the end of the guard")?,
            };
            if rustix::io::read(&self.stop, &mut [0; 8]).is_ok() {
                // COMMAND has had the signal; what it left running ends with the guard's end alone
                match self.command {
                    Some(command) if !command.has_exited()? => {}
                    _ => return Ok(Ended::Stopped),
                }
            }
        }
    }

    /// A guarded process that has not exited.
    ///
    /// A process that forks and exits may hide from one walk behind a PID that the walk has passed;
    /// so nobody is left where two walks found nobody, and nobody was started from before the first
    /// until after the second.
    fn running(&self, guard: &mut Guard<'_>) -> Result<Option<OwnedFd>> {
        for target in self.targets {
            if !target.has_exited()? {
                return duplicate(target).map(Some);
            }
        }
        loop {
            let inherited = guard.inherited()?;
            let first = oldest(guard)?;
            let Some(task) = first.or(oldest(guard)?) else {
                if guard.inherited()? == inherited {
                    return Ok(None);
                }
                continue;
            };
            // the PID may have been used again before it was opened
            if let Some(target) = Pid::from_raw(task.pid).and_then(|pid| Target::open(pid).ok())
                && guard
                    .guarded_tasks()?
                    .iter()
                    .any(|now| now.pid == task.pid && now.process.start == task.process.start)
            {
                return duplicate(&target).map(Some);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The guarded task that is likely to last longest. lsm-nice itself, which may be in a tree that it
/// guards, waits for the others.
fn oldest(guard: &mut Guard<'_>) -> Result<Option<walked>> {
    let own = getpid().as_raw_pid();
    let tasks = guard.guarded_tasks()?.into_iter();
    Ok(tasks
        .filter(|task| task.marked != 0 && task.pid != own)
        .min_by_key(|task| task.process.start))
}

fn duplicate(target: &Target) -> Result<OwnedFd> {
    target
        .as_fd()
        .try_clone_to_owned()
        .context("cannot duplicate a pidfd")
}

/// Makes SIGINT, SIGTERM and SIGHUP write `stop`. A SIGHUP that nohup(1) ignores stays ignored.
fn stop_on_signals(stop: &OwnedFd) -> Result<()> {
    let stop = File::from(stop.try_clone().context("cannot duplicate an eventfd")?);
    // SAFETY: signal(2) with a disposition of the kernel's own.
    let hangup = unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
    ctrlc::set_handler(move || {
        let _ = rustix::io::write(&stop, &1u64.to_ne_bytes());
    })
    .context("cannot handle signals")?;
    if hangup == libc::SIG_IGN {
        // SAFETY: as above.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    }
    Ok(())
}
