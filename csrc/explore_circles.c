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
	free(x->path.at);
	free(x->open.at);
	free(x->order);
	free(x->low);
	free(x->component);
	free(x->taking_part);
}

int explore_set_progress(struct explore *x, uint32_t actor, const uint64_t *state, uint32_t outcome)
{
	const struct explore_entry *entry;

	if (actor >= x->layout.actors)
		return -EINVAL;
	entry = explore_find_entry(x, &x->tables[actor], state);
	if (!entry || outcome >= entry->outcomes)
		return -ENOENT;
	x->kinds.at[entry->first + outcome] = EXPLORE_PROGRESS;
	return 0;
}

/* ---- which steps may be part of a circle ----------------------------------- */

/* What a step does to a field. */
struct change {
	uint32_t field;
	uint32_t before,
	    after; /* its values; from number_values() on those of all fields count on */
};

/* A step that may still be part of a circle. */
struct candidate {
	uint32_t outcome;
	size_t begin, end; /* its changes */
};

struct candidates {
	EXPLORE_LIST(struct candidate) steps;
	EXPLORE_LIST(struct change) changes;
	struct explore_field *fields;
	uint64_t *values; /* of each field: how many; then where they begin */
	uint32_t *to;     /* of each value: candidates that lead to it */
	uint32_t *from;   /* and away from it */
	uint64_t *target; /* where a step leads */
	uint32_t n;       /* fields */
};

/* Notes an outcome of an entry. */
static int add_candidate(const struct explore *x, struct candidates *c, const uint64_t *key,
			 uint32_t outcome)
{
	const uint32_t words = x->layout.words;
	const size_t begin = c->changes.count;

	for (uint32_t i = 0; i < words; i++)
		c->target[i] = key[i] ^ x->differences.at[(size_t)outcome * words + i];
	if (EXPLORE_RESERVE(&c->changes, begin + c->n) ||
	    EXPLORE_RESERVE(&c->steps, c->steps.count + 1))
		return -ENOMEM;
	for (uint32_t field = 0; field < c->n; field++) {
		const uint64_t before = explore_get(key, &c->fields[field]);
		const uint64_t after = explore_get(c->target, &c->fields[field]);
		const uint64_t most = before > after ? before : after;

		if (before == after)
			continue;
		if (most >= c->values[field])
			c->values[field] = most + 1;
		c->changes.at[c->changes.count++] = (struct change){
		    .field = field,
		    .before = (uint32_t)before,
		    .after = (uint32_t)after,
		};
	}
	c->steps.at[c->steps.count++] =
	    (struct candidate){.outcome = outcome, .begin = begin, .end = c->changes.count};
	return 0;
}

/* Notes all outcomes of all actors that are no progress. */
static int add_candidates(const struct explore *x, struct candidates *c)
{
	int rc = 0;

	for (uint32_t actor = 0; actor < x->layout.actors; actor++) {
		const struct explore_table *table = &x->tables[actor];

		for (uint32_t node = 0; node < table->count; node++) {
			const struct explore_node *n = &table->nodes[node];

			for (uint32_t slot = 0; n->used && slot < n->capacity; slot++) {
				const uint32_t number = n->slots[slot];
				const struct explore_entry *entry;

				if (!number)
					continue;
				entry = &x->entries.at[number - 1];
				for (uint32_t i = entry->first;
				     !rc && i < entry->first + entry->outcomes; i++)
					if (x->kinds.at[i] != EXPLORE_PROGRESS)
						rc = add_candidate(x, c,
								   x->keys.at +
								       (size_t)(number - 1) *
									   x->layout.words,
								   i);
			}
		}
	}
	return rc;
}

/* Gives the values of all fields numbers, and counts the steps to and from each. */
static int number_values(struct candidates *c)
{
	uint64_t total = 0;

	for (uint32_t field = 0; field < c->n; field++) {
		const uint64_t count = c->values[field];

		c->values[field] = total;
		total += count;
	}
	if (total > UINT32_MAX)
		return -ENOMEM;
	c->to = calloc(total + 1, sizeof(*c->to));
	c->from = calloc(total + 1, sizeof(*c->from));
	if (!c->to || !c->from)
		return -ENOMEM;
	for (size_t i = 0; i < c->changes.count; i++) {
		struct change *change = &c->changes.at[i];

		change->before += (uint32_t)c->values[change->field];
		change->after += (uint32_t)c->values[change->field];
		c->from[change->before]++;
		c->to[change->after]++;
	}
	return 0;
}

/* Whether one of the changes of a step comes from nowhere, or leads nowhere. */
static bool dangles(const struct candidates *c, const struct candidate *step)
{
	for (size_t i = step->begin; i < step->end; i++)
		if (!c->to[c->changes.at[i].before] || !c->from[c->changes.at[i].after])
			return true;
	return false;
}

/* Drops a step if it dangles. */
static bool drop(struct candidates *c, struct candidate *step)
{
	if (step->begin == step->end || !dangles(c, step))
		return false;
	for (size_t i = step->begin; i < step->end; i++) {
		c->from[c->changes.at[i].before]--;
		c->to[c->changes.at[i].after]--;
	}
	step->outcome = UINT32_MAX;
	step->end = step->begin;
	return true;
}

int explore_find_circular(struct explore *x, const uint32_t *shifts, const uint32_t *widths,
			  uint32_t n)
{
	struct candidates c = {.n = n};
	bool dropped = true;
	int rc;

	c.fields = calloc((size_t)n + 1, sizeof(*c.fields));
	c.values = calloc((size_t)n + 1, sizeof(*c.values));
	c.target = calloc(x->layout.words, sizeof(*c.target));
	rc = c.fields && c.values && c.target ? 0 : -ENOMEM;
	for (uint32_t i = 0; !rc && i < n; i++)
		rc = widths[i] > 32
			 ? -EINVAL
			 : explore_make_field(&c.fields[i], &x->layout, shifts[i], widths[i]);
	if (!rc)
		rc = add_candidates(x, &c);
	if (!rc)
		rc = number_values(&c);
	/* Both ways: chains dangle from their beginning and from their end. */
	while (!rc && dropped) {
		dropped = false;
		for (size_t i = 0; i < c.steps.count; i++)
			dropped |= drop(&c, &c.steps.at[i]);
		for (size_t i = c.steps.count; i-- > 0;)
			dropped |= drop(&c, &c.steps.at[i]);
	}
	for (size_t i = 0; !rc && i < c.steps.count; i++)
		if (c.steps.at[i].outcome != UINT32_MAX)
			x->kinds.at[c.steps.at[i].outcome] = EXPLORE_CIRCULAR;
	free(c.steps.at);
	free(c.changes.at);
	free(c.fields);
	free(c.values);
	free(c.to);
	free(c.from);
	free(c.target);
	return rc;
}

/* ---- the graph ------------------------------------------------------------- */

static bool in_graph(const struct explore *x, const struct explore_choice *step)
{
	return step->actor < 0 || x->kinds.at[step->outcome] == EXPLORE_CIRCULAR;
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

static int enter(struct explore *x, uint32_t state)
{
	if (EXPLORE_RESERVE(&x->path, x->path.count + 1) ||
	    EXPLORE_RESERVE(&x->open, x->open.count + 1))
		return -ENOMEM;
	x->path.at[x->path.count++] =
	    (struct explore_frame){.state = state, .edge = edges_begin(x, state)};
	x->open.at[x->open.count++] = state;
	x->order[state] = x->low[state] = ++x->met;
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
static int close_component(struct explore *x, uint32_t root)
{
	const bool noted = x->open.at[x->open.count - 1] != root || steps_to_itself(x, root);
	uint32_t state;

	if (noted)
		x->components++;
	do {
		state = x->open.at[--x->open.count];
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

/* Goes on from the state at the end of the path, which leads there from a root: one edge, or back. */
static int advance(struct explore *x)
{
	struct explore_frame *frame = &x->path.at[x->path.count - 1];
	const uint32_t state = frame->state;

	if (frame->edge < x->edges_end.at[state]) {
		const uint32_t target = x->edges.at[frame->edge++].state;

		if (x->taking_part[target] != x->runs)
			return 0;
		if (!x->order[target])
			return enter(x, target);
		if (x->low[target] != CLOSED && x->order[target] < x->low[state])
			x->low[state] = x->order[target];
		return 0;
	}
	x->path.count--;
	if (x->path.count) {
		const uint32_t parent = x->path.at[x->path.count - 1].state;

		if (x->low[state] < x->low[parent])
			x->low[parent] = x->low[state];
	}
	return x->low[state] == x->order[state] ? close_component(x, state) : 0;
}

/* Only these states take part, and none has been met. */
static int begin_components(struct explore *x, const uint32_t *states, uint32_t count)
{
	const int rc = make_room(x);

	if (rc)
		return rc;
	x->members.count = x->members_end.count = 0;
	x->path.count = x->open.count = 0;
	x->met = 0;
	x->runs++;
	for (uint32_t i = 0; i < count; i++) {
		const uint32_t state = states ? states[i] : i;

		if (state >= x->edges_end.count)
			return -EINVAL;
		x->taking_part[state] = x->runs;
		x->order[state] = 0;
	}
	return 0;
}

int explore_components(struct explore *x, const uint32_t *states, uint32_t n,
		       struct explore_cursor *at, uint32_t budget)
{
	const uint32_t count = states ? n : (uint32_t)x->edges_end.count;
	int rc = at->part ? 0 : begin_components(x, states, count);

	if (!rc)
		at->part = 1;
	while (!rc && (x->path.count || at->next < count)) {
		if (!budget--)
			return EXPLORE_MORE;
		if (x->path.count) {
			rc = advance(x);
		} else {
			const uint32_t root = states ? states[at->next] : at->next;

			at->next++;
			if (!x->order[root])
				rc = enter(x, root);
		}
	}
	return rc;
}

uint32_t explore_component_count(const struct explore *x)
{
	return (uint32_t)x->members_end.count;
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
