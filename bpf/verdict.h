/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* What is done with a request that a rule forbids, or does not. */

/*
 * Counting keeps the branch: folded into arithmetic, the return value would be
 * beyond what the verifier follows.
 */
static __always_inline int refuse(u64 *count)
{
	__sync_fetch_and_add(count, 1);
	return -EPERM;
}

static __always_inline int verdict(enum guarded who, bool forbidden)
{
	switch (who) {
	case GUARDED:
		return forbidden ? refuse(&state.denied) : 0;
	case TRIAL:
		__sync_fetch_and_add(&state.trial_seen, 1);
		return forbidden ? refuse(&state.trial_denied) : 0;
	default:
		return 0;
	}
}

/*
 * Whether a hook may end here, before it is known who is guarded: nobody asks
 * for what a rule forbids, and no trial counts what it sees.
 */
static __always_inline bool is_of_no_interest(bool forbidden)
{
	return !forbidden && !state.trial.tgid;
}
