/* SPDX-License-Identifier: MIT */
/*
 * Tables, states, and the steps from one layer to the next.
 */
#include "explore_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS_MIN 8u
#define ROOM_MIN  64u

int explore_reserve(void *at, size_t *room, size_t n, size_t size)
{
	size_t wanted = *room ? *room : ROOM_MIN;
	void *array;

	if (n <= *room)
		return 0;
	while (wanted < n)
		wanted *= 2;
	if (wanted > SIZE_MAX / 2 / size)
		return -ENOMEM;
	memcpy(&array, at, sizeof(array));
	array = realloc(array, wanted * size);
	if (!array)
		return -ENOMEM;
	memcpy(at, &array, sizeof(array));
	*room = wanted;
	return 0;
}

/* ---- tables ---------------------------------------------------------------- */

int explore_make_field(struct explore_field *field, const struct explore_layout *layout,
		       uint32_t shift, uint32_t width)
{
	if (width < 1 || width > 64 || shift / 64 >= layout->words ||
	    (uint64_t)shift + width > 64 * (uint64_t)layout->words)
		return -EINVAL;
	*field = (struct explore_field){
	    .word = shift / 64,
	    .bit = shift % 64,
	    .width = width,
	    .mask = UINT64_MAX >> (64 - width),
	};
	return 0;
}

uint32_t explore_time_table(const struct explore *x)
{
	return x->layout.actors;
}

uint32_t explore_watch_table(const struct explore *x)
{
	return x->layout.actors + 1;
}

int explore_create(const struct explore_layout *layout, const uint32_t *shifts,
		   const uint32_t *widths, struct explore **out)
{
	struct explore *x;
	int rc;

	if (layout->words < 1 || layout->words > EXPLORE_WORDS_MAX ||
	    layout->actors > EXPLORE_ACTORS_MAX)
		return -EINVAL;
	x = calloc(1, sizeof(*x));
	if (!x)
		return -ENOMEM;
	x->layout = *layout;
	explore_states_init(&x->states, layout->words);
	x->tables = calloc(layout->actors + 2, sizeof(*x->tables));
	x->target = calloc(layout->words, sizeof(*x->target));
	x->owners = calloc(layout->actors + 1, sizeof(*x->owners));
	x->found = calloc(layout->actors + 1, sizeof(*x->found));
	rc = x->tables && x->target && x->owners && x->found ? 0 : -ENOMEM;
	if (!rc)
		rc =
		    explore_make_field(&x->clock, layout, layout->clock_shift, layout->clock_width);
	if (!rc && layout->one_cpu)
		rc = explore_make_field(&x->running, layout, layout->top,
					32 - (uint32_t)__builtin_clz(layout->actors | 1));
	for (uint32_t actor = 0; !rc && actor < layout->actors; actor++) {
		rc = widths[actor] > 32 ? -EINVAL
					: explore_make_field(&x->tables[actor].field, layout,
							     shifts[actor], widths[actor]);
	}
	if (rc) {
		explore_destroy(x);
		return rc;
	}
	*out = x;
	return 0;
}

void explore_destroy(struct explore *x)
{
	if (!x)
		return;
	for (uint32_t i = 0; x->tables && i < x->layout.actors + 2; i++) {
		for (uint32_t node = 0; node < x->tables[i].count; node++)
			free(x->tables[i].nodes[node].slots);
		free(x->tables[i].nodes);
		free(x->tables[i].masks);
	}
	explore_paths_free(x);
	explore_circles_free(x);
	explore_states_free(&x->states);
	free(x->tables);
	free(x->entries.at);
	free(x->keys.at);
	free(x->differences.at);
	free(x->kinds.at);
	free(x->marks);
	free(x->target);
	free(x->owners);
	free(x->found);
	free(x->steps.at);
	free(x->events.at);
	free(x);
}

/* Makes the nodes up to this one. */
static int add_nodes(struct explore *x, struct explore_table *table, uint32_t node)
{
	const uint32_t words = x->layout.words;
	const uint32_t count = node + 1 > 2 * table->count ? node + 1 : 2 * table->count;
	struct explore_node *nodes;
	uint64_t *masks;

	nodes = realloc(table->nodes, count * sizeof(*nodes));
	if (!nodes)
		return -ENOMEM;
	table->nodes = nodes;
	masks = realloc(table->masks, (size_t)count * words * sizeof(*masks));
	if (!masks)
		return -ENOMEM;
	table->masks = masks;
	memset(nodes + table->count, 0, (count - table->count) * sizeof(*nodes));
	memset(masks + (size_t)table->count * words, 0,
	       (size_t)(count - table->count) * words * sizeof(*masks));
	table->count = count;
	return 0;
}

int explore_set_node(struct explore *x, uint32_t table, uint32_t node, const uint64_t *mask,
		     uint32_t flags)
{
	const uint32_t words = x->layout.words;
	struct explore_table *t;
	struct explore_node *n;
	int rc;

	if (table > explore_watch_table(x) || node > INT32_MAX)
		return -EINVAL;
	t = &x->tables[table];
	if (node > (t->field.width ? t->field.mask : 0))
		return -EINVAL;
	if (node >= t->count) {
		rc = add_nodes(x, t, node);
		if (rc)
			return rc;
	}
	n = &t->nodes[node];
	n->flags = flags;
	n->known = true;
	if (!explore_equal(t->masks + (size_t)node * words, mask, words)) {
		memcpy(t->masks + (size_t)node * words, mask, words * sizeof(*mask));
		if (n->slots)
			memset(n->slots, 0, n->capacity * sizeof(*n->slots));
		n->used = 0;
	}
	return 0;
}

static uint64_t masked_hash(const uint64_t *state, const uint64_t *mask, uint32_t words)
{
	uint64_t hash = 0;

	for (uint32_t i = 0; i < words; i++) {
		hash = (hash ^ (state[i] & mask[i])) * 0x9e3779b97f4a7c15u;
		hash ^= hash >> 32;
	}
	return hash;
}

static bool masked_equal(const uint64_t *key, const uint64_t *state, const uint64_t *mask,
			 uint32_t words)
{
	for (uint32_t i = 0; i < words; i++)
		if (key[i] != (state[i] & mask[i]))
			return false;
	return true;
}

/* The slot of a state's entry, or the free one where it belongs. */
static uint32_t *find_slot(const struct explore *x, const struct explore_node *node,
			   const uint64_t *mask, const uint64_t *state)
{
	const uint32_t words = x->layout.words;
	uint32_t slot = (uint32_t)masked_hash(state, mask, words) & (node->capacity - 1);

	while (
	    node->slots[slot] &&
	    !masked_equal(x->keys.at + (size_t)(node->slots[slot] - 1) * words, state, mask, words))
		slot = (slot + 1) & (node->capacity - 1);
	return &node->slots[slot];
}

const struct explore_entry *explore_find_entry(const struct explore *x,
					       const struct explore_table *table,
					       const uint64_t *state)
{
	const uint64_t number = table->field.width ? explore_get(state, &table->field) : 0;
	uint32_t found;

	if (number >= table->count || !table->nodes[number].used)
		return NULL;
	found =
	    *find_slot(x, &table->nodes[number], table->masks + number * x->layout.words, state);
	return found ? &x->entries.at[found - 1] : NULL;
}

/* Twice the slots. */
static int grow_node(struct explore *x, struct explore_node *node, const uint64_t *mask)
{
	struct explore_node wide = {
	    .capacity = node->capacity ? 2 * node->capacity : SLOTS_MIN,
	};

	if (wide.capacity > UINT32_MAX / 4)
		return -ENOMEM;
	wide.slots = calloc(wide.capacity, sizeof(*wide.slots));
	if (!wide.slots)
		return -ENOMEM;
	for (uint32_t i = 0; i < node->capacity; i++) {
		if (node->slots[i])
			*find_slot(x, &wide, mask,
				   x->keys.at + (size_t)(node->slots[i] - 1) * x->layout.words) =
			    node->slots[i];
	}
	free(node->slots);
	node->slots = wide.slots;
	node->capacity = wide.capacity;
	return 0;
}

int explore_add(struct explore *x, uint32_t table, const uint64_t *state,
		const uint64_t *differences, uint32_t outcomes, bool open, int32_t owner)
{
	const size_t words = x->layout.words;
	struct explore_table *t;
	const uint64_t *mask;
	struct explore_node *node;
	uint64_t number;
	uint32_t *slot;
	int rc;

	if (table > explore_watch_table(x) || owner >= (int32_t)x->layout.actors)
		return -EINVAL;
	t = &x->tables[table];
	number = t->field.width ? explore_get(state, &t->field) : 0;
	if (number >= t->count || !t->nodes[number].known)
		return -EINVAL;
	node = &t->nodes[number];
	mask = t->masks + number * words;
	if (2 * (node->used + 1) > node->capacity) {
		rc = grow_node(x, node, mask);
		if (rc)
			return rc;
	}
	slot = find_slot(x, node, mask, state);
	if (*slot)
		return -EINVAL;
	if (x->entries.count >= INT32_MAX || x->kinds.count + outcomes >= INT32_MAX)
		return -ENOMEM;
	if (EXPLORE_RESERVE(&x->entries, x->entries.count + 1) ||
	    EXPLORE_RESERVE(&x->keys, x->keys.count + words) ||
	    EXPLORE_RESERVE(&x->differences, x->differences.count + outcomes * words) ||
	    EXPLORE_RESERVE(&x->kinds, x->kinds.count + outcomes))
		return -ENOMEM;
	x->entries.at[x->entries.count++] = (struct explore_entry){
	    .first = (uint32_t)x->kinds.count,
	    .outcomes = outcomes,
	    .owner = owner,
	    .open = open,
	};
	for (size_t i = 0; i < words; i++)
		x->keys.at[x->keys.count++] = state[i] & mask[i];
	for (size_t i = 0; i < outcomes * words; i++)
		x->differences.at[x->differences.count++] = differences[i];
	for (size_t i = 0; i < outcomes; i++)
		x->kinds.at[x->kinds.count++] = EXPLORE_PLAIN;
	*slot = (uint32_t)x->entries.count;
	node->used++;
	return 0;
}

/* ---- states ---------------------------------------------------------------- */

void explore_clear(struct explore *x)
{
	explore_states_clear(&x->states);
	x->excluded = 0;
	x->events.count = x->told = 0;
}

uint32_t explore_count(const struct explore *x)
{
	return x->states.count;
}

const uint64_t *explore_state(const struct explore *x, uint32_t index)
{
	return index < x->states.count ? explore_at(&x->states, index) : NULL;
}

/* A state that may be new, and must not stand in the set. */
static int add_state(struct explore *x, const uint64_t *state, uint32_t *index)
{
	int rc;

	if (x->states.count == x->marks_room) {
		rc = explore_reserve(&x->marks, &x->marks_room, x->marks_room + 1,
				     sizeof(*x->marks));
		if (rc)
			return rc;
	}
	rc = explore_states_add(&x->states, state, index);
	if (rc == 1)
		x->marks[*index] = 0;
	return rc;
}

int explore_add_state(struct explore *x, const uint64_t *state)
{
	uint32_t index;

	return add_state(x, state, &index);
}

int explore_export(const struct explore *x, uint32_t begin, uint32_t end, uint8_t *to,
		   uint32_t bytes)
{
	const uint32_t words = x->layout.words;

	if (begin > end || end > x->states.count)
		return -EINVAL;
	for (uint32_t index = begin; index < end; index++) {
		const uint64_t *state = explore_at(&x->states, index);

		for (uint32_t i = 0; i < bytes; i++)
			*to++ = (uint8_t)(i / 8 < words ? state[i / 8] >> i % 8 * 8 : 0);
		for (uint32_t i = bytes; i < 8 * words; i++)
			if ((uint8_t)(state[i / 8] >> i % 8 * 8))
				return -EINVAL;
	}
	return 0;
}

int explore_import(struct explore *x, const uint8_t *from, uint32_t count, uint32_t bytes)
{
	const uint32_t words = x->layout.words;
	uint32_t index;
	int rc;

	for (; count; count--) {
		memset(x->target, 0, words * sizeof(*x->target));
		for (uint32_t i = 0; i < bytes; i++, from++) {
			if (i / 8 < words)
				x->target[i / 8] |= (uint64_t)*from << i % 8 * 8;
			else if (*from)
				return -EINVAL;
		}
		rc = add_state(x, x->target, &index);
		if (rc != 1)
			return rc ? rc : -EEXIST;
	}
	return 0;
}

/* Moves all bits of a state from `at` on up. */
static void insert_gap(uint64_t *state, uint32_t words, const struct explore_gap *gap)
{
	const uint32_t word = gap->at / 64, up = gap->bits / 64, bits = gap->bits % 64;
	const uint64_t below = (UINT64_C(1) << gap->at % 64) - 1;
	const uint64_t kept = state[word] & below;

	state[word] &= ~below;
	for (uint32_t i = words; i-- > word;) {
		const uint64_t high = i >= word + up ? state[i - up] : 0;
		const uint64_t low = i >= word + up + 1 ? state[i - up - 1] : 0;

		state[i] = bits ? high << bits | low >> (64 - bits) : high;
	}
	state[word] |= kept;
}

int explore_widen(struct explore *x, const struct explore *from, uint32_t end,
		  const struct explore_gap *gaps, uint32_t count)
{
	const uint32_t words = x->layout.words, less = from->layout.words;
	uint32_t index;
	int rc;

	if (less > words || end > from->states.count)
		return -EINVAL;
	for (uint32_t i = 0; i < count; i++)
		if (gaps[i].at >= 64 * words)
			return -EINVAL;
	for (uint32_t i = 0; i < end; i++) {
		memset(x->target, 0, words * sizeof(*x->target));
		memcpy(x->target, explore_at(&from->states, i), less * sizeof(*x->target));
		for (uint32_t gap = 0; gap < count; gap++)
			insert_gap(x->target, words, &gaps[gap]);
		rc = add_state(x, x->target, &index);
		if (rc != 1)
			return rc ? rc : -EINVAL;
	}
	return 0;
}

void explore_exclude(struct explore *x, uint32_t index, bool skip)
{
	if (index >= x->states.count)
		return;
	x->excluded += !(x->marks[index] & EXPLORE_EXCLUDED);
	x->marks[index] |= (uint8_t)(EXPLORE_EXCLUDED | (skip ? EXPLORE_SKIPPED : 0));
}

uint32_t explore_excluded(const struct explore *x)
{
	return x->excluded;
}

/* ---- steps ----------------------------------------------------------------- */

static int add_event(struct explore *x, enum explore_event_kind kind, uint32_t actor,
		     uint32_t state)
{
	if (x->told) {
		x->events.count = x->told = 0;
	}
	if (EXPLORE_RESERVE(&x->events, x->events.count + 1))
		return -ENOMEM;
	x->events.at[x->events.count++] =
	    (struct explore_event){.kind = kind, .actor = actor, .state = state};
	return 0;
}

uint32_t explore_events(struct explore *x, const struct explore_event **out)
{
	const uint32_t count = x->told ? 0 : (uint32_t)x->events.count;

	x->told = x->events.count;
	*out = x->events.at;
	return count;
}

/* Whether the state is one of those that wait for a step of time. */
static bool timer_runs(const struct explore *x, const uint64_t *state)
{
	return explore_get(state, &x->clock) != x->layout.clock_idle;
}

static void make_target(struct explore *x, const uint64_t *state, uint32_t outcome)
{
	const uint32_t words = x->layout.words;
	const uint64_t *difference = x->differences.at + (size_t)outcome * words;

	for (uint32_t i = 0; i < words; i++)
		x->target[i] = state[i] ^ difference[i];
}

void explore_make_target(struct explore *x, uint32_t index, const struct explore_choice *step)
{
	make_target(x, explore_at(&x->states, index), step->outcome);
	if (x->layout.one_cpu && step->actor >= 0) {
		const struct explore_field *field = &x->running;
		const uint64_t now = (uint64_t)(step->actor + 1);

		x->target[field->word] &= ~(field->mask << field->bit);
		x->target[field->word] |= now << field->bit;
		if (field->bit + field->width > 64) {
			x->target[field->word + 1] &= ~(field->mask >> (64 - field->bit));
			x->target[field->word + 1] |= now >> (64 - field->bit);
		}
	}
}

int explore_add_target(struct explore *x, uint32_t *index)
{
	return add_state(x, x->target, index);
}

/* Finds the entries of all actors, into x->found and x->owners. */
static int find_entries(struct explore *x, uint32_t index, struct explore_cursor *at)
{
	const uint64_t *state = explore_at(&x->states, index);

	for (uint32_t actor = 0; actor < x->layout.actors; actor++) {
		x->found[actor] = explore_find_entry(x, &x->tables[actor], state);
		if (!x->found[actor])
			return explore_missing(at, actor, index);
		x->owners[actor] = x->found[actor]->owner;
	}
	return EXPLORE_DONE;
}

bool explore_has_circle(struct explore *x)
{
	for (uint32_t actor = 0; actor < x->layout.actors; actor++) {
		int32_t follower = x->owners[actor];
		uint32_t hops = 0;

		while (follower >= 0 && (uint32_t)follower != actor && hops++ < x->layout.actors)
			follower = x->owners[follower];
		if (follower >= 0 && (uint32_t)follower == actor)
			return true;
	}
	return false;
}

int explore_steps(struct explore *x, uint32_t index, struct explore_cursor *at)
{
	const struct explore_layout *layout = &x->layout;
	const uint64_t *state = explore_at(&x->states, index);
	int32_t running = -1;
	bool relaxing = true;
	int rc = find_entries(x, index, at);

	if (rc)
		return rc;
	x->steps.count = 0;
	for (uint32_t actor = 0; actor < layout->actors; actor++) {
		const struct explore_entry *entry = x->found[actor];

		if (EXPLORE_RESERVE(&x->steps, x->steps.count + entry->outcomes + 1))
			return -ENOMEM;
		if (entry->outcomes &&
		    !(explore_node_of(&x->tables[actor], state)->flags & EXPLORE_RELAXES))
			relaxing = false;
		for (uint32_t choice = 0; choice < entry->outcomes; choice++)
			x->steps.at[x->steps.count++] = (struct explore_choice){
			    .actor = (int32_t)actor,
			    .choice = choice,
			    .outcome = entry->first + choice,
			};
	}
	if ((relaxing || layout->explore_time) && timer_runs(x, state)) {
		const uint32_t time = explore_time_table(x);
		const struct explore_entry *entry = explore_find_entry(x, &x->tables[time], state);

		if (!entry)
			return explore_missing(at, time, index);
		if (EXPLORE_RESERVE(&x->steps, x->steps.count + 1))
			return -ENOMEM;
		if (entry->outcomes)
			x->steps.at[x->steps.count++] =
			    (struct explore_choice){.actor = -1, .outcome = entry->first};
	}
	if (layout->one_cpu)
		running = (int32_t)explore_get(state, &x->running) - 1;
	if (running >= 0 && running < (int32_t)layout->actors && x->found[running]->outcomes &&
	    !(explore_node_of(&x->tables[running], state)->flags & EXPLORE_GIVES_WAY)) {
		size_t kept = 0;

		for (size_t i = 0; i < x->steps.count; i++)
			if (x->steps.at[i].actor == running)
				x->steps.at[kept++] = x->steps.at[i];
		x->steps.count = kept;
	}
	return EXPLORE_DONE;
}

/* ---- one layer ------------------------------------------------------------- */

/* Whether the actor has ended with an error in a state. */
static bool failed(const struct explore *x, uint32_t actor, uint32_t index)
{
	const struct explore_table *table = &x->tables[actor];
	const uint64_t *state = explore_at(&x->states, index);
	const uint64_t node = explore_get(state, &table->field);

	return node < table->count && table->nodes[node].flags & EXPLORE_FAILED;
}

/* Adds the target of a step, and tells of the error with which an actor has ended there. */
static int arrive(struct explore *x, int32_t actor)
{
	uint32_t index;
	const int rc = explore_add_target(x, &index);

	if (rc == 1 && actor >= 0 && failed(x, (uint32_t)actor, index))
		return add_event(x, EXPLORE_ERROR, (uint32_t)actor, index);
	return rc < 0 ? rc : 0;
}

/* What the caller must look at before the steps of an entry that is no plain one. */
static int look_at(struct explore *x, uint32_t actor, const struct explore_entry *entry,
		   struct explore_cursor *at)
{
	int rc;

	if (entry->owner >= 0) {
		rc = find_entries(x, at->next, at);
		if (!rc && explore_has_circle(x))
			rc = add_event(x, EXPLORE_CIRCLE, actor, at->next);
		if (rc)
			return rc;
	}
	return entry->open && entry->outcomes ? add_event(x, EXPLORE_OPEN, actor, at->next) : 0;
}

/* The steps of one actor. */
static int expand(struct explore *x, uint32_t actor, struct explore_cursor *at, uint32_t budget)
{
	const struct explore_table *table = &x->tables[actor];
	const struct explore_entry *entry;
	int rc;

	for (; at->next < at->end; at->next++) {
		const uint64_t *state = explore_at(&x->states, at->next);

		if (!budget--)
			return EXPLORE_MORE;
		if (x->marks[at->next] & EXPLORE_SKIPPED)
			continue;
		entry = explore_find_entry(x, table, state);
		if (!entry)
			return explore_missing(at, actor, at->next);
		if (entry->outcomes) {
			const bool relaxes = explore_node_of(table, state)->flags & EXPLORE_RELAXES;

			x->marks[at->next] |=
			    relaxes ? EXPLORE_MOVED : EXPLORE_MOVED | EXPLORE_BUSY;
		}
		rc = look_at(x, actor, entry, at);
		for (uint32_t i = 0; !rc && i < entry->outcomes; i++) {
			make_target(x, explore_at(&x->states, at->next), entry->first + i);
			rc = arrive(x, (int32_t)actor);
		}
		if (rc)
			return rc;
		at->transitions += entry->outcomes;
	}
	return EXPLORE_DONE;
}

/* Time's steps, and ends; after the steps of all actors. */
static int pass_time(struct explore *x, struct explore_cursor *at, uint32_t budget)
{
	const uint32_t time = explore_time_table(x);
	int rc;

	for (; at->next < at->end; at->next++) {
		const uint64_t *state = explore_at(&x->states, at->next);
		const uint8_t marks = x->marks[at->next];
		const struct explore_entry *entry;

		if (!budget--)
			return EXPLORE_MORE;
		if (marks & EXPLORE_SKIPPED)
			continue;
		if (timer_runs(x, state) && (!(marks & EXPLORE_BUSY) || x->layout.explore_time)) {
			entry = explore_find_entry(x, &x->tables[time], state);
			if (!entry)
				return explore_missing(at, time, at->next);
			if (entry->outcomes) {
				make_target(x, state, entry->first);
				rc = arrive(x, -1);
				if (rc)
					return rc;
				at->transitions++;
				continue;
			}
		}
		if (!(marks & EXPLORE_MOVED)) {
			rc = add_event(x, EXPLORE_END, 0, at->next);
			if (rc)
				return rc;
		}
	}
	return EXPLORE_DONE;
}

/* The steps of one state that explore_steps() has found. */
static int expand_all(struct explore *x, uint32_t from)
{
	int rc;

	if (explore_has_circle(x)) {
		rc = add_event(x, EXPLORE_CIRCLE, 0, from);
		if (rc)
			return rc;
	}
	if (!x->steps.count)
		return add_event(x, EXPLORE_END, 0, from);
	for (size_t i = 0; i < x->steps.count; i++) {
		explore_make_target(x, from, &x->steps.at[i]);
		rc = arrive(x, x->steps.at[i].actor);
		if (rc)
			return rc;
	}
	return 0;
}

/* All steps, by the rules of one processor. */
static int expand_one_cpu(struct explore *x, struct explore_cursor *at, uint32_t budget)
{
	int rc;

	for (; at->next < at->end; at->next++) {
		if (!budget--)
			return EXPLORE_MORE;
		if (x->marks[at->next] & EXPLORE_SKIPPED)
			continue;
		rc = explore_steps(x, at->next, at);
		if (!rc)
			rc = expand_all(x, at->next);
		if (rc)
			return rc;
		at->transitions += x->steps.count;
	}
	return EXPLORE_DONE;
}

int explore_check(struct explore *x, struct explore_cursor *at, uint32_t budget)
{
	const uint32_t watch = explore_watch_table(x);
	int rc;

	if (at->end > x->states.count)
		return -EINVAL;
	for (; at->next < at->end; at->next++) {
		const uint64_t *state = explore_at(&x->states, at->next);
		const struct explore_entry *entry;

		if (!budget--)
			return EXPLORE_MORE;
		entry = explore_find_entry(x, &x->tables[watch], state);
		if (!entry)
			return explore_missing(at, watch, at->next);
		if (entry->outcomes) {
			rc = add_event(x, EXPLORE_BROKEN, 0, at->next);
			if (rc)
				return rc;
		}
	}
	return EXPLORE_DONE;
}

int explore_layer(struct explore *x, struct explore_cursor *at, uint32_t budget)
{
	const uint32_t actors = x->layout.one_cpu ? 0 : x->layout.actors;
	/* Invariants, time, invariants; or all steps, invariants. */
	const uint32_t parts = x->layout.one_cpu ? 2 : actors + 3;
	int rc;

	if (at->end > x->states.count)
		return -EINVAL;
	if (at->part == 0 && at->next == at->begin) {
		at->layer_end = at->end;
		at->fresh = at->end;
	}
	while (at->part < parts) {
		if (x->layout.one_cpu)
			rc =
			    at->part ? explore_check(x, at, budget) : expand_one_cpu(x, at, budget);
		else if (at->part < actors)
			rc = expand(x, at->part, at, budget);
		else if (at->part == actors + 1)
			rc = pass_time(x, at, budget);
		else
			rc = explore_check(x, at, budget);
		if (rc)
			return rc;
		at->part++;
		if (!x->layout.one_cpu && (at->part < actors || at->part == actors + 1)) {
			at->next = at->begin;
			at->end = at->layer_end;
		} else {
			/* What has been found since invariants were last asked. */
			at->next = at->fresh;
			at->end = at->fresh = x->states.count;
		}
		if (x->events.count > x->told)
			return EXPLORE_EVENTS;
	}
	return EXPLORE_DONE;
}

int explore_fill(struct explore *x, uint32_t actor, struct explore_cursor *at, uint32_t budget)
{
	if (actor >= x->layout.actors || at->end > x->states.count)
		return -EINVAL;
	for (; at->next < at->end; at->next++) {
		if (!budget--)
			return EXPLORE_MORE;
		if (!explore_find_entry(x, &x->tables[actor], explore_at(&x->states, at->next)))
			return explore_missing(at, actor, at->next);
	}
	return EXPLORE_DONE;
}
