/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * Which system call the current task is in. A hook that the kernel calls for
 * several of them cannot tell in another way. The registers that a task came
 * with are the kernel's own copy, which nothing changes during the call.
 */

enum call_nr {
	CALL_OTHER,
	CALL_SETPRIORITY, /* and nice(2) */
	CALL_SETPARAM,
	CALL_SETSCHEDULER,
	CALL_SETATTR,
};

struct call {
	enum call_nr nr;
	u32 policy; /* that sched_setscheduler(2) asks for */
};

/* asm/thread_info.h: in a call by the 32-bit numbers */
#define TS_COMPAT 2
/* asm/unistd.h */
#define X32_SYSCALL_BIT 0x40000000
/* asm/page_64_types.h, without KASAN */
#define THREAD_SIZE 16384

static __always_inline enum call_nr compat_call(u32 nr)
{
	switch (nr) {
	case 34:
	case 97:
		return CALL_SETPRIORITY;
	case 154:
		return CALL_SETPARAM;
	case 156:
		return CALL_SETSCHEDULER;
	case 351:
		return CALL_SETATTR;
	}
	return CALL_OTHER;
}

static __always_inline enum call_nr native_call(u32 nr)
{
	switch (nr & ~X32_SYSCALL_BIT) {
	case 141:
		return CALL_SETPRIORITY;
	case 142:
		return CALL_SETPARAM;
	case 144:
		return CALL_SETSCHEDULER;
	case 314:
		return CALL_SETATTR;
	}
	return CALL_OTHER;
}

/*
 * A kernel thread has no registers of user space, and a worker of io_uring has
 * those of whatever call it was made in: neither is in a call of its own.
 */
static __always_inline struct call current_call(void)
{
	struct call call = {};
	struct task_struct *p;
	struct pt_regs *regs;

	if (bpf_core_enum_value_exists(enum bpf_func_id,
				       BPF_FUNC_task_pt_regs)) {
		p = bpf_get_current_task_btf();
		if (p->flags & (PF_KTHREAD | PF_IO_WORKER))
			return call;
		regs = (struct pt_regs *)bpf_task_pt_regs(p);
		if (p->thread_info.status & TS_COMPAT) {
			call.nr = compat_call(regs->orig_ax);
			call.policy = regs->cx;
		} else {
			call.nr = native_call(regs->orig_ax);
			call.policy = regs->si;
		}
		return call;
	}
	/* before 5.15 */
	p = (struct task_struct *)bpf_get_current_task();
	if (BPF_CORE_READ(p, flags) & (PF_KTHREAD | PF_IO_WORKER))
		return call;
	regs = BPF_CORE_READ(p, stack) + THREAD_SIZE -
	       bpf_core_type_size(struct pt_regs);
	if (BPF_CORE_READ(p, thread_info.status) & TS_COMPAT) {
		call.nr = compat_call(BPF_CORE_READ(regs, orig_ax));
		call.policy = BPF_CORE_READ(regs, cx);
	} else {
		call.nr = native_call(BPF_CORE_READ(regs, orig_ax));
		call.policy = BPF_CORE_READ(regs, si);
	}
	return call;
}
