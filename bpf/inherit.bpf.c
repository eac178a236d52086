// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/* What a marked task starts is marked before anybody can see it. */

static __always_inline struct mark *inherited(u64 clone_flags)
{
	if (!config.children && !(clone_flags & CLONE_THREAD))
		return NULL;
	return mark_of(bpf_get_current_task_btf());
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
	struct mark *its;

	if (ret)
		return ret;
	its = inherited(clone_flags);
	if (!its)
		return 0;
	/* before the child can be seen: see Watch::running() */
	__sync_fetch_and_add(&state.inherited, 1);
	return mark(child, its) ? 0 : -ENOMEM;
}

/*
 * Called at the end of copy_process(), before the child runs. It catches the
 * child that was past task_alloc, and not yet in the task list for a walk to
 * see, while its creator was being marked.
 */
SEC("tp_btf/task_newtask")
int BPF_PROG(task_newtask, struct task_struct *child, u64 clone_flags)
{
	struct mark *its = inherited(clone_flags);

	if (!its || mark_of(child))
		return 0;
	if (mark(child, its))
		__sync_fetch_and_add(&state.marked, 1);
	else
		__sync_fetch_and_add(&state.unmarked, 1);
	return 0;
}
