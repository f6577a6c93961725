/* SPDX-License-Identifier: MIT */
/*
 * A set of states that keeps the order in which they were found.
 *
 * A state is `words` 64-bit words, the least significant one first: one big number of bit
 * fields. States stand one after the other in one array, so a state is also known by its index,
 * and an open-addressing table of indices finds them again:
 *
 *   slot    index + 1 (32 bits), a part of the hash (32 bits); 0 = free
 *
 * The part of the hash saves most looks at states that are others. States are compared whole, so no two
 * are ever taken for one. At most half of the slots are in use.
 *
 * Threads: one at a time.
 */
#ifndef BALLOONVQ_EXPLORE_STATES_H
#define BALLOONVQ_EXPLORE_STATES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct explore_states {
	uint64_t *array; /* the states */
	uint64_t *slots; /* see above; their number is a power of two */
	size_t capacity; /* states for which there is room */
	size_t mask;     /* number of slots - 1 */
	uint32_t words;  /* of a state */
	uint32_t count;  /* states */
};

/* A number for a state; equal ones for equal states. */
static inline uint64_t explore_hash(const uint64_t *state, uint32_t words)
{
	uint64_t hash = 0;

	for (uint32_t i = 0; i < words; i++) {
		hash = (hash ^ state[i]) * 0x9e3779b97f4a7c15u;
		hash ^= hash >> 32;
	}
	return hash;
}

static inline bool explore_equal(const uint64_t *a, const uint64_t *b, uint32_t words)
{
	for (uint32_t i = 0; i < words; i++)
		if (a[i] != b[i])
			return false;
	return true;
}

/* One state; valid until the next one is added. */
static inline const uint64_t *explore_at(const struct explore_states *set, uint32_t index)
{
	return set->array + (size_t)index * set->words;
}

/* Empty, without memory of its own. */
void explore_states_init(struct explore_states *set, uint32_t words);
void explore_states_free(struct explore_states *set);
void explore_states_clear(struct explore_states *set);

/* The index of a state, or -1. */
int64_t explore_states_find(const struct explore_states *set, const uint64_t *state);

/* Adds a state that may be in the set, and not point into it. 1 = it is new, 0 = known, -ENOMEM,
 * -EOVERFLOW (2^32 - 2 states). */
int explore_states_add(struct explore_states *set, const uint64_t *state, uint32_t *index);

#endif
