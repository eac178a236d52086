// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only

/* The PID of a process in the PID namespace of the caller, or 0. */
static __always_inline int local_pid(struct task_struct *leader)
{
	struct task_struct *caller = bpf_get_current_task_btf();
	struct pid *pid = BPF_CORE_READ(leader, thread_pid);
	u32 level = BPF_CORE_READ(caller, thread_pid, level);
	int nr = 0;

	/* a task that is reaped has none */
	if (pid)
		bpf_core_read(&nr, sizeof(nr), &pid->numbers[level].nr);
	return nr;
}

/* Marks @p where its process, or with state.tree its parent, is marked. */
static __always_inline bool marked(struct task_struct *p,
				   struct task_struct *leader)
{
	struct mark *its;
	enum guarded who;

	if (!config.marks)
		return false;
	its = mark_of(p);
	if (its && its->guarded != PENDING)
		return true;
	who = guarded_by(its);
	if (who == UNGUARDED)
		who = guarded_by(mark_of(leader));
	if (who == UNGUARDED && state.tree)
		who = guarded_by(mark_of(p->real_parent));
	return who != UNGUARDED && mark_late(p, who);
}

/*
 * Every task of user space in the PID namespace of whoever reads the iterator:
 * marks what belongs to the marked, and writes out who is guarded.
 */
SEC("iter/task")
int walk(struct bpf_iter__task *ctx)
{
	struct task_struct *p = ctx->task, *leader;
	struct walked out = {};

	if (!p) {
		/* the end of the walk */
		state.asked_at = bpf_ktime_get_boot_ns();
		return 0;
	}
	if (p->flags & PF_KTHREAD)
		return 0;
	leader = p->group_leader;
	out.marked = marked(p, leader);
	if (p->exit_state || guarded(p) != GUARDED)
		return 0;
	out.process.start = leader->start_boottime;
	out.process.tgid = p->tgid;
	out.pid = local_pid(leader);
	bpf_seq_write(ctx->meta->seq, &out, sizeof(out));
	return 0;
}
