// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! lsm-nice: a ceiling on a process's priority, enforced by the kernel through BPF LSM.

mod attach;
mod btf;
mod cgroup;
mod check;
mod cli;
mod command;
#[cfg(test)]
mod docs;
mod events;
mod guard;
mod output;
mod pins;
mod privilege;
mod rules;
mod standing;
mod status;
mod target;
mod trial;
mod watch;

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::process::ExitCode;

use anyhow::Result;
use rustix::process::{Pid, getpid};
use rustix::thread::CapabilitySet;
use sd_notify::NotifyState;

use crate::cgroup::Cgroup;
use crate::cli::{Action, Cli};
use crate::command::Command;
use crate::events::Events;
use crate::guard::{Guard, Reports, Request};
use crate::output::status;
use crate::pins::Pins;
use crate::rules::{Door, Rule};
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
        Some(Action::Status {
            name: Some(name),
            follow: true,
            json,
        }) => (status::follow(&name, json), ExitCode::FAILURE),
        Some(Action::Status { name, json, .. }) => {
            (status::run(name.as_deref(), json), ExitCode::FAILURE)
        }
        Some(Action::Release { name }) => (status::release(&name), ExitCode::FAILURE),
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
    let asked = watch::asked_by_signal()?;
    let cgroup = cli.cgroup.as_deref().map(Cgroup::open).transpose()?;
    let mut targets = BTreeSet::from_iter(&cli.pid)
        .into_iter()
        .filter_map(|pid| Pid::from_raw(*pid))
        .map(Target::open)
        .collect::<Result<Vec<_>>>()?;
    if let Some(command) = &command {
        targets.push(Target::named(command.pid, &cli.command[0])?);
    }
    let itself = targets.is_empty() && cgroup.is_none() && cli.pin.is_none();
    if itself {
        targets.push(Target::open(getpid())?);
    }
    let pins = cli
        .pin
        .as_deref()
        .map(|name| Pins::open(name, cli.replace))
        .transpose()?;

    let rules = cli.rules();
    let mut doors = rules::doors(&rules);
    if cli.best_effort {
        doors = check::usable(doors)?;
    }
    let request = Request {
        floor: cli.floor,
        doors,
        targets: &targets,
        tree: cli.tree,
        children: !cli.no_children && !itself,
        cgroup: cgroup.as_ref(),
        pinned: pins.is_some(),
        replaces: pins.as_ref().and_then(|pins| pins.replaced.as_ref()),
        kept: pins.as_ref().map_or(&[], |pins| &pins.kept),
        audit: cli.audit,
        reports: match (cli.quiet, cli.verbose) {
            (true, _) => Reports::Nothing,
            (_, true) => Reports::All,
            _ => Reports::Forbidden,
        },
        json: cli.json,
    };
    let mut object = MaybeUninit::uninit();
    let mut guard = Guard::start(&mut object, &request)
        .map_err(|error| check::explain(error, &request.doors))?;
    for target in &targets {
        target.must_run()?;
    }
    warn_of_raised(&mut guard, &targets, &rules, cli.floor)?;

    let names = names(&request, cli.pin.as_deref());
    let ceilings = ceilings(&request, &rules);
    if let Some(pins) = pins {
        let name = pins.put(&mut guard)?;
        say_it_stands(&format!("guarding {names}, pinned as {name}{ceilings}"));
        return Ok(ExitCode::SUCCESS);
    }
    let mut events = match cli.quiet {
        true => None,
        false => Some(Events::open(
            guard.events(),
            guard.clock(),
            cli.floor,
            cli.json,
        )?),
    };
    privilege::keep(needed(&request, command.is_some()))?;
    let watch = Watch::new(&targets, cgroup.as_ref(), command.as_ref(), asked)?;
    say_it_stands(&format!("guarding {names}{ceilings}"));
    guard.has_started();
    let not_run = command.as_ref().and_then(|command| command.execute().err());
    let ended = match &not_run {
        Some((_, error)) => {
            status!("error: cannot run {}: {error}", cli.command[0].display());
            Ended::Stopped
        }
        None => watch.wait(&mut guard, &mut events)?,
    };
    guard.end();
    if let Some(events) = &mut events
        && let Err(error) = events.finish()
    {
        status!("warning: the last events cannot be printed: stdout: {error}");
    }
    let summary = watch::summary(&guard.counters()?, cli.audit, events.as_ref());
    match ended {
        Ended::Stopped => status!("the guard has ended: {summary}"),
        Ended::Exited if request.is_plain() => {
            status!("{names} has exited, and the guard ended: {summary}");
        }
        Ended::Exited => {
            status!("the last guarded process has exited, and the guard ended: {summary}");
        }
        Ended::Gone => status!("{names} is gone, and the guard ended: {summary}"),
    }
    match (not_run, command) {
        (Some((status, _)), _) => Ok(status),
        (None, Some(command)) => command.status(),
        (None, None) => Ok(ExitCode::SUCCESS),
    }
}

/// Who is guarded, in a line.
fn names(request: &Request<'_>, pin: Option<&str>) -> String {
    let replaced = request.replaces.and(pin);
    let kept = replaced.map(|name| match request.cgroup {
        None => format!("all that {name} guarded"),
        Some(_) => format!("the processes that {name} guarded"),
    });
    let cgroup = request
        .cgroup
        .map(|cgroup| format!("cgroup {}", cgroup.path.display()));
    let targets = request.targets.iter().map(ToString::to_string);
    let all: Vec<_> = targets.chain(cgroup).chain(kept).collect();
    all.join(", ")
}

/// From what, in the same line.
fn ceilings(request: &Request<'_>, rules: &[&Rule]) -> String {
    let ceilings: Vec<_> = rules
        .iter()
        .map(|rule| {
            let shut = |door: &Door| !door.exists() || request.has(door);
            if rule.doors.iter().all(shut) {
                (rule.ceiling)(request.floor)
            } else {
                format!("rule {} with doors open", rule.name)
            }
        })
        .collect();
    let how = match request.audit {
        true => " (audit: nothing is refused)",
        false => "",
    };
    format!("{how}: {}", ceilings.join(", "))
}

fn say_it_stands(line: &str) {
    status!("{line}");
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        status!("warning: cannot tell $NOTIFY_SOCKET that the guard stands: {error}");
    }
}

/// The capabilities that a guard takes while it stands: to list who is guarded, and to hand signals
/// on to a COMMAND of another user.
fn needed(request: &Request<'_>, has_command: bool) -> CapabilitySet {
    let mut needed = CapabilitySet::empty();
    needed.set(CapabilitySet::BPF, !request.is_plain());
    needed.set(CapabilitySet::KILL, has_command);
    needed
}

/// Names the processes that are above the ceiling already, and are left so.
fn warn_of_raised(
    guard: &mut Guard<'_>,
    targets: &[Target],
    rules: &[&Rule],
    floor: i32,
) -> Result<()> {
    let mut pids: BTreeSet<i32> = guard.guarded_tasks()?.iter().map(|task| task.pid).collect();
    pids.extend(targets.iter().map(|target| target.pid.as_raw_pid()));
    for pid in pids.into_iter().filter_map(Pid::from_raw) {
        let threads = target::threads(pid);
        for rule in rules {
            let mut raised = threads.iter().filter_map(|tid| (rule.raised)(*tid, floor));
            if let Some(raised) = raised.next() {
                status!("warning: {} is {raised}: left as it is", target::name(pid));
            }
        }
    }
    Ok(())
}
