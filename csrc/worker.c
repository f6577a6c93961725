/* SPDX-License-Identifier: MIT */
/*
 * One thread, one epoll set: the device's, with the kick eventfds of its queues, to
 * which the worker adds an eventfd that says stop. A kick that was read means "look
 * at the queue": bln_process() then takes what is there, until it is empty or others
 * should have their turn (it pokes the eventfd itself in that case). Eventfds that a
 * front end brings or takes away are added and removed by balloon_rings.c.
 *
 * The processor may be chosen since a wake-up across processors can cost far more
 * than one on the same, in particular under a hypervisor that has to be asked to
 * run the other one.
 *
 * The creator blocks all signals but SIGBUS around the creation, and the thread
 * inherits that: there is no moment at which a handler of the program could run here.
 */
#include "worker.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "balloon_internal.h"

#define EVENT_STOP (2 * BLN_QUEUES) /* the mark that follows those of bln_follow() */
#define EVENTS     (EVENT_STOP + 1)

struct bln_worker {
	struct bln_device *dev; /* what it serves */
	pthread_t thread;       /* the thread */
	clockid_t clock;        /* its processor time */
	sem_t started;          /* posted once tid is there */
	int tid;                /* its kernel thread id */
	int stop_fd;            /* raised to end it */
};

static void *run(void *arg)
{
	struct bln_worker *worker = arg;
	struct epoll_event events[EVENTS];

	worker->tid = (int)gettid();
	sem_post(&worker->started);
	for (;;) {
		const int n = epoll_wait(worker->dev->kicks_fd, events, EVENTS, -1);

		if (n < 0 && errno != EINTR)
			return NULL;
		/* Stop goes before queues that became ready at the same time. */
		for (int i = 0; i < n; i++) {
			if (events[i].data.u32 == EVENT_STOP)
				return NULL;
		}
		for (int i = 0; i < n; i++) {
			const unsigned mark = events[i].data.u32;

			/* Errors show in status. */
			if (bln_kick_take(worker->dev, mark))
				(void)bln_process(worker->dev, mark % BLN_QUEUES);
		}
	}
}

/* Level-triggered, as the kicks: what was not read yet wakes again, so none is missed. */
static int open_events(struct bln_worker *worker)
{
	worker->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (worker->stop_fd < 0)
		return -errno;
	return bln_follow(worker->dev, worker->stop_fd, EVENT_STOP);
}

static int start_thread(struct bln_worker *worker, int cpu)
{
	sigset_t all, before;
	cpu_set_t set;
	int rc;

	sigfillset(&all);
	sigdelset(&all, SIGBUS); /* our own access to memory that went away; see memory_guard.h */
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(&worker->thread, NULL, run, worker);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (rc)
		return -rc;

	pthread_setname_np(worker->thread, "balloon-dev");
	if (cpu >= 0 && cpu < CPU_SETSIZE) {
		CPU_ZERO(&set);
		CPU_SET((size_t)cpu, &set);
		/* May be refused, by a container for one; it works without. */
		(void)pthread_setaffinity_np(worker->thread, sizeof(set), &set);
	}
	while (sem_wait(&worker->started) && errno == EINTR)
		;
	return 0;
}

/* Also after a failed start: what was not opened is -1. */
static void close_events(struct bln_worker *worker)
{
	if (worker->stop_fd >= 0)
		close(worker->stop_fd); /* leaves the set by that */
	sem_destroy(&worker->started);
	free(worker);
}

int bln_worker_start(struct bln_device *dev, int cpu, struct bln_worker **out)
{
	struct bln_worker *worker = calloc(1, sizeof(*worker));
	int rc;

	if (!worker)
		return -ENOMEM;
	worker->dev = dev;
	worker->stop_fd = -1;
	sem_init(&worker->started, 0, 0);
	rc = open_events(worker);
	if (rc == 0)
		rc = bln_lazy_start(dev);
	if (rc) {
		close_events(worker);
		return rc;
	}
	rc = start_thread(worker, cpu);
	if (rc) {
		bln_lazy_stop(dev);
		close_events(worker);
		return rc;
	}
	(void)pthread_getcpuclockid(worker->thread, &worker->clock);
	*out = worker;
	return 0;
}

void bln_worker_stop(struct bln_worker *worker)
{
	if (!worker)
		return;
	bln_raise(worker->stop_fd);
	/* It may be sitting out an injected delay; what it has in hand is then shown at once. */
	bln_hurry(worker->dev, true);
	pthread_join(worker->thread, NULL);
	bln_hurry(worker->dev, false);
	/* The flusher last: the device thread may have waited for it. */
	bln_lazy_stop(worker->dev);
	close_events(worker);
}

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec t = {0};

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

uint64_t bln_worker_cpu_ns(const struct bln_worker *worker)
{
	return clock_ns(worker->clock) + clock_ns(worker->dev->lazy.clock);
}

int bln_worker_tid(const struct bln_worker *worker)
{
	return worker->tid;
}
