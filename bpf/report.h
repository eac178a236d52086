/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Reports of requests, to whoever reads the output of lsm-nice. */

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} events SEC(".maps");

/* What a task asks for, as its hook understands it. */
struct request {
	enum hook hook;
	enum call call;
	enum rule rule; /* that judges it; 0 is none */
	bool forbidden;
	bool known; /* asked[] holds what is asked */
	s64 asked[3]; /* see struct event */
	/* with CALL_AUTOGROUP, the address of the target; 0 is not known */
	u64 owner;
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

/* Of a task that is not @typed no more than the address is known. */
static __always_inline void name(struct named *named, struct task_struct *p,
				 bool typed)
{
	u64 *comm = (u64 *)named->comm;

	if (state.pidns_level) {
		named->pid = own_nr(BPF_CORE_READ(p, group_leader, thread_pid));
		named->tid = own_nr(BPF_CORE_READ(p, thread_pid));
	} else if (typed) {
		named->pid = p->tgid;
		named->tid = p->pid;
	} else {
		named->pid = BPF_CORE_READ(p, tgid);
		named->tid = BPF_CORE_READ(p, pid);
	}
	if (typed) {
		comm[0] = ((u64 *)p->comm)[0];
		comm[1] = ((u64 *)p->comm)[1];
	} else {
		bpf_core_read(comm, sizeof(named->comm), &p->comm);
	}
}

static __always_inline void read_had(s64 *had, enum rule rule,
				     struct task_struct *p)
{
	had[0] = had[1] = 0;
	switch (rule) {
	case RULE_NICE:
		had[0] = READ(p, static_prio) - DEFAULT_PRIO;
		break;
	case RULE_SCHED:
		had[0] = READ(p, policy);
		had[1] = READ(p, rt_priority);
		break;
	case RULE_IO:
		had[0] = BPF_CORE_READ(p, io_context, ioprio);
		break;
	default:
		break;
	}
}

/*
 * @p is the task that the hook was called for. Never waits: a report that finds
 * no room is lost, and counted. Not inlined: a program that has it once is
 * found its way through, by libbpf and by the verifier, in less time.
 */
static __noinline void report(struct request *request, enum verdict verdict,
			      struct task_struct *p, struct task_struct *owner)
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
	/*
	 * From here on what is decided is read from the event. Before 6.8 the
	 * verifier loses track of constants on the stack of who calls a
	 * function (backtrack_insn()), and drops code that it thinks it has
	 * been through.
	 */
	barrier();
	if (event->call != CALL_AUTOGROUP) {
		name(&event->target, p, has_current_task_btf());
		read_had(event->had, event->rule, p);
	} else if (owner) {
		name(&event->target, owner, false);
		event->had[0] = BPF_CORE_READ(owner, signal, autogroup, nice);
		event->had[1] = 0;
	} else {
		__builtin_memset(&event->target, 0, sizeof(event->target));
		event->had[0] = event->had[1] = 0;
	}
	caller = current_task();
	name(&event->caller, caller, has_current_task_btf());
	event->exe[0] = 0;
	if (config.exe) {
		exe = BPF_CORE_READ(caller, mm, exe_file, f_path.dentry,
				    d_name.name);
		bpf_probe_read_kernel_str(event->exe, sizeof(event->exe), exe);
	}
	bpf_ringbuf_submit(event, 0);
}
