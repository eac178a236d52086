/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* What is done with a request. */

/*
 * Counting keeps the branch: folded into arithmetic, the return value would be
 * beyond what the verifier follows.
 */
static __always_inline int refuse(u64 *count)
{
	__sync_fetch_and_add(count, 1);
	return -EPERM;
}

static __always_inline int judge(struct request *request, struct task_struct *p)
{
	struct counters *counters = &state.counters;
	enum verdict verdict;
	int ret = 0;

	if (!request->forbidden) {
		if (!config.allowed || !(request->rule & config.rules))
			return 0;
		verdict = ALLOWED;
		__sync_fetch_and_add(&counters->allowed, 1);
	} else if (config.audit) {
		verdict = AUDITED;
		__sync_fetch_and_add(&counters->audited, 1);
	} else {
		verdict = DENIED;
		ret = refuse(&counters->denied);
	}
	if (config.events) {
		/* so that without events the request is never in memory */
		struct request copy = *request;

		report(&copy, verdict, p, (struct task_struct *)copy.owner);
	}
	return ret;
}

/* @p is the task that the hook was called for, or the current one. */
static __always_inline int verdict(enum guarded who, struct request *request,
				   struct task_struct *p)
{
	switch (who) {
	case GUARDED:
		return judge(request, p);
	case TRIAL:
		__sync_fetch_and_add(&state.trial_seen, 1);
		return request->forbidden ? refuse(&state.trial_denied) : 0;
	default:
		return 0;
	}
}

/*
 * Whether a hook may end here, before it is known who is guarded: nobody asks
 * for what a rule forbids, and what is allowed is neither reported nor counted
 * by a trial.
 */
static __always_inline bool is_of_no_interest(bool forbidden)
{
	/* volatile, so that it is read only where it matters */
	return !forbidden && !*(volatile u32 *)&state.all;
}
