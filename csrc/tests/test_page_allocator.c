/* Description: the guest's page allocator and balloon list, against a plain model. */
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "helpers.h"
#include "page_allocator.h"

/* ---- single rules ------------------------------------------------------- */

static void test_ascending_order_lowest_first(void)
{
	uint32_t pfns[256];
	struct pa *pa;

	t_equal(0, pa_create(1000, 100, PA_ASCENDING, 0, &pa));
	t_equal(256, pa_alloc(pa, pfns, 256, PA_PRIVATE));
	for (uint32_t i = 0; i < 256; i++)
		t_equal(100 + i, pfns[i]);
	t_equal(256, pa_alloc(pa, pfns, 256, PA_USER));
	t_equal(356, pfns[0]);
	pa_destroy(pa);
}

static void test_balloon_emptied_and_filled_again_gets_same_runs(void)
{
	uint32_t pfns[256];
	struct pa *pa;

	t_equal(0, pa_create(2000, 16, PA_ASCENDING, 0, &pa));
	for (unsigned round = 0; round < 3; round++) {
		for (uint32_t batch = 0; batch < 4; batch++) {
			t_equal(256, pa_alloc(pa, pfns, 256, PA_PRIVATE));
			for (uint32_t i = 0; i < 256; i++)
				t_equal(16 + batch * 256 + i, pfns[i]);
			t_equal(0, pa_list_insert(pa, pfns, 256));
		}
		for (unsigned batch = 0; batch < 4; batch++) {
			t_equal(256, pa_list_dequeue(pa, pfns, 256));
			t_equal(0, pa_free(pa, pfns, 256, PA_IN_FLIGHT));
		}
	}
	/* A rising batch comes back rising as well. */
	t_equal(64, pa_alloc(pa, pfns, 64, PA_USER));
	t_equal(0, pa_free(pa, pfns, 64, PA_USER));
	t_equal(64, pa_alloc(pa, pfns, 64, PA_USER));
	for (uint32_t i = 0; i < 64; i++)
		t_equal(16 + i, pfns[i]);
	pa_destroy(pa);
}

static void test_shuffled_order_is_a_permutation_of_the_seed(void)
{
	enum { PAGES = 5000, KERNEL = 50 };
	static uint32_t first[PAGES], again[PAGES], other[PAGES];
	static uint8_t seen[PAGES];
	uint32_t *all[] = {first, again, other};
	const uint64_t seeds[] = {7, 7, 8};
	unsigned neighbours = 0;

	for (unsigned i = 0; i < 3; i++) {
		struct pa *pa;

		t_equal(0, pa_create(PAGES, KERNEL, PA_SHUFFLED, seeds[i], &pa));
		/* In odd portions, with pages coming back in between: the stack shares the array. */
		t_equal(300, pa_alloc(pa, all[i], 300, PA_USER));
		t_equal(0, pa_free(pa, all[i] + 200, 100, PA_USER));
		t_equal(PAGES - KERNEL - 200, pa_alloc(pa, all[i] + 200, PAGES, PA_USER));
		t_equal(0, pa_alloc(pa, all[i], 1, PA_USER));
		pa_destroy(pa);
	}
	t_equal(0, memcmp(first, again, sizeof(first)));
	t_check(memcmp(first, other, sizeof(first)) != 0);
	memset(seen, 0, sizeof(seen));
	for (unsigned i = 0; i < PAGES - KERNEL; i++) {
		t_check(first[i] >= KERNEL && first[i] < PAGES && !seen[first[i]]);
		seen[first[i]] = 1;
		neighbours += i > 0 && first[i] == first[i - 1] + 1;
	}
	t_check(neighbours < 20);
}

static void test_bad_page_moves_nothing(void)
{
	uint32_t pfns[8], bad[3];
	struct pa_counts before, after;
	struct pa *pa;

	t_equal(0, pa_create(64, 8, PA_ASCENDING, 0, &pa));
	t_equal(8, pa_alloc(pa, pfns, 8, PA_PRIVATE));
	pa_counts_get(pa, &before);

	/* Named twice; outside; free; kernel. */
	const uint32_t wrong[] = {pfns[0], 64, 40, 3};

	for (unsigned i = 0; i < 4; i++) {
		bad[0] = pfns[0];
		bad[1] = pfns[1];
		bad[2] = wrong[i];
		t_equal(-EBADF, pa_free(pa, bad, 3, PA_PRIVATE));
		t_equal(-EBADF, pa_list_insert(pa, bad, 3));
		t_equal(-EBADF, pa_move(pa, bad, 3, PA_PRIVATE, PA_IN_FLIGHT));
	}
	/* Places from which nothing is freed. */
	t_equal(-EBADF, pa_free(pa, pfns, 1, PA_FREE));
	t_equal(-EBADF, pa_free(pa, pfns, 1, PA_KERNEL));
	t_equal(-EBADF, pa_free(pa, pfns, 1, PA_LISTED));
	pa_counts_get(pa, &after);
	t_equal(15, after.violations);
	after.violations = 0;
	t_equal(0, memcmp(&before, &after, sizeof(before)));
	for (unsigned i = 0; i < 8; i++)
		t_equal(PA_PRIVATE, pa_where(pa, pfns[i]));

	t_equal(-EINVAL, pa_move(pa, pfns, 1, PA_LISTED, PA_USER));
	t_equal(-EINVAL, pa_move(pa, pfns, 1, PA_PRIVATE, PA_PRIVATE));
	t_equal(-EINVAL, pa_alloc(pa, pfns, 1, PA_LISTED));
	t_equal(-EINVAL, pa_where(pa, 64));
	pa_destroy(pa);
	t_equal(-EINVAL, pa_create(10, 10, PA_ASCENDING, 0, &pa));
	t_equal(-EINVAL, pa_create((1ull << 32) + 1, 0, PA_ASCENDING, 0, &pa));
}

static void test_list_is_lifo_and_skips_locked_pages(void)
{
	uint32_t pfns[6], out[6], isolated;
	struct pa *pa;

	t_equal(0, pa_create(64, 0, PA_ASCENDING, 0, &pa));
	t_equal(-ENODATA, pa_list_dequeue(pa, out, 1));
	t_equal(6, pa_alloc(pa, pfns, 6, PA_PRIVATE));
	t_equal(0, pa_list_insert(pa, pfns, 6)); /* head 5 4 3 2 1 0 tail */
	t_equal(1, pa_trylock(pa, 4));
	t_equal(0, pa_trylock(pa, 4));
	t_equal(1, pa_isolate(pa, &isolated)); /* from the tail */
	t_equal(0, isolated);
	t_equal(0, pa_trylock(pa, 0)); /* isolation holds the page lock */
	t_equal(2, pa_list_dequeue(pa, out, 2));
	t_equal(5, out[0]);
	t_equal(3, out[1]);
	t_equal(2, pa_list_dequeue(pa, out, 6));
	t_equal(2, out[0]);
	t_equal(1, out[1]);
	t_equal(0, pa_list_dequeue(pa, out, 6)); /* what is left is locked */
	t_equal(0, pa_unlock(pa, 4));
	t_equal(-EBADF, pa_unlock(pa, 4));
	t_equal(1, pa_list_dequeue(pa, out, 6));
	t_equal(4, out[0]);
	t_equal(0, pa_list_dequeue(pa, out, 6)); /* empty, but one is isolated: no BUG() */
	t_equal(0, pa_isolate(pa, &isolated));
	t_equal(0, pa_putback(pa, 0));
	t_equal(-EBADF, pa_putback(pa, 0));
	t_equal(PA_LISTED, pa_where(pa, 0));
	t_equal(1, pa_isolate(pa, &isolated));
	t_equal(-EBADF, pa_free(pa, &isolated, 1, PA_ISOLATED)); /* its lock is held */
	t_equal(0, pa_isolated_done(pa, isolated));
	t_equal(PA_IN_FLIGHT, pa_where(pa, isolated));
	t_equal(1, pa_trylock(pa, isolated));
	t_equal(0, pa_unlock(pa, isolated));
	t_equal(0, pa_free(pa, &isolated, 1, PA_IN_FLIGHT));
	t_equal(-ENODATA, pa_list_dequeue(pa, out, 6));
	pa_destroy(pa);
}

static void test_migration_ends_in_one_step(void)
{
	uint32_t pfns[4], out[4], old;
	struct pa_counts counts;
	struct pa *pa;

	t_equal(0, pa_create(64, 0, PA_ASCENDING, 0, &pa));
	t_equal(4, pa_alloc(pa, pfns, 4, PA_PRIVATE));
	t_equal(0, pa_list_insert(pa, pfns, 2));        /* head 1 0 tail; 2 and 3 stay private */
	t_equal(-EBADF, pa_replace_isolated(pa, 2, 0)); /* not isolated */
	t_equal(1, pa_isolate(pa, &old));
	t_equal(0, old);
	t_equal(-EBADF, pa_replace_isolated(pa, 1, old)); /* not private */
	t_equal(-EBADF, pa_replace_isolated(pa, 64, old));
	t_equal(-EBADF, pa_replace_isolated(pa, 2, 64));
	t_equal(PA_PRIVATE, pa_where(pa, 2));
	t_equal(0, pa_replace_isolated(pa, 2, old));
	t_equal(PA_IN_FLIGHT, pa_where(pa, old));
	t_equal(1, pa_trylock(pa, old)); /* the page lock was dropped */
	t_equal(2, pa_list_dequeue(pa, out, 4));
	t_equal(2, out[0]);
	t_equal(1, out[1]);
	pa_counts_get(pa, &counts);
	t_equal(4, counts.violations);
	t_equal(0, counts.pages[PA_LISTED] + counts.pages[PA_ISOLATED]);
	t_equal(3, counts.pages[PA_IN_FLIGHT]);
	pa_destroy(pa);
}

static void test_managed_pages_are_counted(void)
{
	struct pa_counts counts;
	struct pa *pa;

	t_equal(0, pa_create(64, 4, PA_ASCENDING, 0, &pa));
	pa_adjust_managed(pa, -10);
	pa_adjust_managed(pa, 3);
	pa_counts_get(pa, &counts);
	t_equal(57, counts.managed);
	t_equal(4, counts.pages[PA_KERNEL]);
	t_equal(60, counts.pages[PA_FREE]);
	pa_destroy(pa);
}

static void test_big_guest_is_cheap(void)
{
	uint32_t pfns[256];
	struct pa *pa;

	/* 16 TiB. The arrays are 52 GiB, of which next to nothing is touched. */
	if (pa_create(1ull << 32, 16, PA_SHUFFLED, 1, &pa) == -ENOMEM)
		t_skip("no address space");
	t_equal(256, pa_alloc(pa, pfns, 256, PA_PRIVATE));
	t_equal(0, pa_list_insert(pa, pfns, 256));
	t_equal(256, pa_list_dequeue(pa, pfns, 256));
	t_equal(0, pa_free(pa, pfns, 256, PA_IN_FLIGHT));
	pa_destroy(pa);
}

/* ---- random operations against a model ---------------------------------- */

#define MODEL_PAGES  96u
#define MODEL_KERNEL 5u

/* What the header says, in the plainest form: a place a page, and the list as an array. */
struct model {
	enum pa_place place[MODEL_PAGES];
	bool locked[MODEL_PAGES];
	uint32_t list[MODEL_PAGES]; /* list[0] is the tail, the last one the head */
	unsigned listed;
};

static unsigned model_count(const struct model *m, enum pa_place place)
{
	unsigned n = 0;

	for (unsigned i = 0; i < MODEL_PAGES; i++)
		n += m->place[i] == place;
	return n;
}

static void model_unlink(struct model *m, unsigned at)
{
	memmove(&m->list[at], &m->list[at + 1], (--m->listed - at) * sizeof(m->list[0]));
}

/* May all of them move from `from`? */
static bool model_all(const struct model *m, const uint32_t *pfns, size_t n, enum pa_place from,
		      bool locked_too)
{
	bool seen[MODEL_PAGES] = {0};

	for (size_t i = 0; i < n; i++) {
		if (pfns[i] >= MODEL_PAGES || seen[pfns[i]] || m->place[pfns[i]] != from ||
		    (m->locked[pfns[i]] && !locked_too))
			return false;
		seen[pfns[i]] = true;
	}
	return true;
}

/* Mostly pages that really are there, sometimes anything. */
static size_t pick(const struct model *m, enum pa_place from, uint32_t *pfns, uint64_t *random)
{
	size_t n = t_random(random) % 8;

	for (size_t i = 0; i < n; i++) {
		uint32_t pfn = (uint32_t)(t_random(random) % (MODEL_PAGES + 2));

		if (t_random(random) % 64) {
			for (unsigned tries = 0; tries < MODEL_PAGES; tries++) {
				bool taken = false;

				pfn = (pfn + 1) % MODEL_PAGES;
				for (size_t j = 0; j < i; j++)
					taken |= pfns[j] == pfn;
				if (m->place[pfn] == from && !taken)
					break;
			}
		}
		pfns[i] = pfn;
	}
	return n;
}

static void model_step(struct pa *pa, struct model *m, uint64_t *random)
{
	static const enum pa_place movable[] = {PA_USER, PA_PRIVATE, PA_ISOLATED, PA_IN_FLIGHT};
	const enum pa_place from = movable[t_random(random) % 4],
			    to = movable[t_random(random) % 4];
	uint32_t pfns[MODEL_PAGES + 2], want[MODEL_PAGES], pfn;
	unsigned free_pages = model_count(m, PA_FREE), found;
	size_t n;
	int64_t rc;

	switch (t_random(random) % 8) {
	case 0: { /* alloc */
		const enum pa_place place = t_random(random) % 2 ? PA_USER : PA_PRIVATE;

		n = t_random(random) % 12;
		rc = pa_alloc(pa, pfns, n, place);
		t_equal(n < free_pages ? (int64_t)n : (int64_t)free_pages, rc);
		for (int64_t i = 0; i < rc; i++) {
			t_check(pfns[i] < MODEL_PAGES && m->place[pfns[i]] == PA_FREE);
			m->place[pfns[i]] = place;
		}
		break;
	}
	case 1: /* free */
		n = pick(m, from, pfns, random);
		if (model_all(m, pfns, n, from, false)) {
			t_equal(0, pa_free(pa, pfns, n, from));
			for (size_t i = 0; i < n; i++)
				m->place[pfns[i]] = PA_FREE;
		} else {
			t_equal(-EBADF, pa_free(pa, pfns, n, from));
		}
		break;
	case 2: /* move */
		n = pick(m, from, pfns, random);
		if (from == to) {
			t_equal(-EINVAL, pa_move(pa, pfns, n, from, to));
		} else if (model_all(m, pfns, n, from, true)) {
			t_equal(0, pa_move(pa, pfns, n, from, to));
			for (size_t i = 0; i < n; i++)
				m->place[pfns[i]] = to;
		} else {
			t_equal(-EBADF, pa_move(pa, pfns, n, from, to));
		}
		break;
	case 3: /* insert */
		n = pick(m, PA_PRIVATE, pfns, random);
		if (model_all(m, pfns, n, PA_PRIVATE, true)) {
			t_equal(0, pa_list_insert(pa, pfns, n));
			for (size_t i = 0; i < n; i++) {
				m->place[pfns[i]] = PA_LISTED;
				m->list[m->listed++] = pfns[i];
			}
		} else {
			t_equal(-EBADF, pa_list_insert(pa, pfns, n));
		}
		break;
	case 4: /* dequeue */
		n = 1 + t_random(random) % 12;
		if (m->listed == 0 && model_count(m, PA_ISOLATED) == 0) {
			t_equal(-ENODATA, pa_list_dequeue(pa, pfns, n));
			break;
		}
		found = 0;
		for (unsigned at = m->listed; at-- > 0 && found < n;) {
			pfn = m->list[at];
			if (m->locked[pfn])
				continue;
			want[found++] = pfn;
			m->place[pfn] = PA_IN_FLIGHT;
			model_unlink(m, at);
		}
		t_equal(found, pa_list_dequeue(pa, pfns, n));
		t_equal(0, memcmp(pfns, want, found * sizeof(want[0])));
		break;
	case 5: /* isolate */
		for (found = 0; found < m->listed && m->locked[m->list[found]]; found++)
			;
		t_equal(found < m->listed, pa_isolate(pa, &pfn));
		if (found < m->listed) {
			t_equal(m->list[found], pfn);
			m->place[pfn] = PA_ISOLATED;
			m->locked[pfn] = true;
			model_unlink(m, found);
		}
		break;
	case 6: /* end of isolation, either way */
		pfn = (uint32_t)(t_random(random) % MODEL_PAGES);
		for (unsigned i = 0; i < MODEL_PAGES && m->place[pfn] != PA_ISOLATED; i++)
			pfn = (pfn + 1) % MODEL_PAGES;
		rc = m->place[pfn] == PA_ISOLATED && m->locked[pfn] ? 0 : -EBADF;
		if (t_random(random) % 2) {
			t_equal(rc, pa_putback(pa, pfn));
			if (rc == 0) {
				m->place[pfn] = PA_LISTED;
				m->list[m->listed++] = pfn;
			}
		} else {
			t_equal(rc, pa_isolated_done(pa, pfn));
			if (rc == 0)
				m->place[pfn] = PA_IN_FLIGHT;
		}
		if (rc == 0)
			m->locked[pfn] = false;
		break;
	default: /* locks */
		pfn = (uint32_t)(t_random(random) % MODEL_PAGES);
		if (t_random(random) % 3 == 0) {
			t_equal(!m->locked[pfn], pa_trylock(pa, pfn));
			m->locked[pfn] = true;
		} else {
			t_equal(m->locked[pfn] ? 0 : -EBADF, pa_unlock(pa, pfn));
			m->locked[pfn] = false;
		}
	}
}

static void test_random_operations_match_model(void)
{
	for (uint64_t seed = 1; seed <= 24; seed++) {
		uint64_t random = seed;
		struct pa_counts counts;
		struct model m = {0};
		struct pa *pa;

		t_equal(0, pa_create(MODEL_PAGES, MODEL_KERNEL,
				     seed % 2 ? PA_ASCENDING : PA_SHUFFLED, seed, &pa));
		for (unsigned i = 0; i < MODEL_KERNEL; i++)
			m.place[i] = PA_KERNEL;
		for (unsigned step = 0; step < 4000; step++) {
			model_step(pa, &m, &random);
			if (step % 16)
				continue;
			pa_counts_get(pa, &counts);
			for (unsigned place = 0; place < PA_PLACES; place++)
				t_equal(model_count(&m, place), counts.pages[place]);
			for (unsigned i = 0; i < MODEL_PAGES; i++)
				t_equal(m.place[i], pa_where(pa, i));
		}
		pa_destroy(pa);
	}
}

/* ---- threads ------------------------------------------------------------ */

static void *fill_and_leak(void *arg)
{
	struct pa *pa = arg;
	uint32_t pfns[32];

	for (unsigned i = 0; i < 3000; i++) {
		int64_t n = pa_alloc(pa, pfns, 32, PA_PRIVATE);

		if (n > 0 && pa_list_insert(pa, pfns, (size_t)n))
			return arg;
		n = pa_list_dequeue(pa, pfns, 32);
		if (n > 0 && pa_free(pa, pfns, (size_t)n, PA_IN_FLIGHT))
			return arg;
	}
	return NULL;
}

static void test_threads_lose_no_page(void)
{
	pthread_t threads[3];
	struct pa_counts counts;
	struct pa *pa;
	void *bad;

	t_equal(0, pa_create(100, 4, PA_SHUFFLED, 3, &pa));
	for (unsigned i = 0; i < 3; i++)
		t_equal(0, pthread_create(&threads[i], NULL, fill_and_leak, pa));
	for (unsigned i = 0; i < 3; i++) {
		t_equal(0, pthread_join(threads[i], &bad));
		t_check(bad == NULL);
	}
	pa_counts_get(pa, &counts);
	t_equal(96, counts.pages[PA_FREE] + counts.pages[PA_LISTED]);
	t_equal(0, counts.violations);
	pa_destroy(pa);
}

static const struct t_test tests[] = {
    T_TEST(test_ascending_order_lowest_first),
    T_TEST(test_balloon_emptied_and_filled_again_gets_same_runs),
    T_TEST(test_shuffled_order_is_a_permutation_of_the_seed),
    T_TEST(test_bad_page_moves_nothing),
    T_TEST(test_list_is_lifo_and_skips_locked_pages),
    T_TEST(test_migration_ends_in_one_step),
    T_TEST(test_managed_pages_are_counted),
    T_TEST(test_big_guest_is_cheap),
    T_TEST(test_random_operations_match_model),
    T_TEST(test_threads_lose_no_page),
};

int main(void)
{
	return t_run(tests, T_COUNT(tests));
}
