/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * All that both sides share. The Rust side has these types from the BTF of the
 * object, through the skeleton that build.rs generates.
 */
#ifndef LSM_NICE_H
#define LSM_NICE_H

/*
 * A process as the kernel knows it, in every PID and time namespace alike. A
 * tgid that is used again comes with another start; exec keeps both, also when
 * another thread than the leader calls it.
 */
struct process {
	u64 start; /* start_boottime of the thread group's leader, ns */
	int tgid; /* in the initial PID namespace; 0 is no process */
	u32 pad;
};

/* Who is guarded by whom. */
enum guarded {
	UNGUARDED,
	GUARDED,
	TRIAL, /* the child that proves that the hooks fire, never counted */
	PENDING, /* as who started it, who may be marked in this moment */
};

/* The rules, bits of config.rules. */
enum rule {
	RULE_NICE = 1,
	RULE_SCHED = 2,
	RULE_IO = 4,
	RULE_HEAP = 8,
	RULE_HEAP_EXEC = 16,
	RULE_SOCKET = 32,
	RULE_INET = 64,
};

/* What was decided of a request. */
enum verdict {
	DENIED,
	AUDITED, /* would have been denied */
	ALLOWED,
};

enum hook {
	HOOK_TASK_SETNICE,
	HOOK_TASK_SETSCHEDULER,
	HOOK_TASK_SETIOPRIO,
	HOOK_FILE_MPROTECT,
	HOOK_SOCKET_CREATE,
};

/* The system calls that a hook is called for. */
enum call {
	CALL_OTHER,
	CALL_NICE,
	CALL_SETPRIORITY,
	CALL_AUTOGROUP, /* write(2) to /proc/PID/autogroup */
	CALL_SETPARAM,
	CALL_SETSCHEDULER,
	CALL_SETATTR,
	CALL_IOPRIO_SET,
	CALL_MPROTECT,
	CALL_PKEY_MPROTECT,
	CALL_SOCKET,
	CALL_SOCKETPAIR,
};

/* A task as messages name it. */
struct named {
	int pid; /* of its process, in the PID namespace of lsm-nice, */
	int tid; /* and of the task; 0 where it is not to be seen there */
	u8 comm[16];
};

/*
 * What the kernel side reports of one request. The values are, by rule:
 *
 *	nice	asked: nice value; had: nice value
 *	sched	asked: policy, real-time priority or -1; had: the same
 *	io	asked: ioprio; had: ioprio
 *	heap*	asked: start, end, PROT_ bits
 *	socket,	asked: family, type, protocol
 *	inet
 */
struct event {
	u64 time; /* CLOCK_BOOTTIME, in the initial time namespace, ns */
	enum verdict verdict;
	enum rule rule;
	enum hook hook;
	enum call call;
	struct named target;
	struct named caller;
	u32 uid; /* the caller's real one, in the initial user namespace */
	u32 known; /* yes or no: asked holds what was asked */
	s64 asked[3];
	s64 had[2];
	/*
	 * With config.exe, file name of the caller's executable, or its start.
	 */
	u8 exe[64];
};

_Static_assert(sizeof(struct event) == 184 &&
		       __builtin_offsetof(struct event, target) == 24 &&
		       __builtin_offsetof(struct event, asked) == 80 &&
		       __builtin_offsetof(struct event, exe) == 120,
	       "the same on both sides, and no padding");

/*
 * Set before the load, so that the verifier folds it into the code. A pinned
 * guard may meet another lsm-nice than the one that made it: what that reads is
 * the same as long as made_by names the same layout (MADE_BY in guard.rs).
 */
struct config {
	u8 made_by[32];

	/* lsm-nice itself, which may ask resolve.bpf.c and walk.bpf.c */
	u64 pidns_dev;
	u64 pidns_ino;
	u32 asker;

	/*
	 * The one process of the plain case, state.target, by its PID in that
	 * namespace; or 0.
	 */
	int pid;

	/*
	 * Another number for each start: who is PENDING since the start of a
	 * guard that is replaced is not guarded by the marks of a later one.
	 */
	u32 round;
	u32 links; /* of the guard, without which it is not whole */
	u32 rules;
	int floor; /* lowest nice value that may be set */
	u32 io_floor; /* highest ioprio that may be set */

	/* yes or no */
	u32 marks; /* marked tasks are guarded, */
	u32 children; /* and what they start later */
	u32 cgroup; /* the tasks of state.cgroup are guarded */
	u32 autogroup; /* note_autogroup is attached */
	u32 audit; /* nothing is refused */
	u32 events; /* requests are reported, */
	u32 allowed; /* also those that are allowed, */
	u32 exe; /* with the executable of the caller */
	u32 tree; /* a start marks the children of the marked too */
};

/* A target as it was named, under its process. */
struct asked {
	int pid; /* in the PID namespace of lsm-nice */
	u8 comm[16];
};

/* A cgroup of the unified hierarchy. Its id is never used again. */
struct cgroup_place {
	u64 id;
	u16 level; /* steps below the root */
	u16 pad[3];
};

/* The requests for guarded processes, by what was decided. */
struct counters {
	u64 denied;
	u64 audited;
	u64 allowed; /* with config.allowed */
	u64 lost; /* of them, not reported: no room, or no reader */
};

/* What changes while the programs are attached. */
struct state {
	struct counters counters;

	struct process target; /* with config.pid, */
	struct cgroup_place cgroup; /* with config.cgroup */

	struct process trial; /* the child, while it is tried on, */
	u64 trial_seen; /* its calls that reached a hook, */
	u64 trial_denied; /* and those refused */

	/* the answers of resolve.bpf.c, and how many there were */
	struct process resolved;
	struct cgroup_place resolved_cgroup;
	u64 answers;
	u64 asked_at; /* as event.time */
	u64 pidns; /* the PID namespace of lsm-nice, */
	u32 pidns_level; /* and its level */
	u32 deaf; /* yes or no: nobody reads the reports any more */
	u32 starting; /* yes or no: tasks are being marked */
	u32 all; /* yes or no: what no rule forbids is judged too */
	u64 marked; /* tasks marked by anyone but their own creator, */
	u64 inherited; /* by their creator, */
	u64 unmarked; /* and not, for lack of memory */
	u64 missed; /* new tasks not marked for lack of it, never to be found */
};

/* A process that a start asks for, under its PID. */
struct wanted {
	struct process process; /* as the walk has found it */
	enum guarded as; /* what it becomes */
	u32 pad;
};

/* What the walk writes for each guarded task that has not exited. */
struct walked {
	struct process process;
	int pid; /* of the process, in the PID namespace of the reader */
	u32 marked; /* yes or no: guarded for itself, not for its cgroup */
};

#endif /* LSM_NICE_H */
