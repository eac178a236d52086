// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! Guards that outlive lsm-nice: each a directory of pins in bpffs, which holds all of it or, where
//! its maker was killed half-way, says by its name that it does not.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, open, renameat_with};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::check;
use crate::guard::shared::{asked, process};
use crate::guard::{Guard, NOTE};
use crate::output::{Failure, status};
use crate::standing::{self, Standing};
use crate::target::{INITIAL_PID_NAMESPACE, pid_namespace};

const BPFFS: &str = "/sys/fs/bpf";
const BPFFS_MAGIC: u64 = 0xcafe_4a11; // linux/magic.h
const DIR: &str = "/sys/fs/bpf/lsm-nice";

/// What a directory has behind its name while it is made; and the one that it replaces, while that is
/// taken down. No name that a user gives has such a character.
const NEW: &str = "+new";

const LONGEST_NAME: usize = 64;
/// How long another lsm-nice may change pins before they are read as they are.
const PATIENCE: Duration = Duration::from_secs(10);

/// The name of a pinned guard, as the command line takes it.
pub fn name(name: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-:@".contains(c);
    if name.is_empty() || name.len() > LONGEST_NAME {
        return Err(format!("a name has 1 to {LONGEST_NAME} characters"));
    }
    if name.starts_with('-') || !name.chars().all(allowed) {
        return Err("a name is of letters, digits, and _ : @ - (not at its start)".into());
    }
    Ok(name.into())
}

/// The right to change pins, until it is dropped.
pub struct Lock {
    _dir: OwnedFd,
}

/// The pins of one name: what holds, and what a crash has left behind.
pub struct Pinned {
    pub name: String,
    pub dirs: Vec<Dir>,
}

/// A directory of pins.
pub struct Dir {
    pub path: PathBuf,
    /// Made and moved to its name in full.
    pub is_final: bool,
    links: Vec<u32>,
    maps: Vec<u32>,
}

/// Makes the place where the pins are, where there is none, and waits for the right to change them.
pub fn lock() -> Result<Lock> {
    mount_bpffs()?;
    match fs::DirBuilder::new().mode(0o700).create(DIR) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).context(format!("cannot make {DIR}"));
        }
        _ => {}
    }
    let dir = open_dir(Path::new(DIR))?;
    must_be_ours()?;
    let start = Instant::now();
    while flock(&dir, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
        if start.elapsed() > Duration::from_secs(2) {
            status!("waiting for another lsm-nice that reads or changes pins");
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    flock(&dir, FlockOperation::LockExclusive).with_context(|| format!("cannot lock {DIR}"))?;
    Ok(Lock { _dir: dir })
}

/// A bpffs of a namespace ends with that, and with it what is pinned there.
fn mount_bpffs() -> Result<()> {
    if check::is_mounted(BPFFS, BPFFS_MAGIC) {
        return Ok(());
    }
    let namespace = |pid: &str| fs::metadata(format!("/proc/{pid}/ns/mnt")).map(|ns| ns.ino());
    let here = namespace("self").ok();
    let error = if pid_namespace()?.ino() != INITIAL_PID_NAMESPACE || here != namespace("1").ok() {
        "it would end with the namespace in which lsm-nice runs".into()
    } else {
        match check::mounted("bpf", BPFFS, BPFFS_MAGIC, Some(c"mode=0700")) {
            Ok(_) => return Ok(()),
            Err(error) => error.to_string(),
        }
    };
    Err(Failure::new(
        format!("bpffs is not mounted, and cannot be: {error}"),
        format!("as root of the host: mount -t bpf bpf {BPFFS}"),
    )
    .into())
}

/// Anybody may make a directory in a bpffs that is mounted without a mode.
fn must_be_ours() -> Result<()> {
    let meta = fs::symlink_metadata(DIR).with_context(|| format!("cannot stat {DIR}"))?;
    let failure = if !meta.is_dir() || meta.uid() != geteuid().as_raw() {
        Failure::new(
            format!("{DIR} is not a directory of lsm-nice's own: another user made it"),
            format!("rm -r {DIR}"),
        )
    } else if meta.mode() & 0o077 != 0 {
        Failure::new(
            format!("{DIR} is open to other users"),
            format!("chmod 700 {DIR}"),
        )
    } else {
        return Ok(());
    };
    Err(failure.into())
}

fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).with_context(|| format!("cannot open {}", path.display()))
}

/// Keeps others from reading the events of a guard, until it is dropped.
pub fn only_reader(name: &str) -> Result<OwnedFd> {
    let dir = open_dir(&Path::new(DIR).join(name))?;
    match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(dir),
        Err(Errno::WOULDBLOCK) => Err(Failure::new(
            format!("another lsm-nice follows {name} already, and an event goes to one reader"),
            "end that one first",
        )
        .into()),
        Err(error) => Err(error).context("cannot lock the pins"),
    }
}

/// Readable when pins are moved or removed.
pub fn changes() -> Result<OwnedFd> {
    inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
        .and_then(|changes| {
            inotify::add_watch(&changes, DIR, WatchFlags::DELETE | WatchFlags::MOVE)?;
            Ok(changes)
        })
        .with_context(|| format!("cannot watch {DIR}"))
}

/// Keeps others from changing pins until it is dropped; None where one does, and goes on with it for
/// as long as `PATIENCE`.
pub fn read_lock() -> Option<OwnedFd> {
    let start = Instant::now();
    loop {
        let dir = open_dir(Path::new(DIR)).ok()?;
        match flock(&dir, FlockOperation::NonBlockingLockShared) {
            Ok(()) => return Some(dir),
            _ if start.elapsed() > PATIENCE => return None,
            _ => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// All that is pinned, by name.
pub fn all() -> Result<Vec<Pinned>> {
    let mut all: Vec<Pinned> = Vec::new();
    let mut paths: Vec<PathBuf> = match fs::read_dir(DIR) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).context(format!("cannot read {DIR}")),
    };
    if !paths.is_empty() {
        must_be_ours()?;
    }
    paths.sort();
    for path in paths {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let name = file.split('+').next().unwrap_or_default().to_string();
        let dir = Dir::read(&path, name == file);
        match all.iter_mut().find(|pinned| pinned.name == name) {
            Some(pinned) => pinned.dirs.push(dir),
            None => all.push(Pinned {
                name,
                dirs: vec![dir],
            }),
        }
    }
    Ok(all)
}

/// What is pinned by that name, or the names that there are.
pub fn find(name: &str) -> Result<Pinned> {
    let mut all = all()?;
    if let Some(index) = all.iter().position(|pinned| pinned.name == name) {
        return Ok(all.swap_remove(index));
    }
    let names: Vec<_> = all.iter().map(|pinned| &*pinned.name).collect();
    let fix = match &names[..] {
        [] => "there are none at all: lsm-nice --pid PID --pin NAME makes one".into(),
        names => format!("name one of {}", names.join(", ")),
    };
    Err(Failure::new(format!("there is no pinned guard {name}"), fix).into())
}

/// Fails where the name is in use. What is half there may be in the making, unless it is locked.
fn must_be_free(name: &str, lock: Option<&Lock>) -> Result<()> {
    let Some(pinned) = all()?.into_iter().find(|pinned| pinned.name == name) else {
        return Ok(());
    };
    let is_whole = pinned.dirs.iter().any(|dir| dir.is_final);
    if !is_whole && lock.is_none() {
        return Ok(());
    }
    Err(if is_whole {
        Failure::new(
            format!("there is a guard {name} already"),
            "take over from it with --replace, end it with `lsm-nice release`, or name another",
        )
    } else {
        Failure::new(
            format!("a guard {name} was left half-way by a crash"),
            format!("lsm-nice release {name}"),
        )
    }
    .into())
}

/// The place where a guard is to be pinned.
pub struct Pins<'a> {
    name: &'a str,
    /// The guard that has the name, and is to keep it until the new one stands.
    pub replaced: Option<Standing>,
    /// Its targets that have not gone.
    pub kept: Vec<(process, asked)>,
    /// While there is one nobody else may change it.
    lock: Option<Lock>,
}

impl<'a> Pins<'a> {
    /// Fails where the name is in use, or with `replace` where it is not.
    pub fn open(name: &'a str, replace: bool) -> Result<Self> {
        check::capable()?;
        if !replace {
            must_be_free(name, None)?;
            return Ok(Self {
                name,
                replaced: None,
                kept: Vec::new(),
                lock: None,
            });
        }
        check::may_list()?;
        find(name)?;
        let lock = lock()?;
        let replaced = of_name(name)?;
        Ok(Self {
            name,
            kept: replaced.present_targets()?,
            replaced: Some(replaced),
            lock: Some(lock),
        })
    }

    /// Pins the guard: all of it, or nothing. The one that had the name ends when all is there.
    pub fn put(self, guard: &mut Guard<'_>) -> Result<&'a str> {
        let name = self.name;
        let replaces = self.replaced.is_some();
        let lock = match self.lock {
            Some(lock) => lock,
            None => lock()?,
        };
        let place = Path::new(DIR).join(name);
        let new = Path::new(DIR).join(format!("{name}{NEW}"));
        let how = if replaces {
            // what a crash has left beside the guard that stands
            remove(&new)?;
            RenameFlags::EXCHANGE
        } else {
            must_be_free(name, Some(&lock))?;
            RenameFlags::NOREPLACE
        };
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&new)
            .map_err(anyhow::Error::from)
            .and_then(|()| guard.pin(&new))
            .and_then(|()| match renameat_with(CWD, &new, CWD, &place, how) {
                Err(Errno::INVAL) => Err(Failure::new(
                    "this kernel cannot exchange two guards, which Linux 5.17 can",
                    format!("lsm-nice release {name}, then pin it anew"),
                )
                .into()),
                result => Ok(result?),
            })
            .map_err(|error| {
                let _ = remove(&new);
                error.context(format!("cannot pin the guard in {}", place.display()))
            })?;
        // by now the guard that was replaced
        remove(&new)?;
        if let Some(replaced) = &self.replaced
            && let Some(holder) = replaced.kept_by()?
        {
            status!("warning: {holder} holds the guard that was replaced: both refuse");
        }
        Ok(name)
    }
}

/// The guard of that name, of a layout that is known here.
pub fn of_name(name: &str) -> Result<Standing> {
    let release = format!("lsm-nice release {name}");
    let Some(guard) = find(name)?.guard(standing::all()?) else {
        return Err(Failure::new(
            format!("of the guard {name} there is only what a crash has left"),
            release,
        )
        .into());
    };
    if guard.config.is_none() {
        return Err(Failure::new(
            format!(
                "the guard {name} was made by lsm-nice {}, which this version cannot read, nor go \
                 on with its marks",
                guard.version
            ),
            format!("{release}, then pin it anew; in between it guards nobody"),
        )
        .into());
    }
    Ok(guard)
}

impl Pinned {
    /// Whose pins these are among the guards that stand.
    pub fn guards<'a>(&self, guards: &'a [Standing]) -> impl Iterator<Item = &'a Standing> {
        guards.iter().filter(|guard| self.holds(guard))
    }

    pub fn holds(&self, guard: &Standing) -> bool {
        self.dirs.iter().any(|dir| dir.has_any_of(guard))
    }

    /// The guard that has the name.
    pub fn guard(&self, guards: Vec<Standing>) -> Option<Standing> {
        guards.into_iter().find(|guard| self.is_named(guard))
    }

    pub fn is_named(&self, guard: &Standing) -> bool {
        let named = self.dirs.iter().find(|dir| dir.is_final);
        named.is_some_and(|dir| dir.has_any_of(guard))
    }

    /// What is not as it was made.
    pub fn damage(&self, guards: &[&Standing]) -> Option<String> {
        let whole = self.dirs.iter().find(|dir| dir.is_final);
        match (whole, guards) {
            _ if self.dirs.len() > 1 || whole.is_none() => {
                Some("a crash has left parts of it".into())
            }
            (Some(dir), [guard]) => dir.damage(guard),
            _ => Some("nothing of it is attached: it guards nobody".into()),
        }
    }

    /// Ends the guard, and clears what is left of it.
    pub fn remove(&self, _lock: &Lock) -> Result<()> {
        self.dirs.iter().try_for_each(|dir| remove(&dir.path))
    }
}

impl Dir {
    fn read(path: &Path, is_final: bool) -> Self {
        let mut dir = Self {
            path: path.into(),
            is_final,
            links: Vec::new(),
            maps: Vec::new(),
        };
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            let object = standing::pinned(&entry.path());
            dir.links.extend(object.link);
            dir.maps.extend(object.map);
        }
        dir
    }

    fn has_any_of(&self, guard: &Standing) -> bool {
        self.links.iter().any(|link| guard.links.contains(link))
    }

    fn damage(&self, guard: &Standing) -> Option<String> {
        let config = guard.config?;
        let links = guard
            .links
            .iter()
            .filter(|link| self.links.contains(link))
            .count();
        let missing = (config.links as usize).saturating_sub(links);
        if missing > 0 {
            return Some(format!(
                "{missing} of {} links are not pinned",
                config.links
            ));
        }
        let missing: Vec<_> = guard
            .maps
            .iter()
            .filter(|(_, id)| !self.maps.contains(id))
            .map(|(name, _)| &**name)
            .collect();
        (!missing.is_empty()).then(|| format!("not pinned: {}", missing.join(", ")))
    }
}

/// Unpins what there is. A hook that needs a note goes before what notes, as it refuses without.
fn remove(dir: &Path) -> Result<()> {
    let mut paths: Vec<_> = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries
            .with_context(|| format!("cannot read {}", dir.display()))?
            .flatten()
            .map(|entry| entry.path())
            .collect(),
    };
    let notes = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with(NOTE)
    };
    paths.sort_by_key(notes);
    paths
        .iter()
        .try_for_each(fs::remove_file)
        .and_then(|()| fs::remove_dir(dir))
        .with_context(|| format!("cannot remove {}", dir.display()))
}
