/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * What a function of the kernel was called with, for the LSM hook further in
 * that is not told.
 *
 * A tracing program is skipped where its task preempted another in the same
 * program on the same CPU, and an older note may lie there then. So a note
 * counts only for the task that made it and only as long as that task has not
 * been switched out: until then nobody else ran on this CPU who could be in the
 * program still, and so the program was not skipped for a later call either.
 * Who finds no note that counts must refuse.
 */

/* The current task, until it is switched out. */
struct caller {
	u64 task;
	u64 start;
	u64 switches;
};

struct note {
	struct caller caller;

	u64 target; /* the task that it names */

	/* __sched_setscheduler */
	u64 flags;
	u32 policy;
	u32 priority;
	s32 nice;

	/* proc_sched_autogroup_set_nice */
	enum guarded who; /* the target */
	bool own; /* the writer is in that autogroup too */
};

enum noted {
	NOTED_SETSCHEDULER,
	NOTED_AUTOGROUP,
	NOTED_CALLS,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NOTED_CALLS);
	__type(key, u32);
	__type(value, struct note);
} notes SEC(".maps");

static __always_inline struct caller current_caller(void)
{
	struct task_struct *p = current_task();
	struct caller caller = {
		.task = (u64)p,
		.start = READ(p, start_boottime),
		.switches = READ(p, nvcsw) + READ(p, nivcsw),
	};

	return caller;
}

static __always_inline struct note *new_note(u32 noted)
{
	struct note *note = bpf_map_lookup_elem(&notes, &noted);

	if (note)
		note->caller = current_caller();
	return note;
}

/*
 * Copies the note of the call that the current task is in; false where there is
 * none. Who preempts the task here may make a note in the same place, so the
 * copy counts only if the task was not switched out meanwhile.
 */
static __always_inline bool note_of_call(u32 noted, struct note *copy)
{
	struct note *note = bpf_map_lookup_elem(&notes, &noted);
	struct caller before, after;

	if (!note)
		return false;
	before = current_caller();
	barrier();
	*copy = *note;
	barrier();
	after = current_caller();
	return before.switches == after.switches &&
	       copy->caller.task == after.task &&
	       copy->caller.start == after.start &&
	       copy->caller.switches == after.switches;
}
