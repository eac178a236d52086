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

/*
 * A kernel thread has no registers of user space, and a worker of io_uring has
 * those of whatever call it was made in: neither is in a call of its own.
 */
static __always_inline struct syscall current_syscall(void)
{
	struct syscall now = {};
	struct task_struct *p;
	struct pt_regs *regs;

	if (bpf_core_enum_value_exists(enum bpf_func_id,
				       BPF_FUNC_task_pt_regs)) {
		p = bpf_get_current_task_btf();
		if (p->flags & (PF_KTHREAD | PF_IO_WORKER))
			return now;
		regs = (struct pt_regs *)bpf_task_pt_regs(p);
		if (p->thread_info.status & TS_COMPAT) {
			now.args[0] = (u32)regs->bx;
			now.args[1] = (u32)regs->cx;
			now.args[2] = (u32)regs->dx;
			now.call = compat_call(regs->orig_ax, now.args[0]);
		} else {
			now.args[0] = regs->di;
			now.args[1] = regs->si;
			now.args[2] = regs->dx;
			now.call = native_call(regs->orig_ax);
		}
		return now;
	}
	/* before 5.15 */
	p = (struct task_struct *)bpf_get_current_task();
	if (BPF_CORE_READ(p, flags) & (PF_KTHREAD | PF_IO_WORKER))
		return now;
	regs = BPF_CORE_READ(p, stack) + THREAD_SIZE - sizeof(*regs);
	if (BPF_CORE_READ(p, thread_info.status) & TS_COMPAT) {
		now.args[0] = (u32)BPF_PROBE_READ(regs, bx);
		now.args[1] = (u32)BPF_PROBE_READ(regs, cx);
		now.args[2] = (u32)BPF_PROBE_READ(regs, dx);
		now.call =
			compat_call(BPF_PROBE_READ(regs, orig_ax), now.args[0]);
	} else {
		now.args[0] = BPF_PROBE_READ(regs, di);
		now.args[1] = BPF_PROBE_READ(regs, si);
		now.args[2] = BPF_PROBE_READ(regs, dx);
		now.call = native_call(BPF_PROBE_READ(regs, orig_ax));
	}
	return now;
}
