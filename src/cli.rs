// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The command line.

use std::env;
use std::ffi::{CStr, OsString};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueHint, value_parser};
use libbpf_rs::libbpf_sys;

use crate::output;
use crate::pins;
use crate::rules::{RULES, Rule};

/// Put a ceiling on a process's priority.
///
/// While lsm-nice runs, nobody, root included, sets a guarded process to a nice value below the
/// floor or to a real-time class; lowering its priority works as before. The kernel enforces it
/// (BPF LSM).
#[derive(Parser)]
#[command(
    after_help = "\
Examples:
  lsm-nice check                  would a guard hold on this machine?
  lsm-nice --pid 4242             PID 4242 cannot be set below nice 0
  lsm-nice --pid 4242 -n 5        ... nor below nice 5
  lsm-nice -- make -j8            make and all that it starts
  lsm-nice --cgroup /user.slice   what is in this cgroup, now or later
  lsm-nice --pid 4242 --pin web   a guard that stands until `lsm-nice release web`

All threads of a process are guarded, and what it starts from then on (not with --no-children).
What is asked for counts, not what a process has: a nice value below the floor is refused also
where it would be a step down.

Rules nice, sched and io guard the process that is acted upon, whoever asks. Rules heap, heap-exec,
socket and inet guard the process that calls; sockets that it has open stay usable.

Each refusal is a line on stdout: who asked, for whom, by which call, from what to what. A summary
comes on stderr at the end, and whenever lsm-nice is sent SIGUSR1.

The guard ends with Ctrl-C (SIGINT, SIGTERM, SIGHUP), when the last guarded process has exited,
or when the cgroup is removed; one that is pinned, with `lsm-nice release`. With COMMAND a signal is
handed on to it while it runs, and lsm-nice stays until all that COMMAND started has exited, a
daemon in the background too.

Exit status: 0 the guard was ended, or all it guarded has exited; 1 failed, or `check` found that
no guard would hold; 2 wrong usage. With COMMAND its own, 128 + N where signal N killed it, 125
where lsm-nice failed before it ran, 126 where it cannot be executed, 127 where it was not found.",
    override_usage = "\
lsm-nice [OPTIONS]
       lsm-nice [OPTIONS] -- COMMAND [ARG]...
       lsm-nice check
       lsm-nice status [NAME] [--follow]
       lsm-nice release NAME",
    args_conflicts_with_subcommands = true,
    allow_negative_numbers = true
)]
pub struct Cli {
    #[command(subcommand)]
    pub action: Option<Action>,

    /// Guard this running process; repeatable [default: lsm-nice itself]
    ///
    /// The PID of a process, as lsm-nice's own PID namespace has it.
    #[arg(
        short, long, value_name = "PID", value_hint = ValueHint::Other,
        value_parser = value_parser!(i32).range(1..)
    )]
    pub pid: Vec<i32>,

    /// With --pid: guard its present descendants too
    #[arg(long, requires = "pid")]
    pub tree: bool,

    /// Guard every process in this cgroup v2 directory and below it, now and later
    ///
    /// A directory; the path as systemctl and /proc/PID/cgroup print it, such as
    /// /system.slice/cron.service; or the name of a running unit, such as cron or user.slice.
    /// Each also as systemd-escape prints it. Processes may come and go; a process that leaves is
    /// not guarded any more.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::DirPath)]
    pub cgroup: Option<PathBuf>,

    /// Do not guard what a guarded process starts later
    #[arg(long)]
    pub no_children: bool,

    /// Start COMMAND, guarded from its first instruction
    #[arg(last = true, value_name = "COMMAND [ARG]")]
    pub command: Vec<OsString>,

    /// Lowest nice value that may be set, -20 to 19
    #[arg(
        short = 'n', long, value_name = "NICE", value_hint = ValueHint::Other, default_value_t = 0,
        value_parser = value_parser!(i32).range(-20..=19)
    )]
    pub floor: i32,

    /// What is refused; several with commas, or repeated [default: nice,sched]
    #[arg(short, long = "rule", value_name = "RULE", value_delimiter = ',', value_parser = rule())]
    pub rules: Vec<&'static Rule>,

    /// Go on without what this kernel cannot enforce of a rule, naming it
    #[arg(long)]
    pub best_effort: bool,

    /// Report what would be refused, refuse nothing
    #[arg(long)]
    pub audit: bool,

    /// Leave the guard in the kernel under this name, and exit
    ///
    /// With --pid or --cgroup. It stands until `lsm-nice release NAME`, whatever becomes of lsm-nice
    /// and of its terminal, and reports to `lsm-nice status NAME --follow`. 1 to 64 letters, digits,
    /// and _ : @ - (not at its start).
    #[arg(
        long, value_name = "NAME", value_hint = ValueHint::Other, value_parser = pins::name,
        conflicts_with_all = ["command", "json"]
    )]
    pub pin: Option<String>,

    /// With --pin: take over from the guard of that name, without a gap
    ///
    /// These options count from then on. Who was guarded stays guarded; --pid adds to them, --cgroup
    /// takes the place of another cgroup.
    #[arg(long, requires = "pin")]
    pub replace: bool,

    /// Print events as JSON, one object a line
    #[arg(long)]
    pub json: bool,

    /// Print no events
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Print what is allowed for guarded processes too, and libbpf's log
    #[arg(short, long)]
    pub verbose: bool,
}

#[derive(Subcommand)]
pub enum Action {
    /// Would a guard hold on this machine? If not, why, and the fix
    ///
    /// One row for each requirement, and last a trial: a child of lsm-nice, and a child of that, are
    /// guarded, and each rule allows and refuses what it should. Exits 0 only where the trial held.
    Check {
        /// One JSON object a row: requirement, ok, detail, fix
        #[arg(long)]
        json: bool,
    },
    /// Every lsm-nice guard that stands, pinned or not: what it guards, what it refused
    ///
    /// Read from the kernel. Exits 1 where a guard is damaged, was left half-way by a crash, or is of
    /// a version of lsm-nice that this one cannot read.
    Status {
        /// The pinned guard of this name alone
        #[arg(value_name = "NAME", value_hint = ValueHint::Other, value_parser = pins::name)]
        name: Option<String>,
        /// Print its events as they come, until Ctrl-C; one reader at a time
        #[arg(long, requires = "name")]
        follow: bool,
        /// One JSON object a guard, or with --follow an event
        #[arg(long)]
        json: bool,
    },
    /// End a pinned guard, also a damaged one
    Release {
        /// The name it was pinned under
        #[arg(value_name = "NAME", value_hint = ValueHint::Other, value_parser = pins::name)]
        name: String,
    },
}

impl Cli {
    /// The rules asked for, each once.
    pub fn rules(&self) -> Vec<&'static Rule> {
        let asked = |rule: &&Rule| match &self.rules[..] {
            [] => matches!(rule.name, "nice" | "sched"),
            rules => rules.iter().any(|asked| asked.name == rule.name),
        };
        RULES.iter().filter(asked).collect()
    }

    /// The arguments, or the exit status where they end the run: help and the version 0, errors 2.
    pub fn read() -> Result<Self, ExitCode> {
        Self::command()
            .version(format!(
                "{} (libbpf {})",
                env!("CARGO_PKG_VERSION"),
                libbpf_version()
            ))
            .try_get_matches()
            .and_then(|matches| Self::from_arg_matches(&matches))
            .and_then(Self::with_a_command)
            .and_then(Self::with_a_target)
            .map_err(|error| match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                    // to a reader that may have seen enough, such as head(1)
                    let _ = write!(io::stdout(), "{error}");
                    ExitCode::SUCCESS
                }
                _ => {
                    output::write_line(format!("lsm-nice: {error}"));
                    ExitCode::from(2)
                }
            })
    }

    /// An empty variable behind `--` is no wish for a guard of lsm-nice itself.
    fn with_a_command(self) -> Result<Self, clap::Error> {
        let ends_with_dashes = || env::args_os().next_back().is_some_and(|last| last == "--");
        if self.action.is_none() && self.command.is_empty() && ends_with_dashes() {
            return Err(Self::command().error(
                ErrorKind::MissingRequiredArgument,
                "there is no COMMAND behind --",
            ));
        }
        Ok(self)
    }

    /// What is pinned has to be guarding somebody, and not lsm-nice, which exits.
    fn with_a_target(self) -> Result<Self, clap::Error> {
        if self.pin.is_some() && !self.replace && self.pid.is_empty() && self.cgroup.is_none() {
            return Err(Self::command().error(
                ErrorKind::MissingRequiredArgument,
                "--pin needs --pid or --cgroup: lsm-nice itself exits",
            ));
        }
        Ok(self)
    }
}

/// The rules by their names.
fn rule() -> impl TypedValueParser<Value = &'static Rule> {
    PossibleValuesParser::new(
        RULES
            .iter()
            .map(|rule| PossibleValue::new(rule.name).help(rule.refuses)),
    )
    .try_map(|name| Rule::by_name(&name).ok_or("no such rule"))
}

fn libbpf_version() -> String {
    // SAFETY: libbpf returns a pointer to a static string.
    let version = unsafe { CStr::from_ptr(libbpf_sys::libbpf_version_string()) };
    version
        .to_string_lossy()
        .trim_start_matches('v')
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
