// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! lsm-nice: a ceiling on a process's priority, enforced by the kernel through BPF LSM.

mod check;
mod cli;
mod guard;
mod output;
mod target;
mod trial;

use std::mem::MaybeUninit;
use std::process::ExitCode;

use anyhow::Result;
use sd_notify::NotifyState;

use crate::cli::{Action, Cli};
use crate::guard::Guard;
use crate::output::status;
use crate::target::{Ended, Target};

fn main() -> ExitCode {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(exit) => return exit,
    };
    output::keep_libbpf_log(cli.verbose);
    let result = match cli.action {
        Some(Action::Check { json }) => check::run(json),
        None => guard(&cli),
    };
    result.unwrap_or_else(|error| {
        output::error(&error);
        ExitCode::FAILURE
    })
}

fn guard(cli: &Cli) -> Result<ExitCode> {
    target::proc_is_ours()?;
    let target = Target::open(cli.pid)?;
    let mut object = MaybeUninit::uninit();
    let guard = Guard::start(&mut object, Some(&target), cli.floor).map_err(check::explain)?;
    let stop = target::stop_signal()?;
    target.must_run()?;

    if let Some(nice) = target.lowest_nice()
        && nice < cli.floor
    {
        status!(
            "warning: {target} is at nice {nice} already, below the floor {}: left as it is",
            cli.floor
        );
    }
    status!("guarding {target}: no nice value below {}", cli.floor);
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        status!("warning: cannot tell $NOTIFY_SOCKET that the guard stands: {error}");
    }

    let ended = target.wait(&stop)?;
    let denied = guard.end()?;
    match ended {
        Ended::Exited => status!("{target} has exited, the guard ended with it: {denied} refused"),
        Ended::Stopped => status!("the guard has ended: {denied} refused"),
    }
    Ok(ExitCode::SUCCESS)
}
