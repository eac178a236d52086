/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * The kernel's types, cut down to the fields that lsm-nice reads. CO-RE finds
 * each field by its name in the running kernel, wherever it lies there.
 */
#ifndef VMLINUX_H
#define VMLINUX_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

typedef __u32 u32;
typedef __u64 u64;
typedef _Bool bool;
#define true 1
#define false 0

/* asm-generic/errno-base.h */
#define EPERM 1

enum bpf_map_type {
	BPF_MAP_TYPE_UNSPEC,
};

/* uapi/linux/bpf.h: fixed, so no relocation */
struct bpf_pidns_info {
	__u32 pid;
	__u32 tgid;
};

#pragma clang attribute push(__attribute__((preserve_access_index)), \
			     apply_to = record)

struct task_struct {
	int pid;
	int tgid;
	struct task_struct *group_leader;
	u64 start_boottime;
};

#pragma clang attribute pop

#endif /* VMLINUX_H */
