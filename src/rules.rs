// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The rules: what each refuses, by which programs, and how it proves itself on a child.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use rustix::io::Errno;
use rustix::process::{Pid, getpriority_process, setpriority_process};
use rustix::thread::{sched_getaffinity, sched_setaffinity};

use crate::guard::bits;

/// The range of nice values (setpriority(2)); a lower value is a higher priority.
pub const HIGHEST: i32 = -20;
pub const LOWEST: i32 = 19;

/// The lowest I/O priority of class best-effort (ioprio_set(2)).
const LOWEST_IO: i32 = 7;
const IOPRIO_WHO_PROCESS: libc::c_int = 1;
const IOPRIO_CLASS_RT: i32 = 1;
const IOPRIO_CLASS_BE: i32 = 2;
const IOPRIO_CLASS_SHIFT: i32 = 13;

/// A new hook is a row here.
pub struct Rule {
    pub name: &'static str,
    pub bit: u32,
    /// What --help says of it.
    pub refuses: &'static str,
    /// What the guarding line says of it.
    pub ceiling: fn(floor: i32) -> String,
    /// How a thread is above the ceiling.
    pub raised: fn(tid: Pid, floor: i32) -> Option<String>,
    pub doors: &'static [Door],
}

/// A way to what a rule refuses.
pub struct Door {
    pub call: &'static str,
    pub programs: &'static [&'static str],
    /// Makes an allowed call on the child, which `seen` must count, and a refused one.
    pub prove: fn(child: Pid, floor: i32, seen: Seen<'_>) -> Result<()>,
}

pub type RuleDoor = (&'static Rule, &'static Door);

pub static RULES: [Rule; 3] = [
    Rule {
        name: "nice",
        bit: bits::RULE_NICE.0,
        refuses: "a nice value below the floor, by whichever call",
        ceiling: |floor| format!("no nice value below {floor}"),
        raised: |tid, floor| {
            let nice = getpriority_process(Some(tid)).ok()?;
            (nice < floor).then(|| format!("at nice {nice}, below the floor {floor}"))
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
        refuses: "the classes above SCHED_OTHER: FIFO, RR and DEADLINE",
        ceiling: |_| "no class above SCHED_OTHER".into(),
        raised: |tid, _| {
            let policy = getscheduler(tid).ok()?;
            let name = match policy & !libc::SCHED_RESET_ON_FORK {
                libc::SCHED_FIFO => "SCHED_FIFO",
                libc::SCHED_RR => "SCHED_RR",
                libc::SCHED_DEADLINE => "SCHED_DEADLINE",
                _ => return None,
            };
            Some(format!("in {name}"))
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
        doors: &[Door {
            call: "ioprio_set(2)",
            programs: &["task_setioprio"],
            prove: prove_ioprio,
        }],
    },
];

const AUTOGROUP: &str = "/proc/PID/autogroup";

impl Rule {
    pub fn by_name(name: &str) -> Option<&'static Self> {
        RULES.iter().find(|rule| rule.name == name)
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
    fn exists(&self) -> bool {
        self.call != AUTOGROUP || Path::new("/proc/self/autogroup").exists()
    }
}

/// The best-effort level that the kernel derives from a nice value (task_nice_ioprio()).
fn io_level(nice: i32) -> i32 {
    (nice + 20) / 5
}

type Seen<'a> = &'a mut dyn FnMut() -> Result<()>;

fn prove_setpriority(child: Pid, floor: i32, seen: Seen<'_>) -> Result<()> {
    setpriority_process(Some(child), LOWEST).context("cannot set a child to nice 19")?;
    seen()?;
    if floor > HIGHEST {
        must_be_refused(
            "setpriority(2)",
            setpriority_process(Some(child), floor - 1).map_err(Into::into),
        )?;
        if getpriority_process(Some(child)) != Ok(LOWEST) {
            bail!("a refused setpriority(2) has changed the nice value of a child");
        }
    }
    Ok(())
}

fn prove_setattr(child: Pid, floor: i32, seen: Seen<'_>) -> Result<()> {
    // a call that is preempted between the program that notes it and the hook is refused
    let mut allowed = setattr(child, LOWEST);
    for _ in 0..10 {
        if allowed.is_err() {
            allowed = setattr(child, LOWEST);
        }
    }
    allowed.context("cannot set a child to nice 19 by sched_setattr(2)")?;
    seen()?;
    if floor > HIGHEST {
        must_be_refused("sched_setattr(2)", setattr(child, floor - 1))?;
    }
    Ok(())
}

fn prove_autogroup(child: Pid, floor: i32, seen: Seen<'_>) -> Result<()> {
    // the child has a session, and so an autogroup, of its own
    let file = format!("/proc/{child}/autogroup");
    let write = |nice: i32| fs::write(&file, nice.to_string());
    // a write that is preempted between the program that notes it and the hook is not known as one
    // to the child
    let mut known = Ok(());
    for _ in 0..10 {
        write(LOWEST).context("cannot set the autogroup of a child to nice 19")?;
        known = seen();
        if known.is_ok() {
            break;
        }
    }
    known?;
    if floor > HIGHEST {
        must_be_refused("a write to /proc/PID/autogroup", write(floor - 1))?;
    }
    Ok(())
}

fn prove_setscheduler(child: Pid, _floor: i32, seen: Seen<'_>) -> Result<()> {
    setscheduler(child, libc::SCHED_BATCH, 0).context("cannot set a child to SCHED_BATCH")?;
    seen()?;
    must_be_refused("SCHED_FIFO", setscheduler(child, libc::SCHED_FIFO, 1))?;
    let affinity = sched_getaffinity(Some(child)).context("cannot read the affinity of a child")?;
    sched_setaffinity(Some(child), &affinity)
        .context("the CPU affinity of a guarded child cannot be set any more")?;
    if getscheduler(child).ok() != Some(libc::SCHED_BATCH) {
        bail!("a refused sched_setscheduler(2) has changed the class of a child");
    }
    Ok(())
}

fn prove_ioprio(child: Pid, _floor: i32, seen: Seen<'_>) -> Result<()> {
    ioprio_set(child, IOPRIO_CLASS_BE, LOWEST_IO)
        .context("cannot set a child to I/O priority best-effort 7")?;
    seen()?;
    must_be_refused(
        "ioprio_set(2)",
        ioprio_set(child, IOPRIO_CLASS_RT, LOWEST_IO),
    )
}

fn must_be_refused(call: &str, result: std::io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => Ok(()),
        result => Err(anyhow!(
            "{call} above the ceiling, on a guarded child, should be EPERM and is {result:?}"
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
