/* SPDX-License-Identifier: MIT */
/*
 * Circles: the steps that may be part of one, Tarjan's algorithm over them, and who moves inside.
 *
 * The graph is kept as one array of edges, those of state i at edges_end[i - 1] .. edges_end[i].
 */
#include "explore_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void explore_circles_free(struct explore *x)
{
	free(x->edges.at);
	free(x->edges_end.at);
	free(x->members.at);
	free(x->members_end.at);
	free(x->order);
	free(x->low);
	free(x->component);
	free(x->taking_part);
}

int explore_set_circular(struct explore *x, uint32_t actor, const uint64_t *state, uint32_t outcome)
{
	const struct explore_entry *entry;

	if (actor >= x->layout.actors)
		return -EINVAL;
	entry = explore_find_entry(x, &x->tables[actor], state);
	if (!entry || outcome >= entry->outcomes)
		return -ENOENT;
	x->circular.at[entry->first + outcome] = 1;
	return 0;
}

static bool in_graph(const struct explore *x, const struct explore_choice *step)
{
	return step->actor < 0 || x->circular.at[step->outcome];
}

int explore_graph(struct explore *x, struct explore_cursor *at, uint32_t budget)
{
	int rc;

	if (!at->next)
		x->edges.count = x->edges_end.count = 0;
	if (at->end > x->states.count || at->next != x->edges_end.count)
		return -EINVAL;
	for (; at->next < at->end; at->next++) {
		if (!budget--)
			return EXPLORE_MORE;
		if (EXPLORE_RESERVE(&x->edges_end, x->edges_end.count + 1))
			return -ENOMEM;
		x->steps.count = 0;
		if (!(x->marks[at->next] & EXPLORE_EXCLUDED)) {
			rc = explore_steps(x, at->next, at);
			if (rc)
				return rc;
		}
		for (size_t i = 0; i < x->steps.count; i++) {
			const struct explore_choice step = x->steps.at[i];
			int64_t target;

			if (!in_graph(x, &step))
				continue;
			explore_make_target(x, at->next, &step);
			target = explore_states_find(&x->states, x->target);
			if (target < 0 || x->marks[target] & EXPLORE_EXCLUDED)
				continue;
			if (EXPLORE_RESERVE(&x->edges, x->edges.count + 1))
				return -ENOMEM;
			x->edges.at[x->edges.count++] = (struct explore_step){
			    .state = (uint32_t)target,
			    .actor = step.actor,
			    .choice = step.choice,
			};
		}
		x->edges_end.at[x->edges_end.count++] = x->edges.count;
	}
	return EXPLORE_DONE;
}

static size_t edges_begin(const struct explore *x, uint32_t state)
{
	return state ? x->edges_end.at[state - 1] : 0;
}

uint32_t explore_circular_steps(const struct explore *x, uint32_t index,
				const struct explore_step **out)
{
	if (index >= x->edges_end.count)
		return 0;
	*out = x->edges.at + edges_begin(x, index);
	return (uint32_t)(x->edges_end.at[index] - edges_begin(x, index));
}

/* ---- Tarjan ---------------------------------------------------------------- */

/* A state on the way from the root, and the edge that it goes on with. */
struct frame {
	size_t edge;
	uint32_t state;
};

struct tarjan {
	EXPLORE_LIST(struct frame) path;
	EXPLORE_LIST(uint32_t) open; /* states whose component is not known yet */
	uint32_t met;                /* numbers given */
};

#define CLOSED UINT32_MAX /* of `low`: the component is known */

/* Room for Tarjan's numbers of each state. */
static int make_room(struct explore *x)
{
	uint32_t **const arrays[] = {&x->order, &x->low, &x->component, &x->taking_part};
	const size_t n = x->edges_end.count;

	if (n <= x->graph_room)
		return 0;
	for (size_t i = 0; i < sizeof(arrays) / sizeof(arrays[0]); i++) {
		uint32_t *array = calloc(n, sizeof(*array));

		if (!array)
			return -ENOMEM;
		free(*arrays[i]);
		*arrays[i] = array;
	}
	x->graph_room = n;
	x->runs = x->components = 0;
	return 0;
}

static int enter(struct explore *x, struct tarjan *t, uint32_t state)
{
	if (EXPLORE_RESERVE(&t->path, t->path.count + 1) ||
	    EXPLORE_RESERVE(&t->open, t->open.count + 1))
		return -ENOMEM;
	t->path.at[t->path.count++] = (struct frame){.state = state, .edge = edges_begin(x, state)};
	t->open.at[t->open.count++] = state;
	x->order[state] = x->low[state] = ++t->met;
	return 0;
}

/* Whether a state has a step to itself. */
static bool steps_to_itself(const struct explore *x, uint32_t state)
{
	for (size_t i = edges_begin(x, state); i < x->edges_end.at[state]; i++)
		if (x->edges.at[i].state == state)
			return true;
	return false;
}

/* Takes the component of a state, its root, off the open ones, and notes it if it has a step. */
static int close_component(struct explore *x, struct tarjan *t, uint32_t root)
{
	const bool noted = t->open.at[t->open.count - 1] != root || steps_to_itself(x, root);
	uint32_t state;

	if (noted)
		x->components++;
	do {
		state = t->open.at[--t->open.count];
		x->low[state] = CLOSED;
		x->component[state] = noted ? x->components : 0;
		if (noted) {
			if (EXPLORE_RESERVE(&x->members, x->members.count + 1))
				return -ENOMEM;
			x->members.at[x->members.count++] = state;
		}
	} while (state != root);
	if (noted) {
		if (EXPLORE_RESERVE(&x->members_end, x->members_end.count + 1))
			return -ENOMEM;
		x->members_end.at[x->members_end.count++] = x->members.count;
	}
	return 0;
}

/* All components that the root leads to and that are not known yet. */
static int search(struct explore *x, struct tarjan *t, uint32_t root)
{
	int rc = enter(x, t, root);

	while (!rc && t->path.count) {
		struct frame *frame = &t->path.at[t->path.count - 1];
		const uint32_t state = frame->state;

		if (frame->edge < x->edges_end.at[state]) {
			const uint32_t target = x->edges.at[frame->edge++].state;

			if (x->taking_part[target] != x->runs)
				continue;
			if (!x->order[target])
				rc = enter(x, t, target);
			else if (x->low[target] != CLOSED && x->order[target] < x->low[state])
				x->low[state] = x->order[target];
			continue;
		}
		t->path.count--;
		if (t->path.count) {
			const uint32_t parent = t->path.at[t->path.count - 1].state;

			if (x->low[state] < x->low[parent])
				x->low[parent] = x->low[state];
		}
		if (x->low[state] == x->order[state])
			rc = close_component(x, t, state);
	}
	return rc;
}

int64_t explore_components(struct explore *x, const uint32_t *states, uint32_t n)
{
	struct tarjan t = {0};
	const uint32_t count = states ? n : (uint32_t)x->edges_end.count;
	int rc = make_room(x);

	if (rc)
		return rc;
	x->members.count = x->members_end.count = 0;
	x->runs++;
	for (uint32_t i = 0; i < count; i++) {
		const uint32_t state = states ? states[i] : i;

		if (state >= x->edges_end.count)
			return -EINVAL;
		x->taking_part[state] = x->runs;
		x->order[state] = 0;
	}
	for (uint32_t i = 0; !rc && i < count; i++) {
		const uint32_t state = states ? states[i] : i;

		if (!x->order[state])
			rc = search(x, &t, state);
	}
	free(t.path.at);
	free(t.open.at);
	return rc ? rc : (int64_t)x->members_end.count;
}

uint32_t explore_component(const struct explore *x, uint32_t number, const uint32_t **states)
{
	const size_t begin = number ? x->members_end.at[number - 1] : 0;

	*states = x->members.at + begin;
	return (uint32_t)(x->members_end.at[number] - begin);
}

/* ---- fairness -------------------------------------------------------------- */

static uint64_t bit_of(const struct explore *x, int32_t actor)
{
	return UINT64_C(1) << (actor < 0 ? x->layout.actors : (uint32_t)actor);
}

int explore_fairness(struct explore *x, const uint32_t *states, uint64_t *able, uint64_t *moved,
		     struct explore_cursor *at, uint32_t budget)
{
	for (; at->next < at->end; at->next++) {
		const uint32_t state = states[at->next];
		int rc;

		if (!budget--)
			return EXPLORE_MORE;
		if (state >= x->edges_end.count)
			return -EINVAL;
		rc = explore_steps(x, state, at);
		if (rc)
			return rc;
		able[at->next] = 0;
		for (size_t i = 0; i < x->steps.count; i++)
			able[at->next] |= bit_of(x, x->steps.at[i].actor);
		for (size_t i = edges_begin(x, state); i < x->edges_end.at[state]; i++) {
			const struct explore_step *step = &x->edges.at[i];

			if (x->component[step->state] == x->component[state])
				*moved |= bit_of(x, step->actor);
		}
	}
	return EXPLORE_DONE;
}
