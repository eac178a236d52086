// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The processes that are guarded.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

use crate::output::{Failure, printable};

/// The inode of /proc/PID/ns/pid in the initial PID namespace (PROC_PID_INIT_INO).
pub const INITIAL_PID_NAMESPACE: u64 = 0xefff_fffc;

/// A running process. The pidfd stands for the process, whatever becomes of its number.
pub struct Target {
    pub pid: Pid,
    /// The name of its first thread, or what COMMAND is called.
    pub comm: Vec<u8>,
    pidfd: OwnedFd,
    name: String,
}

impl Target {
    pub fn open(pid: Pid) -> Result<Self> {
        Self::open_as(pid, comm(pid).unwrap_or_default(), name(pid))
    }

    /// Opens the process that is going to execute `word`.
    pub fn named(pid: Pid, word: &OsStr) -> Result<Self> {
        let file = Path::new(word).file_name().unwrap_or(word);
        let name = format!("process {pid} ({})", printable(word.as_bytes()));
        Self::open_as(pid, file.as_bytes().into(), name)
    }

    fn open_as(pid: Pid, comm: Vec<u8>, name: String) -> Result<Self> {
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| not_opened(pid, error))?;
        let target = Self {
            pid,
            comm,
            pidfd,
            name,
        };
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
        loop {
            match poll(&mut fds, Some(&now)) {
                Err(Errno::INTR) => {}
                result => return Ok(result.context("cannot poll a pidfd")? > 0),
            }
        }
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
    match comm(pid) {
        Some(comm) => format!("process {pid} ({})", printable(&comm)),
        None => format!("process {pid}"),
    }
}

fn comm(pid: Pid) -> Option<Vec<u8>> {
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(comm.trim_ascii_end().into())
}

/// The threads of a process; the first alone where /proc hides it.
pub fn threads(pid: Pid) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return vec![pid];
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

/// The PID namespace of lsm-nice.
pub fn pid_namespace() -> Result<fs::Metadata> {
    fs::metadata("/proc/self/ns/pid").context("cannot read /proc/self/ns/pid")
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
