/* SPDX-License-Identifier: MIT */
/*
 * Giving pages back to the host: PFNs in any order -> sorted, merged ranges ->
 * as few holes as possible.
 *
 * A discarder collects PFNs of one or several requests and then flushes them.
 * Only whole host pages are dropped: where the host's page is bigger than
 * 4 KiB, a range is rounded inward (T-49). Shared file memory is dropped by
 * punching a hole in the file, since MADV_DONTNEED frees nothing there (T-50).
 */
#ifndef BALLOONVQ_DISCARD_H
#define BALLOONVQ_DISCARD_H

#include <stddef.h>
#include <stdint.h>

#include "guest_memory.h"

enum discard_method {
	DISCARD_PUNCH = 0, /* fallocate(PUNCH_HOLE): the page leaves the file */
	DISCARD_DONTNEED,  /* madvise(MADV_DONTNEED) */
	DISCARD_FREE,      /* madvise(MADV_FREE): lazily, private memory only */
	DISCARD_NONE       /* count only */
};

/* Counts since creation. */
struct discard_counters {
	uint64_t ranges;   /* merged ranges given back */
	uint64_t syscalls; /* system calls made for them */
	uint64_t pages;    /* 4 KiB pages in those ranges */
	uint64_t failed;   /* ranges that the host refused; the pages stay allocated */
	uint64_t partial;  /* 4 KiB pages left alone since they are part of a bigger host page */
};

struct discard; /* opaque */

/* 0, -EINVAL, -ENOMEM. */
int discard_create(struct gm *mem, enum discard_method method, struct discard **out);
void discard_destroy(struct discard *d);

/*
 * Gives the n pages back now, sorting pfns in place. Every PFN must lie inside
 * guest memory (the caller checked); duplicates are dropped once. Returns the number of
 * ranges the host took, or -errno of the first one that failed (the others are still done).
 */
int64_t discard_pages(struct discard *d, uint32_t *pfns, size_t n);

void discard_counters_get(const struct discard *d, struct discard_counters *out);

/* Makes the next n ranges fail with -EIO without a system call (fault injection). */
void discard_fail_next(struct discard *d, uint64_t n);

#endif
