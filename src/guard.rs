// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The guard in the kernel: loaded, attached, proven, and ended.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::mem::{self, MaybeUninit, offset_of, size_of};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::fs::MetadataExt;
use std::path::Path;
use std::ptr;
use std::slice;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use libbpf_rs::libbpf_sys::BTF_KIND_FUNC;
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{
    AsRawLibbpf, ErrorKind, Iter, Link, MapCore, MapFlags, OpenObject, ProgramMut, RingBuffer,
    RingBufferBuilder, libbpf_sys,
};
use plain::Plain;
use rustix::mm::{Advice, madvise};
use rustix::process::{Pid, getpid};
use rustix::time::{ClockId, clock_gettime};

use crate::attach;
use crate::btf::Kernel;
use crate::cgroup::Cgroup;
use crate::check;
use crate::output::Failure;
use crate::rules::{self, Door, RuleDoor};
use crate::standing::Standing;
use crate::target::{Target, no_such_process, pid_namespace};
use crate::trial::Child;

mod skel {
    include!(concat!(env!("OUT_DIR"), "/lsm_nice.skel.rs"));
}
use skel::types::{asked, cgroup_place, config, guarded, process, state, wanted};
use skel::{LsmNiceSkel, LsmNiceSkelBuilder, OpenLsmNiceSkel};

/// All that lsm_nice.h declares.
pub use skel::types as shared;
pub use skel::types::{counters, event, walked};
// SAFETY: numbers alone, for which every byte sequence is valid, and no padding.
unsafe impl Plain for walked {}
// SAFETY: as above.
unsafe impl Plain for event {}
// SAFETY: as above.
unsafe impl Plain for process {}
// SAFETY: as above.
unsafe impl Plain for asked {}
// SAFETY: as above.
unsafe impl Plain for wanted {}
// SAFETY: numbers alone; only read.
unsafe impl Plain for config {}
// SAFETY: as above.
unsafe impl Plain for state {}
// The other half is in lsm_nice.h.
const _: () = assert!(
    size_of::<event>() == 184
        && offset_of!(event, target) == 24
        && offset_of!(event, asked) == 80
        && offset_of!(event, exe) == 120
);

/// Who made a guard, and the layout of what others read of it: another number for any change of
/// config, state, event, walked, the enums in them (lsm_nice.h), of a map that is shared or of how
/// it is looked up (guarded.h).
pub const MADE_BY: &str = concat!("lsm-nice ", env!("CARGO_PKG_VERSION"), ", layout 5");
// What to think of where one of these fails.
const _: () = assert!(
    MADE_BY.len() < 32
        && size_of::<config>() == 112
        && size_of::<state>() == 200
        && size_of::<asked>() == 20
        && size_of::<walked>() == 24
);

/// Rounds of marking before a start is given up.
const MOST_ROUNDS: usize = 1000;

/// What the names of the programs begin with that note a call for a hook.
pub const NOTE: &str = "note_";

/// The programs that pass marks on.
const INHERIT: [&str; 2] = ["task_alloc", "task_newtask"];
/// The program that lists who is guarded.
pub const WALK: &str = "walk";

const NO_DATA: &str = "libbpf has not mapped the data of the BPF object";

/// Who is to be guarded, and from what.
pub struct Request<'a> {
    pub floor: i32,
    pub doors: Vec<RuleDoor>,
    pub targets: &'a [Target],
    /// The present descendants of the processes too.
    pub tree: bool,
    /// What the guarded start later too.
    pub children: bool,
    pub cgroup: Option<&'a Cgroup>,
    /// The guard is to outlive lsm-nice.
    pub pinned: bool,
    /// Whose marks it goes on with.
    pub replaces: Option<&'a Standing>,
    /// The targets of that.
    pub kept: &'a [(process, asked)],
    /// Nothing is refused.
    pub audit: bool,
    pub reports: Reports,
    /// They are printed as JSON, which alone has the executable of who calls.
    pub json: bool,
}

/// The requests for guarded processes that are reported.
#[derive(Clone, Copy, PartialEq)]
pub enum Reports {
    Nothing,
    Forbidden,
    All,
}

impl Request<'_> {
    /// One process at the most and nothing else: a constant in the program is all that it needs.
    pub fn is_plain(&self) -> bool {
        self.targets.len() <= 1
            && !self.tree
            && !self.children
            && self.cgroup.is_none()
            && !self.pinned
    }

    pub fn has(&self, door: &Door) -> bool {
        self.doors.iter().any(|(_, has)| ptr::eq(*has, door))
    }

    fn marks(&self) -> bool {
        !self.is_plain() && (!self.targets.is_empty() || self.children || self.pinned)
    }

    /// The programs of the guard that stay attached.
    fn links(&self) -> usize {
        let inherit = if self.marks() { INHERIT.len() } else { 0 };
        self.programs().len() + inherit + usize::from(!self.is_plain())
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
    links: Vec<(&'static str, Link)>,
    walk: Option<Link>,
    /// What a start alone needs.
    finders: Vec<Link>,
    clock: Clock,
    pub audit: bool,
}

/// What the clock of lsm-nice's time namespace is ahead of the kernel's own, ns.
#[derive(Clone, Copy, Default)]
pub struct Clock(i64);

impl Clock {
    /// From the time that the kernel saw between two that lsm-nice has seen.
    pub fn set(&mut self, before: i64, kernel: u64, after: i64) {
        let kernel = kernel.cast_signed();
        let agrees = (before..=after).contains(&kernel);
        self.0 = if agrees { 0 } else { after - kernel };
    }

    /// How long ago something was at `time` of the kernel's clock, ns.
    pub fn age(self, time: u64) -> i64 {
        boot_time() - self.0 - time.cast_signed()
    }
}

pub fn boot_time() -> i64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

impl<'obj> Guard<'obj> {
    pub fn start(object: &'obj mut MaybeUninit<OpenObject>, request: &Request<'_>) -> Result<Self> {
        check::capable()?;
        check::preemption()?;
        if request.reports != Reports::Nothing {
            check::ring_buffer()?;
        }
        let mut child = Child::spawn()?;
        let mut programs = request.programs();
        if request.is_plain() {
            programs.push("resolve");
        } else {
            check::task_storage()?;
            programs.push(WALK);
        }
        if request.marks() {
            programs.extend(INHERIT);
        }
        if request.cgroup.is_some() {
            programs.push("resolve_cgroup");
        }
        let kernel = Kernel::read();
        let kernel_types = kernel.as_ref().and_then(Kernel::reduced);
        if kernel_types.is_some() {
            attach::spare_libbpf_the_search();
        }
        let mut open = open(object, &programs, request, kernel_types.as_ref())?;
        if let Some(kernel) = kernel {
            let progs = open.open_object().progs().filter(|prog| prog.autoload());
            attach::find(
                &kernel,
                progs.filter_map(|prog| Some(prog.section().to_str()?.into())),
            )?;
        }
        let kept_cgroup = request.replaces.map_or(Ok(None), Standing::cgroup)?;
        let config = config_of(&mut open)?;
        config.marks = request.marks().into();
        config.children = request.children.into();
        config.cgroup = (request.cgroup.is_some() || kept_cgroup.is_some()).into();
        open.maps.marked_late.set_max_entries(4096 + 2 * tasks())?;
        let maps = &mut open.maps;
        for (name, map) in [
            ("marks", &mut maps.marks),
            (".bss.markable", &mut maps.bss_markable),
            ("marked_late", &mut maps.marked_late),
        ] {
            map.set_autocreate(request.marks())?;
            if let Some(old) = request.replaces {
                map.reuse_fd(old.map(name)?.as_fd())?;
            }
        }
        let mut skel = open.load()?;

        let mut clock = Clock::default();
        let mut finders = Vec::new();
        if request.is_plain() {
            finders.push(attach(&skel.progs.resolve)?);
            if let [target] = request.targets {
                let process = ask(&mut skel, target.pid, &mut clock)?;
                write(&mut skel, |state| state.target = process)?;
                name(&skel, &process, &asked_for(target))?;
            }
        }
        if let Some(place) = kept_cgroup {
            write(&mut skel, |state| state.cgroup = place)?;
        }
        if let Some(cgroup) = request.cgroup {
            finders.push(attach(&skel.progs.resolve_cgroup)?);
            let place = ask_cgroup(&mut skel, cgroup)?;
            write(&mut skel, |state| state.cgroup = place)?;
        }
        write(&mut skel, |state| state.starting = 1)?;
        // what is marked from here on passes its mark on
        let mut links = Vec::new();
        if request.marks() {
            links.extend(attach_all(&mut skel, &INHERIT)?);
        }
        let walk = (!request.is_plain())
            .then(|| attach(&skel.progs.walk))
            .transpose()?;
        let mut guard = Self {
            skel,
            links,
            walk,
            finders,
            clock,
            audit: request.audit,
        };
        let process = if request.is_plain() {
            ask(&mut guard.skel, child.pid, &mut guard.clock)?
        } else {
            // the child may belong to a tree that is to be marked; and events need to know the PID
            // namespace
            want(&guard.skel, child.pid, guarded::TRIAL)?;
            for target in request.targets {
                want(&guard.skel, target.pid, guarded::GUARDED)?;
            }
            let asked = boot_time();
            guard.guarded_tasks()?;
            guard
                .clock
                .set(asked, read(&mut guard.skel)?.asked_at, boot_time());
            found(&guard.skel, child.pid)?
        };
        let doors = attach_all(&mut guard.skel, &request.programs())?;
        guard.links.extend(doors);
        let first = guard.links.first().map_or(WALK, |(name, _)| name);
        bind_targets(&guard.skel, first);
        if request.marks() {
            guard.mark(request)?;
        }
        write(&mut guard.skel, |state| state.starting = 0)?;
        guard.try_on(&mut child, process, request)?;
        Ok(guard)
    }

    /// Marks every thread of the processes asked for, and with --tree of their descendants.
    ///
    /// A thread that was not marked yet may have started another, or have replaced its leader by
    /// exec, behind the back of a walk; so the marking ends with rounds that changed nothing.
    fn mark(&mut self, request: &Request<'_>) -> Result<()> {
        for (process, asked) in request.kept {
            name(&self.skel, process, asked)?;
        }
        let mut quiet_rounds = 0;
        for _ in 0..MOST_ROUNDS {
            let before = read(&mut self.skel)?;
            if before.missed > 0 {
                break;
            }
            self.guarded_tasks()?;
            let after = read(&mut self.skel)?;
            if after.unmarked != before.unmarked {
                // the kernel refills what it allocates from in a moment
                thread::sleep(Duration::from_millis(1));
            }
            let quiet = (after.marked, after.unmarked) == (before.marked, before.unmarked);
            quiet_rounds = if quiet { quiet_rounds + 1 } else { 0 };
            if quiet_rounds == 2 && after.missed == 0 {
                for target in request.targets {
                    let process = found(&self.skel, target.pid)?;
                    name(&self.skel, &process, &asked_for(target))?;
                }
                return Ok(());
            }
        }
        Err(Failure::new(
            "the processes could not all be marked: the kernel has no memory for it, or they start \
             others too fast",
            match request.replaces {
                None => "give lsm-nice more memory, or guard their cgroup with --cgroup",
                // the map of who was marked has the size that it was made with
                Some(_) => {
                    "guard the new ones by another name, or guard their cgroup with --cgroup"
                }
            },
        )
        .into())
    }

    /// How many tasks were made by guarded ones so far.
    pub fn inherited(&mut self) -> Result<u64> {
        Ok(read(&mut self.skel)?.inherited)
    }

    /// The guarded tasks that have not exited; nothing in the plain case, which needs no walk.
    pub fn guarded_tasks(&mut self) -> Result<Vec<walked>> {
        let Some(walk) = &self.walk else {
            return Ok(Vec::new());
        };
        Iter::new(walk)
            .map_err(anyhow::Error::from)
            .and_then(listed)
            .context("cannot list the guarded tasks")
    }

    /// The ring buffer of reports.
    pub fn events(&self) -> &dyn MapCore {
        &self.skel.maps.events
    }

    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Pins all of the guard in `dir`.
    pub fn pin(&mut self, dir: &Path) -> Result<()> {
        let walk = self.walk.iter_mut().map(|link| (WALK, link));
        let links = self.links.iter_mut().map(|(name, link)| (*name, link));
        for (name, link) in links.chain(walk) {
            link.pin(dir.join(name))?;
        }
        for mut map in self.skel.object_mut().maps_mut() {
            if map.autocreate() {
                // bpffs keeps names with dots for itself
                let name = map.name().to_string_lossy().replace('.', "_");
                map.pin(dir.join(name))?;
            }
        }
        Ok(())
    }

    /// From here on every report is lost, and counted so.
    pub fn report_no_more(&mut self) -> Result<()> {
        write(&mut self.skel, |state| state.deaf = 1)
    }

    pub fn counters(&mut self) -> Result<counters> {
        Ok(read(&mut self.skel)?.counters)
    }

    /// Takes off what finds the targets, beside what follows: up to 6.18 the kernel waits 100 ms at
    /// each.
    pub fn has_started(&mut self) {
        let finders = mem::take(&mut self.finders);
        // without a thread they are dropped here
        let _ = thread::Builder::new().spawn(|| {
            drop(finders);
            give_back();
        });
        if let Some(markable) = self.skel.maps.bss_markable_data.as_deref_mut() {
            let length = size_of_val(markable);
            // SAFETY: mapped for libbpf alone, which looks at it no more.
            let _ = unsafe {
                madvise(
                    ptr::from_mut(markable).cast(),
                    length,
                    Advice::LinuxDontNeed,
                )
            };
        }
        let progs = &self.skel.progs;
        for prog in [&progs.resolve, &progs.resolve_cgroup] {
            // SAFETY: a program of the object, of which nobody has the descriptor.
            unsafe { libbpf_sys::bpf_program__unload(prog.as_libbpf_object().as_ptr()) };
        }
    }

    /// Ends the guard; what it counted and reported can still be read.
    pub fn end(&mut self) {
        self.detach();
        // the last calls that it judges
        finish_calls();
    }

    /// The hooks first, as they refuse a request without its note.
    fn detach(&mut self) {
        while self.links.pop().is_some() {}
    }

    /// Proves on the child, and where children inherit on a child of it, that each door is shut.
    ///
    /// Another guard may refuse what this one would; so it must have seen the call that both allow.
    fn try_on(&mut self, child: &mut Child, process: process, request: &Request<'_>) -> Result<()> {
        finish_calls();
        write(&mut self.skel, |state| {
            state.trial = process;
            state.all = 1;
        })?;
        self.try_doors(child, request)?;
        if request.marks() && request.children {
            child.fork()?;
            self.try_doors(child, request)?;
        }
        write(&mut self.skel, |state| {
            state.trial = process::default();
            state.all = (request.reports == Reports::All).into();
        })
    }

    fn try_doors(&mut self, child: &Child, request: &Request<'_>) -> Result<()> {
        for (_, door) in &request.doors {
            let before = read(&mut self.skel)?.trial_seen;
            (door.prove)(child, request.floor, &mut || {
                if read(&mut self.skel)?.trial_seen == before {
                    return Err(does_not_fire(door.call));
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// A start that fails half-way ends like a guard.
impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.detach();
    }
}

/// What the walk has written.
pub fn listed(mut walk: impl Read) -> Result<Vec<walked>> {
    let mut bytes = Vec::new();
    walk.read_to_end(&mut bytes)?;
    bytes
        .chunks_exact(size_of::<walked>())
        .map(from_bytes)
        .collect()
}

/// What the kernel has copied.
pub fn from_bytes<T: Plain + Default>(bytes: &[u8]) -> Result<T> {
    let mut value = T::default();
    value
        .copy_from_bytes(bytes)
        .map_err(|error| anyhow!("the kernel has given too little: {error:?}"))?;
    Ok(value)
}

fn asked_for(target: &Target) -> asked {
    let mut asked = asked {
        pid: target.pid.as_raw_pid(),
        ..asked::default()
    };
    let length = target.comm.len().min(asked.comm.len() - 1);
    asked.comm[..length].copy_from_slice(&target.comm[..length]);
    asked
}

/// Writes down a target as it was named.
fn name(skel: &LsmNiceSkel<'_>, process: &process, asked: &asked) -> Result<()> {
    let (process, asked) = (bytes_of(process), bytes_of(asked));
    Ok(skel.maps.targets.update(process, asked, MapFlags::ANY)?)
}

/// Has the walk find a process of lsm-nice's own PID namespace, and mark it.
fn want(skel: &LsmNiceSkel<'_>, pid: Pid, r#as: guarded) -> Result<()> {
    let wanted = wanted {
        r#as,
        ..wanted::default()
    };
    let (pid, wanted) = (pid.as_raw_pid().to_ne_bytes(), bytes_of(&wanted));
    Ok(skel.maps.wanted.update(&pid, wanted, MapFlags::ANY)?)
}

/// What the walk has found for it.
fn found(skel: &LsmNiceSkel<'_>, pid: Pid) -> Result<process> {
    let key = pid.as_raw_pid().to_ne_bytes();
    let found = skel.maps.wanted.lookup(&key, MapFlags::ANY)?;
    let wanted: wanted = from_bytes(&found.context(NO_DATA)?)?;
    match wanted.process.tgid {
        0 => Err(no_such_process(pid).into()),
        _ => Ok(wanted.process),
    }
}

/// Lets others find the targets by a program of the guard, from 5.10 on.
fn bind_targets(skel: &LsmNiceSkel<'_>, program: &str) {
    let targets = &skel.maps.targets;
    if let Some(program) = skel.object().progs().find(|prog| prog.name() == program)
        && targets.autocreate()
    {
        let (program, targets) = (program.as_fd().as_raw_fd(), targets.as_fd().as_raw_fd());
        // SAFETY: two descriptors that are open, and no options.
        unsafe { libbpf_sys::bpf_prog_bind_map(program, targets, ptr::null()) };
    }
}

fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: every Plain type here is numbers without padding.
    unsafe { plain::as_bytes(value) }
}

/// Hands each report in `events` to `take`, when the ring buffer is asked for them.
pub fn reports(
    events: &dyn MapCore,
    mut take: impl FnMut(&event) + 'static,
) -> Result<RingBuffer<'static>> {
    let mut builder = RingBufferBuilder::new();
    builder.add(events, move |bytes| {
        if let Ok(event) = plain::from_bytes(bytes) {
            take(event);
        }
        0
    })?;
    Ok(builder.build()?)
}

/// The object with `programs` to be loaded, and the identity of lsm-nice for those that ask for it.
fn open<'obj>(
    object: &'obj mut MaybeUninit<OpenObject>,
    programs: &[&str],
    request: &Request<'_>,
    kernel_types: Option<&File>,
) -> Result<OpenLsmNiceSkel<'obj>> {
    let mut builder = LsmNiceSkelBuilder::default();
    if let Some(file) = kernel_types {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        builder.obj_builder.btf_custom_path(path)?;
    }
    let mut open = builder.open(object)?;
    for mut prog in open.open_object_mut().progs_mut() {
        let wanted = prog
            .name()
            .to_str()
            .is_some_and(|name| programs.contains(&name));
        prog.set_autoload(wanted);
    }
    let notes = programs.iter().any(|name| name.starts_with(NOTE));
    open.maps.notes.set_autocreate(notes)?;
    let events = request.reports != Reports::Nothing;
    open.maps.events.set_autocreate(events)?;
    open.maps.wanted.set_autocreate(!request.is_plain())?;
    let wanted = u32::try_from(request.targets.len() + 1)?;
    open.maps.wanted.set_max_entries(wanted)?;
    let targets = u32::try_from(request.targets.len() + request.kept.len())?;
    open.maps.targets.set_autocreate(targets > 0)?;
    open.maps.targets.set_max_entries(targets.max(1))?;
    let pidns = pid_namespace()?;
    let config = config_of(&mut open)?;
    config.made_by[..MADE_BY.len()].copy_from_slice(MADE_BY.as_bytes());
    config.round = (boot_time() / 1000) as u32;
    config.links = request.links() as u32;
    config.asker = getpid().as_raw_pid().unsigned_abs();
    if request.is_plain() {
        config.pid = request
            .targets
            .first()
            .map_or(0, |target| target.pid.as_raw_pid());
    }
    config.pidns_dev = pidns.st_dev();
    config.pidns_ino = pidns.st_ino();
    config.floor = request.floor;
    config.io_floor = rules::io_floor(request.floor);
    config.rules = request
        .doors
        .iter()
        .fold(0, |rules, (rule, _)| rules | rule.bit);
    config.autogroup = programs.contains(&"note_autogroup").into();
    config.tree = request.tree.into();
    config.audit = request.audit.into();
    config.events = events.into();
    config.allowed = (request.reports == Reports::All).into();
    // of a pinned guard it is not known who will read them
    config.exe = (request.json || request.pinned).into();
    Ok(open)
}

/// The kernel's functions that programs are attached to, by the name of the program.
pub fn functions() -> Result<HashMap<String, String>> {
    let mut object = MaybeUninit::uninit();
    let open = LsmNiceSkelBuilder::default().open(&mut object)?;
    let progs = open.open_object().progs();
    Ok(progs
        .filter_map(|prog| {
            let (kind, function) = attach::attached_to(prog.section().to_str()?)?;
            (kind == BTF_KIND_FUNC).then_some((prog.name().to_str()?.into(), function))
        })
        .collect())
}

fn config_of<'a>(open: &'a mut OpenLsmNiceSkel<'_>) -> Result<&'a mut config> {
    let rodata = open.maps.rodata_data.as_deref_mut().context(NO_DATA)?;
    Ok(&mut rodata.config)
}

/// The process that the kernel knows by `pid`, a PID of lsm-nice's own namespace (resolve.bpf.c).
fn ask(skel: &mut LsmNiceSkel<'_>, pid: Pid, clock: &mut Clock) -> Result<process> {
    let before = read(skel)?.answers;
    let asked = boot_time();
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
    clock.set(asked, state.asked_at, boot_time());
    Ok(state.resolved)
}

/// The cgroup that the kernel has behind a directory (resolve.bpf.c).
fn ask_cgroup(skel: &mut LsmNiceSkel<'_>, cgroup: &Cgroup) -> Result<cgroup_place> {
    let before = read(skel)?.answers;
    let inode = cgroup.inode()?;
    let state = read(skel)?;
    if state.answers == before {
        return Err(does_not_fire("stat(2)"));
    }
    if state.resolved_cgroup.id != inode {
        return Err(anyhow!(
            "the kernel does not know {} as a cgroup",
            cgroup.path.display()
        ));
    }
    Ok(state.resolved_cgroup)
}

/// Gives back the memory that a start alone needs: free parts of the heap, and the code, of which what
/// is needed again comes from the page cache.
fn give_back() {
    for pages in code() {
        // SAFETY: code and constants, which nobody has written to: they are as the file has them.
        let _ = unsafe {
            madvise(
                ptr::without_provenance_mut(pages.start),
                pages.len(),
                Advice::LinuxDontNeed,
            )
        };
    }
    // SAFETY: takes a number.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

/// The pages of the binary that are not writable. Between two segments there may be a page that is none
/// of them, where the kernel has put something else, such as the data of the BPF object.
fn code() -> Vec<Range<usize>> {
    // SAFETY: takes numbers.
    let (at, number) = unsafe {
        (
            libc::getauxval(libc::AT_PHDR),
            libc::getauxval(libc::AT_PHNUM),
        )
    };
    if at == 0 {
        return Vec::new();
    }
    let at = at as usize;
    // SAFETY: the program headers, which the kernel has mapped there.
    let headers = unsafe {
        slice::from_raw_parts(
            ptr::with_exposed_provenance::<libc::Elf64_Phdr>(at),
            number as usize,
        )
    };
    let Some(own) = headers
        .iter()
        .find(|segment| segment.p_type == libc::PT_PHDR)
    else {
        return Vec::new();
    };
    let base = at - own.p_vaddr as usize;
    let page = rustix::param::page_size();
    headers
        .iter()
        .filter(|segment| segment.p_type == libc::PT_LOAD && segment.p_flags & libc::PF_W == 0)
        .map(|segment| {
            let start = base + segment.p_vaddr as usize;
            let end = start + segment.p_memsz as usize;
            start.next_multiple_of(page)..end - end % page
        })
        .collect()
}

/// Waits for the end of the calls to setpriority(2) and ioprio_set(2) that were past the hook when
/// it was attached: they run inside of an RCU read section (membarrier(2), synchronize_rcu()).
fn finish_calls() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes numbers, returns a number. A kernel without it has nothing to offer instead.
    unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
}

/// How many tasks there are, the kernel's own included.
fn tasks() -> u32 {
    std::fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|line| line.split(['/', ' ']).nth(4)?.parse().ok())
        .unwrap_or(32768)
}

fn attach(prog: &ProgramMut<'_>) -> Result<Link> {
    attach::attach(prog).map_err(|error| match error.kind() {
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
fn attach_all(
    skel: &mut LsmNiceSkel<'_>,
    programs: &[&'static str],
) -> Result<Vec<(&'static str, Link)>> {
    programs
        .iter()
        .map(|name| {
            let prog = skel
                .object_mut()
                .progs_mut()
                .find(|prog| prog.name() == *name);
            let prog = prog.with_context(|| format!("no program {name}"))?;
            Ok((*name, attach(&prog)?))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_the_binarys_own() {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc");
        let exe = std::env::current_exe().expect("an executable");
        let number = |word| usize::from_str_radix(word, 16).expect("an address");
        let own: Vec<_> = maps
            .lines()
            .filter(|line| line.ends_with(exe.to_str().expect("UTF-8")) && !line.contains(" rw"))
            .filter_map(|line| line.split_once(' ')?.0.split_once('-'))
            .flat_map(|(start, end)| (number(start)..number(end)).step_by(4096))
            .collect();
        let pages = code().into_iter().flat_map(|pages| pages.step_by(4096));
        let pages = Vec::from_iter(pages);
        assert!(pages.len() > 256, "{pages:x?}");
        assert!(
            pages.iter().all(|page| own.contains(page)),
            "{pages:x?} {maps}"
        );
        give_back();
    }
}
