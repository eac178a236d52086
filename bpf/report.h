/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Reports of requests, to whoever reads the output of lsm-nice. */

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

/* What a task asks for, as its hook understands it. */
struct request {
	enum hook hook;
	enum call call;
	enum rule rule; /* that judges it; 0 is none */
	bool forbidden;
	bool known; /* asked[] holds what is asked */
	s64 asked[3]; /* see struct event */
	struct task_struct *target; /* NULL where it is not known */
};

/* @pid in the PID namespace of lsm-nice, or 0. */
static __always_inline int own_nr(struct pid *pid)
{
	u32 level = state.pidns_level;
	struct upid upid = {};

	if (BPF_CORE_READ(pid, level) < level)
		return 0;
	bpf_core_read(&upid, sizeof(upid), &pid->numbers[level]);
	return (u64)upid.ns == state.pidns ? upid.nr : 0;
}

static __always_inline void name(struct named *named, struct task_struct *p)
{
	if (state.pidns_level) {
		named->pid = own_nr(BPF_CORE_READ(p, group_leader, thread_pid));
		named->tid = own_nr(BPF_CORE_READ(p, thread_pid));
	} else {
		named->pid = BPF_CORE_READ(p, tgid);
		named->tid = BPF_CORE_READ(p, pid);
	}
	bpf_core_read_str(named->comm, sizeof(named->comm), &p->comm);
}

static __always_inline void read_had(s64 *had, struct request *request)
{
	struct task_struct *p = request->target;

	switch (request->rule) {
	case RULE_NICE:
		if (request->call == CALL_AUTOGROUP)
			had[0] = BPF_CORE_READ(p, signal, autogroup, nice);
		else
			had[0] = BPF_CORE_READ(p, static_prio) - DEFAULT_PRIO;
		break;
	case RULE_SCHED:
		had[0] = BPF_CORE_READ(p, policy);
		had[1] = BPF_CORE_READ(p, rt_priority);
		break;
	case RULE_IO:
		had[0] = BPF_CORE_READ(p, io_context, ioprio);
		break;
	default:
		break;
	}
}

/*
 * Never waits: a report that finds no room is lost, and counted. Not inlined:
 * a program that has it once is found its way through, by libbpf and by the
 * verifier, in less time.
 */
static __noinline void report(struct request *request, enum verdict verdict)
{
	struct task_struct *caller;
	const unsigned char *exe;
	struct event *event;

	event = NULL;
	if (!state.deaf)
		event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		__sync_fetch_and_add(&state.counters.lost, 1);
		return;
	}
	caller = (struct task_struct *)bpf_get_current_task();
	__builtin_memset(event, 0, sizeof(*event));
	event->time = bpf_ktime_get_boot_ns();
	event->verdict = verdict;
	event->rule = request->rule;
	event->hook = request->hook;
	event->call = request->call;
	event->uid = bpf_get_current_uid_gid();
	event->known = request->known;
	event->asked[0] = request->asked[0];
	event->asked[1] = request->asked[1];
	event->asked[2] = request->asked[2];
	if (request->target) {
		name(&event->target, request->target);
		read_had(event->had, request);
	}
	name(&event->caller, caller);
	exe = BPF_CORE_READ(caller, mm, exe_file, f_path.dentry, d_name.name);
	bpf_probe_read_kernel_str(event->exe, sizeof(event->exe), exe);
	bpf_ringbuf_submit(event, 0);
}
