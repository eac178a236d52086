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

/* Whom a start asks for, by PID in the namespace of lsm-nice. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* set before the load */
	__type(key, int);
	__type(value, struct wanted);
} wanted SEC(".maps");

/*
 * Marks @p where its process is @wanted or marked, or with config.tree its
 * parent is marked.
 */
static __always_inline bool
marked(struct task_struct *p, struct process *process, struct wanted *wanted)
{
	struct task_key leader = {
		.start = process->start,
		.pid = process->tgid,
		.round = config.round,
	};
	struct mark *its = mark_of(p);
	enum guarded who = guarded_by(its);

	if (wanted && who != wanted->as) {
		/* the child of the trial too, of a guard to be replaced */
		who = wanted->as;
	} else {
		if (its && its->guarded != PENDING)
			return true;
		if (who == UNGUARDED)
			who = marked_late_as(&leader);
		if (who == UNGUARDED && config.tree && state.starting)
			who = guarded_by(mark_of(p->real_parent));
	}
	return who != UNGUARDED && mark_late(p, who);
}

/*
 * Every task in the PID namespace of whoever reads the iterator: marks what a
 * start asks for and what belongs to the marked, and writes out who is guarded.
 * Of the kernel's own threads only those that are asked for or marked.
 */
SEC("iter/task")
int walk(struct bpf_iter__task *ctx)
{
	struct task_struct *p = ctx->task, *leader;
	struct wanted *its = NULL;
	struct walked out = {};

	if (!p) {
		/* the end of the walk */
		state.asked_at = bpf_ktime_get_boot_ns();
		if (state.starting && asked_by_lsm_nice())
			note_asker();
		return 0;
	}
	leader = BPF_CORE_READ(p, group_leader);
	out.process.start = BPF_CORE_READ(leader, start_boottime);
	out.process.tgid = p->tgid;
	out.pid = local_pid(leader);
	/* to another reader the PID may be another process */
	if (state.starting && asked_by_lsm_nice())
		its = bpf_map_lookup_elem(&wanted, &out.pid);
	if (its)
		its->process = out.process;
	else if (p->flags & PF_KTHREAD &&
		 !(config.marks && guarded_by(mark_of(p))))
		return 0;
	out.marked = config.marks && marked(p, &out.process, its);
	if (!p->exit_state && guarded(p) == GUARDED)
		bpf_seq_write(ctx->meta->seq, &out, sizeof(out));
	return 0;
}
