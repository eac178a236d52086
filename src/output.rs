// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! What a user reads on stderr: status lines, errors with their fix, libbpf's log.

use std::error::Error;
use std::fmt;
use std::io::{self, Write};
use std::sync::Mutex;

use libbpf_rs::PrintLevel;
use unicode_width::UnicodeWidthChar;

/// Writes one status line to stderr.
macro_rules! status {
    ($($arg:tt)*) => {
        $crate::output::write_line(format!("lsm-nice: {}\n", format_args!($($arg)*)))
    };
}
pub(crate) use status;

/// One write(2) a line, so that nobody reads half of it, and other writers do not come in between.
/// A reader that has gone is no reason to end a guard.
pub fn write_line(line: String) {
    let _ = io::stderr().write_all(line.as_bytes());
}

/// An error in the user's terms, and what to do about it.
#[derive(Clone, Debug)]
pub struct Failure {
    pub what: String,
    pub fix: Option<String>,
}

impl Failure {
    pub fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            fix: Some(fix.into()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Error for Failure {}

/// Reports the error that ends lsm-nice. Where it has no words of our own, libbpf's log is all that
/// we know, and is shown.
pub fn error(error: &anyhow::Error) {
    status!("error: {error:#}");
    match error.chain().find_map(|cause| cause.downcast_ref()) {
        Some(Failure { fix: Some(fix), .. }) => write_line(format!("  fix: {fix}\n")),
        Some(Failure { fix: None, .. }) => {}
        None => {
            for line in LIBBPF_LOG.lock().iter().flat_map(|log| log.iter()) {
                status!("{line}");
            }
        }
    }
}

static LIBBPF_LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Shows libbpf's log as it comes with -v, and otherwise keeps its warnings for [`error`].
pub fn keep_libbpf_log(verbose: bool) {
    libbpf_rs::set_print(Some(if verbose {
        (PrintLevel::Debug, |_, text| status!("{}", text.trim_end()))
    } else {
        (PrintLevel::Warn, |_, text| {
            if let Ok(mut log) = LIBBPF_LOG.lock() {
                log.push(text.trim_end().to_string());
            }
        })
    }));
}

/// A name that its owner chose, made harmless for a terminal: no characters that control it, format
/// the text, or take no room.
pub fn printable(name: &[u8]) -> String {
    let takes_room = |c: char| c.width().is_some_and(|width| width > 0);
    let harmless =
        |c: char| c == ' ' || c.is_ascii_graphic() || (c.is_alphanumeric() && takes_room(c));
    String::from_utf8_lossy(name)
        .chars()
        .map(|c| if harmless(c) { c } else { '?' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_move_the_cursor() {
        assert_eq!(printable(b"\x1b[2Jevil\n\xff"), "?[2Jevil??");
        assert_eq!(
            printable("a\u{202e}b\u{9b}c \u{e9}".as_bytes()),
            "a?b?c \u{e9}"
        );
    }
}
