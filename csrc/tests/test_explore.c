/* Description: the product search's kernel: states, tables, layers, schedules, circles. */
#include "explore.h"
#include "explore_states.h"
#include "helpers.h"

#define BUDGET 1000u

static void test_states_keep_their_order_and_are_found(void)
{
	enum { N = 50000, WORDS = 3 };
	struct explore_states set;
	uint64_t random = 7, state[WORDS];
	uint32_t index;

	explore_states_init(&set, WORDS);
	t_equal(-1, explore_states_find(&set, (uint64_t[WORDS]){0}));
	for (unsigned i = 0; i < N; i++) {
		for (unsigned word = 0; word < WORDS; word++)
			state[word] = t_random(&random);
		t_equal(1, explore_states_add(&set, state, &index));
		t_equal(i, index);
		t_equal(0, explore_states_add(&set, state, &index));
		t_equal(i, index);
	}
	random = 7;
	for (unsigned i = 0; i < N; i++) {
		for (unsigned word = 0; word < WORDS; word++)
			state[word] = t_random(&random);
		t_equal(i, explore_states_find(&set, state));
		state[i % WORDS] ^= 1;
		t_equal(-1, explore_states_find(&set, state));
	}
	explore_states_clear(&set);
	t_equal(-1, explore_states_find(&set, state));
	t_equal(1, explore_states_add(&set, state, &index));
	t_equal(0, index);
	explore_states_free(&set);
}

static void test_states_of_which_one_word_differs_are_others(void)
{
	struct explore_states set;
	uint32_t index;

	/* Numbers that only count: what a hash likes least. */
	explore_states_init(&set, 2);
	for (uint64_t i = 0; i < 20000; i++) {
		const uint64_t state[2] = {i << 44, i};

		t_equal(1, explore_states_add(&set, state, &index));
	}
	t_equal(20000, set.count);
	explore_states_free(&set);
}

/*
 * Two actors that take two locks, the second one the other way round, each in three steps: take
 * the first, take the second, end. Fields are 3 bits wide from bit 62 on, so that the second one lies in two words:
 *
 *   clock, actor 0, actor 1, lock 0, lock 1        a lock's value is its owner + 1
 */
enum { WIDTH = 3, FIRST = 59, WORDS = 2 };

static void put(uint64_t *state, unsigned field, uint64_t value)
{
	const unsigned at = FIRST + WIDTH * field;

	for (unsigned bit = 0; bit < WIDTH; bit++) {
		const unsigned place = at + bit;

		state[place / 64] &= ~(1ull << place % 64);
		state[place / 64] |= (value >> bit & 1) << place % 64;
	}
}

static uint64_t get(const uint64_t *state, unsigned field)
{
	uint64_t value = 0;

	for (unsigned bit = 0; bit < WIDTH; bit++) {
		const unsigned place = FIRST + WIDTH * field + bit;

		value |= (state[place / 64] >> place % 64 & 1) << bit;
	}
	return value;
}

static const struct explore_layout layout = {
    .words = WORDS,
    .actors = 2,
    .clock_shift = FIRST,
    .clock_width = WIDTH,
};

static struct explore *make_locks(void)
{
	const uint32_t shifts[] = {FIRST + WIDTH, FIRST + 2 * WIDTH}, widths[] = {WIDTH, WIDTH};
	uint64_t mask[WORDS] = {0};
	struct explore *x;

	t_equal(0, explore_create(&layout, shifts, widths, &x));
	for (unsigned actor = 0; actor < 2; actor++) {
		for (unsigned node = 0; node < 3; node++) {
			memset(mask, 0, sizeof(mask));
			put(mask, 1 + actor, 7);
			if (node < 2)
				put(mask, 3 + (node ^ actor), 7);
			t_equal(0, explore_set_node(x, actor, node, mask,
						    node == 2 ? EXPLORE_GIVES_WAY : 0));
		}
	}
	memset(mask, 0, sizeof(mask));
	t_equal(0, explore_set_node(x, explore_watch_table(x), 0, mask, 0));
	t_equal(1, explore_add_state(x, mask));
	return x;
}

/* What the caller of the kernel does: one entry. */
static void supply(struct explore *x, const struct explore_cursor *at)
{
	uint64_t state[WORDS], next[WORDS], difference[WORDS];
	uint64_t node, owner;
	unsigned lock;

	memcpy(state, explore_state(x, at->state), sizeof(state));
	memcpy(next, state, sizeof(next));
	if (at->table == explore_watch_table(x)) {
		t_equal(0, explore_add(x, at->table, state, NULL, 0, false, -1));
		return;
	}
	node = get(state, 1 + at->table);
	lock = 3 + (unsigned)(node ^ at->table);
	if (node == 2) {
		t_equal(0, explore_add(x, at->table, state, NULL, 0, false, -1));
		return;
	}
	owner = get(state, lock);
	if (owner) {
		t_equal(0, explore_add(x, at->table, state, NULL, 0, false,
				       node ? (int32_t)owner - 1 : -1));
		return;
	}
	put(next, lock, at->table + 1);
	put(next, 1 + at->table, node + 1);
	for (unsigned word = 0; word < WORDS; word++)
		difference[word] = state[word] ^ next[word];
	t_equal(0, explore_add(x, at->table, state, difference, 1, false, -1));
	t_equal(-EINVAL, explore_add(x, at->table, state, difference, 1, false, -1));
}

/* Goes over states, in small pieces. */
#define T_WALK(at, call)                                                                           \
	do {                                                                                       \
		rc = (call);                                                                       \
		if (rc == EXPLORE_MISSING)                                                         \
			supply(x, (at));                                                           \
	} while (rc == EXPLORE_MISSING || rc == EXPLORE_MORE)

/* Searches to the end; the layers. */
static unsigned search(struct explore *x, uint32_t *ends, uint64_t *transitions)
{
	struct explore_cursor at;
	uint32_t begin = 0;
	unsigned layers = 0;
	int rc;

	*transitions = 0;
	for (ends[0] = 1; begin < ends[layers]; ends[layers] = explore_count(x)) {
		at = (struct explore_cursor){.next = begin, .begin = begin, .end = ends[layers]};
		do {
			rc = explore_layer(x, &at, 1);
			if (rc == EXPLORE_MISSING)
				supply(x, &at);
		} while (rc == EXPLORE_MISSING || rc == EXPLORE_MORE || rc == EXPLORE_EVENTS);
		t_equal(EXPLORE_DONE, rc);
		*transitions += at.transitions;
		begin = ends[layers++];
	}
	return layers;
}

static void test_two_locks_the_wrong_way_round(void)
{
	struct explore *x = make_locks();
	const struct explore_event *events;
	struct explore_step steps[8];
	struct explore_cursor at;
	uint32_t ends[16], circle = UINT32_MAX, preemptions, count;
	uint64_t transitions;
	unsigned finished = 0;
	int rc;

	t_equal(3, search(x, ends, &transitions));
	/* Locks are never given back: one of them has both, or each has one. */
	t_equal(6, explore_count(x));
	t_equal(6, transitions);
	t_equal(1, ends[0]);
	t_equal(3, ends[1]);
	t_equal(6, ends[2]);
	count = explore_events(x, &events);
	for (uint32_t i = 0; i < count; i++) {
		if (events[i].kind == EXPLORE_CIRCLE)
			circle = events[i].state;
		else if (events[i].kind == EXPLORE_END)
			finished++;
	}
	t_equal(3, finished);
	t_check(circle < 6);
	t_equal(1, get(explore_state(x, circle), 3));
	t_equal(2, get(explore_state(x, circle), 4));
	t_equal(0, explore_events(x, &events));

	/* The way to the circle has one preemption. */
	t_equal(0, explore_mark(x, circle));
	t_equal(-EINVAL, explore_mark(x, 6));
	for (unsigned layer = 2; layer-- > 0;) {
		at = (struct explore_cursor){.next = layer ? ends[layer - 1] : 0,
					     .end = ends[layer]};
		T_WALK(&at, explore_mark_before(x, &at, 1));
		t_equal(EXPLORE_DONE, rc);
	}
	t_equal(0, explore_begin_schedule(x));
	T_WALK(&at, explore_shortest(x, ends, 3, &at, 1));
	t_equal(EXPLORE_DONE, rc);
	explore_unmark(x);
	t_equal(2, explore_schedule(x, steps, 8, &preemptions));
	t_equal(1, preemptions);
	t_equal(0, steps[0].actor);
	t_equal(1, steps[1].actor);
	t_equal(circle, steps[1].state);

	t_equal(0, explore_begin_schedule(x));
	do {
		rc = explore_fewest(x, 1000, &at, 1);
		if (rc == EXPLORE_MISSING)
			supply(x, &at);
		else if (rc == EXPLORE_JUDGE)
			t_equal(0,
				explore_judged(x, at.state,
					       at.state == circle ? EXPLORE_GOAL : EXPLORE_WRONG));
	} while (rc == EXPLORE_MISSING || rc == EXPLORE_MORE || rc == EXPLORE_JUDGE);
	t_equal(EXPLORE_DONE, rc);
	t_equal(2, explore_schedule(x, NULL, 0, &preemptions));
	t_equal(1, preemptions);
	explore_destroy(x);
}

static void test_a_mask_that_grows_empties_its_node(void)
{
	struct explore *x = make_locks();
	struct explore_cursor at = {.end = 1};
	uint64_t mask[WORDS] = {0};

	t_equal(EXPLORE_MISSING, explore_fill(x, 0, &at, BUDGET));
	supply(x, &at);
	t_equal(EXPLORE_DONE, explore_fill(x, 0, &at, BUDGET));
	put(mask, 1, 7);
	put(mask, 3, 7);
	at.next = 0;
	t_equal(0, explore_set_node(x, 0, 0, mask, 0));
	t_equal(EXPLORE_DONE, explore_fill(x, 0, &at, BUDGET));
	put(mask, 4, 7);
	at.next = 0;
	t_equal(0, explore_set_node(x, 0, 0, mask, 0));
	t_equal(EXPLORE_MISSING, explore_fill(x, 0, &at, BUDGET));
	explore_destroy(x);
}

static void test_states_move_up_and_back_as_bytes(void)
{
	const uint32_t shifts[] = {FIRST + WIDTH, FIRST + 2 * WIDTH}, widths[] = {WIDTH, WIDTH};
	const struct explore_gap gaps[] = {{.at = FIRST + 2 * WIDTH, .bits = 70},
					   {.at = FIRST, .bits = 1}};
	struct explore_layout more = layout;
	struct explore *x = make_locks(), *wide, *again;
	uint32_t ends[16];
	uint64_t transitions;
	uint8_t bytes[6 * 16], twice[6 * 16];

	search(x, ends, &transitions);
	more.words = 4;
	t_equal(0, explore_create(&more, shifts, widths, &wide));
	t_equal(0, explore_widen(wide, x, 6, gaps, 2));
	for (uint32_t i = 0; i < 6; i++) {
		const uint64_t *from = explore_state(x, i), *to = explore_state(wide, i);

		for (unsigned bit = 0; bit < 128; bit++) {
			const unsigned there =
			    bit + (bit >= FIRST) + 70 * (bit >= FIRST + 2 * WIDTH);

			t_equal(from[bit / 64] >> bit % 64 & 1, to[there / 64] >> there % 64 & 1);
		}
	}
	t_equal(-EINVAL, explore_widen(wide, x, 7, gaps, 2));
	t_equal(-EINVAL, explore_widen(x, wide, 1, gaps, 0));

	t_equal(0, explore_export(x, 0, 6, bytes, 16));
	t_equal(-EINVAL, explore_export(x, 0, 6, bytes, 8));
	t_equal(-EINVAL, explore_export(x, 0, 7, bytes, 16));
	t_equal(0, explore_create(&layout, shifts, widths, &again));
	t_equal(0, explore_import(again, bytes, 6, 16));
	t_equal(0, explore_export(again, 0, 6, twice, 16));
	t_equal(0, memcmp(bytes, twice, sizeof(bytes)));
	t_equal(-EEXIST, explore_import(again, bytes, 1, 16));
	explore_destroy(again);
	explore_destroy(wide);
	explore_destroy(x);
}

/* One actor with 3 bits that goes 0, 1, 2, 3, 1: a circle of three, and a way that ends at 4. */
static void test_components(void)
{
	const struct explore_layout one = {
	    .words = 1, .actors = 1, .clock_shift = 3, .clock_width = 1};
	const uint64_t mask = 7, start = 0;
	const uint64_t next[][2] = {{1}, {2, 4}, {3}, {1}, {0}};
	const uint32_t outcomes[] = {1, 2, 1, 1, 0};
	const uint32_t shift = 0, width = 3, wide = 33;
	const struct explore_step *edges;
	struct explore_cursor at = {0};
	const uint32_t *states;
	uint64_t able[3], moved = 0;
	struct explore *x;
	int calls, rc;

	t_equal(0, explore_create(&one, &shift, &width, &x));
	for (uint64_t node = 0; node < 5; node++) {
		uint64_t differences[2];

		for (uint32_t i = 0; i < outcomes[node]; i++)
			differences[i] = node ^ next[node][i];
		t_equal(0, explore_set_node(x, 0, (uint32_t)node, &mask, 0));
		t_equal(0, explore_add(x, 0, &node, differences, outcomes[node], false, -1));
		t_equal(-ENOENT, explore_set_progress(x, 0, &node, outcomes[node]));
	}
	t_equal(1, explore_add_state(x, &start));
	t_equal(0, explore_set_node(x, explore_watch_table(x), 0, &start, 0));
	t_equal(0, explore_add(x, explore_watch_table(x), &start, NULL, 0, false, -1));
	while (at.begin < explore_count(x)) {
		at = (struct explore_cursor){
		    .next = at.begin, .begin = at.begin, .end = at.begin + 1};
		while ((rc = explore_layer(x, &at, BUDGET)) == EXPLORE_EVENTS)
			;
		t_equal(EXPLORE_DONE, rc);
		at.begin++;
	}
	t_equal(5, explore_count(x));
	t_equal(-EINVAL, explore_find_circular(x, &shift, &wide, 1));
	t_equal(0, explore_find_circular(x, &shift, &width, 1));
	at = (struct explore_cursor){.end = 5};
	t_equal(EXPLORE_MORE, explore_graph(x, &at, 2));
	t_equal(EXPLORE_DONE, explore_graph(x, &at, BUDGET));
	at = (struct explore_cursor){0};
	for (calls = 1; (rc = explore_components(x, NULL, 0, &at, 3)) == EXPLORE_MORE; calls++)
		;
	t_equal(EXPLORE_DONE, rc);
	/* 5 roots, 3 steps of circles, and back from 5 states, 3 at a time. */
	t_equal((5 + 3 + 5 + 2) / 3, calls);
	t_equal(1, explore_component_count(x));
	t_equal(3, explore_component(x, 0, &states));
	for (unsigned i = 0; i < 3; i++) {
		const uint64_t node = *explore_state(x, states[i]);

		t_check(node >= 1 && node <= 3);
		/* The step to 4 leads nowhere. */
		t_equal(1, explore_circular_steps(x, states[i], &edges));
	}
	at = (struct explore_cursor){.end = 3};
	t_equal(EXPLORE_DONE, explore_fairness(x, states, able, &moved, &at, BUDGET));
	t_equal(1, moved);
	t_equal(1, able[0] & able[1] & able[2]);
	at = (struct explore_cursor){0};
	t_equal(EXPLORE_DONE, explore_components(x, (uint32_t[]){0, 1, 2}, 3, &at, BUDGET));
	t_equal(0, explore_component_count(x));
	at = (struct explore_cursor){0};
	t_equal(-EINVAL, explore_components(x, (uint32_t[]){5}, 1, &at, BUDGET));
	at = (struct explore_cursor){0};
	t_equal(EXPLORE_DONE, explore_components(x, (uint32_t[]){1}, 0, &at, BUDGET));
	t_equal(0, explore_component_count(x));
	explore_destroy(x);
}

static void test_layouts_that_cannot_be(void)
{
	const uint32_t shifts[] = {0, 62}, widths[] = {3, 3};
	struct explore_layout wrong = {.words = 1, .actors = 2, .clock_shift = 3, .clock_width = 1};
	struct explore *x;

	t_equal(-EINVAL, explore_create(&wrong, shifts, widths, &x));
	wrong.actors = EXPLORE_ACTORS_MAX + 1;
	t_equal(-EINVAL, explore_create(&wrong, shifts, widths, &x));
	wrong.actors = 1;
	wrong.words = 0;
	t_equal(-EINVAL, explore_create(&wrong, shifts, widths, &x));
	wrong.words = EXPLORE_WORDS_MAX + 1;
	t_equal(-EINVAL, explore_create(&wrong, shifts, widths, &x));
	wrong.words = 1;
	wrong.clock_width = 0;
	t_equal(-EINVAL, explore_create(&wrong, shifts, widths, &x));
	wrong.clock_width = 1;
	t_equal(0, explore_create(&wrong, shifts, widths, &x));
	explore_destroy(x);
	explore_destroy(NULL);
}

static const struct t_test tests[] = {
    T_TEST(test_states_keep_their_order_and_are_found),
    T_TEST(test_states_of_which_one_word_differs_are_others),
    T_TEST(test_two_locks_the_wrong_way_round),
    T_TEST(test_a_mask_that_grows_empties_its_node),
    T_TEST(test_states_move_up_and_back_as_bytes),
    T_TEST(test_components),
    T_TEST(test_layouts_that_cannot_be),
};

int main(void)
{
	return t_run(tests, T_COUNT(tests));
}
