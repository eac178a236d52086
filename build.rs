// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! Compiles bpf/ with clang and generates the skeleton from it.

use std::env;
use std::path::PathBuf;
use std::process::{Command, exit};

use libbpf_cargo::SkeletonBuilder;

fn main() {
    println!("cargo:rerun-if-changed=bpf");
    println!("cargo:rerun-if-changed=include");
    println!("cargo:rerun-if-env-changed=CLANG");

    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    if Command::new(&clang).arg("--version").output().is_err() {
        fail(&format!(
            "building lsm-nice needs clang, and `{clang}` cannot be run: install it (Debian, \
             Ubuntu: apt-get install clang) or name another in $CLANG"
        ));
    }

    // a static libelf that knows zstd does not bring it along
    let libelf = Command::new("pkg-config")
        .args(["--static", "--libs", "libelf"])
        .output();
    if libelf.is_ok_and(|libs| String::from_utf8_lossy(&libs.stdout).contains("-lzstd")) {
        println!("cargo:rustc-link-arg=-lzstd");
    }

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    if let Err(error) = SkeletonBuilder::new()
        .source("bpf/lsm_nice.bpf.c")
        .clang(&clang)
        .clang_args([
            "-Iinclude",
            "-mcpu=v2",
            "-Wall",
            "-Wextra",
            "-Wno-unused-parameter",
            "-Werror",
        ])
        .build_and_generate(out.join("lsm_nice.skel.rs"))
    {
        fail(&format!("{error:#}"));
    }
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    exit(1)
}
