// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The process that is guarded, and the wait for its end.

use std::fmt;
use std::fs;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, getpid, getpriority_process, pidfd_open};

use crate::output::{Failure, printable};

/// A running process. The pidfd stands for the process, whatever becomes of its number.
pub struct Target {
    pub pid: Pid,
    pidfd: OwnedFd,
    name: String,
}

/// Why [`Target::wait`] came back.
pub enum Ended {
    Exited,
    Stopped,
}

impl Target {
    /// Opens the process `pid`, or lsm-nice itself.
    pub fn open(pid: Option<i32>) -> Result<Self> {
        let own = getpid();
        let pid = pid.and_then(Pid::from_raw).unwrap_or(own);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| not_opened(pid, error))?;
        let comm = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        let target = Self {
            pid,
            pidfd,
            name: if pid == own {
                format!("lsm-nice itself, process {pid}")
            } else {
                format!("process {pid} ({})", printable(comm.trim_ascii_end()))
            },
        };
        target.must_run()?;
        Ok(target)
    }

    /// Fails where the process has exited: what was learned by its number may be another's.
    pub fn must_run(&self) -> Result<()> {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let now = Timespec::default();
        if poll(&mut fds, Some(&now)).context("cannot poll a pidfd")? > 0 {
            return Err(no_such_process(self.pid).into());
        }
        Ok(())
    }

    /// The lowest nice value among the threads of the process.
    pub fn lowest_nice(&self) -> Option<i32> {
        fs::read_dir(format!("/proc/{}/task", self.pid))
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(|tid| getpriority_process(Pid::from_raw(tid)).ok())
            .min()
    }

    /// Blocks until the process has exited or `stop` is written.
    pub fn wait(&self, stop: &OwnedFd) -> Result<Ended> {
        let mut fds = [
            PollFd::new(&self.pidfd, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        loop {
            match poll(&mut fds, None) {
                Err(Errno::INTR) => continue,
                result => result.context("cannot wait for the end of the guard")?,
            };
            if !fds[1].revents().is_empty() {
                return Ok(Ended::Stopped);
            }
            if !fds[0].revents().is_empty() {
                return Ok(Ended::Exited);
            }
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Says why pidfd_open(2) failed; it takes the PID of a process, not of a mere thread.
fn not_opened(pid: Pid, error: Errno) -> anyhow::Error {
    let process = fs::read_to_string(format!("/proc/{pid}/status"))
        .ok()
        .and_then(|status| tgid(&status));
    match process {
        Some(process) if process != pid.as_raw_pid() => Failure::new(
            format!("{pid} is a thread of process {process}; a guard takes whole processes"),
            format!("lsm-nice --pid {process}"),
        )
        .into(),
        _ if error == Errno::SRCH => no_such_process(pid).into(),
        _ => anyhow::Error::new(error).context(format!("cannot open process {pid}")),
    }
}

fn no_such_process(pid: Pid) -> Failure {
    Failure::new(
        format!("there is no running process {pid}"),
        "name one that `ps -e` shows, in the PID namespace in which lsm-nice runs",
    )
}

fn tgid(status: &str) -> Option<i32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    line.trim().parse().ok()
}

/// Fails where /proc shows another PID namespace than the one that --pid is read in.
pub fn proc_is_ours() -> Result<()> {
    let own = fs::read_link("/proc/self").ok();
    if own.as_deref().and_then(|own| own.to_str()) == Some(&getpid().to_string()) {
        return Ok(());
    }
    Err(Failure::new(
        "/proc does not show the PID namespace in which lsm-nice runs",
        "mount -t proc proc /proc (with unshare: --mount-proc)",
    )
    .into())
}

/// Readable once SIGINT, SIGTERM or SIGHUP came. A SIGHUP that nohup(1) ignores stays ignored.
pub fn stop_signal() -> Result<OwnedFd> {
    let stop = eventfd(0, EventfdFlags::CLOEXEC).context("cannot make an eventfd")?;
    let fd = stop.try_clone().context("cannot duplicate an eventfd")?;
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
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_of_a_thread_is_read_from_its_status() {
        assert_eq!(tgid("Name:\tx\nTgid:\t42\nNgid:\t0\n"), Some(42));
        assert_eq!(tgid("Name:\tTgid: 1\n"), None);
    }
}
