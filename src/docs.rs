// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The man page and the completions in share/, generated from the definition of the command line.
//! `make docs` writes them; without it the test says where they have fallen behind.

use std::env;
use std::fs;
use std::io;
use std::path::Path;

use clap::builder::Resettable;
use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::cli::Cli;
use crate::rules::RULES;

/// What the command line does not know of.
const REST: &str = include_str!("lsm-nice.8.in");

#[test]
fn the_man_page_and_the_completions_are_what_the_command_line_generates() {
    let mut files = vec![("man/man8/lsm-nice.8", manual())];
    for (shell, path) in [
        (Shell::Bash, "bash-completion/completions/lsm-nice"),
        (Shell::Zsh, "zsh/site-functions/_lsm-nice"),
        (Shell::Fish, "fish/vendor_completions.d/lsm-nice.fish"),
    ] {
        let mut script = Vec::new();
        generate(shell, &mut completed(), "lsm-nice", &mut script);
        let script = String::from_utf8(script).expect("UTF-8");
        // an option whose value is yet to come is no command either
        files.push((path, script.replace("    or return\n", "    or return 0\n")));
    }
    for (path, generated) in files {
        let path = Path::new("share").join(path);
        if env::var_os("LSM_NICE_WRITE_DOCS").is_some() {
            fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            fs::write(&path, generated).expect("a file");
        } else {
            let there = fs::read_to_string(&path).unwrap_or_default();
            assert!(
                there == generated,
                "{} is out of date: run `make docs`",
                path.display()
            );
        }
    }
}

fn command() -> Command {
    Cli::command().version(env!("CARGO_PKG_VERSION"))
}

/// COMMAND comes after `--`, where shells complete as they always do; zsh would offer it before, and
/// no subcommands.
fn completed() -> Command {
    let command = command();
    let args = command.get_arguments().filter(|arg| !arg.is_last_set());
    Command::new("lsm-nice")
        .version(env!("CARGO_PKG_VERSION"))
        // one may conflict with COMMAND
        .args(args.map(|arg| arg.clone().conflicts_with(Resettable::Reset)))
        .subcommands(command.get_subcommands().cloned())
}

fn manual() -> String {
    let mut command = command()
        // a section of its own says what each rule refuses
        .mut_arg("rules", |rules| rules.hide_possible_values(true))
        .disable_help_subcommand(true)
        .mut_subcommands(|command| command.disable_help_flag(true));
    command.build();
    let man = |command: &Command| Man::new(command.clone());

    let page = man(&command)
        .title("LSM-NICE")
        .section("8")
        .date(released())
        .manual("System Administration");
    let mut text = rendered(|to| page.render_title(to));
    text += &rendered(|to| page.render_name_section(to));
    text += &rendered(|to| page.render_synopsis_section(to));
    text += &rendered(|to| page.render_description_section(to));

    let help = command.get_after_help().map(ToString::to_string);
    let help = help.unwrap_or_default();
    let (mut more, mut examples) = (Roff::new(), Roff::new());
    for paragraph in help.split("\n\n") {
        if let Some(lines) = paragraph.strip_prefix("Examples:\n") {
            for line in lines.lines() {
                let (example, what) = line.trim().split_once("  ").expect("a comment");
                examples.control("TP", []).text([bold(example)]);
                examples.text([roman(what.trim())]);
            }
        } else if !paragraph.starts_with("Exit status:") {
            more.control("PP", []);
            for line in paragraph.lines() {
                more.text([roman(line)]);
            }
        }
    }
    text += &rendered(|to| more.to_writer(to));
    text += &rendered(|to| page.render_options_section(to));

    text += ".SH COMMANDS\n";
    for command in command.get_subcommands() {
        let man = man(command);
        let body = |section: &dyn Fn(&mut dyn io::Write) -> io::Result<()>| {
            let text = rendered(section);
            let heading = text.find('\n').expect("a heading");
            text[heading + 1..].to_string()
        };
        text += ".TP\n";
        text += &body(&|to| man.render_synopsis_section(to));
        text += &body(&|to| man.render_description_section(to)).replace(".PP\n", ".IP\n");
        if command.get_arguments().next().is_some() {
            text += ".RS\n";
            text += &body(&|to| man.render_options_section(to));
            text += ".RE\n";
        }
    }

    let mut rules = Roff::new();
    for rule in &RULES {
        rules.control("TP", []).text([bold(rule.name)]);
        rules.text([roman(rule.refuses)]);
    }
    let sections = [(".\\\" RULES\n", &rules), (".\\\" EXAMPLES\n", &examples)];
    let mut rest = REST.to_string();
    for (place, section) in sections {
        assert!(rest.contains(place), "no {place}");
        rest = rest.replace(place, &rendered(|to| section.to_writer(to)));
    }
    text + &rest
}

/// Roff without the preamble, which is there once.
fn rendered(write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> String {
    let mut text = Vec::new();
    write(&mut text).expect("memory");
    let text = String::from_utf8(text).expect("UTF-8");
    if text.contains("\n.TH ") {
        return text;
    }
    text.lines()
        .filter(|line| !line.ends_with("(aq") && !line.starts_with(".el .ds Aq"))
        .flat_map(|line| [line.trim_end(), "\n"])
        .collect()
}

/// The date of the newest version in the changelog: a page that is generated again is the same.
fn released() -> &'static str {
    let changelog = include_str!("../CHANGELOG.md");
    let heading = concat!("\n## [", env!("CARGO_PKG_VERSION"), "] - ");
    let (_, date) = changelog.split_once(heading).expect("this version");
    &date[..10]
}
