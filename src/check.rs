// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! Would a guard hold on this machine? What it needs, one by one, and a trial.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::mem::MaybeUninit;
use std::os::linux::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use libbpf_rs::ErrorKind;
use libbpf_rs::btf::{Btf, types};
use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, fsconfig_create, fsmount, fsopen, mount,
};
use rustix::process::{Resource, geteuid, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};
use serde::Serialize;

use crate::btf::VMLINUX;
use crate::guard::{self, Guard, NOTE, Reports, Request};
use crate::output::{Failure, status};
use crate::rules::{self, Door, RULES, RuleDoor};
use crate::target::proc_is_ours;

const SECURITYFS: &str = "/sys/kernel/security";
const SECURITYFS_MAGIC: u64 = 0x7363_6673; // linux/magic.h
/// The function behind the hook: LSM programs are attached to it.
const HOOK: &str = "bpf_lsm_task_setnice";
/// The inode of /proc/PID/ns/user in the initial user namespace (PROC_USER_INIT_INO).
const INITIAL_USER_NAMESPACE: u64 = 0xefff_fffd;

/// What is there, or what is wrong.
type Finding = Result<String, Failure>;

/// The first kernel that has task storage for iterators, by which processes are marked.
const TASK_STORAGE: (u32, u32) = (5, 13);
/// The first kernel that has ring buffers.
const RING_BUFFER: (u32, u32) = (5, 8);
/// The first kernel that charges BPF to memory cgroups.
const MEMORY_CONTROL: (u32, u32) = (5, 11);
/// The kernels that skip an LSM program whose caller preempted another run of it, and fail to find
/// a mark likewise.
const SKIPS: (u32, u32) = (5, 12);
const NO_SKIPS: (u32, u32) = (6, 2);

type Requirement = (&'static str, fn() -> Finding);

/// In the order in which they depend on each other.
const REQUIREMENTS: [Requirement; 11] = [
    ("kernel", kernel),
    ("bpf-lsm", compiled_in),
    ("btf", btf),
    ("securityfs", securityfs),
    ("lsm-list", listed),
    ("lockdown", not_locked_down),
    ("proc", proc),
    ("capabilities", capable),
    ("hook", hook),
    ("ftrace", ftrace),
    ("preemption", preemption),
];

/// Those of them that keep no program from being loaded.
const TELL_ONLY: [&str; 2] = ["securityfs", "lsm-list"];

/// `lsm-nice check`: a row for each requirement, and last the trial, which alone decides.
pub fn run(json: bool) -> Result<ExitCode> {
    let mut all_there = true;
    let mut lacking = None;
    for (name, requirement) in REQUIREMENTS {
        let finding = requirement();
        print_row(name, &finding, json)?;
        all_there &= finding.is_ok();
        if let Some(failure) = finding.err().filter(|_| !TELL_ONLY.contains(&name)) {
            lacking.get_or_insert((name, failure.what));
        }
    }
    let children = task_storage();
    let finding = children.map(|()| "what a guarded process starts can be guarded".to_string());
    let children = finding.is_ok();
    print_row("children", &finding, json)?;

    let kernel = Kernel::read().map_err(in_words);
    let lets_guard = |(_, door): &RuleDoor| match &kernel {
        Ok(kernel) => kernel.lets_guard(door),
        Err(failure) => Err(failure.clone()),
    };
    let try_doors = |doors| {
        try_doors(doors, children).map_err(|error| match &lacking {
            // what the trial itself has found says more
            Some((name, what)) if error.is::<libbpf_rs::Error>() || error.to_string() == *what => {
                Failure {
                    what: format!("see {name}"),
                    fix: None,
                }
            }
            _ => in_words(refused(error)),
        })
    };
    let mut usable = rules::doors(&Vec::from_iter(&RULES));
    usable.retain(|door| lets_guard(door).is_ok());
    let none = usable.is_empty();
    let trial = try_doors(usable);
    for rule in &RULES {
        let doors = rules::doors(&[rule]);
        let calls: Vec<_> = rule.doors.iter().map(|door| door.call).collect();
        let finding = doors.iter().try_for_each(lets_guard);
        let finding = finding.and_then(|()| match &trial {
            Err(_) if all_there => try_doors(doors),
            trial => trial.clone(),
        });
        let name = format!("rule-{}", rule.name);
        print_row(&name, &finding.map(|()| calls.join(", ")), json)?;
    }
    let trial = trial.map(|()| match children {
        true => "a guard of a child, and of what it started, held".to_string(),
        false => "a guard of a child held".to_string(),
    });
    print_row("trial", &trial, json)?;
    Ok(if trial.is_ok() && !none {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Starts a guard of nobody, which proves itself on a child and ends.
fn try_doors(doors: Vec<RuleDoor>, children: bool) -> Result<()> {
    proc_is_ours()?;
    let request = Request {
        floor: 0,
        doors,
        targets: &[],
        tree: false,
        children,
        cgroup: None,
        pinned: false,
        replaces: None,
        kept: &[],
        audit: false,
        reports: Reports::Nothing,
        json: false,
    };
    Guard::start(&mut MaybeUninit::uninit(), &request)?;
    Ok(())
}

fn in_words(error: anyhow::Error) -> Failure {
    error.downcast().unwrap_or_else(|error| Failure {
        what: format!("{error:#}"),
        fix: None,
    })
}

/// Why a guard did not start, in the words of `check`: a requirement that is not there, or a door
/// that this kernel does not let be guarded.
pub fn explain(error: anyhow::Error, doors: &[RuleDoor]) -> anyhow::Error {
    if error.downcast_ref::<Failure>().is_some() {
        return error;
    }
    let open = || {
        let kernel = Kernel::read().ok()?;
        doors.iter().find_map(|(rule, door)| {
            let failure = kernel.lets_guard(door).err()?;
            Some(Failure::new(
                format!("rule {} cannot be enforced here: {failure}", rule.name),
                "--best-effort goes on without, or ask for other rules with --rule",
            ))
        })
    };
    let all = !error.is::<libbpf_rs::Error>();
    match missing(all).or_else(open) {
        Some(failure) => failure.into(),
        None => refused(error),
    }
}

/// The first requirement that is not there; with `all`, of those too that keep nothing from loading.
fn missing(all: bool) -> Option<Failure> {
    REQUIREMENTS.iter().find_map(|(name, requirement)| {
        // each is looked at, as the next ones read what it has mounted
        let lacks = requirement().err();
        lacks.filter(|_| all || !TELL_ONLY.contains(name))
    })
}

/// Names what is left where all is there that a guard needs, and the load is EPERM.
fn refused(error: anyhow::Error) -> anyhow::Error {
    // EACCES is of the same kind, and the verifier's word for a program
    let denied = |cause: &libbpf_rs::Error| {
        cause.kind() == ErrorKind::PermissionDenied && format!("{cause:#}").contains("os error 1)")
    };
    if !error.downcast_ref().is_some_and(denied) {
        return error;
    }
    let uname = rustix::system::uname();
    let limit = getrlimit(Resource::Memlock).current;
    if version(&uname.release().to_string_lossy()) < Some(MEMORY_CONTROL)
        && let Some(limit) = limit
    {
        return Failure::new(
            format!(
                "before Linux 5.11 BPF programs count as locked memory, of which lsm-nice may have \
                 {} KiB",
                limit / 1024
            ),
            "ulimit -l unlimited",
        )
        .into();
    }
    Failure::new(
        "the kernel refuses to load a BPF LSM program (EPERM), though lsm-nice has the capabilities \
         for it: a sandbox, a hypervisor or lockdown forbids it",
        "run lsm-nice where BPF LSM is allowed: on the host itself, not locked down",
    )
    .into()
}

#[derive(Serialize)]
struct Row<'a> {
    requirement: &'a str,
    ok: bool,
    detail: &'a str,
    fix: Option<&'a str>,
}

fn print_row(name: &str, finding: &Finding, json: bool) -> Result<()> {
    use std::io::Write;
    let row = match finding {
        Ok(detail) => Row {
            requirement: name,
            ok: true,
            detail,
            fix: None,
        },
        Err(failure) => Row {
            requirement: name,
            ok: false,
            detail: &failure.what,
            fix: failure.fix.as_deref(),
        },
    };
    let text = if json {
        serde_json::to_string(&row)?
    } else {
        let mark = if row.ok { "ok" } else { "FAILED" };
        let fix = row.fix.map(|fix| format!("\n{:<22} fix: {fix}", ""));
        format!(
            "{name:<14} {mark:<7} {}{}",
            row.detail,
            fix.unwrap_or_default()
        )
    };
    match writeln!(io::stdout().lock(), "{text}") {
        // a reader that has seen enough, such as head(1)
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

fn kernel() -> Finding {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    if version(&release) >= Some((5, 7)) {
        Ok(format!("Linux {release}"))
    } else {
        Err(Failure::new(
            format!("Linux {release} has no BPF LSM, which came with 5.7"),
            "boot a newer kernel",
        ))
    }
}

/// Whether every call of a hook runs its program, and a mark is found whenever it is looked for.
pub fn preemption() -> Finding {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let version = version(&release);
    if version >= Some(SKIPS) && version < Some(NO_SKIPS) && is_preemptible() {
        return Err(Failure::new(
            format!(
                "this kernel, {release}, may preempt a task inside a BPF LSM program, and then skips \
                 the program for others until that task goes on; Linux 6.2 does not"
            ),
            "boot Linux 6.2 or newer, or with preempt=voluntary where the kernel takes it, and let \
             lsm-nice read /sys/kernel/debug/sched/preempt",
        ));
    }
    Ok("no program is skipped, no mark missed".into())
}

/// Whether tasks can be marked, which any guard needs but that of a single process.
pub fn task_storage() -> Result<(), Failure> {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    if version(&release) < Some(TASK_STORAGE) {
        return Err(Failure::new(
            format!(
                "to guard children, several processes, a tree or a cgroup, and to pin a guard, takes \
                 Linux 5.13, and this is {release}"
            ),
            "guard a single process without --pin: lsm-nice --no-children --pid PID",
        ));
    }
    Ok(())
}

/// Whether events can be reported.
pub fn ring_buffer() -> Result<(), Failure> {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    if version(&release) < Some(RING_BUFFER) {
        return Err(Failure::new(
            format!("to report events takes Linux 5.8, and this is {release}"),
            "--quiet guards without",
        ));
    }
    Ok(())
}

/// The functions of this kernel, and which of them the programs are attached to.
struct Kernel {
    btf: Btf<'static>,
    attached_to: HashMap<String, String>,
}

impl Kernel {
    fn read() -> Result<Self> {
        Ok(Self {
            btf: Btf::from_vmlinux()?,
            attached_to: guard::functions()?,
        })
    }

    /// Whether `door` can be guarded: its functions have to be in BTF. That they do what
    /// lsm-nice takes them for is proven by the trial.
    fn lets_guard(&self, door: &Door) -> Result<(), Failure> {
        let failure = |what: String| Failure {
            what: format!("{}: {what}", door.call),
            fix: None,
        };
        let notes = door.programs.iter().any(|name| name.starts_with(NOTE));
        if !cfg!(target_arch = "x86_64") && notes {
            return Err(failure(
                "on this architecture lsm-nice does not know the system calls".into(),
            ));
        }
        for name in door.programs {
            let Some(function) = self.attached_to.get(*name) else {
                continue;
            };
            if self.btf.type_by_name::<types::Func<'_>>(function).is_none() {
                return Err(failure(format!(
                    "the kernel has no {function} that could be traced"
                )));
            }
        }
        Ok(())
    }
}

/// The doors that can be guarded here, with a warning for each that stays open.
pub fn usable(doors: Vec<RuleDoor>) -> Result<Vec<RuleDoor>> {
    let kernel = Kernel::read().map_err(|error| explain(error, &[]))?;
    let (mut usable, mut open) = (Vec::new(), Vec::new());
    for (rule, door) in doors {
        match kernel.lets_guard(door) {
            Ok(()) => usable.push((rule, door)),
            Err(failure) => open.push((rule, failure)),
        }
    }
    if usable.is_empty() {
        bail!(missing(true).unwrap_or(Failure::new(
            "this kernel can enforce nothing of what was asked for",
            "`lsm-nice check` says what it can",
        )));
    }
    for (rule, failure) in open {
        status!("warning: rule {} is open at {failure}", rule.name);
    }
    Ok(usable)
}

/// Whether a task can be preempted in the kernel: built so, or chosen at boot or later. Where that
/// cannot be read it is taken as so.
fn is_preemptible() -> bool {
    let uname = rustix::system::uname();
    let built = uname.version().to_string_lossy();
    match built.split(' ').find(|word| word.starts_with("PREEMPT")) {
        None => false,
        Some("PREEMPT_DYNAMIC") => match debugfs("sched/preempt") {
            Some(modes) => !modes.contains("(none)") && !modes.contains("(voluntary)"),
            None => !booted_without_preemption(&uname.release().to_string_lossy()),
        },
        Some(_) => true,
    }
}

/// What lockdown hides in debugfs, and keeps as it is: the last preempt= of the command line, or how
/// the kernel was configured. Without lockdown it may have been changed since.
fn booted_without_preemption(release: &str) -> bool {
    let lockdown = lockdown();
    if !lockdown.contains("[integrity]") && !lockdown.contains("[confidentiality]") {
        return false;
    }
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let words = line.split_whitespace().take_while(|word| *word != "--");
    if let Some(mode) = words
        .filter_map(|word| word.strip_prefix("preempt="))
        .last()
    {
        return matches!(mode, "none" | "voluntary");
    }
    [
        format!("/boot/config-{release}"),
        format!("/lib/modules/{release}/config"),
    ]
    .iter()
    .filter_map(|path| fs::read_to_string(path).ok())
    .any(|config| {
        config
            .lines()
            .any(|line| matches!(line, "CONFIG_PREEMPT_NONE=y" | "CONFIG_PREEMPT_VOLUNTARY=y"))
    })
}

/// Reads a file of debugfs, which need not be mounted for it, but may not be to be mounted either.
fn debugfs(path: &str) -> Option<String> {
    if let Ok(text) = fs::read_to_string(format!("/sys/kernel/debug/{path}")) {
        return Some(text);
    }
    let fs = fsopen("debugfs", FsOpenFlags::FSOPEN_CLOEXEC).ok()?;
    fsconfig_create(&fs).ok()?;
    let root = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).ok()?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = openat(root, path, flags, Mode::empty()).ok()?;
    io::read_to_string(fs::File::from(file)).ok()
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn compiled_in() -> Finding {
    // its types name the hook too; a sandbox may hide the symbols
    if hook().is_err() {
        let symbols = fs::File::open("/proc/kallsyms").map_err(|error| Failure {
            what: format!("cannot read /proc/kallsyms: {error}"),
            fix: None,
        })?;
        let symbol = format!(" {HOOK}");
        let found = BufReader::new(symbols)
            .split(b'\n')
            .map_while(Result::ok)
            .any(|line| line.ends_with(symbol.as_bytes()));
        if !found {
            return Err(Failure::new(
                "the kernel is built without CONFIG_BPF_LSM",
                "boot a kernel that has CONFIG_BPF_LSM=y",
            ));
        }
    }
    Ok("the kernel is built with CONFIG_BPF_LSM".into())
}

fn btf() -> Finding {
    match fs::metadata(VMLINUX) {
        Ok(_) => Ok(VMLINUX.into()),
        Err(error) => Err(Failure::new(
            format!("the kernel does not describe its types: {VMLINUX}: {error}"),
            "boot a kernel that has CONFIG_DEBUG_INFO_BTF=y, with /sys mounted",
        )),
    }
}

fn securityfs() -> Finding {
    match mounted("securityfs", SECURITYFS, SECURITYFS_MAGIC, None) {
        Ok(false) => Ok(SECURITYFS.into()),
        Ok(true) => Ok(format!("{SECURITYFS}, mounted just now")),
        Err(error) => Err(Failure::new(
            format!("securityfs is not mounted, and cannot be: {error}"),
            format!("as root: mount -t securityfs securityfs {SECURITYFS}"),
        )),
    }
}

/// Mounts a file system of the kernel where it is not mounted, and says whether it was not.
pub fn mounted(fs: &str, dir: &str, magic: u64, options: Option<&CStr>) -> io::Result<bool> {
    if is_mounted(dir, magic) {
        return Ok(false);
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(fs, dir, fs, flags, options)?;
    Ok(true)
}

pub fn is_mounted(dir: &str, magic: u64) -> bool {
    rustix::fs::statfs(dir).is_ok_and(|fs| fs.f_type.unsigned_abs() == magic)
}

fn listed() -> Finding {
    let list = fs::read_to_string(format!("{SECURITYFS}/lsm")).map_err(|error| Failure {
        what: format!("the active LSMs cannot be read: {SECURITYFS}/lsm: {error}"),
        fix: None,
    })?;
    let list = list.trim();
    if list.split(',').any(|lsm| lsm == "bpf") {
        return Ok(format!("active LSMs: {list}"));
    }
    Err(Failure::new(
        format!("bpf is not among the active LSMs ({list}): its hooks would not fire"),
        boot_parameter(&parameter(list)),
    ))
}

/// The modes, with brackets around the one that holds; empty where that is not to be seen.
fn lockdown() -> String {
    fs::read_to_string(format!("{SECURITYFS}/lockdown")).unwrap_or_default()
}

fn not_locked_down() -> Finding {
    if lockdown().contains("[confidentiality]") {
        return Err(Failure::new(
            "the kernel is locked down for confidentiality: BPF may not read what a guard needs",
            "boot without lockdown=confidentiality",
        ));
    }
    Ok("BPF may read the kernel".into())
}

fn proc() -> Finding {
    proc_is_ours()
        .map(|()| "shows the PID namespace of lsm-nice".into())
        .map_err(in_words)
}

/// BPF programs are attached by ftrace, which root can switch off with all of them.
fn ftrace() -> Finding {
    let enabled = fs::read_to_string("/proc/sys/kernel/ftrace_enabled").unwrap_or_default();
    if enabled.trim() == "0" {
        return Err(Failure::new(
            "ftrace is switched off, and with it every BPF program on a hook",
            "sysctl kernel.ftrace_enabled=1",
        ));
    }
    Ok("hooks can be attached to".into())
}

/// The `lsm=` parameter that adds bpf to the list of this machine. The kernel puts capability
/// first, ima and evm last by itself.
fn parameter(list: &str) -> String {
    let lsms = list
        .split(',')
        .filter(|lsm| !matches!(*lsm, "" | "capability" | "ima" | "evm"))
        .chain(["bpf"])
        .collect::<Vec<_>>();
    format!("lsm={}", lsms.join(","))
}

/// Where this machine takes a kernel parameter.
fn boot_parameter(parameter: &str) -> String {
    let installed = |tool: &str| {
        ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
            .iter()
            .any(|dir| Path::new(dir).join(tool).exists())
    };
    let grub = Path::new("/etc/default/grub").exists();
    if installed("grubby") {
        format!("grubby --update-kernel=ALL --args=\"{parameter}\", then reboot")
    } else if grub && installed("update-grub") {
        format!(
            "put {parameter} into GRUB_CMDLINE_LINUX of /etc/default/grub, run update-grub, reboot"
        )
    } else if grub {
        format!(
            "put {parameter} into GRUB_CMDLINE_LINUX of /etc/default/grub, \
             run grub2-mkconfig -o /boot/grub2/grub.cfg, reboot"
        )
    } else if Path::new("/etc/kernel/cmdline").exists() {
        format!(
            "put {parameter} into /etc/kernel/cmdline (systemd-boot), \
             run kernel-install add $(uname -r) /lib/modules/$(uname -r)/vmlinuz, reboot"
        )
    } else {
        format!("boot with the kernel parameter {parameter}")
    }
}

/// Whether lsm-nice has the rights that a guard takes.
pub fn capable() -> Finding {
    let held = capabilities(None)
        .map_err(|error| Failure {
            what: format!("cannot read the capabilities of lsm-nice: {error}"),
            fix: None,
        })?
        .effective;
    let needed = [
        ("CAP_BPF", CapabilitySet::BPF | CapabilitySet::SYS_ADMIN),
        (
            "CAP_PERFMON",
            CapabilitySet::PERFMON | CapabilitySet::SYS_ADMIN,
        ),
        ("CAP_SYS_NICE", CapabilitySet::SYS_NICE),
    ];
    let missing: Vec<_> = needed
        .iter()
        .filter(|(_, any_of)| !held.intersects(*any_of))
        .map(|(name, _)| *name)
        .collect();
    if !missing.is_empty() {
        return Err(Failure::new(
            format!("lsm-nice lacks {}", missing.join(", ")),
            as_root(),
        ));
    }
    if fs::metadata("/proc/self/ns/user").is_ok_and(|ns| ns.st_ino() != INITIAL_USER_NAMESPACE) {
        return Err(Failure::new(
            "lsm-nice runs in a user namespace, where the kernel lets nobody load BPF LSM programs",
            "run it as root of the host",
        ));
    }
    Ok("CAP_BPF, CAP_PERFMON (or CAP_SYS_ADMIN) and CAP_SYS_NICE".into())
}

/// How to get a capability.
fn as_root() -> &'static str {
    match geteuid().is_root() {
        true => "run it on the host itself, or give it these capabilities",
        false => "run it as root: sudo lsm-nice …",
    }
}

/// Whether lsm-nice may look at all that BPF has loaded.
pub fn may_list() -> Result<(), Failure> {
    let held =
        capabilities(None).is_ok_and(|held| held.effective.contains(CapabilitySet::SYS_ADMIN));
    held.then_some(()).ok_or_else(|| {
        Failure::new(
            "lsm-nice lacks CAP_SYS_ADMIN, without which the kernel lists no guards",
            as_root(),
        )
    })
}

fn hook() -> Finding {
    let missing = |why: String| {
        Failure::new(
            format!("the kernel's BTF does not have {HOOK}{why}"),
            "boot a kernel that has CONFIG_BPF_LSM=y and CONFIG_DEBUG_INFO_BTF=y",
        )
    };
    let btf = Btf::from_vmlinux().map_err(|error| missing(format!(": {error:#}")))?;
    btf.type_by_name::<types::Func<'_>>(HOOK)
        .map(|_| format!("{HOOK} is in the kernel's BTF"))
        .ok_or_else(|| missing(String::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_compare_by_number() {
        assert_eq!(version("6.12.117+deb12-cloud-amd64"), Some((6, 12)));
        assert_eq!(version("7.3-rc1"), Some((7, 3)));
        assert!(version("5.10.0") > version("5.7"));
        assert_eq!(version("nonsense"), None);
    }

    #[test]
    fn the_parameter_keeps_the_present_list() {
        assert_eq!(
            parameter("lockdown,capability,yama,apparmor,ima,evm"),
            "lsm=lockdown,yama,apparmor,bpf"
        );
        assert_eq!(parameter("capability"), "lsm=bpf");
    }
}
