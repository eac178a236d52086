// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! What happens while a guard stands: events, summaries, and what ends it: a signal, the last guarded
//! process, the cgroup.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::process::{Pid, getpid};

use crate::cgroup::Cgroup;
use crate::command::{self, Command};
use crate::events::Events;
use crate::guard::{Guard, counters, walked};
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
    /// Readable when SIGUSR1 came.
    asked: OwnedFd,
}

/// How long events gather while there are many.
const GATHER: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 5_000_000,
};

impl<'a> Watch<'a> {
    pub fn new(
        targets: &'a [Target],
        cgroup: Option<&'a Cgroup>,
        command: Option<&Command>,
        asked: OwnedFd,
    ) -> Result<Self> {
        let stop = match command {
            Some(command) => {
                let stop = new_eventfd()?;
                command.forward_signals(&stop)?;
                stop
            }
            None => stop_by_signal()?,
        };
        Ok(Self {
            targets,
            cgroup,
            command: command
                .and_then(|command| targets.iter().find(|target| target.pid == command.pid)),
            stop,
            asked,
        })
    }

    /// Blocks until nothing is left to guard, or a signal came.
    ///
    /// It waits for one guarded process at a time, the oldest as it is likely to last, and asks the
    /// kernel for another when that has exited.
    pub fn wait(&self, guard: &mut Guard<'_>, events: &mut Option<Events>) -> Result<Ended> {
        let (mut cgroup, mut command) = (self.cgroup, self.command);
        loop {
            if let Some(running) = command
                && running.has_exited()?
            {
                command::has_exited();
                command = None;
            }
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
            let ends = [
                Some(self.stop.as_fd()),
                process.as_ref().map(AsFd::as_fd),
                cgroup.map(|cgroup| cgroup.removals.as_fd()),
                command.map(AsFd::as_fd),
            ];
            self.report(guard, events, &Vec::from_iter(ends.into_iter().flatten()))?;
            if rustix::io::read(&self.stop, &mut [0; 8]).is_ok() {
                return Ok(Ended::Stopped);
            }
        }
    }

    /// Prints events and summaries until one of `ends` is readable.
    fn report(
        &self,
        guard: &mut Guard<'_>,
        events: &mut Option<Events>,
        ends: &[BorrowedFd<'_>],
    ) -> Result<()> {
        while let Err(error) = print_until(ends, &self.asked, events, |events| {
            Ok(summary(&guard.counters()?, guard.audit, events))
        })? {
            status!("warning: events end here, the guard stands: stdout: {error}");
            guard.report_no_more()?;
            if let Some(events) = events {
                events.close();
            }
        }
        Ok(())
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

/// Prints events, and on SIGUSR1 what `so_far` says, until one of `ends` is readable, or stdout
/// takes no more.
pub fn print_until(
    ends: &[BorrowedFd<'_>],
    asked: &OwnedFd,
    events: &mut Option<Events>,
    mut so_far: impl FnMut(Option<&Events>) -> Result<String>,
) -> Result<Result<(), Errno>> {
    let mut gather = false;
    loop {
        let mut fds: Vec<_> = ends
            .iter()
            .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
            .collect();
        fds.push(PollFd::new(asked, PollFlags::IN));
        match events.as_ref() {
            Some(events) if events.is_blocked() => {
                fds.push(PollFd::from_borrowed_fd(events.output(), PollFlags::OUT));
            }
            Some(events) if !gather => {
                fds.push(PollFd::from_borrowed_fd(events.ring(), PollFlags::IN));
            }
            _ => {}
        }
        match poll(&mut fds, gather.then_some(&GATHER)) {
            Err(Errno::INTR) => continue,
            result => result.context("cannot wait for the end of the guard")?,
        };
        if fds[..ends.len()].iter().any(|fd| !fd.revents().is_empty()) {
            return Ok(Ok(()));
        }
        if !fds[ends.len()].revents().is_empty() {
            let mut info = [0; size_of::<libc::signalfd_siginfo>()];
            let _ = rustix::io::read(asked, &mut info);
            status!("so far: {}", so_far(events.as_ref())?);
        }
        gather = match events {
            Some(open) => match open.print() {
                Ok(printed) => printed && !open.is_blocked(),
                Err(error) => return Ok(Err(error)),
            },
            None => false,
        };
    }
}

/// What a guard did, in a line.
pub fn summary(counters: &counters, audit: bool, events: Option<&Events>) -> String {
    let lost = counters.lost + events.map_or(0, Events::undelivered);
    let mut words = match audit {
        false => format!("{} refused", counters.denied),
        true => format!("{} would have been refused", counters.audited),
    };
    if counters.allowed > 0 {
        words += &format!(", {} allowed", counters.allowed);
    }
    if lost > 0 {
        words += &format!(", {lost} events lost");
    }
    words
}

/// Makes SIGUSR1 readable, which else would end lsm-nice. Threads that are started later inherit it.
pub fn asked_by_signal() -> Result<OwnedFd> {
    // SAFETY: the set is filled before it is used, and a descriptor that is not -1 is new.
    let fd = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGUSR1);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    };
    fd.context("cannot receive SIGUSR1")
}

fn duplicate(target: &Target) -> Result<OwnedFd> {
    target
        .as_fd()
        .try_clone_to_owned()
        .context("cannot duplicate a pidfd")
}

fn new_eventfd() -> Result<OwnedFd> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("cannot make an eventfd")
}

/// Readable after SIGINT, SIGTERM or SIGHUP. A SIGHUP that nohup(1) ignores stays ignored.
pub fn stop_by_signal() -> Result<OwnedFd> {
    let stopped = new_eventfd()?;
    let stop = File::from(stopped.try_clone().context("cannot duplicate an eventfd")?);
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
    Ok(stopped)
}
