// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! How a guard ends, and what is left of it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::agent::Agent;
use crate::bpf::Loaded;
use crate::helpers::{Lsm, accepts, eventually, heavy, refuses, renice, status_field};
use crate::sys::{Attr, Native, OTHER, Outside};

tests!(
    sigint_ends_the_guard_and_gives_the_right_back,
    sigterm_ends_the_guard_and_gives_the_right_back,
    sighup_ends_the_guard_and_gives_the_right_back,
    kill_9_ends_the_guard_and_gives_the_right_back,
    under_nohup_a_guard_outlives_sighup,
    the_end_of_the_process_ends_the_guard,
    nothing_that_is_allowed_is_refused_as_a_guard_ends,
    starts_and_stops_leave_nothing_in_the_kernel,
);

fn ended_by(signal: Signal) {
    let target = Agent::start();
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    refuses(target.pid, -10);
    refuses(target.pid, -1);
    accepts(target.pid, 5);
    renice(-20, target.pid).exited(1);
    lsm.signal(signal);
    lsm.wait().exited(0).counted(3);
    renice(-10, target.pid).exited(0);
    accepts(target.pid, -20);
}

fn sigint_ends_the_guard_and_gives_the_right_back() {
    ended_by(Signal::INT);
}

fn sigterm_ends_the_guard_and_gives_the_right_back() {
    ended_by(Signal::TERM);
}

fn sighup_ends_the_guard_and_gives_the_right_back() {
    ended_by(Signal::HUP);
}

fn kill_9_ends_the_guard_and_gives_the_right_back() {
    let target = Agent::start();
    let lsm = Lsm::start(&format!("--pid {}", target.pid));
    refuses(target.pid, -10);
    lsm.kill();
    accepts(target.pid, -10);
}

fn under_nohup_a_guard_outlives_sighup() {
    let target = Agent::start();
    // As nohup(1) does.
    let nohup = ["sh", "-c", r#"trap '' HUP; exec "$@""#, "sh"];
    let mut lsm = Lsm::start_in(&nohup, &format!("--pid {}", target.pid));
    let ignored = status_field(lsm.pid(), "SigIgn").expect("the signals that are ignored");
    let ignored = u64::from_str_radix(&ignored, 16).expect("a mask");
    assert_ne!(
        ignored & 1 << (libc::SIGHUP - 1),
        0,
        "SIGHUP is not ignored"
    );
    lsm.signal(Signal::HUP);
    refuses(target.pid, -10);
    lsm.must_still_guard();
    lsm.end().counted(1);
}

fn the_end_of_the_process_ends_the_guard() {
    let target = Agent::start();
    let pid = target.pid;
    let lsm = Lsm::start(&format!("--pid {pid} --no-children"));
    refuses(pid, -10);
    target.quit();
    lsm.wait()
        .exited(0)
        .says(&format!("process {pid} (live) has exited"))
        .counted(1);
}

/// The hook of sched_setattr(2) refuses where a note is missing.
fn nothing_that_is_allowed_is_refused_as_a_guard_ends() {
    let target = Agent::at_nice(5);
    let pid = target.pid;
    let lsm = Lsm::start(&format!("--pid {pid}"));
    let (stop, asked) = (AtomicBool::new(false), AtomicU32::new(0));
    let attr = Attr::nice(OTHER, 5);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                // a note may be lost where the caller is switched out
                let allowed = (0..20).any(|_| Outside.setattr(Native, pid, &attr).is_ok());
                if !allowed {
                    return;
                }
                asked.fetch_add(1, Relaxed);
            }
        });
        eventually(|| (asked.load(Relaxed) > 0).then_some(())).expect("a call");
        lsm.end();
        let before = asked.load(Relaxed);
        let goes_on = eventually(|| (asked.load(Relaxed) > before).then_some(()));
        stop.store(true, Relaxed);
        assert!(goes_on.is_some(), "refused after {before} calls");
    });
}

fn starts_and_stops_leave_nothing_in_the_kernel() {
    let target = Agent::start();
    let before = Loaded::now();
    for round in 0..heavy(1000) {
        let options = format!("--pid {}", target.pid);
        // the cheapest guard, twice as often: what is left behind adds up
        let small = format!("{options} --no-children --rule io");
        match round % 4 {
            0 => drop(Lsm::start(&options).end()),
            1 => drop(Lsm::start(&small).end()),
            2 => Lsm::start(&small).kill(),
            _ => {
                // At any point of its start, a later one each time.
                let lsm = Lsm::spawn(&[], &options);
                thread::sleep(Duration::from_millis(round as u64 % 150));
                lsm.kill();
            }
        }
    }
    before.is_not_exceeded();
    accepts(target.pid, -10);
}
