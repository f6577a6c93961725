/* SPDX-License-Identifier: MIT */
#include "explore_states.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CAPACITY_MIN 1024u
#define TAG(hash)    ((hash) >> 32 << 32)

void explore_states_init(struct explore_states *set, uint32_t words)
{
	*set = (struct explore_states){.words = words};
}

void explore_states_free(struct explore_states *set)
{
	free(set->array);
	free(set->slots);
	explore_states_init(set, set->words);
}

void explore_states_clear(struct explore_states *set)
{
	if (set->slots)
		memset(set->slots, 0, (set->mask + 1) * sizeof(*set->slots));
	set->count = 0;
}

/* The slot of a state, or the free one where it belongs. */
static size_t find_slot(const struct explore_states *set, const uint64_t *state, uint64_t hash)
{
	size_t slot = hash & set->mask;
	uint64_t found;

	while ((found = set->slots[slot])) {
		if (TAG(found) == TAG(hash) &&
		    explore_equal(explore_at(set, (uint32_t)found - 1), state, set->words))
			break;
		slot = (slot + 1) & set->mask;
	}
	return slot;
}

/* Twice the room. On -ENOMEM the set is what it was. */
static int grow(struct explore_states *set)
{
	const size_t capacity = set->capacity ? 2 * set->capacity : CAPACITY_MIN;
	uint64_t *array, *slots;

	if (capacity > SIZE_MAX / sizeof(*array) / 2 / set->words)
		return -ENOMEM;
	array = realloc(set->array, capacity * set->words * sizeof(*array));
	if (!array)
		return -ENOMEM;
	set->array = array;
	slots = calloc(2 * capacity, sizeof(*slots));
	if (!slots)
		return -ENOMEM;
	free(set->slots);
	set->slots = slots;
	set->capacity = capacity;
	set->mask = 2 * capacity - 1;
	for (uint32_t i = 0; i < set->count; i++) {
		const uint64_t hash = explore_hash(explore_at(set, i), set->words);
		size_t slot = hash & set->mask;

		while (slots[slot])
			slot = (slot + 1) & set->mask;
		slots[slot] = TAG(hash) | (i + 1);
	}
	return 0;
}

int64_t explore_states_find(const struct explore_states *set, const uint64_t *state)
{
	if (!set->slots)
		return -1;
	return (int64_t)(uint32_t)
		   set->slots[find_slot(set, state, explore_hash(state, set->words))] -
	       1;
}

int explore_states_add(struct explore_states *set, const uint64_t *state, uint32_t *index)
{
	const uint64_t hash = explore_hash(state, set->words);
	size_t slot;
	int rc;

	if (set->count == set->capacity) {
		rc = grow(set);
		if (rc)
			return rc;
	}
	slot = find_slot(set, state, hash);
	if (set->slots[slot]) {
		*index = (uint32_t)set->slots[slot] - 1;
		return 0;
	}
	if (set->count == UINT32_MAX - 1)
		return -EOVERFLOW;
	memcpy(set->array + (size_t)set->count * set->words, state, set->words * sizeof(*state));
	*index = set->count++;
	set->slots[slot] = TAG(hash) | set->count;
	return 1;
}
