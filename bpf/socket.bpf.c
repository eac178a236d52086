// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/*
 * Rules socket and inet: new sockets, of any family or of those that reach IP.
 */

/*
 * Whether what is sent by a family gets into IP packets: SMC falls back to TCP,
 * RDS runs over TCP where it has no InfiniBand, RxRPC over UDP. These make
 * their own sockets of family INET inside the kernel.
 */
static __always_inline bool is_inet(int family)
{
	switch (family) {
	case AF_INET:
	case AF_INET6:
	case AF_RDS:
	case AF_RXRPC:
	case AF_SMC:
		return true;
	}
	return false;
}

static __noinline int judge_socket(int family, int type, int protocol,
				   bool forbidden)
{
	struct request request = {
		.hook = HOOK_SOCKET_CREATE,
		.rule = config.rules & RULE_SOCKET ? RULE_SOCKET : RULE_INET,
		.forbidden = forbidden,
		.known = true,
		.asked = {family, type, protocol},
	};
	enum guarded who;

	if (is_current_another())
		return 0;
	who = guarded_current();
	if (who == UNGUARDED)
		return 0;
	request.call = call_of(current_task());
	return verdict(who, &request, current_task());
}

/*
 * Called by __sock_create() for socket(2), socketpair(2) (once for each end)
 * and their like in io_uring, by the task that asks or a thread of its process,
 * with family and type found valid; and with @kern for what the kernel makes
 * for itself. accept(2) does not come here, and what is open is not looked at.
 */
SEC("lsm/socket_create")
int BPF_PROG(socket_create, int family, int type, int protocol, int kern,
	     int ret)
{
	bool forbidden;

	if (ret)
		return ret;
	forbidden = config.rules & RULE_SOCKET || is_inet(family);
	if (kern || is_of_no_interest(forbidden))
		return 0;
	return judge_socket(family, type, protocol, forbidden);
}
