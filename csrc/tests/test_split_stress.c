/* Description: split ring, the two halves in two threads: no lost wake-up, no torn or early data. */
/* SPDX-License-Identifier: MIT */
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <time.h>

#include "helpers.h"

/* ThreadSanitizer makes every access many times dearer. */
#if defined(__SANITIZE_THREAD__)
#define BUFFERS 10000u
#else
#define BUFFERS 100000u
#endif
#define QUEUE    16u
#define REPLY    (T_DATA + 0x100000)
#define PATIENCE 5000 /* ms without a wake-up that are taken for a lost one */
#define STRIDE   64u  /* bytes between two buffers */
#define SLOTS    (2 * QUEUE)

/* One run: what the device thread needs, and what it found. */
struct run {
	struct t_ring ring;
	int kick, call;      /* eventfds */
	int sleeping;        /* 1: both sides sleep when idle; 0: both poll, notifications off */
	uint64_t device_sum; /* of all requests that the device read */
	const char *fault;   /* of the device thread, NULL if none */
	unsigned sleeps;     /* how often the device slept */
};

static uint64_t answer(uint64_t request)
{
	return request * 0x9e3779b97f4a7c15ull + 1;
}

static void notify(int fd)
{
	uint64_t one = 1;

	if (write(fd, &one, sizeof(one)) != (ssize_t)sizeof(one))
		abort();
}

/* 0, or -1 when nobody woke us. */
static int sleep_on(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	uint64_t count;

	if (poll(&p, 1, PATIENCE) != 1)
		return -1;
	return read(fd, &count, sizeof(count)) == (ssize_t)sizeof(count) ? 0 : -1;
}

/* Plain accesses on purpose: the ring's indices alone must order them (SPLIT-DRV-27, SPLIT-DEV-17). */
static void *device_thread(void *argument)
{
	struct run *run = argument;
	struct vq_device *device = run->ring.device;
	unsigned done = 0;

	if (!run->sleeping)
		vq_device_disable_kicks(device);
	while (done < BUFFERS) {
		struct vq_chain chain;
		unsigned batch = 0;
		int rc;

		while ((rc = vq_device_pop(device, &chain)) == 1) {
			uint64_t request, reply;

			if (chain.count != 2 || chain.readable_bytes != 8) {
				run->fault = "chain of a wrong shape";
				return NULL;
			}
			memcpy(&request, chain.segments[0].base, 8);
			reply = answer(request);
			memcpy(chain.segments[1].base, &reply, 8);
			run->device_sum += request;
			vq_device_push(device, chain.head, (uint32_t)request);
			done++;
			if (++batch % 3 == 0 && vq_device_publish(device) &&
			    vq_device_call_needed(device))
				notify(run->call);
		}
		if (rc < 0) {
			run->fault = vq_broken_text(vq_device_broken(device));
			return NULL;
		}
		if (vq_device_publish(device) && vq_device_call_needed(device))
			notify(run->call);
		if (!run->sleeping)
			sched_yield(); /* the other side may need this processor */
		if (done == BUFFERS || !run->sleeping || vq_device_enable_kicks(device))
			continue;
		run->sleeps++;
		if (sleep_on(run->kick)) {
			run->fault = "lost kick";
			return NULL;
		}
	}
	return NULL;
}

/* Takes back what is there and checks it; returns how many, or -1. */
static int collect(struct run *run, const uint64_t *requests)
{
	uint64_t token, reply;
	uint32_t len;
	int n = 0, rc;

	while ((rc = vq_driver_get_used(run->ring.driver, &token, &len)) == 1) {
		memcpy(&reply, gm_at(run->ring.mem, REPLY + token * STRIDE, 8), 8);
		if (reply != answer(requests[token]) || len != (uint32_t)requests[token])
			return -1;
		n++;
	}
	return rc < 0 ? -1 : n;
}

static void run_two_threads(uint64_t features, int sleeping)
{
	struct run run = {.sleeping = sleeping};
	uint64_t requests[SLOTS] = {0};
	uint64_t random = 23, sum = 0;
	unsigned added = 0, back = 0;
	const char *fault = NULL;
	pthread_t thread;

	t_ring_make(&run.ring, QUEUE, features);
	run.kick = eventfd(0, EFD_CLOEXEC);
	run.call = eventfd(0, EFD_CLOEXEC);
	t_check(run.kick >= 0 && run.call >= 0);
	if (!sleeping)
		vq_driver_disable_calls(run.ring.driver);
	t_equal(0, pthread_create(&thread, NULL, device_thread, &run));

	while (back < BUFFERS && !fault) {
		unsigned want = 1 + (unsigned)(t_random(&random) % QUEUE);
		int got;

		/* Two descriptors a buffer: at most QUEUE / 2 are out, so that SLOTS suffice and
		 * buffers come back in order. */
		while (want-- && added < BUFFERS && vq_driver_free(run.ring.driver) >= 2) {
			uint64_t slot = added % SLOTS;
			struct vq_segment segments[] = {{T_DATA + slot * STRIDE, 8},
							{REPLY + slot * STRIDE, 8}};

			requests[slot] = t_random(&random);
			sum += requests[slot];
			memcpy(gm_at(run.ring.mem, segments[0].addr, 8), &requests[slot], 8);
			if (vq_driver_add(run.ring.driver, segments, 1, 1, slot))
				fault = "add";
			added++;
		}
		if (vq_driver_publish(run.ring.driver) && vq_driver_kick_needed(run.ring.driver))
			notify(run.kick);
		got = collect(&run, requests);
		if (got < 0)
			fault = "wrong answer or broken ring";
		else
			back += (unsigned)got;
		if (!got && !sleeping)
			sched_yield();
		if (got || !sleeping || back == BUFFERS ||
		    (added < BUFFERS && vq_driver_free(run.ring.driver) >= 2 &&
		     t_random(&random) % 4))
			continue;
		/* Nothing came back: now and then sleep even with room left. If nothing is out,
		 * nothing would ever wake us. */
		if (vq_driver_outstanding(run.ring.driver) == 0)
			continue;
		if (vq_driver_enable_calls_after(run.ring.driver,
						 (uint16_t)(t_random(&random) % 2 ? 1 : 2)) == 0 &&
		    vq_driver_outstanding(run.ring.driver) >= 2 && sleep_on(run.call))
			fault = "lost call";
	}
	/* On a fault the other side may sleep; wake it, it ends by its own patience at worst. */
	notify(run.kick);
	pthread_join(thread, NULL);
	if (fault || run.fault)
		printf("# driver: %s, device: %s\n", fault ? fault : "ok",
		       run.fault ? run.fault : "ok");
	t_check(!fault && !run.fault);
	t_check(sum == run.device_sum);
	t_equal(BUFFERS, back);
	t_equal(0, vq_driver_outstanding(run.ring.driver));
	close(run.kick);
	close(run.call);
	t_ring_drop(&run.ring);
}

/* Descriptors, ring slots and payload before idx: polling only, so that nothing else orders. */
static void test_split_drv_27_buffers_before_the_available_index(void)
{
	run_two_threads(0, 0);
}

/* The same way back: reply bytes and len before used idx. */
static void test_split_dev_17_replies_before_the_used_index(void)
{
	run_two_threads(VQ_F_EVENT_IDX, 0);
}

/* The full fence of both sides: each sleeps as soon as it finds nothing. */
static void test_split_drv_28_no_wakeup_is_lost_with_flags(void)
{
	run_two_threads(0, 1);
}

static void test_split_drv_28_no_wakeup_is_lost_with_event_idx(void)
{
	run_two_threads(VQ_F_EVENT_IDX, 1);
}

/* ---- Dekker, in lock step ------------------------------------------------- */

/*
 * The race itself, without sleeping: in each round one side arms while the other publishes, let
 * off together. If neither "found something" nor "must notify" comes out, a real sleeper would
 * sleep for ever. Without the full fences this fails within some thousand rounds on x86.
 */
#define ROUNDS  300000u
#define SECONDS 0.5 /* whichever comes first */

struct dekker {
	struct t_ring ring;
	unsigned turn;   /* atomic: counts arrivals of both sides */
	int device_side; /* what the device thread's call said, read after the round */
	int of_calls;    /* 1: the device publishes and the driver arms; 0: the other way round */
	int stop;        /* atomic: no more rounds */
};

/* Both sides wait here for each other; the n-th meeting is over when 2 n have come. */
static void meet(struct dekker *d, unsigned n)
{
	__atomic_add_fetch(&d->turn, 1, __ATOMIC_SEQ_CST);
	for (unsigned spins = 0; __atomic_load_n(&d->turn, __ATOMIC_SEQ_CST) < 2 * n; spins++)
		if (spins > 2000)
			sched_yield(); /* the other one may need this processor */
}

static void *dekker_device(void *argument)
{
	struct dekker *d = argument;
	struct vq_chain chain;

	for (unsigned n = 0;;) {
		meet(d, ++n);
		if (__atomic_load_n(&d->stop, __ATOMIC_SEQ_CST))
			return NULL;
		if (d->of_calls) {
			vq_device_pop(d->ring.device, &chain);
			vq_device_push(d->ring.device, chain.head, 0);
		} else {
			vq_device_disable_kicks(d->ring.device);
		}
		meet(d, ++n);
		if (d->of_calls) {
			vq_device_publish(d->ring.device);
			d->device_side = vq_device_call_needed(d->ring.device);
		} else {
			d->device_side = vq_device_enable_kicks(d->ring.device);
		}
		meet(d, ++n);
	}
}

static void run_dekker(uint64_t features, int of_calls)
{
	struct dekker d = {.of_calls = of_calls};
	unsigned lost = 0, rounds = 0, n = 0;
	struct timespec start, now;
	pthread_t thread;

	t_ring_make(&d.ring, QUEUE, features);
	t_equal(0, pthread_create(&thread, NULL, dekker_device, &d));
	clock_gettime(CLOCK_MONOTONIC, &start);
	for (; rounds < ROUNDS; rounds++) {
		struct vq_segment segment = {T_DATA, 8};
		int driver_side;

		clock_gettime(CLOCK_MONOTONIC, &now);
		if ((double)(now.tv_sec - start.tv_sec) +
			(double)(now.tv_nsec - start.tv_nsec) / 1e9 >
		    SECONDS)
			break;
		/* Set-up: one buffer, visible already if it is the device's turn to publish. */
		vq_driver_add(d.ring.driver, &segment, 1, 0, rounds);
		if (of_calls) {
			vq_driver_disable_calls(d.ring.driver);
			vq_driver_publish(d.ring.driver);
		}
		meet(&d, ++n);
		meet(&d, ++n);
		if (of_calls) {
			driver_side = vq_driver_enable_calls(d.ring.driver);
		} else {
			vq_driver_publish(d.ring.driver);
			driver_side = vq_driver_kick_needed(d.ring.driver);
		}
		meet(&d, ++n);
		lost += !driver_side && !d.device_side;
		if (!of_calls)
			t_serve(&d.ring); /* the device thread waits in meet() */
		t_drain(&d.ring);
	}
	__atomic_store_n(&d.stop, 1, __ATOMIC_SEQ_CST);
	meet(&d, ++n);
	pthread_join(thread, NULL);
	t_check(rounds > 0);
	t_equal(0, lost);
	t_ring_drop(&d.ring);
}

static void test_split_drv_28_publish_against_arming_kicks(void)
{
	run_dekker(0, 0);
	run_dekker(VQ_F_EVENT_IDX, 0);
}

static void test_split_drv_29_publish_against_arming_calls(void)
{
	run_dekker(0, 1);
	run_dekker(VQ_F_EVENT_IDX, 1);
}

static const struct t_test tests[] = {
    T_TEST(test_split_drv_27_buffers_before_the_available_index),
    T_TEST(test_split_dev_17_replies_before_the_used_index),
    T_TEST(test_split_drv_28_no_wakeup_is_lost_with_flags),
    T_TEST(test_split_drv_28_no_wakeup_is_lost_with_event_idx),
    T_TEST(test_split_drv_28_publish_against_arming_kicks),
    T_TEST(test_split_drv_29_publish_against_arming_calls),
};

int main(void)
{
	return t_run(tests, T_COUNT(tests));
}
