/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* What is done with a request on @p that a rule forbids, or does not. */

static __always_inline int verdict(struct task_struct *p, bool forbidden)
{
	switch (guarded(p)) {
	case GUARDED:
		if (!forbidden)
			return 0;
		__sync_fetch_and_add(&state.denied, 1);
		return -EPERM;
	case TRIAL:
		__sync_fetch_and_add(&state.trial_seen, 1);
		return forbidden ? -EPERM : 0;
	default:
		return 0;
	}
}
