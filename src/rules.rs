// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The rules: what each refuses, by which programs, and how it proves itself on a child.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::io::Errno;
use rustix::process::{Pid, getpriority_process, setpriority_process};
use rustix::thread::{sched_getaffinity, sched_setaffinity};

use serde_json::{Value, json};

use crate::guard::shared::rule as bits;
use crate::trial::{Call, Child};

/// The range of nice values (setpriority(2)); a lower value is a higher priority.
pub const HIGHEST: i32 = -20;
pub const LOWEST: i32 = 19;

/// The lowest I/O priority of class best-effort (ioprio_set(2)).
const LOWEST_IO: i32 = 7;
const PAGE: usize = 4096;
const IOPRIO_WHO_PROCESS: libc::c_int = 1;
const IOPRIO_CLASS_RT: i32 = 1;
const IOPRIO_CLASS_BE: i32 = 2;
const IOPRIO_CLASS_SHIFT: i32 = 13;
/// Both the classes and the levels have three bits; hints for the device lie between.
const IOPRIO_LEVEL_MASK: i64 = 7;
const SCHED_EXT: i32 = 7; // linux/sched.h, from 6.12 on
const AF_SMC: i32 = 43; // linux/socket.h
const IPPROTO_SMC: i32 = 256; // linux/in.h, from 6.11 on

/// A new hook is a row here.
pub struct Rule {
    pub name: &'static str,
    pub bit: u32,
    /// The guarded task is the one that calls, not the one that is acted upon: an event changes
    /// nothing that the task had.
    pub of_caller: bool,
    /// What --help says of it.
    pub refuses: &'static str,
    /// What the guarding line says of it.
    pub ceiling: fn(floor: i32) -> String,
    /// How a thread is above the ceiling.
    pub raised: fn(tid: Pid, floor: i32) -> Option<String>,
    /// A value of an event, as JSON has it (struct event in lsm_nice.h).
    pub value: fn(&[i64]) -> Value,
    /// What an event changes, or would, as text has it: from what it had to what is asked.
    pub change: fn(had: Values<'_>, asked: Values<'_>, floor: i32) -> String,
    pub doors: &'static [Door],
}

/// None is not known.
pub type Values<'a> = Option<&'a [i64]>;

/// A way to what a rule refuses.
pub struct Door {
    pub call: &'static str,
    pub programs: &'static [&'static str],
    /// Makes an allowed call on the child, or has it make one, which `seen` must count, and a
    /// refused one.
    pub prove: fn(child: &Child, floor: i32, seen: Seen<'_>) -> Result<()>,
}

pub type RuleDoor = (&'static Rule, &'static Door);

pub static RULES: [Rule; 7] = [
    Rule {
        name: "nice",
        bit: bits::RULE_NICE.0,
        of_caller: false,
        refuses: "a nice value below the floor, by whichever call",
        ceiling: |floor| format!("no nice value below {floor}"),
        raised: |tid, floor| {
            let nice = getpriority_process(Some(tid)).ok()?;
            (nice < floor).then(|| format!("at nice {nice}, below the floor {floor}"))
        },
        value: |values| json!({"nice": values[0]}),
        change: |had, asked, floor| {
            let change = change(had, asked, |values| values[0].to_string());
            format!("nice {change}, floor {floor}")
        },
        doors: &[
            Door {
                call: "setpriority(2), nice(2)",
                programs: &["task_setnice"],
                prove: prove_setpriority,
            },
            Door {
                call: "sched_setattr(2)",
                programs: &["note_setscheduler", "task_setscheduler"],
                prove: prove_setattr,
            },
            Door {
                call: AUTOGROUP,
                programs: &["note_autogroup", "task_setnice"],
                prove: prove_autogroup,
            },
        ],
    },
    Rule {
        name: "sched",
        bit: bits::RULE_SCHED.0,
        of_caller: false,
        refuses: "the classes above SCHED_OTHER: FIFO, RR and DEADLINE",
        ceiling: |_| "no class above SCHED_OTHER".into(),
        raised: |tid, _| {
            let policy = getscheduler(tid).ok()?;
            let policy = policy & !libc::SCHED_RESET_ON_FORK;
            matches!(
                policy,
                libc::SCHED_FIFO | libc::SCHED_RR | libc::SCHED_DEADLINE
            )
            .then(|| format!("in {}", policy_name(policy.into())))
        },
        value: |values| {
            let priority = (values[1] >= 0).then_some(values[1]);
            json!({"policy": policy_name(values[0]), "priority": priority})
        },
        change: |had, asked, _| {
            let policy = |values: Values<'_>| values.map(|values| values[0]);
            // else it would read as no change
            let text = match policy(had) == policy(asked) {
                true => with_priority,
                false => |values: &[i64]| policy_name(values[0]),
            };
            change(had, asked, text)
        },
        doors: &[Door {
            call: "sched_setscheduler(2), sched_setparam(2), sched_setattr(2)",
            programs: &["note_setscheduler", "task_setscheduler"],
            prove: prove_setscheduler,
        }],
    },
    Rule {
        name: "io",
        bit: bits::RULE_IO.0,
        of_caller: false,
        refuses: "an I/O priority above the one that the floor gives: real-time, best-effort < (NICE + 20) / 5",
        ceiling: |floor| format!("no I/O priority above best-effort {}", io_level(floor)),
        raised: |tid, floor| {
            // SAFETY: takes numbers, returns a number.
            let ioprio = unsafe {
                libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid.as_raw_pid())
            };
            let ioprio = i32::try_from(ioprio).ok().filter(|ioprio| *ioprio >= 0)?;
            match (ioprio >> IOPRIO_CLASS_SHIFT & 7, ioprio & 7) {
                (IOPRIO_CLASS_RT, level) => Some(format!("at I/O priority real-time {level}")),
                (IOPRIO_CLASS_BE, level) if level < io_level(floor) => {
                    Some(format!("at I/O priority best-effort {level}"))
                }
                _ => None,
            }
        },
        value: |values| json!({"class": io_class(values[0]), "level": values[0] & IOPRIO_LEVEL_MASK}),
        change: |had, asked, _| {
            change(had, asked, |values| match io_class(values[0]) {
                "none" => "none".into(),
                class => format!("{class} {}", values[0] & IOPRIO_LEVEL_MASK),
            })
        },
        doors: &[Door {
            call: "ioprio_set(2)",
            programs: &["task_setioprio"],
            prove: prove_ioprio,
        }],
    },
    Rule {
        name: "heap",
        bit: bits::RULE_HEAP.0,
        of_caller: true,
        refuses: "mprotect(2), pkey_mprotect(2) on the heap, start_brk to brk",
        ceiling: |_| "no other protection of the heap".into(),
        raised: |_, _| None,
        value: protection,
        change: |_, asked, _| asked.map_or("?".into(), protection_text),
        doors: &[Door {
            call: "mprotect(2), pkey_mprotect(2)",
            programs: &["file_mprotect"],
            prove: prove_heap,
        }],
    },
    Rule {
        name: "heap-exec",
        bit: bits::RULE_HEAP_EXEC.0,
        of_caller: true,
        refuses: "the same where PROT_EXEC is asked for",
        ceiling: |_| "no executable heap".into(),
        raised: |_, _| None,
        value: protection,
        change: |_, asked, _| asked.map_or("?".into(), protection_text),
        doors: &[Door {
            call: "mprotect(2), pkey_mprotect(2) with PROT_EXEC",
            programs: &["file_mprotect"],
            prove: prove_heap_exec,
        }],
    },
    Rule {
        name: "socket",
        bit: bits::RULE_SOCKET.0,
        of_caller: true,
        refuses: "a new socket, of any family",
        ceiling: |_| "no new socket".into(),
        raised: |_, _| None,
        value: socket,
        change: |_, asked, _| asked.map_or("?".into(), socket_text),
        doors: &[Door {
            call: "socket(2), socketpair(2)",
            programs: &["socket_create"],
            prove: prove_socket,
        }],
    },
    Rule {
        name: "inet",
        bit: bits::RULE_INET.0,
        of_caller: true,
        refuses: "a new socket of family INET or INET6, or of one inside of these: SMC, RDS, RXRPC",
        ceiling: |_| "no new Internet socket".into(),
        raised: |_, _| None,
        value: socket,
        change: |_, asked, _| asked.map_or("?".into(), socket_text),
        doors: &[Door {
            call: "socket(2), socketpair(2) of an Internet family",
            programs: &["socket_create"],
            prove: prove_inet,
        }],
    },
];

const AUTOGROUP: &str = "/proc/PID/autogroup";

impl Rule {
    pub fn by_name(name: &str) -> Option<&'static Self> {
        RULES.iter().find(|rule| rule.name == name)
    }

    pub fn by_bit(bit: u32) -> Option<&'static Self> {
        RULES.iter().find(|rule| rule.bit == bit)
    }
}

fn change(had: Values<'_>, asked: Values<'_>, text: fn(&[i64]) -> String) -> String {
    let text = |values: Values<'_>| values.map_or("?".into(), text);
    format!("{} -> {}", text(had), text(asked))
}

/// The name of a constant, or its number.
fn named(names: &[(i32, &str)], value: i64) -> String {
    names
        .iter()
        .find(|(number, _)| i64::from(*number) == value)
        .map_or(value.to_string(), |(_, name)| (*name).into())
}

fn policy_name(policy: i64) -> String {
    const NAMES: [(i32, &str); 7] = [
        (libc::SCHED_OTHER, "SCHED_OTHER"),
        (libc::SCHED_FIFO, "SCHED_FIFO"),
        (libc::SCHED_RR, "SCHED_RR"),
        (libc::SCHED_BATCH, "SCHED_BATCH"),
        (libc::SCHED_IDLE, "SCHED_IDLE"),
        (libc::SCHED_DEADLINE, "SCHED_DEADLINE"),
        (SCHED_EXT, "SCHED_EXT"),
    ];
    named(&NAMES, policy)
}

fn with_priority(values: &[i64]) -> String {
    match values[1] {
        priority @ 1.. => format!("{} {priority}", policy_name(values[0])),
        _ => policy_name(values[0]),
    }
}

/// PROT_READ and so on as mprotect(2) takes them: `READ|WRITE`, `NONE`.
fn prot_names(prot: i64) -> String {
    const NAMES: [(i32, &str); 3] = [
        (libc::PROT_READ, "READ"),
        (libc::PROT_WRITE, "WRITE"),
        (libc::PROT_EXEC, "EXEC"),
    ];
    let known = NAMES.iter().fold(0, |all, (bit, _)| all | i64::from(*bit));
    let mut names: Vec<String> = NAMES
        .iter()
        .filter(|(bit, _)| prot & i64::from(*bit) != 0)
        .map(|(_, name)| (*name).into())
        .collect();
    if prot & !known != 0 {
        names.push(format!("{:#x}", prot & !known));
    }
    match names.is_empty() {
        true => "NONE".into(),
        false => names.join("|"),
    }
}

fn protection(values: &[i64]) -> Value {
    json!({
        "start": format!("{:#x}", values[0]),
        "end": format!("{:#x}", values[1]),
        "prot": prot_names(values[2]),
    })
}

fn protection_text(values: &[i64]) -> String {
    format!(
        "{:#x}-{:#x} {}",
        values[0],
        values[1],
        prot_names(values[2])
    )
}

fn family_name(family: i64) -> String {
    const NAMES: [(i32, &str); 15] = [
        (libc::AF_UNIX, "AF_UNIX"),
        (libc::AF_INET, "AF_INET"),
        (libc::AF_INET6, "AF_INET6"),
        (libc::AF_NETLINK, "AF_NETLINK"),
        (libc::AF_PACKET, "AF_PACKET"),
        (libc::AF_RDS, "AF_RDS"),
        (libc::AF_PPPOX, "AF_PPPOX"),
        (libc::AF_CAN, "AF_CAN"),
        (libc::AF_TIPC, "AF_TIPC"),
        (libc::AF_BLUETOOTH, "AF_BLUETOOTH"),
        (libc::AF_RXRPC, "AF_RXRPC"),
        (libc::AF_ALG, "AF_ALG"),
        (libc::AF_VSOCK, "AF_VSOCK"),
        (AF_SMC, "AF_SMC"),
        (libc::AF_XDP, "AF_XDP"),
    ];
    named(&NAMES, family)
}

fn type_name(kind: i64) -> String {
    const NAMES: [(i32, &str); 6] = [
        (libc::SOCK_STREAM, "SOCK_STREAM"),
        (libc::SOCK_DGRAM, "SOCK_DGRAM"),
        (libc::SOCK_RAW, "SOCK_RAW"),
        (libc::SOCK_RDM, "SOCK_RDM"),
        (libc::SOCK_SEQPACKET, "SOCK_SEQPACKET"),
        (libc::SOCK_DCCP, "SOCK_DCCP"),
    ];
    named(&NAMES, kind)
}

/// What a protocol is called depends on the family; 0 is the usual one of the type.
fn protocol_name(family: i64, protocol: i64) -> String {
    const NAMES: [(i32, &str); 10] = [
        (libc::IPPROTO_IP, "IPPROTO_IP"),
        (libc::IPPROTO_ICMP, "IPPROTO_ICMP"),
        (libc::IPPROTO_TCP, "IPPROTO_TCP"),
        (libc::IPPROTO_UDP, "IPPROTO_UDP"),
        (libc::IPPROTO_ICMPV6, "IPPROTO_ICMPV6"),
        (libc::IPPROTO_SCTP, "IPPROTO_SCTP"),
        (libc::IPPROTO_UDPLITE, "IPPROTO_UDPLITE"),
        (libc::IPPROTO_RAW, "IPPROTO_RAW"),
        (IPPROTO_SMC, "IPPROTO_SMC"),
        (libc::IPPROTO_MPTCP, "IPPROTO_MPTCP"),
    ];
    match [libc::AF_INET, libc::AF_INET6]
        .map(i64::from)
        .contains(&family)
    {
        true => named(&NAMES, protocol),
        false => protocol.to_string(),
    }
}

fn socket(values: &[i64]) -> Value {
    json!({
        "family": family_name(values[0]),
        "type": type_name(values[1]),
        "protocol": protocol_name(values[0], values[2]),
    })
}

fn socket_text(values: &[i64]) -> String {
    let protocol = protocol_name(values[0], values[2]);
    format!(
        "{} {} {protocol}",
        family_name(values[0]),
        type_name(values[1])
    )
}

fn io_class(ioprio: i64) -> &'static str {
    match ioprio >> IOPRIO_CLASS_SHIFT & IOPRIO_LEVEL_MASK {
        0 => "none",
        1 => "real-time",
        2 => "best-effort",
        _ => "idle",
    }
}

/// The doors to what `rules` refuse, as far as this kernel has them.
pub fn doors(rules: &[&'static Rule]) -> Vec<RuleDoor> {
    rules
        .iter()
        .flat_map(|rule| rule.doors.iter().map(|door| (*rule, door)))
        .filter(|(_, door)| door.exists())
        .collect()
}

impl Door {
    /// Whether this kernel has the door at all.
    pub fn exists(&self) -> bool {
        self.call != AUTOGROUP || Path::new("/proc/self/autogroup").exists()
    }
}

/// The best-effort level that the kernel derives from a nice value (task_nice_ioprio()).
fn io_level(nice: i32) -> i32 {
    (nice + 20) / 5
}

/// The highest I/O priority that may be set, of class best-effort.
pub fn io_floor(floor: i32) -> u32 {
    (IOPRIO_CLASS_BE << IOPRIO_CLASS_SHIFT | io_level(floor)).unsigned_abs()
}

type Seen<'a> = &'a mut dyn FnMut() -> Result<()>;

fn prove_setpriority(child: &Child, floor: i32, seen: Seen<'_>) -> Result<()> {
    setpriority_process(Some(child.pid), LOWEST).context("cannot set a child to nice 19")?;
    seen()?;
    if floor > HIGHEST {
        must_be_refused(
            "setpriority(2)",
            setpriority_process(Some(child.pid), floor - 1).map_err(Into::into),
        )?;
        if getpriority_process(Some(child.pid)) != Ok(LOWEST) {
            bail!("a refused setpriority(2) has changed the nice value of a child");
        }
    }
    Ok(())
}

fn prove_setattr(child: &Child, floor: i32, seen: Seen<'_>) -> Result<()> {
    allowed("sched_setattr(2)", || setattr(child.pid, LOWEST), seen)?;
    if floor > HIGHEST {
        must_be_refused("sched_setattr(2)", setattr(child.pid, floor - 1))?;
    }
    Ok(())
}

fn prove_autogroup(child: &Child, floor: i32, seen: Seen<'_>) -> Result<()> {
    // the child has a session, and so an autogroup, of its own
    let file = format!("/proc/{}/autogroup", child.pid);
    let write = |nice: i32| fs::write(&file, nice.to_string());
    // the kernel takes one write in 100 ms, whoever makes the others, but asks the hook before
    let ask = || {
        write(LOWEST).or_else(|error| match error.kind() {
            ErrorKind::WouldBlock => Ok(()),
            _ => Err(error),
        })
    };
    allowed(AUTOGROUP, ask, seen)?;
    if floor > HIGHEST {
        must_be_refused("a write to /proc/PID/autogroup", write(floor - 1))?;
    }
    Ok(())
}

fn prove_setscheduler(child: &Child, _floor: i32, seen: Seen<'_>) -> Result<()> {
    setscheduler(child.pid, libc::SCHED_BATCH, 0).context("cannot set a child to SCHED_BATCH")?;
    seen()?;
    must_be_refused("SCHED_FIFO", setscheduler(child.pid, libc::SCHED_FIFO, 1))?;
    let affinity =
        sched_getaffinity(Some(child.pid)).context("cannot read the affinity of a child")?;
    sched_setaffinity(Some(child.pid), &affinity)
        .context("the CPU affinity of a guarded child cannot be set any more")?;
    if getscheduler(child.pid).ok() != Some(libc::SCHED_BATCH) {
        bail!("a refused sched_setscheduler(2) has changed the class of a child");
    }
    Ok(())
}

fn prove_ioprio(child: &Child, _floor: i32, seen: Seen<'_>) -> Result<()> {
    ioprio_set(child.pid, IOPRIO_CLASS_BE, LOWEST_IO)
        .context("cannot set a child to I/O priority best-effort 7")?;
    seen()?;
    must_be_refused(
        "ioprio_set(2)",
        ioprio_set(child.pid, IOPRIO_CLASS_RT, LOWEST_IO),
    )
}

fn prove_heap(child: &Child, _floor: i32, seen: Seen<'_>) -> Result<()> {
    prove_mprotect(child, seen, || protect(heap(), 0))
}

fn prove_heap_exec(child: &Child, _floor: i32, seen: Seen<'_>) -> Result<()> {
    prove_mprotect(child, seen, || protect(heap(), libc::PROT_EXEC))
}

fn prove_mprotect(child: &Child, seen: Seen<'_>, forbidden: Call) -> Result<()> {
    child
        .call(|| protect(new_page()?, 0))?
        .context("a child cannot change the protection of its memory")?;
    seen()?;
    must_be_refused("mprotect(2) of the heap", child.call(forbidden)?)
}

/// There is no call that passes. Another guard does not refuse first: the newest is asked first.
fn prove_socket(child: &Child, _floor: i32, seen: Seen<'_>) -> Result<()> {
    let result = child.call(|| new_socket(libc::AF_UNIX))?;
    seen()?;
    must_be_refused("socket(2)", result)
}

/// A socket of family UNIX passes, unless rule socket was asked for too.
fn prove_inet(child: &Child, _floor: i32, seen: Seen<'_>) -> Result<()> {
    let _ = child.call(|| new_socket(libc::AF_UNIX))?;
    seen()?;
    must_be_refused("socket(2)", child.call(|| new_socket(libc::AF_INET))?)
}

/// A call that asks for nice 19, and is noted for its hook on the way. It is tried again where it
/// was preempted in between, which refuses it or hides it from the trial.
fn allowed(call: &str, mut ask: impl FnMut() -> std::io::Result<()>, seen: Seen<'_>) -> Result<()> {
    let mut tries = 0..50;
    loop {
        let asked = ask().with_context(|| format!("{call}: cannot set a child to nice 19"));
        match asked.and_then(|()| seen()) {
            Err(_) if tries.next().is_some() => thread::sleep(Duration::from_millis(20)),
            result => return result,
        }
    }
}

fn must_be_refused(call: &str, result: std::io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => Ok(()),
        result => Err(anyhow!(
            "{call} that is forbidden should be EPERM for a guarded child and is {result:?}"
        )),
    }
}

fn setattr(pid: Pid, nice: i32) -> std::io::Result<()> {
    // SAFETY: all of the struct is numbers, for which zero is valid.
    let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
    attr.size = size_of::<libc::sched_attr>() as u32;
    attr.sched_nice = nice;
    // SAFETY: attr is as large as it says.
    done(unsafe {
        libc::syscall(
            libc::SYS_sched_setattr,
            pid.as_raw_pid(),
            &raw const attr,
            0,
        )
    })
}

fn setscheduler(pid: Pid, policy: i32, priority: i32) -> std::io::Result<()> {
    let param = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: param outlives the call.
    done(unsafe { libc::sched_setscheduler(pid.as_raw_pid(), policy, &param) }.into())
}

fn getscheduler(pid: Pid) -> std::io::Result<i32> {
    // SAFETY: takes a number, returns a number.
    let policy = unsafe { libc::sched_getscheduler(pid.as_raw_pid()) };
    done(policy.into()).map(|()| policy)
}

fn ioprio_set(pid: Pid, class: i32, level: i32) -> std::io::Result<()> {
    // SAFETY: takes numbers, returns a number.
    done(unsafe {
        libc::syscall(
            libc::SYS_ioprio_set,
            IOPRIO_WHO_PROCESS,
            pid.as_raw_pid(),
            class << IOPRIO_CLASS_SHIFT | level,
        )
    })
}

/// The last page of the heap of this process, which malloc(3) has made.
fn heap() -> *mut libc::c_void {
    // SAFETY: moves nothing, and returns the end of the heap.
    let end = unsafe { libc::sbrk(0) };
    end.map_addr(|end| (end - 1) & !(PAGE - 1))
}

fn new_page() -> std::io::Result<*mut libc::c_void> {
    // SAFETY: a new mapping, wherever there is room.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    match page == libc::MAP_FAILED {
        true => Err(std::io::Error::last_os_error()),
        false => Ok(page),
    }
}

/// mprotect(2) for a page, which stays readable and writable.
fn protect(page: *mut libc::c_void, more: libc::c_int) -> std::io::Result<()> {
    let prot = libc::PROT_READ | libc::PROT_WRITE | more;
    // SAFETY: the page can be used as before.
    done(unsafe { libc::mprotect(page, PAGE, prot) }.into())
}

/// socket(2); a child has no use for it, and keeps it until it exits.
fn new_socket(family: libc::c_int) -> std::io::Result<()> {
    // SAFETY: takes numbers, returns a number.
    done(unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }.into())
}

fn done(result: i64) -> std::io::Result<()> {
    if result < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_levels_follow_the_floor() {
        assert_eq!((io_level(-20), io_level(0), io_level(19)), (0, 4, 7));
    }
}
