/* SPDX-License-Identifier: MIT */
/*
 * Internal: what the half of a queue begins with. The structure of its format
 * starts with this one.
 */
#ifndef BALLOONVQ_VQ_HALF_H
#define BALLOONVQ_VQ_HALF_H

#include <stdlib.h>

#include "virtqueue.h"

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* A half is aligned to this, so that the threads of the two halves share no line. */
#define VQ_CACHE_LINE 64u

struct vq_driver {
	enum vq_broken broken; /* VQ_OK, or the first reason; never cleared */
};

struct vq_device {
	enum vq_broken broken; /* likewise */
};

/* Zeroed memory on cache lines of its own; NULL when there is none. Freed by free(). */
void *vq_alloc(size_t bytes);

#endif
