/* SPDX-License-Identifier: MIT */
/*
 * What the balloon benchmarks time, in C: a driver that does nothing but send PFN arrays, the ways in
 * which others give the same pages back, a thread that gets in the way, and what a wake-up costs.
 *
 * The rig is a device over some guest memory and the least driver that can be: its arrays lie in
 * guest memory before the clock starts, and it sends one at a time, as Linux does.
 *
 *   sync    the driver calls the device itself: ring, device and discard, no thread, no eventfd
 *   sleep   the device has its thread; both sides sleep on eventfds between requests
 *
 * With BLN_F_MUST_TELL_HOST the device's threads run in both, since one of them gives memory back;
 * the clock stops when all of it has left.
 */
#ifndef BALLOONVQ_BENCH_BALLOON_H
#define BALLOONVQ_BENCH_BALLOON_H

#include <stddef.h>
#include <stdint.h>

#include "balloon_device.h"
#include "histogram.h"
#include "page_allocator.h"

#define BENCH_ARRAY 256u /* PFNs in a request: VIRTIO_BALLOON_ARRAY_PFNS_MAX */

struct bench_rig; /* opaque */

/* One measurement. */
struct bench_report {
	uint64_t ns; /* from the first array until all memory has left, or is the guest's again */
	uint64_t cpu_ns;   /* processor time of the threads that did it */
	uint64_t requests; /* arrays */
	uint64_t ranges;   /* ranges given back */
	uint64_t syscalls; /* system calls made for that */
	uint64_t failed;   /* ranges that the host refused */
};

/*
 * Rings and arrays for up to `pages` PFNs lie from guest address `area` on, in bench_area_bytes(pages).
 * features are offered and accepted; VERSION_1 is added. 0, or an error of bln_create() and what follows it;
 * -EFAULT if the area is not in guest memory.
 */
int bench_rig_create(struct gm *mem, uint64_t area, uint64_t pages, uint64_t features,
		     enum discard_method method, struct bench_rig **out);
void bench_rig_destroy(struct bench_rig *rig);
uint64_t bench_area_bytes(uint64_t pages);

/* Inflates (queue 0) or deflates (queue 1) n pages in this order, sync. 0, -E2BIG, or -EIO if the
 * device did not take or acknowledge an array. */
int bench_rig_run(struct bench_rig *rig, unsigned queue, const uint32_t *pfns, size_t n,
		  struct bench_report *out);

/*
 * `count` requests of one page that is inflated and deflated in turn, sleep. Each request's time goes into *each.
 * cpu >= 0 is where both sides run, -1 wherever. 0, -EIO, -errno.
 */
int bench_rig_round_trips(struct bench_rig *rig, uint32_t pfn, unsigned count, int cpu,
			  struct histogram *each);

/*
 * What a driver in C does where the whole path has one in Python, sleep: until it has had `pages` pages it reads
 * the target, takes a batch of them from pa (queue 0: free ones; queue 1: listed ones), puts their PFNs into an
 * array, sends that, sleeps until it is used, lists (frees) the pages, and writes the size. The device gives
 * memory back meanwhile. *cpu_ns is the processor time of the calling thread, which is the driver; cpu as above.
 * 0, -ENOMEM if pa has no more pages, -EIO (also if the device did not take them all), -errno.
 */
int bench_rig_drive(struct bench_rig *rig, struct pa *pa, unsigned queue, uint64_t pages, int cpu,
		    uint64_t *cpu_ns);

/* The limit: [addr, addr + bytes) of one region by one system call. 0, -EFAULT, -errno. */
int bench_in_one(struct gm *mem, uint64_t addr, uint64_t bytes, struct bench_report *out);

/*
 * The same pages page by page, as QEMU does: a hole each in a file, and MADV_DONTNEED of its mapping too.
 * requests are arrays of BENCH_ARRAY. 0, -EFAULT, or the first -errno.
 */
int bench_page_by_page(struct gm *mem, const uint32_t *pfns, size_t n, struct bench_report *out);

/* The same pages array by array, each sorted and merged, as Firecracker does: one call a range. */
int bench_merged(struct gm *mem, const uint32_t *pfns, size_t n, struct bench_report *out);

/* Writes to each of the pages; ns of it. -EFAULT. */
int64_t bench_touch(struct gm *mem, const uint32_t *pfns, size_t n);

/* A thread of this process that runs all the time, so that there are TLBs to shoot down. If there are two
 * processors it has the last for itself: the calling thread, which must be the one that stops it, and those
 * that it makes meanwhile run on the others. */
struct bench_sibling;                                /* opaque */
int bench_sibling_start(struct bench_sibling **out); /* 0, -ENOMEM, -errno */
void bench_sibling_stop(struct bench_sibling *sibling);

#endif
