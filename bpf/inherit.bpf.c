// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/* What a marked task starts is marked before anybody can see it. */

/* What the child of the current task is to carry; false is nothing. */
static __always_inline bool inherits(u64 clone_flags, struct mark *new)
{
	struct task_struct *creator = bpf_get_current_task_btf();
	/* read first: whoever is marked while this is set is seen then */
	u32 starting = *(volatile u32 *)&state.starting;

	if (!config.children && !(clone_flags & CLONE_THREAD))
		return false;
	new->guarded = guarded_by(mark_of(creator));
	if (new->guarded != UNGUARDED)
		return true;
	if (!starting)
		return false;
	new->guarded = PENDING;
	new->creator = key_of(creator);
	return true;
}

/*
 * Called by copy_process() for fork, vfork, clone and every thread, by the
 * task that creates, whoever becomes the parent. Refuses only what cannot be
 * marked (ENOMEM): the fork fails, the child does not escape.
 */
SEC("lsm/task_alloc")
int BPF_PROG(task_alloc, struct task_struct *child, unsigned long clone_flags,
	     int ret)
{
	struct mark new = {};

	if (ret)
		return ret;
	if (!inherits(clone_flags, &new))
		return 0;
	if (new.guarded == PENDING) {
		if (!mark(child, &new))
			__sync_fetch_and_add(&state.missed, 1);
		return 0;
	}
	/* before the child can be seen: see Watch::running() */
	__sync_fetch_and_add(&state.inherited, 1);
	return mark(child, &new) ? 0 : -ENOMEM;
}

/*
 * Called at the end of copy_process(), before the child runs. It catches the
 * child that was past task_alloc before that was attached. (From 7.0 on a
 * tracepoint can be preempted, and its program is skipped for others then: so
 * this is not for the children of who is marked later, who are PENDING.)
 */
SEC("tp_btf/task_newtask")
int BPF_PROG(task_newtask, struct task_struct *child, u64 clone_flags)
{
	struct mark new = {};

	if (!inherits(clone_flags, &new) || new.guarded == PENDING ||
	    mark_of(child))
		return 0;
	if (mark(child, &new))
		__sync_fetch_and_add(&state.marked, 1);
	else
		__sync_fetch_and_add(&state.missed, 1);
	return 0;
}
