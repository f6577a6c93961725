/* SPDX-License-Identifier: MIT */
/*
 * The device thread: sleeps on the kick eventfds, runs bln_process(), calls.
 * It is C all the way down and never needs Python's interpreter lock.
 */
#ifndef BALLOONVQ_WORKER_H
#define BALLOONVQ_WORKER_H

#include "balloon_device.h"

struct bln_worker; /* opaque */

/* Starts the thread with all signals blocked; a device has one at a time. cpu >= 0 binds it to that processor (best effort).
 * 0, -ENOMEM, -errno. */
int bln_worker_start(struct bln_device *dev, int cpu, struct bln_worker **out);

/* Ends the thread and waits for it; queued requests are left where they are. */
void bln_worker_stop(struct bln_worker *worker);

/* Processor time the thread has used, ns (CLOCK_THREAD_CPUTIME_ID), and its kernel thread id. */
uint64_t bln_worker_cpu_ns(const struct bln_worker *worker);
int bln_worker_tid(const struct bln_worker *worker);

#endif
