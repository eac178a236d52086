// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! Compiles bpf/ with clang and generates the skeleton from it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
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

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    link_libelf(&clang, &out);
    pack_relocations(&clang);
    if let Err(error) = SkeletonBuilder::new()
        .source("bpf/lsm_nice.bpf.c")
        .clang(&clang)
        .clang_args([
            "-Iinclude",
            "-mcpu=v3",
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

/// What a static libelf needs beyond what libbpf-sys asks the linker for.
fn link_libelf(clang: &str, out: &Path) {
    let ask = |args: &[&str]| {
        let answer = Command::new("pkg-config").args(args).arg("libelf").output();
        answer.map_or(String::new(), |answer| {
            String::from_utf8_lossy(&answer.stdout).trim().to_string()
        })
    };
    if ask(&["--static", "--libs"]).contains("-lzstd") {
        println!("cargo:rustc-link-arg=-l:libzstd.a");
    }
    // The archive of elfutils 0.192 (Debian 13) lacks these two. They keep a tree that only
    // elf_getdata_rawchunk() fills, which libbpf does not call; it starts zeroed and stays empty.
    if ask(&["--modversion"]) == "0.192" {
        let source = out.join("libelf_0_192.c");
        let object = out.join("libelf_0_192.o");
        let code = "void eu_search_tree_init(void *t) { (void)t; }\n\
                    void eu_search_tree_fini(void *t, void *f) { (void)t; (void)f; }\n";
        let compiled = fs::write(&source, code).is_ok()
            && Command::new(clang)
                .args(["-O2", "-fPIC", "-c", "-o"])
                .args([&object, &source])
                .status()
                .is_ok_and(|status| status.success());
        if !compiled {
            fail("cannot compile what the static library of elfutils 0.192 lacks");
        }
        println!("cargo:rustc-link-arg={}", object.display());
    }
}

/// A static binary moves itself to where it is loaded. What that takes is 100 KB, or 2 KB in a form
/// that glibc understands from 2.36 on.
fn pack_relocations(clang: &str) {
    let macros = Command::new(clang)
        .args(["-E", "-dM", "-x", "c", "-include", "elf.h", "/dev/null"])
        .output();
    let gnu = env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu");
    if gnu
        && macros.is_ok_and(|macros| String::from_utf8_lossy(&macros.stdout).contains("DT_RELR "))
    {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    exit(1)
}
