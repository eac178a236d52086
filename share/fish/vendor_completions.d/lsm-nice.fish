# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_lsm_nice_global_optspecs
    string join \n p/pid= tree cgroup= no-children n/floor= r/rule= best-effort audit pin= replace json q/quiet v/verbose h/help V/version
end

function __fish_lsm_nice_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_lsm_nice_global_optspecs) -- $cmd 2>/dev/null
    or return 0
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_lsm_nice_using_subcommand
    set -l cmd (__fish_lsm_nice_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c lsm-nice -n "__fish_lsm_nice_needs_command" -s p -l pid -d 'Guard this running process; repeatable [default: lsm-nice itself]' -r -f
complete -c lsm-nice -n "__fish_lsm_nice_needs_command" -l cgroup -d 'Guard every process in this cgroup v2 directory and below it, now and later' -r -f -a "(__fish_complete_directories)"
complete -c lsm-nice -n "__fish_lsm_nice_needs_command" -s n -l floor -d 'Lowest nice value that may be set, -20 to 19' -r -f
complete -c lsm-nice -n "__fish_lsm_nice_needs_command" -s r -l rule -d 'What is refused; several with commas, or repeated [default: nice,sched]' -r -f -a "nice\t'a nice value below the floor, by whichever call'
sched\t'the classes above SCHED_OTHER: FIFO, RR and DEADLINE'
io\t'an I/O priority above the one that the floor gives: real-time, best-effort < (NICE + 20) / 5'
heap\t'mprotect(2), pkey_mprotect(2) on the heap, start_brk to brk'
heap-exec\t'the same where PROT_EXEC is asked for'
socket\t'a new socket, of any family'
inet\t'a new socket of family INET or INET6, or of one inside of these: SMC, RDS, RXRPC'"
complete -c lsm-nice -n "__fish_lsm_nice_needs_command" -l pin -d 'Leave the guard in the kernel under this name, and exit' -r -f
complete -c lsm-nice -n "__fish_lsm_nice_needs_command" -l tree -d 'With --pid: guard its present descendants too'
complete -c lsm-nice -n "__fish_lsm_nice_needs_command" -l no-children -d 'Do not guard what a guarded process starts later'
complete -c lsm-nice -n "__fish_lsm_nice_needs_command" -l best-effort -d 'Go on without what this kernel cannot enforce of a rule, naming it'
complete -c lsm-nice -n "__fish_lsm_nice_needs_command" -l audit -d 'Report what would be refused, refuse nothing'
complete -c lsm-nice -n "__fish_lsm_nice_needs_command" -l replace -d 'With --pin: take over from the guard of that name, without a gap'
complete -c lsm-nice -n "__fish_lsm_nice_needs_command" -l json -d 'Print events as JSON, one object a line'
complete -c lsm-nice -n "__fish_lsm_nice_needs_command" -s q -l quiet -d 'Print no events'
complete -c lsm-nice -n "__fish_lsm_nice_needs_command" -s v -l verbose -d 'Print what is allowed for guarded processes too, and libbpf\'s log'
complete -c lsm-nice -n "__fish_lsm_nice_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c lsm-nice -n "__fish_lsm_nice_needs_command" -s V -l version -d 'Print version'
complete -c lsm-nice -n "__fish_lsm_nice_needs_command" -f -a "check" -d 'Would a guard hold on this machine? If not, why, and the fix'
complete -c lsm-nice -n "__fish_lsm_nice_needs_command" -f -a "status" -d 'Every lsm-nice guard that stands, pinned or not: what it guards, what it refused'
complete -c lsm-nice -n "__fish_lsm_nice_needs_command" -f -a "release" -d 'End a pinned guard, also a damaged one'
complete -c lsm-nice -n "__fish_lsm_nice_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c lsm-nice -n "__fish_lsm_nice_using_subcommand check" -l json -d 'One JSON object a row: requirement, ok, detail, fix'
complete -c lsm-nice -n "__fish_lsm_nice_using_subcommand check" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c lsm-nice -n "__fish_lsm_nice_using_subcommand status" -l follow -d 'Print its events as they come, until Ctrl-C; one reader at a time'
complete -c lsm-nice -n "__fish_lsm_nice_using_subcommand status" -l json -d 'One JSON object a guard, or with --follow an event'
complete -c lsm-nice -n "__fish_lsm_nice_using_subcommand status" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c lsm-nice -n "__fish_lsm_nice_using_subcommand release" -s h -l help -d 'Print help'
complete -c lsm-nice -n "__fish_lsm_nice_using_subcommand help; and not __fish_seen_subcommand_from check status release help" -f -a "check" -d 'Would a guard hold on this machine? If not, why, and the fix'
complete -c lsm-nice -n "__fish_lsm_nice_using_subcommand help; and not __fish_seen_subcommand_from check status release help" -f -a "status" -d 'Every lsm-nice guard that stands, pinned or not: what it guards, what it refused'
complete -c lsm-nice -n "__fish_lsm_nice_using_subcommand help; and not __fish_seen_subcommand_from check status release help" -f -a "release" -d 'End a pinned guard, also a damaged one'
complete -c lsm-nice -n "__fish_lsm_nice_using_subcommand help; and not __fish_seen_subcommand_from check status release help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
