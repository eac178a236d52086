// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! What needs neither root nor BPF, on any machine.

mod cli;
mod install;
