/* SPDX-License-Identifier: MIT */
/*
 * The device thread: sleeps on the kick eventfds, runs bln_process(), calls. Beside it
 * runs the flusher, which gives memory back that is owed (lazy.c). Both are C all the way
 * down and never need Python's interpreter lock.
 */
#ifndef BALLOONVQ_WORKER_H
#define BALLOONVQ_WORKER_H

#include "balloon_device.h"

struct bln_worker; /* opaque */

/* Starts the threads with all signals blocked; a device has one pair at a time. cpu >= 0 binds the
 * device thread to that processor (best effort). 0, -ENOMEM, -errno. */
int bln_worker_start(struct bln_device *dev, int cpu, struct bln_worker **out);

/* Ends the threads and waits for them. Queued requests are left where they are, and owed pages in
 * guest memory, for the next worker. */
void bln_worker_stop(struct bln_worker *worker);

/* Processor time the threads have used, ns (CLOCK_THREAD_CPUTIME_ID), and the kernel thread id of the
 * device thread. */
uint64_t bln_worker_cpu_ns(const struct bln_worker *worker);
int bln_worker_tid(const struct bln_worker *worker);

#endif
