/* SPDX-License-Identifier: MIT */
/*
 * The parts of a search that explore.c (tables, layers), explore_paths.c (schedules) and
 * explore_circles.c (circles) share.
 */
#ifndef BALLOONVQ_EXPLORE_INTERNAL_H
#define BALLOONVQ_EXPLORE_INTERNAL_H

#include "explore.h"
#include "explore_states.h"

/* A growing array's pointer, items in it, and room. */
#define EXPLORE_LIST(type)                                                                         \
	struct {                                                                                   \
		type *at;                                                                          \
		size_t count, room;                                                                \
	}

/* Of a state. */
enum explore_state_mark {
	EXPLORE_MOVED = 1,       /* an actor's step leads on from it */
	EXPLORE_BUSY = 2,        /* and one that does not relax */
	EXPLORE_EXCLUDED = 4,    /* not counted, and on no circle */
	EXPLORE_SKIPPED = 8,     /* nothing is searched from it */
	EXPLORE_AHEAD = 16,      /* on the way to a goal */
	EXPLORE_WAS_JUDGED = 32, /* by the caller or, as fine, by ourselves */
	EXPLORE_IS_WRONG = 64,
	EXPLORE_IS_GOAL = 128
};

/* Of an outcome. */
enum explore_outcome_kind {
	EXPLORE_PLAIN = 0,
	EXPLORE_PROGRESS, /* on no circle that counts */
	EXPLORE_CIRCULAR  /* may be part of a circle */
};

/* A number inside a state; it may begin in one word and end in the next. */
struct explore_field {
	uint32_t word;  /* in which it begins */
	uint32_t bit;   /* at which bit of that */
	uint32_t width; /* bits, 1 .. 64 */
	uint64_t mask;  /* of the number */
};

static inline uint64_t explore_get(const uint64_t *state, const struct explore_field *field)
{
	uint64_t value = state[field->word] >> field->bit;

	if (field->bit + field->width > 64)
		value |= state[field->word + 1] << (64 - field->bit);
	return value & field->mask;
}

/* What an actor can do. */
struct explore_entry {
	uint32_t first;    /* outcome */
	uint32_t outcomes; /* how many */
	int32_t owner;     /* see explore_add() */
	bool open;
};

struct explore_node {
	uint32_t *slots;   /* entry + 1, 0 = free; at most half are in use */
	uint32_t capacity; /* slots, a power of two, or 0 */
	uint32_t used;
	uint32_t flags; /* enum explore_node_flag */
	bool known;     /* explore_set_node() was called */
};

/* Of an actor, of time or of the invariants. */
struct explore_table {
	struct explore_field field; /* its node; width 0: node 0 */
	struct explore_node *nodes;
	uint64_t *masks; /* of each node, `words` words */
	uint32_t count;  /* nodes */
};

/* A state with who ran last, on the search for a schedule. */
struct explore_place {
	uint32_t state;
	int32_t last;    /* actor, -1 before the first step */
	uint32_t before; /* place from which it is reached best */
	int32_t actor;   /* by whose step, and which outcome of it */
	uint32_t choice;
	uint32_t preemptions, steps; /* of the best way */
	bool done;                   /* steps from here were looked at */
};

/* A place to be looked at after so many steps. */
struct explore_due {
	uint32_t place, steps;
};

typedef EXPLORE_LIST(struct explore_due) explore_dues;

/* A step of the state that explore_steps() was asked about. */
struct explore_choice {
	int32_t actor;
	uint32_t choice;
	uint32_t outcome; /* its difference */
};

/* A state on the way from the root of a search for components, and the edge that it goes on with. */
struct explore_frame {
	size_t edge;
	uint32_t state;
};

struct explore {
	struct explore_layout layout;
	struct explore_field clock, running;
	struct explore_table *tables; /* of the actors, time, invariants */

	/* Entries of all tables. Those of a node that now depends on more stay unused. */
	EXPLORE_LIST(struct explore_entry) entries;
	EXPLORE_LIST(uint64_t) keys;        /* of each entry, `words` words: state & mask */
	EXPLORE_LIST(uint64_t) differences; /* of each outcome, `words` words */
	EXPLORE_LIST(uint8_t) kinds;        /* of each outcome, enum explore_outcome_kind */

	struct explore_states states;
	uint8_t *marks;                     /* of each state, enum explore_state_mark */
	size_t marks_room;                  /* states for which there are marks */
	uint32_t excluded;                  /* states that were taken out */
	uint64_t *target;                   /* a state that is being made */
	int32_t *owners;                    /* of each actor of a state, see explore_entry */
	const struct explore_entry **found; /* of each actor of a state */

	EXPLORE_LIST(struct explore_choice) steps; /* of explore_steps() */
	EXPLORE_LIST(struct explore_event) events;
	size_t told; /* events that the caller has got */

	/* Schedules. */
	EXPLORE_LIST(struct explore_place) places;
	uint32_t *place_slots; /* place + 1, 0 = free; at most half are in use */
	size_t place_capacity;
	uint32_t reached;     /* the place at the end of the schedule */
	size_t next_place;    /* explore_shortest(): that is looked at next */
	uint64_t places_done; /* explore_fewest() */
	uint32_t cost;        /* preemptions of the places that are looked at now */
	uint32_t depth;       /* and their steps */
	explore_dues carried; /* places that this many preemptions have just led to, by steps */
	explore_dues dearer;  /* places that one more leads to, by steps */
	explore_dues here;    /* places of this depth that steps without a preemption lead to */
	explore_dues deeper;  /* the same, one step further */
	size_t carried_at, here_at;

	/* Circles. */
	EXPLORE_LIST(struct explore_step) edges;
	EXPLORE_LIST(size_t) edges_end;   /* of each state: where its edges end */
	EXPLORE_LIST(uint32_t) members;   /* states of all components, one after the other */
	EXPLORE_LIST(size_t) members_end; /* of each component */
	uint32_t *order;                  /* Tarjan's numbers of each state; 0 = not met */
	uint32_t *low;
	uint32_t *
	    component; /* of each state the number of the component that it was last in; 0 = none */
	uint32_t *taking_part; /* of each state the last run that it took part in */
	size_t graph_room;     /* states for which there are the four above */
	uint32_t runs;         /* of explore_components() */
	uint32_t components;   /* numbers given so far */
	EXPLORE_LIST(struct explore_frame) path;
	EXPLORE_LIST(uint32_t) open; /* states whose component is not known yet */
	uint32_t met;                /* Tarjan's numbers given in this run */
};

/* Room for n items of `size` bytes where the pointer at `at` points; *room is how many there is
 * room for. 0, -ENOMEM (then nothing has changed). */
int explore_reserve(void *at, size_t *room, size_t n, size_t size);

#define EXPLORE_RESERVE(list, n)                                                                   \
	((n) <= (list)->room                                                                       \
	     ? 0                                                                                   \
	     : explore_reserve(&(list)->at, &(list)->room, (n), sizeof(*(list)->at)))

/* A field of a state. 0, -EINVAL. */
int explore_make_field(struct explore_field *field, const struct explore_layout *layout,
		       uint32_t shift, uint32_t width);

/* The entry of a table for a state; NULL if it is missing. */
const struct explore_entry *explore_find_entry(const struct explore *x,
					       const struct explore_table *table,
					       const uint64_t *state);

/* The node of a table in a state, which has one. */
static inline const struct explore_node *explore_node_of(const struct explore_table *table,
							 const uint64_t *state)
{
	return &table->nodes[table->field.width ? explore_get(state, &table->field) : 0];
}

/* All steps from a state, into x->steps. 0, EXPLORE_MISSING, -ENOMEM. */
int explore_steps(struct explore *x, uint32_t index, struct explore_cursor *at);

/* Whether actors wait for each other in a circle, by the entries that explore_steps() has found. */
bool explore_has_circle(struct explore *x);

/* The state that a step leads to, in x->target. */
void explore_make_target(struct explore *x, uint32_t index, const struct explore_choice *step);

/* Adds x->target to the states. 1 = new, 0 = known, -errno. */
int explore_add_target(struct explore *x, uint32_t *index);

/* EXPLORE_MISSING at this state. */
static inline int explore_missing(struct explore_cursor *at, uint32_t table, uint32_t index)
{
	at->table = table;
	at->state = index;
	return EXPLORE_MISSING;
}

void explore_paths_free(struct explore *x);
void explore_circles_free(struct explore *x);

#endif
