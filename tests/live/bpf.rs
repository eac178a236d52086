// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! BPF as others use it on the same machine: programs of theirs on our hook, and what is loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::agent::Agent;
use crate::helpers::{Lsm, eventually};
use libbpf_rs::MapType;
use libbpf_rs::query::{BtfInfoIter, LinkInfoIter, MapInfoIter, ProgInfoIter};
use libbpf_sys::{BPF_LSM_MAC, BPF_PROG_TYPE_LSM, bpf_iter_create, bpf_link_get_fd_by_id};

/// Another user's program on the hook task_setnice, attached until it is dropped.
pub struct Foreign {
    _program: OwnedFd,
    _link: OwnedFd,
}

/// Which nice values a [`Foreign`] refuses, whoever's.
pub enum When {
    Is(i32),
    Below(i32),
    Never,
}

impl Foreign {
    pub fn attach(when: When, errno: i32) -> io::Result<Self> {
        // Opcodes of uapi/linux/bpf.h; the jumps look at the low 32 bits, as nice is an int.
        const LOAD_U64: u8 = 0x79;
        const MOVE: u8 = 0xb7;
        const JUMP_NOT_EQUAL: u8 = 0x56;
        const JUMP_SIGNED_GREATER_OR_EQUAL: u8 = 0x76;
        const JUMP: u8 = 0x05;
        const EXIT: u8 = 0x95;
        let (jump, value) = match when {
            When::Is(nice) => (JUMP_NOT_EQUAL, nice),
            When::Below(nice) => (JUMP_SIGNED_GREATER_OR_EQUAL, nice),
            When::Never => (JUMP, 0),
        };
        let (nice, returned) = (2, 0);
        let mut program = vec![
            insn(LOAD_U64, nice, 1, 8, 0), // the second argument of the hook
            insn(MOVE, returned, 0, 0, 0),
            insn(jump, nice, 0, 1, value), // over the next one
            insn(MOVE, returned, 0, 0, -errno),
            insn(EXIT, 0, 0, 0, 0),
        ];
        if matches!(when, When::Never) {
            // The verifier takes no code that is never reached, nor a register beside JUMP.
            program.drain(2..4);
        }
        // SAFETY: a valid name; it is looked up in the BTF of the kernel.
        let hook = unsafe {
            libbpf_sys::libbpf_find_vmlinux_btf_id(c"task_setnice".as_ptr(), BPF_LSM_MAC)
        };
        let mut options = libbpf_sys::bpf_prog_load_opts {
            sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
            expected_attach_type: BPF_LSM_MAC,
            attach_btf_id: check(hook)?.cast_unsigned(),
            ..Default::default()
        };
        // SAFETY: strings and instructions that live; a bpf_insn is 8 bytes, in the layout of `insn`.
        let program = owned(unsafe {
            libbpf_sys::bpf_prog_load(
                BPF_PROG_TYPE_LSM,
                c"foreign".as_ptr(),
                c"GPL".as_ptr(),
                program.as_ptr().cast(),
                program.len() as libbpf_sys::size_t,
                &raw mut options,
            )
        })?;
        // SAFETY: a program of ours; an LSM program is attached without a name.
        let link = owned(unsafe {
            libbpf_sys::bpf_raw_tracepoint_open(std::ptr::null(), program.as_raw_fd())
        })?;
        Ok(Self {
            _program: program,
            _link: link,
        })
    }
}

/// struct bpf_insn, little endian.
fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> u64 {
    u64::from(code)
        | u64::from(dst | src << 4) << 8
        | u64::from(off.cast_unsigned()) << 16
        | u64::from(imm.cast_unsigned()) << 32
}

/// libbpf returns a negative errno.
fn check(returned: i32) -> io::Result<i32> {
    if returned < 0 {
        return Err(io::Error::from_raw_os_error(-returned));
    }
    Ok(returned)
}

fn owned(returned: i32) -> io::Result<OwnedFd> {
    // SAFETY: libbpf returned a new descriptor.
    check(returned).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Reads every iterator once, as whoever finds its link by the id may.
pub fn read_iterators() {
    for link in LinkInfoIter::default() {
        // SAFETY: takes a number.
        let Ok(link) = owned(unsafe { bpf_link_get_fd_by_id(link.id) }) else {
            continue;
        };
        // SAFETY: takes a descriptor that is open, and no options.
        let iterator = owned(unsafe { bpf_iter_create(link.as_raw_fd()) });
        // the others are no iterators
        if let Ok(iterator) = iterator {
            let _ = io::copy(&mut File::from(iterator), &mut io::sink());
        }
    }
}

/// How many objects the kernel holds.
#[derive(Debug, PartialEq)]
pub struct Loaded {
    programs: usize,
    links: usize,
    maps: usize,
    btf: usize,
}

impl Loaded {
    pub fn now() -> Self {
        Self {
            programs: ProgInfoIter::default().count(),
            links: LinkInfoIter::default().count(),
            maps: MapInfoIter::default().count(),
            btf: BtfInfoIter::default().count(),
        }
    }

    /// The kernel frees some objects only after a grace period: also what earlier tests left may
    /// have been counted here.
    #[track_caller]
    pub fn is_not_exceeded(&self) {
        let mut now = Self::now();
        let settled = eventually(|| {
            now = Self::now();
            (now.programs <= self.programs
                && now.links <= self.links
                && now.maps <= self.maps
                && now.btf <= self.btf)
                .then_some(())
        });
        assert!(settled.is_some(), "{now:?} are more than {self:?}");
    }
}

/// A guard of one process by each of the rules loads that program, and no other.
#[track_caller]
pub fn loads_alone(program: &str, rules: &[&str]) {
    let target = Agent::start();
    for rules in rules {
        let before = Present::now();
        let lsm = Lsm::start(&format!(
            "--pid {} --no-children --rule {rules}",
            target.pid
        ));
        let present = before.added();
        assert_eq!(present.programs, [program], "{rules}");
        assert_eq!(present.attached, [program], "{rules}");
        lsm.end();
    }
}

/// Whether a program of this name is loaded.
pub fn is_loaded(name: &str) -> bool {
    ProgInfoIter::default().any(|program| program.name == name)
}

/// What the kernel holds, by id: what an earlier test has left may go at any time.
pub struct Present {
    programs: BTreeMap<u32, String>,
    /// The programs that have a link, so that they are called.
    attached: BTreeSet<u32>,
    task_storages: BTreeSet<u32>,
    ring_buffers: BTreeSet<u32>,
}

impl Present {
    pub fn now() -> Self {
        let maps = |kind| {
            MapInfoIter::default()
                .filter(|map| map.ty == kind)
                .map(|map| map.id)
                .collect()
        };
        Self {
            programs: ProgInfoIter::default()
                .map(|program| (program.id, program.name.to_string_lossy().into_owned()))
                .collect(),
            attached: LinkInfoIter::default().map(|link| link.prog_id).collect(),
            task_storages: maps(MapType::TaskStorage),
            ring_buffers: maps(MapType::RingBuf),
        }
    }

    /// What a guard has added since, when what its start alone needs has been unloaded.
    pub fn added(&self) -> Added {
        eventually(|| {
            let added = Self::now().without(self);
            let starts = added
                .programs
                .iter()
                .any(|name| name.starts_with("resolve"));
            (!starts).then_some(added)
        })
        .expect("what finds the targets stays loaded")
    }

    fn without(&self, before: &Self) -> Added {
        let new = |id: &&u32| !before.programs.contains_key(*id);
        let name = |id: &u32| self.programs.get(id).cloned();
        Added {
            programs: sorted(self.programs.keys().filter(new).filter_map(name).collect()),
            attached: sorted(self.attached.iter().filter(new).filter_map(name).collect()),
            task_storages: (&self.task_storages - &before.task_storages).len(),
            ring_buffers: (&self.ring_buffers - &before.ring_buffers).len(),
        }
    }
}

/// What has been loaded meanwhile: names, sorted.
pub struct Added {
    pub programs: Vec<String>,
    pub attached: Vec<String>,
    pub task_storages: usize,
    pub ring_buffers: usize,
}

impl Added {
    /// Whether a program of this name is attached.
    pub fn has(&self, name: &str) -> bool {
        self.attached.iter().any(|attached| attached == name)
    }
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}
