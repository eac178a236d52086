/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Who is guarded. */

enum guarded {
	UNGUARDED,
	GUARDED,
	TRIAL,
};

static __always_inline enum guarded guarded(struct task_struct *p)
{
	u32 tgid = p->tgid;

	if (tgid == config.target.tgid)
		return p->group_leader->start_boottime == config.target.start ?
			       GUARDED :
			       UNGUARDED;
	if (tgid == state.trial.tgid)
		return p->group_leader->start_boottime == state.trial.start ?
			       TRIAL :
			       UNGUARDED;
	return UNGUARDED;
}
