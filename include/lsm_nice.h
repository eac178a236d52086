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
	u32 tgid; /* in the initial PID namespace; 0 is no process */
	u32 pad;
};

/* Set before the load, so that the verifier folds it into the code. */
struct config {
	struct process target;
	int floor; /* lowest nice value that may be set */

	/* for resolve.bpf.c: the process that may ask, and its PID namespace */
	u32 asker;
	u64 pidns_dev;
	u64 pidns_ino;
};

/* What changes while the programs are attached. */
struct state {
	u64 denied; /* requests refused, of guarded processes */

	/*
	 * The child that proves that the hook fires. It is guarded too while
	 * its tgid stands here, and never counted in denied.
	 */
	struct process trial;
	u64 trial_seen;

	/* the last answer of resolve.bpf.c, and how many it gave */
	struct process resolved;
	u64 resolved_count;
};

#endif /* LSM_NICE_H */
