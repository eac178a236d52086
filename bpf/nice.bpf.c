// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only

/*
 * Rule nice: a nice value below the floor.
 *
 * Called by set_one_prio() for setpriority(2), once for each process that
 * PRIO_PROCESS, PRIO_PGRP or PRIO_USER names, and by nice(2), with the value
 * cut to -20..19 and after the caller's own rights were found sufficient.
 *
 * The value is looked at first: a request that no floor forbids ends after a
 * comparison, whoever makes it.
 */
SEC("lsm/task_setnice")
int BPF_PROG(task_setnice, struct task_struct *p, int nice, int ret)
{
	bool forbidden = nice < config.floor;

	if (ret)
		return ret;
	if (!forbidden && !state.trial.tgid)
		return 0;
	return verdict(p, forbidden);
}
