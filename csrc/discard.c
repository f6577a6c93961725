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
 *   5. Pieces are collected until there are enough for one call, or the request ends. Then one
 *      process_madvise() on ourselves drops them all. For private memory that saves one flush of
 *      the TLBs a piece: an interrupt of every processor that runs another thread of ours, and the
 *      better part of the price. For a file it saves the system calls: MADV_REMOVE makes the hole
 *      that fallocate() would. What the kernel does not do together is done one by one.
 *
 * A hole in a file shoots down TLBs too if the page is mapped. For scattered ones that is far more
 * than all the rest. So the mapping is emptied first: every few small holes in a block of 2 MiB,
 * the block's part of our mapping is dropped, with those of all other such blocks in one
 * process_madvise(). In a shared mapping that loses nothing, and later holes in the block find
 * nothing mapped. How many is "a few" weighs one such hole against unmapping a block that is all
 * there; with a count a block neither price is ever paid more than about twice. Who knows
 * beforehand what is to come has it done at once, by discard_prepare(): while one thread unmaps
 * anything, the kernel flushes all TLBs for every hole that another one makes.
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
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#define SCRATCH_FIRST 4096u /* PFNs that are sorted without allocating */
#define INSERTION_MAX 24u   /* up to here insertion beats the set-up of radix */
#define DIGIT_BITS    8u
#define DIGITS        (32u / DIGIT_BITS)
#define DIGIT_VALUES  (1u << DIGIT_BITS)

#define PFNS_END (1ull << 32) /* PFNs are 32 bits wide */

#define BATCH_RANGES 512u              /* in one system call; the kernel takes 1024 */
#define BLOCK_BYTES  (2u << 20)        /* of guest memory: what one page table maps */
#define SMALL_BYTES  (BLOCK_BYTES / 4) /* a small hole */

/* What discarders beside each other have in common. */
struct shared {
	uint64_t fail_next;            /* ranges still to fail (atomic) */
	struct discard_counters count; /* see header (atomic, each) */
	int16_t *holes; /* small ones in a block since its mapping was emptied; below 0: so many
			 * more were announced (atomic, each); NULL: not counted */
	uint64_t holes_count; /* blocks that it covers */
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
	struct iovec *batch;        /* BATCH_RANGES of pieces to be dropped, as host addresses */
	size_t batched;             /* how many there are; all in batch_region */
	struct gm_region batch_region;
	struct iovec *blocks;  /* BATCH_RANGES of the mapping to be emptied before */
	size_t blocked;        /* how many there are */
	int self;              /* pidfd of this process, -1: one range a call */
	bool can_drop;         /* the kernel takes MADV_DONTNEED of many ranges ... */
	bool can_remove;       /* ... and MADV_REMOVE, which is a hole in the mapped file */
	struct shared *shared; /* our own, or that of the one we were created beside */
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

/* Blocks of the memory map, from 0 up to its end. Without room for them no mapping is emptied. */
static void count_blocks(struct discard *d)
{
	const uint64_t end = gm_pfn_end(d->mem);
	const uint64_t pages = end < PFNS_END ? end : PFNS_END;
	struct shared *own = &d->own;

	free(own->holes);
	own->holes_count = (pages + BLOCK_BYTES / GM_PAGE_SIZE - 1) / (BLOCK_BYTES / GM_PAGE_SIZE);
	own->holes = calloc((size_t)own->holes_count + 1, sizeof(*own->holes));
}

/* With what it shares with others, or with its own if `shared` is NULL. */
static int create(struct gm *mem, enum discard_method method, struct shared *shared,
		  struct discard **out)
{
	struct discard *d;

	if (!mem || method < DISCARD_PUNCH || method > DISCARD_NONE)
		return -EINVAL;
	d = calloc(1, sizeof(*d));
	if (!d)
		return -ENOMEM;
	d->self = -1;
	d->can_drop = true;
	d->can_remove = true;
	d->scratch = malloc(SCRATCH_FIRST * sizeof(*d->scratch));
	d->batch = malloc(BATCH_RANGES * sizeof(*d->batch));
	d->blocks = malloc(BATCH_RANGES * sizeof(*d->blocks));
	if (!d->scratch || !d->batch || !d->blocks) {
		discard_destroy(d);
		return -ENOMEM;
	}
	d->scratch_count = SCRATCH_FIRST;
	d->mem = mem;
	d->method = method;
	d->shared = shared ? shared : &d->own;
	/* One that cannot be had, by an old kernel or for want of descriptors, is done without. */
	if (method == DISCARD_PUNCH || method == DISCARD_DONTNEED)
		d->self = (int)syscall(SYS_pidfd_open, getpid(), 0);
	if (method == DISCARD_PUNCH && !shared)
		count_blocks(d);
	discard_set_host_page(d, 0);
	*out = d;
	return 0;
}

int discard_create(struct gm *mem, enum discard_method method, struct discard **out)
{
	return create(mem, method, NULL, out);
}

int discard_create_beside(struct discard *first, struct discard **out)
{
	return create(first->mem, first->method, first->shared, out);
}

void discard_destroy(struct discard *d)
{
	if (!d)
		return;
	if (d->self >= 0)
		close(d->self);
	free(d->scratch);
	free(d->batch);
	free(d->blocks);
	free(d->own.holes);
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
	d->can_drop = true; /* what was refused there may be taken here */
	d->can_remove = true;
	if (d->method == DISCARD_PUNCH && d->shared == &d->own)
		count_blocks(d);
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
	if (!d->host_page_forced && region->fd >= 0 && fstatfs(region->fd, &fs) == 0 &&
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

/* One range by one system call. 0 or -errno. */
static int drop(struct discard *d, const struct gm_region *region, const struct iovec *range)
{
	const uint64_t first =
	    region->fd_offset + (uint64_t)((uint8_t *)range->iov_base - region->host);
	int rc;

	if (d->method == DISCARD_NONE)
		return 0;
	do {
		add(&d->shared->count.syscalls, 1);
		if (d->method == DISCARD_PUNCH)
			rc = fallocate(region->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				       (off_t)first, (off_t)range->iov_len);
		else
			rc = madvise(range->iov_base, range->iov_len,
				     d->method == DISCARD_FREE ? MADV_FREE : MADV_DONTNEED);
	} while (rc < 0 && errno == EINTR);
	return rc < 0 ? -errno : 0;
}

/*
 * Advice on n ranges by one system call. How many of them were done: 0 also on a kernel
 * that cannot do this to ourselves, which is not asked again (*can becomes false).
 */
static size_t advise_all(struct discard *d, const struct iovec *ranges, size_t n, int advice,
			 bool *can)
{
	ssize_t done;
	size_t i;

	if (n < 2 || d->self < 0 || !*can)
		return 0;
	add(&d->shared->count.syscalls, 1);
	done = syscall(SYS_process_madvise, d->self, ranges, n, advice, 0);
	if (done < 0 && errno != EINTR && errno != ENOMEM)
		*can = false;
	for (i = 0; i < n && done >= (ssize_t)ranges[i].iov_len; i++)
		done -= (ssize_t)ranges[i].iov_len;
	return i;
}

/* Empties our mapping of the blocks that were noted. What cannot be only makes holes dearer. */
static void empty_blocks(struct discard *d)
{
	const size_t done = advise_all(d, d->blocks, d->blocked, MADV_DONTNEED, &d->can_drop);

	for (size_t i = done; i < d->blocked; i++) {
		add(&d->shared->count.syscalls, 1);
		(void)madvise(d->blocks[i].iov_base, d->blocks[i].iov_len, MADV_DONTNEED);
	}
	d->blocked = 0;
}

/* Step 5. Ranges that were dropped are added to *ranges; 0 or the first -errno. */
static int drop_batch(struct discard *d, int64_t *ranges)
{
	size_t done = 0;
	int first_error = 0;

	if (d->blocked > 0)
		empty_blocks(d);
	if (d->method == DISCARD_DONTNEED)
		done = advise_all(d, d->batch, d->batched, MADV_DONTNEED, &d->can_drop);
	else if (d->method == DISCARD_PUNCH)
		done = advise_all(d, d->batch, d->batched, MADV_REMOVE, &d->can_remove);
	for (size_t i = 0; i < d->batched; i++) {
		const int rc = i < done ? 0 : drop(d, &d->batch_region, &d->batch[i]);

		if (rc < 0) {
			add(&d->shared->count.failed, 1);
			if (!first_error)
				first_error = rc;
			continue;
		}
		add(&d->shared->count.ranges, 1);
		add(&d->shared->count.pages, d->batch[i].iov_len >> GM_PAGE_SHIFT);
		(*ranges)++;
	}
	d->batched = 0;
	return first_error;
}

/* Notes the mapping of what a region has of a block, for emptying. Blocks come rising. */
static void note_block(struct discard *d, const struct gm_region *region, uint64_t block)
{
	const uint64_t start = block * BLOCK_BYTES;
	const uint64_t first = start > region->guest_addr ? start : region->guest_addr;
	const size_t bytes = (size_t)gm_region_rest(region, first, BLOCK_BYTES - (first - start));
	struct iovec *last = d->blocked > 0 ? &d->blocks[d->blocked - 1] : NULL;
	uint8_t *host;

	host = region->host + (first - region->guest_addr);
	/* Regions of a front end may begin anywhere in a page. */
	if ((uintptr_t)host % d->host_page)
		return;
	if (last && host >= (uint8_t *)last->iov_base &&
	    host < (uint8_t *)last->iov_base + last->iov_len)
		return; /* noted already */
	if (last && (uint8_t *)last->iov_base + last->iov_len == host)
		last->iov_len += bytes;
	else
		d->blocks[d->blocked++] = (struct iovec){.iov_base = host, .iov_len = bytes};
}

/* Notes the mapping around a small hole for emptying, once there were a few of them. */
static void count_hole(struct discard *d, const struct gm_region *region, const struct piece *piece)
{
	const uint64_t block =
	    (region->guest_addr + (piece->first - region->fd_offset)) / BLOCK_BYTES;
	struct shared *shared = d->shared;

	if (!shared->holes || block >= shared->holes_count ||
	    piece->end - piece->first >= SMALL_BYTES ||
	    __atomic_add_fetch(&shared->holes[block], 1, __ATOMIC_RELAXED) < DISCARD_BLOCK_HOLES)
		return;
	__atomic_store_n(&shared->holes[block], 0, __ATOMIC_RELAXED);
	note_block(d, region, block);
}

void discard_prepare(struct discard *d, const struct discard_block *blocks, size_t n)
{
	struct shared *shared = d->shared;

	if (d->method != DISCARD_PUNCH || !shared->holes)
		return;
	for (size_t i = 0; i < n; i++) {
		const uint64_t block = blocks[i].block;
		const struct gm_region *region = region_of(d, block * BLOCK_BYTES);

		if (!region || d->granule != GM_PAGE_SIZE || block >= shared->holes_count)
			continue;
		__atomic_store_n(&shared->holes[block], (int16_t)-blocks[i].holes,
				 __ATOMIC_RELAXED);
		if (d->blocked == BATCH_RANGES)
			empty_blocks(d);
		note_block(d, region, block);
	}
	if (d->blocked > 0)
		empty_blocks(d);
}

/* Puts a piece into the batch; see drop_batch(). */
static int collect(struct discard *d, const struct piece *piece, int64_t *ranges)
{
	const struct gm_region *region = piece->region;
	int rc = 0;

	if (d->batched == BATCH_RANGES ||
	    (d->batched > 0 && d->batch_region.guest_addr != region->guest_addr))
		rc = drop_batch(d, ranges);
	if (d->method == DISCARD_PUNCH && d->granule == GM_PAGE_SIZE)
		count_hole(d, region, piece);
	d->batch_region = *region;
	d->batch[d->batched++] =
	    (struct iovec){.iov_base = region->host + (piece->first - region->fd_offset),
			   .iov_len = (size_t)(piece->end - piece->first)};
	return rc;
}

/*
 * Step 4 for n pages from guest address addr, all in one region. *done is
 * the guest address up to which this call has dropped everything, or is about to.
 * Adds ranges that were dropped meanwhile; 0 or -errno.
 */
static int drop_pages(struct discard *d, const struct gm_region *region, uint64_t addr, uint64_t n,
		      uint64_t *done, int64_t *ranges)
{
	const uint64_t granule = d->granule;
	const uint64_t first = region->fd_offset + (addr - region->guest_addr);
	const uint64_t end = first + (n << GM_PAGE_SHIFT);
	const bool aligned = first % GM_PAGE_SIZE == 0;
	const uint64_t below = first & ~(granule - 1), above = (end + granule - 1) & ~(granule - 1);
	struct piece piece = {.region = region, .first = below, .end = above};
	uint64_t whole;

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

	if (fail_this(d)) {
		add(&d->shared->count.failed, 1);
		return -EIO;
	}
	*done = region->guest_addr + (piece.end - region->fd_offset);
	return collect(d, &piece, ranges);
}

/* Steps 3 and 4 for one run. Adds the ranges to *ranges; 0 or the first -errno. */
static int drop_run(struct discard *d, uint64_t pfn, uint64_t n, uint64_t *done, int64_t *ranges)
{
	int first_error = 0;

	while (n > 0) {
		const uint64_t addr = pfn << GM_PAGE_SHIFT;
		const struct gm_region *region = region_of(d, addr);
		uint64_t here;
		int rc;

		/* The caller checked every PFN; should one be wrong, it is only left alone. */
		here =
		    region ? gm_region_rest(region, addr, n << GM_PAGE_SHIFT) >> GM_PAGE_SHIFT : 0;
		if (here == 0) {
			here = 1;
			add(&d->shared->count.failed, 1);
			rc = -EFAULT;
		} else {
			rc = drop_pages(d, region, addr, here, done, ranges);
		}
		if (rc < 0 && !first_error)
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
		int rc;

		sort(d, pfns, count);
		while (i < count) {
			const uint64_t first = pfns[i];
			uint64_t end = first + 1;

			for (i++; i < count && pfns[i] <= end; i++)
				end = (uint64_t)pfns[i] + 1;
			rc = drop_run(d, first, end - first, &done, &ranges);
			if (rc < 0 && !first_error)
				first_error = rc;
		}
		rc = drop_batch(d, &ranges);
		if (rc < 0 && !first_error)
			first_error = rc;
		pfns += count;
		n -= count;
	}
	return first_error ? first_error : ranges;
}

int discard_range(struct discard *d, uint64_t addr, uint64_t len)
{
	const struct gm_region *region = gm_find(d->mem, addr);
	struct iovec range;
	int rc;

	if (len == 0 || (addr | len) % GM_PAGE_SIZE != 0)
		return -EINVAL;
	if (!region || !gm_at(d->mem, addr, len))
		return -EFAULT;
	range.iov_base = region->host + (addr - region->guest_addr);
	range.iov_len = (size_t)len;
	rc = drop(d, region, &range);
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
