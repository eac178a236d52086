// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! What `make install` puts where, and that the programs it is for take it. Nothing here needs root;
//! tests/setup installs those programs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const BINARY: &str = env!("CARGO_BIN_EXE_lsm-nice");
const UNIT: &str = "lib/systemd/system/lsm-nice@.service";
const FILES: [(&str, u32); 11] = [
    (UNIT, 0o644),
    ("sbin/lsm-nice", 0o755),
    ("share/bash-completion/completions/lsm-nice", 0o644),
    ("share/doc/lsm-nice/CHANGELOG.md", 0o644),
    ("share/doc/lsm-nice/LICENSES/BSD-2-Clause.txt", 0o644),
    ("share/doc/lsm-nice/LICENSES/GPL-2.0-only.txt", 0o644),
    ("share/doc/lsm-nice/README.md", 0o644),
    ("share/doc/lsm-nice/docs/internals.md", 0o644),
    ("share/fish/vendor_completions.d/lsm-nice.fish", 0o644),
    ("share/man/man8/lsm-nice.8", 0o644),
    ("share/zsh/site-functions/_lsm-nice", 0o644),
];

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}, which tests/setup installs: {error}"))
}

/// What a program prints that finds nothing wrong.
#[track_caller]
fn succeeds(program: &str, args: &[&str]) -> String {
    let output = run(program, args);
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    let good = output.status.success() && err.is_empty();
    assert!(good, "{program} {args:?}: {}\n{out}{err}", output.status);
    out
}

fn make(target: &str, destdir: &str, prefix: &str) {
    let settings = [
        format!("BIN={BINARY}"),
        format!("DESTDIR={destdir}"),
        format!("PREFIX={prefix}"),
    ];
    let [bin, destdir, prefix] = settings.each_ref();
    // not the flags of the make that runs these tests
    let command = ["-u", "MAKEFLAGS", "-u", "MAKELEVEL", "make", target];
    succeeds("env", &[&command[..], &[bin, destdir, prefix]].concat());
}

/// An empty directory for a test of this name.
fn empty(test: &str) -> String {
    let dir = format!("{}/install-{test}", env!("CARGO_TARGET_TMPDIR"));
    if fs::exists(&dir).expect("a directory") {
        fs::remove_dir_all(&dir).expect("a directory of an earlier run");
    }
    fs::create_dir_all(&dir).expect("a directory");
    dir
}

/// A prefix of its own, with all that `make install` puts there.
fn installed(test: &str) -> String {
    let prefix = empty(test);
    make("install", "", &prefix);
    prefix
}

fn files(dir: &Path) -> BTreeMap<PathBuf, u32> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let meta = path.symlink_metadata().expect("a file");
        if meta.is_dir() {
            found.extend(files(&path));
        } else {
            assert!(meta.len() > 0, "{} is empty", path.display());
            found.insert(path, meta.permissions().mode() & 0o7777);
        }
    }
    found
}

#[test]
fn make_install_puts_each_file_where_it_belongs_and_make_uninstall_takes_it_away() {
    let dir = empty("files");
    make("install", &dir, "/usr");
    let expected = FILES.map(|(path, mode)| (Path::new(&dir).join("usr").join(path), mode));
    assert_eq!(files(Path::new(&dir)), BTreeMap::from(expected));
    let binary = fs::read(format!("{dir}/usr/sbin/lsm-nice")).expect("the binary");
    assert!(binary == fs::read(BINARY).expect("the binary"));
    // What others have installed stays.
    let other = Path::new(&dir).join("usr/sbin/other");
    fs::write(&other, "other").expect("a file");
    make("uninstall", &dir, "/usr");
    assert_eq!(Vec::from_iter(files(Path::new(&dir)).keys()), [&other]);
}

#[test]
fn the_unit_starts_the_binary_of_its_prefix() {
    for prefix in ["/usr", "/usr/local", "/opt/lsm-nice"] {
        let dir = empty("prefix");
        make("install", &dir, prefix);
        let unit = fs::read_to_string(format!("{dir}{prefix}/{UNIT}")).expect("the unit");
        let starts = unit.lines().filter(|line| line.starts_with("ExecStart="));
        let expected = format!("ExecStart={prefix}/sbin/lsm-nice $OPTIONS --cgroup=%i");
        assert_eq!(Vec::from_iter(starts), [expected]);
    }
}

#[test]
fn without_a_binary_make_install_installs_nothing() {
    let dir = empty("none");
    let destdir = format!("DESTDIR={dir}");
    let output = run("make", &["install", "BIN=/nonexistent", &destdir]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && error.contains("make build"),
        "{error}"
    );
    assert!(files(Path::new(&dir)).is_empty());
}

#[test]
fn the_man_page_is_in_order() {
    let page = format!("{}/share/man/man8/lsm-nice.8", installed("man"));
    assert_eq!(
        succeeds("mandoc", &["-T", "lint", "-W", "warning", &page]),
        ""
    );
    let text = succeeds("mandoc", &["-T", "ascii", "-O", "width=200", &page]);
    // bold is a letter, a backspace, and the letter again
    let mut plain = String::new();
    for char in text.chars() {
        match char {
            '\u{8}' => drop(plain.pop()),
            char => plain.push(char),
        }
    }
    let headings = plain
        .lines()
        .filter(|line| line.starts_with(char::is_uppercase));
    let headings = Vec::from_iter(headings.filter(|line| !line.contains("(8)")));
    assert_eq!(
        headings,
        [
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "OPTIONS",
            "COMMANDS",
            "RULES",
            "EXIT STATUS",
            "SIGNALS",
            "ENVIRONMENT",
            "FILES",
            "NOTES",
            "EXAMPLES",
            "SEE ALSO"
        ]
    );
    for part in [
        "LSM-NICE(8)",
        "lsm-nice - Put a ceiling on a process's priority",
        "lsm-nice [OPTIONS] -- COMMAND [ARG]...",
        "-p, --pid <PID>",
        "lsm-nice check [--json]",
        "heap-exec",
        "setpriority(2)",
    ] {
        assert!(plain.contains(part), "no {part:?} in\n{plain}");
    }
}

#[test]
fn each_shell_takes_its_completions() {
    let prefix = installed("shells");
    let [bash, zsh, fish] = [
        "bash-completion/completions/lsm-nice",
        "zsh/site-functions/_lsm-nice",
        "fish/vendor_completions.d/lsm-nice.fish",
    ]
    .map(|path| format!("{prefix}/share/{path}"));
    let ask = format!(
        ". {bash}; COMP_WORDS=(lsm-nice --rule heap-) COMP_CWORD=2; \
         $(complete -p lsm-nice | sed 's/.*-F \\([^ ]*\\).*/\\1/') lsm-nice heap- --rule; \
         echo ${{COMPREPLY[*]}}"
    );
    assert_eq!(succeeds("bash", &["-n", &bash]), "");
    assert_eq!(succeeds("bash", &["-c", &ask]), "heap-exec\n");
    assert_eq!(succeeds("zsh", &["-f", "-n", &zsh]), "");
    let ask = format!("source {fish}; complete -C 'lsm-nice --rule heap-'");
    assert_eq!(succeeds("fish", &["--no-execute", &fish]), "");
    let answer = succeeds("fish", &["--no-config", "-c", &ask]);
    assert!(answer.starts_with("heap-exec\t"), "{answer}");
}

#[test]
fn systemd_takes_the_unit_and_finds_it_safe() {
    let prefix = installed("unit");
    let unit = format!("{prefix}/{UNIT}");
    // its man page needs a man(1), and is read above
    let verify = ["verify", "--man=no", &unit];
    assert_eq!(succeeds("systemd-analyze", &verify), "");
    // Exposure, from 0 to 100.
    let security = [
        "security",
        "--no-pager",
        "--offline=true",
        "--threshold=20",
        &unit,
    ];
    let verdict = succeeds("systemd-analyze", &security);
    assert!(verdict.contains("Overall exposure level"), "{verdict}");
}

#[test]
fn the_changelogs_name_this_version_first() {
    let version = env!("CARGO_PKG_VERSION");
    for (path, start) in [
        ("CHANGELOG.md", format!("## [{version}] - ")),
        ("debian/changelog", format!("lsm-nice ({version}-1) ")),
    ] {
        let text = fs::read_to_string(path).expect(path);
        let mut headings = text
            .lines()
            .filter(|line| line.contains(['[', '(']) && line.starts_with(&start[..3]));
        let first = headings.next().unwrap_or_default();
        assert!(first.starts_with(&start), "{path}: {first}");
    }
}
