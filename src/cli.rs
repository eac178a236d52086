// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The command line.

use std::ffi::CStr;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, value_parser};

/// Put a ceiling on a process's priority.
///
/// While lsm-nice runs, nobody, root included, sets the nice value of the guarded process below
/// the floor; lowering its priority works as before. The kernel enforces it (BPF LSM).
#[derive(Parser)]
#[command(
    after_help = "\
Examples:
  lsm-nice check             would a guard hold on this machine?
  lsm-nice --pid 4242        PID 4242 cannot be set below nice 0
  lsm-nice --pid 4242 -n 5   ... nor below nice 5

All threads of the process are guarded; processes that it starts are not. The guard ends with
Ctrl-C (SIGINT, SIGTERM, SIGHUP) or when the process exits. What is asked for counts, not what
the process has: a nice value below the floor is refused also where it would be a step down.

Exit status: 0 the guard was ended, or the process has exited; 1 failed, or `check` found that
no guard would hold; 2 wrong usage.",
    args_conflicts_with_subcommands = true,
    allow_negative_numbers = true
)]
pub struct Cli {
    #[command(subcommand)]
    pub action: Option<Action>,

    /// Guard this running process [default: lsm-nice itself]
    ///
    /// The PID of a process, as lsm-nice's own PID namespace has it.
    #[arg(short, long, value_name = "PID", value_parser = value_parser!(i32).range(1..))]
    pub pid: Option<i32>,

    /// Lowest nice value that may be set, -20 to 19
    #[arg(
        short = 'n', long, value_name = "NICE", default_value_t = 0,
        value_parser = value_parser!(i32).range(-20..=19)
    )]
    pub floor: i32,

    /// Show libbpf's log
    #[arg(short, long)]
    pub verbose: bool,
}

#[derive(Subcommand)]
pub enum Action {
    /// Would a guard hold on this machine? If not, why, and the fix
    ///
    /// One row for each requirement, and last a trial: a child of lsm-nice is guarded, and its nice
    /// value set. Exits 0 only where the trial held.
    Check {
        /// One JSON object a row: requirement, ok, detail, fix
        #[arg(long)]
        json: bool,
    },
}

impl Cli {
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
            .map_err(|error| match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                    print!("{error}");
                    ExitCode::SUCCESS
                }
                _ => {
                    eprint!("lsm-nice: {error}");
                    ExitCode::from(2)
                }
            })
    }
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
