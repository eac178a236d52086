// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The guard in the kernel: loaded, attached, proven, and ended.

use std::collections::HashMap;
use std::io::Read;
use std::mem::{MaybeUninit, size_of};
use std::os::linux::fs::MetadataExt;

use anyhow::{Context, Result, anyhow};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{ErrorKind, Iter, Link, OpenObject, ProgramMut};
use plain::Plain;
use rustix::process::{Pid, getpid};

use crate::cgroup::Cgroup;
use crate::check;
use crate::output::Failure;
use crate::rules::RuleDoor;
use crate::target::no_such_process;
use crate::trial::Child;

mod skel {
    include!(concat!(env!("OUT_DIR"), "/lsm_nice.skel.rs"));
}
use skel::types::{cgroup_place, guarded, process, state};
use skel::{LsmNiceSkel, LsmNiceSkelBuilder, OpenLsmNiceSkel};

pub use skel::types::{rule as bits, walked};
// SAFETY: numbers alone, for which every byte sequence is valid.
unsafe impl Plain for walked {}

/// What the names of the programs begin with that note a call for a hook.
pub const NOTE: &str = "note_";

/// The programs that pass marks on.
const INHERIT: [&str; 2] = ["task_alloc", "task_newtask"];

const NO_DATA: &str = "libbpf has not mapped the data of the BPF object";

/// Who is to be guarded, and from what.
pub struct Request<'a> {
    pub floor: i32,
    pub doors: Vec<RuleDoor>,
    pub processes: Vec<Pid>,
    /// The present descendants of the processes too.
    pub tree: bool,
    /// What the guarded start later too.
    pub children: bool,
    pub cgroup: Option<&'a Cgroup>,
}

impl Request<'_> {
    /// One process at the most and nothing else: a constant in the program is all that it needs.
    pub fn is_plain(&self) -> bool {
        self.processes.len() <= 1 && !self.tree && !self.children && self.cgroup.is_none()
    }

    fn marks(&self) -> bool {
        !self.is_plain() && (!self.processes.is_empty() || self.children)
    }

    /// The programs on the doors. What a hook needs noted comes first, as a hook refuses without.
    fn programs(&self) -> Vec<&'static str> {
        let mut programs: Vec<_> = self
            .doors
            .iter()
            .flat_map(|(_, door)| door.programs.iter().copied())
            .collect();
        programs.sort_unstable_by_key(|name| (!name.starts_with(NOTE), *name));
        programs.dedup();
        programs
    }
}

/// A guard that stands: it was proven on a child before [`Guard::start`] returned it.
pub struct Guard<'obj> {
    skel: LsmNiceSkel<'obj>,
    links: Vec<Link>,
    walk: Option<Link>,
}

impl<'obj> Guard<'obj> {
    pub fn start(object: &'obj mut MaybeUninit<OpenObject>, request: &Request<'_>) -> Result<Self> {
        check::capable()?;
        check::preemption()?;
        let child = Child::spawn()?;
        if request.is_plain() {
            return Self::start_plain(object, request, &child);
        }
        check::task_storage()?;

        let mut programs = request.programs();
        programs.extend(["resolve", "walk"]);
        if request.marks() {
            programs.extend(INHERIT);
        }
        if request.cgroup.is_some() {
            programs.push("resolve_cgroup");
        }
        let mut open = open(object, &programs)?;
        let config = config(&mut open)?;
        configure(config, request);
        config.marks = request.marks().into();
        config.children = request.children.into();
        config.cgroup = request.cgroup.is_some().into();
        open.maps.marks.set_autocreate(request.marks())?;
        let mut skel = open.load()?;

        let resolve = attach(&skel.progs.resolve)?;
        if let Some(cgroup) = request.cgroup {
            let _link = attach(&skel.progs.resolve_cgroup)?;
            let place = ask_cgroup(&mut skel, cgroup)?;
            write(&mut skel, |state| state.cgroup = place)?;
        }
        // what is marked from here on passes its mark on
        let mut links = Vec::new();
        if request.marks() {
            links.extend(attach_all(&mut skel, &INHERIT)?);
        }
        links.extend(attach_all(&mut skel, &request.programs())?);
        let walk = Some(attach(&skel.progs.walk)?);
        let mut guard = Self { skel, links, walk };
        if request.marks() {
            guard.mark(request)?;
        }
        write(&mut guard.skel, |state| {
            state.mark_as = guarded::TRIAL;
        })?;
        let process = ask(&mut guard.skel, child.pid)?;
        drop(resolve);
        guard.try_on(&child, process, request)?;
        Ok(guard)
    }

    /// The target is in rodata before the load, so the kernel is asked for it by a load of its own.
    fn start_plain(
        object: &'obj mut MaybeUninit<OpenObject>,
        request: &Request<'_>,
        child: &Child,
    ) -> Result<Self> {
        let (target, process) = {
            let mut object = MaybeUninit::uninit();
            let mut open = open(&mut object, &["resolve"])?;
            open.maps.marks.set_autocreate(false)?;
            let mut skel = open.load()?;
            let _link = attach(&skel.progs.resolve)?;
            let target = match request.processes.first() {
                Some(pid) => ask(&mut skel, *pid)?,
                None => process::default(),
            };
            (target, ask(&mut skel, child.pid)?)
        };

        let mut open = open(object, &request.programs())?;
        let config = config(&mut open)?;
        configure(config, request);
        config.target = target;
        open.maps.marks.set_autocreate(false)?;
        let mut skel = open.load()?;
        let links = attach_all(&mut skel, &request.programs())?;
        let mut guard = Self {
            skel,
            links,
            walk: None,
        };
        guard.try_on(child, process, request)?;
        Ok(guard)
    }

    /// Marks every thread of the processes asked for, and with --tree of their descendants.
    ///
    /// A thread that was not marked yet may have started another, or have replaced its leader by
    /// exec, behind the back of a walk; so the marking ends with a round that found all marked.
    fn mark(&mut self, request: &Request<'_>) -> Result<()> {
        write(&mut self.skel, |state| {
            state.mark_as = guarded::GUARDED;
            state.tree = request.tree.into();
        })?;
        loop {
            let before = read(&mut self.skel)?.marked;
            self.guarded_tasks()?;
            for pid in &request.processes {
                ask(&mut self.skel, *pid)?;
            }
            if read(&mut self.skel)?.marked == before {
                return write(&mut self.skel, |state| state.tree = 0);
            }
        }
    }

    /// The guarded tasks that have not exited; nothing in the plain case, which needs no walk.
    pub fn guarded_tasks(&mut self) -> Result<Vec<walked>> {
        let Some(walk) = &self.walk else {
            return Ok(Vec::new());
        };
        let mut bytes = Vec::new();
        Iter::new(walk)
            .map_err(anyhow::Error::from)
            .and_then(|mut iter| Ok(iter.read_to_end(&mut bytes)?))
            .context("cannot list the guarded tasks")?;
        bytes
            .chunks_exact(size_of::<walked>())
            .map(|chunk| {
                let mut task = walked::default();
                task.copy_from_bytes(chunk)
                    .map_err(|error| anyhow!("a guarded task was listed wrongly: {error:?}"))?;
                Ok(task)
            })
            .collect()
    }

    /// Ends the guard, and says how many requests it refused.
    pub fn end(self) -> Result<u64> {
        let Self {
            mut skel, links, ..
        } = self;
        drop(links);
        Ok(read(&mut skel)?.denied)
    }

    /// Proves on the child, and where children inherit on a child of it, that each door is shut.
    ///
    /// Another guard may refuse what this one would; so it must have seen the call that both allow.
    fn try_on(&mut self, child: &Child, process: process, request: &Request<'_>) -> Result<()> {
        write(&mut self.skel, |state| state.trial = process)?;
        let mut pids = vec![child.pid];
        if request.marks() && request.children {
            pids.push(child.fork()?);
        }
        for pid in pids {
            for (_, door) in &request.doors {
                let before = read(&mut self.skel)?.trial_seen;
                (door.prove)(pid, request.floor, &mut || {
                    if read(&mut self.skel)?.trial_seen == before {
                        return Err(does_not_fire(door.call));
                    }
                    Ok(())
                })?;
            }
        }
        write(&mut self.skel, |state| state.trial = process::default())
    }
}

/// The object with `programs` to be loaded, and the identity of lsm-nice for those that ask for it.
fn open<'obj>(
    object: &'obj mut MaybeUninit<OpenObject>,
    programs: &[&str],
) -> Result<OpenLsmNiceSkel<'obj>> {
    let mut open = LsmNiceSkelBuilder::default().open(object)?;
    for mut prog in open.open_object_mut().progs_mut() {
        let wanted = prog
            .name()
            .to_str()
            .is_some_and(|name| programs.contains(&name));
        prog.set_autoload(wanted);
    }
    let notes = programs.iter().any(|name| name.starts_with(NOTE));
    open.maps.notes.set_autocreate(notes)?;
    let pidns = std::fs::metadata("/proc/self/ns/pid").context("cannot read /proc/self/ns/pid")?;
    let config = config(&mut open)?;
    config.asker = getpid().as_raw_pid().unsigned_abs();
    config.pidns_dev = pidns.st_dev();
    config.pidns_ino = pidns.st_ino();
    Ok(open)
}

fn configure(config: &mut skel::types::config, request: &Request<'_>) {
    config.floor = request.floor;
    config.rules = request
        .doors
        .iter()
        .fold(0, |rules, (rule, _)| rules | rule.bit);
    config.autogroup = request.programs().contains(&"note_autogroup").into();
}

/// The kernel's functions that programs are attached to, by the name of the program.
pub fn functions() -> Result<HashMap<String, String>> {
    let mut object = MaybeUninit::uninit();
    let mut open = LsmNiceSkelBuilder::default().open(&mut object)?;
    let progs = open.open_object_mut().progs_mut();
    Ok(progs
        .filter_map(|prog| {
            let section = prog.section().to_str()?;
            let function = match section.split_once('/')? {
                ("lsm", hook) => format!("bpf_lsm_{hook}"),
                ("fentry", function) => function.into(),
                _ => return None,
            };
            Some((prog.name().to_str()?.into(), function))
        })
        .collect())
}

fn config<'a>(open: &'a mut OpenLsmNiceSkel<'_>) -> Result<&'a mut skel::types::config> {
    let rodata = open.maps.rodata_data.as_deref_mut().context(NO_DATA)?;
    Ok(&mut rodata.config)
}

/// The process that the kernel knows by `pid`, a PID of lsm-nice's own namespace (resolve.bpf.c).
fn ask(skel: &mut LsmNiceSkel<'_>, pid: Pid) -> Result<process> {
    let before = read(skel)?.answers;
    // SAFETY: takes a number, returns a number.
    if unsafe { libc::sched_getscheduler(pid.as_raw_pid()) } < 0 {
        let error = std::io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            Some(libc::ESRCH) => no_such_process(pid).into(),
            _ => anyhow!(error).context(format!("cannot ask the kernel for process {pid}")),
        });
    }
    let state = read(skel)?;
    if state.answers == before {
        return Err(does_not_fire("sched_getscheduler(2)"));
    }
    Ok(state.resolved)
}

/// The cgroup that the kernel has behind a directory (resolve.bpf.c).
fn ask_cgroup(skel: &mut LsmNiceSkel<'_>, cgroup: &Cgroup) -> Result<cgroup_place> {
    let before = read(skel)?.answers;
    cgroup.stat()?;
    let state = read(skel)?;
    if state.answers == before {
        return Err(does_not_fire("stat(2)"));
    }
    Ok(state.resolved_cgroup)
}

fn attach(prog: &ProgramMut<'_>) -> Result<Link> {
    prog.attach().map_err(|error| match error.kind() {
        ErrorKind::TooBig => Failure::new(
            format!(
                "the hook {} has as many BPF programs already as the kernel takes on one",
                prog.name().display()
            ),
            "end one of its other users: `bpftool link list` shows them",
        )
        .into(),
        _ => anyhow!(error).context(format!("cannot attach {}", prog.name().display())),
    })
}

/// Attaches in the order of `programs`.
fn attach_all(skel: &mut LsmNiceSkel<'_>, programs: &[&str]) -> Result<Vec<Link>> {
    programs
        .iter()
        .map(|name| {
            let prog = skel
                .object_mut()
                .progs_mut()
                .find(|prog| prog.name() == *name);
            attach(&prog.with_context(|| format!("no program {name}"))?)
        })
        .collect()
}

fn does_not_fire(call: &str) -> anyhow::Error {
    anyhow!("the hook of {call} was attached and does not fire: no guard would hold")
}

/// What the programs have written so far. They may write while this reads.
fn read(skel: &mut LsmNiceSkel<'_>) -> Result<state> {
    let bss = skel.maps.bss_data.as_deref_mut().context(NO_DATA)?;
    // SAFETY: a valid reference; the kernel writes whole words, which a volatile copy reads.
    Ok(unsafe { (&raw const bss.state).read_volatile() })
}

/// Tells the programs something. Nothing that they count while a guard stands is written here.
fn write(skel: &mut LsmNiceSkel<'_>, change: impl FnOnce(&mut state)) -> Result<()> {
    let bss = skel.maps.bss_data.as_deref_mut().context(NO_DATA)?;
    change(&mut bss.state);
    Ok(())
}
