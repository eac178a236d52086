// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! What lsm-nice gives up once a guard stands.

use anyhow::{Context, Result};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs,
};

/// Keeps `needed` of the capabilities, and none that an exec could bring back; and lets nobody of
/// the same user trace lsm-nice or read its memory. For this thread and those that it starts.
pub fn keep(needed: CapabilitySet) -> Result<()> {
    let held = capabilities(None)
        .context("cannot read the capabilities of lsm-nice")?
        .permitted;
    let mut kept = held & needed;
    if needed.contains(CapabilitySet::BPF) && !held.contains(CapabilitySet::BPF) {
        // which stands in for it
        kept |= held & CapabilitySet::SYS_ADMIN;
    }
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    set_no_new_privs(true)
        .and_then(|()| set_capabilities(None, sets))
        .and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable))
        .context("cannot give up capabilities")
}
