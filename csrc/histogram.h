/* SPDX-License-Identifier: MIT */
/*
 * A log-linear histogram of nanoseconds: 64 powers of two, each cut into 16
 * linear parts, so a value is known to about 6 per cent over the whole range.
 * Recording is lock free; one writer or several.
 */
#ifndef BALLOONVQ_HISTOGRAM_H
#define BALLOONVQ_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_PARTS   16u
#define HISTOGRAM_BUCKETS (61u * HISTOGRAM_PARTS)

struct histogram {
	uint64_t count;                      /* values recorded */
	uint64_t sum;                        /* of the values, ns */
	uint64_t min, max;                   /* ns; min is UINT64_MAX while empty */
	uint64_t buckets[HISTOGRAM_BUCKETS]; /* counts */
};

void histogram_init(struct histogram *h);
void histogram_record(struct histogram *h, uint64_t ns);

/* A copy of a histogram that may be in use; each field is exact, all of them together only at rest. */
void histogram_copy(const struct histogram *from, struct histogram *to);

/* The bucket of a value, and the lowest and highest value of a bucket. */
unsigned histogram_bucket(uint64_t ns);
uint64_t histogram_low(unsigned bucket);
uint64_t histogram_high(unsigned bucket);

/* The value below which `permille` thousandths of the values lie (upper bound of its bucket, at
 * most max); 0 while empty. */
uint64_t histogram_quantile(const struct histogram *h, unsigned permille);

#endif
