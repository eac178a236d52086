// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/*
 * The one process or the cgroup that lsm-nice names, as the kernel knows it.
 * The kernel looks it up itself, in the namespaces of lsm-nice, for a system
 * call that only reads; the hook of that call has what it found. Nothing is
 * ever refused here, and nothing noted that another process asks. Attached
 * while a guard starts, and then no more.
 */

static __always_inline bool asked_by_lsm_nice(void)
{
	struct bpf_pidns_info caller;

	return !bpf_get_ns_current_pid_tgid(config.pidns_dev, config.pidns_ino,
					    &caller, sizeof(caller)) &&
	       caller.tgid == config.asker;
}

/* What events need to know of lsm-nice, which is the current task. */
static __always_inline void note_asker(void)
{
	struct task_struct *asker;
	struct upid upid = {};
	struct pid *pid;
	u32 level;

	if (!config.events)
		return;
	asker = (struct task_struct *)bpf_get_current_task();
	pid = BPF_CORE_READ(asker, thread_pid);
	level = BPF_CORE_READ(pid, level);
	bpf_core_read(&upid, sizeof(upid), &pid->numbers[level]);
	state.pidns = (u64)upid.ns;
	state.pidns_level = level;
	state.asked_at = bpf_ktime_get_boot_ns();
}

/* A PID: called by sched_getscheduler(2). */
SEC("lsm/task_getscheduler")
int BPF_PROG(resolve, struct task_struct *p, int ret)
{
	if (ret)
		return ret;
	if (!asked_by_lsm_nice())
		return 0;
	state.resolved.start = p->group_leader->start_boottime;
	state.resolved.tgid = p->tgid;
	note_asker();
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
