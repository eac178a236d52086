// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/*
 * What lsm-nice names, as the kernel knows it. The kernel looks it up itself,
 * in the namespaces of lsm-nice, for a system call that only reads; the hook of
 * that call has what it found. Nothing is ever refused here, and nothing noted
 * that another process asks. Attached while a guard starts, and then no more.
 */

static __always_inline bool asked_by_lsm_nice(void)
{
	struct bpf_pidns_info caller;

	return !bpf_get_ns_current_pid_tgid(config.pidns_dev, config.pidns_ino,
					    &caller, sizeof(caller)) &&
	       caller.tgid == config.asker;
}

/*
 * A PID: called by sched_getscheduler(2). The task becomes marked as
 * state.mark_as says, if it says so.
 */
SEC("lsm/task_getscheduler")
int BPF_PROG(resolve, struct task_struct *p, int ret)
{
	struct task_struct *caller;
	struct upid upid = {};
	struct pid *pid;
	u32 level;
	u64 start;

	if (ret)
		return ret;
	if (!asked_by_lsm_nice())
		return 0;
	start = p->group_leader->start_boottime;
	/* the child of the trial may have a mark of the guard to be replaced */
	if (config.marks && state.mark_as &&
	    (state.mark_as == TRIAL || guarded_by(mark_of(p)) == UNGUARDED) &&
	    !mark_late(p, state.mark_as))
		return -ENOMEM;
	state.resolved.start = start;
	state.resolved.tgid = p->tgid;
	if (config.events) {
		caller = (struct task_struct *)bpf_get_current_task();
		pid = BPF_CORE_READ(caller, thread_pid);
		level = BPF_CORE_READ(pid, level);
		bpf_core_read(&upid, sizeof(upid), &pid->numbers[level]);
		state.pidns = (u64)upid.ns;
		state.pidns_level = level;
		state.asked_at = bpf_ktime_get_boot_ns();
	}
	state.answers++;
	return 0;
}

/* The directory of a cgroup: called by stat(2). */
SEC("lsm/inode_getattr")
int BPF_PROG(resolve_cgroup, const struct path *path, int ret)
{
	struct cgroup *cgroup;
	struct kernfs_node *kn;

	if (ret)
		return ret;
	if (!asked_by_lsm_nice())
		return 0;
	kn = BPF_CORE_READ(path, dentry, d_inode, i_private);
	cgroup = BPF_CORE_READ(kn, priv);
	state.resolved_cgroup.id = BPF_CORE_READ(kn, id);
	state.resolved_cgroup.level = BPF_CORE_READ(cgroup, level);
	state.answers++;
	return 0;
}
