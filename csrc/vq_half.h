/* SPDX-License-Identifier: MIT */
/*
 * Internal: what the half of a queue begins with, whatever its format.
 * virtqueue.c looks at `format` and passes the call on; the format's own
 * structure starts with this one.
 */
#ifndef BALLOONVQ_VQ_HALF_H
#define BALLOONVQ_VQ_HALF_H

#include <stdlib.h>

#include "virtqueue.h"

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* A half is aligned to this, so that the threads of the two halves share no line. */
#define VQ_CACHE_LINE 64u

enum vq_format {
	VQ_FORMAT_SPLIT = 0,
	VQ_FORMAT_PACKED, /* not built in yet */
};

struct vq_driver {
	enum vq_format format; /* which structure this is the head of */
	enum vq_broken broken; /* VQ_OK, or the first reason; never cleared */
};

struct vq_device {
	enum vq_format format; /* as above */
	enum vq_broken broken; /* as above */
};

/* vq_need_event() where a call would be felt. Both sides count backwards from the newest entry:
 * its distance to the event against the length of the step. Equality of indices would lose
 * batches (T-30). */
static inline int need_event(uint16_t event_idx, uint16_t new_idx, uint16_t old_idx)
{
	return (uint16_t)(new_idx - event_idx - 1) < (uint16_t)(new_idx - old_idx);
}

/* Zeroed memory on cache lines of its own; NULL when there is none. Freed by free(). */
void *vq_alloc(size_t bytes);

#endif
