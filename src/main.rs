// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! lsm-nice: a ceiling on a process's priority, enforced by the kernel through BPF LSM.

mod cgroup;
mod check;
mod cli;
mod command;
mod guard;
mod output;
mod target;
mod trial;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::mem::MaybeUninit;
use std::process::ExitCode;

use anyhow::Result;
use rustix::process::{Pid, getpid};
use sd_notify::NotifyState;

use crate::cgroup::Cgroup;
use crate::cli::{Action, Cli};
use crate::command::Command;
use crate::guard::{Guard, Request};
use crate::output::status;
use crate::target::Target;
use crate::watch::{Ended, Watch};

fn main() -> ExitCode {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(exit) => return exit,
    };
    output::keep_libbpf_log(cli.verbose);
    let (result, failed) = match cli.action {
        Some(Action::Check { json }) => (check::run(json), ExitCode::FAILURE),
        None if cli.command.is_empty() => (guard(&cli), ExitCode::FAILURE),
        None => (guard(&cli), ExitCode::from(command::FAILED)),
    };
    result.unwrap_or_else(|error| {
        output::error(&error);
        failed
    })
}

fn guard(cli: &Cli) -> Result<ExitCode> {
    target::proc_is_ours()?;
    // forked first, so that it has the limits and signals that lsm-nice was started with
    let command = match &cli.command[..] {
        [] => None,
        words => Some(Command::hold(words)?),
    };
    let cgroup = cli.cgroup.as_deref().map(Cgroup::open).transpose()?;
    let named: BTreeSet<i32> = cli.pid.iter().copied().collect();
    let mut pids: Vec<Pid> = named.into_iter().filter_map(Pid::from_raw).collect();
    pids.extend(command.as_ref().map(|command| command.pid));
    let itself = pids.is_empty() && cgroup.is_none();
    if itself {
        pids.push(getpid());
    }
    let targets = pids
        .iter()
        .map(|pid| Target::open(*pid))
        .collect::<Result<Vec<_>>>()?;

    let request = Request {
        floor: cli.floor,
        processes: pids,
        tree: cli.tree,
        children: !cli.no_children && !itself,
        cgroup: cgroup.as_ref(),
    };
    let mut object = MaybeUninit::uninit();
    let mut guard = Guard::start(&mut object, &request).map_err(check::explain)?;
    let watch = Watch::new(&targets, cgroup.as_ref(), command.as_ref())?;
    for target in &targets {
        target.must_run()?;
    }

    warn_of_raised(&mut guard, &targets, cli.floor)?;
    let names = targets
        .iter()
        .map(ToString::to_string)
        .chain(
            cgroup
                .iter()
                .map(|cgroup| format!("cgroup {}", cgroup.path.display())),
        )
        .collect::<Vec<_>>()
        .join(", ");
    status!("guarding {names}: no nice value below {}", cli.floor);
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        status!("warning: cannot tell $NOTIFY_SOCKET that the guard stands: {error}");
    }
    if let Some(command) = &command
        && let Err((status, error)) = command.execute()
    {
        status!("error: cannot run {}: {error}", cli.command[0].display());
        return Ok(status);
    }

    let ended = watch.wait(&mut guard)?;
    let denied = guard.end()?;
    match ended {
        Ended::Stopped => status!("the guard has ended: {denied} refused"),
        Ended::Exited if request.is_plain() => {
            status!("{names} has exited, and the guard ended: {denied} refused");
        }
        Ended::Exited => {
            status!("the last guarded process has exited, and the guard ended: {denied} refused");
        }
        Ended::Gone => status!("{names} is gone, and the guard ended: {denied} refused"),
    }
    command.map_or(Ok(ExitCode::SUCCESS), |command| command.status())
}

/// Names the processes that are above the ceiling already.
fn warn_of_raised(guard: &mut Guard<'_>, targets: &[Target], floor: i32) -> Result<()> {
    let mut lowest = BTreeMap::new();
    let tasks = guard.guarded_tasks()?;
    let present = targets
        .iter()
        .filter_map(|target| Some((target.pid.as_raw_pid(), target.lowest_nice()?)))
        .chain(tasks.iter().map(|task| (task.pid, task.nice)));
    for (pid, nice) in present {
        let lowest = lowest.entry(pid).or_insert(nice);
        *lowest = nice.min(*lowest);
    }
    for (pid, nice) in lowest {
        if let Some(pid) = Pid::from_raw(pid)
            && nice < floor
        {
            status!(
                "warning: {} is at nice {nice} already, below the floor {floor}: left as it is",
                target::name(pid)
            );
        }
    }
    Ok(())
}
