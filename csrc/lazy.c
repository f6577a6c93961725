/* SPDX-License-Identifier: MIT */
/*
 * Giving back after the acknowledgement.
 *
 * With MUST_TELL_HOST a page is the device's until the matching deflate is acknowledged, so the
 * hole may come any time before that (BAL-DEV-06). The device thread then only notes the page as
 * owed and acknowledges; a second thread, the flusher, gives it back on another processor
 * while the driver goes on:
 *
 *   inflate   owe -------> acknowledge
 *                \
 *   flusher       take a chunk (lock) -> holes (no lock) -> landed (lock)
 *
 *   deflate   owed?       just not any more: the page was never dropped, its content stays
 *             in flight?  wait until that chunk has landed, then acknowledge
 *
 * The last line is the rule that everything here stands on: once a deflate is acknowledged the
 * guest writes to the page, and a hole that came then would destroy what it wrote. A page is owed,
 * in flight, or neither; it changes only under the pages lock, which is never held during a
 * hole. So a deflate that holds the lock sees each of its pages in one of the three.
 *
 * What is taken, and when: blocks of 2 MiB of which all pages are owed at once, or a few of them
 * together, since waiting would not make them bigger; all else when no page became owed for a while,
 * when too much is owed, or when somebody asked. Taking all is done in sweeps over the blocks,
 * rising and then from the start again: what was owed when a sweep began is gone when it ends.
 *
 * Too much owed: the device thread waits before it acknowledges, until there is room.
 *
 * Who asks for all, in bln_flush(), takes chunks itself, in the flusher's place; or beside it, if
 * the memory is of several files. In one file the kernel lets one thread at a time make holes, so
 * blocks are divided into lanes, each of one file, and a chunk is taken only of a file of which no
 * other chunk is in flight. Before that, those who will work empty the mapping of all scattered
 * blocks (discard_prepare()); a chunk that is in flight by then does not wait for it.
 *
 * The flusher rests while `on` is false: no worker, a queue stopped, reset, other features. Who makes
 * it false waits for the chunks in flight, so no hole comes after a reset, a stopped queue,
 * an exchange of the memory or a stopped worker. What is owed then stays so, but for a reset,
 * which forgets it with the rest of the page record (T-14).
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "balloon_internal.h"

#define BLOCK_SHIFT    9u /* pages a block: 2 MiB */
#define BLOCK_PAGES    (1u << BLOCK_SHIFT)
#define BLOCK_WORDS    (BLOCK_PAGES / 64) /* of the bitmap of pages */
#define CHUNK_PAGES    (4 * BLOCK_PAGES)  /* a deflate waits for one such hole at most ... */
#define CHUNK_RUNS     64u                /* ... or this many small ones, and those of one block */
#define PREPARE_BLOCKS 64u                /* by one thread at a time: 128 MiB */
#define IDLE_NS        5000000ull         /* without a new page: then the rest leaves too */
#define NAP_BLOCKS     4u                 /* whole blocks, a chunk, that end its nap before that */
#define OWED_MAX       (1ull << 30)       /* bytes, unless an option says otherwise */
#define NS_PER_S       1000000000ull
#define NONE           UINT64_MAX /* no such block */

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

/* Processor time of the calling thread. */
static uint64_t cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

/* ---- the record of owed pages; all under pages -------------------------- */

static bool bit(const uint64_t *map, uint64_t i)
{
	return (map[i / 64] >> (i % 64)) & 1;
}

static void flip(uint64_t *map, uint64_t i)
{
	map[i / 64] ^= 1ull << (i % 64);
}

/* First set bit from `from` on, or NONE. */
static uint64_t next(const uint64_t *map, uint64_t bits, uint64_t from)
{
	uint64_t i = from / 64, word;

	if (from >= bits)
		return NONE;
	word = map[i] & (~0ull << (from % 64));
	while (!word) {
		if (++i * 64 >= bits)
			return NONE;
		word = map[i];
	}
	i = i * 64 + (uint64_t)__builtin_ctzll(word);
	return i < bits ? i : NONE;
}

/* Memory that is never written is never there: calloc() of a big record costs nothing. */
int bln_owed_make(struct bln_owed *owed, uint64_t pages)
{
	const size_t blocks = (size_t)(pages >> BLOCK_SHIFT) + 1;

	memset(owed, 0, sizeof(*owed));
	owed->blocks = blocks;
	owed->pages = calloc(blocks * BLOCK_WORDS, sizeof(*owed->pages));
	owed->in_block = calloc(blocks, sizeof(*owed->in_block));
	owed->some = calloc(blocks / 64 + 1, sizeof(*owed->some));
	owed->whole = calloc(blocks / 64 + 1, sizeof(*owed->whole));
	if (owed->pages && owed->in_block && owed->some && owed->whole)
		return 0;
	bln_owed_free(owed);
	return -ENOMEM;
}

void bln_owed_free(struct bln_owed *owed)
{
	free(owed->pages);
	free(owed->in_block);
	free(owed->some);
	free(owed->whole);
	memset(owed, 0, sizeof(*owed));
}

static void add_page(struct bln_owed *owed, uint64_t pfn)
{
	const uint64_t block = pfn >> BLOCK_SHIFT;

	flip(owed->pages, pfn);
	if (owed->in_block[block]++ == 0)
		flip(owed->some, block);
	if (owed->in_block[block] == BLOCK_PAGES) {
		flip(owed->whole, block);
		owed->wholes++;
	}
}

static void remove_page(struct bln_owed *owed, uint64_t pfn)
{
	const uint64_t block = pfn >> BLOCK_SHIFT;

	flip(owed->pages, pfn);
	if (owed->in_block[block]-- == BLOCK_PAGES) {
		flip(owed->whole, block);
		owed->wholes--;
	}
	if (owed->in_block[block] == 0)
		flip(owed->some, block);
}

/* Runs that the pages of a block make: the holes that are to come there. */
static unsigned runs_in(const struct bln_owed *owed, uint64_t block)
{
	const uint64_t *words = owed->pages + block * BLOCK_WORDS;
	uint64_t before = 0; /* the last bit of the word before */
	unsigned runs = 0;

	for (unsigned i = 0; i < BLOCK_WORDS; i++) {
		runs += (unsigned)__builtin_popcountll(words[i] & ~(words[i] << 1 | before));
		before = words[i] >> 63;
	}
	return runs;
}

/* Takes the pages of a block out, to pfns + n, rising. Adds the runs they make; the new n. */
static size_t take_block(struct bln_owed *owed, uint64_t block, uint32_t *pfns, size_t n,
			 unsigned *runs)
{
	uint64_t *words = owed->pages + block * BLOCK_WORDS;

	*runs += runs_in(owed, block);
	for (unsigned i = 0; i < BLOCK_WORDS; i++) {
		const uint64_t base = (block << BLOCK_SHIFT) + i * 64ull;
		uint64_t word = words[i];

		for (; word; word &= word - 1)
			pfns[n++] = (uint32_t)(base + (uint64_t)__builtin_ctzll(word));
		words[i] = 0;
	}
	if (owed->in_block[block] == BLOCK_PAGES) {
		flip(owed->whole, block);
		owed->wholes--;
	}
	owed->in_block[block] = 0;
	flip(owed->some, block);
	return n;
}

/* ---- what the queues tell; pages is held -------------------------------- */

static void owed_pages_change(struct bln_device *dev, uint64_t more, uint64_t less)
{
	atomic_set(dev->count.owed_pages, atomic_get(dev->count.owed_pages) + more - less);
}

/* Too much, counting what is in flight. */
static bool crowded(const struct bln_device *dev)
{
	return atomic_get(dev->count.owed_pages) > dev->lazy.owed_max;
}

static void wake(struct bln_lazy *lazy)
{
	/* A wake-up costs the waker a system call: none for a flusher that comes by itself. */
	if (lazy->sleep == BLN_AWAKE)
		return;
	lazy->sleep = BLN_AWAKE;
	pthread_cond_signal(&lazy->wake);
}

/* Somebody may have waited for less to be owed, or for a flight to land. */
static void tell(struct bln_lazy *lazy)
{
	if (lazy->waiters > 0)
		pthread_cond_broadcast(&lazy->changed);
}

/* Until tell(); gives the pages lock away meanwhile. */
static void await(struct bln_device *dev)
{
	dev->lazy.waiters++;
	pthread_cond_wait(&dev->lazy.changed, &dev->pages_lock);
	dev->lazy.waiters--;
}

void bln_lazy_owe(struct bln_device *dev, const uint32_t *pfns, size_t n)
{
	struct bln_lazy *lazy = &dev->lazy;

	for (size_t i = 0; i < n; i++)
		add_page(&lazy->owed, pfns[i]);
	owed_pages_change(dev, n, 0);
	lazy->newest_ns = now_ns();
	/* Waking it for each block would take longer than a huge page does. */
	if (lazy->sleep == BLN_ASLEEP || lazy->owed.wholes >= NAP_BLOCKS || crowded(dev))
		wake(lazy);
	while (lazy->on && crowded(dev) && !atomic_get(dev->resetting))
		await(dev);
}

unsigned bln_lazy_forgive(struct bln_device *dev, uint32_t pfn)
{
	struct bln_lazy *lazy = &dev->lazy;
	uint64_t left;

	if (bit(lazy->owed.pages, pfn)) {
		remove_page(&lazy->owed, pfn);
		owed_pages_change(dev, 0, 1);
		left = atomic_get(dev->count.owed_pages);
		if (left == 0 || left == lazy->owed_max)
			tell(lazy);
		return 0;
	}
	for (unsigned i = 0; i < BLN_FLIGHTS; i++) {
		if (pfn >= lazy->flights[i].first && pfn < lazy->flights[i].end)
			return 1u << i;
	}
	return 0;
}

void bln_lazy_land(struct bln_device *dev, unsigned flights)
{
	const struct bln_flight *all = dev->lazy.flights;
	uint64_t landed[BLN_FLIGHTS];

	for (unsigned i = 0; i < BLN_FLIGHTS; i++)
		landed[i] = all[i].landed;
	for (unsigned i = 0; i < BLN_FLIGHTS; i++) {
		while ((flights >> i & 1) && all[i].landed == landed[i])
			await(dev);
	}
}

/* ---- flights ------------------------------------------------------------ */

/* The block of a lane to begin with, or NONE; *map becomes the blocks that may be joined to it. */
static uint64_t pick(struct bln_device *dev, struct bln_lane *lane, uint64_t now,
		     const uint64_t **map)
{
	struct bln_lazy *lazy = &dev->lazy;
	struct bln_owed *owed = &lazy->owed;
	uint64_t block;

	if (lane->sweeps == lane->sweeps_wanted && !crowded(dev) &&
	    now < lazy->newest_ns + IDLE_NS) {
		*map = owed->whole;
		if (owed->wholes == 0)
			return NONE;
		block = next(owed->whole, lane->end, lane->eager);
		return block != NONE ? block : next(owed->whole, lane->end, lane->first);
	}
	*map = owed->some;
	block = next(owed->some, lane->end, lane->cursor);
	if (block == NONE) {
		lane->cursor = lane->first;
		if (lane->sweeps < lane->sweeps_wanted) {
			lane->sweeps++;
			tell(lazy);
		}
		block = next(owed->some, lane->end, lane->first);
		if (block == NONE) {
			lane->sweeps = lane->sweeps_wanted;
			tell(lazy);
		}
	}
	return block;
}

/* Whether pages of its file are in flight. */
static bool busy(const struct bln_lazy *lazy, const struct bln_lane *lane)
{
	for (unsigned i = 0; i < BLN_FLIGHTS; i++) {
		if (lazy->flights[i].end > 0 && lazy->flights[i].file == lane->file)
			return true;
	}
	return false;
}

/*
 * Puts the pages of a chunk into pfns. The lane they are of, or NULL if it is not the time. The
 * lanes take turns, so that there are two with something in them for as long as can be.
 */
static struct bln_lane *take(struct bln_device *dev, uint32_t *pfns, size_t *count)
{
	struct bln_lazy *lazy = &dev->lazy;
	const uint64_t now = now_ns();
	struct bln_lane *lane = NULL;
	const uint64_t *map = NULL;
	uint64_t block = NONE;
	unsigned runs = 0;
	size_t n = 0;

	for (unsigned i = 0; block == NONE && i < lazy->lane_count; i++) {
		lane = &lazy->lanes[(lazy->turn + i) % lazy->lane_count];
		if (!busy(lazy, lane))
			block = pick(dev, lane, now, &map);
	}
	if (block == NONE)
		return NULL;
	do {
		n = take_block(&lazy->owed, block++, pfns, n, &runs);
	} while (runs < CHUNK_RUNS && block < lane->end && bit(map, block) &&
		 n + lazy->owed.in_block[block] <= CHUNK_PAGES);
	if (map == lazy->owed.some)
		lane->cursor = block;
	else
		lane->eager = block;
	lazy->turn = (unsigned)(lane - lazy->lanes) + 1;
	*count = n;
	return lane;
}

static bool in_the_air(const struct bln_lazy *lazy)
{
	for (unsigned i = 0; i < BLN_FLIGHTS; i++) {
		if (lazy->flights[i].taken)
			return true;
	}
	return false;
}

/* A flight that nobody has, or NULL. */
static struct bln_flight *free_flight(struct bln_lazy *lazy)
{
	for (unsigned i = 0; i < BLN_FLIGHTS; i++) {
		if (!lazy->flights[i].taken)
			return &lazy->flights[i];
	}
	return NULL;
}

static void land(struct bln_lazy *lazy, struct bln_flight *flight)
{
	flight->taken = false;
	flight->first = 0;
	flight->end = 0;
	flight->landed++;
	tell(lazy);
}

/* One flight. False if there was nothing to take, or others are in the way. */
static bool fly(struct bln_device *dev)
{
	struct bln_flight *flight = free_flight(&dev->lazy);
	uint32_t pfns[CHUNK_PAGES];
	const struct bln_lane *lane;
	size_t n;

	lane = flight ? take(dev, pfns, &n) : NULL;
	if (!lane)
		return false;
	flight->taken = true;
	flight->file = lane->file;
	flight->first = pfns[0];
	flight->end = (uint64_t)pfns[n - 1] + 1;
	/*
	 * The lock orders the holes: taken before them by whoever made the pages owed, taken
	 * after them by whoever lets the guest have one of these pages again.
	 */
	pthread_mutex_unlock(&dev->pages_lock);
	/* Refusals are counted by the discarder. */
	(void)discard_pages(flight->discard, pfns, n);
	pthread_mutex_lock(&dev->pages_lock);
	owed_pages_change(dev, 0, n);
	atomic_add(dev->count.lazy_pages, n);
	land(&dev->lazy, flight);
	return true;
}

/* Prepares some blocks for many small holes. False if others are in the way. */
static bool prepare(struct bln_device *dev)
{
	struct bln_lazy *lazy = &dev->lazy;
	struct bln_flight *flight = free_flight(lazy);
	struct discard_block blocks[PREPARE_BLOCKS];
	size_t n = 0;

	if (!flight)
		return false;
	while (n < PREPARE_BLOCKS && lazy->prepare != NONE) {
		const uint64_t block = next(lazy->owed.some, lazy->owed.blocks, lazy->prepare);
		const unsigned holes = block != NONE ? runs_in(&lazy->owed, block) : 0;

		if (holes >= DISCARD_BLOCK_HOLES)
			blocks[n++] = (struct discard_block){(uint32_t)block, (uint16_t)holes};
		lazy->prepare = block != NONE ? block + 1 : NONE;
	}
	if (n == 0)
		return true;
	flight->taken = true;
	lazy->preparing++;
	pthread_mutex_unlock(&dev->pages_lock);
	discard_prepare(flight->discard, blocks, n);
	pthread_mutex_lock(&dev->pages_lock);
	lazy->preparing--;
	land(lazy, flight);
	if (lazy->beside)
		wake(lazy);
	return true;
}

/*
 * What is next to be done. False if it is nothing, or others are in the way. While mappings are
 * emptied a hole costs as much as one over a mapped page, so all of them are emptied before.
 */
static bool work(struct bln_device *dev)
{
	if (dev->lazy.prepare != NONE)
		return prepare(dev);
	return dev->lazy.preparing == 0 && fly(dev);
}

/* ---- the flusher -------------------------------------------------------- */

/* Until something is to be done, or it may be. */
static void rest(struct bln_device *dev)
{
	struct bln_lazy *lazy = &dev->lazy;
	const uint64_t end = lazy->newest_ns + IDLE_NS;
	const struct timespec t = {.tv_sec = (time_t)(end / NS_PER_S),
				   .tv_nsec = (long)(end % NS_PER_S)};

	if (lazy->on && lazy->flushing == 0 && atomic_get(dev->count.owed_pages) > 0) {
		lazy->sleep = BLN_NAPPING;
		pthread_cond_timedwait(&lazy->wake, &dev->pages_lock, &t);
	} else {
		lazy->sleep = BLN_ASLEEP;
		pthread_cond_wait(&lazy->wake, &dev->pages_lock);
	}
	lazy->sleep = BLN_AWAKE;
}

static bool may_work(const struct bln_lazy *lazy)
{
	return lazy->on && (lazy->flushing == 0 || lazy->beside);
}

static void *run(void *arg)
{
	struct bln_device *dev = arg;

	pthread_mutex_lock(&dev->pages_lock);
	while (dev->lazy.running) {
		if (!may_work(&dev->lazy) || !work(dev))
			rest(dev);
	}
	pthread_mutex_unlock(&dev->pages_lock);
	return NULL;
}

/* ---- on and off; control is held ---------------------------------------- */

static void off(struct bln_device *dev)
{
	dev->lazy.on = false;
	tell(&dev->lazy);
	while (in_the_air(&dev->lazy))
		await(dev);
}

void bln_lazy_update(struct bln_device *dev)
{
	struct bln_lazy *lazy = &dev->lazy;

	if (lazy->running && lazy->possible &&
	    (atomic_get(dev->driver_features) & BLN_F_MUST_TELL_HOST) &&
	    dev->queues[QUEUE_INFLATE].vq && dev->queues[QUEUE_DEFLATE].vq) {
		lazy->on = true;
		wake(lazy); /* something may be left from before */
	} else {
		off(dev);
	}
}

void bln_lazy_forget(struct bln_device *dev)
{
	struct bln_owed *owed = &dev->lazy.owed;
	uint64_t block = 0;

	off(dev);
	while ((block = next(owed->some, owed->blocks, block)) != NONE) {
		uint64_t *words = owed->pages + block * BLOCK_WORDS;

		owed_pages_change(dev, 0, owed->in_block[block]);
		memset(words, 0, BLOCK_WORDS * sizeof(*words));
		owed->in_block[block] = 0;
		flip(owed->some, block);
	}
	memset(owed->whole, 0, (size_t)(owed->blocks / 64 + 1) * sizeof(*owed->whole));
	owed->wholes = 0;
}

static struct bln_lane lane_from(uint64_t block, unsigned file, uint64_t sweeps)
{
	return (struct bln_lane){.first = block,
				 .eager = block,
				 .cursor = block,
				 .sweeps = sweeps,
				 .sweeps_wanted = sweeps,
				 .file = file};
}

/*
 * Regions of one file that follow each other are one lane; what PFNs do not reach is in none. Sweeps
 * that somebody waits for count as over: that flush ends early.
 */
static void make_lanes(struct bln_device *dev)
{
	struct bln_lazy *lazy = &dev->lazy;
	struct bln_lane *lane = lazy->lanes;
	struct gm_region region;
	uint64_t sweeps = 0;

	for (unsigned i = 0; i < lazy->lane_count; i++) {
		if (lazy->lanes[i].sweeps_wanted > sweeps)
			sweeps = lazy->lanes[i].sweeps_wanted;
	}
	*lane = lane_from(0, 0, sweeps);
	for (unsigned i = 0; gm_region_at(dev->mem, i, &region) == 0; i++) {
		const uint64_t first = region.guest_addr >> GM_PAGE_SHIFT >> BLOCK_SHIFT;

		if (first >= lazy->owed.blocks)
			break;
		if (first == lane->first) {
			lane->file = region.file;
		} else if (region.file != lane->file) {
			lane->end = first;
			*++lane = lane_from(first, region.file, sweeps);
		}
	}
	lane->end = lazy->owed.blocks;
	lazy->lane_count = (unsigned)(lane - lazy->lanes) + 1;
	lazy->turn = 0;
}

void bln_lazy_set_memory(struct bln_device *dev, struct bln_owed *fresh)
{
	struct bln_lazy *lazy = &dev->lazy;
	struct bln_owed old = lazy->owed;

	for (unsigned i = 0; i < BLN_FLIGHTS; i++)
		discard_set_memory(lazy->flights[i].discard, dev->mem);
	lazy->possible =
	    lazy->owed_max > 0 &&
	    (dev->offer.discard == DISCARD_PUNCH || dev->offer.discard == DISCARD_DONTNEED) &&
	    discard_granule(lazy->flights[0].discard) == GM_PAGE_SIZE;
	for (uint64_t block = 0; (block = next(old.some, old.blocks, block)) != NONE; block++) {
		const uint64_t first = block << BLOCK_SHIFT, end = first + BLOCK_PAGES;

		for (uint64_t pfn = first; (pfn = next(old.pages, end, pfn)) != NONE; pfn++) {
			if (lazy->possible && pfn < dev->pages &&
			    gm_at(dev->mem, pfn << GM_PAGE_SHIFT, GM_PAGE_SIZE))
				add_page(fresh, pfn);
			else
				owed_pages_change(dev, 0, 1);
		}
	}
	lazy->owed = *fresh;
	make_lanes(dev);
	bln_owed_free(&old);
	memset(fresh, 0, sizeof(*fresh));
}

int bln_lazy_create(struct bln_device *dev)
{
	struct bln_lazy *lazy = &dev->lazy;
	const uint64_t max = dev->offer.owed_max ? dev->offer.owed_max : OWED_MAX;
	struct bln_owed fresh;
	int rc = 0;

	for (unsigned i = 0; rc == 0 && i < BLN_FLIGHTS; i++)
		rc = discard_create_beside(dev->discard, &lazy->flights[i].discard);
	if (rc == 0)
		rc = bln_owed_make(&fresh, dev->pages);
	if (rc)
		return rc;
	lazy->owed_max = max >> GM_PAGE_SHIFT;
	lazy->prepare = NONE;
	bln_lazy_set_memory(dev, &fresh);
	return 0;
}

void bln_lazy_destroy(struct bln_device *dev)
{
	for (unsigned i = 0; i < BLN_FLIGHTS; i++)
		discard_destroy(dev->lazy.flights[i].discard);
	bln_owed_free(&dev->lazy.owed);
}

static void lock_all(struct bln_device *dev)
{
	pthread_mutex_lock(&dev->control);
	pthread_mutex_lock(&dev->pages_lock);
}

static void unlock_all(struct bln_device *dev)
{
	pthread_mutex_unlock(&dev->pages_lock);
	pthread_mutex_unlock(&dev->control);
}

int bln_lazy_start(struct bln_device *dev)
{
	sigset_t all, before;
	int rc;

	/* The thread looks at `running` under pages, so it sees what is set below. */
	lock_all(dev);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(&dev->lazy.thread, NULL, run, dev);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (rc == 0) {
		pthread_setname_np(dev->lazy.thread, "balloon-lazy");
		(void)pthread_getcpuclockid(dev->lazy.thread, &dev->lazy.clock);
		dev->lazy.running = true;
		bln_lazy_update(dev);
	}
	unlock_all(dev);
	return -rc;
}

void bln_lazy_stop(struct bln_device *dev)
{
	lock_all(dev);
	dev->lazy.running = false;
	bln_lazy_update(dev);
	wake(&dev->lazy);
	unlock_all(dev);
	pthread_join(dev->lazy.thread, NULL);
}

/* ---- for the host -------------------------------------------------------- */

/* Asks for a sweep over a lane; what its `sweeps` will be when that is over. */
static uint64_t want(struct bln_lane *lane)
{
	uint64_t sweep = lane->sweeps + 2; /* others want theirs to end where it began */

	/* One that nobody waits for can begin anew. */
	if (lane->sweeps == lane->sweeps_wanted) {
		lane->cursor = lane->first;
		sweep = lane->sweeps + 1;
	}
	if (sweep > lane->sweeps_wanted)
		lane->sweeps_wanted = sweep;
	return sweep;
}

static bool swept(const struct bln_lazy *lazy, const uint64_t *sweeps)
{
	for (unsigned i = 0; i < lazy->lane_count; i++) {
		if (lazy->lanes[i].sweeps < sweeps[i])
			return false;
	}
	return true;
}

/* Whether the flusher may run beside the caller, in another file. */
static bool work_for_two(const struct bln_lazy *lazy)
{
	const int cpu = sched_getcpu();
	unsigned i = 0;
	cpu_set_t set;

	while (i < lazy->lane_count && lazy->lanes[i].file == lazy->lanes[0].file)
		i++;
	if (i == lazy->lane_count || cpu < 0 || cpu >= CPU_SETSIZE ||
	    pthread_getaffinity_np(lazy->thread, sizeof(set), &set))
		return false;
	CPU_CLR((size_t)cpu, &set);
	return CPU_COUNT(&set) > 0;
}

/*
 * The caller works itself: it would otherwise only wait, and pages are freed for less where they
 * were last used, which is more often on the caller's processor. The flusher works beside it if that
 * helps, else it rests.
 */
int bln_flush(struct bln_device *dev)
{
	const uint64_t started = cpu_ns();
	struct bln_lazy *lazy = &dev->lazy;
	uint64_t sweeps[GM_REGIONS_MAX] = {0}; /* there may be more lanes later */

	pthread_mutex_lock(&dev->pages_lock);
	if (lazy->on && atomic_get(dev->count.owed_pages) > 0) {
		for (unsigned i = 0; i < lazy->lane_count; i++)
			sweeps[i] = want(&lazy->lanes[i]);
		if (lazy->flushing++ == 0) {
			lazy->prepare = dev->offer.discard == DISCARD_PUNCH ? 0 : NONE;
			lazy->beside = work_for_two(lazy);
			if (lazy->beside)
				wake(lazy);
		}
		while (lazy->on && atomic_get(dev->count.owed_pages) > 0 && !swept(lazy, sweeps)) {
			if (!work(dev) && in_the_air(lazy))
				await(dev);
		}
		if (--lazy->flushing == 0)
			lazy->prepare = NONE;
		if (lazy->on && atomic_get(dev->count.owed_pages) > 0)
			wake(lazy);
	}
	pthread_mutex_unlock(&dev->pages_lock);
	atomic_add(lazy->flush_ns, cpu_ns() - started);
	return 0;
}

uint64_t bln_flush_cpu_ns(const struct bln_device *dev)
{
	return atomic_get(dev->lazy.flush_ns);
}
