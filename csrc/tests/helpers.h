/* SPDX-License-Identifier: MIT */
/*
 * Helpers of the C tests, prefix t_. A test file is a table of {name, function};
 * t_run() runs it, prints one line a test, and returns the exit code: 0 all
 * passed, 1 some failed, 77 all were skipped.
 *
 * A ring for tests stands in four regions, each with a file of its own, so that
 * every area can be made read-only by itself (SPLIT-DEV-06, SPLIT-DRV-03):
 *
 *   T_DESC   descriptor table      T_AVAIL  available ring
 *   T_USED   used ring             T_DATA   buffers, 2 GiB and a page, sparse
 *
 * Everything named t_raw_ plays the other side by hand, by the byte tables of
 * the specification and not through the code under test.
 */
#ifndef BALLOONVQ_TESTS_HELPERS_H
#define BALLOONVQ_TESTS_HELPERS_H

#include <errno.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "barrier.h"
#include "guest_memory.h"
#include "virtqueue.h"

#define T_SKIP 77

struct t_test {
	const char *name; /* what is printed */
	void (*run)(void);
};

static jmp_buf t_escape; /* out of the running test; value 1 = failed, T_SKIP = skipped */

/* Only in the test's own thread. */
#define t_check(condition)                                                                         \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			printf("# %s:%d: %s\n", __FILE__, __LINE__, #condition);                   \
			longjmp(t_escape, 1);                                                      \
		}                                                                                  \
	} while (0)

/* t_check of two integers that shows them. */
#define t_equal(expected, actual)                                                                  \
	do {                                                                                       \
		long long t_e = (long long)(expected), t_a = (long long)(actual);                  \
		if (t_e != t_a) {                                                                  \
			printf("# %s:%d: %s: expected %lld, is %lld\n", __FILE__, __LINE__,        \
			       #actual, t_e, t_a);                                                 \
			longjmp(t_escape, 1);                                                      \
		}                                                                                  \
	} while (0)

static inline void t_skip(const char *why)
{
	printf("# skipped: %s\n", why);
	longjmp(t_escape, T_SKIP);
}

static inline int t_run(const struct t_test *tests, size_t count)
{
	volatile size_t failed = 0, skipped = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (volatile size_t i = 0; i < count; i++) {
		int how = setjmp(t_escape);

		if (how == 0)
			tests[i].run();
		printf("%s %s\n",
		       how == 0        ? "ok  "
		       : how == T_SKIP ? "skip"
				       : "FAIL",
		       tests[i].name);
		failed += how == 1;
		skipped += how == T_SKIP;
	}
	printf("%zu tests, %zu failed, %zu skipped\n", count, failed, skipped);
	return failed ? 1 : skipped == count ? T_SKIP : 0;
}

#define T_TEST(function) {#function, function}
#define T_COUNT(array)   (sizeof(array) / sizeof((array)[0]))

/* xorshift: the same numbers on every machine. */
static inline uint64_t t_random(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

static inline int t_memfd(uint64_t size)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	t_check(fd >= 0);
	t_check(ftruncate(fd, (off_t)size) == 0);
	return fd;
}

#define T_DESC       0x0000000000ull
#define T_AVAIL      0x0000100000ull
#define T_USED       0x0000200000ull
#define T_AREA_BYTES 0x0000100000ull
#define T_DATA       0x0100000000ull
#define T_DATA_BYTES 0x0080001000ull /* 2 GiB + 4 KiB */

#define T_NEXT     1u
#define T_WRITE    2u
#define T_INDIRECT 4u

struct t_ring {
	struct gm *mem;
	struct vq_config config;
	struct vq_layout layout;
	struct vq_driver *driver;
	struct vq_device *device;
	uint8_t *desc, *avail, *used; /* host addresses of the areas */
};

static inline struct gm *t_ring_memory(void)
{
	struct gm *mem;

	t_equal(0, gm_create_empty(&mem));
	t_equal(0, gm_add_region(mem, T_DESC, T_AREA_BYTES, t_memfd(T_AREA_BYTES), 0));
	t_equal(0, gm_add_region(mem, T_AVAIL, T_AREA_BYTES, t_memfd(T_AREA_BYTES), 0));
	t_equal(0, gm_add_region(mem, T_USED, T_AREA_BYTES, t_memfd(T_AREA_BYTES), 0));
	t_equal(0, gm_add_region(mem, T_DATA, T_DATA_BYTES, t_memfd(T_DATA_BYTES), 0));
	return mem;
}

/* Both halves over a fresh ring. */
static inline void t_ring_make(struct t_ring *ring, uint32_t size, uint64_t features)
{
	memset(ring, 0, sizeof(*ring));
	ring->mem = t_ring_memory();
	ring->config = (struct vq_config){
	    .features = VQ_F_VERSION_1 | features,
	    .desc_addr = T_DESC,
	    .driver_addr = T_AVAIL,
	    .device_addr = T_USED,
	    .size = size,
	};
	t_equal(0, vq_layout(features, size, &ring->layout));
	ring->desc = gm_at(ring->mem, T_DESC, 0);
	ring->avail = gm_at(ring->mem, T_AVAIL, 0);
	ring->used = gm_at(ring->mem, T_USED, 0);
	t_equal(0, vq_driver_create(ring->mem, &ring->config, &ring->driver));
	t_equal(0, vq_device_create(ring->mem, &ring->config, &ring->device));
}

static inline void t_ring_drop(struct t_ring *ring)
{
	vq_driver_destroy(ring->driver);
	vq_device_destroy(ring->device);
	gm_destroy(ring->mem);
}

/* A store to the area from now on is a SIGSEGV, which fails the test. */
static inline void t_protect(uint8_t *area, int protection)
{
	t_check(mprotect(area, T_AREA_BYTES, protection) == 0);
}

/* ---- the bytes of the ring, by hand -------------------------------------- */

static inline uint16_t t_raw_avail_idx(const struct t_ring *r)
{
	return le16_load(r->avail + 2);
}

static inline uint16_t t_raw_avail_entry(const struct t_ring *r, unsigned i)
{
	return le16_load(r->avail + 4 + 2 * (size_t)(i % r->config.size));
}

static inline uint8_t *t_raw_used_event(const struct t_ring *r)
{
	return r->avail + 4 + 2 * (size_t)r->config.size;
}

static inline uint16_t t_raw_used_idx(const struct t_ring *r)
{
	return le16_load(r->used + 2);
}

static inline uint8_t *t_raw_used_entry(const struct t_ring *r, unsigned i)
{
	return r->used + 4 + 8 * (size_t)(i % r->config.size);
}

static inline uint8_t *t_raw_avail_event(const struct t_ring *r)
{
	return r->used + 4 + 8 * (size_t)r->config.size;
}

static inline void t_raw_desc_at(uint8_t *at, uint64_t addr, uint32_t len, unsigned flags,
				 unsigned next)
{
	uint64_t a = htole64(addr);
	uint32_t l = htole32(len);
	uint16_t f = htole16((uint16_t)flags), n = htole16((uint16_t)next);

	memcpy(at, &a, 8);
	memcpy(at + 8, &l, 4);
	memcpy(at + 12, &f, 2);
	memcpy(at + 14, &n, 2);
}

static inline void t_raw_desc(struct t_ring *r, unsigned i, uint64_t addr, uint32_t len,
			      unsigned flags, unsigned next)
{
	t_raw_desc_at(r->desc + 16 * (size_t)i, addr, len, flags, next);
}

static inline uint64_t t_raw_desc_addr(const struct t_ring *r, unsigned i)
{
	return le64_load(r->desc + 16 * (size_t)i);
}

static inline uint32_t t_raw_desc_len(const struct t_ring *r, unsigned i)
{
	return le32_load(r->desc + 16 * (size_t)i + 8);
}

static inline uint16_t t_raw_desc_flags(const struct t_ring *r, unsigned i)
{
	return le16_load(r->desc + 16 * (size_t)i + 12);
}

static inline uint16_t t_raw_desc_next(const struct t_ring *r, unsigned i)
{
	return le16_load(r->desc + 16 * (size_t)i + 14);
}

/* A foreign driver: shows one head. */
static inline void t_raw_offer(struct t_ring *r, unsigned head)
{
	uint16_t idx = t_raw_avail_idx(r);

	le16_store(r->avail + 4 + 2 * (size_t)(idx % r->config.size), (uint16_t)head);
	le16_store_release(r->avail + 2, (uint16_t)(idx + 1));
}

/* A foreign device: uses one head. */
static inline void t_raw_use(struct t_ring *r, uint32_t id, uint32_t len)
{
	uint16_t idx = t_raw_used_idx(r);
	uint8_t *entry = t_raw_used_entry(r, idx);

	le32_store(entry, id);
	le32_store(entry + 4, len);
	le16_store_release(r->used + 2, (uint16_t)(idx + 1));
}

/* ---- short ways through the halves --------------------------------------- */

/* Stages one readable buffer of 4 bytes. */
static inline void t_add(struct t_ring *r, uint64_t token)
{
	struct vq_segment segment = {T_DATA + 4 * (token % 1024), 4};

	t_equal(0, vq_driver_add(r->driver, &segment, 1, 0, token));
}

/* The device uses everything that is there; returns how many chains. */
static inline unsigned t_serve(struct t_ring *r)
{
	struct vq_chain chain;
	unsigned n = 0;
	int rc;

	while ((rc = vq_device_pop(r->device, &chain)) == 1) {
		vq_device_push(r->device, chain.head, 0);
		n++;
	}
	t_equal(0, rc);
	vq_device_publish(r->device);
	return n;
}

/* The driver takes everything back; returns how many buffers. */
static inline unsigned t_drain(struct t_ring *r)
{
	unsigned n = 0;
	int rc;

	while ((rc = vq_driver_get_used(r->driver, NULL, NULL)) == 1)
		n++;
	t_equal(0, rc);
	return n;
}

#endif
