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

	if (!user || is_another(p))
		return 0;
	note = new_note(NOTED_SETSCHEDULER);
	if (!note)
		return 0;
	note->target = (u64)p;
	note->flags = attr->sched_flags;
	note->policy = attr->sched_policy;
	note->priority = attr->sched_priority;
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

static __always_inline void ask_nice(struct request *request, int nice)
{
	request->rule = RULE_NICE;
	request->forbidden = nice < config.floor;
	request->known = true;
	request->asked[0] = nice;
}

/*
 * With reset-on-fork the child of a real-time process gets nice 0
 * (sched_fork()), which may be below the floor.
 */
static __always_inline void ask_class(struct request *request, u32 policy,
				      int priority, bool resets_on_fork)
{
	bool above_other = is_above_other(policy);

	if (above_other && resets_on_fork && config.floor > 0 &&
	    !(config.rules & RULE_SCHED)) {
		ask_nice(request, 0);
		return;
	}
	request->rule = RULE_SCHED;
	request->forbidden = above_other && config.rules & RULE_SCHED;
	request->known = true;
	request->asked[0] = policy;
	request->asked[1] = priority;
}

/*
 * What sched_setattr(2) asks of @p. A negative policy keeps the one that @p
 * has, which may change until it is used: the nice value is then taken as one
 * that counts.
 */
static __always_inline void ask_attr(struct request *request,
				     struct task_struct *p)
{
	struct note note = {};
	bool keeps_policy, keeps_params, resets;
	u32 policy;

	if (!note_of_call(NOTED_SETSCHEDULER, &note) || note.target != (u64)p) {
		request->rule = config.rules & RULE_SCHED ? RULE_SCHED :
							    RULE_NICE;
		request->forbidden = true;
		return;
	}
	keeps_policy = (s32)note.policy < 0;
	keeps_params = note.flags & SCHED_FLAG_KEEP_PARAMS;
	if (keeps_policy && keeps_params)
		return;
	resets = note.flags & SCHED_FLAG_RESET_ON_FORK;
	policy = keeps_policy ? p->policy : note.policy;
	/*
	 * With its parameters a task keeps its class, whatever policy is named.
	 * Without rule sched that may be another until it is used.
	 */
	if (keeps_params && resets && !is_above_other(policy))
		policy = config.rules & RULE_SCHED ? p->policy : SCHED_FIFO;
	ask_class(request, policy, note.priority, resets);
	if (!request->forbidden && config.rules & RULE_NICE && !keeps_params &&
	    (keeps_policy || has_nice(policy)))
		ask_nice(request, note.nice);
}

/* The real-time priority, at which no rule looks. */
static __always_inline int noted_priority(struct task_struct *p)
{
	struct note note = {};

	if (!note_of_call(NOTED_SETSCHEDULER, &note) || note.target != (u64)p)
		return -1;
	return note.priority;
}

/*
 * What the current task asks of @p. What is above SCHED_OTHER since before the
 * guard is not given other parameters of its class; nothing gets there while
 * the guard stands, so the policy of @p can be relied on.
 * sched_setscheduler(2) and sched_setparam(2) fill in the nice value that @p
 * has, which is no request.
 */
static __always_inline void ask(struct request *request, struct task_struct *p)
{
	struct syscall now = current_syscall();
	u32 policy = now.args[1]; /* of sched_setscheduler(2) */

	request->call = now.call;
	switch (now.call) {
	case CALL_SETSCHEDULER:
		ask_class(request, policy & ~SCHED_RESET_ON_FORK, -1,
			  policy & SCHED_RESET_ON_FORK);
		break;
	case CALL_SETPARAM:
		ask_class(request, p->policy, -1, false);
		break;
	case CALL_SETATTR:
		ask_attr(request, p);
		break;
	default:
		break;
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
	struct request request = {
		.hook = HOOK_TASK_SETSCHEDULER,
	};
	enum guarded who;

	if (ret)
		return ret;
	/* before the request, which takes longer to find out */
	who = guarded(p);
	if (who == UNGUARDED)
		return 0;
	ask(&request, p);
	if (config.events && who == GUARDED && request.rule == RULE_SCHED &&
	    request.asked[1] < 0)
		request.asked[1] = noted_priority(p);
	return verdict(who, &request, p);
}
