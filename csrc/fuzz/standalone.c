/* SPDX-License-Identifier: MIT */
/*
 * A main() for the fuzz targets where there is no libFuzzer (gcc): replays the
 * files given, or makes `-runs=N` inputs from `-seed=S`. No coverage guidance;
 * it keeps the targets compiled and their invariants checked in every build.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INPUT_MAX 1024u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t next_random(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

/* Uniform bytes rarely look like a ring, so small numbers are made likely. */
static void run_random(uint64_t runs, uint64_t seed)
{
	static uint8_t data[INPUT_MAX];
	uint64_t state = seed * 2 + 1;

	for (uint64_t run = 0; run < runs; run++) {
		size_t size = next_random(&state) % INPUT_MAX;
		uint64_t flavour = next_random(&state) % 3;

		for (size_t i = 0; i < size; i++) {
			uint64_t r = next_random(&state);

			data[i] =
			    (uint8_t)(flavour == 0 || (r >> 8) % 4 == 0 ? r
									: r % (4 * flavour + 1));
		}
		LLVMFuzzerTestOneInput(data, size);
	}
}

int main(int argc, char **argv)
{
	unsigned long long runs = 0, seed = 1;

	for (int i = 1; i < argc; i++) {
		static uint8_t data[1u << 20];
		size_t size;
		FILE *file;

		if (sscanf(argv[i], "-runs=%llu", &runs) == 1 ||
		    sscanf(argv[i], "-seed=%llu", &seed) == 1)
			continue;
		file = fopen(argv[i], "rb");
		if (!file) {
			perror(argv[i]);
			return 1;
		}
		size = fread(data, 1, sizeof(data), file);
		fclose(file);
		LLVMFuzzerTestOneInput(data, size);
		printf("%s: %zu bytes\n", argv[i], size);
	}
	run_random(runs, seed);
	printf("%llu random inputs from seed %llu\n", runs, seed);
	return 0;
}
