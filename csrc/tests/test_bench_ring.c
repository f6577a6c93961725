/* Description: what the ring benchmark counts: every buffer once, in each way, at the ring's smallest and usual sizes. */
/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <sched.h>

#include "bench_ring.h"
#include "helpers.h"

/* ThreadSanitizer makes every access many times dearer. */
#if defined(__SANITIZE_THREAD__)
#define BUFFERS 6400u
#else
#define BUFFERS 64000u
#endif
#define WAKES 640u /* buffers of a run that sleeps for each */

static const struct bench_cpus anywhere = {-1, -1};

static struct bench_ring_result run(struct bench_ring_options options)
{
	static struct bench_ring_result result;

	t_equal(0, bench_ring_run(&options, &result));
	t_equal(options.buffers, result.buffers);
	t_equal(options.buffers, result.served);
	t_check(result.ns > 0);
	t_equal(0, result.bound); /* nobody asked for it */
	return result;
}

static void test_one_thread_gets_every_token_back(void)
{
	static const uint32_t batches[] = {1, 16, 32, 64, 256};

	for (unsigned i = 0; i < T_COUNT(batches); i++)
		run((struct bench_ring_options){.way = BENCH_RING_ALONE,
						.queue_size = 256,
						.batch = batches[i],
						.outstanding = 256,
						.buffers = BUFFERS - BUFFERS % batches[i],
						.cpus = anywhere});
}

/* SPLIT-DRV-26: K buffers a publication, the device likewise; a full ring of any size. */
static void test_split_drv_26_two_pollers_get_every_token_back(void)
{
	static const uint32_t sizes[] = {1, 2, 64, 256};

	for (unsigned i = 0; i < T_COUNT(sizes); i++)
		for (uint32_t batch = 1; batch <= sizes[i] && batch <= 64; batch *= 4)
			run((struct bench_ring_options){.way = BENCH_RING_POLLING,
							.queue_size = sizes[i],
							.batch = batch,
							.outstanding = sizes[i],
							.buffers = BUFFERS / 8 / 64 * 64,
							.cpus = anywhere});
}

/* SPLIT-DRV-28: nobody sleeps for ever, and nobody is woken without having asked. */
static void test_split_drv_28_two_sleepers_get_every_token_back(void)
{
	static const uint32_t outstanding[] = {1, 32, 256};

	for (unsigned i = 0; i < T_COUNT(outstanding); i++) {
		struct bench_ring_result result = run((struct bench_ring_options){
		    .way = BENCH_RING_SLEEPING,
		    .queue_size = 256,
		    .batch = outstanding[i] == 1 ? 1 : 16,
		    .outstanding = outstanding[i],
		    .buffers = outstanding[i] == 1 ? WAKES : BUFFERS / 4,
		    .cpus = anywhere});

		/* Every sleep was ended by a notification. */
		t_check(result.sleeps <= result.kicks + result.calls);
		t_check(result.kicks <= BUFFERS && result.calls <= BUFFERS);
	}
}

static void test_every_trip_is_in_the_histogram_when_one_is_out_at_a_time(void)
{
	struct bench_ring_result result = run((struct bench_ring_options){.way = BENCH_RING_POLLING,
									  .queue_size = 256,
									  .batch = 1,
									  .outstanding = 1,
									  .buffers = WAKES,
									  .cpus = anywhere});

	t_equal(WAKES, result.trip.count);
	t_check(result.trip.sum <= result.ns && result.trip.min > 0);
}

static void test_options_that_do_not_fit_together_are_refused(void)
{
	const struct bench_ring_options good = {.way = BENCH_RING_ALONE,
						.queue_size = 16,
						.batch = 4,
						.outstanding = 16,
						.buffers = 16,
						.cpus = anywhere};
	struct bench_ring_options bad[8];
	struct bench_ring_result result;

	for (unsigned i = 0; i < T_COUNT(bad); i++)
		bad[i] = good;
	bad[0].way = BENCH_RING_WAYS;
	bad[1].queue_size = 24;
	bad[2].batch = 0;
	bad[3].batch = 3;
	bad[4].outstanding = 32;
	bad[5].outstanding = 0;
	bad[6].buffers = 0;
	bad[7].buffers = 18;
	t_equal(0, bench_ring_run(&good, &result));
	for (unsigned i = 0; i < T_COUNT(bad); i++)
		t_equal(-EINVAL, bench_ring_run(&bad[i], &result));
}

static void test_limits_make_every_round(void)
{
	struct bench_limit limit;

	t_equal(0, bench_ping_pong(1000, anywhere, &limit));
	t_check(limit.rounds == 1000 && limit.ns > 0 && !limit.bound);
	t_equal(0, bench_slots(1000, 256, anywhere, &limit));
	t_check(limit.rounds == 1000 && limit.ns > 0);
	t_equal(0, bench_slots(10, 256, anywhere, &limit)); /* fewer than slots */
	t_equal(10, limit.rounds);
	t_equal(0, bench_eventfds(100, anywhere, &limit));
	t_check(limit.rounds == 100 && limit.ns > 0);
	t_equal(-EINVAL, bench_ping_pong(0, anywhere, &limit));
	t_equal(-EINVAL, bench_slots(1000, 24, anywhere, &limit));
}

static void test_threads_are_bound_where_that_is_allowed(void)
{
	const struct bench_cpus nowhere = {CPU_SETSIZE - 1, CPU_SETSIZE - 1};
	struct bench_cpus here = {-1, -1};
	struct bench_limit limit;
	cpu_set_t allowed;

	t_equal(0, sched_getaffinity(0, sizeof(allowed), &allowed));
	for (int cpu = 0; cpu < CPU_SETSIZE && here.driver < 0; cpu++)
		if (CPU_ISSET((size_t)cpu, &allowed))
			here.driver = here.device = cpu;
	t_equal(0, bench_eventfds(10, here, &limit));
	t_equal(1, limit.bound);
	t_equal(0, bench_eventfds(10, nowhere, &limit));
	t_equal(0, limit.bound);
}

static const struct t_test tests[] = {
    T_TEST(test_one_thread_gets_every_token_back),
    T_TEST(test_split_drv_26_two_pollers_get_every_token_back),
    T_TEST(test_split_drv_28_two_sleepers_get_every_token_back),
    T_TEST(test_every_trip_is_in_the_histogram_when_one_is_out_at_a_time),
    T_TEST(test_options_that_do_not_fit_together_are_refused),
    T_TEST(test_limits_make_every_round),
    T_TEST(test_threads_are_bound_where_that_is_allowed),
};

int main(void)
{
	return t_run(tests, T_COUNT(tests));
}
