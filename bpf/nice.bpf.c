// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/*
 * Rule nice: a nice value below the floor. What sched_setattr(2) asks for is in
 * sched.bpf.c.
 */

/*
 * Called by sched_autogroup_write(), for a write to /proc/PID/autogroup with
 * that process. The hook task_setnice, further in, is given the writer instead.
 */
SEC("fentry/proc_sched_autogroup_set_nice")
int BPF_PROG(note_autogroup, struct task_struct *p, int nice)
{
	struct task_struct *writer;
	struct note *note;

	if (is_of_no_interest(nice < config.floor))
		return 0;
	note = new_note(NOTED_AUTOGROUP);
	if (!note)
		return 0;
	writer = (struct task_struct *)bpf_get_current_task();
	note->target = (u64)p;
	note->who = guarded(p);
	note->own = BPF_CORE_READ(writer, signal, autogroup) ==
		    p->signal->autogroup;
	return 0;
}

/*
 * The autogroup of a guarded process is guarded, and so is the own autogroup of
 * a guarded @writer, whichever process of it is named.
 */
static __always_inline enum guarded guarded_autogroup(enum guarded writer,
						      u64 *owner)
{
	struct note note = {};

	if (!note_of_call(NOTED_AUTOGROUP, &note))
		return state.trial.tgid && asked_by_lsm_nice() ? TRIAL :
								 GUARDED;
	/* what is written to holds the task */
	*owner = note.target;
	return note.who == UNGUARDED && note.own ? writer : note.who;
}

static __noinline int judge_nice(struct task_struct *p, int nice)
{
	struct task_struct *caller = current_task();
	struct request request = {
		.hook = HOOK_TASK_SETNICE,
		.call = CALL_SETPRIORITY,
		.rule = RULE_NICE,
		.forbidden = nice < config.floor,
		.known = true,
		.asked = {nice},
	};
	enum guarded who = guarded(p);

	if (p == caller)
		request.call = call_of(caller);
	if (request.call != CALL_NICE && request.call != CALL_SETPRIORITY) {
		if (config.autogroup) {
			request.call = CALL_AUTOGROUP;
			who = guarded_autogroup(who, &request.owner);
		} else {
			request.call = CALL_SETPRIORITY;
		}
	}
	return verdict(who, &request, p);
}

/*
 * Called by set_one_prio() for setpriority(2), once for each process that
 * PRIO_PROCESS, PRIO_PGRP or PRIO_USER names, and by nice(2), with the value
 * cut to -20..19 and after the caller's own rights were found sufficient; and
 * by proc_sched_autogroup_set_nice(), with the caller as the task.
 *
 * The value is looked at first: a request that no floor forbids ends after a
 * comparison, whoever makes it.
 */
SEC("lsm/task_setnice")
int BPF_PROG(task_setnice, struct task_struct *p, int nice, int ret)
{
	if (ret)
		return ret;
	if (is_of_no_interest(nice < config.floor))
		return 0;
	return judge_nice(p, nice);
}
