// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The guard in the kernel: loaded, attached, proven, and ended.

use std::mem::MaybeUninit;
use std::os::linux::fs::MetadataExt;

use anyhow::{Context, Result, anyhow};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{ErrorKind, Link, OpenObject, ProgramMut};
use rustix::io::Errno;
use rustix::process::{Pid, getpid, getpriority_process, setpriority_process};

use crate::output::Failure;
use crate::target::Target;
use crate::trial::Child;

mod skel {
    include!(concat!(env!("OUT_DIR"), "/lsm_nice.skel.rs"));
}
use skel::types::{process, state};
use skel::{LsmNiceSkel, LsmNiceSkelBuilder};

/// The range of nice values (setpriority(2)); a lower value is a higher priority.
const HIGHEST: i32 = -20;
const LOWEST: i32 = 19;

const NO_DATA: &str = "libbpf has not mapped the data of the BPF object";

/// A guard that stands: it was proven on a child before [`Guard::start`] returned it.
pub struct Guard<'obj> {
    skel: LsmNiceSkel<'obj>,
    link: Link,
}

impl<'obj> Guard<'obj> {
    /// Guards `target`. Without one nobody is guarded but the child of the trial.
    pub fn start(
        object: &'obj mut MaybeUninit<OpenObject>,
        target: Option<&Target>,
        floor: i32,
    ) -> Result<Self> {
        let child = Child::spawn()?;
        let mut pids = vec![child.pid];
        pids.extend(target.map(|target| target.pid));
        let processes = resolve(&pids)?;
        if let Some(target) = target {
            target.must_run()?;
        }

        let mut open = LsmNiceSkelBuilder::default().open(object)?;
        let config = &mut open
            .maps
            .rodata_data
            .as_deref_mut()
            .context(NO_DATA)?
            .config;
        config.floor = floor;
        config.target = processes.get(1).copied().unwrap_or_default();
        open.progs.resolve.set_autoload(false);
        let skel = open.load()?;
        let link = attach(&skel.progs.task_setnice)?;
        let mut guard = Self { skel, link };
        guard.try_on(&child, processes[0], floor)?;
        Ok(guard)
    }

    /// Ends the guard, and says how many requests it refused.
    pub fn end(self) -> Result<u64> {
        let Self { mut skel, link } = self;
        drop(link);
        Ok(snapshot(&mut skel)?.denied)
    }

    /// Proves on the child that the hook fires: it may be given the lowest priority, and none above
    /// the floor. An earlier guard may refuse that first, so it must have been seen by this one.
    fn try_on(&mut self, child: &Child, process: process, floor: i32) -> Result<()> {
        set_trial(&mut self.skel, process)?;
        setpriority_process(Some(child.pid), LOWEST).context("cannot set a child to nice 19")?;
        if snapshot(&mut self.skel)?.trial_seen == 0 {
            return Err(does_not_fire("task_setnice"));
        }
        if floor > HIGHEST {
            let refused = setpriority_process(Some(child.pid), floor - 1);
            let nice = getpriority_process(Some(child.pid));
            if refused != Err(Errno::PERM) || nice != Ok(LOWEST) {
                return Err(anyhow!(
                    "nice {} for a guarded child should be EPERM and is {refused:?}",
                    floor - 1
                ));
            }
        }
        set_trial(&mut self.skel, process::default())
    }
}

/// The processes that the kernel knows by `pids`, PIDs of lsm-nice's own namespace.
///
/// The kernel looks them up itself, for sched_getscheduler(2), and a program on the hook
/// task_getscheduler notes what it found.
fn resolve(pids: &[Pid]) -> Result<Vec<process>> {
    let pidns = std::fs::metadata("/proc/self/ns/pid").context("cannot read /proc/self/ns/pid")?;
    let mut object = MaybeUninit::uninit();
    let mut open = LsmNiceSkelBuilder::default().open(&mut object)?;
    let config = &mut open
        .maps
        .rodata_data
        .as_deref_mut()
        .context(NO_DATA)?
        .config;
    config.asker = getpid().as_raw_pid().unsigned_abs();
    config.pidns_dev = pidns.st_dev();
    config.pidns_ino = pidns.st_ino();
    open.progs.task_setnice.set_autoload(false);
    let mut skel = open.load()?;
    let _link = attach(&skel.progs.resolve)?;

    pids.iter()
        .map(|pid| {
            let before = snapshot(&mut skel)?.resolved_count;
            // SAFETY: takes a number, returns a number.
            if unsafe { libc::sched_getscheduler(pid.as_raw_pid()) } < 0 {
                return Err(std::io::Error::last_os_error())
                    .with_context(|| format!("cannot ask the kernel for process {pid}"));
            }
            let state = snapshot(&mut skel)?;
            if state.resolved_count == before {
                return Err(does_not_fire("task_getscheduler"));
            }
            Ok(state.resolved)
        })
        .collect()
}

fn attach(prog: &ProgramMut<'_>) -> Result<Link> {
    prog.attach().map_err(|error| match error.kind() {
        ErrorKind::TooBig => Failure::new(
            format!(
                "the hook {} has all the BPF programs that the kernel takes on one (38)",
                prog.name().display()
            ),
            "end one of its other users: `bpftool link list` shows them",
        )
        .into(),
        _ => error.into(),
    })
}

fn does_not_fire(hook: &str) -> anyhow::Error {
    anyhow!("the hook {hook} was attached and does not fire: no guard would hold")
}

/// What the programs have written so far. They may write while this reads.
fn snapshot(skel: &mut LsmNiceSkel<'_>) -> Result<state> {
    let bss = skel.maps.bss_data.as_deref_mut().context(NO_DATA)?;
    // SAFETY: a valid reference; the kernel writes whole words, which a volatile copy reads.
    Ok(unsafe { (&raw const bss.state).read_volatile() })
}

fn set_trial(skel: &mut LsmNiceSkel<'_>, process: process) -> Result<()> {
    let bss = skel.maps.bss_data.as_deref_mut().context(NO_DATA)?;
    // SAFETY: a valid reference; volatile, as the kernel reads it from the same page.
    unsafe { (&raw mut bss.state.trial).write_volatile(process) };
    Ok(())
}
