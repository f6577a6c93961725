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
 * together, since waiting would not make them bigger; all else when no page became owed for a while, when too much is
 * owed, or when somebody asked. Taking all is done in sweeps over the blocks, rising and then
 * from the start again: what was owed when a sweep began is gone when it ends.
 *
 * Too much owed: the device thread waits before it acknowledges, until there is room.
 *
 * Who asks for all, in bln_flush(), takes chunks itself, in the flusher's place.
 *
 * The flusher rests while `on` is false: no worker, a queue stopped, reset, other features. Who makes
 * it false waits for the chunk in flight, so no hole comes after a reset, a stopped queue,
 * an exchange of the memory or a stopped worker. What is owed then stays so, but for a reset,
 * which forgets it with the rest of the page record (T-14).
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "balloon_internal.h"

#define BLOCK_SHIFT 9u /* pages a block: 2 MiB */
#define BLOCK_PAGES (1u << BLOCK_SHIFT)
#define BLOCK_WORDS (BLOCK_PAGES / 64) /* of the bitmap of pages */
#define CHUNK_PAGES (4 * BLOCK_PAGES)  /* a deflate waits for no more than one such hole ... */
#define CHUNK_RUNS  64u                /* ... or this many small ones, and those of one block */
#define IDLE_NS     5000000ull         /* without a new page: then the rest leaves too */
#define NAP_BLOCKS  4u                 /* whole blocks, a chunk, that end its nap before that */
#define OWED_MAX    (1ull << 30)       /* bytes, unless an option says otherwise */
#define NS_PER_S    1000000000ull
#define NONE        UINT64_MAX /* no such block */

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
	return i * 64 + (uint64_t)__builtin_ctzll(word);
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

/* Takes the pages of a block out, to pfns + n, rising. Adds the runs they make; the new n. */
static size_t take_block(struct bln_owed *owed, uint64_t block, uint32_t *pfns, size_t n,
			 unsigned *runs)
{
	uint64_t *words = owed->pages + block * BLOCK_WORDS;
	uint64_t before = 0; /* the last bit of the word before */

	for (unsigned i = 0; i < BLOCK_WORDS; i++) {
		const uint64_t base = (block << BLOCK_SHIFT) + i * 64ull;
		uint64_t word = words[i];

		*runs += (unsigned)__builtin_popcountll(word & ~(word << 1 | before));
		before = word >> 63;
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

bool bln_lazy_forgive(struct bln_device *dev, uint32_t pfn)
{
	struct bln_lazy *lazy = &dev->lazy;
	uint64_t left;

	if (bit(lazy->owed.pages, pfn)) {
		remove_page(&lazy->owed, pfn);
		owed_pages_change(dev, 0, 1);
		left = atomic_get(dev->count.owed_pages);
		if (left == 0 || left == lazy->owed_max)
			tell(lazy);
		return false;
	}
	return pfn >= lazy->flying_first && pfn < lazy->flying_end;
}

void bln_lazy_land(struct bln_device *dev)
{
	const uint64_t landed = dev->lazy.landed;

	while (dev->lazy.flying > 0 && dev->lazy.landed == landed)
		await(dev);
}

/* ---- the flusher -------------------------------------------------------- */

/* The block to begin with, or NONE; *map becomes the blocks that may be joined to it. */
static uint64_t pick(struct bln_device *dev, const uint64_t **map)
{
	struct bln_lazy *lazy = &dev->lazy;
	struct bln_owed *owed = &lazy->owed;
	uint64_t block;

	if (lazy->sweeps == lazy->sweeps_wanted && !crowded(dev) &&
	    now_ns() < lazy->newest_ns + IDLE_NS) {
		*map = owed->whole;
		if (owed->wholes == 0)
			return NONE;
		block = next(owed->whole, owed->blocks, lazy->eager);
		return block != NONE ? block : next(owed->whole, owed->blocks, 0);
	}
	*map = owed->some;
	block = next(owed->some, owed->blocks, lazy->cursor);
	if (block == NONE) {
		lazy->cursor = 0;
		if (lazy->sweeps < lazy->sweeps_wanted) {
			lazy->sweeps++;
			tell(lazy);
		}
		block = next(owed->some, owed->blocks, 0);
		if (block == NONE) {
			lazy->sweeps = lazy->sweeps_wanted;
			tell(lazy);
		}
	}
	return block;
}

/* Puts the pages of a chunk into pfns and in flight. Their number, or 0 if it is not the time. */
static size_t take(struct bln_device *dev, uint32_t *pfns)
{
	struct bln_lazy *lazy = &dev->lazy;
	const uint64_t *map;
	uint64_t block = pick(dev, &map);
	unsigned runs = 0;
	size_t n = 0;

	if (block == NONE)
		return 0;
	do {
		n = take_block(&lazy->owed, block++, pfns, n, &runs);
	} while (runs < CHUNK_RUNS && block < lazy->owed.blocks && bit(map, block) &&
		 n + lazy->owed.in_block[block] <= CHUNK_PAGES);
	if (map == lazy->owed.some)
		lazy->cursor = block;
	else
		lazy->eager = block;
	lazy->flying_first = pfns[0];
	lazy->flying_end = (uint64_t)pfns[n - 1] + 1;
	lazy->flying = n;
	return n;
}

static void landed(struct bln_device *dev)
{
	struct bln_lazy *lazy = &dev->lazy;

	owed_pages_change(dev, 0, lazy->flying);
	atomic_add(dev->count.lazy_pages, lazy->flying);
	lazy->flying = 0;
	lazy->flying_first = 0;
	lazy->flying_end = 0;
	lazy->landed++;
	tell(lazy);
}

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

/* One flight: nothing else is in the air. False if there was nothing to take. */
static bool fly(struct bln_device *dev)
{
	uint32_t pfns[CHUNK_PAGES];
	const size_t n = take(dev, pfns);

	if (n == 0)
		return false;
	/*
	 * The lock orders the holes: taken before them by whoever made the pages owed, taken
	 * after them by whoever lets the guest have one of these pages again.
	 */
	pthread_mutex_unlock(&dev->pages_lock);
	/* Refusals are counted by the discarder. */
	(void)discard_pages(dev->lazy.discard, pfns, n);
	pthread_mutex_lock(&dev->pages_lock);
	landed(dev);
	return true;
}

static void *run(void *arg)
{
	struct bln_device *dev = arg;

	pthread_mutex_lock(&dev->pages_lock);
	while (dev->lazy.running) {
		if (!dev->lazy.on || dev->lazy.flushing > 0 || !fly(dev))
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
	while (dev->lazy.flying > 0)
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

void bln_lazy_set_memory(struct bln_device *dev, struct bln_owed *fresh)
{
	struct bln_lazy *lazy = &dev->lazy;
	struct bln_owed old = lazy->owed;

	discard_set_memory(lazy->discard, dev->mem);
	lazy->possible =
	    lazy->owed_max > 0 &&
	    (dev->offer.discard == DISCARD_PUNCH || dev->offer.discard == DISCARD_DONTNEED) &&
	    discard_granule(lazy->discard) == GM_PAGE_SIZE;
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
	lazy->cursor = 0;
	lazy->eager = 0;
	bln_owed_free(&old);
	memset(fresh, 0, sizeof(*fresh));
}

int bln_lazy_create(struct bln_device *dev)
{
	struct bln_lazy *lazy = &dev->lazy;
	const uint64_t max = dev->offer.owed_max ? dev->offer.owed_max : OWED_MAX;
	struct bln_owed fresh;
	int rc = discard_create_beside(dev->discard, &lazy->discard);

	if (rc == 0)
		rc = bln_owed_make(&fresh, dev->pages);
	if (rc)
		return rc;
	lazy->owed_max = max >> GM_PAGE_SHIFT;
	bln_lazy_set_memory(dev, &fresh);
	return 0;
}

void bln_lazy_destroy(struct bln_device *dev)
{
	discard_destroy(dev->lazy.discard);
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

/*
 * The caller works itself and the flusher rests meanwhile: it would otherwise only wait, and pages are
 * freed for less where they were last used, which is more often on the caller's processor.
 */
int bln_flush(struct bln_device *dev)
{
	const uint64_t started = cpu_ns();
	struct bln_lazy *lazy = &dev->lazy;
	uint64_t sweep;

	pthread_mutex_lock(&dev->pages_lock);
	if (lazy->on && atomic_get(dev->count.owed_pages) > 0) {
		/* One that nobody waits for can begin anew; others want theirs to end where it began. */
		if (lazy->sweeps == lazy->sweeps_wanted) {
			lazy->cursor = 0;
			sweep = lazy->sweeps + 1;
		} else {
			sweep = lazy->sweeps + 2;
		}
		if (sweep > lazy->sweeps_wanted)
			lazy->sweeps_wanted = sweep;
		lazy->flushing++;
		while (lazy->on && atomic_get(dev->count.owed_pages) > 0 && lazy->sweeps < sweep) {
			if (lazy->flying > 0)
				await(dev);
			else
				(void)fly(dev);
		}
		lazy->flushing--;
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
