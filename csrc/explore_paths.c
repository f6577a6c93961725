/* SPDX-License-Identifier: MIT */
/*
 * Schedules: the shortest one, and the one that preempts least.
 *
 * Both search places: a state with who ran last. A preemption is a step of another actor while
 * the one that ran last could go on and was not about to give way; time's steps are none, and on
 * one processor there are none.
 *
 * Which of several best ways is taken depends on the order of actors and outcomes alone, and not on the
 * indices of states: places are looked at in the order in which they were met, and a way replaces
 * another one only if it is better.
 */
#include "explore_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS_MIN  256u
#define LOOK_EVERY 256u /* places from one look at the limit to the next */

void explore_paths_free(struct explore *x)
{
	free(x->places.at);
	free(x->place_slots);
	free(x->carried.at);
	free(x->dearer.at);
	free(x->here.at);
	free(x->deeper.at);
}

int explore_mark(struct explore *x, uint32_t index)
{
	if (index >= x->states.count)
		return -EINVAL;
	x->marks[index] |= EXPLORE_AHEAD;
	return 0;
}

void explore_unmark(struct explore *x)
{
	for (uint32_t i = 0; i < x->states.count; i++)
		x->marks[i] &= (uint8_t)~EXPLORE_AHEAD;
}

/* The index of the state that a step leads to, or -1. */
static int64_t target_of(struct explore *x, uint32_t index, const struct explore_choice *step)
{
	explore_make_target(x, index, step);
	return explore_states_find(&x->states, x->target);
}

int explore_mark_before(struct explore *x, struct explore_cursor *at, uint32_t budget)
{
	int rc;

	if (at->end > x->states.count)
		return -EINVAL;
	for (; at->next < at->end; at->next++) {
		if (!budget--)
			return EXPLORE_MORE;
		if (x->marks[at->next] & EXPLORE_SKIPPED)
			continue;
		rc = explore_steps(x, at->next, at);
		if (rc)
			return rc;
		for (size_t i = 0; i < x->steps.count; i++) {
			const int64_t target = target_of(x, at->next, &x->steps.at[i]);

			if (target >= at->end && x->marks[target] & EXPLORE_AHEAD) {
				x->marks[at->next] |= EXPLORE_AHEAD;
				break;
			}
		}
	}
	return EXPLORE_DONE;
}

/* ---- places ---------------------------------------------------------------- */

static uint32_t *place_slot(const struct explore *x, uint32_t state, int32_t last)
{
	const uint64_t key = (uint64_t)state << 32 | (uint32_t)last;
	size_t slot = explore_hash(&key, 1) & (x->place_capacity - 1);

	while (x->place_slots[slot]) {
		const struct explore_place *place = &x->places.at[x->place_slots[slot] - 1];

		if (place->state == state && place->last == last)
			break;
		slot = (slot + 1) & (x->place_capacity - 1);
	}
	return &x->place_slots[slot];
}

static int grow_slots(struct explore *x)
{
	const size_t capacity = x->place_capacity ? 2 * x->place_capacity : SLOTS_MIN;
	uint32_t *slots = calloc(capacity, sizeof(*slots));

	if (!slots)
		return -ENOMEM;
	free(x->place_slots);
	x->place_slots = slots;
	x->place_capacity = capacity;
	for (size_t i = 0; i < x->places.count; i++)
		*place_slot(x, x->places.at[i].state, x->places.at[i].last) = (uint32_t)i + 1;
	return 0;
}

/* The place of this state and actor, a new one without a way to it if there is none. 1 = new, 0, -errno. */
static int find_place(struct explore *x, uint32_t state, int32_t last, uint32_t *out)
{
	uint32_t *slot;

	if (2 * (x->places.count + 1) > x->place_capacity && grow_slots(x))
		return -ENOMEM;
	slot = place_slot(x, state, last);
	if (*slot) {
		*out = *slot - 1;
		return 0;
	}
	if (x->places.count >= UINT32_MAX - 1 || EXPLORE_RESERVE(&x->places, x->places.count + 1))
		return -ENOMEM;
	x->places.at[x->places.count] = (struct explore_place){.state = state, .last = last};
	*out = (uint32_t)x->places.count++;
	*slot = *out + 1;
	return 1;
}

static int add_due(explore_dues *dues, uint32_t place, uint32_t steps)
{
	if (EXPLORE_RESERVE(dues, dues->count + 1))
		return -ENOMEM;
	dues->at[dues->count++] = (struct explore_due){.place = place, .steps = steps};
	return 0;
}

int explore_begin_schedule(struct explore *x)
{
	for (uint32_t i = 0; i < x->states.count; i++)
		x->marks[i] &= (uint8_t)~(EXPLORE_WAS_JUDGED | EXPLORE_IS_WRONG | EXPLORE_IS_GOAL);
	x->places.count = 0;
	if (x->place_slots)
		memset(x->place_slots, 0, x->place_capacity * sizeof(*x->place_slots));
	x->next_place = 0;
	x->places_done = 0;
	x->cost = x->depth = 0;
	x->carried.count = x->dearer.count = x->here.count = x->deeper.count = 0;
	x->carried_at = x->here_at = 0;
	if (!x->states.count)
		return -EINVAL;
	/* The first state, and nobody ran. */
	if (find_place(x, 0, -1, &x->reached) < 0)
		return -ENOMEM;
	return add_due(&x->here, 0, 0);
}

/* Whether a step of another actor than the last one preempts it, where explore_steps() was asked. */
static bool preempts(const struct explore *x, const struct explore_place *place)
{
	if (x->layout.one_cpu || place->last < 0 || !x->found[place->last]->outcomes)
		return false;
	return !(
	    explore_node_of(&x->tables[place->last], explore_at(&x->states, place->state))->flags &
	    EXPLORE_GIVES_WAY);
}

/*
 * The place that a step from the place `from` leads to, if this way is better than what is known.
 * 1 = it is, with *out the place, 0, -ENOMEM.
 */
static int take_step(struct explore *x, uint32_t from, const struct explore_choice *step,
		     uint32_t target, bool preempting, uint32_t *out)
{
	const int32_t last = step->actor < 0 ? x->places.at[from].last : step->actor;
	const bool costs = preempting && step->actor >= 0 && step->actor != x->places.at[from].last;
	const uint32_t preemptions = x->places.at[from].preemptions + costs;
	const uint32_t steps = x->places.at[from].steps + 1;
	struct explore_place *place;
	const int rc = find_place(x, target, last, out);

	if (rc < 0)
		return rc;
	place = &x->places.at[*out];
	/* The first place has no step to it, and none is better. */
	if (rc == 0 && (preemptions > place->preemptions ||
			(preemptions == place->preemptions && steps >= place->steps)))
		return 0;
	place->before = from;
	place->actor = step->actor;
	place->choice = step->choice;
	place->preemptions = preemptions;
	place->steps = steps;
	return 1;
}

uint32_t explore_schedule(const struct explore *x, struct explore_step *steps, uint32_t max,
			  uint32_t *preemptions)
{
	const struct explore_place *place = &x->places.at[x->reached];
	const uint32_t count = place->steps;

	*preemptions = place->preemptions;
	for (uint32_t i = count; i-- > 0 && count <= max; place = &x->places.at[place->before])
		steps[i] = (struct explore_step){
		    .state = place->state,
		    .actor = place->actor,
		    .choice = place->choice,
		};
	return count;
}

/* ---- the shortest ---------------------------------------------------------- */

int explore_shortest(struct explore *x, const uint32_t *ends, uint32_t layers,
		     struct explore_cursor *at, uint32_t budget)
{
	uint32_t found;
	int rc;

	for (; x->next_place < x->places.count; x->next_place++) {
		const uint32_t from = (uint32_t)x->next_place;
		const uint32_t state = x->places.at[from].state, depth = x->places.at[from].steps;
		bool preempting;

		if (!budget--)
			return EXPLORE_MORE;
		if (depth + 1 >= layers) {
			if (!x->depth ||
			    x->places.at[from].preemptions < x->places.at[x->reached].preemptions)
				x->reached = from;
			x->depth = depth + 1;
			continue;
		}
		rc = explore_steps(x, state, at);
		if (rc)
			return rc;
		preempting = preempts(x, &x->places.at[from]);
		for (size_t i = 0; i < x->steps.count; i++) {
			const int64_t target = target_of(x, state, &x->steps.at[i]);

			if (target < ends[depth] || target >= ends[depth + 1] ||
			    !(x->marks[target] & EXPLORE_AHEAD))
				continue;
			rc = take_step(x, from, &x->steps.at[i], (uint32_t)target, preempting,
				       &found);
			if (rc < 0)
				return rc;
		}
	}
	return x->depth ? EXPLORE_DONE : EXPLORE_NONE;
}

/* ---- the fewest preemptions ------------------------------------------------ */

static void swap(explore_dues *a, explore_dues *b)
{
	const explore_dues kept = *a;

	*a = *b;
	*b = kept;
}

/*
 * The place to be looked at next, in order of preemptions, then steps, then as they were met: at each
 * depth first those that a preemption led to, from the round before. False if there is none.
 */
static bool next_due(struct explore *x, uint32_t *place)
{
	for (;;) {
		if (x->carried_at < x->carried.count &&
		    x->carried.at[x->carried_at].steps == x->depth) {
			*place = x->carried.at[x->carried_at].place;
			return true;
		}
		if (x->here_at < x->here.count) {
			*place = x->here.at[x->here_at].place;
			return true;
		}
		x->here.count = x->here_at = 0;
		if (x->deeper.count) {
			swap(&x->here, &x->deeper);
			x->depth++;
		} else if (x->carried_at < x->carried.count) {
			x->depth = x->carried.at[x->carried_at].steps;
		} else if (x->dearer.count) {
			swap(&x->carried, &x->dearer);
			x->dearer.count = x->carried_at = 0;
			x->cost++;
			x->depth = x->carried.at[0].steps;
		} else {
			return false;
		}
	}
}

/* The place of next_due() has been looked at. */
static void end_due(struct explore *x)
{
	if (x->carried_at < x->carried.count && x->carried.at[x->carried_at].steps == x->depth)
		x->carried_at++;
	else
		x->here_at++;
}

/* Whether the caller must be asked about a state: 0, EXPLORE_JUDGE, EXPLORE_MISSING, -errno. */
static int doubtful(struct explore *x, uint32_t index, struct explore_cursor *at)
{
	const uint64_t *state = explore_at(&x->states, index);
	const uint32_t watch = explore_watch_table(x);
	const struct explore_entry *entry = explore_find_entry(x, &x->tables[watch], state);
	bool doubt;
	int rc;

	if (!entry)
		return explore_missing(at, watch, index);
	rc = explore_steps(x, index, at);
	if (rc)
		return rc;
	doubt = entry->outcomes || !x->steps.count || explore_has_circle(x);
	for (uint32_t actor = 0; actor < x->layout.actors; actor++)
		doubt |= explore_node_of(&x->tables[actor], state)->flags &
			 (EXPLORE_UNGUARDED | EXPLORE_FAILED);
	at->state = index;
	return doubt ? EXPLORE_JUDGE : 0;
}

/* Looks at all steps from a place. */
static int take_steps(struct explore *x, uint32_t from, struct explore_cursor *at)
{
	const uint32_t state = x->places.at[from].state;
	uint32_t target, found;
	bool preempting;
	int rc = explore_steps(x, state, at);

	if (rc)
		return rc;
	preempting = preempts(x, &x->places.at[from]);
	for (size_t i = 0; i < x->steps.count; i++) {
		explore_make_target(x, state, &x->steps.at[i]);
		rc = explore_add_target(x, &target);
		if (rc >= 0)
			rc = take_step(x, from, &x->steps.at[i], target, preempting, &found);
		if (rc == 1) {
			const struct explore_place *place = &x->places.at[found];

			rc = add_due(place->preemptions > x->cost ? &x->dearer : &x->deeper, found,
				     place->steps);
		}
		if (rc < 0)
			return rc;
	}
	return 0;
}

int explore_fewest(struct explore *x, uint64_t limit, struct explore_cursor *at, uint32_t budget)
{
	uint32_t place;
	int rc;

	for (; next_due(x, &place); end_due(x)) {
		const uint32_t state = x->places.at[place].state;

		if (!budget--)
			return EXPLORE_MORE;
		if (x->places.at[place].done)
			continue;
		if (!(x->marks[state] & EXPLORE_WAS_JUDGED)) {
			rc = doubtful(x, state, at);
			if (rc)
				return rc;
			x->marks[state] |= EXPLORE_WAS_JUDGED;
		}
		if (x->marks[state] & EXPLORE_IS_GOAL) {
			x->reached = place;
			return EXPLORE_DONE;
		}
		if (!(x->marks[state] & EXPLORE_IS_WRONG)) {
			rc = take_steps(x, place, at);
			if (rc)
				return rc;
		}
		x->places.at[place].done = true;
		x->places_done++;
		if (x->places_done % LOOK_EVERY == 0 && x->places_done > limit)
			return EXPLORE_NONE;
	}
	return EXPLORE_NONE;
}

int explore_judged(struct explore *x, uint32_t index, enum explore_judgement judgement)
{
	if (index >= x->states.count)
		return -EINVAL;
	x->marks[index] |= EXPLORE_WAS_JUDGED;
	if (judgement == EXPLORE_GOAL)
		x->marks[index] |= EXPLORE_IS_GOAL;
	else if (judgement == EXPLORE_WRONG)
		x->marks[index] |= EXPLORE_IS_WRONG;
	return 0;
}
