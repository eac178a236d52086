// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only

/*
 * A PID of lsm-nice's own namespace as the process that the kernel knows.
 *
 * Called for sched_getscheduler(2) and the other calls that read a task's
 * scheduling: the kernel has looked up the PID and hands over its task. Only
 * what lsm-nice itself asks is noted, and nothing is ever refused. It is
 * attached for the moment of the question alone.
 */
SEC("lsm/task_getscheduler")
int BPF_PROG(resolve, struct task_struct *p, int ret)
{
	struct bpf_pidns_info caller;

	if (ret)
		return ret;
	if (bpf_get_ns_current_pid_tgid(config.pidns_dev, config.pidns_ino,
					&caller, sizeof(caller)) ||
	    caller.tgid != config.asker)
		return 0;
	state.resolved.start = p->group_leader->start_boottime;
	state.resolved.tgid = p->tgid;
	state.resolved_count++;
	return 0;
}
