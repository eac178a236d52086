/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * Who is guarded: the one process of the plain case, the tasks that carry a
 * mark, and the tasks below a cgroup. What is not asked for is not in the code
 * that runs, as the verifier knows the constants.
 */

/* bpf_get_current_task_btf() is there from 5.11 on, */
static __always_inline bool has_current_task_btf(void)
{
	return bpf_core_enum_value_exists(enum bpf_func_id,
					  BPF_FUNC_get_current_task_btf);
}

/* so that before the current task must be read by its address. */
static __always_inline struct task_struct *current_task(void)
{
	if (has_current_task_btf())
		return bpf_get_current_task_btf();
	return (struct task_struct *)bpf_get_current_task();
}

#define READ(p, field) \
	(has_current_task_btf() ? (p)->field : BPF_CORE_READ(p, field))

/* A task, also when it has exited, as of one start of a guard. */
struct task_key {
	u64 start;
	int pid;
	u32 round; /* config.round */
};

struct mark {
	enum guarded guarded;
	u32 pad;
	struct task_key creator; /* of who is PENDING */
};

/* One on every thread, so that exec by any of them loses nothing. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct mark);
} marks SEC(".maps");

/*
 * Which tasks may have a mark, by a hash of their address: 0 is none of those
 * with that hash, and never comes back. It spares most of those that nobody
 * guards the search for a mark.
 */
#define MARKABLE_BITS 16
u8 markable[1 << MARKABLE_BITS] SEC(".bss.markable");

/*
 * The tasks that were marked by others than their creator. Such a one may have
 * been in fork just then, beyond the program that passes marks on, with a child
 * that no walk can see yet; and may exit before a walk does.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* set before the load */
	__type(key, struct task_key);
	__type(value, enum guarded);
} marked_late SEC(".maps");

/* The targets that were asked for, for user space alone. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* set before the load */
	__type(key, struct process);
	__type(value, struct asked);
} targets SEC(".maps");

static __always_inline struct task_key key_of(struct task_struct *p)
{
	struct task_key key = {
		.start = p->start_boottime,
		.pid = p->pid,
		.round = config.round,
	};

	return key;
}

/*
 * By subtraction alone the verifier makes a number of a pointer. The hash is a
 * part of the layout, see MADE_BY in guard.rs.
 */
static __always_inline volatile u8 *markable_at(struct task_struct *p)
{
	u64 address = (u64)p - (u64)markable;

	/* the upper bits of a product with 2^64 / golden ratio */
	return &markable[address * 0x9e3779b97f4a7c15 >> (64 - MARKABLE_BITS)];
}

static __always_inline struct mark *mark_of(struct task_struct *p)
{
	return *markable_at(p) ? bpf_task_storage_get(&marks, p, NULL, 0) :
				 NULL;
}

/* Gives @p, which has none, a mark like @mark; false is out of memory. */
static __always_inline bool mark(struct task_struct *p, struct mark *mark)
{
	*markable_at(p) = 1;
	return bpf_task_storage_get(&marks, p, mark,
				    BPF_LOCAL_STORAGE_GET_F_CREATE);
}

static __always_inline enum guarded marked_late_as(struct task_key *key)
{
	enum guarded *late = bpf_map_lookup_elem(&marked_late, key);

	return late ? *late : UNGUARDED;
}

static __always_inline enum guarded guarded_by(struct mark *mark)
{
	if (!mark)
		return UNGUARDED;
	return mark->guarded == PENDING ? marked_late_as(&mark->creator) :
					  mark->guarded;
}

/* Marks a task that is there already. The child of the trial is not in fork. */
static __always_inline bool mark_late(struct task_struct *p,
				      enum guarded guarded)
{
	struct mark new = {.guarded = guarded}, *its = mark_of(p);
	struct task_key key = key_of(p);

	if ((guarded != TRIAL &&
	     bpf_map_update_elem(&marked_late, &key, &guarded, BPF_ANY)) ||
	    (!its && !mark(p, &new))) {
		__sync_fetch_and_add(&state.unmarked, 1);
		return false;
	}
	if (its)
		its->guarded = guarded;
	__sync_fetch_and_add(&state.marked, 1);
	return true;
}

/*
 * Still in copy_process() or on its way out of it, and never run. Who is not
 * has all marks that it gets there, and its cgroup: those are looked at later.
 */
static __always_inline u32 is_new(struct task_struct *p)
{
	u32 state = bpf_core_field_exists(p->__state) ? p->__state : p->state;

	barrier();
	return state & TASK_NEW;
}

/* Without marks: which of the two that state names has this tgid. */
static __always_inline enum guarded named_by(int tgid, u64 *start)
{
	if (config.pid && tgid == state.target.tgid) {
		*start = state.target.start;
		return GUARDED;
	}
	*start = state.trial.start;
	return tgid == state.trial.tgid ? TRIAL : UNGUARDED;
}

/* Decides in a few instructions for most of those that nobody guards. */
static __always_inline bool is_another(struct task_struct *p)
{
	if (config.cgroup)
		return false;
	if (config.marks)
		return !is_new(p) && !*markable_at(p);
	return p->tgid != state.target.tgid && p->tgid != state.trial.tgid;
}

static __always_inline bool is_current_another(void)
{
	return has_current_task_btf() && is_another(bpf_get_current_task_btf());
}

/*
 * From Linux 6.2 on each typed pointer that is followed makes the verifier
 * search all of BTF, three times on each way that leads there. Without types,
 * which takes a helper for each, is what is not looked at for every request.
 */
static __always_inline bool in_cgroup(struct task_struct *p, bool typed)
{
	struct cgroup *cgroup = typed ? p->cgroups->dfl_cgrp :
					BPF_CORE_READ(p, cgroups, dfl_cgrp);
	int its = typed ? cgroup->level : BPF_CORE_READ(cgroup, level);
	u16 level = state.cgroup.level;
	struct cgroup *ancestor;
	const u64 *ids;
	u64 id;

	if (its < level)
		return false;
	if (bpf_core_field_exists(cgroup->ancestors)) {
		bpf_core_read(&ancestor, sizeof(ancestor),
			      &cgroup->ancestors[level]);
		id = BPF_CORE_READ(ancestor, kn, id);
	} else {
		ids = __builtin_preserve_access_index(cgroup->ancestor_ids);
		bpf_probe_read_kernel(&id, sizeof(id), ids + level);
	}
	return id == state.cgroup.id;
}

/*
 * What a new task inherits, where it is not to be seen on the task itself yet:
 * it was beyond task_alloc before that was attached, and its creator has been
 * marked since. The creator is the leader of a new thread, and mostly the
 * parent of a new process.
 */
static __always_inline enum guarded mark_to_come(struct task_struct *p)
{
	struct task_struct *creator = BPF_CORE_READ(p, group_leader);
	struct task_key key = {.round = config.round};

	if (p->pid == p->tgid) {
		if (!config.children)
			return UNGUARDED;
		creator = BPF_CORE_READ(p, real_parent);
	}
	key.start = BPF_CORE_READ(creator, start_boottime);
	key.pid = BPF_CORE_READ(creator, pid);
	return marked_late_as(&key);
}

/* The same for a task that has not been put into its cgroup. */
static __always_inline bool cgroup_to_come(struct task_struct *p)
{
	return in_cgroup(p->pid != p->tgid ? BPF_CORE_READ(p, group_leader) :
					     BPF_CORE_READ(p, real_parent),
			 false);
}

static __always_inline enum guarded guarded(struct task_struct *p)
{
	enum guarded who;
	struct mark *mark;
	u64 start;
	u32 unseen = config.marks || config.cgroup ? is_new(p) : 0;
	/* before the marks, after which many ways lead on */
	bool inside = config.cgroup && in_cgroup(p, true);

	if (config.marks) {
		mark = mark_of(p);
		who = !mark && unseen ? mark_to_come(p) : guarded_by(mark);
		if (who != UNGUARDED)
			return who;
	} else {
		who = named_by(p->tgid, &start);
		if (who != UNGUARDED &&
		    p->group_leader->start_boottime == start)
			return who;
	}
	if (config.cgroup && (inside || (unseen && cgroup_to_come(p))))
		return GUARDED;
	return UNGUARDED;
}

/* The same for the current task, where that is the one that rules are about. */
static __always_inline enum guarded guarded_current(void)
{
	struct task_struct *p;
	enum guarded who;
	u64 start;

	if (has_current_task_btf())
		return guarded(bpf_get_current_task_btf());
	/* where there are no marks */
	who = named_by(bpf_get_current_pid_tgid() >> 32, &start);
	if (who == UNGUARDED)
		return UNGUARDED;
	p = (struct task_struct *)bpf_get_current_task();
	return BPF_CORE_READ(p, group_leader, start_boottime) == start ?
		       who :
		       UNGUARDED;
}
