// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! Rules socket and inet: new sockets by every call that makes one, and what goes on without.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use libtest_mimic::Trial;
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::bpf::loads_alone;
use crate::cgroups::Cgroup;
use crate::events::events;
use crate::helpers::{
    Counts, Lsm, Report, eventually, has_task_storage, ignoring, kernel_is, refuses,
};
use crate::sys::{LOW, Within};
use crate::writes::has_uring;

tests!(
    rule_socket_refuses_every_family,
    rule_inet_refuses_the_families_that_reach_ip_alone,
    socketpair_is_refused_too,
    the_32_bit_table_makes_no_socket,
    io_uring_makes_no_socket_for_a_guarded_process,
    another_process_may_make_sockets,
    after_the_guard_sockets_can_be_made,
    bad_families_keep_the_kernels_errno,
    what_the_kernel_makes_for_itself_passes,
    a_thread_makes_no_socket,
    what_a_guarded_process_starts_makes_no_socket,
    in_a_cgroup_no_socket_is_made,
    audit_reports_a_socket_and_lets_it_be_made,
    v_reports_the_sockets_that_are_allowed,
    an_event_has_family_type_and_protocol_by_name,
    both_rules_and_those_of_priority_hold_for_sockets_too,
    only_the_program_on_sockets_is_loaded,
    busybox_nc_and_wget_cannot_reach_the_internet,
    a_running_python_is_cut_off_from_new_sockets_and_goes_on,
    a_guarded_lsm_nice_can_guard_in_its_turn,
);

/// Ignored where the kernel does not have what a test is about.
pub fn trials() -> Vec<Trial> {
    let marks = has_task_storage();
    let missing = [
        (!marks, "what_a_guarded_process_starts_makes_no_socket"),
        (!marks, "in_a_cgroup_no_socket_is_made"),
        (!marks, "a_guarded_lsm_nice_can_guard_in_its_turn"),
        // IORING_OP_SOCKET came with 5.19
        (
            !has_uring() || !kernel_is(5, 19),
            "io_uring_makes_no_socket_for_a_guarded_process",
        ),
    ];
    ignoring(tests(), &missing)
}

const UNIX: i32 = libc::AF_UNIX;
const INET: i32 = libc::AF_INET;
const INET6: i32 = libc::AF_INET6;
const NETLINK: i32 = libc::AF_NETLINK;
const PACKET: i32 = libc::AF_PACKET;
const VSOCK: i32 = libc::AF_VSOCK;
const SMC: i32 = 43; // linux/socket.h
const STREAM: i32 = libc::SOCK_STREAM;
const DGRAM: i32 = libc::SOCK_DGRAM;
const RAW: i32 = libc::SOCK_RAW;

/// The families that carry IP, some of which this kernel may not have: they are refused before it
/// looks.
const REACH_IP: [i32; 5] = [INET, INET6, libc::AF_RDS, libc::AF_RXRPC, SMC];

/// An agent that is told to make sockets.
struct Maker(Agent);

impl Maker {
    fn new() -> Self {
        Self(Agent::start())
    }

    fn guard(&self, options: &str) -> Lsm {
        Lsm::start(&format!("--pid {} {options}", self.0.pid))
    }

    fn socket(&mut self, family: i32, kind: i32, protocol: i32) -> Result<(), Errno> {
        let number = libc::SYS_socket;
        self.0
            .call(&format!("call {number} {family} {kind} {protocol}"))
    }

    fn pair(&mut self, family: i32, kind: i32) -> Result<(), Errno> {
        self.poke(&[]);
        let number = libc::SYS_socketpair;
        self.0
            .call(&format!("call {number} {family} {kind} 0 {LOW}"))
    }

    fn poke(&mut self, words: &[i32]) {
        let bytes: Vec<_> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        Within(&mut self.0).poke(&[&bytes[..], &[0]].concat());
    }
}

const NO: Result<(), Errno> = Err(Errno::PERM);

fn rule_socket_refuses_every_family() {
    let mut target = Maker::new();
    let lsm = target.guard("--rule socket -q");
    for family in 1..45 {
        for kind in [
            STREAM,
            DGRAM,
            RAW,
            libc::SOCK_SEQPACKET,
            STREAM | libc::SOCK_CLOEXEC,
        ] {
            assert_eq!(target.socket(family, kind, 0), NO, "{family} {kind}");
        }
    }
    lsm.end().counted(44 * 5);
}

fn rule_inet_refuses_the_families_that_reach_ip_alone() {
    let (mut target, mut free) = (Maker::new(), Maker::new());
    let lsm = target.guard("--rule inet -q");
    for family in 1..45 {
        for (kind, protocol) in [
            (STREAM, 0),
            (DGRAM | libc::SOCK_NONBLOCK, 0),
            (RAW, libc::IPPROTO_ICMP),
            (STREAM, libc::IPPROTO_MPTCP),
        ] {
            let result = target.socket(family, kind, protocol);
            if REACH_IP.contains(&family) {
                assert_eq!(result, NO, "{family} {kind} {protocol}");
            } else {
                assert_eq!(
                    result,
                    free.socket(family, kind, protocol),
                    "{family} {kind}"
                );
            }
        }
    }
    for (family, kind) in [(UNIX, STREAM), (UNIX, DGRAM), (NETLINK, RAW), (PACKET, RAW)] {
        assert_eq!(target.socket(family, kind, 0), Ok(()), "{family}");
    }
    assert_ne!(target.socket(VSOCK, STREAM, 0), NO);
    lsm.end().counted(REACH_IP.len() as u64 * 4);
}

fn socketpair_is_refused_too() {
    let mut target = Maker::new();
    let lsm = target.guard("--rule inet");
    assert_eq!(target.pair(UNIX, STREAM), Ok(()));
    // TIPC and UNIX alone have pairs, and the rule comes first
    assert_eq!(target.pair(INET, STREAM), NO);
    lsm.end().counted(1);
    let lsm = target.guard("--rule socket");
    assert_eq!(target.pair(UNIX, STREAM), NO);
    lsm.end().counted(1);
}

fn the_32_bit_table_makes_no_socket() {
    let mut target = Maker::new();
    let lsm = target.guard("--rule inet --json");
    let socketcall = |target: &mut Maker, which: i32, family: i32| {
        let pair = i32::try_from(LOW).expect("a low address") + 64;
        target.poke(&[family, STREAM, 0, pair]);
        target.0.call(&format!("int80 102 {which} {LOW} 0"))
    };
    for (family, expected) in [(UNIX, Ok(())), (INET, NO), (INET6, NO)] {
        let direct = target.0.call(&format!("int80 359 {family} {STREAM} 0"));
        assert_eq!(direct, expected, "{family}");
        assert_eq!(socketcall(&mut target, 1, family), expected, "{family}");
        assert_eq!(socketcall(&mut target, 8, family), expected, "{family}");
    }
    let report = lsm.end();
    report.counted(6);
    let calls: Vec<_> = events(&report)
        .iter()
        .map(|event| event["call"].clone())
        .collect();
    assert_eq!(
        calls,
        [
            "socket",
            "socket",
            "socketpair",
            "socket",
            "socket",
            "socketpair"
        ]
    );
}

/// By the caller itself, by a worker of the kernel's, and by the thread that polls for requests.
fn io_uring_makes_no_socket_for_a_guarded_process() {
    let ways = ["uring", "uring-async", "uring-poll"];
    for options in ["--no-children", ""] {
        let mut target = Maker::new();
        // a worker may be there before the guard
        for way in ways {
            assert_eq!(
                target.0.call(&format!("uring-socket {way} {INET}")),
                Ok(()),
                "{way}"
            );
        }
        let lsm = target.guard(&format!("--rule inet --json {options}"));
        for way in ways {
            let mut socket = |family| target.0.call(&format!("uring-socket {way} {family}"));
            assert_eq!(socket(UNIX), Ok(()), "{way}");
            assert_eq!(socket(INET), NO, "{way}");
            assert_eq!(socket(INET6), NO, "{way}");
        }
        let report = lsm.end();
        report.counted(6);
        for event in events(&report) {
            assert_eq!(event["call"], Value::Null, "{report}");
            assert_eq!(event["target"]["pid"], target.0.pid, "{report}");
        }
        assert_eq!(target.0.call(&format!("uring-socket uring {INET}")), Ok(()));
    }
}

fn another_process_may_make_sockets() {
    let (target, mut other) = (Maker::new(), Maker::new());
    let lsm = target.guard("--rule socket");
    for family in [UNIX, INET, INET6] {
        assert_eq!(other.socket(family, STREAM, 0), Ok(()), "{family}");
        TcpListener::bind("127.0.0.1:0").expect("a socket of these tests");
    }
    lsm.end().counted(0);
}

fn after_the_guard_sockets_can_be_made() {
    let mut target = Maker::new();
    let lsm = target.guard("--rule socket,inet");
    assert_eq!(target.socket(INET, STREAM, 0), NO);
    lsm.end().counted(1);
    assert_eq!(target.socket(INET, STREAM, 0), Ok(()));
}

fn bad_families_keep_the_kernels_errno() {
    let (mut target, mut free) = (Maker::new(), Maker::new());
    let lsm = target.guard("--rule socket");
    for (family, kind) in [
        (-1, STREAM),
        (1000, STREAM),
        (INET, 11),
        (INET, -1),
        (UNIX, 1 << 20),
    ] {
        let result = target.socket(family, kind, 0);
        assert_eq!(result, free.socket(family, kind, 0), "{family} {kind}");
        assert!(
            ![Ok(()), NO].contains(&result),
            "{family} {kind}: {result:?}"
        );
    }
    lsm.end().counted(0);
}

/// A network namespace comes with sockets of its own.
fn what_the_kernel_makes_for_itself_passes() {
    let mut target = Maker::new();
    let lsm = target.guard("--rule socket");
    let unshared = target.0.call(&format!("unshare {}", libc::CLONE_NEWNET));
    assert_eq!(unshared, Ok(()));
    assert_eq!(target.socket(NETLINK, RAW, 0), NO);
    lsm.end().counted(1);
}

fn a_thread_makes_no_socket() {
    let mut target = Maker::new();
    let lsm = target.guard("--rule socket --no-children");
    assert_eq!(target.0.call(&format!("socket-in-thread {UNIX}")), NO);
    let report = lsm.end();
    report.counted(1);
}

fn what_a_guarded_process_starts_makes_no_socket() {
    let socket = format!("live act call {} {INET} {STREAM} 0", libc::SYS_socket);
    let words = ["-q", "--rule", "socket", "--", "sh", "-c", &socket];
    let report = Lsm::command(&words).wait();
    report.exited(0).counted(1);
    assert_eq!(report.stdout, format!("{}\n", libc::EPERM), "{report}");
}

fn in_a_cgroup_no_socket_is_made() {
    let cgroup = Cgroup::new("sockets");
    let (mut inside, mut outside) = (Maker::new(), Maker::new());
    let lsm = Lsm::start(&format!("{} --rule inet", cgroup.option()));
    assert_eq!(inside.socket(INET, STREAM, 0), Ok(()));
    cgroup.take(inside.0.pid);
    assert_eq!(inside.socket(INET, STREAM, 0), NO);
    assert_eq!(inside.socket(UNIX, STREAM, 0), Ok(()));
    assert_eq!(outside.socket(INET, STREAM, 0), Ok(()));
    lsm.end().counted(1);
}

fn audit_reports_a_socket_and_lets_it_be_made() {
    let mut target = Maker::new();
    let lsm = target.guard("--rule socket --audit --json");
    assert_eq!(target.socket(INET, STREAM, 0), Ok(()));
    // each end of a pair
    assert_eq!(target.pair(UNIX, DGRAM), Ok(()));
    let report = lsm.end();
    let counts = Counts {
        audited: 3,
        ..Counts::default()
    };
    assert_eq!(report.counts(), counts, "{report}");
    for event in events(&report) {
        assert_eq!(event["verdict"], "audited", "{report}");
    }
}

fn v_reports_the_sockets_that_are_allowed() {
    let (mut target, mut other) = (Maker::new(), Maker::new());
    let lsm = target.guard("--rule inet -v --json");
    assert_eq!(target.socket(UNIX, STREAM, 0), Ok(()));
    assert_eq!(other.socket(UNIX, STREAM, 0), Ok(()));
    let report = lsm.end();
    let counts = Counts {
        allowed: 1,
        ..Counts::default()
    };
    assert_eq!(report.counts(), counts, "{report}");
    assert_eq!(events(&report)[0]["asked"]["family"], "AF_UNIX", "{report}");
}

fn an_event_has_family_type_and_protocol_by_name() {
    let mut target = Maker::new();
    let pid = target.0.pid;
    let requests = [
        (
            INET,
            STREAM,
            libc::IPPROTO_TCP,
            ["AF_INET", "SOCK_STREAM", "IPPROTO_TCP"],
        ),
        (
            INET6,
            DGRAM,
            libc::IPPROTO_UDP,
            ["AF_INET6", "SOCK_DGRAM", "IPPROTO_UDP"],
        ),
        (INET, STREAM, 0, ["AF_INET", "SOCK_STREAM", "IPPROTO_IP"]),
        (INET, RAW, 200, ["AF_INET", "SOCK_RAW", "200"]),
        (SMC, STREAM, 1, ["AF_SMC", "SOCK_STREAM", "1"]),
        (
            NETLINK,
            RAW | libc::SOCK_CLOEXEC,
            9,
            ["AF_NETLINK", "SOCK_RAW", "9"],
        ),
        (3, libc::SOCK_SEQPACKET, 0, ["3", "SOCK_SEQPACKET", "0"]),
    ];
    let lsm = target.guard("--rule socket --json");
    for (family, kind, protocol, _) in requests {
        assert_eq!(target.socket(family, kind, protocol), NO);
    }
    let report = lsm.end();
    let mut told = events(&report);
    assert_eq!(told.len(), requests.len(), "{report}");
    for (event, (.., [family, kind, protocol])) in told.iter_mut().zip(requests) {
        event.as_object_mut().expect("an object").remove("time");
        let exe = event["caller"]["exe"].take();
        assert!(exe.is_string(), "{report}");
        let expected = json!({
            "verdict": "denied", "rule": "socket", "hook": "socket_create", "call": "socket",
            "target": {"pid": pid, "tid": pid, "comm": "live"},
            "caller": {"pid": pid, "tid": pid, "comm": "live", "uid": 0, "exe": null},
            "asked": {"family": family, "type": kind, "protocol": protocol},
            "had": null, "floor": 0,
        });
        assert_eq!(*event, expected, "{report}");
    }
    let lsm = target.guard("--rule inet");
    assert_eq!(target.socket(INET6, RAW, libc::IPPROTO_ICMPV6), NO);
    let report = lsm.end();
    let line = report.stdout.trim_end();
    assert!(line.contains(&format!(" denied  live {pid} ")), "{report}");
    assert!(
        line.ends_with(" socket AF_INET6 SOCK_RAW IPPROTO_ICMPV6"),
        "{report}"
    );
}

fn both_rules_and_those_of_priority_hold_for_sockets_too() {
    let mut target = Maker::new();
    let lsm = target.guard("--rule inet,nice,socket,heap-exec --json");
    assert_eq!(target.socket(INET, STREAM, 0), NO);
    assert_eq!(target.socket(UNIX, STREAM, 0), NO);
    refuses(target.0.pid, -1);
    assert_eq!(target.0.call("heap 7"), NO);
    let report = lsm.end();
    report.counted(4);
    let rules: Vec<_> = events(&report)
        .iter()
        .map(|event| event["rule"].clone())
        .collect();
    assert_eq!(rules, ["socket", "socket", "nice", "heap-exec"], "{report}");
}

fn only_the_program_on_sockets_is_loaded() {
    loads_alone("socket_create", &["socket", "inet", "socket,inet"]);
}

fn command(rule: &str, words: &[&str]) -> Report {
    let words = [&["lsm-nice", "--no-children", "--rule", rule, "--"], words].concat();
    Lsm::launch(&words, |_| {}).wait()
}

fn busybox_nc_and_wget_cannot_reach_the_internet() {
    let server = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let port = server.local_addr().expect("an address").port().to_string();
    let url = format!("http://127.0.0.1:{port}/");
    for words in [
        &["busybox", "nc", "127.0.0.1", &port][..],
        &["busybox", "wget", &url],
    ] {
        let report = command("inet", words);
        report
            .exited(1)
            .says("socket: Operation not permitted")
            .counted(1);
        assert!(
            report.stdout.contains(" socket AF_INET SOCK_STREAM "),
            "{report}"
        );
    }
    server.set_nonblocking(true).expect("a socket");
    assert!(server.accept().is_err(), "nobody has come");
}

/// What it says, one line after another, to a file.
const PYTHON: &str = "\
import _socket, os, sys
def say(*words):
    with open(sys.argv[1], 'a') as file: print(*words, file=file)
def attempt(name, call):
    try: call(); say(name, 'ok')
    except OSError as error: say(name, error.strerror)
AF = lambda family: lambda: _socket.socket(family, _socket.SOCK_STREAM).close()
listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
listener.bind(('127.0.0.1', 0)); listener.listen()
say(listener.getsockname()[1])
served = 0
while True:
    fd, _ = listener._accept()
    conn = _socket.socket(fileno=fd)
    word = conn.recv(16).decode()
    if word == 'end': break
    attempt('inet', AF(_socket.AF_INET))
    attempt('inet6', AF(_socket.AF_INET6))
    attempt('unix', AF(_socket.AF_UNIX))
    served += 1
    conn.send(str(served).encode())
    conn.close()
";

fn a_running_python_is_cut_off_from_new_sockets_and_goes_on() {
    let said = "/tmp/python-said";
    let _ = fs::remove_file(said);
    let mut python = Command::new("python3")
        .args(["-I", "-S", "-c", PYTHON, said])
        .spawn()
        .expect("python");
    let lines = || -> Vec<String> {
        let said = fs::read_to_string(said).unwrap_or_default();
        said.lines().map(String::from).collect()
    };
    let port: u16 = eventually(|| lines().first()?.parse().ok()).expect("a port");
    // which takes connections, and says what became of sockets of its own
    let ask = |number: &str| {
        let mut connection = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        connection.write_all(b"go").expect("a connection");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("an answer");
        assert_eq!(answer, number);
        lines().split_off(lines().len() - 3)
    };
    let no = "Operation not permitted";
    assert_eq!(ask("1"), ["inet ok", "inet6 ok", "unix ok"]);
    let guard = |rule| Lsm::start(&format!("--pid {} --rule {rule}", python.id()));
    let lsm = guard("inet");
    assert_eq!(
        ask("2"),
        [
            format!("inet {no}"),
            format!("inet6 {no}"),
            "unix ok".into()
        ]
    );
    lsm.end().counted(2);
    let lsm = guard("socket");
    assert_eq!(
        ask("3"),
        ["inet", "inet6", "unix"].map(|name| format!("{name} {no}"))
    );
    lsm.end().counted(3);
    assert_eq!(ask("4"), ["inet ok", "inet6 ok", "unix ok"]);
    let mut connection = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    connection.write_all(b"end").expect("a connection");
    assert!(python.wait().is_ok_and(|status| status.success()));
}

fn a_guarded_lsm_nice_can_guard_in_its_turn() {
    let outer = ["-q", "--rule", "socket", "--", "lsm-nice", "-q", "--rule"];
    let socket = format!("call {} {INET} {STREAM} 0", libc::SYS_socket);
    // the trial of inet makes sockets that it allows, on a child and on a child of that
    for (rule, refused) in [("socket", 0), ("inet", 2)] {
        let inner = [rule, "--", "live", "act", &socket];
        let report = Lsm::command(&[&outer[..], &inner].concat()).wait();
        report.exited(0).says(": 1 refused\n").counted(refused);
        assert_eq!(report.stdout, format!("{}\n", libc::EPERM), "{report}");
    }
}
