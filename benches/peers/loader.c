// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/*
 * The least that a loader in C needs: loader OBJECT PROGRAM... loads these
 * programs, those of lsm-nice as a guard of what is marked, attaches them, and
 * waits. It marks nobody, and proves nothing.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <bpf/libbpf.h>

typedef uint64_t u64;
typedef int64_t s64;
typedef uint32_t u32;
typedef uint16_t u16;
typedef uint8_t u8;
#include "lsm_nice.h"

int main(int argc, char **argv)
{
	struct bpf_object *object;
	struct bpf_program *program;
	struct config *config;
	struct bpf_map *rodata;
	size_t size;

	object = argc > 1 ? bpf_object__open_file(argv[1], NULL) : NULL;
	if (!object)
		return 1;
	bpf_object__for_each_program(program, object)
		bpf_program__set_autoload(program, false);
	for (int i = 2; i < argc; i++) {
		program = bpf_object__find_program_by_name(object, argv[i]);
		if (!program || bpf_program__set_autoload(program, true))
			return 1;
	}
	rodata = bpf_object__find_map_by_name(object, ".rodata");
	config = rodata ? bpf_map__initial_value(rodata, &size) : NULL;
	if (config) {
		config->rules = RULE_NICE | RULE_SCHED;
		config->marks = config->children = 1;
		config->autogroup = config->events = 1;
	}
	if (bpf_object__load(object))
		return 1;
	for (int i = 2; i < argc; i++) {
		program = bpf_object__find_program_by_name(object, argv[i]);
		if (!bpf_program__attach(program))
			return 1;
	}
	fprintf(stderr, "ready\n");
	pause();
	return 0;
}
