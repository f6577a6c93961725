/* SPDX-License-Identifier: MIT */
/*
 * Giving pages back to the host: PFNs in any order -> sorted, merged ranges ->
 * as few holes as possible.
 *
 * PFNs of one or several requests are given together, sorted in place and
 * merged. Only whole host pages are dropped: where the host's page is bigger than
 * 4 KiB, a range is rounded inward (T-49). Shared file memory is dropped by
 * punching a hole in the file, since MADV_DONTNEED frees nothing there (T-50), and private
 * memory by MADV_DONTNEED; many ranges in one system call where the kernel can do that (6.13).
 *
 * Scattered holes empty our mapping of the memory around them now and then. Nothing is lost by
 * that, but the next access to such a page is a fault that finds it again.
 *
 * Threads: discard_pages() by one at a time; counters and faults from any.
 */
#ifndef BALLOONVQ_DISCARD_H
#define BALLOONVQ_DISCARD_H

#include <stddef.h>
#include <stdint.h>

#include "guest_memory.h"

enum discard_method {
	DISCARD_PUNCH = 0, /* fallocate(PUNCH_HOLE): the page leaves the file; no private memory */
	DISCARD_DONTNEED,  /* madvise(MADV_DONTNEED); frees private memory only */
	DISCARD_FREE,      /* madvise(MADV_FREE): lazily, private memory only */
	DISCARD_NONE       /* count only */
};

/* Counts since creation. */
struct discard_counters {
	uint64_t ranges;   /* merged ranges given back */
	uint64_t syscalls; /* system calls made for them, and to empty the mapping */
	uint64_t pages;    /* 4 KiB pages in those ranges */
	uint64_t failed;   /* ranges that the host refused; the pages stay allocated */
	uint64_t partial;  /* 4 KiB pages left alone since they are part of a bigger host page */
};

struct discard; /* opaque */

/* 0, -EINVAL, -ENOMEM. */
int discard_create(struct gm *mem, enum discard_method method, struct discard **out);
void discard_destroy(struct discard *d);

/* A second one over the memory of the first, for another thread. It adds to the counts of the first
 * and takes from its faults, so the first must live longer, and goes on with another memory map
 * (discard_set_memory()) before this one does. 0, -ENOMEM. */
int discard_create_beside(struct discard *first, struct discard **out);

/* The biggest host page under guest memory: only whole ones can be given back. */
uint64_t discard_granule(const struct discard *d);

/*
 * Gives the n pages back now, sorting pfns in place. Every PFN must lie inside
 * guest memory (the caller checked); duplicates are dropped once. Returns the number of
 * ranges the host took, or -errno of the first one that failed (the others are still done).
 */
int64_t discard_pages(struct discard *d, uint32_t *pfns, size_t n);

/*
 * Gives [addr, addr + len) back with one system call: the limit that a benchmark holds the rest
 * against. Whole pages inside one region. 0, -EINVAL, -EFAULT, -errno.
 */
int discard_range(struct discard *d, uint64_t addr, uint64_t len);

/*
 * So many holes, at least DISCARD_BLOCK_HOLES, are about to come in each of n blocks: our mapping of
 * the blocks is emptied now, and not again by those holes. Blocks rise. This is only for speed:
 * unknown blocks are skipped, and nothing is lost. Like discard_pages(), by one thread at a time
 * for each discarder.
 */
#define DISCARD_BLOCK_HOLES 8
struct discard_block {
	uint32_t block; /* guest addresses from block * 2 MiB on */
	uint16_t holes; /* at most 256 */
};
void discard_prepare(struct discard *d, const struct discard_block *blocks, size_t n);

void discard_counters_get(const struct discard *d, struct discard_counters *out);

/* Makes the next n ranges fail with -EIO without a system call (fault injection); replaces an
 * earlier n. discard_fail_left: how many of them are still to come. */
void discard_fail_next(struct discard *d, uint64_t n);
uint64_t discard_fail_left(const struct discard *d);

/*
 * Only of use where the host's page is bigger than 4 KiB. `held` (bit p % 64 of
 * word p / 64 = page p; it covers all of guest memory) tells which pages the
 * guest has given up. A host page that a request completes is then dropped whole,
 * with the parts that earlier requests brought. Those requests are acknowledged
 * already, so this is allowed only with MUST_TELL_HOST (BAL-DEV-06, T-24); NULL
 * turns it off. Not to be called, nor `held` changed, during discard_pages().
 */
void discard_set_held(struct discard *d, const uint64_t *held);

/* Goes on with another memory map; what discard_set_held() was told is forgotten. Not to be called
 * during discard_pages(). */
void discard_set_memory(struct discard *d, struct gm *mem);

/* Pretends a host page of `bytes` (a power of 2, at least 4096) for tests; 0 = the real one. */
void discard_set_host_page(struct discard *d, uint64_t bytes);

#endif
