// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The kernel's BTF: cut down to the types that the programs touch, and searched for functions.
//!
//! libbpf goes through all types of the kernel once for each that CO-RE asks for, which would be a
//! sixth of the time of a start, and for each function (attach.rs). The format:
//! Documentation/bpf/btf.rst.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;

use libbpf_rs::libbpf_sys::{
    BTF_KIND_ARRAY as ARRAY, BTF_KIND_CONST as CONST, BTF_KIND_DATASEC as DATASEC,
    BTF_KIND_DECL_TAG as DECL_TAG, BTF_KIND_ENUM as ENUM, BTF_KIND_ENUM64 as ENUM64,
    BTF_KIND_FLOAT as FLOAT, BTF_KIND_FUNC as FUNC, BTF_KIND_FUNC_PROTO as FUNC_PROTO,
    BTF_KIND_FWD as FWD, BTF_KIND_INT as INT, BTF_KIND_PTR as PTR, BTF_KIND_RESTRICT as RESTRICT,
    BTF_KIND_STRUCT as STRUCT, BTF_KIND_TYPE_TAG as TYPE_TAG, BTF_KIND_TYPEDEF as TYPEDEF,
    BTF_KIND_UNION as UNION, BTF_KIND_VAR as VAR, BTF_KIND_VOLATILE as VOLATILE, BTF_MAGIC,
    btf_header,
};
use rustix::fs::{MemfdFlags, memfd_create};

pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// What vmlinux.h leaves to CO-RE.
const TYPES: [&str; 17] = [
    "bpf_func_id",
    "kernfs_node",
    "cgroup",
    "css_set",
    "pid",
    "autogroup",
    "io_context",
    "signal_struct",
    "thread_info",
    "inode",
    "qstr",
    "dentry",
    "path",
    "file",
    "mm_struct",
    "vm_area_struct",
    "task_struct",
];

/// The length of the header that is written here.
const HEADER: usize = size_of::<btf_header>();

/// The kernel's own BTF.
pub struct Kernel {
    bytes: Vec<u8>,
    types: Range<usize>,
    strings: Range<usize>,
    /// Where each type is among them, and its kind. Their ids start at 1.
    at: Vec<(u32, u32)>,
}

impl Kernel {
    /// None where that is not what is known here, and libbpf may see for itself.
    pub fn read() -> Option<Self> {
        Self::parse(fs::read(VMLINUX).ok()?)
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        if bytes.get(..2)? != (BTF_MAGIC as u16).to_ne_bytes() {
            return None;
        }
        let body = number(&bytes, 4)? as usize;
        let part = |field| {
            let start = body.checked_add(number(&bytes, field)? as usize)?;
            let end = start.checked_add(number(&bytes, field + 4)? as usize)?;
            bytes.get(start..end)?;
            Some(start..end)
        };
        let (types, strings) = (part(8)?, part(16)?);
        let (mut at, mut next) = (Vec::with_capacity(types.len() / 20), 0);
        while next < types.len() {
            let info = number(&bytes[types.clone()], next + 4)?;
            at.push((next as u32, kind(info)));
            next += 12 + rest(info)?;
        }
        Some(Self {
            types,
            strings,
            at,
            bytes,
        })
    }

    /// The id of each function or type, by its kind and name.
    pub fn ids(&self, wanted: &[(u32, String)]) -> Vec<Option<u32>> {
        let mut ids = vec![None; wanted.len()];
        for (which, id) in self.named(wanted) {
            ids[which].get_or_insert(id);
        }
        ids
    }

    /// A file with TYPES alone, for libbpf.
    pub fn reduced(&self) -> Option<File> {
        let mut file = File::from(memfd_create("btf", MemfdFlags::CLOEXEC).ok()?);
        file.write_all(&self.reduce()?).ok()?;
        Some(file)
    }

    fn reduce(&self) -> Option<Vec<u8>> {
        let wanted = TYPES.map(|name| match name {
            "bpf_func_id" => (ENUM, name),
            _ => (STRUCT, name),
        });
        let mut few = Few::new(self);
        for (_, id) in self.named(&wanted) {
            few.copy(id)?;
        }
        let mut bytes = Vec::from(self.bytes.get(..8)?); // up to the length of the header
        bytes[4..].copy_from_slice(&(HEADER as u32).to_ne_bytes());
        for number in [0, few.types.len(), few.types.len(), few.strings.len()] {
            bytes.extend((number as u32).to_ne_bytes());
        }
        bytes.extend(few.types);
        bytes.extend(few.strings);
        Some(bytes)
    }

    /// Which of `wanted`, kinds and names, each type is that is among them, and its id. A name may
    /// be there more than once.
    fn named<S: AsRef<str>>(&self, wanted: &[(u32, S)]) -> impl Iterator<Item = (usize, u32)> {
        // for most types that is all that has to be looked at
        let kinds = wanted.iter().fold(0, |kinds, (kind, _)| kinds | 1 << kind);
        let mut starts = [false; 1 << 12];
        for (_, name) in wanted {
            starts[start(name.as_ref().as_bytes())] = true;
        }
        let (types, strings) = (self.types(), self.strings());
        (1..).zip(&self.at).filter_map(move |(id, (at, of_kind))| {
            if kinds >> of_kind & 1 == 0 {
                return None;
            }
            let name = strings.get(number(types, *at as usize)? as usize..)?;
            if !starts[start(name)] {
                return None;
            }
            let mut wanted = wanted.iter();
            let which =
                wanted.position(|(kind, wanted)| kind == of_kind && is(name, wanted.as_ref()))?;
            Some((which, id))
        })
    }

    fn types(&self) -> &[u8] {
        &self.bytes[self.types.clone()]
    }

    fn strings(&self) -> &[u8] {
        &self.bytes[self.strings.clone()]
    }
}

/// Types that are copied from the kernel's.
struct Few<'a> {
    kernel: &'a Kernel,
    types: Vec<u8>,
    strings: Vec<u8>,
    /// By the ids that they have in the kernel.
    ids: HashMap<u32, u32>,
    last: u32,
}

impl<'a> Few<'a> {
    fn new(kernel: &'a Kernel) -> Self {
        Self {
            kernel,
            types: Vec::new(),
            strings: vec![0],
            ids: HashMap::new(),
            last: 0,
        }
    }

    /// Copies a type with all that is in it, as far as CO-RE looks: what pointers point to is
    /// nothing. Returns its new id.
    fn copy(&mut self, id: u32) -> Option<u32> {
        if id == 0 {
            return Some(0);
        }
        if let Some(new) = self.ids.get(&id) {
            return Some(*new);
        }
        let (at, types) = (self.kernel.at.get(id as usize - 1)?.0, self.kernel.types());
        let at = at as usize;
        let info = number(types, at + 4)?;
        let length = 12 + rest(info)?;
        let mut record = Vec::from(types.get(at..at + length)?);
        let entries = |size| (12..length).step_by(size);
        // where in the record names are, beside its own, and types
        let (names, types): (Vec<_>, Vec<_>) = match kind(info) {
            TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => {
                let new = self.copy(number(&record, 8)?)?;
                self.ids.insert(id, new);
                return Some(new);
            }
            PTR => {
                record[8..12].fill(0);
                (vec![], vec![])
            }
            ARRAY => (vec![], vec![12, 16]),
            STRUCT | UNION => (
                entries(12).collect(),
                entries(12).map(|entry| entry + 4).collect(),
            ),
            ENUM => (entries(8).collect(), vec![]),
            ENUM64 => (entries(12).collect(), vec![]),
            INT | FLOAT => (vec![], vec![]),
            _ => return None,
        };
        for place in names.into_iter().chain([0]) {
            let new = self.copy_string(number(&record, place)?)?;
            record[place..place + 4].copy_from_slice(&new.to_ne_bytes());
        }
        for place in types {
            let new = self.copy(number(&record, place)?)?;
            record[place..place + 4].copy_from_slice(&new.to_ne_bytes());
        }
        self.types.extend(record);
        self.last += 1;
        self.ids.insert(id, self.last);
        Some(self.last)
    }

    fn copy_string(&mut self, at: u32) -> Option<u32> {
        let string = self.kernel.strings().get(at as usize..)?;
        let length = string.iter().position(|byte| *byte == 0)?;
        if length == 0 {
            return Some(0);
        }
        let new = self.strings.len();
        self.strings.extend(&string[..=length]);
        Some(new as u32)
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn is(string: &[u8], name: &str) -> bool {
    string.starts_with(name.as_bytes()) && string.get(name.len()) == Some(&0)
}

/// Another number for most names that begin with others than these three bytes.
fn start(name: &[u8]) -> usize {
    match *name {
        [a, b, c, ..] => usize::from(a) << 5 & 0xfff ^ usize::from(b) << 3 ^ usize::from(c),
        _ => 0,
    }
}

fn kind(info: u32) -> u32 {
    info >> 24 & 0x1f
}

/// What follows the 12 bytes that all types have.
fn rest(info: u32) -> Option<usize> {
    let entries = (info & 0xffff) as usize;
    Some(match kind(info) {
        INT | VAR | DECL_TAG => 4,
        PTR | FWD | TYPEDEF | VOLATILE | CONST | RESTRICT | FUNC | FLOAT | TYPE_TAG => 0,
        ARRAY => 12,
        STRUCT | UNION | DATASEC | ENUM64 => 12 * entries,
        ENUM | FUNC_PROTO => 8 * entries,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;
    use std::os::fd::AsRawFd;
    use std::slice;

    use libbpf_rs::btf::types::{self, Composite};
    use libbpf_rs::btf::{Btf, BtfType};
    use libbpf_rs::libbpf_sys as sys;

    use super::*;

    /// What a kernel may have, as libbpf writes it.
    fn kernel() -> Vec<u8> {
        let name = |name: &'static CStr| name.as_ptr();
        // SAFETY: strings that live, and ids of types that were added before.
        unsafe {
            let btf = sys::btf__new_empty();
            let int = sys::btf__add_int(btf, name(c"int"), 4, 1);
            let other = sys::btf__add_struct(btf, name(c"other"), 4);
            sys::btf__add_field(btf, name(c"pid"), int, 0, 0);
            let pointer = sys::btf__add_ptr(btf, other);
            let array = sys::btf__add_array(btf, int, int, 3);
            let typedef = sys::btf__add_typedef(btf, name(c"pid_t"), int);
            let info = sys::btf__add_struct(btf, name(c"thread_info"), 8);
            sys::btf__add_field(btf, name(c"flags"), int, 0, 0);
            sys::btf__add_field(btf, name(c"status"), int, 32, 0);
            let anonymous = sys::btf__add_union(btf, name(c""), 12);
            sys::btf__add_field(btf, name(c"state"), array, 0, 0);
            sys::btf__add_struct(btf, name(c"task_struct"), 40);
            sys::btf__add_field(btf, name(c"thread_info"), info, 0, 0);
            sys::btf__add_field(btf, name(c""), anonymous, 64, 0);
            sys::btf__add_field(btf, name(c"pid"), typedef, 160, 0);
            sys::btf__add_field(btf, name(c"real_parent"), pointer, 192, 0);
            sys::btf__add_field(btf, name(c"in_execve"), int, 256, 1);
            let proto = sys::btf__add_func_proto(btf, int);
            sys::btf__add_func(btf, name(c"func"), 0, proto);
            sys::btf__add_enum(btf, name(c"bpf_func_id"), 4);
            sys::btf__add_enum_value(btf, name(c"BPF_FUNC_unspec"), 0);
            sys::btf__add_enum_value(btf, name(c"BPF_FUNC_task_pt_regs"), 175);
            let mut size = 0;
            let data = sys::btf__raw_data(btf, &raw mut size);
            let bytes = slice::from_raw_parts(data.cast::<u8>(), size as usize).to_vec();
            sys::btf__free(btf);
            bytes
        }
    }

    fn open(bytes: &[u8]) -> Btf<'static> {
        let mut file = File::from(memfd_create("btf", MemfdFlags::CLOEXEC).expect("a file"));
        file.write_all(bytes).expect("a file");
        Btf::from_path(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("BTF")
    }

    fn reduce(bytes: Vec<u8>) -> Option<Vec<u8>> {
        Kernel::parse(bytes)?.reduce()
    }

    /// What CO-RE may ask of a type.
    fn outline(btf: &Btf<'_>, ty: BtfType<'_>) -> String {
        let ty = ty.skip_mods_and_typedefs();
        if let Ok(array) = types::Array::try_from(ty) {
            let of = outline(btf, array.contained_type());
            return format!("{of}[{}]", array.capacity());
        }
        let Ok(composite) = Composite::try_from(ty) else {
            return format!("{:?}", ty.kind());
        };
        let members = composite.iter().map(|member| {
            let ty = btf.type_by_id(member.ty).expect("a type");
            format!("{:?} {:?} {}", member.name, member.attr, outline(btf, ty))
        });
        format!(
            "{:?} {{{}}}",
            ty.name(),
            members.collect::<Vec<_>>().join(", ")
        )
    }

    #[test]
    fn what_is_asked_for_is_as_in_the_kernel_and_nothing_else_is_there() {
        let (all, few) = (kernel(), reduce(kernel()).expect("BTF as above"));
        let (all, few) = (open(&all), open(&few));
        let task = |btf: &Btf<'_>| {
            let ty = btf.type_by_name::<types::Struct<'_>>("task_struct");
            outline(btf, *ty.expect("a struct"))
        };
        assert!(task(&all).contains("status"), "{}", task(&all));
        assert_eq!(task(&few), task(&all));
        let calls = few.type_by_name::<types::Enum<'_>>("bpf_func_id");
        let calls = calls.expect("an enum");
        let values = calls.iter().map(|value| (value.name, value.value));
        let names = ["BPF_FUNC_unspec", "BPF_FUNC_task_pt_regs"].map(|name| Some(name.as_ref()));
        assert_eq!(Vec::from_iter(values), [(names[0], 0), (names[1], 175)]);
        assert!(all.type_by_name::<types::Struct<'_>>("other").is_some());
        assert!(few.type_by_name::<types::Struct<'_>>("other").is_none());
    }

    #[test]
    fn an_id_is_that_of_the_kind_and_the_whole_name() {
        let kernel = Kernel::parse(kernel()).expect("BTF as above");
        let all = open(&kernel.bytes);
        let function = all.type_by_name::<types::Func<'_>>("func").expect("there");
        let wanted = [
            (FUNC, "func"),
            (TYPEDEF, "func"),
            (FUNC, "fun"),
            (FUNC, "function"),
        ];
        let ids = kernel.ids(&wanted.map(|(kind, name)| (kind, name.into())));
        let id = u32::from(function.type_id());
        assert_eq!(ids, [Some(id), None, None, None]);
    }

    #[test]
    fn what_is_damaged_is_left_to_libbpf() {
        let good = kernel();
        for length in 0..good.len() {
            assert!(reduce(good[..length].into()).is_none(), "{length}");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            // it may be as good as before, as that of a number is
            let _ = reduce(bad);
        }
    }

    #[test]
    fn all_that_core_may_ask_for_is_copied() {
        let header = include_str!("../include/vmlinux.h");
        let core = &header[header.find("#pragma clang attribute push").expect("CO-RE")..];
        let structs = core.lines().filter_map(|line| {
            let name = line.strip_prefix("struct ")?;
            name.strip_suffix(" {")
        });
        let enums = ["bpf_func_id"].into_iter();
        assert_eq!(Vec::from_iter(enums.chain(structs)), TYPES);
    }
}
