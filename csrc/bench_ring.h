/* SPDX-License-Identifier: MIT */
/*
 * What a buffer's way through a ring costs, and what the machine's own limits are.
 *
 * The work of one buffer is that of the kernel's tools/virtio/ringtest: the driver half
 * adds one descriptor with a token and shows it, kicks if asked; the device half takes
 * it, marks it used with a length, calls if asked; the driver half takes the token back.
 * Both halves are the product's own, driven through virtqueue.h.
 *
 * Every function runs to its end (fractions of a second for the counts that make sense),
 * with threads of its own that block all signals.
 */
#ifndef BALLOONVQ_BENCH_RING_H
#define BALLOONVQ_BENCH_RING_H

#include <stdint.h>

#include "histogram.h"

/* Where the two threads run: processor numbers, -1 = wherever the scheduler likes. */
struct bench_cpus {
	int driver, device;
};

/* How both sides wait, and who they are. */
enum bench_ring_way {
	BENCH_RING_ALONE = 0, /* one thread plays both halves in turn */
	BENCH_RING_POLLING,   /* two threads; both look again and again and want no notifications */
	BENCH_RING_SLEEPING,  /* two threads that sleep on eventfds when they find nothing */
	BENCH_RING_WAYS       /* count; not a way */
};

struct bench_ring_options {
	uint32_t way;         /* enum bench_ring_way */
	uint32_t queue_size;  /* descriptors; a power of 2 */
	uint32_t batch;       /* buffers a publication, both sides; 1..outstanding, divides it */
	uint32_t outstanding; /* most buffers on their way; up to queue_size */
	uint64_t buffers;     /* how many to send, a multiple of batch */
	struct bench_cpus cpus;
};

/* What was seen. */
struct bench_ring_result {
	uint64_t buffers;      /* tokens that came back, each the expected one */
	uint64_t served;       /* buffers that the device half marked used */
	uint64_t ns;           /* from the first add to the last token */
	uint64_t kicks, calls; /* notifications that were asked for */
	uint64_t sleeps;       /* times a side slept, both together */
	int bound;             /* 1: each thread runs on the processor that was wanted */
	struct histogram trip; /* ns from add to token; filled when outstanding is 1 */
};

/*
 * Sends buffers. Returns 0; -EINVAL for options that do not fit together; -EIO when a half
 * broke or a token was not the expected one; -ENOMEM; the -errno of threads and eventfds.
 */
int bench_ring_run(const struct bench_ring_options *options, struct bench_ring_result *out);

/* A limit of the machine: round trips and what they took. */
struct bench_limit {
	uint64_t rounds; /* that were made */
	uint64_t ns;     /* from first to last */
	int bound;       /* as in bench_ring_result */
};

/* Two threads write to a cache line each in turn; a round is there and back. Returns as above. */
int bench_ping_pong(uint64_t rounds, struct bench_cpus cpus, struct bench_limit *out);

/* A queue of `slots` (a power of 2) words: one thread fills empty ones, the other empties full ones
 * as they come; a round is a word there and its place back. Returns as above. */
int bench_slots(uint64_t rounds, uint32_t slots, struct bench_cpus cpus, struct bench_limit *out);

/* Two threads wake each other by eventfds; a round is there and back. Returns as above. */
int bench_eventfds(uint64_t rounds, struct bench_cpus cpus, struct bench_limit *out);

#endif
