// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The processes that are guarded.

use std::fmt;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

use crate::output::{Failure, printable};

/// A running process. The pidfd stands for the process, whatever becomes of its number.
pub struct Target {
    pub pid: Pid,
    pidfd: OwnedFd,
    name: String,
}

impl Target {
    pub fn open(pid: Pid) -> Result<Self> {
        Self::open_as(pid, name(pid))
    }

    /// Opens the process that is going to execute `word`.
    pub fn named(pid: Pid, word: &str) -> Result<Self> {
        Self::open_as(pid, format!("process {pid} ({word})"))
    }

    fn open_as(pid: Pid, name: String) -> Result<Self> {
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| not_opened(pid, error))?;
        let target = Self { pid, pidfd, name };
        target.must_run()?;
        Ok(target)
    }

    /// Fails where the process has exited: what was learned by its number may be another's.
    pub fn must_run(&self) -> Result<()> {
        if self.has_exited()? {
            return Err(no_such_process(self.pid).into());
        }
        Ok(())
    }

    pub fn has_exited(&self) -> Result<bool> {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let now = Timespec::default();
        Ok(poll(&mut fds, Some(&now)).context("cannot poll a pidfd")? > 0)
    }
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// How a process is called in messages.
pub fn name(pid: Pid) -> String {
    if pid == getpid() {
        return format!("lsm-nice itself, process {pid}");
    }
    match fs::read(format!("/proc/{pid}/comm")) {
        Ok(comm) => format!("process {pid} ({})", printable(comm.trim_ascii_end())),
        Err(_) => format!("process {pid}"),
    }
}

/// The threads of a process.
pub fn threads(pid: Pid) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw)
        .collect()
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

pub fn no_such_process(pid: Pid) -> Failure {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_of_a_thread_is_read_from_its_status() {
        assert_eq!(tgid("Name:\tx\nTgid:\t42\nNgid:\t0\n"), Some(42));
        assert_eq!(tgid("Name:\tTgid: 1\n"), None);
    }
}
