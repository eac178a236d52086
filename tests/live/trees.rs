// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! Several targets, --tree, --no-children, and what of it is in the kernel.

use std::fs;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Signal, kill_process};

use crate::agent::Agent;
use crate::bpf::{Loaded, Present};
use crate::cgroups::Cgroup;
use crate::helpers::{
    Lsm, accepts, child_of, children, descendants, eventually, heavy, pid, refuses, set_nice,
    status_field, threads,
};

tests!(
    several_pids_are_guarded_until_the_last_has_exited,
    the_same_pid_twice_is_one,
    where_one_pid_is_missing_nobody_is_guarded,
    pid_cgroup_and_command_are_guarded_together,
    without_tree_present_children_are_free,
    with_tree_present_descendants_are_guarded,
    tree_takes_the_descendants_of_every_pid,
    a_traced_process_is_not_of_the_tree,
    no_children_guards_later_threads_and_no_later_child,
    no_children_holds_for_several_pids,
    no_children_with_tree_guards_what_was_there,
    the_trial_and_its_grandchild_are_not_counted,
    the_raised_are_named_child_and_thread,
    a_guard_inside_a_container_inherits,
    a_guard_inside_a_container_takes_the_tree,
    a_tree_that_forks_at_full_speed_does_not_escape,
    a_tree_of_short_lines_among_few_pids_does_not_escape,
    threads_made_while_the_guard_starts_are_guarded,
    exec_by_threads_while_the_guard_starts_sheds_nothing,
    the_default_loads_what_inherits,
    guards_with_children_leave_nothing_in_the_kernel,
);

const CONTAINER: [&str; 4] = ["unshare", "--pid", "--fork", "--mount-proc"];

fn several_pids_are_guarded_until_the_last_has_exited() {
    let targets: Vec<_> = (0..4).map(|_| Agent::start()).collect();
    let other = Agent::start();
    let options = targets
        .iter()
        .map(|target| format!("--pid {} ", target.pid));
    let mut lsm = Lsm::start(&options.collect::<String>());
    let mut refused = 0;
    let mut left = targets;
    while let Some(target) = left.pop() {
        for still in left.iter().chain([&target]) {
            refuses(still.pid, -1);
            refused += 1;
        }
        accepts(other.pid, -1);
        lsm.must_still_guard();
        target.quit();
    }
    lsm.wait()
        .exited(0)
        .says("the last guarded process has exited")
        .counted(refused);
}

fn the_same_pid_twice_is_one() {
    let target = Agent::start();
    let lsm = Lsm::start(&format!("--pid {0} --pid {0}", target.pid));
    refuses(target.pid, -1);
    let name = format!("process {} (live)", target.pid);
    assert_eq!(lsm.stderr().matches(&name).count(), 1, "{}", lsm.stderr());
    target.quit();
    lsm.wait().exited(0).counted(1);
}

fn where_one_pid_is_missing_nobody_is_guarded() {
    let targets = [Agent::start(), Agent::start()];
    let gone = Agent::start();
    let missing = gone.pid;
    gone.quit();
    let pids = [targets[0].pid, missing, targets[1].pid];
    for tree in ["", "--tree", "--no-children"] {
        Lsm::run(&format!(
            "--pid {} --pid {} --pid {} {tree}",
            pids[0], pids[1], pids[2]
        ))
        .refused_to_start()
        .says(&format!("there is no running process {missing}\n"));
        accepts(targets[0].pid, -1);
        accepts(targets[1].pid, -1);
    }
}

fn pid_cgroup_and_command_are_guarded_together() {
    let cgroup = Cgroup::new("guarded");
    let (mut named, mut inside, other) = (Agent::start(), Agent::start(), Agent::start());
    cgroup.take(inside.pid);
    let number = named.pid.to_string();
    let mut lsm = Lsm::command(&[
        "--pid",
        &number,
        "--cgroup",
        cgroup.path(),
        "--",
        "sleep",
        "1000",
    ]);
    let command = child_of(lsm.pid());
    let guarded = [
        named.pid,
        inside.pid,
        command,
        named.child("fork"),
        inside.child("fork"),
    ];
    for target in guarded {
        refuses(target, -1);
    }
    accepts(other.pid, -1);
    kill_process(pid(command), Signal::KILL).expect("COMMAND");
    named.quit();
    lsm.must_still_guard();
    drop(inside);
    drop(cgroup);
    lsm.wait().exited(137).counted(5);
}

fn without_tree_present_children_are_free() {
    let mut target = Agent::start();
    let before = target.child("fork");
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    let after = target.child("fork");
    accepts(before, -1);
    refuses(after, -1);
    lsm.end().counted(1);
}

fn with_tree_present_descendants_are_guarded() {
    let mut target = Agent::start();
    assert_eq!(target.ask("subreaper"), 0);
    for made in [
        "fork",
        "vfork",
        "share",
        "spawn",
        "orphan",
        "fork-in-thread",
    ] {
        target.child(made);
    }
    let parent = Agent::forked_by(&["sh", "-c", r#""$@"; true"#, "sh"]);
    let shell = parent_of(parent.pid);
    let other = Agent::start();
    let lsm = Lsm::start(&format!("--pid {} --tree --pid {shell}", target.pid));
    let mut tree = descendants(target.pid);
    assert_eq!(tree.len(), 6);
    tree.extend([target.pid, shell, parent.pid, target.child("fork")]);
    for &process in &tree {
        refuses(process, -1);
        accepts(process, 1);
    }
    accepts(other.pid, -1);
    lsm.end().counted(tree.len() as u64);
    for process in tree {
        accepts(process, -1);
    }
}

fn parent_of(pid: i32) -> i32 {
    let parent = status_field(pid, "PPid").and_then(|parent| parent.parse().ok());
    parent.expect("a parent")
}

fn tree_takes_the_descendants_of_every_pid() {
    let mut targets = [Agent::start(), Agent::start(), Agent::start()];
    let forked = targets.each_mut().map(|target| target.child("fork"));
    let pids = targets.each_ref().map(|target| target.pid);
    let lsm = Lsm::start(&format!("--tree --pid {} --pid {}", pids[0], pids[2]));
    for at in [0, 2] {
        refuses(pids[at], -1);
        refuses(forked[at], -1);
    }
    accepts(pids[1], -1);
    accepts(forked[1], -1);
    lsm.end().counted(4);
}

fn a_traced_process_is_not_of_the_tree() {
    let (mut tracer, mut traced) = (Agent::start(), Agent::start());
    tracer
        .call(&format!("trace {}", traced.pid))
        .expect("a tracee");
    let lsm = Lsm::start(&format!("--pid {} --tree", tracer.pid));
    refuses(tracer.pid, -1);
    accepts(traced.pid, -1);
    accepts(traced.child("fork"), -1);
    lsm.end().counted(1);
    // A process is not reaped by its parent before its tracer has seen it end.
    tracer.quit();
}

fn no_children_guards_later_threads_and_no_later_child() {
    let mut target = Agent::start();
    let lsm = Lsm::start(&format!("--pid {} --no-children", target.pid));
    let thread = target.thread();
    refuses(target.pid, -1);
    refuses(thread, -1);
    for made in [
        "fork",
        "vfork",
        "share",
        "spawn",
        "orphan",
        "fork-in-thread",
    ] {
        accepts(target.child(made), -1);
    }
    target.exec();
    refuses(target.pid, -1);
    lsm.end().counted(3);
}

fn no_children_holds_for_several_pids() {
    let mut targets = [Agent::start(), Agent::start()];
    for target in &mut targets {
        target.thread();
    }
    let pids = targets.each_ref().map(|target| target.pid);
    let lsm = Lsm::start(&format!(
        "--pid {} --pid {} --no-children",
        pids[0], pids[1]
    ));
    let mut refused = 0;
    for target in &mut targets {
        target.thread();
        for thread in threads(target.pid) {
            refuses(thread, -1);
            refused += 1;
        }
        for made in ["fork", "vfork", "spawn", "fork-in-thread"] {
            accepts(target.child(made), -1);
        }
        target.exec();
        refuses(target.pid, -1);
        refused += 1;
    }
    assert_eq!(refused, 2 * 4);
    lsm.end().counted(refused);
}

fn no_children_with_tree_guards_what_was_there() {
    let mut target = Agent::start();
    let before = target.child("fork");
    let lsm = Lsm::start(&format!("--pid {} --tree --no-children", target.pid));
    refuses(target.pid, -1);
    refuses(before, -1);
    accepts(target.child("fork"), -1);
    lsm.end().counted(2);
}

fn the_trial_and_its_grandchild_are_not_counted() {
    let target = Agent::start();
    for options in ["", "--cgroup /"] {
        let lsm = Lsm::start(&format!("--pid {} {options}", target.pid));
        // They have ended, and nothing of lsm-nice but itself is left.
        assert_eq!(children(lsm.pid()), Vec::<i32>::new());
        lsm.end().counted(0);
    }
}

fn the_raised_are_named_child_and_thread() {
    let mut target = Agent::start();
    let child = target.child("fork");
    accepts(child, -3);
    accepts(target.thread(), -4);
    let lsm = Lsm::start(&format!("--pid {} --tree", target.pid));
    let pid = target.pid;
    lsm.end()
        .says(&format!("warning: process {child} (live) is at nice -3"))
        .says(&format!("warning: process {pid} (live) is at nice -4"))
        .counted(0);
}

fn a_guard_inside_a_container_inherits() {
    let script = "renice -n -5 -p $$; nice -n -5 true; sh -c 'renice -n -5 -p $$; true'; echo done";
    let words = [&CONTAINER[..], &["lsm-nice", "--", "sh", "-c", script]].concat();
    let report = Lsm::launch(&words, |_| {}).wait();
    report.exited(0).says("guarding").counted(3);
    assert!(report.stdout.contains("done\n"), "{report}");
}

fn a_guard_inside_a_container_takes_the_tree() {
    let mut container = Agent::forked_by(&CONTAINER);
    container.child("fork");
    let before = child_of(container.pid);
    let init = container.pid.to_string();
    let enter = ["nsenter", "--target", &init, "--pid", "--mount"];
    let lsm = Lsm::start_in(&enter, "--pid 1 --tree");
    container.child("fork-in-thread");
    // read once more where a thread that exits hands its child over just then
    let tree = eventually(|| Some(children(container.pid)).filter(|tree| tree.len() >= 2))
        .expect("two children");
    assert!(tree.contains(&before), "{tree:?}");
    for &process in &tree {
        refuses(process, -1);
    }
    refuses(container.pid, -1);
    lsm.end().counted(tree.len() as u64 + 1);
}

/// How many tasks a cgroup has, and who of them can be raised. Nobody runs meanwhile, but who was
/// dying may be dead.
fn free(cgroup: &Cgroup) -> (usize, Vec<i32>) {
    let processes = cgroup.freeze();
    let tasks: Vec<_> = processes.into_iter().flat_map(threads).collect();
    let (refused, others): (Vec<_>, Vec<_>) = tasks
        .into_iter()
        .map(|task| (task, set_nice(task, -1)))
        .filter(|(_, result)| *result != Err(Errno::SRCH))
        .partition(|(_, result)| *result == Err(Errno::PERM));
    cgroup.thaw();
    let free = others.iter().map(|(task, _)| *task).collect();
    (refused.len() + others.len(), free)
}

/// Starts a guard again and again while its target makes what `command` says.
fn hammer(command: &str, options: &str, rounds: usize, at_least: usize) {
    for round in 0..rounds {
        let cgroup = Cgroup::new("hammered");
        let mut target = Agent::start();
        cgroup.take(target.pid);
        assert_eq!(target.ask("subreaper"), 0);
        assert!(target.ask(command) >= 0, "{command}");
        thread::sleep(Duration::from_millis(round as u64 % 7));
        // What forks gets more than its share of the CPU.
        let urgent = ["nice", "-n", "-10"];
        let lsm = Lsm::start_in(&urgent, &format!("--pid {} {options}", target.pid));
        let (tasks, free) = free(&cgroup);
        assert!(tasks >= at_least, "{tasks} tasks in the cgroup");
        assert!(
            free.is_empty(),
            "round {round}: {} of {tasks} tasks are free: {free:?}",
            free.len()
        );
        lsm.end().counted(tasks as u64);
    }
}

fn a_tree_that_forks_at_full_speed_does_not_escape() {
    let rounds = heavy(40);
    hammer("hop 3", "--tree", rounds, 4);
}

/// PIDs are given out in a circle: a small one is passed again and again while tasks are listed.
struct FewPids(String);

const PID_MAX: &str = "/proc/sys/kernel/pid_max";

impl FewPids {
    fn new() -> Self {
        let before = fs::read_to_string(PID_MAX).expect("pid_max");
        // PIDs below 301 are not used again after the first round.
        fs::write(PID_MAX, "420").expect("pid_max");
        Self(before)
    }
}

impl Drop for FewPids {
    fn drop(&mut self) {
        let _ = fs::write(PID_MAX, &self.0);
    }
}

fn a_tree_of_short_lines_among_few_pids_does_not_escape() {
    let rounds = heavy(40);
    let _few = FewPids::new();
    hammer("hop 3", "--tree", rounds, 4);
}

fn threads_made_while_the_guard_starts_are_guarded() {
    let rounds = heavy(60);
    hammer("hop-in-threads 4", "", rounds, 5);
}

fn exec_by_threads_while_the_guard_starts_sheds_nothing() {
    let rounds = heavy(40);
    hammer("exec-in-threads", "--tree", rounds, 2);
}

/// What marks tasks, passes marks on, and lists the marked; beside it are the hooks of the rules.
const OF_MARKS: [&str; 3] = ["task_alloc", "task_newtask", "walk"];

fn the_default_loads_what_inherits() {
    let target = Agent::start();
    let before = Present::now();
    for options in [format!("--pid {}", target.pid), "--cgroup /".into()] {
        let lsm = Lsm::start(&options);
        let present = before.added();
        assert!(OF_MARKS.iter().all(|name| present.has(name)), "{options}");
        assert_eq!(present.task_storages, 1, "{options}");
        assert_eq!(present.programs, present.attached, "{options}");
        lsm.end().counted(0);
    }
}

fn guards_with_children_leave_nothing_in_the_kernel() {
    let mut target = Agent::start();
    target.child("fork");
    let before = Loaded::now();
    let own = target.pid.to_string();
    // each of the four ways at least once
    for round in 0..heavy(200).max(4) {
        match round % 4 {
            0 => drop(Lsm::start(&format!("--pid {own} --tree")).end()),
            1 => Lsm::start(&format!("--pid {own} --tree")).kill(),
            2 => {
                Lsm::command(&["--", "sh", "-c", "sh -c true; true"]).wait();
            }
            _ => {
                // At any point of its start, a later one each time.
                let lsm = Lsm::spawn(&[], &format!("--pid {own} --tree --cgroup /"));
                thread::sleep(Duration::from_millis(round as u64 % 150));
                lsm.kill();
            }
        }
    }
    before.is_not_exceeded();
    accepts(target.pid, -1);
}
