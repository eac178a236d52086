// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/*
 * The kernel side of lsm-nice: one object, of which user space loads only the
 * programs that a request needs.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include "lsm_nice.h"

const volatile struct config config;
struct state state;

/* puts types that no map has into the skeleton */
struct walked *unused_walked;
struct event *unused_event;
enum rule unused_rule;

#include "guarded.h"
#include "report.h"
#include "verdict.h"
#include "syscall.h"
#include "note.h"

#include "resolve.bpf.c"
#include "inherit.bpf.c"
#include "walk.bpf.c"
#include "nice.bpf.c"
#include "sched.bpf.c"
#include "io.bpf.c"
#include "heap.bpf.c"
#include "socket.bpf.c"

char LICENSE[] SEC("license") = "Dual BSD/GPL";
