// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! What lsm-nice promises, tried as root on a real kernel: `tests/vm ... -- live`.
//!
//! Environment: LIVE_SUITE is `guard` (the default: a kernel on which a guard must hold) or
//! `refusals` (a kernel booted without bpf in `lsm=`); LIVE_HEAVY is the share of the heavy tests'
//! rounds that are run, in percent; LIVE_SHARD is `N/OF`, the Nth of OF parts of the suite, for several
//! VMs at once.

// Calls the functions that are named, as tests of those names. One that is not named is dead code,
// which the compiler reports.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub fn tests() -> Vec<libtest_mimic::Trial> {
            vec![$(libtest_mimic::Trial::test(stringify!($name), || {
                $name();
                Ok(())
            })),*]
        }
    };
}

mod agent;
mod bpf;
mod cgroups;
mod check;
mod commands;
mod doors;
mod ends;
mod events;
mod fuzz;
mod heap;
mod helpers;
mod inherit;
mod kin;
mod missing;
mod namespaces;
mod nice;
mod old;
mod pins;
mod privilege;
mod refusals;
mod rules;
mod scope;
mod socket;
mod starts;
mod storm;
mod sys;
mod targets;
mod trees;
mod writes;

use std::env;
use std::fs;
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let words: Vec<_> = env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some("agent") => agent::serve(),
        Some("act") => agent::act(&words[1..].join(" ")),
        Some("again") => kin::exec_again(),
        Some("rage") => storm::rage(),
        Some("leaf") => storm::leaf(),
        _ => {}
    }
    let mut args = Arguments::from_args();
    let suite = match env::var("LIVE_SUITE").as_deref() {
        Ok("guard") | Err(env::VarError::NotPresent) => [
            ("nice", nice::tests()),
            ("doors", doors::trials()),
            ("rules", rules::trials()),
            ("heap", heap::trials()),
            ("socket", socket::trials()),
            ("scope", scope::trials()),
            ("fuzz", fuzz::tests()),
            ("targets", targets::tests()),
            ("namespaces", namespaces::tests()),
            ("ends", ends::tests()),
            ("events", events::tests()),
            ("starts", starts::tests()),
            ("privilege", privilege::trials()),
            ("check", check::trials()),
            ("missing", missing::tests()),
        ]
        .into_iter()
        .flat_map(of_kind)
        .chain(of_kernels())
        .collect::<Vec<_>>(),
        Ok("refusals") => of_kind(("refusals", refusals::tests())),
        other => return fail(&format!("LIVE_SUITE is guard or refusals, not {other:?}")),
    };
    let suite = match env::var("LIVE_SHARD") {
        Ok(shard) => match part(suite, &shard) {
            Some(part) => part,
            None => {
                return fail(&format!(
                    "LIVE_SHARD is N/OF, 1/2 for example, not {shard:?}"
                ));
            }
        },
        Err(_) => suite,
    };
    if !args.list {
        if let Err(why) = in_the_vm() {
            return fail(&format!("{why}: run the live tests with `make test`"));
        }
        // SAFETY: signal(2) with a disposition of the kernel's own. A shell without job control
        // starts what runs in the background with these ignored, which lsm-nice would inherit.
        unsafe {
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            libc::signal(libc::SIGQUIT, libc::SIG_DFL);
        }
    }
    // The tests share one kernel, and the programs on its hooks.
    args.test_threads = Some(1);
    libtest_mimic::run(&args, suite).exit_code()
}

fn of_kind((kind, tests): (&str, Vec<Trial>)) -> Vec<Trial> {
    tests.into_iter().map(|test| test.with_kind(kind)).collect()
}

/// What needs marks is ignored where the kernel has none, and how that is refused elsewhere.
fn of_kernels() -> Vec<Trial> {
    let marks = helpers::has_task_storage();
    [
        (marks, ("commands", commands::tests())),
        (marks, ("trees", trees::tests())),
        (marks, ("inherit", inherit::trials())),
        (marks, ("cgroups", cgroups::tests())),
        (marks, ("storm", storm::tests())),
        (marks, ("pins", pins::tests())),
        (!marks, ("old", old::tests())),
    ]
    .into_iter()
    .flat_map(|(here, tests)| {
        of_kind(tests).into_iter().map(move |test| {
            let here = here && !test.has_ignored_flag();
            test.with_ignored_flag(!here)
        })
    })
    .collect()
}

/// Every OFth test from the Nth on: the long ones stand together.
fn part(suite: Vec<Trial>, shard: &str) -> Option<Vec<Trial>> {
    let (n, of) = shard.split_once('/')?;
    let (n, of): (usize, usize) = (n.parse().ok()?, of.parse().ok()?);
    (1..=of)
        .contains(&n)
        .then(|| suite.into_iter().skip(n - 1).step_by(of).collect())
}

fn fail(why: &str) -> ExitCode {
    eprintln!("live: {why}");
    ExitCode::FAILURE
}

/// The tests change what runs on the machine, and mount and unmount: a throw-away VM alone takes
/// that. Fails too where the tools are not the ones that users have.
fn in_the_vm() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("not root".into());
    }
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if hostname.trim() != "lsm-nice-vm" {
        return Err(format!(
            "{:?} is not the VM of tests/vm (hostname lsm-nice-vm)",
            hostname.trim()
        ));
    }
    let version = Command::new("renice").arg("--version").output();
    if !version.is_ok_and(|output| output.stdout.windows(10).any(|part| part == b"util-linux")) {
        return Err("renice is not util-linux's".into());
    }
    Command::new("lsm-nice")
        .arg("--version")
        .output()
        .map(|_| ())
        .map_err(|error| format!("cannot run lsm-nice: {error}"))
}
