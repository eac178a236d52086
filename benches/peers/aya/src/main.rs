// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The same as ../loader.c, with aya: aya-loader OBJECT PROGRAM:FUNCTION...

use std::env;

use anyhow::{Context, Result, bail};
use aya::programs::Program;
use aya::{Btf, EbpfLoader};

/// struct config in lsm_nice.h: rules nice and sched for what is marked, with events.
const CONFIG: [u32; 28] = {
    let mut config = [0; 28];
    config[16] = 3; // rules
    config[19] = 1; // marks
    config[20] = 1; // children
    config[22] = 1; // autogroup
    config[24] = 1; // events
    config
};

fn main() -> Result<()> {
    let mut words = env::args().skip(1);
    let object = words.next().context("aya-loader OBJECT PROGRAM:FUNCTION...")?;
    let btf = Btf::from_sys_fs()?;
    let mut ebpf = EbpfLoader::new()
        .btf(Some(&btf))
        .override_global("config", &CONFIG[..], true)
        .allow_unsupported_maps()
        .load_file(object)?;
    let programs: Vec<_> = words.collect();
    let split = |word: &String| {
        let (name, function) = word.split_once(':').context("PROGRAM:FUNCTION")?;
        Ok::<_, anyhow::Error>((name.to_string(), function.to_string()))
    };
    for word in &programs {
        let (name, function) = split(word)?;
        match ebpf.program_mut(&name).context("no such program")? {
            Program::Lsm(program) => program.load(&function, &btf)?,
            Program::FEntry(program) => program.load(&function, &btf)?,
            Program::BtfTracePoint(program) => program.load(&function, &btf)?,
            Program::Iter(program) => program.load(&function, &btf)?,
            _ => bail!("{name} is of another type"),
        }
    }
    for word in &programs {
        let (name, _) = split(word)?;
        match ebpf.program_mut(&name).context("no such program")? {
            Program::Lsm(program) => drop(program.attach()?),
            Program::FEntry(program) => drop(program.attach()?),
            Program::BtfTracePoint(program) => drop(program.attach()?),
            Program::Iter(program) => drop(program.attach()?),
            _ => {}
        }
    }
    eprintln!("ready");
    // SAFETY: waits for a signal.
    unsafe { libc::pause() };
    Ok(())
}
