// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! `lsm-nice status` and `lsm-nice release`: the guards that stand, and the end of a pinned one.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{Local, SecondsFormat, TimeDelta, Utc};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;
use serde::Serialize;

use crate::cgroup;
use crate::check;
use crate::events::{Events, text};
use crate::guard::{Clock, walked};
use crate::output::{Failure, printable, status};
use crate::pins::{self, Pinned};
use crate::privilege;
use crate::rules::RULES;
use crate::standing::{self, Standing, is_same};
use crate::target;
use crate::watch::{self, print_until, summary};

/// What `status` says of a guard, or of pins without one.
#[derive(Default, Serialize)]
struct Row {
    name: Option<String>,
    /// Who holds a guard that is not pinned.
    holder: Option<i32>,
    version: Option<String>,
    since: Option<String>,
    problem: Option<String>,
    fix: Option<String>,
    #[serde(flatten)]
    known: Option<Known>,
}

/// What a guard of this layout tells.
#[derive(Serialize)]
struct Known {
    targets: Vec<Target>,
    cgroup: Option<Place>,
    /// Processes that are guarded now, as far as they are to be seen in this PID namespace.
    guarded: usize,
    children: bool,
    rules: Vec<&'static str>,
    floor: i32,
    audit: bool,
    denied: u64,
    audited: u64,
    allowed: u64,
    lost: u64,
    #[serde(skip)]
    summary: String,
}

#[derive(Serialize)]
struct Target {
    pid: i32,
    comm: String,
    /// None where it may be beyond what is to be seen in this PID namespace.
    alive: Option<bool>,
}

#[derive(Serialize)]
struct Place {
    path: Option<String>,
    /// As of a target, in this cgroup namespace.
    alive: Option<bool>,
}

/// `lsm-nice status`: every guard, or the pinned one of that name.
pub fn run(name: Option<&str>, json: bool) -> Result<ExitCode> {
    may_list()?;
    let rows = loop {
        if let Some(rows) = look(name)? {
            break rows;
        }
    };
    for row in &rows {
        let text = match json {
            true => serde_json::to_string(row)?,
            false => row.text(),
        };
        match writeln!(io::stdout(), "{text}") {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            result => result?,
        }
    }
    if rows.is_empty() {
        status!("no guard stands");
    }
    Ok(match rows.iter().any(|row| row.problem.is_some()) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

fn may_list() -> Result<()> {
    target::proc_is_ours()?;
    Ok(check::may_list()?)
}

/// What there is; None where that has changed meanwhile.
fn look(name: Option<&str>) -> Result<Option<Vec<Row>>> {
    let lock = pins::read_lock();
    let pins = match name {
        Some(name) => vec![pins::find(name)?],
        None => pins::all()?,
    };
    let guards = standing::all()?;
    // whoever changes pins takes time for it
    let patience = match lock.is_some() || pins.is_empty() {
        true => Duration::from_secs(1),
        false => standing::PATIENCE,
    };
    let mut rows = Vec::new();
    for pinned in &pins {
        match pinned_row(pinned, &guards, lock.is_some()) {
            // what cannot be read may be gone, replaced or released
            Err(error) => {
                for guard in pinned.guards(&guards) {
                    if guard.ends_within(patience)? {
                        return Ok(None);
                    }
                }
                return Err(error);
            }
            Ok(row) => rows.push(row),
        }
    }
    let is_pinned =
        |pins: &[Pinned], guard: &Standing| pins.iter().any(|pinned| pinned.holds(guard));
    for guard in guards
        .iter()
        .filter(|guard| name.is_none() && !is_pinned(&pins, guard))
    {
        let (holder, row) = (guard.holder(), row(guard));
        if holder.is_none() || row.is_err() {
            if guard.ends_within(patience)? {
                continue;
            }
            if is_pinned(&pins::all()?, guard) {
                return Ok(None);
            }
        }
        let mut row = row?;
        match holder {
            Some(pid) => row.holder = Some(pid.as_raw_pid()),
            None => row.problem = Some("held, or pinned, where it cannot be seen from here".into()),
        }
        rows.push(row);
    }
    Ok(Some(rows))
}

fn pinned_row(pinned: &Pinned, guards: &[Standing], locked: bool) -> Result<Row> {
    let its: Vec<_> = pinned.guards(guards).collect();
    let named = its.iter().find(|guard| pinned.is_named(guard));
    let mut row = match named.or(its.first()) {
        Some(guard) => row(guard)?,
        None => Row::default(),
    };
    row.name = Some(pinned.name.clone());
    let release = format!("lsm-nice release {}", pinned.name);
    match pinned.damage(&its) {
        // it may be in the making
        Some(_) if !locked => row.problem = Some("another lsm-nice changes it".into()),
        damage => {
            row.problem = damage.or(row.problem);
            row.fix = row
                .problem
                .as_ref()
                .map(|_| match (named, row.known.is_some()) {
                    (Some(_), true) => format!(
                        "{release}; or, without a gap, --pin {} --replace with the options that it \
                     should have",
                        pinned.name
                    ),
                    _ => release,
                });
        }
    }
    Ok(row)
}

fn row(guard: &Standing) -> Result<Row> {
    let mut row = Row {
        version: Some(guard.version.clone()),
        ..Row::default()
    };
    let Some(config) = guard.config else {
        row.problem = Some("it is of another version of lsm-nice, which alone can read it".into());
        return Ok(row);
    };
    let walk = guard.walk()?;
    let clock = walk.as_ref().map_or(Clock::default(), |(_, clock)| *clock);
    row.since = Some(since(guard.age(clock)));
    let tasks = walk.map(|(tasks, _)| tasks);
    let sees_all = guard.sees_all()?;
    let targets: Vec<_> = guard
        .targets()?
        .iter()
        .map(|(process, asked)| {
            let is_it = |task: &&walked| is_same(&task.process, process);
            let task = tasks.as_ref().map(|tasks| tasks.iter().find(is_it));
            Target {
                pid: task.flatten().map_or(asked.pid, |task| task.pid),
                comm: printable(text(&asked.comm)),
                alive: match task {
                    // without a list there is one process, and the guard ends with it
                    None | Some(Some(_)) => Some(true),
                    Some(None) => sees_all.then_some(false),
                },
            }
        })
        .collect();
    let guarded = match &tasks {
        Some(tasks) => BTreeSet::from_iter(tasks.iter().map(|task| task.process.tgid)).len(),
        None => targets.len(),
    };
    let cgroup = guard.cgroup()?.map(|place| {
        let path = cgroup::path_of(place.id);
        Place {
            alive: match path {
                Some(_) => Some(true),
                None => cgroup::sees_all().then_some(false),
            },
            path: path.map(|path| path.display().to_string()),
        }
    });
    let counters = guard.state()?.counters;
    row.known = Some(Known {
        targets,
        cgroup,
        guarded,
        children: config.children != 0,
        rules: RULES
            .iter()
            .filter(|rule| config.rules & rule.bit != 0)
            .map(|rule| rule.name)
            .collect(),
        floor: config.floor,
        audit: config.audit != 0,
        denied: counters.denied,
        audited: counters.audited,
        allowed: counters.allowed,
        lost: counters.lost,
        summary: summary(&counters, config.audit != 0, None),
    });
    Ok(row)
}

fn since(age: i64) -> String {
    (Utc::now() - TimeDelta::nanoseconds(age))
        .with_timezone(&Local)
        .to_rfc3339_opts(SecondsFormat::Secs, false)
}

impl Row {
    fn text(&self) -> String {
        let name = self.name.as_deref().unwrap_or("(not pinned)");
        let mut text = format!("{name:<12}");
        if let Some(holder) = self.holder {
            text += &format!(" held by process {holder},");
        }
        match (&self.version, &self.since) {
            (Some(version), Some(since)) => text += &format!(" since {since}, lsm-nice {version}"),
            (Some(version), None) => text += &format!(" lsm-nice {version}"),
            _ => {}
        }
        let mut line = |what: &str, said: String| text += &format!("\n  {what:<10} {said}");
        if let Some(problem) = &self.problem {
            line("PROBLEM", problem.clone());
        }
        if let Some(fix) = &self.fix {
            line("fix", fix.clone());
        }
        if let Some(known) = &self.known {
            line("targets", known.targets());
            line("guarded", known.guarded());
            line("refuses", known.refuses());
            line("so far", known.summary.clone());
        }
        text
    }
}

impl Known {
    fn targets(&self) -> String {
        let processes = self.targets.iter().map(|target| {
            let state = match target.alive {
                Some(true) => "",
                Some(false) => ", gone",
                None => ", not to be seen here",
            };
            format!("process {} ({}{state})", target.pid, target.comm)
        });
        let cgroup = self.cgroup.iter().map(|place| match &place.path {
            Some(path) => format!("cgroup {path}"),
            None if place.alive.is_none() => "a cgroup that is not to be seen here".into(),
            None => "a cgroup that is gone".into(),
        });
        processes.chain(cgroup).collect::<Vec<_>>().join(", ")
    }

    fn guarded(&self) -> String {
        let processes = if self.guarded == 1 {
            "process"
        } else {
            "processes"
        };
        let later = match self.children {
            true => ", and what they start",
            false => "",
        };
        format!("{} {processes}{later}", self.guarded)
    }

    fn refuses(&self) -> String {
        let audit = match self.audit {
            true => "nothing (audit): ",
            false => "",
        };
        format!(
            "{audit}rules {}, floor {}",
            self.rules.join(","),
            self.floor
        )
    }
}

/// `lsm-nice status NAME --follow`: the events of a pinned guard, also of those that take its place.
pub fn follow(name: &str, json: bool) -> Result<ExitCode> {
    may_list()?;
    pins::find(name)?;
    privilege::keep(CapabilitySet::BPF | CapabilitySet::SYS_ADMIN)?;
    let asked = watch::asked_by_signal()?;
    let stop = watch::stop_by_signal()?;
    let changes = pins::changes()?;
    let mut guard = pins::of_name(name)?;
    loop {
        let _reader = pins::only_reader(name)?;
        let config = guard.config.context("a guard without its configuration")?;
        if config.events == 0 {
            return Err(Failure::new(
                format!("the guard {name} reports no events: it was started with --quiet"),
                format!("lsm-nice --pin {name} --replace, with its other options"),
            )
            .into());
        }
        let clock = guard.walk()?.map_or(Clock::default(), |(_, clock)| clock);
        let state = guard.state_map()?;
        let counted = || state.read().map(|state| state.counters);
        let audit = config.audit != 0;
        let mut events = Some(Events::open(
            &guard.map("events")?,
            clock,
            config.floor,
            json,
        )?);
        status!("following {name}");
        let stopped = loop {
            let ends = [stop.as_fd(), changes.as_fd()];
            let printed = print_until(&ends, &asked, &mut events, |events| {
                Ok(summary(&counted()?, audit, events))
            })?;
            match printed {
                // a reader that has seen enough, such as head(1)
                Err(Errno::PIPE) => break true,
                printed => printed.context("events cannot be printed, the guard stands: stdout")?,
            }
            if rustix::io::read(&stop, &mut [0; 8]).is_ok() {
                break true;
            }
            cgroup::drain(&changes);
            if !pins::all()?.iter().any(|pinned| pinned.holds(&guard)) {
                guard.ends_within(standing::PATIENCE)?;
                break false;
            }
        };
        let last = match &mut events {
            Some(events) if stopped => events.leave(),
            Some(events) => events.finish(),
            None => Ok(()),
        };
        if last != Err(Errno::PIPE) {
            last.context("the last events cannot be printed: stdout")?;
        }
        let summary = summary(&counted()?, audit, events.as_ref());
        if stopped {
            status!("the guard {name} stands: {summary}");
            return Ok(ExitCode::SUCCESS);
        }
        let next = pins::find(name)
            .ok()
            .and_then(|pinned| pinned.guard(standing::all().ok()?));
        match next {
            Some(next) => {
                status!("the guard {name} was replaced: {summary}");
                guard = next;
            }
            None => {
                status!("the guard {name} has ended: {summary}");
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

/// `lsm-nice release NAME`.
pub fn release(name: &str) -> Result<ExitCode> {
    may_list()?;
    pins::find(name)?;
    let lock = pins::lock()?;
    let pinned = pins::find(name)?;
    let all = standing::all()?;
    let guards: Vec<_> = pinned.guards(&all).collect();
    let named = guards.iter().find(|guard| pinned.is_named(guard));
    let state = named.and_then(|guard| Some((guard.config?, guard.state_map().ok()?)));
    pinned.remove(&lock)?;
    for guard in &guards {
        if let Some(holder) = guard.kept_by()? {
            return Err(Failure::new(
                format!("the guard {name} is not pinned any more, and {holder} holds it"),
                "end that process",
            )
            .into());
        }
    }
    let counted = state.and_then(|(config, state)| Some((config, state.read().ok()?)));
    match counted {
        Some((config, state)) => {
            let summary = summary(&state.counters, config.audit != 0, None);
            status!("released {name}: {summary}");
        }
        None => status!("released {name}"),
    }
    Ok(ExitCode::SUCCESS)
}
