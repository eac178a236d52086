// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The cgroup that is guarded, and how its end is noticed.

use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Access, AtFlags, Mode, OFlags, accessat, fstat, fstatfs, open};
use rustix::io::Errno;

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
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let (path, dir) = std::iter::once(path.to_path_buf())
            .chain(mounts().map(|root| root.join(below_root)))
            .filter_map(|path| Some((open(&path, flags, Mode::empty()).ok()?, path)))
            .find(|(dir, _)| {
                fstatfs(dir).is_ok_and(|fs| fs.f_type.unsigned_abs() == CGROUP2_SUPER_MAGIC)
            })
            .map(|(dir, path)| (path, dir))
            .ok_or_else(|| {
                Failure::new(
                    format!("{} is not a directory of cgroup v2", path.display()),
                    "name one below /sys/fs/cgroup, or as /proc/PID/cgroup prints it",
                )
            })?;
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

    /// The inode, by the stat(2) that resolve.bpf.c hears of. It is the id of the cgroup.
    pub fn inode(&self) -> Result<u64> {
        let stat =
            fstat(&self.dir).with_context(|| format!("cannot stat {}", self.path.display()))?;
        Ok(stat.st_ino)
    }

    /// Whether the cgroup was removed; one made again by its name is another.
    pub fn is_gone(&self) -> bool {
        drain(&self.removals);
        let procs = accessat(&self.dir, "cgroup.procs", Access::EXISTS, AtFlags::empty());
        matches!(procs, Err(Errno::NOENT | Errno::NODEV))
    }
}

/// Makes an inotify descriptor readable for new events alone.
pub fn drain(inotify: &OwnedFd) {
    let mut events = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(inotify, &mut events);
    while reader.next().is_ok() {}
}

/// The directory of the cgroup whose ID that is.
pub fn path_of(id: u64) -> Option<PathBuf> {
    let mut dirs: Vec<_> = mounts().take(1).collect();
    while let Some(dir) = dirs.pop() {
        if fs::metadata(&dir).is_ok_and(|meta| meta.st_ino() == id) {
            return Some(dir);
        }
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        dirs.extend(below.map(|entry| entry.path()));
    }
    None
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
