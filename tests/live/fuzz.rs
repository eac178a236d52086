// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
tests!();
pub fn obey(_: &[&str]) -> Option<i32> {
    None
}
