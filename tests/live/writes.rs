// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! Every way to write a few bytes to a file, and requests with an I/O priority of their own, made
//! by an agent or by this process.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;

use crate::agent::errno;
use crate::sys::{Caller, Outside, Within};

/// What [`write`] knows. Those of io_uring may be worked on by a kernel thread.
pub const WAYS: [&str; 8] = [
    "write",
    "pwrite",
    "writev",
    "sendfile",
    "splice",
    "uring",
    "uring-async",
    "uring-poll",
];

impl Caller<'_> {
    /// Writes to a file, in one of [`WAYS`].
    pub fn write(&mut self, way: &str, path: &str, text: &str) -> Result<(), Errno> {
        match self {
            Outside => match write(way, path, text) {
                0 => Ok(()),
                errno => Err(Errno::from_raw_os_error(errno)),
            },
            Within(agent) => agent.call(&format!("write {way} {path} {text}")),
        }
    }
}

/// What an agent is told.
pub fn obey(words: &[&str]) -> Option<i32> {
    let number = |at: usize| words[at].parse::<i64>().expect("a number");
    Some(match words[0] {
        "write" => write(words[1], words[2], words[3]),
        "write-in-thread" => std::thread::scope(|scope| {
            let thread = scope.spawn(|| write(words[1], words[2], words[3]));
            thread.join().expect("a thread")
        }),
        "uring-read" => read_by_uring(words[1], number(2)),
        "uring-socket" => socket_by_uring(words[1], number(2)),
        "socket-in-thread" => std::thread::spawn({
            let family = number(1);
            // SAFETY: takes numbers, returns a number.
            move || errno(unsafe { libc::socket(family as i32, libc::SOCK_STREAM, 0) }.min(0))
        })
        .join()
        .expect("a thread"),
        "aio-read" => read_by_aio(words[1], number(2)),
        _ => return None,
    })
}

fn last() -> i32 {
    errno(-1)
}

/// The errno, or 0.
fn write(way: &str, path: &str, text: &str) -> i32 {
    let file = match OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        Err(error) => return error.raw_os_error().unwrap_or(-1),
    };
    let (fd, data, len) = (file.as_raw_fd(), text.as_ptr(), text.len());
    // SAFETY: a descriptor of ours and bytes that live.
    let written = unsafe {
        match way {
            "write" => libc::write(fd, data.cast(), len),
            "pwrite" => libc::pwrite(fd, data.cast(), len, 0),
            "writev" => {
                let part = libc::iovec {
                    iov_base: data.cast_mut().cast(),
                    iov_len: len,
                };
                libc::writev(fd, &part, 1)
            }
            "sendfile" => libc::sendfile(fd, memory(text).as_raw_fd(), ptr::null_mut(), len),
            "splice" => {
                let (from, to) = rustix::pipe::pipe().expect("a pipe");
                rustix::io::write(&to, text.as_bytes()).expect("room in a pipe");
                libc::splice(
                    from.as_raw_fd(),
                    ptr::null_mut(),
                    fd,
                    ptr::null_mut(),
                    len,
                    0,
                )
            }
            _ => {
                let (setup, entry) = setup_of(way);
                return match uring(setup, |sqe| {
                    sqe[0] = IORING_OP_WRITE;
                    sqe[1] = entry;
                    sqe[4..8].copy_from_slice(&fd.to_ne_bytes());
                    sqe[16..24].copy_from_slice(&(data.addr() as u64).to_ne_bytes());
                    sqe[24..28].copy_from_slice(&(len as u32).to_ne_bytes());
                }) {
                    Ok(result) => (-result).max(0),
                    Err(error) => error.raw_os_error().unwrap_or(-1),
                };
            }
        }
    };
    if written < 0 { last() } else { 0 }
}

/// A file in memory that has this text.
fn memory(text: &str) -> File {
    let fd = rustix::fs::memfd_create("text", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
    rustix::io::pwrite(&fd, text.as_bytes(), 0).expect("room");
    File::from(fd)
}

const IORING_SETUP_SQPOLL: u32 = 2;
const IORING_ENTER_GETEVENTS: u32 = 1;
const IORING_ENTER_SQ_WAKEUP: u32 = 2;
const IOSQE_ASYNC: u8 = 1 << 4;
const IORING_OP_READ: u8 = 22;
const IORING_OP_WRITE: u8 = 23;

/// The flags of a ring, and of the request to it.
fn setup_of(way: &str) -> (u32, u8) {
    match way {
        "uring" => (0, 0),
        "uring-async" => (0, IOSQE_ASYNC),
        "uring-poll" => (IORING_SETUP_SQPOLL, 0),
        other => panic!("no way {other:?}"),
    }
}

/// Whether this kernel lets anybody use io_uring.
pub fn has_uring() -> bool {
    let mut params = [0u32; 30];
    // SAFETY: params is a struct io_uring_params.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    if fd >= 0 {
        // SAFETY: a descriptor that nobody else has.
        drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    }
    fd >= 0
}

/// One request to a new ring, in the 64 bytes that `fill` is given: what came of it.
fn uring(setup: u32, fill: impl FnOnce(&mut [u8; 64])) -> io::Result<i32> {
    // struct io_uring_params in words: 10, then the offsets of both rings, 10 each
    let mut params = [0u32; 30];
    params[2] = setup;
    // SAFETY: params is large enough.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor.
    let ring = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let map = |offset: i64| {
        // SAFETY: a new mapping of the ring.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                ring.as_raw_fd(),
                offset,
            )
        };
        assert_ne!(address, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        address.cast::<u8>()
    };
    let (submit, complete, entries) = (map(0), map(0x800_0000), map(0x1000_0000));
    // SAFETY: the offsets are the kernel's own, inside the first page of each ring as they hold one
    // entry; the mappings are never removed.
    unsafe {
        let word = |ring: *mut u8, offset: u32| &*ring.add(offset as usize).cast::<AtomicU32>();
        let mut entry = [0; 64];
        fill(&mut entry);
        entries.cast::<[u8; 64]>().write(entry);
        word(submit, params[10 + 6]).store(0, Ordering::Relaxed);
        word(submit, params[10 + 1]).store(1, Ordering::Release);
        let flags = IORING_ENTER_GETEVENTS
            | if setup & IORING_SETUP_SQPOLL != 0 {
                IORING_ENTER_SQ_WAKEUP
            } else {
                0
            };
        let none = ptr::null::<u8>();
        if libc::syscall(
            libc::SYS_io_uring_enter,
            ring.as_raw_fd(),
            1,
            1,
            flags,
            none,
            0,
        ) < 0
        {
            return Err(io::Error::last_os_error());
        }
        while word(complete, params[20 + 1]).load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        let cqe = complete.add(params[20 + 5] as usize);
        Ok(cqe.add(8).cast::<i32>().read())
    }
}

/// Reads a byte with an I/O priority of its own; 0 where that was a byte.
fn read_by_uring(path: &str, ioprio: i64) -> i32 {
    let file = File::open(path).expect("a file");
    let mut byte = [0u8];
    let result = uring(0, |sqe| {
        sqe[0] = IORING_OP_READ;
        sqe[2..4].copy_from_slice(&(ioprio as u16).to_ne_bytes());
        sqe[4..8].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
        sqe[16..24].copy_from_slice(&(byte.as_mut_ptr().addr() as u64).to_ne_bytes());
        sqe[24..28].copy_from_slice(&1u32.to_ne_bytes());
    });
    match result {
        Ok(1) => 0,
        Ok(result) => -result,
        Err(error) => error.raw_os_error().unwrap_or(-1),
    }
}

/// A new socket; 0 where there is one.
fn socket_by_uring(way: &str, family: i64) -> i32 {
    const IORING_OP_SOCKET: u8 = 45;
    let (setup, entry) = setup_of(way);
    let result = uring(setup, |sqe| {
        sqe[0] = IORING_OP_SOCKET;
        sqe[1] = entry;
        sqe[4..8].copy_from_slice(&(family as i32).to_ne_bytes());
        sqe[8..16].copy_from_slice(&(libc::SOCK_STREAM as u64).to_ne_bytes());
    });
    match result {
        Ok(result) => (-result).max(0),
        Err(error) => error.raw_os_error().unwrap_or(-1),
    }
}

/// What [`read_by_uring`] does, by io_submit(2).
fn read_by_aio(path: &str, ioprio: i64) -> i32 {
    const IOCB_CMD_PREAD: u16 = 0;
    const IOCB_FLAG_IOPRIO: u32 = 2;
    let file = File::open(path).expect("a file");
    let mut byte = [0u8];
    // SAFETY: all zeroes is a valid iocb.
    let mut request: libc::iocb = unsafe { std::mem::zeroed() };
    request.aio_lio_opcode = IOCB_CMD_PREAD;
    request.aio_reqprio = ioprio as i16;
    request.aio_fildes = file.as_raw_fd().cast_unsigned();
    request.aio_buf = byte.as_mut_ptr().addr() as u64;
    request.aio_nbytes = 1;
    request.aio_flags = IOCB_FLAG_IOPRIO;
    let (mut context, mut events) = (0u64, [0i64; 4]);
    let mut requests = [&raw mut request];
    // SAFETY: arguments that live until the one request is done; an event is four words.
    unsafe {
        if libc::syscall(libc::SYS_io_setup, 1, &raw mut context) < 0
            || libc::syscall(libc::SYS_io_submit, context, 1, requests.as_mut_ptr()) < 0
            || libc::syscall(
                libc::SYS_io_getevents,
                context,
                1,
                1,
                events.as_mut_ptr(),
                ptr::null::<u8>(),
            ) < 0
        {
            return last();
        }
    }
    match events[2] {
        1 => 0,
        result => -result as i32,
    }
}
