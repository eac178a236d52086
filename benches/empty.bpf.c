// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/*
 * Programs that do nothing, on the hooks and functions that lsm-nice uses: the
 * least that a program there can cost.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define EMPTY(name, section)      \
	SEC(section)              \
	int name(const void *ctx) \
	{                         \
		return 0;         \
	}

EMPTY(setnice, "lsm/task_setnice")
EMPTY(setscheduler, "lsm/task_setscheduler")
EMPTY(note, "fentry/__sched_setscheduler")
EMPTY(setioprio, "lsm/task_setioprio")
EMPTY(mprotect, "lsm/file_mprotect")
EMPTY(create, "lsm/socket_create")
EMPTY(alloc, "lsm/task_alloc")

char LICENSE[] SEC("license") = "Dual BSD/GPL";
