// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The guards that stand, whoever holds them, as the kernel's own objects tell.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt::Display;
use std::fs::{self, File};
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::linux::fs::MetadataExt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use libbpf_rs::libbpf_sys::{self, bpf_map_info, bpf_prog_info};
use libbpf_rs::query::{LinkInfo, LinkTypeInfo};
use libbpf_rs::{MapCore, MapFlags, MapHandle};
use rustix::process::Pid;

use crate::guard::shared::{asked, bss, cgroup_place, config, process, rodata, state, walked};
use crate::guard::{Clock, MADE_BY, boot_time, from_bytes, listed};
use crate::target::{INITIAL_PID_NAMESPACE, pid_namespace};

/// The maps of constants and of variables, as libbpf names them.
const RODATA: &str = "lsm_nice.rodata";
const BSS: &str = "lsm_nice.bss";

/// How long the kernel may take to detach what is not held any more.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A guard of which the kernel has at least a link.
pub struct Standing {
    /// The version of lsm-nice that made it.
    pub version: String,
    /// None where that had another layout, which this one cannot read.
    pub config: Option<config>,
    /// By name. Two guards share the marks while one replaces the other.
    pub maps: BTreeMap<String, u32>,
    pub links: Vec<u32>,
    /// The programs of the links.
    programs: Vec<u32>,
    /// That of the program that lists who is guarded.
    walk: Option<u32>,
    /// When it was loaded, by the kernel's own clock since boot.
    loaded: Duration,
}

pub struct StateMap(MapHandle);

impl StateMap {
    pub fn read(&self) -> Result<state> {
        const { assert!(offset_of!(bss, state) == 0) };
        let bytes = self.0.lookup(&0u32.to_ne_bytes(), MapFlags::ANY)?;
        from_bytes(&bytes.unwrap_or_default())
    }
}

/// A program of a guard.
struct Program {
    id: u32,
    loaded: Duration,
    maps: Vec<u32>,
}

/// All guards, the oldest first.
pub fn all() -> Result<Vec<Standing>> {
    let mut maps = BTreeMap::new();
    for id in ids(libbpf_sys::bpf_map_get_next_id)? {
        if let Some(name) = map_name(id) {
            maps.insert(id, name);
        }
    }
    let mut guards: BTreeMap<u32, (Standing, Vec<u32>)> = BTreeMap::new();
    for id in ids(libbpf_sys::bpf_prog_get_next_id)? {
        let Some(program) = program(id) else { continue };
        let of = |id: &&u32| maps.get(*id).is_some_and(|name| name == RODATA);
        let Some(rodata) = program.maps.iter().find(of) else {
            continue;
        };
        if !guards.contains_key(rodata) {
            let Some(guard) = Standing::read(*rodata, program.loaded) else {
                continue;
            };
            guards.insert(*rodata, (guard, Vec::new()));
        }
        if let Some((guard, programs)) = guards.get_mut(rodata) {
            programs.push(program.id);
            let names = program.maps.iter();
            guard
                .maps
                .extend(names.filter_map(|id| Some((maps.get(id)?.clone(), *id))));
        }
    }
    for id in ids(libbpf_sys::bpf_link_get_next_id)? {
        let Some(link) = link(id) else { continue };
        let of = |(_, programs): &&mut (Standing, Vec<u32>)| programs.contains(&link.prog_id);
        if let Some((guard, _)) = guards.values_mut().find(of) {
            guard.links.push(id);
            guard.programs.push(link.prog_id);
            if matches!(link.info, LinkTypeInfo::Iter(_)) {
                guard.walk = Some(id);
            }
        }
    }
    let mut guards: Vec<_> = guards.into_values().map(|(guard, _)| guard).collect();
    guards.retain(|guard| !guard.links.is_empty());
    guards.sort_by_key(|guard| guard.loaded);
    Ok(guards)
}

impl Standing {
    /// What made `rodata`, where that was lsm-nice.
    fn read(rodata: u32, loaded: Duration) -> Option<Self> {
        let map = MapHandle::from_map_id(rodata).ok()?;
        let bytes = map.lookup(&0u32.to_ne_bytes(), MapFlags::ANY).ok()??;
        const { assert!(offset_of!(rodata, config) == 0 && offset_of!(config, made_by) == 0) };
        let (made_by, _) = bytes.split_at_checked(size_of::<[u8; 32]>())?;
        let made_by = String::from_utf8_lossy(made_by);
        let (version, layout) = made_by
            .trim_end_matches('\0')
            .strip_prefix("lsm-nice ")?
            .split_once(", ")?;
        let readable = MADE_BY.ends_with(&format!(", {layout}"));
        Some(Self {
            version: version.into(),
            config: readable.then(|| from_bytes(&bytes).ok()).flatten(),
            maps: BTreeMap::new(),
            links: Vec::new(),
            programs: Vec::new(),
            walk: None,
            loaded,
        })
    }

    pub fn map(&self, name: &str) -> Result<MapHandle> {
        let id = self
            .maps
            .get(name)
            .with_context(|| format!("the guard has no map {name}"))?;
        Ok(MapHandle::from_map_id(*id)?)
    }

    pub fn state(&self) -> Result<state> {
        self.state_map()?.read()
    }

    /// What the guard has counted can be read from it also when the guard has ended.
    pub fn state_map(&self) -> Result<StateMap> {
        // a map of another layout has the same name
        self.config.context("a guard of another layout")?;
        self.map(BSS).map(StateMap)
    }

    /// Waits until nothing of the guard is attached any more, or returns false where somebody holds
    /// a link for so long. After the last pin is gone the kernel takes a moment: the IDs of links go
    /// first, those of programs when they are detached.
    pub fn ends_within(&self, patience: Duration) -> Result<bool> {
        let start = Instant::now();
        loop {
            let programs = ids(libbpf_sys::bpf_prog_get_next_id)?;
            let stands = self
                .programs
                .iter()
                .any(|program| programs.contains(program));
            if !stands || start.elapsed() > patience {
                return Ok(!stands);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for the end of a guard whose pins are gone: who keeps it from that, where somebody does.
    pub fn kept_by(&self) -> Result<Option<String>> {
        let (start, mut last) = (Instant::now(), None);
        while !self.ends_within(Duration::from_secs(1))? {
            let holder = self.holder();
            // once may be a look at it, as of status
            if let Some(pid) = holder
                && holder == last
            {
                return Ok(Some(format!("process {pid}")));
            }
            if start.elapsed() > PATIENCE {
                return Ok(Some("another process".into()));
            }
            last = holder;
        }
        Ok(None)
    }

    /// Where the guarded cgroup is.
    pub fn cgroup(&self) -> Result<Option<cgroup_place>> {
        match self.config {
            Some(config) if config.cgroup != 0 => Ok(Some(self.state()?.cgroup)),
            _ => Ok(None),
        }
    }

    /// The targets as they were named.
    pub fn targets(&self) -> Result<Vec<(process, asked)>> {
        if !self.maps.contains_key("targets") {
            return Ok(Vec::new());
        }
        let map = self.map("targets")?;
        let mut targets = Vec::new();
        for key in map.keys() {
            if let Some(asked) = map.lookup(&key, MapFlags::ANY)? {
                targets.push((from_bytes(&key)?, from_bytes(&asked)?));
            }
        }
        Ok(targets)
    }

    /// Those of them that run, or may run where they cannot be seen from here.
    pub fn present_targets(&self) -> Result<Vec<(process, asked)>> {
        let mut targets = self.targets()?;
        if self.sees_all()?
            && let Some((tasks, _)) = self.walk()?
        {
            targets.retain(|(process, _)| tasks.iter().any(|task| is_same(&task.process, process)));
        }
        Ok(targets)
    }

    /// Whether all that may be guarded is to be seen in this PID namespace.
    pub fn sees_all(&self) -> Result<bool> {
        let own = pid_namespace()?.st_ino();
        Ok(own == INITIAL_PID_NAMESPACE
            || self.config.is_some_and(|config| config.pidns_ino == own))
    }

    /// The tasks that are guarded, and the clock that the guard reports by. None where the guard
    /// needs no list, as it is of one process and ends with it.
    pub fn walk(&self) -> Result<Option<(Vec<walked>, Clock)>> {
        let Some(walk) = self.walk else {
            return Ok(None);
        };
        let before = boot_time();
        // SAFETY: takes a number.
        let tasks = descriptor(|| unsafe { libbpf_sys::bpf_link_get_fd_by_id(walk) })
            .and_then(|link| {
                // SAFETY: a descriptor that is open; the result is -1 or a new one.
                descriptor(|| unsafe { libbpf_sys::bpf_iter_create(link.as_raw_fd()) })
            })
            .map_err(anyhow::Error::from)
            .and_then(|walk| listed(File::from(walk)))
            .context("cannot list the guarded tasks")?;
        let mut clock = Clock::default();
        clock.set(before, self.state()?.asked_at, boot_time());
        Ok(Some((tasks, clock)))
    }

    /// How long ago the guard was loaded, ns.
    pub fn age(&self, clock: Clock) -> i64 {
        clock.age(u64::try_from(self.loaded.as_nanos()).unwrap_or(u64::MAX))
    }

    /// The process that keeps the guard, where it is not pinned.
    pub fn holder(&self) -> Option<Pid> {
        processes().find(|pid| {
            let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else {
                return false;
            };
            fds.flatten().any(|fd| {
                // bpf_link for who made it, bpf-link for who opened it
                let is_bpf = fs::read_link(fd.path())
                    .is_ok_and(|to| to.as_os_str().as_bytes().starts_with(b"anon_inode:bpf"));
                is_bpf
                    && Object::read(pid, fd.file_name().display())
                        .link
                        .is_some_and(|link| self.links.contains(&link))
            })
        })
    }
}

/// What a descriptor of BPF is, by the kernel's own word (/proc/PID/fdinfo).
#[derive(Default)]
pub struct Object {
    pub link: Option<u32>,
    pub map: Option<u32>,
}

impl Object {
    fn read(pid: impl Display, fd: impl Display) -> Self {
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
        let id = |field| {
            let line = info.lines().find_map(|line| line.strip_prefix(field))?;
            line.trim().parse().ok()
        };
        Self {
            link: id("link_id:"),
            map: id("map_id:"),
        }
    }
}

/// What is pinned at `path`.
pub fn pinned(path: &Path) -> Object {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return Object::default();
    };
    // SAFETY: a string that outlives the call.
    descriptor(|| unsafe { libbpf_sys::bpf_obj_get(path.as_ptr()) }).map_or_else(
        |_| Object::default(),
        |fd| Object::read("self", fd.as_raw_fd()),
    )
}

pub fn is_same(a: &process, b: &process) -> bool {
    (a.tgid, a.start) == (b.tgid, b.start)
}

fn processes() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
}

/// All IDs of a kind of object (bpf(2): BPF_*_GET_NEXT_ID). The iterators of libbpf-rs end at the
/// first object that they cannot read, and would hide guards behind it.
fn ids(next: unsafe extern "C" fn(u32, *mut u32) -> i32) -> Result<Vec<u32>> {
    let (mut ids, mut id) = (Vec::new(), 0);
    loop {
        // SAFETY: takes a number, and a place for another.
        if unsafe { next(id, &raw mut id) } == 0 {
            ids.push(id);
            continue;
        }
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::NotFound {
            return Ok(ids);
        }
        return Err(error).context("cannot list what BPF has loaded");
    }
}

/// The descriptor that a call of libbpf returns.
fn descriptor(call: impl FnOnce() -> i32) -> io::Result<OwnedFd> {
    match call() {
        // SAFETY: a new descriptor.
        fd if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Fills in what the kernel says of an object.
fn info<T>(fd: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut length = size_of::<T>() as u32;
    let (fd, info) = (fd.as_raw_fd(), (&raw mut *info).cast());
    // SAFETY: the kernel writes as much as it is told to.
    match unsafe { libbpf_sys::bpf_obj_get_info_by_fd(fd, info, &raw mut length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// None where the map is gone meanwhile, as for the two below.
fn map_name(id: u32) -> Option<String> {
    // SAFETY: takes a number.
    let fd = descriptor(|| unsafe { libbpf_sys::bpf_map_get_fd_by_id(id) }).ok()?;
    // SAFETY: numbers, for which zero is valid; the kernel wants all that it does not know zero.
    let mut map: bpf_map_info = unsafe { std::mem::zeroed() };
    info(fd.as_fd(), &mut map).ok()?;
    let name = map.name.iter().take_while(|c| **c != 0);
    Some(name.map(|c| char::from(c.cast_unsigned())).collect())
}

fn program(id: u32) -> Option<Program> {
    // SAFETY: takes a number.
    let fd = descriptor(|| unsafe { libbpf_sys::bpf_prog_get_fd_by_id(id) }).ok()?;
    let mut maps = vec![0u32; 64];
    // SAFETY: as in map_name().
    let mut program: bpf_prog_info = unsafe { std::mem::zeroed() };
    program.nr_map_ids = maps.len() as u32;
    program.map_ids = maps.as_mut_ptr() as u64;
    info(fd.as_fd(), &mut program).ok()?;
    maps.truncate(program.nr_map_ids as usize);
    Some(Program {
        id,
        loaded: Duration::from_nanos(program.load_time),
        maps,
    })
}

fn link(id: u32) -> Option<LinkInfo> {
    // SAFETY: takes a number.
    let fd = descriptor(|| unsafe { libbpf_sys::bpf_link_get_fd_by_id(id) }).ok()?;
    LinkInfo::from_fd(fd.as_fd()).ok()
}
