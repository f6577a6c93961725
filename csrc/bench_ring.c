/* SPDX-License-Identifier: MIT */
/*
 * One run, two threads (BENCH_RING_ALONE: one that plays both parts in turn):
 *
 *   driver thread                                device thread
 *     while there is room: add K, publish          pop up to K, push each
 *       [kick needed? write kick eventfd]            publish [call needed? write call eventfd]
 *     get_used until there is none                 nothing there: wait
 *     nothing came back and no room: wait
 *
 * Waiting is a pause of the processor and another look, or [SLEEPING] arming the
 * notification and reading the eventfd. A poller that found nothing many times yields,
 * since the other side may need this very processor.
 *
 * Tokens are numbers from 0. The device half serves in order, so each must come back in
 * turn: one comparison a buffer shows that none was lost, doubled or mixed up.
 *
 * What each thread writes while it is measured stands on cache lines of its own.
 */
#include "bench_ring.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "guest_memory.h"
#include "virtqueue.h"
#include "vq_half.h" /* likely(), VQ_CACHE_LINE, vq_alloc() */

#define SPINS_MAX    20000u /* looks without success before a poller yields */
#define BUFFER_BYTES 64u    /* length of a buffer, and bytes from one to the next */
#define AREA_ALIGN   4096u  /* of the ring's areas and the buffers */

/* One side of a measurement with two threads. */
struct side {
	void *(*body)(void *); /* what it does */
	void *argument;        /* for it */
	pthread_t thread;      /* the thread */
	int cpu;               /* where it should run; -1 = anywhere */
	int bound;             /* 1: it does */
	unsigned *meeting;     /* atomic: sides that are ready */
};

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* Tells the processor that this is a waiting loop. */
static inline void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield" ::: "memory");
#endif
}

/* Another look was in vain. */
static inline void wait_briefly(unsigned *spins)
{
	pause_briefly();
	if (unlikely(++*spins >= SPINS_MAX)) {
		*spins = 0;
		sched_yield();
	}
}

/* ---- two threads --------------------------------------------------------- */

static void *start_side(void *argument)
{
	struct side *side = argument;
	unsigned spins = 0;
	cpu_set_t set;

	if (side->cpu >= 0 && side->cpu < CPU_SETSIZE) {
		CPU_ZERO(&set);
		CPU_SET((size_t)side->cpu, &set);
		side->bound = pthread_setaffinity_np(pthread_self(), sizeof(set), &set) == 0;
	}
	/* Nobody begins before both can. */
	__atomic_add_fetch(side->meeting, 1, __ATOMIC_ACQ_REL);
	while (__atomic_load_n(side->meeting, __ATOMIC_ACQUIRE) < 2)
		wait_briefly(&spins);
	return side->body(side->argument);
}

/* Runs both sides to their end. 0, or the -errno of starting them; *bound as in the results. */
static int run_sides(struct side *driver, struct side *device, int *bound)
{
	unsigned meeting = 0;
	sigset_t all, before;
	int rc;

	driver->meeting = device->meeting = &meeting;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(&device->thread, NULL, start_side, device);
	if (rc == 0) {
		rc = pthread_create(&driver->thread, NULL, start_side, driver);
		if (rc) {
			/* It waits for a side that will not come. */
			pthread_cancel(device->thread);
			pthread_join(device->thread, NULL);
		}
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (rc)
		return -rc;
	pthread_join(driver->thread, NULL);
	pthread_join(device->thread, NULL);
	*bound = driver->bound && device->bound;
	return 0;
}

static int raise_event(int fd)
{
	const uint64_t one = 1;

	return write(fd, &one, sizeof(one)) == (ssize_t)sizeof(one) ? 0 : -EIO;
}

static int await_event(int fd)
{
	uint64_t count;
	ssize_t n;

	do
		n = read(fd, &count, sizeof(count));
	while (n < 0 && errno == EINTR);
	return n == (ssize_t)sizeof(count) ? 0 : -EIO;
}

/* ---- the ring ------------------------------------------------------------ */

/* What one thread writes; a line of its own. */
struct part {
	uint64_t buffers; /* driver: tokens back; device: marked used */
	uint64_t notices; /* driver: kicks, device: calls that were asked for */
	uint64_t sleeps;  /* times it slept */
	uint64_t ns;      /* driver: from the first add to the last token */
	int fault;        /* 0, or why it gave up */
} __attribute__((aligned(VQ_CACHE_LINE)));

struct run {
	const struct bench_ring_options *options;
	struct gm *mem;
	struct vq_driver *driver;
	struct vq_device *device;
	uint64_t data;           /* where the buffers lie, guest-physical */
	uint64_t mask;           /* queue size - 1 */
	uint32_t batch;          /* as in the options */
	int kick, call;          /* eventfds; -1 unless SLEEPING */
	struct histogram *trip;  /* of single buffers; NULL: not wanted */
	struct part driver_part; /* written by the driver thread */
	struct part device_part; /* written by the device thread */
	int stop __attribute__((aligned(VQ_CACHE_LINE))); /* atomic: the other side gave up */
};

/* Ends both sides. */
static __attribute__((cold)) void give_up(struct run *run, struct part *part, int fault)
{
	part->fault = fault;
	__atomic_store_n(&run->stop, 1, __ATOMIC_RELEASE);
	if (run->kick >= 0) {
		(void)raise_event(run->kick);
		(void)raise_event(run->call);
	}
}

static inline bool stopped(const struct run *run)
{
	return unlikely(__atomic_load_n(&run->stop, __ATOMIC_ACQUIRE));
}

/* Adds a batch and shows it. 0 or -errno. */
static inline int offer(struct run *run, uint64_t first)
{
	const uint64_t end = first + run->batch;
	struct vq_driver *driver = run->driver;
	uint64_t token = first;

	do {
		const uint64_t addr = run->data + BUFFER_BYTES * (token & run->mask);
		const struct vq_segment segment = {addr, BUFFER_BYTES};
		const int rc = vq_driver_add(driver, &segment, 1, 0, token);

		if (unlikely(rc))
			return rc;
	} while (++token != end);
	vq_driver_publish(driver);
	if (likely(!vq_driver_kick_needed(driver)))
		return 0;
	run->driver_part.notices++;
	return run->kick < 0 ? 0 : raise_event(run->kick);
}

/* Takes back up to `max` that are there, `expected` being the next token. How many, or -errno. */
static inline int collect(struct run *run, uint64_t expected, uint64_t max)
{
	struct vq_driver *driver = run->driver;
	const uint64_t end = expected + max;
	uint64_t next = expected;

	do {
		uint64_t token;
		uint32_t len;
		const int rc = vq_driver_get_used(driver, &token, &len);

		if (rc != 1) {
			if (unlikely(rc < 0))
				return rc;
			break;
		}
		if (unlikely(token != next) || unlikely(len != 0))
			return -EIO;
	} while (++next != end);
	return (int)(next - expected);
}

/* Takes up to a batch and marks it used. How many, or -errno. */
static inline int serve(struct run *run)
{
	const uint32_t batch = run->batch;
	struct vq_device *device = run->device;
	struct vq_chain chain;
	uint32_t n = 0;
	int rc;

	do {
		rc = vq_device_pop(device, &chain);
		if (rc != 1) {
			if (unlikely(rc < 0) || n == 0)
				return rc;
			break;
		}
		/* A readable buffer: nothing was written into it (SPLIT-DEV-18). */
		vq_device_push(device, chain.head, 0);
	} while (++n != batch);
	vq_device_publish(device);
	if (unlikely(vq_device_call_needed(device))) {
		run->device_part.notices++;
		rc = run->call < 0 ? 0 : raise_event(run->call);
		if (unlikely(rc < 0))
			return rc;
	}
	return (int)n;
}

/* Nothing to do: arms the notification and sleeps, unless there is something by now. 0 or -errno. */
static int sleep_driver(struct run *run)
{
	int rc = 0;

	if (!vq_driver_enable_calls(run->driver)) {
		run->driver_part.sleeps++;
		rc = await_event(run->call);
	}
	vq_driver_disable_calls(run->driver);
	return rc;
}

static int sleep_device(struct run *run)
{
	int rc = 0;

	if (!vq_device_enable_kicks(run->device)) {
		run->device_part.sleeps++;
		rc = await_event(run->kick);
	}
	vq_device_disable_kicks(run->device);
	return rc;
}

static void *drive(void *argument)
{
	struct run *run = argument;
	struct part *part = &run->driver_part;
	const struct bench_ring_options *o = run->options;
	const bool sleeping = o->way == BENCH_RING_SLEEPING;
	uint64_t added = 0, back = 0, start, then;
	unsigned spins = 0;

	start = then = now_ns();
	while (back < o->buffers) {
		int rc = 0;

		while (added < o->buffers && added - back + o->batch <= o->outstanding && !rc) {
			rc = offer(run, added);
			added += o->batch;
		}
		if (likely(rc == 0))
			rc = collect(run, back, o->outstanding);
		if (rc > 0) {
			back += (unsigned)rc;
			if (run->trip) {
				const uint64_t now = now_ns();

				histogram_record(run->trip, now - then);
				then = now;
			}
			continue;
		}
		if (rc == 0) {
			if (stopped(run))
				break;
			if (!sleeping) {
				wait_briefly(&spins);
				continue;
			}
			rc = sleep_driver(run);
		}
		if (unlikely(rc)) {
			give_up(run, part, rc);
			break;
		}
	}
	part->ns = now_ns() - start;
	part->buffers = back;
	return NULL;
}

static void *serve_all(void *argument)
{
	struct run *run = argument;
	struct part *part = &run->device_part;
	const bool sleeping = run->options->way == BENCH_RING_SLEEPING;
	const uint64_t buffers = run->options->buffers;
	uint64_t done = 0;
	unsigned spins = 0;

	while (done < buffers) {
		int rc = serve(run);

		if (rc > 0) {
			done += (unsigned)rc;
			continue;
		}
		if (rc == 0) {
			if (stopped(run))
				break;
			if (!sleeping) {
				wait_briefly(&spins);
				continue;
			}
			rc = sleep_device(run);
		}
		if (unlikely(rc < 0)) {
			give_up(run, part, rc);
			break;
		}
	}
	part->buffers = done;
	return NULL;
}

/* Both halves in turn. */
static void *take_turns(void *argument)
{
	struct run *run = argument;
	const uint64_t buffers = run->options->buffers;
	const int batch = (int)run->batch;
	uint64_t done = 0;
	uint64_t start = now_ns();

	while (done < buffers) {
		int rc = offer(run, done);

		if (likely(rc == 0))
			rc = serve(run);
		if (likely(rc == batch))
			rc = collect(run, done, run->batch);
		if (unlikely(rc != batch)) {
			/* Nobody else is there: fewer than a batch were lost. */
			run->driver_part.fault = rc < 0 ? rc : -EIO;
			break;
		}
		done += run->batch;
	}
	run->driver_part.ns = now_ns() - start;
	run->driver_part.buffers = run->device_part.buffers = done;
	return NULL;
}

/* The next area of `bytes`, aligned; moves *at behind it. */
static uint64_t place(uint64_t *at, uint64_t bytes)
{
	const uint64_t here = *at;

	*at = (here + bytes + AREA_ALIGN - 1) / AREA_ALIGN * AREA_ALIGN;
	return here;
}

/* Memory, ring and both halves. 0 or -errno; run_close() in either case. */
static int run_open(struct run *run)
{
	const struct bench_ring_options *o = run->options;
	struct vq_config config = {.features = VQ_F_VERSION_1 | VQ_F_EVENT_IDX,
				   .size = o->queue_size};
	struct vq_layout layout;
	uint64_t end = 0;
	int rc = vq_layout(config.features, config.size, &layout);

	if (rc)
		return rc;
	config.desc_addr = place(&end, layout.desc_bytes);
	config.driver_addr = place(&end, layout.driver_bytes);
	config.device_addr = place(&end, layout.device_bytes);
	run->data = place(&end, (uint64_t)BUFFER_BYTES * o->queue_size);
	rc = gm_create(end, &run->mem);
	if (rc == 0)
		rc = vq_driver_create(run->mem, &config, &run->driver);
	if (rc == 0)
		rc = vq_device_create(run->mem, &config, &run->device);
	if (rc)
		return rc;
	vq_driver_disable_calls(run->driver);
	vq_device_disable_kicks(run->device);
	if (o->way != BENCH_RING_SLEEPING)
		return 0;
	run->kick = eventfd(0, EFD_CLOEXEC);
	run->call = eventfd(0, EFD_CLOEXEC);
	return run->kick < 0 || run->call < 0 ? -errno : 0;
}

static void run_close(struct run *run)
{
	if (run->kick >= 0)
		close(run->kick);
	if (run->call >= 0)
		close(run->call);
	vq_device_destroy(run->device);
	vq_driver_destroy(run->driver);
	gm_destroy(run->mem);
}

/* One thread, both halves. */
static int run_alone(struct run *run, int *bound)
{
	unsigned meeting = 1; /* the other side is here already */
	struct side side = {.body = take_turns,
			    .argument = run,
			    .cpu = run->options->cpus.driver,
			    .meeting = &meeting};
	sigset_t all, before;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(&side.thread, NULL, start_side, &side);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (rc)
		return -rc;
	pthread_join(side.thread, NULL);
	*bound = side.bound;
	return 0;
}

int bench_ring_run(const struct bench_ring_options *options, struct bench_ring_result *out)
{
	struct run run = {.options = options,
			  .mask = options->queue_size - 1,
			  .batch = options->batch,
			  .kick = -1,
			  .call = -1};
	struct side driver = {.body = drive, .argument = &run, .cpu = options->cpus.driver};
	struct side device = {.body = serve_all, .argument = &run, .cpu = options->cpus.device};
	int rc;

	memset(out, 0, sizeof(*out));
	histogram_init(&out->trip);
	if (options->way >= BENCH_RING_WAYS || options->batch == 0 || options->outstanding == 0 ||
	    options->outstanding > options->queue_size || options->outstanding % options->batch ||
	    options->buffers == 0 || options->buffers % options->batch)
		return -EINVAL;
	run.trip = options->outstanding == 1 ? &out->trip : NULL;
	rc = run_open(&run);
	if (rc == 0)
		rc = options->way == BENCH_RING_ALONE ? run_alone(&run, &out->bound)
						      : run_sides(&driver, &device, &out->bound);
	if (rc == 0)
		rc = run.device_part.fault ? run.device_part.fault : run.driver_part.fault;
	out->buffers = run.driver_part.buffers;
	out->served = run.device_part.buffers;
	out->ns = run.driver_part.ns;
	out->kicks = run.driver_part.notices;
	out->calls = run.device_part.notices;
	out->sleeps = run.driver_part.sleeps + run.device_part.sleeps;
	run_close(&run);
	return rc;
}

/* ---- limits of the machine ----------------------------------------------- */

/* Two words, each written by one side and read by the other. */
struct lines {
	uint64_t there __attribute__((aligned(VQ_CACHE_LINE))); /* atomic, by the driver's side */
	uint64_t back __attribute__((aligned(VQ_CACHE_LINE)));  /* atomic, by the other */
	uint64_t rounds __attribute__((aligned(VQ_CACHE_LINE)));
	uint64_t ns;
	int there_fd, back_fd; /* eventfds */
	int fault;             /* of the driver's side; 0 or -errno */
	uint64_t *slots;       /* bench_slots(): the queue */
	uint64_t mask;         /* its length - 1 */
};

/* Waits until an atomic word has a value; what the writer stored before it is visible then. */
static inline void await_value(const uint64_t *word, uint64_t value, unsigned *spins)
{
	while (__atomic_load_n(word, __ATOMIC_ACQUIRE) != value)
		wait_briefly(spins);
}

static void *ping(void *argument)
{
	struct lines *lines = argument;
	uint64_t start = now_ns();
	unsigned spins = 0;

	for (uint64_t i = 1; i <= lines->rounds; i++) {
		__atomic_store_n(&lines->there, i, __ATOMIC_RELEASE);
		await_value(&lines->back, i, &spins);
	}
	lines->ns = now_ns() - start;
	return NULL;
}

static void *pong(void *argument)
{
	struct lines *lines = argument;
	unsigned spins = 0;

	for (uint64_t i = 1; i <= lines->rounds; i++) {
		await_value(&lines->there, i, &spins);
		__atomic_store_n(&lines->back, i, __ATOMIC_RELEASE);
	}
	return NULL;
}

/* 0 = empty. Full slots hold their number, counted from 1. */
static void *fill_slots(void *argument)
{
	struct lines *lines = argument;
	uint64_t start = now_ns();
	unsigned spins = 0;

	for (uint64_t i = 0; i < lines->rounds; i++) {
		uint64_t *slot = &lines->slots[i & lines->mask];

		await_value(slot, 0, &spins);
		__atomic_store_n(slot, i + 1, __ATOMIC_RELEASE);
	}
	/* The last ones are on their way: all are there when all are empty. */
	for (uint64_t i = 0; i <= lines->mask; i++)
		await_value(&lines->slots[i], 0, &spins);
	lines->ns = now_ns() - start;
	return NULL;
}

static void *empty_slots(void *argument)
{
	struct lines *lines = argument;
	unsigned spins = 0;

	for (uint64_t i = 0; i < lines->rounds; i++) {
		uint64_t *slot = &lines->slots[i & lines->mask];

		await_value(slot, i + 1, &spins);
		__atomic_store_n(slot, 0, __ATOMIC_RELEASE);
	}
	return NULL;
}

static void *wake(void *argument)
{
	struct lines *lines = argument;
	uint64_t start = now_ns();

	for (uint64_t i = 0; i < lines->rounds && !lines->fault; i++) {
		lines->fault = raise_event(lines->there_fd);
		if (!lines->fault)
			lines->fault = await_event(lines->back_fd);
	}
	lines->ns = now_ns() - start;
	return NULL;
}

static void *wake_back(void *argument)
{
	struct lines *lines = argument;

	for (uint64_t i = 0; i < lines->rounds; i++)
		if (await_event(lines->there_fd) || raise_event(lines->back_fd))
			break;
	return NULL;
}

/* Runs two sides over `lines`. */
static int run_limit(struct lines *lines, void *(*first)(void *), void *(*second)(void *),
		     struct bench_cpus cpus, struct bench_limit *out)
{
	struct side driver = {.body = first, .argument = lines, .cpu = cpus.driver};
	struct side device = {.body = second, .argument = lines, .cpu = cpus.device};
	int rc;

	memset(out, 0, sizeof(*out));
	if (lines->rounds == 0)
		return -EINVAL;
	rc = run_sides(&driver, &device, &out->bound);
	out->rounds = lines->rounds;
	out->ns = lines->ns;
	return rc ? rc : lines->fault;
}

int bench_ping_pong(uint64_t rounds, struct bench_cpus cpus, struct bench_limit *out)
{
	struct lines lines = {.rounds = rounds};

	return run_limit(&lines, ping, pong, cpus, out);
}

int bench_slots(uint64_t rounds, uint32_t slots, struct bench_cpus cpus, struct bench_limit *out)
{
	struct lines lines = {.rounds = rounds, .mask = slots - 1ull};
	int rc;

	memset(out, 0, sizeof(*out));
	if (slots == 0 || (slots & (slots - 1)))
		return -EINVAL;
	lines.slots = vq_alloc(slots * sizeof(lines.slots[0]));
	if (!lines.slots)
		return -ENOMEM;
	rc = run_limit(&lines, fill_slots, empty_slots, cpus, out);
	free(lines.slots);
	return rc;
}

int bench_eventfds(uint64_t rounds, struct bench_cpus cpus, struct bench_limit *out)
{
	struct lines lines = {.rounds = rounds,
			      .there_fd = eventfd(0, EFD_CLOEXEC),
			      .back_fd = eventfd(0, EFD_CLOEXEC)};
	int rc = -errno;

	memset(out, 0, sizeof(*out));
	if (lines.there_fd >= 0 && lines.back_fd >= 0)
		rc = run_limit(&lines, wake, wake_back, cpus, out);
	if (lines.there_fd >= 0)
		close(lines.there_fd);
	if (lines.back_fd >= 0)
		close(lines.back_fd);
	return rc;
}
