/* Description: split ring, who is woken when: flags, event indices, wrap, re-arming. */
/* SPDX-License-Identifier: MIT */
#include "helpers.h"

/* ---- the formula ---------------------------------------------------------- */

/* The plain definition: one of the entries old, old+1, .. new-1 (mod 2^16) is the event. Entry
 * numbers are the ones just filled, so the event `e` is passed when e is among them. */
static int plain_need_event(uint16_t event, uint16_t new_idx, uint16_t old_idx)
{
	for (uint16_t i = old_idx; i != new_idx; i++)
		if (i == event)
			return 1;
	return 0;
}

/* All 2^16 events against a pair. */
static void sweep_events(uint16_t old_idx, uint16_t step)
{
	uint16_t new_idx = (uint16_t)(old_idx + step);

	for (uint32_t event = 0; event <= UINT16_MAX; event++) {
		/* plain_need_event() without its loop: the distance from old, counted up */
		int expected = (uint16_t)(event - old_idx) < step;

		t_equal(expected, vq_need_event((uint16_t)event, new_idx, old_idx));
	}
}

static void test_need_event_against_the_plain_definition(void)
{
	static const uint16_t olds[] = {0,     1,     2,     255,   256,  32767,
					32768, 65279, 65533, 65534, 65535};
	static const uint16_t steps[] = {0, 1, 2, 3, 255, 256, 32767, 32768, 65534, 65535};
	uint64_t random = 5;

	for (unsigned i = 0; i < T_COUNT(olds); i++)
		for (unsigned j = 0; j < T_COUNT(steps); j++)
			sweep_events(olds[i], steps[j]);
	for (unsigned i = 0; i < 50; i++)
		sweep_events((uint16_t)t_random(&random), (uint16_t)t_random(&random));
	/* And the sweep's own short cut against the loop. */
	for (unsigned i = 0; i < 3000; i++) {
		uint16_t event = (uint16_t)t_random(&random), old_idx = (uint16_t)t_random(&random);
		uint16_t new_idx = (uint16_t)(old_idx + t_random(&random) % 512);

		if (i & 1)
			event = (uint16_t)(old_idx + t_random(&random) % 600 - 40);
		t_equal(plain_need_event(event, new_idx, old_idx),
			vq_need_event(event, new_idx, old_idx));
	}
}

/* ---- the driver's kick ---------------------------------------------------- */

/* Publishes n buffers and says whether a kick is wanted; the device then uses them all. */
static int kick_after(struct t_ring *r, unsigned n)
{
	int wanted;

	for (unsigned i = 0; i < n; i++)
		t_add(r, i);
	t_equal(n, vq_driver_publish(r->driver));
	wanted = vq_driver_kick_needed(r->driver);
	t_equal(0, vq_driver_kick_needed(r->driver)); /* asked again, nothing new */
	t_equal(n, t_serve(r));
	t_equal(n, t_drain(r));
	return wanted;
}

static void test_split_drv_20_avail_event_ignored_without_event_idx(void)
{
	struct t_ring r;

	t_ring_make(&r, 8, 0);
	for (unsigned i = 0; i < 70000; i++) {
		le16_store(t_raw_avail_event(&r), (uint16_t)(i * 40503));
		t_equal(1, kick_after(&r, 1));
	}
	t_ring_drop(&r);
}

static void test_split_drv_21_no_kick_when_used_flags_is_1(void)
{
	struct vq_driver_counters counters;
	struct t_ring r;

	t_ring_make(&r, 8, 0);
	le16_store(r.used, 1);
	for (unsigned i = 0; i < 100; i++)
		t_equal(0, kick_after(&r, 1 + i % 8));
	vq_driver_counters_get(r.driver, &counters);
	t_equal(0, counters.kicks);
	t_equal(100, counters.kicks_suppressed);
	t_ring_drop(&r);
}

static void test_split_drv_22_kick_when_used_flags_is_0(void)
{
	struct vq_driver_counters counters;
	struct t_ring r;

	t_ring_make(&r, 8, 0);
	t_equal(0, vq_driver_kick_needed(r.driver)); /* nothing published yet */
	for (unsigned i = 0; i < 100; i++)
		t_equal(1, kick_after(&r, 1 + i % 8));
	le16_store(r.used, 2); /* only bit 0 counts */
	t_equal(1, kick_after(&r, 1));
	vq_driver_counters_get(r.driver, &counters);
	t_equal(101, counters.kicks);
	t_ring_drop(&r);
}

static void test_split_drv_22_submit_says_whether_to_kick(void)
{
	struct vq_driver_counters counters;
	struct t_ring r;

	t_ring_make(&r, 2, 0);
	t_equal(1, vq_driver_submit(r.driver, GM_PAGE_SIZE, 4));
	le16_store(r.used, 1);
	t_equal(0, vq_driver_submit(r.driver, 2 * GM_PAGE_SIZE, 4));
	t_equal(-ENOSPC, vq_driver_submit(r.driver, 3 * GM_PAGE_SIZE, 4));
	t_equal(2, t_serve(&r));
	t_equal(GM_PAGE_SIZE, vq_driver_get_buf(r.driver));
	t_equal(2 * GM_PAGE_SIZE, vq_driver_get_buf(r.driver));
	t_equal(-EINVAL, vq_driver_submit(r.driver, GM_PAGE_SIZE, 0));
	vq_driver_counters_get(r.driver, &counters);
	t_equal(1, counters.kicks);
	t_equal(1, counters.kicks_suppressed);
	t_ring_drop(&r);
}

static void test_split_drv_23_used_flags_ignored_with_event_idx(void)
{
	struct t_ring r;

	t_ring_make(&r, 8, VQ_F_EVENT_IDX);
	le16_store(r.used, 1);
	t_equal(1, kick_after(&r, 1));
	le16_store(t_raw_avail_event(&r), 1);
	t_equal(1, kick_after(&r, 1));
	t_ring_drop(&r);
}

/* Batches of every size up to 8 over the wrap; the event is wherever it hurts. */
static void sweep_kicks(int positive)
{
	uint64_t random = 11;
	uint32_t idx = 0;
	struct t_ring r;

	t_ring_make(&r, 8, VQ_F_EVENT_IDX);
	while (idx < 2 * 65536 + 100) {
		unsigned n = 1 + (unsigned)(t_random(&random) % 8);
		uint16_t inside = (uint16_t)(idx + t_random(&random) % n);
		uint16_t outside = (uint16_t)(t_random(&random) & 1 ? idx - 1 : idx + n);

		le16_store(t_raw_avail_event(&r), positive ? inside : outside);
		t_equal(positive, kick_after(&r, n));
		idx += n;
	}
	t_ring_drop(&r);
}

static void test_split_drv_24_kick_when_avail_event_passed(void)
{
	sweep_kicks(1);
}

static void test_split_drv_25_no_kick_otherwise(void)
{
	sweep_kicks(0);
}

/* More than 2^16 publications between two questions: the formula alone cannot see it. */
static void test_split_drv_24_kick_after_65536_unasked_publications(void)
{
	struct t_ring r;

	t_ring_make(&r, 8, VQ_F_EVENT_IDX);
	for (unsigned i = 0; i < 65536; i++) {
		t_add(&r, i);
		vq_driver_publish(r.driver);
		t_serve(&r);
		t_drain(&r);
	}
	t_equal(1, vq_driver_kick_needed(r.driver));
	t_ring_drop(&r);
}

/* ---- the driver's wishes -------------------------------------------------- */

static void test_split_drv_12_avail_flags_is_0_or_1(void)
{
	struct t_ring r;

	t_ring_make(&r, 8, 0);
	for (unsigned i = 0; i < 1000; i++) {
		if (i & 1)
			vq_driver_disable_calls(r.driver);
		else if (i & 2)
			vq_driver_enable_calls(r.driver);
		else
			vq_driver_enable_calls_after(r.driver, (uint16_t)i);
		t_equal(i & 1, le16_load(r.avail));
		kick_after(&r, 1);
		t_equal(i & 1, le16_load(r.avail));
	}
	t_ring_drop(&r);
}

static void test_split_drv_13_without_calls_polling_finds_everything(void)
{
	struct t_ring r;

	t_ring_make(&r, 8, 0);
	vq_driver_disable_calls(r.driver);
	vq_driver_disable_calls(r.driver);
	for (unsigned i = 0; i < 100; i++) {
		t_add(&r, i);
		vq_driver_publish(r.driver);
		t_equal(1, t_serve(&r));
		t_equal(0, vq_device_call_needed(r.device));
		t_equal(1, t_drain(&r));
	}
	t_ring_drop(&r);
}

static void test_split_drv_14_avail_flags_stays_0_with_event_idx(void)
{
	struct t_ring r;

	t_ring_make(&r, 8, VQ_F_EVENT_IDX);
	for (unsigned i = 0; i < 1000; i++) {
		if (i % 3 == 0)
			vq_driver_disable_calls(r.driver);
		else if (i % 3 == 1)
			vq_driver_enable_calls(r.driver);
		else
			vq_driver_enable_calls_after(r.driver, 5);
		t_equal(0, le16_load(r.avail));
		kick_after(&r, 1 + i % 8);
		t_equal(0, le16_load(r.avail));
	}
	t_ring_drop(&r);
}

/* Uses one buffer of those outstanding; whether the device calls. */
static int use_one(struct t_ring *r)
{
	struct vq_chain chain;

	t_equal(1, vq_device_pop(r->device, &chain));
	vq_device_push(r->device, chain.head, 0);
	t_equal(1, vq_device_publish(r->device));
	return vq_device_call_needed(r->device);
}

static void test_split_drv_15_call_only_after_the_slot_asked_for(void)
{
	struct t_ring r;

	t_ring_make(&r, 16, VQ_F_EVENT_IDX);
	for (unsigned round = 0; round < 20000; round++) { /* several times round the indices */
		unsigned k = round % 16 + 1;

		for (unsigned i = 0; i < 16; i++)
			t_add(&r, i);
		vq_driver_publish(r.driver);
		t_equal(0, vq_driver_enable_calls_after(r.driver, (uint16_t)k));
		for (unsigned i = 1; i <= 16; i++)
			t_equal(i == k, use_one(&r));
		t_equal(16, t_drain(&r));
	}
	t_ring_drop(&r);
}

/* enable_calls_after() says 1 when that many are there already. */
static void test_split_drv_15_already_there(void)
{
	struct t_ring r;

	t_ring_make(&r, 8, VQ_F_EVENT_IDX);
	for (unsigned i = 0; i < 8; i++)
		t_add(&r, i);
	vq_driver_publish(r.driver);
	for (unsigned i = 0; i < 3; i++)
		use_one(&r);
	t_equal(1, vq_driver_enable_calls_after(r.driver, 0));
	t_equal(1, vq_driver_enable_calls_after(r.driver, 1));
	t_equal(1, vq_driver_enable_calls_after(r.driver, 3));
	t_equal(0, vq_driver_enable_calls_after(r.driver, 4));
	t_equal(1, use_one(&r));
	t_ring_drop(&r);
	/* Without EVENT_IDX the count is no wish that can be told. */
	t_ring_make(&r, 8, 0);
	for (unsigned i = 0; i < 8; i++)
		t_add(&r, i);
	vq_driver_publish(r.driver);
	t_equal(0, vq_driver_enable_calls_after(r.driver, 4));
	t_equal(1, use_one(&r));
	t_equal(1, vq_driver_enable_calls_after(r.driver, 4));
	t_ring_drop(&r);
}

static void test_get_buf_asks_for_a_call_at_the_next(void)
{
	for (unsigned event = 0; event < 2; event++) {
		struct t_ring r;

		t_ring_make(&r, 8, event ? VQ_F_EVENT_IDX : 0);
		for (uint64_t i = 1; i <= 4; i++)
			t_equal(0, vq_driver_send(r.driver, i * GM_PAGE_SIZE, 4));
		t_equal(0, vq_driver_get_buf(r.driver));
		vq_driver_disable_calls(r.driver);
		use_one(&r);
		t_equal(GM_PAGE_SIZE, vq_driver_get_buf(r.driver));
		t_equal(1, use_one(&r));
		t_equal(1, vq_driver_get_used(r.driver, NULL, NULL));
		vq_driver_disable_calls(r.driver);
		t_equal(0, use_one(&r)); /* with EVENT_IDX: since it does not ask anew */
		t_equal(3 * GM_PAGE_SIZE, vq_driver_get_buf(r.driver));
		t_equal(1, use_one(&r));
		t_equal(4 * GM_PAGE_SIZE, vq_driver_get_buf(r.driver));
		t_equal(0, vq_driver_get_buf(r.driver));
		t_ring_drop(&r);
	}
}

static void test_split_drv_16_spurious_calls(void)
{
	for (unsigned event = 0; event < 2; event++) {
		struct t_ring r;

		t_ring_make(&r, 8, event ? VQ_F_EVENT_IDX : 0);
		t_add(&r, 0);
		for (unsigned i = 0; i < 100; i++) { /* called: look, find nothing, re-arm */
			t_equal(0, vq_driver_get_used(r.driver, NULL, NULL));
			t_equal(0, vq_driver_enable_calls(r.driver));
		}
		vq_driver_publish(r.driver);
		t_equal(0, vq_driver_get_used(r.driver, NULL, NULL));
		t_equal(1, t_serve(&r));
		t_equal(1, t_drain(&r));
		t_equal(VQ_OK, vq_driver_broken(r.driver));
		t_ring_drop(&r);
	}
}

/* The device completes between the empty check and the re-enabling. */
static void test_split_drv_29_recheck_after_enabling_calls(void)
{
	for (unsigned event = 0; event < 2; event++) {
		struct t_ring r;

		t_ring_make(&r, 8, event ? VQ_F_EVENT_IDX : 0);
		for (unsigned i = 0; i < 70000; i++) {
			vq_driver_disable_calls(r.driver);
			t_add(&r, i);
			vq_driver_publish(r.driver);
			t_equal(0, vq_driver_get_used(r.driver, NULL, NULL));
			t_equal(1, t_serve(&r)); /* here */
			/* With the event index one call in 2^15 slips through, when the far
			 * event comes round; that is allowed (SPLIT-DRV-16). */
			if (!event)
				t_equal(0, vq_device_call_needed(r.device));
			t_equal(1, vq_driver_enable_calls(r.driver));
			t_equal(1, t_drain(&r));
			t_equal(0, vq_driver_enable_calls(r.driver));
		}
		t_ring_drop(&r);
	}
}

static void test_disabled_calls_are_rare_with_event_idx(void)
{
	struct vq_device_counters counters;
	struct t_ring r;

	t_ring_make(&r, 8, VQ_F_EVENT_IDX);
	vq_driver_disable_calls(r.driver);
	vq_device_disable_kicks(r.device);
	for (unsigned i = 0; i < 65536; i++) {
		t_add(&r, i);
		vq_driver_publish(r.driver);
		vq_driver_kick_needed(r.driver);
		use_one(&r);
		t_drain(&r);
	}
	vq_device_counters_get(r.device, &counters);
	t_check(counters.calls <= 1);
	t_ring_drop(&r);
}

/* ---- the device's call ---------------------------------------------------- */

/* Uses n buffers in one publication; whether the device calls. */
static int call_after(struct t_ring *r, unsigned n)
{
	int wanted;

	for (unsigned i = 0; i < n; i++)
		t_add(r, i);
	vq_driver_publish(r->driver);
	t_equal(n, t_serve(r));
	wanted = vq_device_call_needed(r->device);
	t_equal(0, vq_device_call_needed(r->device));
	t_equal(n, t_drain(r));
	return wanted;
}

static void test_split_dev_11_used_event_ignored_without_event_idx(void)
{
	struct t_ring r;

	t_ring_make(&r, 8, 0);
	for (unsigned i = 0; i < 70000; i++) {
		le16_store(t_raw_used_event(&r), (uint16_t)(i * 40503));
		t_equal(1, call_after(&r, 1));
	}
	t_ring_drop(&r);
}

static void test_split_dev_12_no_call_when_avail_flags_is_1(void)
{
	struct vq_device_counters counters;
	struct t_ring r;

	t_ring_make(&r, 8, 0);
	le16_store(r.avail, 1);
	for (unsigned i = 0; i < 100; i++)
		t_equal(0, call_after(&r, 1 + i % 8));
	vq_device_counters_get(r.device, &counters);
	t_equal(0, counters.calls);
	t_equal(100, counters.calls_suppressed);
	t_ring_drop(&r);
}

static void test_split_dev_13_call_when_avail_flags_is_0(void)
{
	struct t_ring r;

	t_ring_make(&r, 8, 0);
	t_equal(0, vq_device_call_needed(r.device));
	for (unsigned i = 0; i < 100; i++)
		t_equal(1, call_after(&r, 1 + i % 8));
	le16_store(r.avail, 0xfffe); /* only bit 0 counts */
	t_equal(1, call_after(&r, 1));
	t_ring_drop(&r);
}

static void test_split_dev_14_avail_flags_ignored_with_event_idx(void)
{
	struct t_ring r;

	t_ring_make(&r, 8, VQ_F_EVENT_IDX);
	le16_store(r.avail, 1);
	t_equal(1, call_after(&r, 1)); /* used_event is 0 */
	t_equal(0, call_after(&r, 1));
	le16_store(t_raw_used_event(&r), 2);
	t_equal(1, call_after(&r, 1));
	t_ring_drop(&r);
}

static void sweep_calls(int positive)
{
	uint64_t random = 13;
	uint32_t idx = 0;
	struct t_ring r;

	t_ring_make(&r, 8, VQ_F_EVENT_IDX);
	while (idx < 2 * 65536 + 100) {
		unsigned n = 1 + (unsigned)(t_random(&random) % 8);
		uint16_t inside = (uint16_t)(idx + t_random(&random) % n);
		uint16_t outside = (uint16_t)(t_random(&random) & 1 ? idx - 1 : idx + n);

		le16_store(t_raw_used_event(&r), positive ? inside : outside);
		t_equal(positive, call_after(&r, n));
		idx += n;
	}
	t_ring_drop(&r);
}

static void test_split_dev_15_call_when_used_event_passed(void)
{
	sweep_calls(1);
}

/* T-07: with used_event 0, the 1st and the 65537th buffer, not the 65536th. */
static void test_split_dev_15_first_and_65537th(void)
{
	struct t_ring r;

	t_ring_make(&r, 8, VQ_F_EVENT_IDX);
	for (unsigned buffer = 1; buffer <= 3 * 65536; buffer++)
		t_equal(buffer % 65536 == 1, call_after(&r, 1));
	t_ring_drop(&r);
}

static void test_split_dev_16_no_call_otherwise(void)
{
	sweep_calls(0);
}

/* ---- the device's wishes -------------------------------------------------- */

static void test_split_dev_20_used_flags_is_0_or_1(void)
{
	struct t_ring r;

	t_ring_make(&r, 8, 0);
	for (unsigned i = 0; i < 1000; i++) {
		if (i & 1)
			vq_device_disable_kicks(r.device);
		else
			vq_device_enable_kicks(r.device);
		t_equal(i & 1, le16_load(r.used));
		t_equal(!(i & 1), kick_after(&r, 1));
		t_equal(i & 1, le16_load(r.used));
	}
	t_ring_drop(&r);
}

/* Polls, arms again, re-checks: the buffer that came in between is seen. */
static void rearm_kicks(uint64_t features)
{
	struct t_ring r;

	t_ring_make(&r, 8, features);
	for (unsigned i = 0; i < 70000; i++) {
		struct vq_chain chain;

		vq_device_disable_kicks(r.device);
		t_equal(0, vq_device_pop(r.device, &chain));
		t_add(&r, i);
		vq_driver_publish(r.driver); /* after the empty check, before the arming */
		if (!features)
			t_equal(0, vq_driver_kick_needed(r.driver));
		t_equal(1, vq_device_enable_kicks(r.device));
		t_equal(1, t_serve(&r));
		t_equal(0, vq_device_enable_kicks(r.device));
		vq_driver_kick_needed(r.driver);
		t_drain(&r);
		t_equal(1, kick_after(&r, 1)); /* armed: the next one kicks */
	}
	t_ring_drop(&r);
}

static void test_split_dev_21_polling_then_recheck(void)
{
	rearm_kicks(0);
	rearm_kicks(VQ_F_EVENT_IDX);
}

static void test_split_dev_22_used_flags_stays_0_with_event_idx(void)
{
	struct t_ring r;

	t_ring_make(&r, 8, VQ_F_EVENT_IDX);
	for (unsigned i = 0; i < 1000; i++) {
		if (i & 1)
			vq_device_disable_kicks(r.device);
		else
			vq_device_enable_kicks(r.device);
		t_equal(0, le16_load(r.used));
		kick_after(&r, 1 + i % 8);
		t_equal(0, le16_load(r.used));
	}
	t_ring_drop(&r);
}

/* avail_event names the next entry: the first publication kicks, the following ones do not. */
static void test_split_dev_23_kick_only_after_the_slot_asked_for(void)
{
	struct t_ring r;

	t_ring_make(&r, 8, VQ_F_EVENT_IDX);
	for (unsigned round = 0; round < 30000; round++) {
		t_equal(0, vq_device_enable_kicks(r.device));
		t_equal((uint16_t)(4 * round), le16_load(t_raw_avail_event(&r)));
		t_equal(1, kick_after(&r, 2));
		t_equal(0, kick_after(&r, 1));
		t_equal(0, kick_after(&r, 1));
	}
	t_ring_drop(&r);
}

static void test_split_dev_24_spurious_kicks(void)
{
	struct t_ring r;

	t_ring_make(&r, 8, 0);
	for (unsigned i = 0; i < 100; i++) { /* kicked: look, find nothing, re-arm */
		t_equal(0, t_serve(&r));
		t_equal(0, vq_device_publish(r.device));
		t_equal(0, vq_device_call_needed(r.device));
		t_equal(0, vq_device_enable_kicks(r.device));
	}
	t_equal(0, t_raw_used_idx(&r));
	t_equal(VQ_OK, vq_device_broken(r.device));
	t_ring_drop(&r);
}

static void test_split_dev_25_chains_are_seen_without_a_kick(void)
{
	struct t_ring r;

	t_ring_make(&r, 8, 0);
	for (unsigned i = 0; i < 100; i++) {
		t_add(&r, i);
		vq_driver_publish(r.driver); /* nobody asks whether to kick */
		t_equal(1, vq_device_pending(r.device));
		t_equal(1, t_serve(&r));
		t_equal(1, t_drain(&r));
	}
	t_ring_drop(&r);
}

static void test_split_dev_26_kicks_can_be_suppressed(void)
{
	for (unsigned event = 0; event < 2; event++) {
		struct vq_driver_counters counters;
		struct t_ring r;

		t_ring_make(&r, 8, event ? VQ_F_EVENT_IDX : 0);
		vq_device_disable_kicks(r.device);
		for (unsigned i = 0; i < 10000; i++)
			kick_after(&r, 1);
		vq_driver_counters_get(r.driver, &counters);
		t_equal(0, counters.kicks);
		t_equal(10000, counters.kicks_suppressed);
		t_ring_drop(&r);
	}
}

static const struct t_test tests[] = {
    T_TEST(test_need_event_against_the_plain_definition),
    T_TEST(test_split_drv_12_avail_flags_is_0_or_1),
    T_TEST(test_split_drv_13_without_calls_polling_finds_everything),
    T_TEST(test_split_drv_14_avail_flags_stays_0_with_event_idx),
    T_TEST(test_split_drv_15_call_only_after_the_slot_asked_for),
    T_TEST(test_split_drv_15_already_there),
    T_TEST(test_get_buf_asks_for_a_call_at_the_next),
    T_TEST(test_split_drv_16_spurious_calls),
    T_TEST(test_split_drv_20_avail_event_ignored_without_event_idx),
    T_TEST(test_split_drv_21_no_kick_when_used_flags_is_1),
    T_TEST(test_split_drv_22_kick_when_used_flags_is_0),
    T_TEST(test_split_drv_22_submit_says_whether_to_kick),
    T_TEST(test_split_drv_23_used_flags_ignored_with_event_idx),
    T_TEST(test_split_drv_24_kick_when_avail_event_passed),
    T_TEST(test_split_drv_24_kick_after_65536_unasked_publications),
    T_TEST(test_split_drv_25_no_kick_otherwise),
    T_TEST(test_split_drv_29_recheck_after_enabling_calls),
    T_TEST(test_disabled_calls_are_rare_with_event_idx),
    T_TEST(test_split_dev_11_used_event_ignored_without_event_idx),
    T_TEST(test_split_dev_12_no_call_when_avail_flags_is_1),
    T_TEST(test_split_dev_13_call_when_avail_flags_is_0),
    T_TEST(test_split_dev_14_avail_flags_ignored_with_event_idx),
    T_TEST(test_split_dev_15_call_when_used_event_passed),
    T_TEST(test_split_dev_15_first_and_65537th),
    T_TEST(test_split_dev_16_no_call_otherwise),
    T_TEST(test_split_dev_20_used_flags_is_0_or_1),
    T_TEST(test_split_dev_21_polling_then_recheck),
    T_TEST(test_split_dev_22_used_flags_stays_0_with_event_idx),
    T_TEST(test_split_dev_23_kick_only_after_the_slot_asked_for),
    T_TEST(test_split_dev_24_spurious_kicks),
    T_TEST(test_split_dev_25_chains_are_seen_without_a_kick),
    T_TEST(test_split_dev_26_kicks_can_be_suppressed),
};

int main(void)
{
	return t_run(tests, T_COUNT(tests));
}
