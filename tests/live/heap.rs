// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! Rules heap and heap-exec: the calls that change the protection of memory, made by an agent on
//! its own, next to the heap and on it, in all the shapes that a heap can have.

use std::fs;
use std::ops::Range;

use libtest_mimic::Trial;
use rustix::io::Errno;
use serde_json::json;

use crate::agent::{Agent, errno};
use crate::bpf::loads_alone;
use crate::cgroups::Cgroup;
use crate::events::events;
use crate::helpers::{Counts, Lsm, accepts, has_task_storage, ignoring, refuses};
use crate::sys::{self, LOW, Within};

tests!(
    an_executable_heap_is_refused_and_counted_once_and_the_stack_is_not,
    rule_heap_refuses_any_protection_of_the_heap,
    another_process_may_make_its_heap_executable,
    after_the_guard_the_heap_may_be_made_executable,
    pkey_mprotect_is_refused_too,
    the_32_bit_table_is_refused_too,
    a_request_that_reaches_the_heap_from_below_changes_nothing,
    a_request_that_reaches_past_the_heap_is_refused,
    memory_beside_the_heap_is_free_where_it_is_one_mapping_with_it,
    every_part_of_a_split_heap_is_refused_and_all_of_it_is_one_request,
    a_brk_that_grew_since_and_shrank_moves_the_guard_along,
    without_a_heap_nothing_is_refused,
    an_unaligned_start_brk_counts_for_its_page,
    what_is_mapped_over_the_heap_is_refused,
    what_a_personality_widens_is_judged_as_it_was_asked,
    a_mapping_that_grows_down_into_the_heap_is_refused,
    an_address_with_a_tag_does_not_get_past,
    bad_requests_keep_the_kernels_errno,
    what_a_guarded_process_starts_cannot_make_its_heap_executable,
    in_a_cgroup_no_heap_is_made_executable,
    audit_reports_the_request_and_lets_it_pass,
    v_reports_what_was_allowed_once_a_request,
    an_event_has_the_range_and_the_protection_by_name,
    a_line_of_text_names_the_caller_once,
    both_rules_and_those_of_priority_hold_together,
    only_the_program_of_the_rule_is_loaded,
    so_memory_that_is_mapped_executable_is_out_of_scope,
    so_a_heap_that_is_moved_by_mremap_is_out_of_scope,
    so_a_start_brk_that_is_moved_by_prctl_is_out_of_scope,
    so_a_process_that_shares_the_memory_and_is_not_guarded_is_out_of_scope,
);

/// Ignored where the kernel or the processor does not have what a test is about.
pub fn trials() -> Vec<Trial> {
    let missing = [
        (
            !has_task_storage(),
            "what_a_guarded_process_starts_cannot_make_its_heap_executable",
        ),
        (
            !has_task_storage(),
            "in_a_cgroup_no_heap_is_made_executable",
        ),
        (!has_tags(), "an_address_with_a_tag_does_not_get_past"),
    ];
    ignoring(tests(), &missing)
}

const PAGE: i64 = 4096;
const NONE: i64 = libc::PROT_NONE as i64;
const R: i64 = libc::PROT_READ as i64;
const RW: i64 = R | libc::PROT_WRITE as i64;
const RWX: i64 = RW | libc::PROT_EXEC as i64;
const ANONYMOUS: i64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as i64;

const TAG: i64 = 1 << 60;
const ARCH_ENABLE_TAGGED_ADDR: i64 = 0x4002; // asm/prctl.h

/// Starts an agent in a memory of random layout, without which the guest is booted.
fn as_users_have_it(start: fn() -> Agent) -> Agent {
    const RANDOMIZE: &str = "/proc/sys/kernel/randomize_va_space";
    let before = fs::read(RANDOMIZE).expect("a sysctl");
    fs::write(RANDOMIZE, "2").expect("a sysctl");
    let agent = start();
    fs::write(RANDOMIZE, before).expect("a sysctl");
    agent
}

/// What an agent is told: `call NUMBER ARG...`, a system call with up to six arguments, and `heap
/// PROT`, a protection of the last page of its own heap.
pub fn obey(words: &[&str]) -> Option<i32> {
    let number = |at: usize| {
        words
            .get(at)
            .map_or(0, |word| word.parse().expect("a number"))
    };
    Some(match words[0] {
        "call" => {
            let [nr, a, b, c, d, e, f]: [i64; 7] = std::array::from_fn(|at| number(at + 1));
            // SAFETY: calls that a test has chosen so that the agent goes on.
            errno(match unsafe { libc::syscall(nr, a, b, c, d, e, f) } {
                -1 => -1,
                _ => 0,
            })
        }
        "heap" => {
            // SAFETY: moves nothing, and returns the end of the heap.
            let end = unsafe { libc::sbrk(0) }.addr() as i64;
            let page = (end - 1) & -PAGE;
            // SAFETY: the page can be read and written as before.
            errno(unsafe { libc::syscall(libc::SYS_mprotect, page, PAGE, number(1)) } as i32)
        }
        "sharer" => {
            let mut args = [number(1), number(2), number(3)];
            by_a_sharer(&mut args)
        }
        _ => return None,
    })
}

/// mprotect(2) by another process that has the same memory; the errno.
fn by_a_sharer(args: &mut [i64; 3]) -> i32 {
    extern "C" fn protect(args: *mut libc::c_void) -> libc::c_int {
        // SAFETY: of the caller, which waits.
        let [start, length, prot] = unsafe { *args.cast::<[i64; 3]>() };
        // SAFETY: memory that nobody uses.
        errno(unsafe { libc::syscall(libc::SYS_mprotect, start, length, prot) } as i32)
    }
    let mut stack = [0u128; 512];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    let mut status = 0;
    // SAFETY: the child has a stack of its own, and is over when the call returns.
    unsafe {
        let top = stack.as_mut_ptr().add(stack.len());
        let pid = libc::clone(protect, top.cast(), flags, (&raw mut *args).cast());
        libc::waitpid(pid, &mut status, 0);
    }
    libc::WEXITSTATUS(status)
}

/// An agent and its heap, which has a few pages at its end that nobody uses.
struct Heap {
    agent: Agent,
    heap: Range<i64>,
}

const UNUSED: i64 = 8 * PAGE;

impl Heap {
    fn new() -> Self {
        let mut heap = Self {
            agent: as_users_have_it(Agent::start),
            heap: 0..0,
        };
        heap.look();
        assert_eq!(heap.brk(heap.heap.end + UNUSED), Ok(()));
        heap.look();
        heap
    }

    /// Where the heap is, as /proc shows start_brk (the 47th field of stat) and the mapping.
    fn look(&mut self) {
        let pid = self.agent.pid;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
        let (_, fields) = stat.rsplit_once(") ").expect("a name");
        let start = fields
            .split(' ')
            .nth(44)
            .and_then(|field| field.parse().ok());
        let start: i64 = start.expect("a start_brk");
        let end = mappings(pid)
            .into_iter()
            .find(|(range, ..)| range.contains(&start));
        self.heap = start..end.map_or(start, |(range, ..)| range.end);
    }

    fn guard(&self, options: &str) -> Lsm {
        Lsm::start(&format!("--pid {} {options}", self.agent.pid))
    }

    fn call(&mut self, number: i64, args: &[i64]) -> Result<(), Errno> {
        let args: String = args.iter().map(|arg| format!(" {arg}")).collect();
        self.agent.call(&format!("call {number}{args}"))
    }

    fn brk(&mut self, end: i64) -> Result<(), Errno> {
        self.call(libc::SYS_brk, &[end])
    }

    fn protect(&mut self, start: i64, pages: i64, prot: i64) -> Result<(), Errno> {
        self.call(libc::SYS_mprotect, &[start, pages * PAGE, prot])
    }

    #[track_caller]
    fn map(&mut self, start: i64, pages: i64, prot: i64, flags: i64) {
        let fixed = i64::from(libc::MAP_FIXED);
        let args = [start, pages * PAGE, prot, ANONYMOUS | fixed | flags, -1, 0];
        assert_eq!(self.call(libc::SYS_mmap, &args), Ok(()), "{args:x?}");
    }

    /// start_brk or brk, as prctl(2) sets them.
    fn set_mm(&mut self, which: i32, address: i64) -> Result<(), Errno> {
        let set = libc::PR_SET_MM.into();
        self.call(libc::SYS_prctl, &[set, which.into(), address, 0, 0])
    }

    /// The protection of the page at an address.
    #[track_caller]
    fn protection(&self, address: i64) -> String {
        let all = mappings(self.agent.pid);
        let here = all.iter().find(|(range, ..)| range.contains(&address));
        here.map_or("none".into(), |(_, prot)| prot[..3].into())
    }

    /// EPERM, and nothing has changed.
    #[track_caller]
    fn refused(&mut self, start: i64, pages: i64, prot: i64) {
        let before = mappings(self.agent.pid);
        let result = self.protect(start, pages, prot);
        let heap = &self.heap;
        assert_eq!(
            result,
            Err(Errno::PERM),
            "{start:x} {pages} {prot}, heap {heap:x?}"
        );
        assert_eq!(mappings(self.agent.pid), before);
    }

    #[track_caller]
    fn passes(&mut self, start: i64, pages: i64, prot: i64) {
        let result = self.protect(start, pages, prot);
        let heap = &self.heap;
        assert_eq!(result, Ok(()), "{start:x} {pages} {prot}, heap {heap:x?}");
    }
}

/// What is mapped, with its protection.
fn mappings(pid: i32) -> Vec<(Range<i64>, String)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("a process");
    let address = |hex| i64::from_str_radix(hex, 16).unwrap_or(i64::MAX);
    maps.lines()
        .map(|line| {
            let mut fields = line.split(' ');
            let (start, end) = fields
                .next()
                .and_then(|range| range.split_once('-'))
                .expect("a range");
            let prot = fields.next().expect("a protection");
            (address(start)..address(end), prot.to_string())
        })
        .collect()
}

fn stack(pid: i32) -> i64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("a process");
    let line = maps.lines().find(|line| line.ends_with("[stack]"));
    let (start, _) = line.and_then(|line| line.split_once('-')).expect("a stack");
    i64::from_str_radix(start, 16).expect("an address")
}

/// As the kernel's own test of BPF LSM has it, which looks at the stack instead.
fn an_executable_heap_is_refused_and_counted_once_and_the_stack_is_not() {
    let mut target = Heap::new();
    let lsm = target.guard("--rule heap-exec");
    let start = target.heap.start;
    target.refused(start, 1, RWX);
    target.passes(start, 1, RW);
    let stack = stack(target.agent.pid);
    target.passes(stack, 1, RWX);
    assert_eq!(target.protection(stack), "rwx");
    target.map(LOW + 0x10_0000, 2, RW, 0);
    target.passes(LOW + 0x10_0000, 2, RWX);
    lsm.end().counted(1);
}

fn rule_heap_refuses_any_protection_of_the_heap() {
    let mut target = Heap::new();
    let lsm = target.guard("--rule heap");
    let Range { start, end } = target.heap;
    for prot in [NONE, R, RW, RWX] {
        target.refused(start, 1, prot);
        target.refused(end - PAGE, 1, prot);
        target.refused(start, (end - start) / PAGE, prot);
    }
    let stack = stack(target.agent.pid);
    target.passes(stack, 1, RW);
    lsm.end().counted(12);
}

fn another_process_may_make_its_heap_executable() {
    let target = Heap::new();
    let mut other = Heap::new();
    let lsm = target.guard("--rule heap,heap-exec");
    let start = other.heap.start;
    other.passes(start, 1, RWX);
    assert_eq!(other.protection(start), "rwx");
    lsm.end().counted(0);
}

fn after_the_guard_the_heap_may_be_made_executable() {
    let mut target = Heap::new();
    let lsm = target.guard("--rule heap");
    let start = target.heap.start;
    target.refused(start, 1, RWX);
    lsm.end().counted(1);
    target.passes(start, 1, RWX);
    assert_eq!(target.protection(start), "rwx");
}

fn pkey_mprotect_is_refused_too() {
    let mut target = Heap::new();
    let lsm = target.guard("--rule heap-exec");
    let end = target.heap.end;
    let mut protect = |prot, pkey| {
        let args = [end - PAGE, PAGE, prot, pkey];
        target.call(libc::SYS_pkey_mprotect, &args)
    };
    // -1 is what mprotect(2) has
    assert_eq!(protect(RWX, -1), Err(Errno::PERM));
    assert_eq!(protect(RW, -1), Ok(()));
    assert_eq!(
        protect(RWX, 1),
        Err(Errno::INVAL),
        "a key that is not there"
    );
    let mut refused = 1;
    if target.call(libc::SYS_pkey_alloc, &[0, 0]) == Ok(()) {
        let args = [end - PAGE, PAGE, RWX, 1];
        let result = target.call(libc::SYS_pkey_mprotect, &args);
        assert_eq!(result, Err(Errno::PERM));
        refused += 1;
    }
    lsm.end().counted(refused);
}

/// The heap is far above what that table can name, and so is moved by prctl(2).
fn the_32_bit_table_is_refused_too() {
    let mut target = Heap::new();
    let low = LOW + 0x10_0000;
    target.map(low, 3, RW, 0);
    assert_eq!(target.set_mm(libc::PR_SET_MM_START_BRK, low + PAGE), Ok(()));
    assert_eq!(target.set_mm(libc::PR_SET_MM_BRK, low + 2 * PAGE), Ok(()));
    let lsm = target.guard("--rule heap-exec --json");
    for call in [125, 380] {
        let mut protect = |start: i64, prot: i64| {
            // with bits that the kernel cuts off
            let (start, length) = (start | 1 << 40, PAGE | 1 << 40);
            let call = format!("int80 {call} {start} {length} {prot}");
            target.agent.call(&call)
        };
        assert_eq!(protect(low + PAGE, RWX), Err(Errno::PERM));
        assert_eq!(protect(low + PAGE, RW), Ok(()));
        assert_eq!(protect(low, RWX), Ok(()));
        assert_eq!(protect(low + 2 * PAGE, RWX), Ok(()));
        assert_eq!(protect(low, RW), Ok(()));
        assert_eq!(protect(low + 2 * PAGE, RW), Ok(()));
    }
    let report = lsm.end();
    report.counted(2);
    let calls: Vec<_> = events(&report)
        .iter()
        .map(|event| event["call"].to_string())
        .collect();
    assert_eq!(calls, [r#""mprotect""#, r#""pkey_mprotect""#], "{report}");
}

fn a_request_that_reaches_the_heap_from_below_changes_nothing() {
    let mut target = Heap::new();
    let start = target.heap.start;
    target.map(start - 3 * PAGE, 3, R, 0);
    let lsm = target.guard("--rule heap");
    target.refused(start - 2 * PAGE, 3, RW);
    assert_eq!(target.protection(start - PAGE), "r--");
    target.passes(start - 2 * PAGE, 2, RWX);
    assert_eq!(target.protection(start - PAGE), "rwx");
    lsm.end().counted(1);
}

fn a_request_that_reaches_past_the_heap_is_refused() {
    let mut target = Heap::new();
    let end = target.heap.end;
    target.map(end, 2, R, 0);
    let lsm = target.guard("--rule heap-exec");
    target.refused(end - PAGE, 2, RWX);
    target.passes(end, 2, RWX);
    assert_eq!(target.protection(end), "rwx");
    // what is not mapped stops it later, if at all
    target.refused(end - PAGE, 4, RWX);
    lsm.end().counted(2);
}

fn memory_beside_the_heap_is_free_where_it_is_one_mapping_with_it() {
    let mut target = Heap::new();
    let Range { start, end } = target.heap;
    target.map(start - 2 * PAGE, 2, RW, 0);
    target.map(end, 2, RW, 0);
    let one = |target: &Heap, address| {
        let all = mappings(target.agent.pid);
        let here = all.into_iter().find(|(range, ..)| range.contains(&address));
        here.is_some_and(|(range, ..)| range.contains(&(start - 1)) && range.contains(&end))
    };
    assert!(one(&target, start), "{:x?}", mappings(target.agent.pid));
    let lsm = target.guard("--rule heap");
    target.refused(start, 1, RW);
    target.refused(end - PAGE, 1, RW);
    target.refused(end - PAGE, 2, RW);
    target.refused(start - PAGE, 2, RW);
    target.passes(end + PAGE, 1, RWX);
    target.passes(end, 1, RWX);
    target.passes(start - 2 * PAGE, 1, RWX);
    target.passes(start - PAGE, 1, RWX);
    lsm.end().counted(4);
}

fn every_part_of_a_split_heap_is_refused_and_all_of_it_is_one_request() {
    let mut target = Heap::new();
    let end = target.heap.end;
    target.passes(end - 3 * PAGE, 1, R);
    for audit in ["", "--audit"] {
        let lsm = target.guard(&format!("--rule heap {audit}"));
        for page in 1..5 {
            let result = target.protect(end - page * PAGE, 1, RW);
            assert_eq!(result.is_ok(), !audit.is_empty());
            if page == 3 {
                assert_eq!(
                    target.protect(end - page * PAGE, 1, R).is_ok(),
                    result.is_ok()
                );
            }
        }
        let result = target.protect(end - 5 * PAGE, 5, R);
        assert_eq!(result.is_ok(), !audit.is_empty());
        let counts = lsm.end().counts();
        assert_eq!(counts.refused + counts.audited, 6, "{counts:?}");
    }
}

fn a_brk_that_grew_since_and_shrank_moves_the_guard_along() {
    let mut target = Heap::new();
    let lsm = target.guard("--rule heap-exec");
    let end = target.heap.end;
    assert_eq!(target.brk(end + 2 * PAGE), Ok(()));
    target.refused(end + PAGE, 1, RWX);
    // not at the end of a page
    assert_eq!(target.brk(end + 2 * PAGE + 1), Ok(()));
    target.refused(end + 2 * PAGE, 1, RWX);
    assert_eq!(target.brk(end), Ok(()));
    target.map(end, 3, RW, 0);
    target.passes(end, 3, RWX);
    target.refused(end - PAGE, 1, RWX);
    lsm.end().counted(3);
}

fn without_a_heap_nothing_is_refused() {
    let mut target = Heap::new();
    let Range { start, end } = target.heap;
    assert_eq!(target.set_mm(libc::PR_SET_MM_BRK, start), Ok(()));
    let lsm = target.guard("--rule heap");
    target.passes(start, 1, RW);
    target.passes(end - PAGE, 1, RWX);
    lsm.end().counted(0);
}

fn an_unaligned_start_brk_counts_for_its_page() {
    let mut target = Heap::new();
    let end = target.heap.end;
    let start = end - 3 * PAGE + 100;
    assert_eq!(target.set_mm(libc::PR_SET_MM_START_BRK, start), Ok(()));
    assert_eq!(
        target.set_mm(libc::PR_SET_MM_BRK, end - 2 * PAGE + 1),
        Ok(())
    );
    let lsm = target.guard("--rule heap");
    target.passes(end - 4 * PAGE, 1, RWX);
    target.refused(end - 4 * PAGE, 2, RW);
    target.refused(end - 3 * PAGE, 1, RW);
    target.refused(end - 2 * PAGE, 1, RW);
    target.passes(end - PAGE, 1, RWX);
    lsm.end().counted(3);
}

fn what_is_mapped_over_the_heap_is_refused() {
    let mut target = Heap::new();
    let end = target.heap.end;
    let lsm = target.guard("--rule heap-exec");
    target.map(end - 2 * PAGE, 4, R, 0);
    target.refused(end - PAGE, 1, RWX);
    target.refused(end - 2 * PAGE, 4, RWX);
    target.passes(end, 2, RWX);
    lsm.end().counted(2);
}

fn what_a_personality_widens_is_judged_as_it_was_asked() {
    const READ_IMPLIES_EXEC: i64 = 0x40_0000;
    let mut target = Heap::new();
    let end = target.heap.end;
    let lsm = target.guard("--rule heap-exec");
    assert_eq!(
        target.call(libc::SYS_personality, &[READ_IMPLIES_EXEC]),
        Ok(())
    );
    target.refused(end - PAGE, 1, RWX);
    target.passes(end - PAGE, 1, RW);
    assert_eq!(target.protection(end - PAGE), "rwx");
    lsm.end().counted(1);
}

/// With PROT_GROWSDOWN the kernel lets a request begin where the mapping does.
fn a_mapping_that_grows_down_into_the_heap_is_refused() {
    let mut target = Heap::new();
    let end = target.heap.end;
    let grows = i64::from(libc::PROT_GROWSDOWN);
    target.map(end - PAGE, 4, RW, libc::MAP_GROWSDOWN.into());
    let lsm = target.guard("--rule heap-exec");
    target.refused(end + PAGE, 1, RWX | grows);
    target.passes(end + 2 * PAGE, 1, RWX);
    lsm.end().counted(1);
    target.passes(end + PAGE, 1, RWX | grows);
    assert_eq!(target.protection(end - PAGE), "rwx");
}

/// Linear address masking, which lets user space keep something in the upper bits.
fn has_tags() -> bool {
    let mut heap = Heap::new();
    heap.call(libc::SYS_arch_prctl, &[ARCH_ENABLE_TAGGED_ADDR, 6]) == Ok(())
}

fn an_address_with_a_tag_does_not_get_past() {
    let mut target = Heap::new();
    let end = target.heap.end;
    assert_eq!(
        target.call(libc::SYS_arch_prctl, &[ARCH_ENABLE_TAGGED_ADDR, 6]),
        Ok(())
    );
    let lsm = target.guard("--rule heap-exec");
    target.refused((end - PAGE) | TAG, 1, RWX);
    target.map(LOW + 0x10_0000, 1, RW, 0);
    target.passes((LOW + 0x10_0000) | TAG, 1, RWX);
    lsm.end().counted(1);
    target.passes((end - PAGE) | TAG, 1, RWX);
}

fn bad_requests_keep_the_kernels_errno() {
    let mut target = Heap::new();
    let lsm = target.guard("--rule heap");
    let Range { start, end } = target.heap;
    for (address, length, prot, errno) in [
        (start + 1, PAGE, RWX, Errno::INVAL),
        // as far as addresses go
        (start, i64::MAX & -PAGE, RWX, Errno::PERM),
        (start, -PAGE, RWX, Errno::NOMEM),
        (end, PAGE, RWX, Errno::NOMEM),
        (start, PAGE, 0x40, Errno::INVAL),
    ] {
        let result = target.call(libc::SYS_mprotect, &[address, length, prot]);
        assert_eq!(result, Err(errno), "{address:x} {length:x} {prot:x}");
    }
    // nothing is asked for
    target.passes(start, 0, RWX);
    // a part of a page is all of it
    let result = target.call(libc::SYS_mprotect, &[end - PAGE, 1, RWX]);
    assert_eq!(result, Err(Errno::PERM));
    lsm.end().counted(2);
}

fn what_a_guarded_process_starts_cannot_make_its_heap_executable() {
    let heap = format!("live act heap {RWX}");
    let words = ["--rule", "heap-exec", "--", "sh", "-c", &heap];
    let report = Lsm::command(&["-q"].iter().chain(&words).copied().collect::<Vec<_>>()).wait();
    report.exited(0).counted(1);
    assert_eq!(report.stdout, format!("{}\n", libc::EPERM), "{report}");
}

fn in_a_cgroup_no_heap_is_made_executable() {
    let cgroup = Cgroup::new("heap");
    let (mut inside, mut outside) = (Heap::new(), Heap::new());
    let lsm = Lsm::start(&format!("{} --rule heap-exec", cgroup.option()));
    cgroup.take(inside.agent.pid);
    let start = inside.heap.start;
    inside.refused(start, 1, RWX);
    let start = outside.heap.start;
    outside.passes(start, 1, RWX);
    lsm.end().counted(1);
}

fn audit_reports_the_request_and_lets_it_pass() {
    let mut target = Heap::new();
    let lsm = target.guard("--rule heap --audit --json");
    let start = target.heap.start;
    target.passes(start, 1, RWX);
    assert_eq!(target.protection(start), "rwx");
    let report = lsm.end();
    let counts = Counts {
        audited: 1,
        ..Counts::default()
    };
    assert_eq!(report.counts(), counts, "{report}");
    let told = events(&report);
    assert_eq!(told.len(), 1, "{report}");
    assert_eq!(told[0]["verdict"], "audited", "{report}");
    assert_eq!(told[0]["asked"]["prot"], "READ|WRITE|EXEC", "{report}");
}

fn v_reports_what_was_allowed_once_a_request() {
    let mut target = Heap::new();
    target.map(LOW + 0x10_0000, 1, RW, 0);
    target.map(LOW + 0x10_1000, 1, R, 0);
    let lsm = target.guard("--rule heap-exec -v --json");
    // of two mappings
    target.passes(LOW + 0x10_0000, 2, RWX);
    let report = lsm.end();
    let counts = Counts {
        allowed: 1,
        ..Counts::default()
    };
    assert_eq!(report.counts(), counts, "{report}");
    assert_eq!(events(&report)[0]["verdict"], "allowed", "{report}");
    assert_eq!(
        events(&report)[0]["asked"]["start"],
        "0x10100000",
        "{report}"
    );
    assert_eq!(events(&report)[0]["asked"]["end"], "0x10102000", "{report}");
}

fn an_event_has_the_range_and_the_protection_by_name() {
    let mut target = Heap::new();
    let lsm = target.guard("--rule heap --json");
    let end = target.heap.end;
    let mut expected = Vec::new();
    for (call, number) in [
        ("mprotect", libc::SYS_mprotect),
        ("pkey_mprotect", libc::SYS_pkey_mprotect),
    ] {
        for (prot, name) in [(NONE, "NONE"), (R, "READ"), (RWX, "READ|WRITE|EXEC")] {
            let args = [end - 2 * PAGE, PAGE + 1, prot, -1];
            assert_eq!(target.call(number, &args), Err(Errno::PERM));
            expected.push((call, name));
        }
    }
    let pid = target.agent.pid;
    let report = lsm.end();
    let told = events(&report);
    assert_eq!(told.len(), expected.len(), "{report}");
    for (event, (call, prot)) in told.iter().zip(expected) {
        assert_eq!(event["rule"], "heap", "{report}");
        assert_eq!(event["hook"], "file_mprotect", "{report}");
        assert_eq!(event["call"], call, "{report}");
        assert_eq!(event["target"]["pid"], pid, "{report}");
        assert_eq!(event["caller"]["pid"], pid, "{report}");
        let asked = json!({
            "start": format!("{:#x}", end - 2 * PAGE),
            "end": format!("{end:#x}"),
            "prot": prot,
        });
        assert_eq!(event["asked"], asked, "{report}");
        assert!(event["had"].is_null(), "{report}");
    }
}

fn a_line_of_text_names_the_caller_once() {
    let mut target = Heap::new();
    let lsm = target.guard("--rule heap-exec");
    let start = target.heap.start;
    target.refused(start, 1, RWX);
    let report = lsm.end();
    let line = report.stdout.trim_end();
    let pid = target.agent.pid;
    assert!(line.contains(&format!(" denied  live {pid} ")), "{report}");
    let asked = format!(" mprotect {start:#x}-{:#x} READ|WRITE|EXEC", start + PAGE);
    assert!(line.ends_with(&asked), "{report}");
    assert!(!line.contains(" on ") && line.len() < 120, "{report}");
}

fn both_rules_and_those_of_priority_hold_together() {
    let mut target = Heap::new();
    let lsm = target.guard("--rule nice,heap,heap-exec,io,sched --json");
    let start = target.heap.start;
    target.refused(start, 1, RW);
    target.refused(start, 1, RWX);
    refuses(target.agent.pid, -1);
    accepts(target.agent.pid, 1);
    let result = Within(&mut target.agent).ioprio_set(sys::IO_PROCESS, 0, sys::io(sys::IO_RT, 0));
    assert_eq!(result, Err(Errno::PERM));
    let report = lsm.end();
    report.counted(4);
    let rules: Vec<_> = events(&report)
        .iter()
        .map(|event| event["rule"].clone())
        .collect();
    assert_eq!(rules, ["heap", "heap", "nice", "io"], "{report}");
}

fn only_the_program_of_the_rule_is_loaded() {
    loads_alone("file_mprotect", &["heap", "heap-exec", "heap,heap-exec"]);
}

fn so_memory_that_is_mapped_executable_is_out_of_scope() {
    let mut target = Heap::new();
    let end = target.heap.end;
    let lsm = target.guard("--rule heap,heap-exec");
    target.map(end - PAGE, 1, RWX, 0);
    assert_eq!(target.protection(end - PAGE), "rwx");
    lsm.end().counted(0);
}

fn so_a_heap_that_is_moved_by_mremap_is_out_of_scope() {
    let mut target = Heap::new();
    let (end, place) = (target.heap.end, LOW + 0x10_0000);
    let lsm = target.guard("--rule heap,heap-exec");
    let flags = i64::from(libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED);
    let args = [end - PAGE, PAGE, PAGE, flags, place];
    assert_eq!(target.call(libc::SYS_mremap, &args), Ok(()));
    target.passes(place, 1, RWX);
    lsm.end().counted(0);
}

fn so_a_start_brk_that_is_moved_by_prctl_is_out_of_scope() {
    let mut target = Heap::new();
    let Range { start, end } = target.heap;
    let lsm = target.guard("--rule heap,heap-exec");
    assert_eq!(target.set_mm(libc::PR_SET_MM_START_BRK, end - PAGE), Ok(()));
    target.passes(start, 1, RWX);
    target.refused(end - PAGE, 1, RWX);
    lsm.end().counted(1);
}

fn so_a_process_that_shares_the_memory_and_is_not_guarded_is_out_of_scope() {
    let mut target = Heap::new();
    let start = target.heap.start;
    let ask = format!("sharer {start} {PAGE} {RWX}");
    let lsm = target.guard("--rule heap,heap-exec --no-children");
    target.refused(start, 1, RWX);
    assert_eq!(target.agent.ask(&ask), 0);
    assert_eq!(target.protection(start), "rwx");
    lsm.end().counted(1);
    // one that is started under the guard is guarded
    if has_task_storage() {
        assert_eq!(target.protect(start, 1, RW), Ok(()));
        let lsm = target.guard("--rule heap-exec");
        assert_eq!(target.agent.ask(&ask), libc::EPERM);
        assert_eq!(target.protection(start), "rw-");
        lsm.end().counted(1);
    }
}
