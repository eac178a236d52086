// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! How a guard starts, and what it says where it cannot.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use libbpf_rs::btf::{Btf, types};

use crate::agent::Agent;
use crate::bpf::{Foreign, When};
use crate::helpers::{Lsm, Report, accepts, mount_securityfs, refuses, unmount_securityfs};

tests!(
    the_status_line_comes_once_and_not_on_stdout,
    notify_socket_is_told_when_the_guard_holds,
    libbpf_is_heard_with_v_alone,
    libbpf_searches_few_types_for_core,
    a_full_hook_is_named,
    an_ordinary_user_is_told_what_is_missing,
    lost_bpf_capabilities_are_named,
    a_lost_cap_sys_nice_is_named,
    root_of_a_user_namespace_is_told_why_not,
    without_securityfs_missing_rights_are_named_all_the_same,
    a_kernel_without_btf_is_refused,
);

fn the_status_line_comes_once_and_not_on_stdout() {
    let target = Agent::at_nice(10);
    let lsm = Lsm::start(&format!("--pid {} -n 3", target.pid));
    refuses(target.pid, 2);
    let report = lsm.end();
    assert!(!report.stdout.contains("guarding"), "{report}");
    let lines: Vec<_> = report
        .stderr
        .lines()
        .filter(|line| line.contains("guarding"))
        .collect();
    assert_eq!(lines.len(), 1, "{report}");
    assert!(
        lines[0].starts_with(&format!("lsm-nice: guarding process {} (live)", target.pid))
            && lines[0].contains('3'),
        "{report}"
    );
}

fn notify_socket_is_told_when_the_guard_holds() {
    let target = Agent::start();
    let path = format!("/tmp/notify-{}", target.pid);
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("a socket");
    let setting = format!("NOTIFY_SOCKET={path}");
    let mut lsm = Lsm::spawn(&["env", &setting], &format!("--pid {}", target.pid));
    let mut message = [0; 64];
    let length = socket
        .recv(&mut message)
        .unwrap_or_else(|error| panic!("nothing came to NOTIFY_SOCKET: {error}\n{}", lsm.stderr()));
    refuses(target.pid, -1);
    let message = String::from_utf8_lossy(&message[..length]);
    assert_eq!(message.trim_end(), "READY=1");
    lsm.must_still_guard();
    lsm.end().counted(1);
}

fn libbpf_is_heard_with_v_alone() {
    let target = Agent::start();
    for option in ["-v", "--verbose"] {
        let lsm = Lsm::start(&format!("--pid {} {option}", target.pid));
        lsm.end().says("libbpf: ");
    }
    Lsm::start(&format!("--pid {}", target.pid))
        .end()
        .never_says("libbpf");
}

/// It finds the struct that all programs touch in another place than the kernel's BTF has it.
fn libbpf_searches_few_types_for_core() {
    let target = Agent::start();
    let report = Lsm::start(&format!("--pid {} -v", target.pid)).end();
    let ids: Vec<u32> = report
        .stderr
        .lines()
        .filter_map(|line| line.strip_suffix("] struct task_struct in [vmlinux]"))
        .filter_map(|line| line.split_once("found target candidate [")?.1.parse().ok())
        .collect();
    let btf = Btf::from_vmlinux().expect("BTF");
    let kernels = btf
        .type_by_name::<types::Struct<'_>>("task_struct")
        .expect("a struct");
    assert!(!ids.is_empty(), "{report}");
    assert!(!ids.contains(&kernels.type_id().into()), "{report}");
}

fn a_full_hook_is_named() {
    let target = Agent::start();
    let mut programs = Vec::new();
    let full = loop {
        match Foreign::attach(When::Never, 0) {
            Ok(program) => programs.push(program),
            Err(error) => break error,
        }
    };
    assert_eq!(full.raw_os_error(), Some(libc::E2BIG), "{full}");
    Lsm::run(&format!("--pid {}", target.pid))
        .refused_to_start()
        .says("task_setnice")
        .says("bpftool link list");
    accepts(target.pid, -10);

    // One place is enough.
    programs.pop();
    let _lsm = Lsm::start(&format!("--pid {}", target.pid));
    refuses(target.pid, -10);
}

const ORDINARY_USER: [&str; 4] = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"];
const WITHOUT_BPF: [&str; 2] = ["setpriv", "--bounding-set=-bpf,-perfmon,-sys_admin"];
const USER_NAMESPACE: [&str; 3] = ["unshare", "--user", "--map-root-user"];

/// Tries a start with fewer rights than a guard needs.
fn without_rights(wrapper: &[&str]) -> Report {
    let target = Agent::start();
    let report = Lsm::run_in(wrapper, &format!("--pid {}", target.pid));
    report.refused_to_start();
    accepts(target.pid, -10);
    report
}

fn an_ordinary_user_is_told_what_is_missing() {
    mount_securityfs();
    without_rights(&ORDINARY_USER)
        .says("CAP_BPF")
        .says("run it as root");
}

fn lost_bpf_capabilities_are_named() {
    mount_securityfs();
    without_rights(&WITHOUT_BPF)
        .says("CAP_BPF")
        .says("CAP_PERFMON")
        .never_says("CAP_SYS_NICE");
}

fn a_lost_cap_sys_nice_is_named() {
    mount_securityfs();
    without_rights(&["setpriv", "--bounding-set=-sys_nice"])
        .says("CAP_SYS_NICE")
        .never_says("CAP_BPF");
}

fn root_of_a_user_namespace_is_told_why_not() {
    mount_securityfs();
    without_rights(&USER_NAMESPACE).says("user namespace");
}

fn without_securityfs_missing_rights_are_named_all_the_same() {
    for (wrapper, cause) in [
        (ORDINARY_USER.as_slice(), "CAP_BPF"),
        (&WITHOUT_BPF, "CAP_BPF"),
        (&USER_NAMESPACE, "user namespace"),
    ] {
        unmount_securityfs();
        without_rights(wrapper).says(cause);
    }
}

fn a_kernel_without_btf_is_refused() {
    let target = Agent::start();
    let hide = r#"mount -t tmpfs none /sys/kernel/btf && exec "$@""#;
    let wrapper = ["unshare", "--mount", "sh", "-c", hide, "sh"];
    Lsm::run_in(&wrapper, &format!("--pid {}", target.pid))
        .refused_to_start()
        .says("/sys/kernel/btf/vmlinux")
        .says("CONFIG_DEBUG_INFO_BTF");
    accepts(target.pid, -10);
}
