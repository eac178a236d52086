// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! `lsm-nice --cgroup`, and cgroups that hold what a test has made.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::agent::Agent;
use crate::helpers::{Lsm, accepts, eventually, nice_of, pid, refuses, threads};

tests!(
    processes_in_a_cgroup_and_below_it_are_guarded,
    what_moves_in_is_guarded_and_what_moves_out_is_free,
    what_is_forked_or_born_in_a_cgroup_is_guarded,
    every_thread_in_a_cgroup_is_guarded,
    a_cgroup_is_named_as_proc_prints_it,
    a_cgroup_is_found_by_the_name_of_its_unit,
    a_name_that_may_be_two_units_is_refused,
    a_unit_in_the_cgroup_of_a_user_is_not_meant,
    a_unit_that_has_no_cgroup_is_refused,
    a_cgroup_ten_levels_deep_is_guarded,
    what_is_no_cgroup2_directory_is_refused,
    the_removal_of_the_cgroup_ends_the_guard,
    a_cgroup_made_again_by_its_name_is_not_guarded,
    an_empty_cgroup_does_not_end_the_guard,
    siblings_and_the_parent_are_not_guarded,
    the_root_of_all_cgroups_may_be_guarded,
    a_command_moved_out_of_the_cgroup_stays_guarded_for_itself,
    no_children_changes_nothing_for_a_cgroup,
    a_target_in_the_cgroup_that_is_raised_already_is_named,
    a_cgroup_is_guarded_from_inside_a_container,
    nobody_is_free_while_being_moved_about_below_the_cgroup,
);

const ROOT: &str = "/sys/fs/cgroup";

/// A cgroup, removed with all below and in it when it is dropped.
pub struct Cgroup {
    pub path: PathBuf,
}

impl Cgroup {
    /// Makes it; the name may be of several levels.
    pub fn new(name: &str) -> Self {
        let path = PathBuf::from(format!("{ROOT}/{name}"));
        fs::create_dir_all(&path).expect("a cgroup");
        Self { path }
    }

    pub fn below(&self, name: &str) -> Self {
        let path = self.path.join(name);
        fs::create_dir_all(&path).expect("a cgroup");
        Self { path }
    }

    pub fn path(&self) -> &str {
        self.path.to_str().expect("a name")
    }

    pub fn option(&self) -> String {
        format!("--cgroup {}", self.path())
    }

    pub fn take(&self, pid: i32) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
            .unwrap_or_else(|error| panic!("process {pid} into {}: {error}", self.path()));
    }

    fn processes(&self) -> BTreeSet<i32> {
        fs::read_to_string(self.path.join("cgroup.procs"))
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.parse().ok())
            // one that is dead by now
            .filter(|pid| *pid != 0)
            .collect()
    }

    /// Stops all that runs in it, at whatever it does, and lists it.
    pub fn freeze(&self) -> BTreeSet<i32> {
        fs::write(self.path.join("cgroup.freeze"), "1").expect("a cgroup that can be frozen");
        let events = || fs::read_to_string(self.path.join("cgroup.events")).ok();
        let frozen = || events()?.contains("frozen 1").then_some(());
        eventually(frozen).expect("a frozen cgroup");
        self.processes()
    }

    pub fn thaw(&self) {
        fs::write(self.path.join("cgroup.freeze"), "0").expect("a frozen cgroup");
    }

    fn remove(&self) {
        eventually(|| {
            for process in self.processes() {
                let _ = kill_process(pid(process), Signal::KILL);
            }
            fs::remove_dir(&self.path).ok()
        })
        .unwrap_or_else(|| panic!("{} cannot be removed", self.path()));
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.path.exists() {
            let _ = fs::write(self.path.join("cgroup.freeze"), "0");
            for below in fs::read_dir(&self.path).into_iter().flatten().flatten() {
                if below.file_type().is_ok_and(|file| file.is_dir()) {
                    drop(Self { path: below.path() });
                }
            }
            self.remove();
        }
    }
}

fn agent_in(cgroup: &Cgroup) -> Agent {
    let agent = Agent::start();
    cgroup.take(agent.pid);
    agent
}

fn processes_in_a_cgroup_and_below_it_are_guarded() {
    let cgroup = Cgroup::new("guarded");
    let (inside, below) = (agent_in(&cgroup), agent_in(&cgroup.below("one/two")));
    let outside = Agent::start();
    let lsm = Lsm::start(&cgroup.option());
    for target in [&inside, &below] {
        refuses(target.pid, -1);
        accepts(target.pid, 1);
    }
    accepts(outside.pid, -1);
    lsm.end().counted(2);
    accepts(inside.pid, -1);
    accepts(below.pid, -1);
}

fn what_moves_in_is_guarded_and_what_moves_out_is_free() {
    let cgroup = Cgroup::new("guarded");
    let (below, elsewhere) = (cgroup.below("below"), Cgroup::new("elsewhere"));
    let target = Agent::start();
    let lsm = Lsm::start(&cgroup.option());
    accepts(target.pid, -1);
    for home in [&cgroup, &below] {
        home.take(target.pid);
        refuses(target.pid, -1);
        accepts(target.pid, 0);
        elsewhere.take(target.pid);
        accepts(target.pid, -1);
    }
    lsm.end().counted(2);
}

fn what_is_forked_or_born_in_a_cgroup_is_guarded() {
    let cgroup = Cgroup::new("guarded");
    let (below, elsewhere) = (cgroup.below("below"), Cgroup::new("elsewhere"));
    let (mut inside, mut outside) = (agent_in(&cgroup), Agent::start());
    let lsm = Lsm::start(&cgroup.option());
    refuses(inside.child("fork"), -1);
    refuses(inside.child("vfork"), -1);
    refuses(inside.child("orphan"), -1);
    refuses(outside.child(&format!("into {}", cgroup.path())), -1);
    refuses(outside.child(&format!("into {}", below.path())), -1);
    accepts(outside.child("fork"), -1);
    // Born elsewhere, it is in another cgroup; a guard of a cgroup is no mark.
    accepts(inside.child(&format!("into {}", elsewhere.path())), -1);
    lsm.end().counted(5);
}

fn every_thread_in_a_cgroup_is_guarded() {
    let cgroup = Cgroup::new("guarded");
    let mut target = agent_in(&cgroup);
    target.thread();
    let lsm = Lsm::start(&cgroup.option());
    target.thread();
    let threads = threads(target.pid);
    assert_eq!(threads.len(), 3);
    for &thread in &threads {
        refuses(thread, -1);
    }
    target.exec();
    refuses(target.pid, -1);
    lsm.end().counted(4);
}

fn a_cgroup_is_named_as_proc_prints_it() {
    let cgroup = Cgroup::new("guarded/inner");
    let outer = Cgroup::new("guarded");
    let target = agent_in(&cgroup);
    let printed = fs::read_to_string(format!("/proc/{}/cgroup", target.pid)).expect("/proc");
    let name = printed.trim_end().strip_prefix("0::").expect("a cgroup2");
    assert_eq!(name, "/guarded/inner");
    for name in [name, "/guarded", "/guarded/", "guarded/inner"] {
        let lsm = Lsm::start(&format!("--cgroup {name}"));
        refuses(target.pid, -1);
        lsm.end().counted(1);
    }
    drop((cgroup, outer));
}

fn a_cgroup_ten_levels_deep_is_guarded() {
    let top = Cgroup::new("deep");
    let deep = top.below("1/2/3/4/5/6/7/8/9/10");
    let target = agent_in(&deep);
    for level in ["", "1/2/3/4/5", "1/2/3/4/5/6/7/8/9", "1/2/3/4/5/6/7/8/9/10"] {
        let lsm = Lsm::start(&format!("--cgroup {}/{level}", top.path()));
        refuses(target.pid, -1);
        lsm.end().counted(1);
    }
    let lsm = Lsm::start(&format!("--cgroup {}/1", top.path()));
    let beside = agent_in(&top.below("2/3"));
    accepts(beside.pid, -1);
    lsm.end().counted(0);
}

fn what_is_no_cgroup2_directory_is_refused() {
    let cgroup = Cgroup::new("guarded");
    let file = format!("{}/cgroup.procs", cgroup.path());
    for path in [
        "/tmp",
        "/nonexistent",
        "/sys/fs/cgroup/nonexistent",
        &file,
        // where the tests run no cgroup is, and the root is everybody
        ".",
        "./",
        "..",
        "guarded/..",
    ] {
        Lsm::run(&format!("--cgroup {path}"))
            .refused_to_start()
            .says(path)
            .says("cgroup");
    }
}

fn the_removal_of_the_cgroup_ends_the_guard() {
    let cgroup = Cgroup::new("guarded");
    let target = agent_in(&cgroup);
    let mut lsm = Lsm::start(&cgroup.option());
    refuses(target.pid, -1);
    target.quit();
    lsm.must_still_guard();
    cgroup.remove();
    lsm.wait()
        .exited(0)
        .says(&format!("cgroup {} is gone", cgroup.path()))
        .counted(1);
}

fn a_cgroup_made_again_by_its_name_is_not_guarded() {
    let cgroup = Cgroup::new("guarded");
    let target = Agent::start();
    let lsm = Lsm::start(&cgroup.option());
    // lsm-nice does not see the removal: the kernel alone decides.
    lsm.signal(Signal::STOP);
    cgroup.remove();
    let again = Cgroup::new("guarded");
    again.take(target.pid);
    accepts(target.pid, -1);
    lsm.signal(Signal::CONT);
    lsm.wait().exited(0).says("is gone").counted(0);
}

fn an_empty_cgroup_does_not_end_the_guard() {
    let cgroup = Cgroup::new("guarded");
    let mut lsm = Lsm::start(&cgroup.option());
    lsm.must_still_guard();
    for _ in 0..3 {
        let target = agent_in(&cgroup);
        refuses(target.pid, -1);
        target.quit();
        lsm.must_still_guard();
    }
    // Another that goes is not this one.
    Cgroup::new("elsewhere").remove();
    thread::sleep(Duration::from_millis(50));
    lsm.must_still_guard();
    lsm.end().counted(3);
}

fn siblings_and_the_parent_are_not_guarded() {
    let parent = Cgroup::new("parent");
    let (a, ab, b) = (parent.below("a"), parent.below("ab"), parent.below("b"));
    let lsm = Lsm::start(&a.option());
    for other in [&ab, &b, &ab.below("a"), &parent] {
        accepts(agent_in(other).pid, -1);
    }
    refuses(agent_in(&a).pid, -1);
    lsm.end().counted(1);
}

fn the_root_of_all_cgroups_may_be_guarded() {
    let target = Agent::start();
    for name in [ROOT, "/"] {
        let lsm = Lsm::start(&format!("--cgroup {name}"));
        refuses(target.pid, -1);
        lsm.end().counted(1);
    }
}

fn a_command_moved_out_of_the_cgroup_stays_guarded_for_itself() {
    let cgroup = Cgroup::new("guarded");
    let (inside, mut named) = (agent_in(&cgroup), Agent::start());
    let outside = Cgroup::new("elsewhere");
    let lsm = Lsm::start(&format!("{} --pid {}", cgroup.option(), named.pid));
    cgroup.take(named.pid);
    outside.take(named.pid);
    outside.take(inside.pid);
    refuses(named.pid, -1);
    refuses(named.child("fork"), -1);
    accepts(inside.pid, -1);
    lsm.end().counted(2);
}

fn no_children_changes_nothing_for_a_cgroup() {
    let cgroup = Cgroup::new("guarded");
    let mut target = agent_in(&cgroup);
    let lsm = Lsm::start(&format!("{} --no-children", cgroup.option()));
    refuses(target.pid, -1);
    refuses(target.child("fork"), -1);
    lsm.end().counted(2);
}

fn a_target_in_the_cgroup_that_is_raised_already_is_named() {
    let cgroup = Cgroup::new("guarded");
    let target = agent_in(&cgroup);
    accepts(target.pid, -7);
    let lsm = Lsm::start(&cgroup.option());
    let pid = target.pid;
    lsm.end()
        .says(&format!("warning: process {pid} (live) is at nice -7"))
        .counted(0);
    assert_eq!(nice_of(pid), -7);
}

fn a_cgroup_is_guarded_from_inside_a_container() {
    let cgroup = Cgroup::new("guarded");
    let target = agent_in(&cgroup);
    let container = ["unshare", "--pid", "--fork", "--mount-proc"];
    let lsm = Lsm::start_in(&container, &cgroup.option());
    refuses(target.pid, -1);
    lsm.end().counted(1);
}

fn nobody_is_free_while_being_moved_about_below_the_cgroup() {
    let cgroup = Cgroup::new("guarded");
    let homes = [cgroup.below("a"), cgroup.below("b/c")];
    let target = agent_in(&cgroup);
    let lsm = Lsm::start(&cgroup.option());
    let moved = thread::scope(|scope| {
        let mover = scope.spawn(|| (0..200).for_each(|at| homes[at % 2].take(target.pid)));
        let mut tries = 0;
        while !mover.is_finished() {
            refuses(target.pid, -1);
            tries += 1;
        }
        tries
    });
    lsm.end().counted(moved);
}

fn a_cgroup_is_found_by_the_name_of_its_unit() {
    let top = Cgroup::new("top.slice");
    let unit = top.below("a-b@c.service");
    let slice = top.below("top-d.slice");
    // Further down, as a user's systemd may have it.
    let deeper = slice.below("a-b@c.service");
    for (name, cgroup) in [
        ("a-b@c", &unit),
        ("a-b@c.service", &unit),
        ("top-d.slice", &slice),
        ("top.slice", &top),
        (r"a\x2db@c", &unit),
        ("-top.slice-a\\x2db@c.service", &unit),
        ("top.slice-top\\x2dd.slice-a\\x2db@c.service", &deeper),
    ] {
        let target = agent_in(cgroup);
        let lsm = Lsm::start(&format!("--cgroup={name}"));
        assert!(lsm.stderr().contains(&format!("cgroup {}:", cgroup.path())));
        refuses(target.pid, -1);
        lsm.end().counted(1);
    }
}

fn a_name_that_may_be_two_units_is_refused() {
    let (one, other) = (Cgroup::new("one.slice"), Cgroup::new("other.slice"));
    let (one, other) = (one.below("twin.service"), other.below("twin.service"));
    for name in ["twin", "twin.service"] {
        Lsm::run(&format!("--cgroup {name}"))
            .refused_to_start()
            .says(one.path())
            .says(other.path())
            .says("fix: name it by its path");
    }
}

/// As systemd delegates one, in which the user makes any names.
fn a_unit_in_the_cgroup_of_a_user_is_not_meant() {
    let top = Cgroup::new("top.slice");
    let user = top.below("user@1000.service");
    let unit = user.below("cron.service");
    for cgroup in [&user, &unit] {
        chown(cgroup.path(), Some(1000), Some(1000)).expect("a directory");
    }
    Lsm::run("--cgroup cron")
        .refused_to_start()
        .says("cron is neither a directory of cgroup v2 nor a unit");
    // the unit that is delegated is root's own, and what is in it has a path
    let target = agent_in(&unit);
    for cgroup in ["user@1000", unit.path()] {
        let lsm = Lsm::start(&format!("--cgroup {cgroup}"));
        refuses(target.pid, -1);
        lsm.end().counted(1);
    }
}

fn a_unit_that_has_no_cgroup_is_refused() {
    for name in ["nonexistent", "nonexistent.slice", r"non\x2dexistent"] {
        Lsm::run(&format!("--cgroup {name}"))
            .refused_to_start()
            .says(&format!(
                "{name} is neither a directory of cgroup v2 nor a unit"
            ))
            .says("fix:");
    }
}
