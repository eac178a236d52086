/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * Which system call the current task is in. A hook that the kernel calls for
 * several of them cannot tell in another way. The registers that a task came
 * with are the kernel's own copy, which nothing changes during the call.
 */

struct syscall {
	enum call call;
	u64 args[3];
};

/* asm/thread_info.h: in a call by the 32-bit numbers */
#define TS_COMPAT 2
/* asm/unistd.h */
#define X32_SYSCALL_BIT 0x40000000
/* asm/page_64_types.h, without KASAN */
#define THREAD_SIZE 16384

static __always_inline enum call compat_call(u32 nr, u32 first)
{
	switch (nr) {
	case 34:
		return CALL_NICE;
	case 97:
		return CALL_SETPRIORITY;
	case 102: /* socketcall(2) */
		return first == 1 ? CALL_SOCKET :
		       first == 8 ? CALL_SOCKETPAIR :
				    CALL_OTHER;
	case 125:
		return CALL_MPROTECT;
	case 154:
		return CALL_SETPARAM;
	case 156:
		return CALL_SETSCHEDULER;
	case 289:
		return CALL_IOPRIO_SET;
	case 351:
		return CALL_SETATTR;
	case 359:
		return CALL_SOCKET;
	case 360:
		return CALL_SOCKETPAIR;
	case 380:
		return CALL_PKEY_MPROTECT;
	}
	return CALL_OTHER;
}

static __always_inline enum call native_call(u32 nr)
{
	switch (nr & ~X32_SYSCALL_BIT) {
	case 10:
		return CALL_MPROTECT;
	case 41:
		return CALL_SOCKET;
	case 53:
		return CALL_SOCKETPAIR;
	case 141:
		return CALL_SETPRIORITY;
	case 142:
		return CALL_SETPARAM;
	case 144:
		return CALL_SETSCHEDULER;
	case 251:
		return CALL_IOPRIO_SET;
	case 314:
		return CALL_SETATTR;
	case 329:
		return CALL_PKEY_MPROTECT;
	}
	return CALL_OTHER;
}

/* from 5.15 on */
static __always_inline bool has_task_pt_regs(void)
{
	return bpf_core_enum_value_exists(enum bpf_func_id,
					  BPF_FUNC_task_pt_regs);
}

#define REG(regs, field) \
	(has_task_pt_regs() ? (regs)->field : BPF_PROBE_READ(regs, field))

/*
 * What @p, the current task, came with. A kernel thread has no registers of
 * user space, and a worker of io_uring has those of whatever call it was made
 * in: neither is in a call of its own.
 */
static __always_inline struct pt_regs *regs_of_call(struct task_struct *p)
{
	if (READ(p, flags) & (PF_KTHREAD | PF_IO_WORKER))
		return NULL;
	if (has_task_pt_regs())
		return (struct pt_regs *)bpf_task_pt_regs(p);
	return BPF_CORE_READ(p, stack) + THREAD_SIZE - sizeof(struct pt_regs);
}

static __always_inline bool is_compat(struct task_struct *p)
{
	return READ(p, thread_info.status) & TS_COMPAT;
}

static __always_inline enum call call_with(struct task_struct *p,
					   struct pt_regs *regs)
{
	if (is_compat(p))
		return compat_call(REG(regs, orig_ax), REG(regs, bx));
	return native_call(REG(regs, orig_ax));
}

/* The call alone, for which fewer registers are read. */
static __always_inline enum call call_of(struct task_struct *p)
{
	struct pt_regs *regs = regs_of_call(p);

	return regs ? call_with(p, regs) : CALL_OTHER;
}

static __always_inline struct syscall current_syscall(void)
{
	struct task_struct *p = current_task();
	struct pt_regs *regs = regs_of_call(p);
	struct syscall now = {};

	if (!regs)
		return now;
	now.call = call_with(p, regs);
	if (is_compat(p)) {
		now.args[0] = (u32)REG(regs, bx);
		now.args[1] = (u32)REG(regs, cx);
		now.args[2] = (u32)REG(regs, dx);
	} else {
		now.args[0] = REG(regs, di);
		now.args[1] = REG(regs, si);
		now.args[2] = REG(regs, dx);
	}
	return now;
}
