// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! Would a guard hold on this machine? What it needs, one by one, and a trial.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::mem::MaybeUninit;
use std::os::linux::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use libbpf_rs::ErrorKind;
use libbpf_rs::btf::{Btf, types};
use rustix::mount::{MountFlags, mount};
use rustix::thread::{CapabilitySet, capabilities};
use serde::Serialize;

use crate::guard::Guard;
use crate::output::Failure;

const SECURITYFS: &str = "/sys/kernel/security";
const SECURITYFS_MAGIC: u64 = 0x7363_6673; // linux/magic.h
const BTF: &str = "/sys/kernel/btf/vmlinux";
/// The function behind the hook: LSM programs are attached to it.
const HOOK: &str = "bpf_lsm_task_setnice";
/// The inode of /proc/PID/ns/user in the initial user namespace (PROC_USER_INIT_INO).
const INITIAL_USER_NAMESPACE: u64 = 0xefff_fffd;

/// What is there, or what is wrong.
type Finding = Result<String, Failure>;

/// In the order in which they depend on each other.
const REQUIREMENTS: [(&str, fn() -> Finding); 7] = [
    ("kernel", kernel),
    ("bpf-lsm", compiled_in),
    ("btf", btf),
    ("securityfs", securityfs),
    ("lsm-list", listed),
    ("capabilities", capable),
    ("hook", hook),
];

/// `lsm-nice check`: a row for each requirement, and last the trial, which alone decides.
pub fn run(json: bool) -> Result<ExitCode> {
    let mut all_there = true;
    for (name, requirement) in REQUIREMENTS {
        let finding = requirement();
        all_there &= finding.is_ok();
        print_row(name, &finding, json)?;
    }
    let mut object = MaybeUninit::uninit();
    let trial = match Guard::start(&mut object, None, 0) {
        Ok(_) => Ok("a guarded child took nice 19 and was refused nice -1".to_string()),
        Err(error) => {
            let error = if all_there { refused(error) } else { error };
            Err(error.downcast().unwrap_or_else(|error| Failure {
                what: format!("{error:#}"),
                fix: None,
            }))
        }
    };
    print_row("trial", &trial, json)?;
    Ok(if trial.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The requirement whose lack explains why a guard did not start, in the words of `check`.
pub fn explain(error: anyhow::Error) -> anyhow::Error {
    if error.downcast_ref::<Failure>().is_some() {
        return error;
    }
    REQUIREMENTS
        .iter()
        .find_map(|(_, requirement)| requirement().err())
        .map_or_else(|| refused(error), anyhow::Error::from)
}

/// Names what is left where all is there that a guard needs, and the load is EPERM.
fn refused(error: anyhow::Error) -> anyhow::Error {
    let denied = |cause: &libbpf_rs::Error| cause.kind() == ErrorKind::PermissionDenied;
    if error.downcast_ref().is_some_and(denied) {
        return Failure::new(
            "the kernel refuses to load a BPF LSM program (EPERM), though lsm-nice has the \
             capabilities for it: a sandbox, a hypervisor or lockdown forbids it",
            "run lsm-nice where BPF LSM is allowed: on the host itself, not locked down",
        )
        .into();
    }
    error
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
    let mut out = io::stdout().lock();
    if json {
        return Ok(writeln!(out, "{}", serde_json::to_string(&row)?)?);
    }
    let mark = if row.ok { "ok" } else { "FAILED" };
    writeln!(out, "{name:<13} {mark:<7} {}", row.detail)?;
    if let Some(fix) = row.fix {
        writeln!(out, "{:<21} fix: {fix}", "")?;
    }
    Ok(())
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

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn compiled_in() -> Finding {
    let symbols = fs::File::open("/proc/kallsyms").map_err(|error| Failure {
        what: format!("cannot read /proc/kallsyms: {error}"),
        fix: None,
    })?;
    let symbol = format!(" {HOOK}");
    let found = BufReader::new(symbols)
        .split(b'\n')
        .map_while(Result::ok)
        .any(|line| line.ends_with(symbol.as_bytes()));
    if found {
        Ok("the kernel is built with CONFIG_BPF_LSM".into())
    } else {
        Err(Failure::new(
            "the kernel is built without CONFIG_BPF_LSM",
            "boot a kernel that has CONFIG_BPF_LSM=y",
        ))
    }
}

fn btf() -> Finding {
    match fs::metadata(BTF) {
        Ok(_) => Ok(BTF.into()),
        Err(error) => Err(Failure::new(
            format!("the kernel does not describe its types: {BTF}: {error}"),
            "boot a kernel that has CONFIG_DEBUG_INFO_BTF=y, with /sys mounted",
        )),
    }
}

fn securityfs() -> Finding {
    let is_mounted = || {
        rustix::fs::statfs(SECURITYFS).is_ok_and(|fs| fs.f_type.unsigned_abs() == SECURITYFS_MAGIC)
    };
    if is_mounted() {
        return Ok(SECURITYFS.into());
    }
    match mount(
        "securityfs",
        SECURITYFS,
        "securityfs",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        None,
    ) {
        Ok(()) => Ok(format!("{SECURITYFS}, mounted just now")),
        Err(error) => Err(Failure::new(
            format!("securityfs is not mounted, and cannot be: {error}"),
            format!("as root: mount -t securityfs securityfs {SECURITYFS}"),
        )),
    }
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
             run kernel-install add-all, reboot"
        )
    } else {
        format!("boot with the kernel parameter {parameter}")
    }
}

fn capable() -> Finding {
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
            "run it as root: sudo lsm-nice …",
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
