/* SPDX-License-Identifier: MIT */
/*
 * The inner loops of the product search (vq/balloonvq/explore/search.py and liveness.py).
 *
 * A state is a row of bit fields: of each actor the number of its local state (its node), of
 * each object the number of its value. What an actor does next depends on its node and on a few
 * fields, the node's mask, so a table
 *
 *   state & mask  ->  outcomes, each a difference: next state = state ^ difference
 *
 * soon holds all that it can do. Two more tables work alike: EXPLORE_TIME's step, and what
 * EXPLORE_WATCH, the invariants of every state, say. Tables are filled on demand: where an entry is missing, a call
 * comes back with EXPLORE_MISSING, the caller adds it with explore_add() and calls again with
 * the same cursor. So nothing is known here of operations and values, and all that is slow
 * and rare stays with the caller.
 *
 * Nothing runs for long without coming back: EXPLORE_MORE after `budget` states, go on by calling again.
 *
 * Marks: states are known by their index, in order of discovery, so a layer of the search is a
 * range of indices; the caller knows where each ends.
 *
 * Functions that return int return -ENOMEM when memory ends, and -EINVAL for numbers that cannot be.
 *
 * Threads: one at a time.
 */
#ifndef BALLOONVQ_EXPLORE_H
#define BALLOONVQ_EXPLORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct explore; /* opaque */

#define EXPLORE_ACTORS_MAX 62u /* a set of actors and time is one word */
#define EXPLORE_WORDS_MAX  65536u

/* How a call ended, if not with -errno. */
enum explore_result {
	EXPLORE_DONE = 0,
	EXPLORE_MORE,    /* the budget is used up */
	EXPLORE_MISSING, /* cursor: an entry of that table is missing for that state */
	EXPLORE_JUDGE,   /* cursor: is something wrong with that state? see explore_judged() */
	EXPLORE_NONE,    /* there is none, or not within the limit */
	EXPLORE_EVENTS   /* something was met */
};

/* Of a node. */
enum explore_node_flag {
	EXPLORE_RELAXES = 1,   /* about to spin: time may pass */
	EXPLORE_GIVES_WAY = 2, /* leaves the processor here although it could go on, or has ended */
	EXPLORE_UNGUARDED = 4, /* about to touch guarded data without the guard */
	EXPLORE_FAILED = 8     /* ended with an error */
};

/* What was met that the caller has to look at. */
enum explore_event_kind {
	EXPLORE_CIRCLE = 0, /* actors of this state wait for each other's mutexes in a circle */
	EXPLORE_OPEN,       /* the actor is about to touch guarded data without the guard */
	EXPLORE_ERROR,      /* the step of the actor to this state ended it with an error */
	EXPLORE_END,        /* no step leads on */
	EXPLORE_BROKEN      /* an invariant does not hold */
};

struct explore_event {
	uint32_t kind;  /* enum explore_event_kind */
	uint32_t actor; /* of EXPLORE_OPEN and EXPLORE_ERROR */
	uint32_t state; /* index */
};

/* Where things are in a state; bits are counted from the least significant one. */
struct explore_layout {
	uint32_t words;       /* of a state */
	uint32_t actors;      /* at most EXPLORE_ACTORS_MAX */
	uint32_t clock_shift; /* first bit of the clock's field */
	uint32_t clock_width; /* and its bits, 1 .. 64 */
	uint64_t clock_idle;  /* the clock's number when no timer runs */
	uint32_t top;    /* one_cpu: first bit of who runs, the actor + 1 or 0; the highest field */
	uint8_t one_cpu; /* actors change only where the running one blocks or gives way */
	uint8_t explore_time; /* time passes while actors could still run */
};

/* How far a call is; `next` is set by the caller before the first one. */
struct explore_cursor {
	uint32_t next;      /* index of the state that it goes on with */
	uint32_t end;       /* and of the first one that is none of its business */
	uint32_t begin;     /* explore_layer(): where the layer begins; `next` of the first call */
	uint32_t layer_end; /* and where it ends */
	uint32_t part;      /* of explore_layer() or explore_components(); 0 in the first call */
	uint32_t fresh;     /* explore_layer(): the first state that no invariant was asked about */
	uint32_t table;     /* EXPLORE_MISSING: which */
	uint32_t state;     /* EXPLORE_MISSING, EXPLORE_JUDGE: index */
	uint64_t transitions; /* steps seen so far are added */
};

/* A step, time's with actor -1 and choice 0. */
struct explore_step {
	uint32_t state;  /* index of the state to which it leads, UINT32_MAX if that is not known */
	int32_t actor;   /* whose */
	uint32_t choice; /* number of the outcome */
};

/* More bits for a field: `bits` of them before bit `at`, of the fields as they were. */
struct explore_gap {
	uint32_t at, bits;
};

/* ---- tables ---------------------------------------------------------------- */

/* shifts, widths: of the actors' fields, 1 .. 32 bits wide. 0, -EINVAL, -ENOMEM. */
int explore_create(const struct explore_layout *layout, const uint32_t *shifts,
		   const uint32_t *widths, struct explore **out);
void explore_destroy(struct explore *x);

/* Numbers of the tables that are not an actor's. */
uint32_t explore_time_table(const struct explore *x);
uint32_t explore_watch_table(const struct explore *x);

/*
 * What the next step of a node depends on, and its flags (enum explore_node_flag). Its entries are
 * gone if it depended on something else before. The tables of time and of invariants have one
 * node, 0. 0, -EINVAL, -ENOMEM.
 */
int explore_set_node(struct explore *x, uint32_t table, uint32_t node, const uint64_t *mask,
		     uint32_t flags);

/*
 * Adds the entry for this state, which must be missing: `outcomes` differences of `words` words
 * each, none if the actor is blocked. open: its step touches guarded data without the guard.
 * owner: who has the mutex that it is blocked on while it holds another one, or -1. Of the
 * invariants, an outcome says that one is broken. 0, -EINVAL, -ENOMEM.
 */
int explore_add(struct explore *x, uint32_t table, const uint64_t *state,
		const uint64_t *differences, uint32_t outcomes, bool open, int32_t owner);

/* ---- states ---------------------------------------------------------------- */

/* Forgets all states. */
void explore_clear(struct explore *x);

uint32_t explore_count(const struct explore *x);

/* The words of a state; valid until the next call that adds one. NULL if there is none. */
const uint64_t *explore_state(const struct explore *x, uint32_t index);

/* Adds one; 1 = new, 0 = known, -ENOMEM, -EOVERFLOW. */
int explore_add_state(struct explore *x, const uint64_t *state);

/* States [begin, end) as bytes, `bytes` each, the least significant first; and such bytes as
 * states at the end. 0, -EINVAL (too many bits, or no such states), -EEXIST (one twice), -ENOMEM. */
int explore_export(const struct explore *x, uint32_t begin, uint32_t end, uint8_t *to,
		   uint32_t bytes);
int explore_import(struct explore *x, const uint8_t *from, uint32_t count, uint32_t bytes);

/* Adds the first `end` states of another search, whose fields were narrower; gaps from the top
 * down. 0, -EINVAL, -ENOMEM. */
int explore_widen(struct explore *x, const struct explore *from, uint32_t end,
		  const struct explore_gap *gaps, uint32_t count);

/* Takes a state out of what was found; it stays known. skip: nothing is searched from it. */
void explore_exclude(struct explore *x, uint32_t index, bool skip);

/* States that were taken out. */
uint32_t explore_excluded(const struct explore *x);

/* ---- one layer of the search ----------------------------------------------- */

/*
 * All steps from the states of the cursor, a layer, and what is wrong with them and with the states that they
 * lead to. In this order, so that what one actor does wrong is known before the next one's steps are asked for:
 * the steps of each actor; the invariants about what they lead to; time's steps, and ends; the
 * invariants about what those lead to. On one processor: all steps, then the invariants.
 *
 * EXPLORE_EVENTS: one of these parts has ended, and something was met in it; see explore_events().
 */
int explore_layer(struct explore *x, struct explore_cursor *at, uint32_t budget);

/* Asks the invariants about states. */
int explore_check(struct explore *x, struct explore_cursor *at, uint32_t budget);

/* Makes sure that the entries of one actor are there for them. */
int explore_fill(struct explore *x, uint32_t actor, struct explore_cursor *at, uint32_t budget);

/* What was met since this was last asked; valid until the next call. */
uint32_t explore_events(struct explore *x, const struct explore_event **out);

/* ---- schedules ------------------------------------------------------------- */

/* Marks a state as one to go to; explore_unmark() takes all marks off. -EINVAL if there is none. */
int explore_mark(struct explore *x, uint32_t index);
void explore_unmark(struct explore *x);

/* Marks those states of the cursor, a layer, from which one step leads to a marked one beyond it. */
int explore_mark_before(struct explore *x, struct explore_cursor *at, uint32_t budget);

/* Forgets schedules and judgements; to be called before a search for another one. -EINVAL without states. */
int explore_begin_schedule(struct explore *x);

/*
 * From the first state over marked ones to the last layer, each step into the next layer, with
 * the fewest preemptions; of those the first one in order of actors and outcomes. ends: where each of the
 * `layers` layers ends, the last one with the states to go to.
 */
int explore_shortest(struct explore *x, const uint32_t *ends, uint32_t layers,
		     struct explore_cursor *at, uint32_t budget);

/*
 * From the first state to one that explore_judged() calls a goal, with the fewest preemptions and
 * then the fewest steps. A state in which something may be wrong is asked about (EXPLORE_JUDGE).
 * EXPLORE_NONE: there is none, or more than `limit` states with who ran last were looked at.
 */
int explore_fewest(struct explore *x, uint64_t limit, struct explore_cursor *at, uint32_t budget);

enum explore_judgement {
	EXPLORE_FINE,  /* go on */
	EXPLORE_WRONG, /* something else is wrong: no way leads on from here */
	EXPLORE_GOAL
};
int explore_judged(struct explore *x, uint32_t index, enum explore_judgement judgement);

/* The schedule that was found: its steps if there is room for them (`max`), and what it costs.
 * Returns their number. */
uint32_t explore_schedule(const struct explore *x, struct explore_step *steps, uint32_t max,
			  uint32_t *preemptions);

/* ---- circles --------------------------------------------------------------- */

/* The step of this entry and outcome is progress: no circle with it counts. -ENOENT if it is not
 * there. */
int explore_set_progress(struct explore *x, uint32_t actor, const uint64_t *state,
			 uint32_t outcome);

/*
 * Finds out which steps may be part of a circle without progress. A circle leads each field back
 * to its value, so a step that takes a field from a value to which no such step leads, or to one
 * from which none leads on, is in none. shifts, widths: of the n fields, 1 .. 32 bits wide; not of
 * those that time changes.
 */
int explore_find_circular(struct explore *x, const uint32_t *shifts, const uint32_t *widths,
			  uint32_t n);

/* Collects those steps, and time's, from all states of the cursor, [0, all): anew from its state 0 on. */
int explore_graph(struct explore *x, struct explore_cursor *at, uint32_t budget);

/*
 * Strongly connected components, with at least one step, of the graph on these n states (NULL: all). The
 * cursor is all 0 before the first call. explore_component() names one of explore_component_count(), until
 * the next search for components.
 */
int explore_components(struct explore *x, const uint32_t *states, uint32_t n,
		       struct explore_cursor *at, uint32_t budget);
uint32_t explore_component_count(const struct explore *x);
uint32_t explore_component(const struct explore *x, uint32_t number, const uint32_t **states);

/*
 * Of a component's states [next, end of it): who can do a step, one bit an actor, and bit `actors`
 * for time, into able[]; and who does one that stays inside, added to *moved. The cursor counts
 * states of the component. It must come from the last explore_components() in which these
 * states took part.
 */
int explore_fairness(struct explore *x, const uint32_t *states, uint64_t *able, uint64_t *moved,
		     struct explore_cursor *at, uint32_t budget);

/* The steps of the graph from a state; valid until the next explore_graph(). */
uint32_t explore_circular_steps(const struct explore *x, uint32_t index,
				const struct explore_step **out);

#endif
