/* SPDX-License-Identifier: MIT */
/* What the fuzzers share: their input, byte by byte, and how an invariant that does not hold ends them. */
#ifndef FUZZ_INPUT_H
#define FUZZ_INPUT_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define must(condition)                                                                            \
	do {                                                                                       \
		if (!(condition))                                                                  \
			abort();                                                                   \
	} while (0)

/* What is left of the input. */
struct input {
	const uint8_t *data;
	size_t size;
};

/* The next byte; 0 behind the end. */
static inline uint8_t take(struct input *in)
{
	if (in->size == 0)
		return 0;
	in->size--;
	return *in->data++;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
