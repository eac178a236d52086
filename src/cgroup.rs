// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The cgroup that is guarded, and how its end is noticed.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Access, AtFlags, Mode, OFlags, accessat, fstat, open, statfs};

use crate::output::Failure;

const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270; // linux/magic.h

pub struct Cgroup {
    pub path: PathBuf,
    dir: OwnedFd,
    /// Readable when something was removed beside or at the cgroup.
    pub removals: OwnedFd,
}

impl Cgroup {
    /// Opens `path`: a directory, or what systemctl and /proc/PID/cgroup print for it.
    pub fn open(path: &Path) -> Result<Self> {
        let below_root = path.strip_prefix("/").unwrap_or(path);
        let path = std::iter::once(path.to_path_buf())
            .chain(mounts().map(|root| root.join(below_root)))
            .find(|path| {
                path.is_dir()
                    && statfs(path).is_ok_and(|fs| fs.f_type.unsigned_abs() == CGROUP2_SUPER_MAGIC)
            })
            .ok_or_else(|| {
                Failure::new(
                    format!("{} is not a directory of cgroup v2", path.display()),
                    "name one below /sys/fs/cgroup, or as /proc/PID/cgroup prints it",
                )
            })?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = open(&path, flags, Mode::empty())
            .with_context(|| format!("cannot open {}", path.display()))?;
        // kernfs tells of a removal in the directory above alone
        let removals = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .and_then(|removals| {
                inotify::add_watch(&removals, path.join(".."), WatchFlags::DELETE)?;
                Ok(removals)
            })
            .with_context(|| format!("cannot watch {}", path.display()))?;
        Ok(Self {
            path,
            dir,
            removals,
        })
    }

    /// stat(2), for resolve.bpf.c.
    pub fn stat(&self) -> Result<()> {
        fstat(&self.dir).with_context(|| format!("cannot stat {}", self.path.display()))?;
        Ok(())
    }

    /// Whether the cgroup was removed; one made again by its name is another.
    pub fn is_gone(&self) -> bool {
        let mut events = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.removals, &mut events);
        while reader.next().is_ok() {}
        accessat(&self.dir, "cgroup.procs", Access::EXISTS, AtFlags::empty()).is_err()
    }
}

/// Where cgroup v2 is mounted.
fn mounts() -> impl Iterator<Item = PathBuf> {
    fs::read_to_string("/proc/self/mounts")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let dir = fields.next()?;
            (fields.next()? == "cgroup2").then(|| PathBuf::from(dir))
        })
        .collect::<Vec<_>>()
        .into_iter()
}
