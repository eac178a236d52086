// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The cgroup that is guarded, and how its end is noticed.

use std::ffi::OsString;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::linux::fs::MetadataExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

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
    /// Opens `path`: a directory, what systemctl and /proc/PID/cgroup print for it, the name of a
    /// unit, or one of these as systemd-escape prints it.
    pub fn open(path: &Path) -> Result<Self> {
        let mut found = find(path)?;
        if let (None, Some(path)) = (&found, unescape(path)) {
            found = find(&path)?;
        }
        let (path, dir) = found.ok_or_else(|| {
            Failure::new(
                format!(
                    "{} is neither a directory of cgroup v2 nor a unit that has one",
                    path.display()
                ),
                "name one below /sys/fs/cgroup, or as /proc/PID/cgroup prints it, or a running unit",
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

fn find(name: &Path) -> Result<Option<(PathBuf, OwnedFd)>> {
    let below_root = name.strip_prefix("/").unwrap_or(name);
    // "." in any other directory is not the root, which is everybody
    let is_plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
    let roots = match name.components().all(is_plain) {
        true => mounts(),
        false => Vec::new(),
    };
    let found = std::iter::once(name.to_path_buf())
        .chain(roots.iter().map(|root| root.join(below_root)))
        .find_map(open_cgroup);
    Ok(match found {
        None => unit(name)?.and_then(open_cgroup),
        found => found,
    })
}

fn open_cgroup(path: PathBuf) -> Option<(PathBuf, OwnedFd)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = open(&path, flags, Mode::empty()).ok()?;
    let fs = fstatfs(&dir).ok()?;
    (fs.f_type.unsigned_abs() == CGROUP2_SUPER_MAGIC).then_some((path, dir))
}

/// Makes an inotify descriptor readable for new events alone.
pub fn drain(inotify: &OwnedFd) {
    let mut events = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(inotify, &mut events);
    while reader.next().is_ok() {}
}

/// The directory of the cgroup whose ID that is.
pub fn path_of(id: u64) -> Option<PathBuf> {
    let mut dirs = Vec::from_iter(mounts().into_iter().next());
    while let Some(dir) = dirs.pop() {
        if fs::metadata(&dir).is_ok_and(|meta| meta.st_ino() == id) {
            return Some(dir);
        }
        dirs.extend(directories(&dir));
    }
    None
}

/// Whether every cgroup is to be seen: in the initial cgroup namespace (PROC_CGROUP_INIT_INO).
pub fn sees_all() -> bool {
    fs::metadata("/proc/self/ns/cgroup").is_ok_and(|ns| ns.st_ino() == 0xefff_fffb)
}

/// Where cgroup v2 is mounted.
fn mounts() -> Vec<PathBuf> {
    fs::read_to_string("/proc/self/mounts")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let dir = fields.next()?;
            (fields.next()? == "cgroup2").then(|| PathBuf::from(dir))
        })
        .collect()
}

/// The kinds of units that have a cgroup.
const KINDS: [&str; 6] = ["service", "slice", "scope", "socket", "mount", "swap"];

/// The cgroup of the unit of this name, where one has it: the one nearest to the root, as a user's
/// systemd may have a unit of the same name further down.
fn unit(name: &Path) -> Result<Option<PathBuf>> {
    let Some(name) = name.to_str().filter(|name| !name.contains('/')) else {
        return Ok(None);
    };
    let mut names = vec![name.to_string()];
    if !name
        .rsplit_once('.')
        .is_some_and(|(_, kind)| KINDS.contains(&kind))
    {
        names.push(format!("{name}.service"));
    }
    // one mount shows all that another does, or a part
    let mut level = Vec::from_iter(mounts().into_iter().next());
    while !level.is_empty() {
        let mut below: Vec<_> = level.iter().flat_map(|dir| directories(dir)).collect();
        below.sort();
        let found: Vec<_> = below
            .iter()
            .filter(|dir| names.iter().any(|name| dir.ends_with(name)))
            .collect();
        match found[..] {
            // in what is delegated to a user the names are the user's
            [] => {
                below.retain(|dir| fs::metadata(dir).is_ok_and(|meta| meta.st_uid() == 0));
                level = below;
            }
            [unit] => return Ok(Some(unit.clone())),
            [one, other, ..] => {
                return Err(Failure::new(
                    format!("{name} may be {} or {}", one.display(), other.display()),
                    "name it by its path",
                )
                .into());
            }
        }
    }
    Ok(None)
}

fn directories(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// What systemd-escape(1) was given, as lsm-nice@.service is named after it: - stands for a slash,
/// \\xNN for a byte. None where it cannot have been.
fn unescape(name: &Path) -> Option<PathBuf> {
    let mut bytes = name.as_os_str().as_bytes();
    let mut path = Vec::new();
    while let [byte, rest @ ..] = bytes {
        bytes = rest;
        path.push(match byte {
            b'/' => return None,
            b'-' => b'/',
            b'\\' => {
                let [b'x', high, low, rest @ ..] = rest else {
                    return None;
                };
                bytes = rest;
                let digit = |digit: &u8| char::from(*digit).to_digit(16);
                u8::try_from(digit(high)? * 16 + digit(low)?).ok()?
            }
            byte => *byte,
        });
    }
    Some(OsString::from_vec(path).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemd_escape_prints_is_read_back() {
        for (escaped, path) in [
            ("cron.service", Some("cron.service")),
            (
                "-system.slice-cron.service",
                Some("/system.slice/cron.service"),
            ),
            (r"systemd\x2djournald", Some("systemd-journald")),
            (r"-a-system\x2dgetty.slice", Some("/a/system-getty.slice")),
            ("/a-b", None),
            (r"\x2", None),
            (r"\x2g", None),
            (r"a\", None),
        ] {
            assert_eq!(
                unescape(Path::new(escaped)),
                path.map(PathBuf::from),
                "{escaped}"
            );
        }
    }
}
