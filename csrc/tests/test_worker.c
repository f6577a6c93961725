/* Description: the device thread: kicks and calls, faults in time, reset and stop with work in flight. */
#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include "rig.h"

/* Sends a request, kicks if asked to, waits for the call. False if none came within ms. */
static bool round_trip(struct rig *rig, unsigned queue, uint32_t first, uint32_t n, int ms)
{
	/* With EVENT_IDX a call is asked for each time anew. */
	t_equal(0, vq_driver_enable_calls(rig->rings[queue].driver));
	rig_send_run(rig, queue, first, n);
	if (vq_driver_kick_needed(rig->rings[queue].driver))
		rig_kick(rig, queue);
	if (!rig_wait(bln_call_fd(rig->dev, queue), ms))
		return false;
	rig_take(rig, queue);
	return true;
}

static void start_worker(struct rig *rig)
{
	t_equal(0, bln_worker_start(rig->dev, -1, &rig->worker));
}

/*
 * At DRIVER_OK the thread looks at each queue by itself. If it finds the first request that
 * way, the kick for it comes late, and meets nothing. After this, none is on its way.
 */
static void settle(struct rig *rig)
{
	struct vq_driver_counters count;
	uint64_t kicks = 0;

	for (unsigned queue = INFLATE; queue <= DEFLATE; queue++) {
		t_check(round_trip(rig, queue, 0, 1, 5000));
		vq_driver_counters_get(rig->rings[queue].driver, &count);
		kicks += count.kicks;
	}
	rig_until(rig_count(rig).kicks == kicks);
	rig_sleep_ms(20);
}

static void set_faults(struct rig *rig, struct bln_faults faults)
{
	bln_set_faults(rig->dev, &faults);
}

/* ---- the ordinary way --------------------------------------------------- */

static void test_one_kick_and_one_call_a_request(void)
{
	for (unsigned event_idx = 0; event_idx < 2; event_idx++) {
		struct bln_counters before, after;
		struct rig rig;

		rig_make(&rig);
		start_worker(&rig);
		rig_start(&rig, event_idx ? VQ_F_EVENT_IDX : 0, 8);
		settle(&rig);
		before = rig_count(&rig);
		for (uint32_t i = 0; i < 200; i++) {
			t_check(round_trip(&rig, INFLATE, RIG_USER + 4 * i, 4, 5000));
			t_check(round_trip(&rig, DEFLATE, RIG_USER + 4 * i, 2, 5000));
		}
		after = rig_count(&rig);
		t_equal(400, after.kicks - before.kicks);
		t_equal(400, after.calls - before.calls);
		t_equal(400, after.held_pages);
		t_check(bln_worker_cpu_ns(rig.worker) > 0);
		rig_drop(&rig);
	}
}

static void test_t_37_requests_from_before_driver_ok(void)
{
	struct rig rig;

	rig_make(&rig);
	start_worker(&rig);
	rig_negotiate(&rig, BLN_F_STATS_VQ);
	for (unsigned queue = 0; queue < BLN_QUEUES; queue++) {
		rig_queue(&rig, queue, 8);
		rig_send_run(&rig, queue, RIG_USER, 5);
	}
	rig_sleep_ms(20);
	t_equal(0, t_raw_used_idx(&rig.rings[INFLATE]));
	t_equal(0, bln_set_status(rig.dev, 15));
	t_check(rig_wait(bln_call_fd(rig.dev, INFLATE), 5000));
	t_check(rig_wait(bln_call_fd(rig.dev, DEFLATE), 5000));
	rig_until(bln_stats_request(rig.dev) == 0);
	t_equal(0, rig_count(&rig).kicks);
	rig_drop(&rig);
}

static void test_stats_request_reaches_a_waiting_driver(void)
{
	const uint8_t entry[10] = {4, 0, 42};
	struct bln_stats stats;
	struct rig rig;

	rig_make(&rig);
	start_worker(&rig);
	rig_start(&rig, BLN_F_STATS_VQ | VQ_F_EVENT_IDX, 8);
	for (uint64_t i = 1; i <= 20; i++) {
		rig_send(&rig, STATS, entry, sizeof(entry));
		if (vq_driver_kick_needed(rig.rings[STATS].driver))
			rig_kick(&rig, STATS);
		rig_until((bln_stats_get(rig.dev, &stats), stats.updates == i));
		t_equal(0, vq_driver_enable_calls(rig.rings[STATS].driver));
		rig_until(bln_stats_request(rig.dev) == 0);
		t_check(rig_wait(bln_call_fd(rig.dev, STATS), 5000));
		rig_take(&rig, STATS);
	}
	rig_drop(&rig);
}

static void test_thread_is_named_blocks_signals_and_is_bound(void)
{
	char path[64], line[256];
	unsigned long long blocked = 0;
	cpu_set_t set;
	struct rig rig;
	FILE *file;

	rig_make(&rig);
	t_equal(0, bln_worker_start(rig.dev, 0, &rig.worker));
	snprintf(path, sizeof(path), "/proc/self/task/%d/status", bln_worker_tid(rig.worker));
	file = fopen(path, "r");
	t_check(file != NULL);
	t_check(fgets(line, sizeof(line), file) != NULL);
	t_equal(0, strcmp(line, "Name:\tballoon-dev\n"));
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "SigBlk: %llx", &blocked) == 1)
			break;
	}
	fclose(file);
	t_check(blocked & (1ull << (SIGINT - 1)));
	t_check(blocked & (1ull << (SIGCHLD - 1)));
	t_equal(0, sched_getaffinity(bln_worker_tid(rig.worker), sizeof(set), &set));
	t_check(CPU_ISSET(0, &set));
	bln_worker_stop(rig.worker);
	/* A processor that is not there is only a wish. */
	t_equal(0, bln_worker_start(rig.dev, 1000, &rig.worker));
	bln_worker_stop(rig.worker);
	t_equal(0, bln_worker_start(rig.dev, 1 << 20, &rig.worker));
	rig_drop(&rig);
}

/* ---- faults in time ----------------------------------------------------- */

static void test_t_24_discard_precedes_used_entry(void)
{
	struct rig rig;

	rig_make(&rig);
	start_worker(&rig);
	rig_start(&rig, 0, 8);
	t_equal(0, gm_populate(rig.mem, (uint64_t)RIG_USER << GM_PAGE_SHIFT, 256 * GM_PAGE_SIZE));
	set_faults(&rig, (struct bln_faults){.ack_delay_ns = 3600000000000});
	rig_send_run(&rig, INFLATE, RIG_USER, 256);
	rig_kick(&rig, INFLATE);
	rig_until(rig_count(&rig).discard.pages == 256);
	t_check(!rig_present(&rig, RIG_USER) && !rig_present(&rig, RIG_USER + 255));
	t_equal(0, t_raw_used_idx(&rig.rings[INFLATE]));
	t_equal(1, bln_queue_depth(rig.dev, INFLATE));
	/* Numbers and the statistics queue do not wait for the sleeper; the end of the fault does. */
	t_equal(-EOPNOTSUPP, bln_stats_request(rig.dev));
	set_faults(&rig, (struct bln_faults){0});
	t_check(rig_wait(bln_call_fd(rig.dev, INFLATE), 5000));
	rig_take(&rig, INFLATE);
	rig_drop(&rig);
}

static void test_fault_delay_holds_acknowledgements_back(void)
{
	struct histogram *latency = malloc(sizeof(*latency));
	struct rig rig;
	uint64_t start;

	rig_make(&rig);
	start_worker(&rig);
	rig_start(&rig, 0, 8);
	set_faults(&rig, (struct bln_faults){.ack_delay_ns = 30000000});
	start = rig_now();
	t_check(round_trip(&rig, INFLATE, RIG_USER, 4, 5000));
	t_check(rig_now() - start >= 30000000);
	t_equal(0, bln_latency(rig.dev, INFLATE, latency));
	t_check(latency->min >= 30000000);
	free(latency);
	rig_drop(&rig);
}

static void test_fault_stalled_queue_resumes(void)
{
	struct rig rig;

	rig_make(&rig);
	start_worker(&rig);
	rig_start(&rig, VQ_F_EVENT_IDX, 8);
	set_faults(&rig, (struct bln_faults){.stall_queues = 1u << INFLATE});
	t_check(!round_trip(&rig, INFLATE, RIG_USER, 4, 30));
	t_check(round_trip(&rig, DEFLATE, RIG_USER, 4, 5000));
	set_faults(&rig, (struct bln_faults){0});
	t_check(rig_wait(bln_call_fd(rig.dev, INFLATE), 5000));
	rig_take(&rig, INFLATE);
	t_check(round_trip(&rig, INFLATE, RIG_USER, 4, 5000));
	rig_drop(&rig);
}

static void test_fault_lost_kick_and_lost_call(void)
{
	struct rig rig;

	rig_make(&rig);
	start_worker(&rig);
	rig_start(&rig, 0, 8);
	settle(&rig);
	set_faults(&rig, (struct bln_faults){.lose_kicks = 1});
	t_check(!round_trip(&rig, INFLATE, RIG_USER, 4, 30));
	t_equal(1, bln_queue_depth(rig.dev, INFLATE));
	rig_kick(&rig, INFLATE);
	t_check(rig_wait(bln_call_fd(rig.dev, INFLATE), 5000));
	rig_take(&rig, INFLATE);

	set_faults(&rig, (struct bln_faults){.lose_calls = 1});
	t_check(!round_trip(&rig, INFLATE, RIG_USER, 4, 30));
	rig_take(&rig, INFLATE); /* it was done */
	t_check(round_trip(&rig, INFLATE, RIG_USER, 4, 5000));
	rig_drop(&rig);
}

/* ---- reset and stop ----------------------------------------------------- */

static void test_core_dev_11_nothing_after_reset(void)
{
	static uint8_t before[3 * 0x10000];
	uint64_t random = 5;
	struct rig rig;

	rig_make(&rig);
	start_worker(&rig);
	for (unsigned round = 0; round < 60; round++) {
		rig_start(&rig, BLN_F_STATS_VQ | (round % 2 ? VQ_F_EVENT_IDX : 0), 64);
		for (unsigned i = 0; i < 40; i++)
			rig_send_run(&rig, i % 2, RIG_USER + 16 * i, 16);
		rig_send_run(&rig, STATS, 0, 10);
		for (unsigned queue = 0; queue < BLN_QUEUES; queue++)
			rig_kick(&rig, queue);
		for (uint64_t n = t_random(&random) % 3000; n > 0; n--)
			__asm__ volatile("");
		t_equal(0, bln_set_status(rig.dev, 0)); /* somewhere in the middle */
		t_equal(0, bln_status(rig.dev));
		t_equal(0, gm_read(rig.mem, 0, before, sizeof(before)));
		rig_kick(&rig, INFLATE); /* by a driver that does not know */
		t_equal(-EOPNOTSUPP, bln_stats_request(rig.dev));
		rig_sleep_ms(1);
		t_equal(0, memcmp(before, gm_at(rig.mem, 0, sizeof(before)), sizeof(before)));
		for (unsigned queue = 0; queue < BLN_QUEUES; queue++)
			t_equal(0, rig_events(bln_call_fd(rig.dev, queue)));
		t_equal(0, rig_count(&rig).held_pages);
	}
	rig_drop(&rig);
}

static void test_core_dev_11_reset_cuts_a_delay_short(void)
{
	struct rig rig;

	rig_make(&rig);
	start_worker(&rig);
	rig_start(&rig, 0, 8);
	set_faults(&rig, (struct bln_faults){.ack_delay_ns = UINT64_MAX});
	rig_send_run(&rig, INFLATE, RIG_USER, 4);
	rig_kick(&rig, INFLATE);
	rig_until(rig_count(&rig).held_pages == 4);
	t_equal(0, bln_set_status(rig.dev, 0));
	t_equal(0, t_raw_used_idx(&rig.rings[INFLATE])); /* not acknowledged any more */
	t_equal(0, rig_count(&rig).held_pages);
	set_faults(&rig, (struct bln_faults){0});
	rig_start(&rig, 0, 8);
	t_check(round_trip(&rig, INFLATE, RIG_USER, 4, 5000));
	rig_drop(&rig);
}

static void test_stop_leaves_requests_for_the_next_worker(void)
{
	struct rig rig;

	rig_make(&rig);
	start_worker(&rig);
	rig_start(&rig, VQ_F_EVENT_IDX, 8);
	set_faults(&rig, (struct bln_faults){.ack_delay_ns = 3600000000000});
	rig_send_run(&rig, INFLATE, RIG_USER, 4);
	rig_kick(&rig, INFLATE);
	rig_until(rig_count(&rig).held_pages == 4);
	rig_send_run(&rig, INFLATE, RIG_USER + 4, 4); /* no kick is wanted for this one */
	t_equal(0, vq_driver_kick_needed(rig.rings[INFLATE].driver));
	bln_worker_stop(rig.worker);
	rig_take(&rig, INFLATE); /* what was in hand is shown */
	t_equal(1, bln_queue_depth(rig.dev, INFLATE));
	t_equal(4, rig_count(&rig).held_pages);
	set_faults(&rig, (struct bln_faults){0});
	start_worker(&rig);
	rig_until(t_raw_used_idx(&rig.rings[INFLATE]) == 2);
	rig_take(&rig, INFLATE);
	bln_worker_stop(NULL);
	rig_drop(&rig);
}

/* ---- everything at once ------------------------------------------------- */

/* Keeps a ring full without ever waiting, until told to stop. */
struct flood {
	struct rig *rig; /* on its inflate queue */
	int stop;        /* atomic */
};

static void *run_flood(void *arg)
{
	struct flood *flood = arg;
	struct vq_driver *driver = flood->rig->rings[INFLATE].driver;
	const struct vq_segment segment = {rig_data(INFLATE), 64};

	while (!__atomic_load_n(&flood->stop, __ATOMIC_RELAXED)) {
		while (vq_driver_get_used(driver, NULL, NULL) == 1)
			;
		if (vq_driver_add(driver, &segment, 1, 0, 1) == 0)
			vq_driver_publish(driver);
		if (vq_driver_kick_needed(driver))
			rig_kick(flood->rig, INFLATE);
	}
	return NULL;
}

static void test_a_flooding_driver_starves_nobody(void)
{
	struct flood flood = {0};
	pthread_t thread;
	struct rig rig;

	rig_make(&rig);
	start_worker(&rig);
	rig_start(&rig, VQ_F_EVENT_IDX, 4);
	flood.rig = &rig;
	t_equal(0, pthread_create(&thread, NULL, run_flood, &flood));
	/* Until there were enough of both; the flood may be slow to start. */
	for (uint32_t i = 0; i < 50 || rig_count(&rig).requests < i + 500; i++)
		t_check(round_trip(&rig, DEFLATE, RIG_USER, 4, 5000));
	__atomic_store_n(&flood.stop, 1, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	t_equal(0, bln_set_status(rig.dev, 0));
	rig_drop(&rig);
}

/* A host that looks at everything and turns every knob. */
static void *run_host(void *arg)
{
	struct flood *flood = arg;
	struct bln_device *dev = flood->rig->dev;
	struct histogram *latency = malloc(sizeof(*latency));
	struct vq_device_counters queue_count;
	struct bln_counters count;
	struct bln_faults faults;
	struct bln_stats stats;
	uint64_t random = 3;
	uint32_t field;
	unsigned queue;

	while (!__atomic_load_n(&flood->stop, __ATOMIC_RELAXED)) {
		faults = (struct bln_faults){
		    .ack_delay_ns = t_random(&random) % 20000,
		    .stall_queues = t_random(&random) % 8,
		    .lose_calls = 0,
		    .fail_discards = t_random(&random) % 2,
		};
		bln_set_faults(dev, &faults);
		bln_counters_get(dev, &count);
		bln_set_target(dev, (uint32_t)(t_random(&random) % 1000));
		bln_config_read(dev, 0, &field, 4);
		bln_stats_request(dev);
		bln_stats_get(dev, &stats);
		bln_broken(dev, &queue);
		bln_holds(dev, RIG_USER + t_random(&random) % 64);
		for (queue = 0; queue < BLN_QUEUES; queue++) {
			bln_queue_counters(dev, queue, &queue_count);
			bln_queue_depth(dev, queue);
			bln_queue_size_max(dev, queue);
			bln_latency(dev, queue, latency);
		}
		faults = (struct bln_faults){0};
		bln_set_faults(dev, &faults);
		bln_faults_get(dev, &faults);
	}
	free(latency);
	return NULL;
}

static void test_driver_device_and_host_at_once(void)
{
	struct flood host = {0};
	pthread_t thread;
	struct rig rig;

	rig_make(&rig);
	start_worker(&rig);
	rig_start(&rig, RIG_ALL, 8);
	host.rig = &rig;
	t_equal(0, pthread_create(&thread, NULL, run_host, &host));
	for (unsigned life = 0; life < 10; life++) {
		rig_start(&rig, RIG_ALL, 8);
		rig_send_run(&rig, STATS, 0, 20);
		rig_kick(&rig, STATS);
		for (uint32_t i = 0; i < 20; i++) {
			const uint32_t actual = htole32(i);

			t_check(round_trip(&rig, INFLATE, RIG_USER + 8 * i, 8, 5000));
			t_equal(0, bln_config_write(rig.dev, 4, &actual, 4));
			t_equal(1, bln_holds(rig.dev, RIG_USER + 8 * i));
			t_check(round_trip(&rig, DEFLATE, RIG_USER + 8 * i, 8, 5000));
			t_equal(0, bln_holds(rig.dev, RIG_USER + 8 * i));
		}
		t_equal(0, rig_count(&rig).held_pages);
	}
	__atomic_store_n(&host.stop, 1, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	rig_drop(&rig);
}

static const struct t_test tests[] = {
    T_TEST(test_one_kick_and_one_call_a_request),
    T_TEST(test_t_37_requests_from_before_driver_ok),
    T_TEST(test_stats_request_reaches_a_waiting_driver),
    T_TEST(test_thread_is_named_blocks_signals_and_is_bound),
    T_TEST(test_t_24_discard_precedes_used_entry),
    T_TEST(test_fault_delay_holds_acknowledgements_back),
    T_TEST(test_fault_stalled_queue_resumes),
    T_TEST(test_fault_lost_kick_and_lost_call),
    T_TEST(test_core_dev_11_nothing_after_reset),
    T_TEST(test_core_dev_11_reset_cuts_a_delay_short),
    T_TEST(test_stop_leaves_requests_for_the_next_worker),
    T_TEST(test_a_flooding_driver_starves_nobody),
    T_TEST(test_driver_device_and_host_at_once),
};

int main(void)
{
	return t_run(tests, T_COUNT(tests));
}
