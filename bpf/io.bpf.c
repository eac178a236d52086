// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/*
 * Rule io: an I/O priority above the one that the kernel derives from a nice
 * value at the floor (task_nice_ioprio()).
 */

static __always_inline bool is_io_forbidden(int ioprio)
{
	const u32 highest = IOPRIO_CLASS_RT << IOPRIO_CLASS_SHIFT;
	u32 asked = ioprio & (IOPRIO_CLASS_MASK << IOPRIO_CLASS_SHIFT |
			      IOPRIO_LEVEL_MASK);

	/* class none is below the highest, and so wraps to beyond all others */
	return asked - highest < config.io_floor - highest;
}

static __noinline int judge_io(struct task_struct *p, int ioprio)
{
	struct request request = {
		.hook = HOOK_TASK_SETIOPRIO,
		.call = CALL_IOPRIO_SET,
		.rule = RULE_IO,
		.forbidden = is_io_forbidden(ioprio),
		.known = true,
		.asked = {ioprio},
	};
	enum guarded who = guarded(p);

	if (who == UNGUARDED || call_of(current_task()) != CALL_IOPRIO_SET)
		return 0;
	return verdict(who, &request, p);
}

/*
 * Called by set_task_ioprio() for ioprio_set(2), once for each task that
 * IOPRIO_WHO_PROCESS, PGRP or USER names; the call stops at the first refusal.
 * And by ext4, which in fsync(2) lends the caller the priority of its journal,
 * and gives back what that had: no business of this rule.
 * A class of none derives the priority from the nice value, and is allowed. The
 * bits between class and level are hints for the device.
 */
SEC("lsm/task_setioprio")
int BPF_PROG(task_setioprio, struct task_struct *p, int ioprio, int ret)
{
	if (ret)
		return ret;
	if (is_of_no_interest(is_io_forbidden(ioprio)) || is_another(p))
		return 0;
	return judge_io(p, ioprio);
}
