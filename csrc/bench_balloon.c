/* SPDX-License-Identifier: MIT */
/*
 * The rig's place in guest memory, from `area` on:
 *
 *   inflate ring | deflate ring | arrays, one behind the other in the order of the run
 *   RING_BYTES     RING_BYTES     4 bytes a PFN
 */
#include "bench_balloon.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "barrier.h"
#include "worker.h"

#define QUEUE_SIZE  128u
#define RING_BYTES  0x10000ull
#define DRIVER_AT   0x4000ull /* in a ring's place: its available ring */
#define DEVICE_AT   0x8000ull /* and its used ring */
#define ARRAYS_AT   (2 * RING_BYTES)
#define ARRAY_BYTES (BENCH_ARRAY * sizeof(uint32_t))
#define PATIENCE_MS 10000
#define NUM_PAGES   0u /* in the configuration space */
#define ACTUAL      4u

struct bench_rig {
	struct gm *mem;              /* whose pages */
	struct bln_device *dev;      /* what is measured */
	struct bln_worker *worker;   /* its threads, or NULL */
	struct vq_driver *driver[2]; /* inflate, deflate */
	uint64_t arrays;             /* guest address of the arrays */
	uint64_t pages;              /* PFNs that there is room for */
};

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static uint64_t now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

/* A stopwatch: both figures of a report. The processor time is that of the calling thread. */
static void begin(struct bench_report *out)
{
	*out = (struct bench_report){0};
	out->cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID);
	out->ns = now_ns();
}

static void end(struct bench_report *out)
{
	out->ns = now_ns() - out->ns;
	out->cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - out->cpu_ns;
}

/* ---- the rig ------------------------------------------------------------ */

uint64_t bench_area_bytes(uint64_t pages)
{
	const uint64_t bytes = ARRAYS_AT + pages * sizeof(uint32_t) + ARRAY_BYTES;

	return (bytes + GM_PAGE_SIZE - 1) / GM_PAGE_SIZE * GM_PAGE_SIZE;
}

static int make_queue(struct bench_rig *rig, unsigned queue, uint64_t place)
{
	const struct vq_config config = {
	    .features = bln_driver_features(rig->dev),
	    .size = QUEUE_SIZE,
	    .desc_addr = place,
	    .driver_addr = place + DRIVER_AT,
	    .device_addr = place + DEVICE_AT,
	};
	int rc = vq_driver_create(rig->mem, &config, &rig->driver[queue]);

	return rc ? rc : bln_queue_enable(rig->dev, queue, &config);
}

/* From reset to DRIVER_OK. */
static int start(struct bench_rig *rig, uint64_t area, uint64_t features)
{
	static const uint8_t steps[] = {
	    BLN_STATUS_ACKNOWLEDGE,
	    BLN_STATUS_ACKNOWLEDGE | BLN_STATUS_DRIVER,
	    BLN_STATUS_ACKNOWLEDGE | BLN_STATUS_DRIVER | BLN_STATUS_FEATURES_OK,
	};
	int rc = bln_set_driver_features(rig->dev, features | VQ_F_VERSION_1);

	for (unsigned i = 0; i < sizeof(steps) && rc == 0; i++)
		rc = bln_set_status(rig->dev, steps[i]);
	for (unsigned queue = 0; queue < 2 && rc == 0; queue++)
		rc = make_queue(rig, queue, area + queue * RING_BYTES);
	if (rc == 0)
		rc = bln_set_status(rig->dev, steps[2] | BLN_STATUS_DRIVER_OK);
	return rc;
}

int bench_rig_create(struct gm *mem, uint64_t area, uint64_t pages, uint64_t features,
		     enum discard_method method, struct bench_rig **out)
{
	const struct bln_options options = {
	    .features = features,
	    .discard = method,
	    .queue_size_max = QUEUE_SIZE,
	};
	struct bench_rig *rig;
	int rc;

	if (area % GM_PAGE_SIZE || !gm_at(mem, area, bench_area_bytes(pages)))
		return -EFAULT;
	rig = calloc(1, sizeof(*rig));
	if (!rig)
		return -ENOMEM;
	rig->mem = mem;
	rig->arrays = area + ARRAYS_AT;
	rig->pages = pages;
	rc = bln_create(mem, &options, &rig->dev);
	if (rc == 0)
		rc = start(rig, area, features);
	if (rc == 0 && (features & BLN_F_MUST_TELL_HOST))
		rc = bln_worker_start(rig->dev, -1, &rig->worker);
	if (rc) {
		bench_rig_destroy(rig);
		return rc;
	}
	*out = rig;
	return 0;
}

void bench_rig_destroy(struct bench_rig *rig)
{
	if (!rig)
		return;
	bln_worker_stop(rig->worker);
	for (unsigned queue = 0; queue < 2; queue++)
		vq_driver_destroy(rig->driver[queue]);
	if (rig->dev)
		bln_destroy(rig->dev);
	free(rig);
}

static int copy_arrays(struct bench_rig *rig, const uint32_t *pfns, size_t n)
{
	uint32_t *to;

	if (n > rig->pages)
		return -E2BIG;
	to = gm_at(rig->mem, rig->arrays, n * sizeof(*to));
	for (size_t i = 0; i < n; i++)
		to[i] = htole32(pfns[i]);
	return 0;
}

/* One request, worked off by the caller itself. */
static int send_sync(struct bench_rig *rig, unsigned queue, uint64_t addr, uint32_t bytes)
{
	if (vq_driver_send(rig->driver[queue], addr, bytes))
		return -EIO;
	/* The device's thread may have been woken by its own poke and be quicker. */
	if (bln_process(rig->dev, queue) < 0)
		return -EIO;
	return vq_driver_get_used(rig->driver[queue], NULL, NULL) == 1 ? 0 : -EIO;
}

int bench_rig_run(struct bench_rig *rig, unsigned queue, const uint32_t *pfns, size_t n,
		  struct bench_report *out)
{
	struct bln_counters before, after;
	uint64_t threads;
	int rc;

	if (queue > 1)
		return -EINVAL;
	rc = copy_arrays(rig, pfns, n);
	if (rc)
		return rc;
	vq_driver_disable_calls(rig->driver[queue]);
	bln_counters_get(rig->dev, &before);
	threads = rig->worker ? bln_worker_cpu_ns(rig->worker) : 0;
	begin(out);
	for (size_t at = 0; at < n && rc == 0; at += BENCH_ARRAY) {
		const size_t count = n - at < BENCH_ARRAY ? n - at : BENCH_ARRAY;

		rc = send_sync(rig, queue, rig->arrays + at * sizeof(*pfns),
			       (uint32_t)(count * sizeof(*pfns)));
	}
	bln_flush(rig->dev);
	end(out);
	out->cpu_ns += rig->worker ? bln_worker_cpu_ns(rig->worker) - threads : 0;
	bln_counters_get(rig->dev, &after);
	out->requests = after.requests - before.requests;
	out->ranges = after.discard.ranges - before.discard.ranges;
	out->syscalls = after.discard.syscalls - before.discard.syscalls;
	out->failed = after.discard.failed - before.discard.failed;
	return rc;
}

/* ---- wake-ups ----------------------------------------------------------- */

/* Puts a thread on a processor; refused, it works without. */
static void bind(pthread_t thread, int cpu)
{
	cpu_set_t set;

	if (cpu < 0 || cpu >= CPU_SETSIZE)
		return;
	CPU_ZERO(&set);
	CPU_SET((size_t)cpu, &set);
	(void)pthread_setaffinity_np(thread, sizeof(set), &set);
}

static int kick(int fd)
{
	const uint64_t one = 1;

	return write(fd, &one, sizeof(one)) == sizeof(one) ? 0 : -errno;
}

/*
 * An epoll set of the call eventfds, edge-triggered: each write wakes once and nothing has to be read, as for the
 * driver of a machine. Or an error.
 */
static int open_calls(struct bench_rig *rig)
{
	struct epoll_event call = {.events = EPOLLIN | EPOLLET};
	const int calls = epoll_create1(EPOLL_CLOEXEC);

	if (calls < 0)
		return -errno;
	for (unsigned queue = 0; queue < 2; queue++) {
		if (epoll_ctl(calls, EPOLL_CTL_ADD, bln_call_fd(rig->dev, queue), &call)) {
			const int rc = -errno;

			close(calls);
			return rc;
		}
	}
	return calls;
}

/* Sleeps until a call eventfd has been written since the last time. */
static int await(int calls)
{
	struct epoll_event call;
	int n;

	do {
		n = epoll_wait(calls, &call, 1, PATIENCE_MS);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	return n > 0 ? 0 : -ETIMEDOUT;
}

/* One request as a driver in a kernel makes it: kick if asked, sleep until the interrupt. */
static int send_sleeping(struct bench_rig *rig, unsigned queue, uint32_t bytes, int calls)
{
	struct vq_driver *driver = rig->driver[queue];
	int rc;

	vq_driver_enable_calls(driver);
	rc = vq_driver_submit(driver, rig->arrays, bytes);
	if (rc < 0)
		return -EIO;
	if (rc > 0) {
		rc = kick(bln_kick_fd(rig->dev, queue));
		if (rc)
			return rc;
	}
	do {
		/* First of all: the call is part of the round trip. */
		rc = await(calls);
		if (rc)
			return rc;
		rc = vq_driver_get_used(driver, NULL, NULL);
	} while (rc == 0);
	return rc == 1 ? 0 : -EIO;
}

/* A driver that sleeps, and a device thread of its own, on one processor. */
struct sleeper {
	struct bln_worker *worker; /* the device's threads */
	int calls;                 /* see open_calls() */
	cpu_set_t before;          /* where the calling thread may run otherwise */
};

static int lie_down(struct bench_rig *rig, int cpu, struct sleeper *out)
{
	int rc;

	if (pthread_getaffinity_np(pthread_self(), sizeof(out->before), &out->before))
		return -EINVAL;
	out->calls = open_calls(rig);
	if (out->calls < 0)
		return out->calls;
	bln_worker_stop(rig->worker);
	rig->worker = NULL;
	/* Before the driver is bound: the thread that gives memory back runs where there is room. */
	rc = bln_worker_start(rig->dev, cpu, &out->worker);
	if (rc) {
		close(out->calls);
		return rc;
	}
	bind(pthread_self(), cpu);
	return 0;
}

/* Back to what was before; rc, or the error of that. */
static int get_up(struct bench_rig *rig, struct sleeper *sleeper, int rc)
{
	bln_worker_stop(sleeper->worker);
	close(sleeper->calls);
	(void)pthread_setaffinity_np(pthread_self(), sizeof(sleeper->before), &sleeper->before);
	if (rc == 0 && (bln_driver_features(rig->dev) & BLN_F_MUST_TELL_HOST))
		rc = bln_worker_start(rig->dev, -1, &rig->worker);
	return rc;
}

int bench_rig_round_trips(struct bench_rig *rig, uint32_t pfn, unsigned count, int cpu,
			  struct histogram *each)
{
	struct sleeper sleeper;
	int rc = copy_arrays(rig, &pfn, 1);

	if (rc == 0)
		rc = lie_down(rig, cpu, &sleeper);
	if (rc)
		return rc;
	for (unsigned i = 0; i < count && rc == 0; i++) {
		const uint64_t started = now_ns();

		rc = send_sleeping(rig, i % 2, sizeof(pfn), sleeper.calls);
		histogram_record(each, now_ns() - started);
	}
	return get_up(rig, &sleeper, rc);
}

/* A batch of at most `most` pages, there and back. How many there were, or an error. */
static int64_t drive_batch(struct bench_rig *rig, struct pa *pa, unsigned queue, uint64_t most,
			   int calls)
{
	uint32_t pfns[BENCH_ARRAY];
	const size_t n = most < BENCH_ARRAY ? (size_t)most : BENCH_ARRAY;
	const int64_t got =
	    queue == 0 ? pa_alloc(pa, pfns, n, PA_PRIVATE) : pa_list_dequeue(pa, pfns, n);
	int rc;

	if (got <= 0)
		return -ENOMEM;
	rc = copy_arrays(rig, pfns, (size_t)got);
	if (rc == 0)
		rc = send_sleeping(rig, queue, (uint32_t)((size_t)got * sizeof(*pfns)), calls);
	if (rc)
		return rc;
	rc = queue == 0 ? pa_list_insert(pa, pfns, (size_t)got)
			: pa_free(pa, pfns, (size_t)got, PA_IN_FLIGHT);
	return rc ? rc : got;
}

int bench_rig_drive(struct bench_rig *rig, struct pa *pa, unsigned queue, uint64_t pages, int cpu,
		    uint64_t *cpu_ns)
{
	struct bln_counters before, after;
	struct sleeper sleeper;
	uint64_t done = 0;
	int rc;

	if (queue > 1)
		return -EINVAL;
	rc = lie_down(rig, cpu, &sleeper);
	if (rc)
		return rc;
	bln_counters_get(rig->dev, &before);
	*cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID);
	while (done < pages && rc == 0) {
		int64_t moved = bln_config_read32(rig->dev, NUM_PAGES);

		if (moved >= 0)
			moved = drive_batch(rig, pa, queue, pages - done, sleeper.calls);
		if (moved < 0) {
			rc = (int)moved;
			break;
		}
		done += (uint64_t)moved;
		rc = bln_config_write32(rig->dev, ACTUAL,
					(uint32_t)(queue == 0 ? done : pages - done));
	}
	*cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - *cpu_ns;
	bln_counters_get(rig->dev, &after);
	if (rc == 0 && after.inflated_pages + after.deflated_pages -
			       (before.inflated_pages + before.deflated_pages) !=
			   pages)
		rc = -EIO;
	return get_up(rig, &sleeper, rc);
}

/* ---- as others do it ---------------------------------------------------- */

/* A piece of one region; adds what it took. */
static int give_back_piece(const struct gm_region *region, uint64_t addr, uint64_t bytes,
			   bool unmap, struct bench_report *out)
{
	const uint64_t offset = addr - region->guest_addr;

	out->ranges++;
	if (region->fd >= 0) {
		out->syscalls++;
		if (fallocate(region->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      (off_t)(region->fd_offset + offset), (off_t)bytes))
			return -errno;
	}
	if (region->fd < 0 || unmap) {
		out->syscalls++;
		if (madvise(region->host + offset, (size_t)bytes, MADV_DONTNEED))
			return -errno;
	}
	return 0;
}

/* A range of pages, cut where regions end; adds what it took. */
static int give_back(struct gm *mem, uint64_t addr, uint64_t bytes, bool unmap,
		     struct bench_report *out)
{
	int rc = 0;

	while (bytes > 0 && rc == 0) {
		const struct gm_region *region = gm_find(mem, addr);
		uint64_t here;

		if (!region)
			return -EFAULT;
		here = gm_region_rest(region, addr, bytes);
		rc = give_back_piece(region, addr, here, unmap, out);
		addr += here;
		bytes -= here;
	}
	return rc;
}

int bench_in_one(struct gm *mem, uint64_t addr, uint64_t bytes, struct bench_report *out)
{
	int rc;

	begin(out);
	rc = give_back(mem, addr, bytes, false, out);
	end(out);
	return rc;
}

int bench_page_by_page(struct gm *mem, const uint32_t *pfns, size_t n, struct bench_report *out)
{
	int rc = 0;

	begin(out);
	out->requests = (n + BENCH_ARRAY - 1) / BENCH_ARRAY;
	for (size_t i = 0; i < n && rc == 0; i++)
		rc = give_back(mem, (uint64_t)pfns[i] << GM_PAGE_SHIFT, GM_PAGE_SIZE, true, out);
	end(out);
	return rc;
}

static int rising(const void *a, const void *b)
{
	const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

int bench_merged(struct gm *mem, const uint32_t *pfns, size_t n, struct bench_report *out)
{
	uint32_t array[BENCH_ARRAY];
	int rc = 0;

	begin(out);
	out->requests = (n + BENCH_ARRAY - 1) / BENCH_ARRAY;
	for (size_t at = 0; at < n && rc == 0; at += BENCH_ARRAY) {
		const size_t count = n - at < BENCH_ARRAY ? n - at : BENCH_ARRAY;

		memcpy(array, pfns + at, count * sizeof(*array));
		qsort(array, count, sizeof(*array), rising);
		for (size_t i = 0, next; i < count && rc == 0; i = next) {
			for (next = i + 1; next < count && array[next] == array[next - 1] + 1;
			     next++)
				;
			rc = give_back(mem, (uint64_t)array[i] << GM_PAGE_SHIFT,
				       (uint64_t)(next - i) << GM_PAGE_SHIFT, false, out);
		}
	}
	end(out);
	return rc;
}

/* ---- memory and a thread in the way ------------------------------------- */

int64_t bench_touch(struct gm *mem, const uint32_t *pfns, size_t n)
{
	struct gm_window window = {0};
	const uint64_t started = now_ns();

	for (size_t i = 0; i < n; i++) {
		uint8_t *page =
		    gm_at_window(mem, &window, (uint64_t)pfns[i] << GM_PAGE_SHIFT, GM_PAGE_SIZE);

		if (!page)
			return -EFAULT;
		/* A store that cannot undo what another thread writes. */
		__atomic_fetch_or(page, 1, __ATOMIC_RELAXED);
	}
	return (int64_t)(now_ns() - started);
}

struct bench_sibling {
	pthread_t thread;
	uint32_t end;     /* atomic */
	uint64_t turns;   /* so that it does something */
	cpu_set_t before; /* where its creator may run */
	bool apart;       /* its creator was kept off its processor */
};

/* The last processor that we may run on, or -1 if there is only one. */
static int last_cpu(void)
{
	cpu_set_t set;
	int last = -1;

	if (sched_getaffinity(0, sizeof(set), &set) || CPU_COUNT(&set) < 2)
		return -1;
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (CPU_ISSET((size_t)cpu, &set))
			last = cpu;
	}
	return last;
}

static void *spin(void *arg)
{
	struct bench_sibling *sibling = arg;

	bind(pthread_self(), last_cpu());
	while (!__atomic_load_n(&sibling->end, __ATOMIC_RELAXED))
		__atomic_fetch_add(&sibling->turns, 1, __ATOMIC_RELAXED);
	return NULL;
}

/* Threads that are made meanwhile inherit it. */
static void keep_apart(struct bench_sibling *sibling)
{
	const int cpu = last_cpu();
	cpu_set_t others;

	if (cpu < 0 ||
	    pthread_getaffinity_np(pthread_self(), sizeof(sibling->before), &sibling->before))
		return;
	others = sibling->before;
	CPU_CLR((size_t)cpu, &others);
	sibling->apart = pthread_setaffinity_np(pthread_self(), sizeof(others), &others) == 0;
}

int bench_sibling_start(struct bench_sibling **out)
{
	struct bench_sibling *sibling = calloc(1, sizeof(*sibling));
	int rc;

	if (!sibling)
		return -ENOMEM;
	rc = pthread_create(&sibling->thread, NULL, spin, sibling);
	if (rc) {
		free(sibling);
		return -rc;
	}
	keep_apart(sibling);
	*out = sibling;
	return 0;
}

void bench_sibling_stop(struct bench_sibling *sibling)
{
	if (!sibling)
		return;
	__atomic_store_n(&sibling->end, 1, __ATOMIC_RELAXED);
	pthread_join(sibling->thread, NULL);
	if (sibling->apart)
		(void)pthread_setaffinity_np(pthread_self(), sizeof(sibling->before),
					     &sibling->before);
	free(sibling);
}
