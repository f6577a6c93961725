/* SPDX-License-Identifier: MIT */
/*
 * Data layout. Three arrays with one element a page, in one lazily filled
 * mapping, so a guest of 16 GiB (4 M pages) costs nothing until it is used:
 *
 *   place[pfn]  u8   bits 0-2 the pa_place, bit 7 the page lock; zero = free, unlocked
 *   links[pfn]  2 x u32  balloon list: next (towards the tail) and prev; meaningful while
 *                    LISTED; side by side, since a scattered list misses the cache each time
 *   slots[i]    u32  the free list, below
 *
 * Free list. Pages that were never handed out ("fresh") and pages that came
 * back ("returned") are kept apart in one array:
 *
 *   slots  0 ........... returned        fresh ................. pages
 *          [ returned stack ]  (unused)  [ pages not handed out yet ]
 *
 * Each fresh page that leaves gives up a slot, and only such a page can come
 * back, so the stack never reaches the fresh part. A fresh slot holds the
 * difference between its page and its index: a zeroed array is the identity,
 * and needs no set-up. The shuffled order is the Fisher-Yates shuffle done one
 * step at each draw, for the same reason.
 *
 * Returned pages go out first (LIFO), as in the kernel's per-processor lists. A
 * batch is stacked so that it comes out with rising PFNs if it was a run in
 * either direction. So a balloon that is emptied (newest page first) and filled
 * again gets the same ascending runs.
 *
 * Balloon list. No PFN is free to mean "none", since all 2^32 are valid; the
 * number of listed pages says where the list ends.
 *
 * A batch is moved page by page, and moved back if one is not where the caller
 * says. A page named twice is no longer in its old place the second time, so
 * this catches it without a search.
 */
#include "page_allocator.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>

#define PAGES_MAX   (1ull << 32) /* PFNs are 32 bits wide (T-17) */
#define PLACE_MASK  0x07u
#define PAGE_LOCKED 0x80u

/* Neighbours on the balloon list. */
struct links {
	uint32_t next; /* towards the tail; stale in the tail */
	uint32_t prev; /* towards the head; stale in the head */
};

struct pa {
	pthread_mutex_t lock;   /* guards everything below */
	uint64_t pages;         /* PFNs 0 .. pages-1 */
	void *mapping;          /* the three arrays */
	size_t mapping_bytes;   /* its size */
	struct links *links;    /* see above */
	uint32_t *slots;        /* see above */
	uint8_t *place;         /* see above */
	uint64_t fresh;         /* first slot of the fresh part */
	uint64_t returned;      /* height of the returned stack */
	uint32_t head;          /* newest balloon page; meaningful while any is LISTED */
	uint32_t tail;          /* oldest balloon page; the same */
	bool shuffled;          /* fresh pages are drawn at random */
	uint64_t random;        /* state of the generator */
	struct pa_counts count; /* kept at every move */
};

/* splitmix64: one addition and a mix; good enough to scatter pages, and the same everywhere. */
static uint64_t random_next(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

int pa_create(uint64_t pages, uint64_t kernel, enum pa_order order, uint64_t seed, struct pa **out)
{
	struct pa *pa;
	size_t n;

	if (kernel >= pages || pages > PAGES_MAX)
		return -EINVAL;
	pa = calloc(1, sizeof(*pa));
	if (!pa)
		return -ENOMEM;

	/* NORESERVE and not calloc: most of a big guest's arrays are never touched. */
	n = (size_t)pages;
	pa->mapping_bytes = n * (sizeof(struct links) + sizeof(uint32_t) + sizeof(uint8_t));
	pa->mapping = mmap(NULL, pa->mapping_bytes, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (pa->mapping == MAP_FAILED) {
		free(pa);
		return -ENOMEM;
	}
	pa->links = pa->mapping;
	pa->slots = (uint32_t *)(pa->links + n);
	pa->place = (uint8_t *)(pa->slots + n);

	for (size_t pfn = 0; pfn < kernel; pfn++)
		pa->place[pfn] = PA_KERNEL;
	pa->pages = pages;
	pa->fresh = kernel;
	pa->shuffled = order == PA_SHUFFLED;
	pa->random = seed;
	pa->count.pages[PA_KERNEL] = kernel;
	pa->count.pages[PA_FREE] = pages - kernel;
	pa->count.managed = (int64_t)pages;
	pthread_mutex_init(&pa->lock, NULL);
	*out = pa;
	return 0;
}

void pa_destroy(struct pa *pa)
{
	if (!pa)
		return;
	pthread_mutex_destroy(&pa->lock);
	munmap(pa->mapping, pa->mapping_bytes);
	free(pa);
}

/* Counts a call that named a page in the wrong place. */
static int violation(struct pa *pa)
{
	pa->count.violations++;
	return -EBADF;
}

/* The sum over all places never changes. */
static void count_move(struct pa *pa, enum pa_place from, enum pa_place to, uint64_t n)
{
	pa->count.pages[from] -= n;
	pa->count.pages[to] += n;
}

/*
 * Moves n pages that are all in `from`, or none. A page whose lock is held moves
 * only if `locked` says so; the lock goes with it.
 */
static int move_batch(struct pa *pa, const uint32_t *pfns, size_t n, enum pa_place from,
		      enum pa_place to, bool locked)
{
	const uint8_t ignore = locked ? PAGE_LOCKED : 0;
	/* Copies: a store of a byte could be one to pa itself, and everything there be loaded anew. */
	uint8_t *const place = pa->place;
	const uint64_t pages = pa->pages;
	size_t i;

	for (i = 0; i < n; i++) {
		const uint32_t pfn = pfns[i];

		if (pfn >= pages || (place[pfn] & ~ignore) != from)
			break;
		place[pfn] = (uint8_t)((place[pfn] & ignore) | to);
	}
	if (i < n) {
		while (i-- > 0)
			place[pfns[i]] = (uint8_t)((place[pfns[i]] & ignore) | from);
		return violation(pa);
	}
	count_move(pa, from, to, n);
	return 0;
}

/* ---- free list ---------------------------------------------------------- */

/* Takes the next fresh page: one step of the shuffle, or simply the next in order. */
static uint32_t draw_fresh(struct pa *pa)
{
	const uint64_t here = pa->fresh++;
	uint64_t there = here;
	uint32_t page;

	if (!pa->shuffled)
		return (uint32_t)here;

	/* The high half of a product is an even enough draw from [0, left). */
	there += ((random_next(&pa->random) >> 32) * (pa->pages - here)) >> 32;
	page = pa->slots[there] + (uint32_t)there;
	/* What stood here moves there; its own slot is the stack's from now on. */
	pa->slots[there] = pa->slots[here] + (uint32_t)here - (uint32_t)there;
	return page;
}

int64_t pa_alloc(struct pa *pa, uint32_t *pfns, size_t n, enum pa_place to)
{
	uint8_t *const place = pa->place; /* a copy, as in move_batch() */
	size_t done = 0;

	if (to != PA_USER && to != PA_PRIVATE)
		return -EINVAL;
	pthread_mutex_lock(&pa->lock);
	while (done < n && pa->returned > 0)
		pfns[done++] = pa->slots[--pa->returned];
	while (done < n && pa->fresh < pa->pages)
		pfns[done++] = draw_fresh(pa);
	/* The bit of a lock that someone holds on a free page stays. */
	for (size_t i = 0; i < done; i++)
		place[pfns[i]] |= (uint8_t)to;
	count_move(pa, PA_FREE, to, done);
	pthread_mutex_unlock(&pa->lock);
	return (int64_t)done;
}

int pa_free(struct pa *pa, const uint32_t *pfns, size_t n, enum pa_place from)
{
	int rc;

	pthread_mutex_lock(&pa->lock);
	/* A listed page is still linked, a free one is free, and kernel pages stay. */
	if (from != PA_USER && from != PA_PRIVATE && from != PA_ISOLATED && from != PA_IN_FLIGHT)
		rc = violation(pa);
	else
		rc = move_batch(pa, pfns, n, from, PA_FREE, false);
	if (rc == 0 && n > 0) {
		uint32_t *top = pa->slots + pa->returned;

		/* The top leaves first: a falling batch goes on as it is, any other reversed. */
		if (pfns[0] > pfns[n - 1]) {
			for (size_t i = 0; i < n; i++)
				top[i] = pfns[i];
		} else {
			for (size_t i = 0; i < n; i++)
				top[i] = pfns[n - 1 - i];
		}
		pa->returned += n;
	}
	pthread_mutex_unlock(&pa->lock);
	return rc;
}

/* Places without a list of their own; for the others see the calls that keep the lists. */
static bool may_move(enum pa_place place)
{
	return place == PA_PRIVATE || place == PA_IN_FLIGHT || place == PA_USER ||
	       place == PA_ISOLATED;
}

int pa_move(struct pa *pa, const uint32_t *pfns, size_t n, enum pa_place from, enum pa_place to)
{
	int rc;

	/* from == to would hide a page that is named twice. */
	if (!may_move(from) || !may_move(to) || from == to)
		return -EINVAL;
	pthread_mutex_lock(&pa->lock);
	rc = move_batch(pa, pfns, n, from, to, true);
	pthread_mutex_unlock(&pa->lock);
	return rc;
}

/* ---- balloon list ------------------------------------------------------- */

/* Links pages at the head, one after the other; `listed` is how many were there before. */
static void link_head(struct pa *pa, const uint32_t *pfns, size_t n, uint64_t listed)
{
	struct links *const links = pa->links;
	uint32_t head = pa->head;

	for (size_t i = 0; i < n; i++) {
		const uint32_t pfn = pfns[i];

		if (listed + i == 0) {
			pa->tail = pfn;
		} else {
			links[pfn].next = head;
			links[head].prev = pfn;
		}
		head = pfn;
	}
	pa->head = head;
}

/* Unlinks a page. With one page left, head and tail go stale, which nobody reads. */
static void unlink_page(struct pa *pa, uint32_t pfn)
{
	if (pfn == pa->head)
		pa->head = pa->links[pfn].next;
	else if (pfn == pa->tail)
		pa->tail = pa->links[pfn].prev;
	else {
		pa->links[pa->links[pfn].prev].next = pa->links[pfn].next;
		pa->links[pa->links[pfn].next].prev = pa->links[pfn].prev;
	}
}

int pa_list_insert(struct pa *pa, const uint32_t *pfns, size_t n)
{
	uint64_t listed;
	int rc;

	pthread_mutex_lock(&pa->lock);
	listed = pa->count.pages[PA_LISTED];
	rc = move_batch(pa, pfns, n, PA_PRIVATE, PA_LISTED, true);
	if (rc == 0)
		link_head(pa, pfns, n, listed);
	pthread_mutex_unlock(&pa->lock);
	return rc;
}

int64_t pa_list_dequeue(struct pa *pa, uint32_t *pfns, size_t n)
{
	uint64_t left;
	uint32_t pfn;
	size_t done = 0;

	if (n == 0)
		return 0;
	pthread_mutex_lock(&pa->lock);
	left = pa->count.pages[PA_LISTED];
	if (left == 0 && pa->count.pages[PA_ISOLATED] == 0) {
		pthread_mutex_unlock(&pa->lock);
		return -ENODATA;
	}
	for (pfn = pa->head; left > 0 && done < n; left--) {
		/* Read before the page leaves; stale after the last one, and then not used. */
		const uint32_t next = pa->links[pfn].next;

		if (!(pa->place[pfn] & PAGE_LOCKED)) {
			unlink_page(pa, pfn);
			pa->place[pfn] = PA_IN_FLIGHT;
			pfns[done++] = pfn;
		}
		pfn = next;
	}
	count_move(pa, PA_LISTED, PA_IN_FLIGHT, done);
	pthread_mutex_unlock(&pa->lock);
	return (int64_t)done;
}

/* ---- compaction and page locks ------------------------------------------ */

int pa_isolate(struct pa *pa, uint32_t *pfn)
{
	uint64_t left;
	uint32_t page;
	int found = 0;

	pthread_mutex_lock(&pa->lock);
	page = pa->tail;
	for (left = pa->count.pages[PA_LISTED]; left > 0; left--) {
		if (!(pa->place[page] & PAGE_LOCKED)) {
			unlink_page(pa, page);
			pa->place[page] = PA_ISOLATED | PAGE_LOCKED;
			count_move(pa, PA_LISTED, PA_ISOLATED, 1);
			*pfn = page;
			found = 1;
			break;
		}
		page = pa->links[page].prev;
	}
	pthread_mutex_unlock(&pa->lock);
	return found;
}

/* Both ways out of ISOLATED; the page lock is dropped. */
static int leave_isolation(struct pa *pa, uint32_t pfn, enum pa_place to)
{
	int rc = 0;

	pthread_mutex_lock(&pa->lock);
	if (pfn >= pa->pages || pa->place[pfn] != (PA_ISOLATED | PAGE_LOCKED)) {
		rc = violation(pa);
	} else {
		if (to == PA_LISTED)
			link_head(pa, &pfn, 1, pa->count.pages[PA_LISTED]);
		pa->place[pfn] = (uint8_t)to;
		count_move(pa, PA_ISOLATED, to, 1);
	}
	pthread_mutex_unlock(&pa->lock);
	return rc;
}

int pa_putback(struct pa *pa, uint32_t pfn)
{
	return leave_isolation(pa, pfn, PA_LISTED);
}

int pa_isolated_done(struct pa *pa, uint32_t pfn)
{
	return leave_isolation(pa, pfn, PA_IN_FLIGHT);
}

int pa_replace_isolated(struct pa *pa, uint32_t new_pfn, uint32_t old_pfn)
{
	int rc = 0;

	pthread_mutex_lock(&pa->lock);
	if (new_pfn >= pa->pages || (pa->place[new_pfn] & PLACE_MASK) != PA_PRIVATE ||
	    old_pfn >= pa->pages || pa->place[old_pfn] != (PA_ISOLATED | PAGE_LOCKED)) {
		rc = violation(pa);
	} else {
		link_head(pa, &new_pfn, 1, pa->count.pages[PA_LISTED]);
		pa->place[new_pfn] = (uint8_t)((pa->place[new_pfn] & PAGE_LOCKED) | PA_LISTED);
		count_move(pa, PA_PRIVATE, PA_LISTED, 1);
		pa->place[old_pfn] = PA_IN_FLIGHT;
		count_move(pa, PA_ISOLATED, PA_IN_FLIGHT, 1);
	}
	pthread_mutex_unlock(&pa->lock);
	return rc;
}

int pa_trylock(struct pa *pa, uint32_t pfn)
{
	int taken = 0;

	pthread_mutex_lock(&pa->lock);
	if (pfn < pa->pages && !(pa->place[pfn] & PAGE_LOCKED)) {
		pa->place[pfn] |= PAGE_LOCKED;
		taken = 1;
	}
	pthread_mutex_unlock(&pa->lock);
	return taken;
}

int pa_unlock(struct pa *pa, uint32_t pfn)
{
	int rc = 0;

	pthread_mutex_lock(&pa->lock);
	if (pfn < pa->pages && (pa->place[pfn] & PAGE_LOCKED))
		pa->place[pfn] &= PLACE_MASK;
	else
		rc = violation(pa);
	pthread_mutex_unlock(&pa->lock);
	return rc;
}

/* ---- counts ------------------------------------------------------------- */

void pa_adjust_managed(struct pa *pa, int64_t pages)
{
	pthread_mutex_lock(&pa->lock);
	pa->count.managed += pages;
	pthread_mutex_unlock(&pa->lock);
}

int pa_where(struct pa *pa, uint64_t pfn)
{
	int place;

	/* The page count never changes, so it needs no lock. */
	if (pfn >= pa->pages)
		return -EINVAL;
	pthread_mutex_lock(&pa->lock);
	place = pa->place[pfn] & PLACE_MASK;
	pthread_mutex_unlock(&pa->lock);
	return place;
}

void pa_counts_get(struct pa *pa, struct pa_counts *out)
{
	pthread_mutex_lock(&pa->lock);
	*out = pa->count;
	pthread_mutex_unlock(&pa->lock);
}
