// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The system calls that change a priority, as the kernel has them: by every table of numbers, with
//! arguments that no library would pass, by this process or by an agent.

use std::fs;
use std::sync::LazyLock;

use rustix::io::Errno;

use crate::agent::Agent;

pub const OTHER: u32 = 0;
pub const FIFO: u32 = 1;
pub const RR: u32 = 2;
pub const BATCH: u32 = 3;
pub const IDLE: u32 = 5;
pub const DEADLINE: u32 = 6;
pub const EXT: u32 = 7;

/// In the policy of sched_setscheduler(2).
pub const RESET_ON_FORK: i64 = 0x4000_0000;

/// Flags of struct sched_attr (linux/sched.h).
pub const FLAG_RESET_ON_FORK: u64 = 0x01;
pub const FLAG_KEEP_POLICY: u64 = 0x08;
pub const FLAG_KEEP_PARAMS: u64 = 0x10;
pub const FLAG_UTIL_CLAMP_MIN: u64 = 0x20;

pub const IO_PROCESS: i64 = 1;
pub const IO_PGRP: i64 = 2;
pub const IO_USER: i64 = 3;

/// Classes of an I/O priority, and the priority itself.
pub const IO_NONE: i64 = 0;
pub const IO_RT: i64 = 1;
pub const IO_BE: i64 = 2;
pub const IO_IDLE: i64 = 3;
pub const fn io(class: i64, level: i64) -> i64 {
    class << 13 | level
}

/// How a system call is named.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Table {
    Native,
    /// int $0x80, the numbers of 32-bit programs.
    Compat,
    /// The native numbers with the bit of x32, which few kernels are built with.
    X32,
}
pub use Table::{Compat, Native, X32};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Call {
    Setpriority,
    Nice,
    Setparam,
    Setscheduler,
    Setattr,
    IoprioSet,
}

impl Call {
    fn number(self, table: Table) -> i64 {
        let (native, compat) = match self {
            Self::Setpriority => (libc::SYS_setpriority, 97),
            Self::Nice => (-1, 34),
            Self::Setparam => (libc::SYS_sched_setparam, 154),
            Self::Setscheduler => (libc::SYS_sched_setscheduler, 156),
            Self::Setattr => (libc::SYS_sched_setattr, 351),
            Self::IoprioSet => (libc::SYS_ioprio_set, 289),
        };
        match table {
            Native => native,
            Compat => compat,
            X32 => native | 0x4000_0000,
        }
    }
}

/// struct sched_attr.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Attr {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
    pub util_min: u32,
    pub util_max: u32,
}

impl Attr {
    pub const SIZE: u32 = size_of::<Self>() as u32;

    pub fn new(policy: u32) -> Self {
        Self {
            size: Self::SIZE,
            policy,
            ..Self::default()
        }
    }

    pub fn nice(policy: u32, nice: i32) -> Self {
        Self {
            nice,
            ..Self::new(policy)
        }
    }

    pub fn real_time(policy: u32, priority: u32) -> Self {
        Self {
            priority,
            ..Self::new(policy)
        }
    }

    pub fn deadline() -> Self {
        Self {
            runtime: 1_000_000,
            deadline: 100_000_000,
            period: 100_000_000,
            ..Self::new(DEADLINE)
        }
    }

    pub fn flags(self, flags: u64) -> Self {
        Self { flags, ..self }
    }

    pub fn bytes(&self) -> Vec<u8> {
        // SAFETY: a struct of numbers without padding.
        unsafe { std::slice::from_raw_parts((&raw const *self).cast(), size_of::<Self>()) }.to_vec()
    }
}

/// Two pages at an address that the 32-bit table can name too, in every process the same.
pub const LOW: i64 = 0x1000_0000;
/// Nothing is mapped there.
pub const NOWHERE: i64 = LOW + 2 * 4096;

static MAPPED: LazyLock<()> = LazyLock::new(|| {
    // SAFETY: a new mapping, where none was.
    let address = unsafe {
        libc::mmap(
            std::ptr::without_provenance_mut(LOW as usize),
            2 * 4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    assert_eq!(address.addr() as i64, LOW, "a mapping at a low address");
});

/// Puts an argument of a system call at [`LOW`]. All behind it is zeroes.
pub fn poke(bytes: &[u8]) {
    const ROOM: usize = 256;
    LazyLock::force(&MAPPED);
    let low = std::ptr::with_exposed_provenance_mut::<u8>(LOW as usize);
    // SAFETY: the pages are mapped for good, and nobody has a reference into them; what is written
    // fits, as the slice below would panic otherwise.
    unsafe {
        let room = std::slice::from_raw_parts_mut(low, ROOM);
        room[bytes.len()..].fill(0);
        room[..bytes.len()].copy_from_slice(bytes);
    }
}

/// A system call of this thread.
pub fn call(table: Table, call: Call, args: [i64; 3]) -> Result<(), Errno> {
    LazyLock::force(&MAPPED);
    let number = call.number(table);
    let errno = match table {
        Compat => -int80(number, args),
        Native | X32 => syscall(number, args),
    };
    match errno.max(0) {
        0 => Ok(()),
        errno => Err(Errno::from_raw_os_error(errno)),
    }
}

/// The errno, or 0.
fn syscall(number: i64, [a, b, c]: [i64; 3]) -> i32 {
    // SAFETY: calls that change the priority of a task, and read memory of ours or fail; a bad
    // sched_attr has its size written over.
    match unsafe { libc::syscall(number, a, b, c) } {
        -1 => crate::agent::errno(-1),
        _ => 0,
    }
}

/// The negative errno of a call by the 32-bit table.
#[cfg(not(target_arch = "x86_64"))]
fn int80(_: i64, _: [i64; 3]) -> i32 {
    -libc::ENOSYS
}

#[cfg(target_arch = "x86_64")]
fn int80(number: i64, args: [i64; 3]) -> i32 {
    let mut returned = number;
    // SAFETY: as above; rbx, which the compiler keeps for itself, is given back.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {first}",
            "int 0x80",
            "xchg rbx, {first}",
            first = inout(reg) args[0] => _,
            inlateout("rax") returned,
            // no call here has a fourth argument but pkey_mprotect, which takes this for no key
            in("rcx") args[1], in("rdx") args[2], in("rsi") -1i64,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    returned as i32
}

/// Who makes a call: this process, which is root and not guarded, or an agent.
pub enum Caller<'a> {
    Outside,
    Within(&'a mut Agent),
}
pub use Caller::{Outside, Within};

impl Caller<'_> {
    pub fn call(&mut self, table: Table, which: Call, args: [i64; 3]) -> Result<(), Errno> {
        match self {
            Outside => call(table, which, args),
            Within(agent) => {
                let [a, b, c] = args;
                let number = which.number(table);
                let table = if table == Compat { "int80" } else { "syscall" };
                agent.call(&format!("{table} {number} {a} {b} {c}"))
            }
        }
    }

    pub fn poke(&mut self, bytes: &[u8]) {
        match self {
            Outside => poke(bytes),
            Within(agent) => {
                assert_eq!(agent.ask(&format!("poke {}", to_hex(bytes))), 0);
            }
        }
    }

    /// sched_setattr(2)
    pub fn setattr(&mut self, table: Table, tid: i32, attr: &Attr) -> Result<(), Errno> {
        self.poke(&attr.bytes());
        self.call(table, Call::Setattr, [tid.into(), LOW, 0])
    }

    /// sched_setscheduler(2); the policy may have [`RESET_ON_FORK`].
    pub fn setscheduler(
        &mut self,
        table: Table,
        tid: i32,
        policy: i64,
        priority: i32,
    ) -> Result<(), Errno> {
        self.poke(&priority.to_ne_bytes());
        self.call(table, Call::Setscheduler, [tid.into(), policy, LOW])
    }

    pub fn setparam(&mut self, table: Table, tid: i32, priority: i32) -> Result<(), Errno> {
        self.poke(&priority.to_ne_bytes());
        self.call(table, Call::Setparam, [tid.into(), LOW, 0])
    }

    pub fn ioprio_set(&mut self, which: i64, who: i32, ioprio: i64) -> Result<(), Errno> {
        self.call(Native, Call::IoprioSet, [which, who.into(), ioprio])
    }
}

pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn from_hex(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex"))
        .collect()
}

/// What an agent is told: `syscall` and `int80` with a number and three arguments, and `poke`.
pub fn obey(words: &[&str]) -> Option<i32> {
    let number = |at: usize| words[at].parse::<i64>().expect("a number");
    let args = || [number(2), number(3), number(4)];
    Some(match words[0] {
        "poke" => {
            poke(&from_hex(words[1]));
            0
        }
        "int80" => {
            LazyLock::force(&MAPPED);
            (-int80(number(1), args())).max(0)
        }
        "syscall" => {
            LazyLock::force(&MAPPED);
            syscall(number(1), args())
        }
        _ => return None,
    })
}

/// All that says how a task stands, as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct State {
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub io: i64,
}

pub fn try_state(tid: i32) -> Option<State> {
    let mut attr = Attr::default();
    // SAFETY: attr is as large as is said.
    let (got, io) = unsafe {
        (
            libc::syscall(
                libc::SYS_sched_getattr,
                tid,
                &raw mut attr,
                size_of::<Attr>(),
                0,
            ),
            libc::syscall(libc::SYS_ioprio_get, IO_PROCESS, tid),
        )
    };
    (got == 0 && io >= 0).then_some(State {
        policy: attr.policy,
        flags: attr.flags,
        nice: attr.nice,
        priority: attr.priority,
        io,
    })
}

#[track_caller]
pub fn state(tid: i32) -> State {
    try_state(tid).unwrap_or_else(|| panic!("the state of task {tid}"))
}

/// What a guard does: EPERM, and nothing of the task has changed. Never tried twice.
#[track_caller]
pub fn refused(tid: i32, what: &str, attempt: impl FnOnce() -> Result<(), Errno>) {
    let before = state(tid);
    let result = attempt();
    let after = state(tid);
    assert!(
        result == Err(Errno::PERM) && before == after,
        "{what} was to be EPERM: {result:?}, before {before:?}, after {after:?}"
    );
}

/// A call that is asked again where it was EPERM. One of sched_setattr(2) on a guarded process, or
/// one that writes to an autogroup, is, rarely, where its caller was preempted in it.
pub fn repeated(attempt: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    insisted(attempt).0
}

/// The same, and how often it was EPERM.
pub fn insisted(mut attempt: impl FnMut() -> Result<(), Errno>) -> (Result<(), Errno>, u64) {
    let (mut result, mut refused) = (attempt(), 0);
    while result == Err(Errno::PERM) && refused < 10 {
        refused += 1;
        result = attempt();
    }
    (result, refused)
}

/// A call that passes.
#[track_caller]
pub fn allowed(tid: i32, what: &str, attempt: impl FnMut() -> Result<(), Errno>) -> State {
    let result = repeated(attempt);
    assert_eq!(result, Ok(()), "{what}; the task is at {:?}", state(tid));
    state(tid)
}

/// Whether this kernel knows a policy: asked with a process of its own.
pub fn has_policy(policy: u32) -> bool {
    let agent = Agent::start();
    Outside.setattr(Native, agent.pid, &Attr::new(policy)) == Ok(())
}

/// The policies of this kernel that have a nice value.
pub fn policies_with_nice() -> Vec<u32> {
    let ext = has_policy(EXT).then_some(EXT);
    [OTHER, BATCH].into_iter().chain(ext).collect()
}

pub fn autogroup_file(pid: i32) -> String {
    format!("/proc/{pid}/autogroup")
}

/// The nice value of the autogroup that a process is in.
#[track_caller]
pub fn autogroup(pid: i32) -> i32 {
    let text = fs::read_to_string(autogroup_file(pid)).expect("an autogroup");
    text.trim()
        .rsplit(' ')
        .next()
        .and_then(|nice| nice.parse().ok())
        .unwrap_or_else(|| panic!("an autogroup of {text:?}"))
}

/// The priority by which the kernel schedules a task (proc(5), the 18th field of stat): below 0 is
/// real-time, whoever lent it.
pub fn effective_priority(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let (_, fields) = stat.rsplit_once(") ").expect("a name");
    fields
        .split(' ')
        .nth(15)
        .and_then(|priority| priority.parse().ok())
        .expect("a priority")
}
