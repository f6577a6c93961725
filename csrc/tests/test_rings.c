/* SPDX-License-Identifier: MIT */
/* Description: queues that stop and go on, eventfds from outside, an exchanged memory map. */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "memory_guard.h"
#include "rig.h"

#define RUN 16u /* pages of a request */

static void start_at(struct rig *rig, unsigned queue, uint16_t base)
{
	t_equal(0, bln_queue_start(rig->dev, queue, &rig->rings[queue].config, base));
}

static void set_fd(struct rig *rig, unsigned queue, enum bln_fd which, int fd)
{
	t_equal(0, bln_queue_set_fd(rig->dev, queue, which, fd));
}

static void test_stopped_and_started_again(void)
{
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, RIG_ALL, 64);
	t_equal(-EINVAL, bln_queue_stop(rig.dev, BLN_QUEUES));
	for (uint16_t i = 0; i < 150; i++) { /* more often than the ring is long */
		rig_run(&rig, INFLATE, RIG_USER + i * RUN, RUN);
		t_equal(2 * i + 1, bln_queue_stop(rig.dev, INFLATE));
		t_equal(-EINVAL, bln_queue_stop(rig.dev, INFLATE));
		rig_send_run(&rig, INFLATE, RIG_USER + i * RUN, 1); /* shown while it is stopped */
		t_equal(0, bln_process(rig.dev, INFLATE));
		t_equal(0, vq_driver_get_used(rig.rings[INFLATE].driver, NULL, NULL));
		start_at(&rig, INFLATE, (uint16_t)(2 * i + 1));
		t_equal(-EBUSY, bln_queue_start(rig.dev, INFLATE, &rig.rings[INFLATE].config, 0));
		t_equal(1, bln_queue_depth(rig.dev, INFLATE));
		t_equal(1, bln_process(rig.dev, INFLATE));
		rig_take(&rig, INFLATE);
	}
	t_equal(150, rig_count(&rig).pfns_duplicate);
	rig_drop(&rig);
}

static void test_indices_wrap(void)
{
	struct rig rig;
	int base = 0;

	rig_make(&rig);
	rig_start(&rig, RIG_ALL, 4);
	for (uint32_t i = 0; i < 70000; i++) {
		rig_run(&rig, DEFLATE, RIG_USER, 1);
		if (i % 1000 == 999) {
			base = bln_queue_stop(rig.dev, DEFLATE);
			t_equal((int)((i + 1) & 0xffff), base);
			start_at(&rig, DEFLATE, (uint16_t)base);
		}
	}
	rig_drop(&rig);
}

static void test_held_statistics_are_read_again(void)
{
	const uint8_t entry[10] = {4, 0, 9};
	struct bln_stats stats;
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, RIG_ALL, 8);
	rig_send(&rig, STATS, entry, sizeof(entry));
	t_equal(1, bln_process(rig.dev, STATS));
	t_equal(0, bln_queue_stop(rig.dev, STATS));
	t_equal(-EAGAIN, bln_stats_request(rig.dev));
	start_at(&rig, STATS, 0);
	t_equal(1, bln_process(rig.dev, STATS));
	bln_stats_get(rig.dev, &stats);
	t_equal(2, stats.updates);
	t_equal(0, bln_stats_request(rig.dev));
	rig_take(&rig, STATS);
	t_equal(1, bln_queue_stop(rig.dev, STATS));
	rig_drop(&rig);
}

struct flood {
	struct rig *rig;
	bool end;
};

/* A driver that inflates and deflates without pause. */
static void *flood(void *arg)
{
	struct flood *flood = arg;
	struct rig *rig = flood->rig;
	uint32_t turn = 0;

	while (!__atomic_load_n(&flood->end, __ATOMIC_RELAXED)) {
		const unsigned queue = turn++ % 2 ? DEFLATE : INFLATE;

		rig_send_run(rig, queue, RIG_USER, RUN);
		rig_kick(rig, queue);
		while (vq_driver_get_used(rig->rings[queue].driver, NULL, NULL) != 1) {
			if (__atomic_load_n(&flood->end, __ATOMIC_RELAXED))
				return NULL;
		}
	}
	return NULL;
}

static void test_stop_is_exact_under_load(void)
{
	struct flood load;
	pthread_t thread;
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, RIG_ALL, 64);
	t_equal(0, bln_worker_start(rig.dev, -1, &rig.worker));
	load = (struct flood){.rig = &rig};
	t_equal(0, pthread_create(&thread, NULL, flood, &load));
	for (int i = 0; i < 200; i++) {
		const unsigned queue = i % 2 ? DEFLATE : INFLATE;
		const uint16_t *used = (const uint16_t *)(const void *)rig.rings[queue].used + 1;
		const int base = bln_queue_stop(rig.dev, queue);
		const uint16_t idx = __atomic_load_n(used, __ATOMIC_ACQUIRE);

		t_equal(base, idx); /* all before it is used ... */
		if (i % 20 == 0) {
			rig_sleep_ms(2);
			t_equal(idx,
				__atomic_load_n(used, __ATOMIC_ACQUIRE)); /* ... and no more is */
		}
		start_at(&rig, queue, (uint16_t)base);
	}
	__atomic_store_n(&load.end, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	rig_drop(&rig);
}

static void test_stop_does_not_sit_out_a_delay(void)
{
	const struct bln_faults faults = {.ack_delay_ns = 60000000000ull};
	const uint64_t begun = rig_now();
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, RIG_ALL, 8);
	bln_set_faults(rig.dev, &faults);
	t_equal(0, bln_worker_start(rig.dev, -1, &rig.worker));
	rig_send_run(&rig, INFLATE, RIG_USER, RUN);
	rig_kick(&rig, INFLATE);
	rig_until(rig_count(&rig).inflated_pages == RUN);
	t_equal(1, bln_queue_stop(rig.dev, INFLATE));
	t_check(rig_now() - begun < 10000000000ull);
	rig_drop(&rig);
}

static void test_kicks_from_outside(void)
{
	const uint64_t one = 1;
	int pipe_fds[2], blocking = eventfd(0, EFD_CLOEXEC), mine = dup(blocking);
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, RIG_ALL, 8);
	t_equal(0, bln_worker_start(rig.dev, -1, &rig.worker));
	set_fd(&rig, INFLATE, BLN_FD_KICK, blocking);
	for (uint64_t i = 1; i < 50; i++) {
		rig_send_run(&rig, INFLATE, RIG_USER, RUN);
		t_equal(8, write(mine, &one, 8));
		rig_until(vq_driver_get_used(rig.rings[INFLATE].driver, NULL, NULL) == 1);
	}
	rig_until(rig_count(&rig).kicks == 49);

	/* Another takes its place; the old one is dead, and closed on our side. */
	t_equal(0, pipe(pipe_fds));
	set_fd(&rig, INFLATE, BLN_FD_KICK, pipe_fds[0]);
	rig_sleep_ms(5);
	t_equal(8, write(mine, &one, 8));
	rig_sleep_ms(5);
	t_equal(49, rig_count(&rig).kicks);
	rig_send_run(&rig, INFLATE, RIG_USER, RUN);
	t_equal(8, write(pipe_fds[1], &one, 8));
	rig_until(vq_driver_get_used(rig.rings[INFLATE].driver, NULL, NULL) == 1);
	rig_until(rig_count(&rig).kicks == 50);

	/* Its end is no reason to spin. */
	close(pipe_fds[1]);
	rig_sleep_ms(20);
	{
		const uint64_t before = bln_worker_cpu_ns(rig.worker);

		rig_sleep_ms(50);
		t_check(bln_worker_cpu_ns(rig.worker) - before < 20000000);
	}
	set_fd(&rig, INFLATE, BLN_FD_KICK, -1);
	t_equal(-1, fcntl(pipe_fds[0], F_GETFD));
	rig_send_run(&rig, INFLATE, RIG_USER, RUN);
	rig_kick(&rig, INFLATE);
	rig_until(vq_driver_get_used(rig.rings[INFLATE].driver, NULL, NULL) == 1);
	close(mine);
	rig_drop(&rig);
}

static void test_calls_and_errors_to_outside(void)
{
	const uint64_t full = UINT64_MAX - 1;
	int call = eventfd(0, EFD_CLOEXEC), call_mine = dup(call);
	int err = eventfd(0, EFD_CLOEXEC), err_mine = dup(err);
	int pipe_fds[2];
	uint64_t value;
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, RIG_ALL & ~VQ_F_EVENT_IDX, 8);
	set_fd(&rig, INFLATE, BLN_FD_CALL, call);
	set_fd(&rig, INFLATE, BLN_FD_ERR, err);
	t_equal(8, read(call_mine, &value, 8)); /* for what went to the old one */
	rig_run(&rig, INFLATE, RIG_USER, 1);
	t_equal(8, read(call_mine, &value, 8));
	t_equal(1, value);
	t_equal(0, rig_events(bln_call_fd(rig.dev, INFLATE)));
	t_equal(8, write(call_mine, &full, 8)); /* a plain write of ours would sleep */
	rig_run(&rig, INFLATE, RIG_USER, 1);

	t_equal(0, pipe(pipe_fds));
	set_fd(&rig, INFLATE, BLN_FD_CALL, pipe_fds[1]);
	for (int i = 0; i < 20000; i++) /* a pipe holds 8192 */
		rig_run(&rig, INFLATE, RIG_USER, 1);
	t_equal(8, read(pipe_fds[0], &value, 8));
	t_equal(1, value);
	close(pipe_fds[0]);

	*(uint16_t *)(void *)(rig.rings[INFLATE].avail + 2) += 9; /* more than the ring holds */
	t_equal(-EIO, bln_process(rig.dev, INFLATE));
	t_equal(8, read(err_mine, &value, 8));
	close(err_mine);
	close(call_mine);
	rig_drop(&rig);
}

static void test_bad_descriptors(void)
{
	int file = memfd_create("file", MFD_CLOEXEC);
	struct rig rig;

	rig_make(&rig);
	t_equal(-EINVAL, bln_queue_set_fd(rig.dev, BLN_QUEUES, BLN_FD_KICK, file));
	t_equal(-EINVAL, bln_queue_set_fd(rig.dev, 0, (enum bln_fd)3, file));
	t_equal(-EINVAL, bln_queue_set_fd(rig.dev, 0, BLN_FD_KICK, -2));
	t_equal(-EBADF, bln_queue_set_fd(rig.dev, 0, BLN_FD_KICK, 1000000));
	t_equal(-EPERM,
		bln_queue_set_fd(rig.dev, 0, BLN_FD_KICK, file)); /* nobody can wait for it */
	t_equal(0, fcntl(file, F_GETFD) & ~FD_CLOEXEC);           /* still the caller's */
	close(file);
	rig_drop(&rig);
}

static void test_memory_is_exchanged(void)
{
	struct gm *bigger, *smaller, *first;
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, RIG_ALL, 8);
	rig_run(&rig, INFLATE, RIG_USER, 100);
	rig_run(&rig, INFLATE, RIG_PAGES - 10, 10);
	t_equal(0, gm_create((uint64_t)RIG_PAGES * 2 << GM_PAGE_SHIFT, &bigger));
	t_equal(0, gm_create((RIG_USER + 50ull) << GM_PAGE_SHIFT, &smaller));
	t_equal(-EBUSY, bln_set_memory(rig.dev, bigger));
	t_equal(0, bln_queue_stop(rig.dev, DEFLATE));
	t_equal(-EBUSY, bln_set_memory(rig.dev, bigger));
	t_equal(2, bln_queue_stop(rig.dev, INFLATE));
	t_equal(0, bln_queue_stop(rig.dev, STATS));

	first = rig.mem;
	t_equal(0, bln_set_memory(rig.dev, bigger));
	t_equal(110, rig_count(&rig).held_pages);
	t_equal(1, bln_holds(rig.dev, RIG_PAGES - 1));
	t_equal(0, bln_holds(rig.dev, RIG_PAGES * 2 - 1));
	t_equal(0, bln_set_target(rig.dev, RIG_PAGES * 2));
	t_equal(0, bln_set_memory(rig.dev, smaller));
	t_equal(50, rig_count(&rig).held_pages);
	t_equal(1, bln_holds(rig.dev, RIG_USER + 49));
	t_equal(-EINVAL, bln_holds(rig.dev, RIG_USER + 50));
	t_equal(-EINVAL, bln_set_target(rig.dev, RIG_PAGES));

	/* The rings are where they were in the first one, and go on where they stood. */
	t_equal(0, bln_set_memory(rig.dev, first));
	start_at(&rig, INFLATE, 2);
	start_at(&rig, DEFLATE, 0);
	rig_run(&rig, INFLATE, RIG_USER + 40, 20);
	t_equal(10, rig_count(&rig).pfns_duplicate);
	t_equal(60, rig_count(&rig).held_pages);
	rig_run(&rig, DEFLATE, RIG_USER, 60);
	t_equal(0, rig_count(&rig).held_pages);
	gm_destroy(bigger);
	gm_destroy(smaller);
	rig_drop(&rig);
}

static void test_memory_that_was_empty(void)
{
	const struct bln_options options = rig_options();
	struct bln_device *dev;
	struct gm *empty;

	t_equal(0, gm_create_empty(&empty));
	t_equal(0, bln_create(empty, &options, &dev));
	t_equal(-EINVAL, bln_set_target(dev, 1));
	t_equal(0, bln_set_target(dev, 0));
	t_equal(-EINVAL, bln_holds(dev, 0));
	bln_destroy(dev);
	gm_destroy(empty);
}

static void test_memory_that_goes_away(void)
{
	const struct bln_options options = rig_options();
	struct rig rig = {0};
	int fd = memfd_create("guest", MFD_CLOEXEC);

	t_equal(0, gm_create_empty(&rig.mem));
	t_equal(0, ftruncate(fd, (off_t)RIG_PAGES << GM_PAGE_SHIFT));
	t_equal(0, gm_add_region(rig.mem, 0, (uint64_t)RIG_PAGES << GM_PAGE_SHIFT, dup(fd), 0));
	t_equal(0, gm_guard(rig.mem));
	t_equal(0, bln_create(rig.mem, &options, &rig.dev));
	rig_start(&rig, RIG_ALL, 8);
	t_equal(0, bln_worker_start(rig.dev, -1, &rig.worker));
	rig_send_run(&rig, INFLATE, RIG_USER, RUN);
	rig_kick(&rig, INFLATE);
	rig_until(rig_count(&rig).requests == 1);
	t_equal(0, ftruncate(fd, 0));
	rig_kick(&rig, INFLATE); /* the worker finds an index that went backwards */
	rig_until((bln_status(rig.dev) & BLN_STATUS_NEEDS_RESET) != 0);
	t_equal(0, bln_queue_depth(rig.dev, DEFLATE));
	t_check(guard_replaced() > 0);
	close(fd);
	rig_drop(&rig);
}

static const struct t_test tests[] = {
    T_TEST(test_stopped_and_started_again),
    T_TEST(test_indices_wrap),
    T_TEST(test_held_statistics_are_read_again),
    T_TEST(test_stop_is_exact_under_load),
    T_TEST(test_stop_does_not_sit_out_a_delay),
    T_TEST(test_kicks_from_outside),
    T_TEST(test_calls_and_errors_to_outside),
    T_TEST(test_bad_descriptors),
    T_TEST(test_memory_is_exchanged),
    T_TEST(test_memory_that_was_empty),
    T_TEST(test_memory_that_goes_away),
};

int main(void)
{
	signal(SIGPIPE, SIG_IGN); /* as Python does */
	return t_run(tests, T_COUNT(tests));
}
