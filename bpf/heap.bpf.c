// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/*
 * Rules heap and heap-exec: another protection of the caller's heap, which is
 * what lies between start_brk and brk, up to the end of its last page.
 */

#define PAGE_SIZE 4096

static __always_inline u64 page_align(u64 size)
{
	return (size + PAGE_SIZE - 1) & ~(u64)(PAGE_SIZE - 1);
}

/*
 * The hook is given a mapping, of which the request may be a part: the
 * registers say which. Where they do not (PROT_GROWSDOWN, an address with a tag
 * in it, an unknown call) all of the mapping counts. Returns false for a
 * further mapping of a request, which was judged at the first.
 */
static __always_inline bool ask_range(struct request *request,
				      struct vm_area_struct *vma)
{
	struct syscall now = current_syscall();
	u64 start = now.args[0], end = start + page_align(now.args[1]);

	request->call = now.call;
	request->asked[0] = vma->vm_start;
	request->asked[1] = vma->vm_end;
	if (now.call != CALL_MPROTECT && now.call != CALL_PKEY_MPROTECT)
		return true;
	if (now.args[2] & (PROT_GROWSDOWN | PROT_GROWSUP) ||
	    start >= vma->vm_end || end <= vma->vm_start)
		return true;
	request->asked[0] = start;
	request->asked[1] = end;
	return start >= vma->vm_start;
}

/* Most mappings are above the heap, where no request that touches it gets. */
static __noinline int judge_mprotect(struct vm_area_struct *vma, u64 prot,
				     bool forbidden)
{
	struct request request = {
		.hook = HOOK_FILE_MPROTECT,
		.rule = config.rules & RULE_HEAP ? RULE_HEAP : RULE_HEAP_EXEC,
		.known = true,
		.asked = {0, 0, prot},
	};
	struct mm_struct *mm;
	enum guarded who;
	u64 start, brk;

	if (is_current_another())
		return 0;
	mm = vma->vm_mm;
	if (!mm)
		return 0;
	brk = mm->brk;
	forbidden &= vma->vm_start < page_align(brk);
	if (is_of_no_interest(forbidden))
		return 0;
	who = guarded_current();
	if (who == UNGUARDED || !ask_range(&request, vma))
		return 0;
	/* where there is no heap yet brk is start_brk, within a page */
	start = mm->start_brk;
	request.forbidden = forbidden && start < brk &&
			    (u64)request.asked[0] < page_align(brk) &&
			    (u64)request.asked[1] > start;
	return verdict(who, &request, current_task());
}

/*
 * Called by do_mprotect_pkey() for mprotect(2) and pkey_mprotect(2), once for
 * each mapping of the request from the lowest up, before that is split or
 * changed, with the protection that the caller asks for (@reqprot) and with
 * what its personality makes of it. So what touches the heap is refused before
 * anything has changed. What escapes: other calls that map, move or write
 * memory, and prctl(2), by which a process moves its own start_brk and brk.
 */
SEC("lsm/file_mprotect")
int BPF_PROG(file_mprotect, struct vm_area_struct *vma, unsigned long reqprot,
	     unsigned long prot, int ret)
{
	bool forbidden;

	if (ret)
		return ret;
	forbidden = config.rules & RULE_HEAP || reqprot & PROT_EXEC;
	if (is_of_no_interest(forbidden))
		return 0;
	return judge_mprotect(vma, reqprot, forbidden);
}
