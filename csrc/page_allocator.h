/* SPDX-License-Identifier: MIT */
/*
 * The emulated guest's page allocator, and the list of balloon pages.
 *
 * Every page is in exactly one place (pa_place). Each call moves a batch of
 * pages from one place to another and first checks that all of them are where
 * the caller says; a page that is not is the guest kernel's bug and comes back
 * as -EBADF with nothing moved, so that a wrong locking design is seen at the
 * first page it mishandles.
 *
 *            pa_alloc             pa_list_insert          pa_list_dequeue
 *   FREE ---------------> USER
 *     |  ---------------> PRIVATE ---------------> LISTED ---------------> IN_FLIGHT
 *     ^                     ^                       |  ^                       |
 *     |                     |          pa_isolate   v  |  pa_putback           |
 *     |                  pa_move               ISOLATED                        |
 *     +------------------------------ pa_free ---------------------------------+
 *
 * The balloon list is the kernel's: insertion at the head, removal from the
 * head, so the newest page leaks first (LIFO). It is a doubly linked list kept
 * in two arrays, so compaction can take any page out of it.
 *
 * Threads: every call takes the allocator's own lock; calls are atomic.
 */
#ifndef BALLOONVQ_PAGE_ALLOCATOR_H
#define BALLOONVQ_PAGE_ALLOCATOR_H

#include <stddef.h>
#include <stdint.h>

struct pa; /* opaque */

/* Where a page is. */
enum pa_place {
	PA_FREE = 0,  /* on the free list */
	PA_KERNEL,    /* rings and arrays; never allocated or freed */
	PA_USER,      /* owned by a guest task */
	PA_PRIVATE,   /* in the hand of the driver's fill or of compaction */
	PA_LISTED,    /* in the balloon */
	PA_ISOLATED,  /* taken off the balloon list by compaction */
	PA_IN_FLIGHT, /* in the hand of leak: off the list, not yet free */
	PA_PLACES     /* count; not a place */
};

/* In which order pages leave a full free list. */
enum pa_order {
	PA_ASCENDING = 0, /* contiguous runs, lowest PFN first */
	PA_SHUFFLED = 1   /* a permutation drawn from the seed: a fragmented guest */
};

/* A consistent snapshot. */
struct pa_counts {
	uint64_t pages[PA_PLACES]; /* pages in each place; their sum is constant */
	uint64_t violations;       /* calls refused with -EBADF */
	int64_t managed;           /* pages the guest kernel counts as its own; at first all of them
				    * (adjust_managed_page_count) */
};

/*
 * pages PFNs, 0 .. pages-1, the first `kernel` of which are PA_KERNEL and the
 * rest free. Returns 0, -EINVAL (kernel >= pages, or more than 2^32 pages), -ENOMEM.
 */
int pa_create(uint64_t pages, uint64_t kernel, enum pa_order order, uint64_t seed, struct pa **out);
void pa_destroy(struct pa *pa);

/* Takes up to n free pages to `to` (PA_USER or PA_PRIVATE). Returns how many (0 when empty) or -EINVAL. */
int64_t pa_alloc(struct pa *pa, uint32_t *pfns, size_t n, enum pa_place to);

/* Frees n pages that are all in `from` (USER, PRIVATE, ISOLATED or IN_FLIGHT) and whose page locks
 * nobody holds. 0 or -EBADF. */
int pa_free(struct pa *pa, const uint32_t *pfns, size_t n, enum pa_place from);

/* Moves n pages that are all in `from` to `to` without touching a list (PRIVATE, IN_FLIGHT, USER
 * and ISOLATED only). 0, -EINVAL or -EBADF. */
int pa_move(struct pa *pa, const uint32_t *pfns, size_t n, enum pa_place from, enum pa_place to);

/* Puts n PRIVATE pages at the head of the balloon list, one after the other, so the last of them is
 * the head. 0 or -EBADF. */
int pa_list_insert(struct pa *pa, const uint32_t *pfns, size_t n);

/*
 * Takes up to n pages off the head of the list to IN_FLIGHT, leaving alone those
 * whose page lock is held. Returns how many; 0 when every listed page is
 * locked or pages are isolated; -ENODATA when the list is empty and nothing is
 * isolated, which balloon_page_dequeue answers with BUG().
 */
int64_t pa_list_dequeue(struct pa *pa, uint32_t *pfns, size_t n);

/*
 * Page locks, taken only by trylock. pa_isolate finds a listed page from the
 * tail whose lock is free, takes the lock and moves it to ISOLATED: 1 and *pfn, or 0.
 * pa_putback puts an isolated page back at the head and drops the lock.
 * pa_isolated_done moves an isolated page to IN_FLIGHT and drops the lock.
 * pa_replace_isolated does that to old_pfn and puts the PRIVATE page new_pfn at the
 * head, in one step (the section that ends a migration): 0 or -EBADF, nothing moved.
 * pa_trylock: 1 if taken, 0 if held; pa_unlock: 0 or -EBADF if it was not held.
 */
int pa_isolate(struct pa *pa, uint32_t *pfn);
int pa_putback(struct pa *pa, uint32_t pfn);
int pa_isolated_done(struct pa *pa, uint32_t pfn);
int pa_replace_isolated(struct pa *pa, uint32_t new_pfn, uint32_t old_pfn);
int pa_trylock(struct pa *pa, uint32_t pfn);
int pa_unlock(struct pa *pa, uint32_t pfn);

/* Adds to the managed page count (may be negative). */
void pa_adjust_managed(struct pa *pa, int64_t pages);

/* The place of a PFN, or -EINVAL. */
int pa_where(struct pa *pa, uint64_t pfn);

void pa_counts_get(struct pa *pa, struct pa_counts *out);

#endif
