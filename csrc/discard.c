/* SPDX-License-Identifier: MIT */
/*
 * One call of discard_pages(), in words:
 *
 *   1. Sort. Most requests come as one rising or falling run, or as a few of
 *      them joined; a look at the order comes first, and costs one pass. What is
 *      neither is sorted by insertion when short, else by radix: four counts of
 *      a byte each are taken in one pass, then one pass a byte that is not the
 *      same everywhere (two or three of the four, as PFNs go).
 *   2. Walk the sorted PFNs, skipping equal neighbours and joining consecutive
 *      ones to a run: [first, first + n).
 *   3. Cut each run where a memory region ends; regions are different files.
 *   4. Round the piece inward to whole host pages, in file offsets, since that
 *      is the unit in which the host frees memory (T-49):
 *
 *        file     |   host page   |   host page   |   host page   |
 *        run             [==========================]
 *        dropped                  [===============]
 *        partial         [--------]               [-]
 *
 *      With the record of all pages given up, a host page at an end is dropped too
 *      if the rest of it was given up earlier. The end of the last dropped piece
 *      is remembered, so that two runs in one such host page drop it once.
 *   5. One system call.
 *
 * Counters are relaxed atomics: readers on other threads want numbers, and
 * nothing is ordered by them.
 */
#include "discard.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#define SCRATCH_FIRST 4096u /* PFNs that are sorted without allocating */
#define INSERTION_MAX 24u   /* up to here insertion beats the set-up of radix */
#define DIGIT_BITS    8u
#define DIGITS        (32u / DIGIT_BITS)
#define DIGIT_VALUES  (1u << DIGIT_BITS)

/* What discarders beside each other have in common. */
struct shared {
	uint64_t fail_next;            /* ranges still to fail (atomic) */
	struct discard_counters count; /* see header (atomic, each) */
};

struct discard {
	struct gm *mem;             /* whose pages */
	enum discard_method method; /* how they go */
	uint64_t host_page;         /* page size of this host, or of a test */
	bool host_page_forced;      /* a test: files are not asked */
	struct gm_region region;    /* the last one that was looked up; size 0 = none */
	uint64_t granule;           /* host page of its file */
	const uint64_t *held;       /* see discard_set_held(); NULL = off */
	uint32_t *scratch;          /* the other half of a radix pass */
	size_t scratch_count;       /* PFNs it has room for */
	struct shared *shared;      /* our own, or that of the one we were created beside */
	struct shared own;
};

/* Bytes of guest memory in one region; what step 4 and 5 work on. */
struct piece {
	const struct gm_region *region; /* where it lies */
	uint64_t first;                 /* first byte, as a file offset */
	uint64_t end;                   /* one past the last byte, as a file offset */
};

static void add(uint64_t *counter, uint64_t n)
{
	__atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

int discard_create(struct gm *mem, enum discard_method method, struct discard **out)
{
	struct discard *d;

	if (!mem || method < DISCARD_PUNCH || method > DISCARD_NONE)
		return -EINVAL;
	d = calloc(1, sizeof(*d));
	if (!d)
		return -ENOMEM;
	d->scratch = malloc(SCRATCH_FIRST * sizeof(*d->scratch));
	if (!d->scratch) {
		free(d);
		return -ENOMEM;
	}
	d->scratch_count = SCRATCH_FIRST;
	d->mem = mem;
	d->method = method;
	d->shared = &d->own;
	discard_set_host_page(d, 0);
	*out = d;
	return 0;
}

int discard_create_beside(struct discard *first, struct discard **out)
{
	const int rc = discard_create(first->mem, first->method, out);

	if (rc == 0)
		(*out)->shared = first->shared;
	return rc;
}

void discard_destroy(struct discard *d)
{
	if (!d)
		return;
	free(d->scratch);
	free(d);
}

void discard_set_held(struct discard *d, const uint64_t *held)
{
	d->held = held;
}

void discard_set_memory(struct discard *d, struct gm *mem)
{
	d->mem = mem;
	d->held = NULL;
	d->region.size = 0; /* a copy of one that is gone */
}

void discard_set_host_page(struct discard *d, uint64_t bytes)
{
	d->host_page_forced = bytes != 0;
	d->host_page = bytes ? bytes : (uint64_t)sysconf(_SC_PAGESIZE);
	d->region.size = 0; /* look it up again */
}

/* ---- sorting ------------------------------------------------------------ */

static void insertion_sort(uint32_t *pfns, size_t n)
{
	for (size_t i = 1; i < n; i++) {
		const uint32_t pfn = pfns[i];
		size_t at = i;

		for (; at > 0 && pfns[at - 1] > pfn; at--)
			pfns[at] = pfns[at - 1];
		pfns[at] = pfn;
	}
}

/* scratch has room for n. */
static void radix_sort(uint32_t *pfns, size_t n, uint32_t *scratch)
{
	uint32_t counts[DIGITS][DIGIT_VALUES] = {0};
	uint32_t *from = pfns, *to = scratch;

	for (size_t i = 0; i < n; i++) {
		for (unsigned digit = 0; digit < DIGITS; digit++)
			counts[digit][(pfns[i] >> (digit * DIGIT_BITS)) & (DIGIT_VALUES - 1)]++;
	}
	for (unsigned digit = 0; digit < DIGITS; digit++) {
		const unsigned shift = digit * DIGIT_BITS;
		uint32_t *count = counts[digit];
		uint32_t start = 0;
		uint32_t *swap;

		/* The same byte everywhere: nothing would move. */
		if (count[(from[0] >> shift) & (DIGIT_VALUES - 1)] == n)
			continue;
		/* Counts become the place where each value's first PFN goes. */
		for (unsigned value = 0; value < DIGIT_VALUES; value++) {
			const uint32_t here = count[value];

			count[value] = start;
			start += here;
		}
		for (size_t i = 0; i < n; i++)
			to[count[(from[i] >> shift) & (DIGIT_VALUES - 1)]++] = from[i];
		swap = from;
		from = to;
		to = swap;
	}
	if (from != pfns)
		memcpy(pfns, from, n * sizeof(*pfns));
}

static void reverse(uint32_t *pfns, size_t n)
{
	for (size_t i = 0; i < n / 2; i++) {
		const uint32_t pfn = pfns[i];

		pfns[i] = pfns[n - 1 - i];
		pfns[n - 1 - i] = pfn;
	}
}

static void sort(struct discard *d, uint32_t *pfns, size_t n)
{
	size_t rising = 1, falling = 1;

	while (rising < n && pfns[rising - 1] <= pfns[rising])
		rising++;
	if (rising >= n)
		return;
	while (falling < n && pfns[falling - 1] >= pfns[falling])
		falling++;
	if (falling == n)
		reverse(pfns, n);
	else if (n <= INSERTION_MAX)
		insertion_sort(pfns, n);
	else
		radix_sort(pfns, n, d->scratch);
}

/* Room to sort n PFNs at once, or as many as memory allows. */
static size_t scratch_fit(struct discard *d, size_t n)
{
	uint32_t *bigger;

	/* The counts of a radix pass are 32 bits wide. */
	if (n > UINT32_MAX)
		n = UINT32_MAX;
	if (n > d->scratch_count) {
		bigger = malloc(n * sizeof(*bigger));
		if (bigger) {
			free(d->scratch);
			d->scratch = bigger;
			d->scratch_count = n;
		}
	}
	return n < d->scratch_count ? n : d->scratch_count;
}

/* ---- giving back -------------------------------------------------------- */

/* Host page of a region's file. */
static uint64_t granule_of(const struct discard *d, const struct gm_region *region)
{
	struct statfs fs;

	/* Of all file systems only hugetlbfs cannot give back a part of its block. */
	if (!d->host_page_forced && fstatfs(region->fd, &fs) == 0 &&
	    (uint64_t)fs.f_type == HUGETLBFS_MAGIC && (uint64_t)fs.f_bsize > d->host_page)
		return (uint64_t)fs.f_bsize;
	return d->host_page;
}

uint64_t discard_granule(const struct discard *d)
{
	uint64_t biggest = d->host_page;
	struct gm_region region;

	for (unsigned i = 0; gm_region_at(d->mem, i, &region) == 0; i++) {
		const uint64_t granule = granule_of(d, &region);

		if (granule > biggest)
			biggest = granule;
	}
	return biggest;
}

/*
 * The region that holds addr, or NULL; its granule is in d->granule then. A run of
 * ranges in one region, the rule, looks it up once. A region never moves, so the copy
 * stays right when others are added.
 */
static const struct gm_region *region_of(struct discard *d, uint64_t addr)
{
	const struct gm_region *found;

	if (addr - d->region.guest_addr < d->region.size) /* wraps to a huge value below it */
		return &d->region;
	found = gm_find(d->mem, addr);
	if (!found)
		return NULL;
	d->region = *found;
	d->granule = granule_of(d, found);
	return &d->region;
}

/* Are all pages of the file range [first, end) given up? Only for 4 KiB aligned ranges. */
static bool all_held(const struct discard *d, const struct gm_region *region, uint64_t first,
		     uint64_t end)
{
	uint64_t pfn, last;

	if (!d->held || first < region->fd_offset || end > region->fd_offset + region->size)
		return false;
	pfn = (region->guest_addr + (first - region->fd_offset)) >> GM_PAGE_SHIFT;
	last = pfn + ((end - first) >> GM_PAGE_SHIFT);
	for (; pfn < last; pfn++) {
		if (!((d->held[pfn / 64] >> (pfn % 64)) & 1))
			return false;
	}
	return true;
}

/* Takes one off the ranges that are to fail; true if there was one. */
static bool fail_this(struct discard *d)
{
	uint64_t left = __atomic_load_n(&d->shared->fail_next, __ATOMIC_RELAXED);

	while (left > 0) {
		if (__atomic_compare_exchange_n(&d->shared->fail_next, &left, left - 1, true,
						__ATOMIC_RELAXED, __ATOMIC_RELAXED))
			return true;
	}
	return false;
}

/* Step 5. 0 or -errno. */
static int drop(struct discard *d, const struct piece *piece)
{
	const uint64_t len = piece->end - piece->first;
	void *host = piece->region->host + (piece->first - piece->region->fd_offset);
	int rc;

	if (d->method == DISCARD_NONE)
		return 0;
	do {
		add(&d->shared->count.syscalls, 1);
		if (d->method == DISCARD_PUNCH)
			rc =
			    fallocate(piece->region->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				      (off_t)piece->first, (off_t)len);
		else
			rc = madvise(host, (size_t)len,
				     d->method == DISCARD_FREE ? MADV_FREE : MADV_DONTNEED);
	} while (rc < 0 && errno == EINTR);
	return rc < 0 ? -errno : 0;
}

/*
 * Steps 4 and 5 for n pages from guest address addr, all in one region. *done is
 * the guest address up to which this call has dropped everything.
 * Returns 1 if a range was dropped, 0 if none was left, -errno.
 */
static int drop_pages(struct discard *d, const struct gm_region *region, uint64_t addr, uint64_t n,
		      uint64_t *done)
{
	const uint64_t granule = d->granule;
	const uint64_t first = region->fd_offset + (addr - region->guest_addr);
	const uint64_t end = first + (n << GM_PAGE_SHIFT);
	const bool aligned = first % GM_PAGE_SIZE == 0;
	const uint64_t below = first & ~(granule - 1), above = (end + granule - 1) & ~(granule - 1);
	struct piece piece = {.region = region, .first = below, .end = above};
	uint64_t whole, dropped;
	int rc;

	if (below != first && !(aligned && all_held(d, region, below, first)))
		piece.first = below + granule;
	if (above != end && !(aligned && all_held(d, region, end, above)))
		piece.end = above - granule;

	/* Pages of this run that stay: those before the piece and those behind it (T-49). */
	whole = 0;
	if (piece.first < piece.end)
		whole = ((piece.end < end ? piece.end : end) -
			 (piece.first > first ? piece.first : first)) >>
			GM_PAGE_SHIFT;
	if (whole < n)
		add(&d->shared->count.partial, n - whole);

	/* An earlier run of this call may have dropped the first host page, then with this run's part. */
	if (*done > region->guest_addr) {
		const uint64_t behind = region->fd_offset + (*done - region->guest_addr);

		if (piece.first < behind)
			piece.first = behind;
	}
	if (piece.first >= piece.end)
		return 0;

	rc = fail_this(d) ? -EIO : drop(d, &piece);
	if (rc < 0) {
		add(&d->shared->count.failed, 1);
		return rc;
	}
	*done = region->guest_addr + (piece.end - region->fd_offset);
	dropped = (piece.end - piece.first) >> GM_PAGE_SHIFT;
	add(&d->shared->count.ranges, 1);
	add(&d->shared->count.pages, dropped);
	return 1;
}

/* Steps 3 to 5 for one run. Adds the ranges to *ranges; 0 or the first -errno. */
static int drop_run(struct discard *d, uint64_t pfn, uint64_t n, uint64_t *done, int64_t *ranges)
{
	int first_error = 0;

	while (n > 0) {
		const uint64_t addr = pfn << GM_PAGE_SHIFT;
		const struct gm_region *region = region_of(d, addr);
		uint64_t here;
		int rc;

		/* The caller checked every PFN; should one be wrong, it is only left alone. */
		here = region ? (region->size - (addr - region->guest_addr)) >> GM_PAGE_SHIFT : 0;
		if (here == 0) {
			here = 1;
			add(&d->shared->count.failed, 1);
			rc = -EFAULT;
		} else {
			if (here > n)
				here = n;
			rc = drop_pages(d, region, addr, here, done);
		}
		if (rc > 0)
			*ranges += rc;
		else if (rc < 0 && !first_error)
			first_error = rc;
		pfn += here;
		n -= here;
	}
	return first_error;
}

int64_t discard_pages(struct discard *d, uint32_t *pfns, size_t n)
{
	int64_t ranges = 0;
	int first_error = 0;

	/* One round, unless there is no memory to sort a very long request at once. */
	while (n > 0) {
		const size_t count = scratch_fit(d, n);
		uint64_t done = 0;
		size_t i = 0;

		sort(d, pfns, count);
		while (i < count) {
			const uint64_t first = pfns[i];
			uint64_t end = first + 1;
			int rc;

			for (i++; i < count && pfns[i] <= end; i++)
				end = (uint64_t)pfns[i] + 1;
			rc = drop_run(d, first, end - first, &done, &ranges);
			if (rc < 0 && !first_error)
				first_error = rc;
		}
		pfns += count;
		n -= count;
	}
	return first_error ? first_error : ranges;
}

int discard_range(struct discard *d, uint64_t addr, uint64_t len)
{
	const struct gm_region *region = gm_find(d->mem, addr);
	struct piece piece;
	int rc;

	if (len == 0 || (addr | len) % GM_PAGE_SIZE != 0)
		return -EINVAL;
	if (!region || !gm_at(d->mem, addr, len))
		return -EFAULT;
	piece.region = region;
	piece.first = region->fd_offset + (addr - region->guest_addr);
	piece.end = piece.first + len;
	rc = drop(d, &piece);
	if (rc < 0) {
		add(&d->shared->count.failed, 1);
		return rc;
	}
	add(&d->shared->count.ranges, 1);
	add(&d->shared->count.pages, len >> GM_PAGE_SHIFT);
	return 0;
}

/* ---- counters and faults ------------------------------------------------ */

void discard_counters_get(const struct discard *d, struct discard_counters *out)
{
	out->ranges = __atomic_load_n(&d->shared->count.ranges, __ATOMIC_RELAXED);
	out->syscalls = __atomic_load_n(&d->shared->count.syscalls, __ATOMIC_RELAXED);
	out->pages = __atomic_load_n(&d->shared->count.pages, __ATOMIC_RELAXED);
	out->failed = __atomic_load_n(&d->shared->count.failed, __ATOMIC_RELAXED);
	out->partial = __atomic_load_n(&d->shared->count.partial, __ATOMIC_RELAXED);
}

void discard_fail_next(struct discard *d, uint64_t n)
{
	__atomic_store_n(&d->shared->fail_next, n, __ATOMIC_RELAXED);
}

uint64_t discard_fail_left(const struct discard *d)
{
	return __atomic_load_n(&d->shared->fail_next, __ATOMIC_RELAXED);
}
