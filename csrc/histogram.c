/* SPDX-License-Identifier: MIT */
/*
 * Buckets. Values below 16 have a bucket each. Above, the highest set bit picks
 * one of 60 groups and the four bits after it one of 16 parts of that group:
 *
 *   value      1 m m m m x x x x ...      highest bit at position e (4 .. 63)
 *   bucket     (e - 3) * 16 + mmmm
 *
 * so a bucket is a sixteenth of its power of two wide.
 *
 * Threads: every field is one relaxed atomic. Nothing is ordered by it: a
 * reader may see a value in `count` and not yet in its bucket, so readers add
 * up the buckets and do not rely on `count`.
 */
#include "histogram.h"

#include <stddef.h>

#define GROUP_BITS 4u /* log2(HISTOGRAM_PARTS) */

/* Relaxed, as the header of this file says: a number, no order. */
static uint64_t load(const uint64_t *field)
{
	return __atomic_load_n(field, __ATOMIC_RELAXED);
}

static void store(uint64_t *field, uint64_t value)
{
	__atomic_store_n(field, value, __ATOMIC_RELAXED);
}

void histogram_init(struct histogram *h)
{
	store(&h->count, 0);
	store(&h->sum, 0);
	store(&h->min, UINT64_MAX);
	store(&h->max, 0);
	for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++)
		store(&h->buckets[i], 0);
}

unsigned histogram_bucket(uint64_t ns)
{
	unsigned exponent;

	if (ns < HISTOGRAM_PARTS)
		return (unsigned)ns;
	exponent = 63u - (unsigned)__builtin_clzll(ns);
	return (exponent - GROUP_BITS + 1) * HISTOGRAM_PARTS +
	       (unsigned)((ns >> (exponent - GROUP_BITS)) & (HISTOGRAM_PARTS - 1));
}

uint64_t histogram_low(unsigned bucket)
{
	unsigned group, part;

	if (bucket >= HISTOGRAM_BUCKETS)
		bucket = HISTOGRAM_BUCKETS - 1;
	group = bucket / HISTOGRAM_PARTS;
	part = bucket % HISTOGRAM_PARTS;
	if (group == 0)
		return part;
	return (uint64_t)(HISTOGRAM_PARTS + part) << (group - 1);
}

uint64_t histogram_high(unsigned bucket)
{
	if (bucket >= HISTOGRAM_BUCKETS - 1)
		return UINT64_MAX;
	return histogram_low(bucket + 1) - 1;
}

void histogram_record(struct histogram *h, uint64_t ns)
{
	uint64_t seen;

	__atomic_fetch_add(&h->buckets[histogram_bucket(ns)], 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&h->sum, ns, __ATOMIC_RELAXED);
	__atomic_fetch_add(&h->count, 1, __ATOMIC_RELAXED);

	/* Most values are no new extreme, so the loops below mostly cost one load. */
	seen = load(&h->min);
	while (ns < seen && !__atomic_compare_exchange_n(&h->min, &seen, ns, 1, __ATOMIC_RELAXED,
							 __ATOMIC_RELAXED))
		;
	seen = load(&h->max);
	while (ns > seen && !__atomic_compare_exchange_n(&h->max, &seen, ns, 1, __ATOMIC_RELAXED,
							 __ATOMIC_RELAXED))
		;
}

void histogram_copy(const struct histogram *from, struct histogram *to)
{
	to->count = load(&from->count);
	to->sum = load(&from->sum);
	to->min = load(&from->min);
	to->max = load(&from->max);
	for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++)
		to->buckets[i] = load(&from->buckets[i]);
}

uint64_t histogram_quantile(const struct histogram *h, unsigned permille)
{
	uint64_t total = 0, rank, below = 0, max;
	unsigned bucket;

	for (bucket = 0; bucket < HISTOGRAM_BUCKETS; bucket++)
		total += load(&h->buckets[bucket]);
	if (total == 0)
		return 0;
	if (permille > 1000)
		permille = 1000;

	/* The rank of the value asked for, 1 .. total, rounded up; split so it cannot overflow. */
	rank = total / 1000 * permille + (total % 1000 * permille + 999) / 1000;
	if (rank == 0)
		rank = 1;
	/* A writer may have added to a bucket since; the rank is then met a little earlier. */
	for (bucket = 0; bucket < HISTOGRAM_BUCKETS - 1; bucket++) {
		below += load(&h->buckets[bucket]);
		if (below >= rank)
			break;
	}
	max = load(&h->max);
	return histogram_high(bucket) < max ? histogram_high(bucket) : max;
}
