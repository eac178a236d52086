/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * The kernel's types, cut down to the fields that lsm-nice reads. CO-RE finds
 * each field by its name in the running kernel, wherever it lies there. To find
 * a struct, libbpf reads all of the kernel's BTF, so that each one more makes
 * the start of a guard slower: what cannot change is outside of CO-RE.
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

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __s32 s32;
typedef __u64 u64;
typedef __s64 s64;
typedef _Bool bool;
#define true 1
#define false 0

/* asm-generic/errno-base.h */
#define EPERM 1
#define ENOMEM 12

/* linux/sched.h */
#define CLONE_THREAD 0x00010000
#define TASK_NEW 0x00000800

#define PF_IO_WORKER 0x00000010
#define PF_KTHREAD 0x00200000

/* uapi/linux/sched.h */
#define SCHED_NORMAL 0
#define SCHED_FIFO 1
#define SCHED_BATCH 3
#define SCHED_IDLE 5
#define SCHED_EXT 7
#define SCHED_RESET_ON_FORK 0x40000000
#define SCHED_FLAG_RESET_ON_FORK 0x01
#define SCHED_FLAG_KEEP_PARAMS 0x10

/* linux/sched/prio.h: nice 0 as static_prio */
#define DEFAULT_PRIO 120

/* uapi/linux/ioprio.h */
#define IOPRIO_CLASS_SHIFT 13
#define IOPRIO_CLASS_MASK 7
#define IOPRIO_CLASS_RT 1
#define IOPRIO_LEVEL_MASK 7

/* uapi/asm-generic/mman-common.h */
#define PROT_EXEC 0x4
#define PROT_GROWSDOWN 0x01000000
#define PROT_GROWSUP 0x02000000

/* linux/socket.h */
#define AF_INET 2
#define AF_INET6 10
#define AF_RDS 21
#define AF_RXRPC 33
#define AF_SMC 43

/* uapi/linux/bpf.h */
enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_RINGBUF = 27,
	BPF_MAP_TYPE_TASK_STORAGE = 29,
};
/* for CO-RE to ask whether the kernel has them */
enum bpf_func_id {
	BPF_FUNC_get_current_task_btf = 158,
	BPF_FUNC_task_pt_regs = 175,
};
#define BPF_ANY 0
#define BPF_F_NO_PREALLOC 1
#define BPF_LOCAL_STORAGE_GET_F_CREATE 1

/* uapi/linux/bpf.h: fixed, so no relocation */
struct bpf_pidns_info {
	__u32 pid;
	__u32 tgid;
};

/* whole, as pid.numbers is indexed */
struct upid {
	int nr;
	struct pid_namespace *ns;
};

/* uapi/linux/sched/types.h */
struct sched_attr {
	u32 size;
	u32 sched_policy;
	u64 sched_flags;
	s32 sched_nice;
	u32 sched_priority;
};

/* x86: asm/ptrace.h */
struct pt_regs {
	unsigned long r15;
	unsigned long r14;
	unsigned long r13;
	unsigned long r12;
	unsigned long bp;
	unsigned long bx;
	unsigned long r11;
	unsigned long r10;
	unsigned long r9;
	unsigned long r8;
	unsigned long ax;
	unsigned long cx;
	unsigned long dx;
	unsigned long si;
	unsigned long di;
	unsigned long orig_ax;
	unsigned long ip;
	unsigned long cs;
	unsigned long flags;
	unsigned long sp;
	unsigned long ss;
};

/* the context of an iterator */
struct seq_file;
struct task_struct;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

#pragma clang attribute push(__attribute__((preserve_access_index)), \
			     apply_to = record)

struct kernfs_node {
	u64 id;
	void *priv;
};

struct cgroup {
	int level;
	struct kernfs_node *kn;
	u64 ancestor_ids[1]; /* before 6.1, one for each level */
	struct cgroup *ancestors[];
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct pid {
	unsigned int level;
	struct upid numbers[];
};

struct autogroup {
	int nice;
};

struct io_context {
	unsigned short ioprio;
};

struct signal_struct {
	struct autogroup *autogroup;
};

struct thread_info {
	u32 status;
};

struct inode {
	void *i_private;
};

struct qstr {
	const unsigned char *name;
};

struct dentry {
	struct qstr d_name;
	struct inode *d_inode;
};

struct path {
	struct dentry *dentry;
};

struct file {
	struct path f_path;
};

struct mm_struct {
	unsigned long start_brk;
	unsigned long brk;
	struct file *exe_file;
};

struct vm_area_struct {
	unsigned long vm_start;
	unsigned long vm_end;
	struct mm_struct *vm_mm;
};

struct task_struct {
	struct thread_info thread_info;
	unsigned int __state;
	long state; /* before 5.14 */
	void *stack;
	unsigned int flags;
	int static_prio;
	unsigned int rt_priority;
	unsigned int policy;
	struct mm_struct *mm;
	int exit_state;
	int pid;
	int tgid;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	struct pid *thread_pid;
	unsigned long nvcsw;
	unsigned long nivcsw;
	u64 start_boottime;
	char comm[16];
	struct io_context *io_context;
	struct signal_struct *signal;
	struct css_set *cgroups;
};

#pragma clang attribute pop

#endif /* VMLINUX_H */
