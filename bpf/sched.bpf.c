// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/*
 * Rule sched: the classes above SCHED_OTHER. Rule nice: the nice value that
 * sched_setattr(2) asks for.
 */

/*
 * Called for sched_setattr(2) with the kernel's own copy of the request, which
 * nobody can change any more, and for other calls that leave no doubt. With
 * @user it calls the hook task_setscheduler, which is not given the request.
 */
SEC("fentry/__sched_setscheduler")
int BPF_PROG(note_setscheduler, struct task_struct *p,
	     const struct sched_attr *attr, u8 user)
{
	struct note *note;

	if (!user)
		return 0;
	note = new_note(NOTED_SETSCHEDULER);
	if (!note)
		return 0;
	note->target = (u64)p;
	note->flags = attr->sched_flags;
	note->policy = attr->sched_policy;
	note->nice = attr->sched_nice;
	return 0;
}

static __always_inline bool has_nice(u32 policy)
{
	return policy == SCHED_NORMAL || policy == SCHED_BATCH ||
	       policy == SCHED_EXT;
}

/* A policy that is not known here is taken as one above SCHED_OTHER. */
static __always_inline bool is_above_other(u32 policy)
{
	return !has_nice(policy) && policy != SCHED_IDLE;
}

/*
 * Whether a rule forbids a class. With reset-on-fork the child of a real-time
 * process gets nice 0 (sched_fork()), which may be below the floor.
 */
static __always_inline bool forbids_class(u32 policy, bool resets_on_fork)
{
	if (!is_above_other(policy))
		return false;
	return config.rules & RULE_SCHED ||
	       (config.rules & RULE_NICE && resets_on_fork && config.floor > 0);
}

/*
 * What sched_setattr(2) asks of @p. A negative policy keeps the one that @p
 * has, which may change until it is used: the nice value is then taken as one
 * that counts.
 */
static __always_inline bool forbids_attr(struct task_struct *p)
{
	struct note note;
	bool keeps_policy, keeps_params;
	u32 policy;

	if (!note_of_call(NOTED_SETSCHEDULER, &note) || note.target != (u64)p)
		return true;
	keeps_policy = (s32)note.policy < 0;
	keeps_params = note.flags & SCHED_FLAG_KEEP_PARAMS;
	if (keeps_policy && keeps_params)
		return false;
	policy = keeps_policy ? p->policy : note.policy;
	if (forbids_class(policy, note.flags & SCHED_FLAG_RESET_ON_FORK))
		return true;
	return config.rules & RULE_NICE && !keeps_params &&
	       note.nice < config.floor && (keeps_policy || has_nice(policy));
}

/*
 * Whether a rule forbids what the current task asks of @p. What is above
 * SCHED_OTHER since before the guard is not given other parameters of its
 * class; nothing gets there while the guard stands, so the policy of @p can be
 * relied on. sched_setscheduler(2) and sched_setparam(2) fill in the nice value
 * that @p has, which is no request.
 */
static __always_inline bool forbids(struct task_struct *p, struct call *call)
{
	switch (call->nr) {
	case CALL_SETSCHEDULER:
		return forbids_class(call->policy & ~SCHED_RESET_ON_FORK,
				     call->policy & SCHED_RESET_ON_FORK);
	case CALL_SETPARAM:
		return forbids_class(p->policy, false);
	case CALL_SETATTR:
		return forbids_attr(p);
	default:
		return false;
	}
}

/*
 * Called by __sched_setscheduler() for the three calls, after the caller's own
 * rights were found sufficient, and a second time where the policy that it
 * should keep has changed; and for CPU affinity and for a move to another
 * cpuset, which are no business of these rules.
 */
SEC("lsm/task_setscheduler")
int BPF_PROG(task_setscheduler, struct task_struct *p, int ret)
{
	struct call call;
	bool forbidden;

	if (ret)
		return ret;
	call = current_call();
	forbidden = forbids(p, &call);
	if (is_of_no_interest(forbidden))
		return 0;
	return verdict(guarded(p), forbidden);
}
