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
};

/* The rules, bits of config.rules. */
enum rule {
	RULE_NICE = 1,
	RULE_SCHED = 2,
	RULE_IO = 4,
};

/* Set before the load, so that the verifier folds it into the code. */
struct config {
	struct process target; /* the one process of the plain case */

	/* lsm-nice itself, which may ask resolve.bpf.c */
	u64 pidns_dev;
	u64 pidns_ino;
	u32 asker;

	u32 rules;
	int floor; /* lowest nice value that may be set */

	/* yes or no */
	u32 marks; /* marked tasks are guarded, */
	u32 children; /* and what they start later */
	u32 cgroup; /* the tasks of state.cgroup are guarded */
	u32 autogroup; /* note_autogroup is attached */
};

/* A cgroup of the unified hierarchy. Its id is never used again. */
struct cgroup_place {
	u64 id;
	u16 level; /* steps below the root */
	u16 pad[3];
};

/* What changes while the programs are attached. */
struct state {
	u64 denied; /* requests refused, of guarded processes */
	struct cgroup_place cgroup;

	struct process trial; /* the child, while it is tried on */
	u64 trial_seen; /* its calls that reached a hook, */
	u64 trial_denied; /* and those refused */

	/* the answers of resolve.bpf.c, and how many there were */
	struct process resolved;
	struct cgroup_place resolved_cgroup;
	u64 answers;
	enum guarded mark_as; /* what a process asked for becomes */

	u32 tree; /* yes or no: the walk marks the children of the marked too */
	u64 marked; /* tasks marked by anyone but their own creator */
};

/* What the walk writes for each guarded task that has not exited. */
struct walked {
	struct process process;
	int pid; /* of the process, in the PID namespace of the reader */
	u32 marked; /* yes or no: guarded for itself, not for its cgroup */
};

#endif /* LSM_NICE_H */
