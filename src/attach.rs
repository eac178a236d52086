// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! Which function of the kernel a program is attached to, by its section.
//!
//! libbpf would read and check all of the kernel's BTF to find the ids of a few functions, a fifth
//! of the time of a start. It does so where a program is of a type that needs one; so each is of
//! another type until the moment in which libbpf lets a handler of its section add what it likes.

use std::ffi::{CStr, c_int, c_long};
use std::sync::{Mutex, Once};

use anyhow::{Result, bail};
use libbpf_rs::libbpf_sys::{
    BPF_LSM_MAC, BPF_PROG_TYPE_LSM, BPF_PROG_TYPE_RAW_TRACEPOINT, BPF_PROG_TYPE_TRACING,
    BPF_TRACE_FENTRY, BPF_TRACE_ITER, BPF_TRACE_RAW_TP, BTF_KIND_FUNC, BTF_KIND_TYPEDEF,
    bpf_attach_type, bpf_prog_load_opts, bpf_prog_type, bpf_program, bpf_program__section_name,
    bpf_program__set_type, libbpf_prog_handler_opts, libbpf_register_prog_handler,
};
use libbpf_rs::{IterOpts, Link, ProgramAttachType, ProgramMut};

use crate::btf::Kernel;

/// What a section begins with.
struct Kind {
    /// As libbpf wants it: a + for the / and the rest.
    prefix: &'static CStr,
    program: bpf_prog_type,
    attach: bpf_attach_type,
    /// What is looked up in BTF: the kind of it, and what stands before the rest of the section.
    btf: u32,
    before: &'static str,
}

const KINDS: [Kind; 4] = [
    Kind {
        prefix: c"lsm+",
        program: BPF_PROG_TYPE_LSM,
        attach: BPF_LSM_MAC,
        btf: BTF_KIND_FUNC,
        before: "bpf_lsm_",
    },
    Kind {
        prefix: c"fentry+",
        program: BPF_PROG_TYPE_TRACING,
        attach: BPF_TRACE_FENTRY,
        btf: BTF_KIND_FUNC,
        before: "",
    },
    Kind {
        prefix: c"tp_btf+",
        program: BPF_PROG_TYPE_TRACING,
        attach: BPF_TRACE_RAW_TP,
        btf: BTF_KIND_TYPEDEF,
        before: "btf_trace_",
    },
    Kind {
        prefix: c"iter+",
        program: BPF_PROG_TYPE_TRACING,
        attach: BPF_TRACE_ITER,
        btf: BTF_KIND_FUNC,
        before: "bpf_iter_",
    },
];

/// The ids of what programs are attached to, by their sections.
static IDS: Mutex<Vec<(String, u32)>> = Mutex::new(Vec::new());

/// Kind and name, in BTF, of what the program in a section is attached to.
pub fn attached_to(section: &str) -> Option<(u32, String)> {
    let (prefix, rest) = section.split_once('/')?;
    let prefix = format!("{prefix}+");
    let mut kinds = KINDS.iter();
    let kind = kinds.find(|kind| kind.prefix.to_bytes() == prefix.as_bytes())?;
    Some((kind.btf, format!("{}{rest}", kind.before)))
}

/// From here on every object that is opened needs [`find`] before it is loaded.
pub fn spare_libbpf_the_search() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for (kind, cookie) in KINDS.iter().zip(0..) {
            let handler = libbpf_prog_handler_opts {
                sz: size_of::<libbpf_prog_handler_opts>() as _,
                cookie,
                prog_prepare_load_fn: Some(add_id),
                ..Default::default()
            };
            // SAFETY: a string and a struct that libbpf copies. It fails for lack of memory alone,
            // and then does as it would without.
            unsafe {
                libbpf_register_prog_handler(
                    kind.prefix.as_ptr(),
                    BPF_PROG_TYPE_RAW_TRACEPOINT,
                    kind.attach,
                    &raw const handler,
                )
            };
        }
    });
}

/// Looks up what programs in `sections` are attached to.
pub fn find(kernel: &Kernel, sections: impl Iterator<Item = String>) -> Result<()> {
    let (sections, wanted): (Vec<_>, Vec<_>) = sections
        .filter_map(|section| attached_to(&section).map(|wanted| (section, wanted)))
        .unzip();
    let ids = kernel.ids(&wanted);
    if let Some(missing) = ids.iter().position(Option::is_none) {
        bail!("the kernel has no {} to attach to", wanted[missing].1);
    }
    if let Ok(mut found) = IDS.lock() {
        *found = sections
            .into_iter()
            .zip(ids.into_iter().flatten())
            .collect();
    }
    Ok(())
}

/// Called by libbpf before it loads a program.
unsafe extern "C" fn add_id(
    program: *mut bpf_program,
    options: *mut bpf_prog_load_opts,
    kind: c_long,
) -> c_int {
    // SAFETY: a program that lives, and its section a string that lives as long.
    let section = unsafe { CStr::from_ptr(bpf_program__section_name(program)) };
    let id = IDS.lock().ok().and_then(|ids| {
        let mut ids = ids.iter();
        let its = ids.find(|(name, _)| name.as_bytes() == section.to_bytes());
        its.map(|(_, id)| *id)
    });
    let (Some(id), Some(kind)) = (id, KINDS.get(kind as usize)) else {
        return -libc::ESRCH;
    };
    // SAFETY: the options are the callee's to change, and the program is not loaded yet.
    unsafe {
        (*options).attach_btf_id = id;
        bpf_program__set_type(program, kind.program)
    }
}

/// Attaches a program of any of these kinds.
pub fn attach(program: &ProgramMut<'_>) -> libbpf_rs::Result<Link> {
    match program.attach_type() {
        ProgramAttachType::LsmMac => program.attach_lsm(),
        ProgramAttachType::TraceIter => program.attach_iter_with_opts(IterOpts::None),
        _ => program.attach_trace(),
    }
}
