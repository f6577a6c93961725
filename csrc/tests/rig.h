/* SPDX-License-Identifier: MIT */
/*
 * A balloon device with a driver half on each queue, for tests. Guest memory
 * begins at 0 and is GM_FILES files:
 *
 *   0x00000   rings, 64 KiB a queue: descriptors, available ring at +16K, used ring at +32K
 *   RIG_DATA  buffers, 16 MiB; queue q's start at + q * 5 MiB
 *   RIG_USER  pages that go in and out of the balloon, up to RIG_PAGES
 */
#ifndef BALLOONVQ_TESTS_RIG_H
#define BALLOONVQ_TESTS_RIG_H

#include <poll.h>
#include <stdbool.h>
#include <time.h>

#include "balloon_device.h"
#include "helpers.h"
#include "worker.h"

#define RIG_PAGES 16384u
#define RIG_USER  8192u /* first PFN */
#define RIG_DATA  0x100000ull
#define RIG_QUEUE 0x500000ull /* bytes of buffers a queue */

enum { INFLATE, DEFLATE, STATS };

#define RIG_ALL                                                                                    \
	(BLN_F_MUST_TELL_HOST | BLN_F_STATS_VQ | BLN_F_DEFLATE_ON_OOM | VQ_F_INDIRECT_DESC |       \
	 VQ_F_EVENT_IDX | VQ_F_VERSION_1)

struct rig {
	struct gm *mem;            /* guest memory */
	struct bln_device *dev;    /* what is tested */
	struct bln_worker *worker; /* its thread, or NULL: then the test calls bln_process() */
	unsigned sent[BLN_QUEUES]; /* runs sent; each has a buffer of its own for a while */
	struct t_ring rings[BLN_QUEUES]; /* mem, config, driver and the areas; no device half */
};

static inline struct bln_options rig_options(void)
{
	return (struct bln_options){
	    .features = RIG_ALL, .discard = DISCARD_PUNCH, .queue_size_max = 256};
}

static inline void rig_make_over(struct rig *rig, struct gm *mem, const struct bln_options *options)
{
	memset(rig, 0, sizeof(*rig));
	rig->mem = mem;
	t_equal(0, bln_create(rig->mem, options, &rig->dev));
}

static inline void rig_make_with(struct rig *rig, const struct bln_options *options)
{
	struct gm *mem;

	t_equal(0, gm_create((uint64_t)RIG_PAGES << GM_PAGE_SHIFT, &mem));
	rig_make_over(rig, mem, options);
}

static inline void rig_make(struct rig *rig)
{
	const struct bln_options options = rig_options();

	rig_make_with(rig, &options);
}

/* Up to the point where queues are enabled. */
static inline void rig_negotiate(struct rig *rig, uint64_t features)
{
	t_equal(0, bln_set_status(rig->dev, 0));
	t_equal(0, bln_set_status(rig->dev, 1));
	t_equal(0, bln_set_status(rig->dev, 3));
	t_equal(0, bln_set_driver_features(rig->dev, features | VQ_F_VERSION_1));
	t_equal(0, bln_set_status(rig->dev, 11));
	t_equal(11, bln_status(rig->dev));
}

/* Makes the driver half and enables the queue. */
static inline void rig_queue(struct rig *rig, unsigned queue, uint32_t size)
{
	struct t_ring *ring = &rig->rings[queue];
	const uint64_t base = 0x10000ull * queue;

	ring->mem = rig->mem;
	ring->config = (struct vq_config){
	    .features = bln_driver_features(rig->dev),
	    .desc_addr = base,
	    .driver_addr = base + 0x4000,
	    .device_addr = base + 0x8000,
	    .size = size,
	};
	ring->desc = gm_at(rig->mem, ring->config.desc_addr, 0);
	ring->avail = gm_at(rig->mem, ring->config.driver_addr, 0);
	ring->used = gm_at(rig->mem, ring->config.device_addr, 0);
	t_equal(0, vq_layout(ring->config.features, size, &ring->layout));
	vq_driver_destroy(ring->driver);
	ring->driver = NULL;
	t_equal(0, vq_driver_create(rig->mem, &ring->config, &ring->driver));
	t_equal(0, bln_queue_enable(rig->dev, queue, &ring->config));
}

/* From reset to DRIVER_OK. */
static inline void rig_start(struct rig *rig, uint64_t features, uint32_t size)
{
	rig_negotiate(rig, features);
	rig_queue(rig, INFLATE, size);
	rig_queue(rig, DEFLATE, size);
	if (features & BLN_F_STATS_VQ)
		rig_queue(rig, STATS, size);
	t_equal(0, bln_set_status(rig->dev, 15));
	t_equal(15, bln_status(rig->dev));
}

static inline void rig_drop(struct rig *rig)
{
	bln_worker_stop(rig->worker);
	for (unsigned queue = 0; queue < BLN_QUEUES; queue++)
		vq_driver_destroy(rig->rings[queue].driver);
	bln_destroy(rig->dev);
	gm_destroy(rig->mem);
}

/* Where a queue's buffers stand. */
static inline uint64_t rig_data(unsigned queue)
{
	return RIG_DATA + queue * RIG_QUEUE;
}

/* Adds and shows one buffer of `len` bytes that are in place. */
static inline void rig_offer(struct rig *rig, unsigned queue, uint64_t addr, uint32_t len)
{
	const struct vq_segment segment = {addr, len};

	t_equal(0, vq_driver_add(rig->rings[queue].driver, &segment, 1, 0, 7));
	t_equal(1, vq_driver_publish(rig->rings[queue].driver));
}

/* The same with these bytes, at rig_data(). */
static inline void rig_send(struct rig *rig, unsigned queue, const void *bytes, uint32_t len)
{
	t_equal(0, gm_write(rig->mem, rig_data(queue), bytes, len));
	rig_offer(rig, queue, rig_data(queue), len);
}

/* The same with n <= 1024 PFNs, first, first + 1, ... */
static inline void rig_send_run(struct rig *rig, unsigned queue, uint32_t first, uint32_t n)
{
	const uint64_t addr = rig_data(queue) + rig->sent[queue]++ % 128 * 4096;
	uint32_t *pfns = gm_at(rig->mem, addr, n * sizeof(*pfns));

	for (uint32_t i = 0; i < n; i++)
		pfns[i] = htole32(first + i);
	rig_offer(rig, queue, addr, n * (uint32_t)sizeof(*pfns));
}

/* Takes one buffer back, which must be there and have length 0 (T-27). */
static inline void rig_take(struct rig *rig, unsigned queue)
{
	uint32_t len = 1;

	t_equal(1, vq_driver_get_used(rig->rings[queue].driver, NULL, &len));
	t_equal(0, len);
}

/* A whole request, without a thread. */
static inline void rig_run(struct rig *rig, unsigned queue, uint32_t first, uint32_t n)
{
	rig_send_run(rig, queue, first, n);
	t_equal(1, bln_process(rig->dev, queue));
	rig_take(rig, queue);
}

static inline struct bln_counters rig_count(struct rig *rig)
{
	struct bln_counters count;

	bln_counters_get(rig->dev, &count);
	return count;
}

/* Is it in its file? Asking does not bring it back. */
static inline bool rig_present(const struct rig *rig, uint32_t pfn)
{
	const uint64_t addr = (uint64_t)pfn << GM_PAGE_SHIFT;
	const struct gm_region *region = gm_find(rig->mem, addr);
	const off_t at = (off_t)(region->fd_offset + addr - region->guest_addr);

	return lseek(region->fd, at, SEEK_DATA) == at;
}

/* Value of an eventfd that is then empty; 0 if it was. */
static inline uint64_t rig_events(int fd)
{
	uint64_t value;

	return read(fd, &value, sizeof(value)) == sizeof(value) ? value : 0;
}

static inline void rig_kick(struct rig *rig, unsigned queue)
{
	const uint64_t one = 1;

	t_equal(sizeof(one), write(bln_kick_fd(rig->dev, queue), &one, sizeof(one)));
}

/* Waits for an event and empties it; false after ms milliseconds. */
static inline bool rig_wait(int fd, int ms)
{
	struct pollfd poll_fd = {.fd = fd, .events = POLLIN};

	return poll(&poll_fd, 1, ms) == 1 && rig_events(fd) > 0;
}

static inline uint64_t rig_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static inline void rig_sleep_ms(unsigned ms)
{
	const struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};

	nanosleep(&t, NULL);
}

/* Waits up to five seconds for a condition; true once is enough. */
#define rig_until(condition)                                                                       \
	do {                                                                                       \
		const uint64_t rig_end = rig_now() + 5000000000ull;                                \
		bool rig_true;                                                                     \
		while (!(rig_true = (condition)) && rig_now() < rig_end)                           \
			rig_sleep_ms(1);                                                           \
		t_check(rig_true && #condition);                                                   \
	} while (0)

#endif
