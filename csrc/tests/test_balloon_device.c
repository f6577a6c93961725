/* Description: the balloon device without a thread: registers, requests, statistics, hostile rings. */
#include "rig.h"

#include "balloon_internal.h"

/* ---- registers ---------------------------------------------------------- */

static void test_bal_dev_01_trn_03_queues_by_features(void)
{
	struct bln_options options = rig_options();
	struct vq_config config = {.size = 16, .driver_addr = 0x4000, .device_addr = 0x8000};
	struct rig rig;

	options.features = 0;
	rig_make_with(&rig, &options);
	for (unsigned queue = 0; queue < 6; queue++)
		t_equal(queue < 2 ? 256 : 0, bln_queue_size_max(rig.dev, queue));
	rig_negotiate(&rig, 0);
	t_equal(-EINVAL, bln_queue_enable(rig.dev, STATS, &config));
	t_equal(-EINVAL, bln_queue_enable(rig.dev, 3, &config));
	t_equal(-EINVAL, bln_kick_fd(rig.dev, 3));
	t_equal(-EINVAL, bln_call_fd(rig.dev, 3));
	rig_drop(&rig);

	/* On offer, but not taken: there until the choice is made. */
	rig_make(&rig);
	t_equal(256, bln_queue_size_max(rig.dev, STATS));
	rig_negotiate(&rig, BLN_F_STATS_VQ);
	t_equal(256, bln_queue_size_max(rig.dev, STATS));
	rig_negotiate(&rig, 0);
	t_equal(0, bln_queue_size_max(rig.dev, STATS));
	t_equal(-EINVAL, bln_queue_enable(rig.dev, STATS, &config));
	t_equal(-EOPNOTSUPP, bln_stats_request(rig.dev));
	rig_drop(&rig);
}

static void test_bal_dev_02_config_bytes(void)
{
	uint8_t bytes[BLN_CONFIG_BYTES], expected[BLN_CONFIG_BYTES] = {0};
	const uint8_t junk[BLN_CONFIG_BYTES] = {0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7,
						0xa8, 0xa9, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf};
	struct rig rig;

	rig_make(&rig);
	t_equal(0, bln_set_target(rig.dev, 0x1234));
	memcpy(expected, "\x34\x12", 2);
	for (uint32_t offset = 0; offset <= BLN_CONFIG_BYTES; offset++) {
		for (uint32_t len = 0; offset + len <= BLN_CONFIG_BYTES; len++) {
			const uint64_t writes = bln_actual_writes(rig.dev);
			const bool touches = offset + len > 4 && offset < 8 && len > 0;

			t_equal(0, bln_config_write(rig.dev, offset, junk + offset, len));
			for (uint32_t i = offset; i < offset + len; i++)
				if (i >= 4 && i < 8)
					expected[i] = junk[i];
			t_equal(writes + touches, bln_actual_writes(rig.dev));
			t_equal(touches, rig_events(bln_actual_fd(rig.dev)));

			t_equal(0, bln_config_read(rig.dev, 0, bytes, BLN_CONFIG_BYTES));
			t_equal(0, memcmp(bytes, expected, sizeof(bytes)));
			memset(bytes, 0, sizeof(bytes));
			t_equal(0, bln_config_read(rig.dev, offset, bytes, len));
			t_equal(0, memcmp(bytes, expected + offset, len));

			/* Back to nothing, one byte at a time. */
			t_equal(bln_actual(rig.dev), bln_actual_take(rig.dev));
			for (uint32_t i = 4; i < 8; i++) {
				t_equal(0, bln_config_write(rig.dev, i, "", 1));
				expected[i] = 0;
			}
			/* Four writes and one event, which a look takes back. */
			t_equal(0, bln_actual_take(rig.dev));
			t_equal(0, rig_events(bln_actual_fd(rig.dev)));
			t_equal(0, bln_config_write(rig.dev, 4, "", 1));
			t_equal(0, bln_config_write(rig.dev, 4, "", 1));
			t_equal(1, rig_events(bln_actual_fd(rig.dev)));
			bln_actual_take(rig.dev);
		}
	}
	t_equal(-EINVAL, bln_config_read(rig.dev, 16, bytes, 1));
	t_equal(-EINVAL, bln_config_read(rig.dev, 1, bytes, 16));
	t_equal(-EINVAL, bln_config_read(rig.dev, UINT32_MAX, bytes, 2));
	t_equal(-EINVAL, bln_config_write(rig.dev, 12, junk, 5));
	t_equal(-EINVAL, bln_config_write(rig.dev, 8, junk, UINT32_MAX));
	rig_drop(&rig);
}

static void test_bal_dev_03_strict_tell_host(void)
{
	struct bln_options options = rig_options();
	struct rig rig;

	for (uint32_t strict = 0; strict < 2; strict++) {
		options.strict_tell_host = strict;
		rig_make_with(&rig, &options);
		bln_set_status(rig.dev, 3);
		bln_set_driver_features(rig.dev, VQ_F_VERSION_1);
		t_equal(0, bln_set_status(rig.dev, 11));
		t_equal(strict ? 3 : 11, bln_status(rig.dev));
		rig_negotiate(&rig, BLN_F_MUST_TELL_HOST);
		rig_drop(&rig);
	}
}

static void test_core_dev_05_08_15_offered_features(void)
{
	struct bln_options options = rig_options();
	struct bln_device *dev;
	struct gm *mem;

	t_equal(0, gm_create(1 << 20, &mem));
	for (unsigned bit = 0; bit < 64; bit++) {
		options.features = 1ull << bit;
		if (options.features & RIG_ALL) {
			t_equal(0, bln_create(mem, &options, &dev));
			t_check(bln_features(dev) == (options.features | VQ_F_VERSION_1));
			bln_destroy(dev);
		} else {
			t_equal(-EINVAL, bln_create(mem, &options, &dev));
		}
	}
	options = rig_options();
	options.queue_size_max = 0;
	t_equal(-EINVAL, bln_create(mem, &options, &dev));
	options.queue_size_max = 100; /* TRN-04 */
	t_equal(-EINVAL, bln_create(mem, &options, &dev));
	options.queue_size_max = 65536;
	t_equal(-EINVAL, bln_create(mem, &options, &dev));
	options.queue_size_max = 32768;
	options.discard = (enum discard_method)9;
	t_equal(-EINVAL, bln_create(mem, &options, &dev));
	bln_destroy(NULL);
	gm_destroy(mem);
}

static void test_core_dev_06_09_every_subset_twice(void)
{
	static const uint64_t bits[] = {BLN_F_MUST_TELL_HOST, BLN_F_STATS_VQ, BLN_F_DEFLATE_ON_OOM,
					VQ_F_INDIRECT_DESC, VQ_F_EVENT_IDX};
	struct rig rig;

	rig_make(&rig);
	for (unsigned subset = 0; subset < 2 << T_COUNT(bits); subset++) {
		uint64_t features = VQ_F_VERSION_1;

		for (unsigned i = 0; i < T_COUNT(bits); i++)
			features |= subset & (2u << i) ? bits[i] : 0;
		rig_start(&rig, features, 8); /* each one comes twice, by bit 0 of subset */
		t_check(bln_driver_features(rig.dev) == features);
		rig_run(&rig, INFLATE, RIG_USER, 3);
		t_equal(3, rig_count(&rig).held_pages);
	}
	rig_drop(&rig);
}

static void test_core_dev_07_16_invalid_sets_are_refused(void)
{
	static const uint64_t sets[] = {
	    0,                                 /* no VERSION_1 */
	    RIG_ALL & ~VQ_F_VERSION_1,         /* the same */
	    VQ_F_VERSION_1 | VQ_F_RING_PACKED, /* not on offer */
	    VQ_F_VERSION_1 | 1ull << 5,        /* the same */
	    UINT64_MAX,
	};
	struct rig rig;

	rig_make(&rig);
	for (unsigned i = 0; i < T_COUNT(sets); i++) {
		t_equal(0, bln_set_status(rig.dev, 0));
		t_equal(0, bln_set_status(rig.dev, 3));
		t_equal(0, bln_set_driver_features(rig.dev, sets[i]));
		t_equal(0, bln_set_status(rig.dev, 11));
		t_equal(3, bln_status(rig.dev));
		t_equal(0, bln_set_status(rig.dev, 15)); /* no way around it */
		t_equal(3, bln_status(rig.dev));
		/* Another try without a reset is fine. */
		t_equal(0, bln_set_driver_features(rig.dev, VQ_F_VERSION_1));
		t_equal(0, bln_set_status(rig.dev, 11));
		t_equal(11, bln_status(rig.dev));
		t_equal(-EBUSY, bln_set_driver_features(rig.dev, RIG_ALL)); /* CORE-DRV-22 */
		t_check(bln_driver_features(rig.dev) == VQ_F_VERSION_1);
	}
	rig_drop(&rig);
}

static void test_core_dev_01_10_core_drv_02_status(void)
{
	struct rig rig;

	rig_make(&rig);
	t_equal(0, bln_status(rig.dev));
	rig_start(&rig, 0, 8);
	t_equal(-EINVAL, bln_set_status(rig.dev, 11));
	t_equal(15, bln_status(rig.dev));
	t_equal(0, bln_set_status(rig.dev, 15 | BLN_STATUS_FAILED));
	t_equal(143, bln_status(rig.dev));
	/* A driver that gave up gets nothing any more. */
	rig_send_run(&rig, INFLATE, RIG_USER, 1);
	t_equal(0, bln_process(rig.dev, INFLATE));
	t_equal(0, bln_set_status(rig.dev, 0));
	t_equal(0, bln_status(rig.dev));
	t_equal(2, rig_count(&rig).resets);
	/* Bits that are nobody's do not stick. */
	t_equal(0, bln_set_status(rig.dev, 1 | 16 | 32 | 64));
	t_equal(1, bln_status(rig.dev));
	rig_drop(&rig);
}

static void test_core_dev_02_nothing_before_driver_ok(void)
{
	struct rig rig;

	rig_make(&rig);
	rig_negotiate(&rig, BLN_F_STATS_VQ);
	for (unsigned queue = 0; queue < BLN_QUEUES; queue++) {
		rig_queue(&rig, queue, 8);
		rig_send_run(&rig, queue, RIG_USER, 10);
		rig_kick(&rig, queue);
		t_equal(0, bln_process(rig.dev, queue));
		t_equal(0, t_raw_used_idx(&rig.rings[queue]));
		t_equal(1, bln_queue_depth(rig.dev, queue));
		t_check(bln_kick_take(rig.dev, queue)); /* the early kick is gone */
	}
	t_equal(0, rig_count(&rig).requests);
	t_equal(0, bln_set_status(rig.dev, 15));
	/* T-37: each queue is to be looked at now, and that is no kick of the driver's. */
	for (unsigned queue = 0; queue < BLN_QUEUES; queue++) {
		t_check(bln_kick_take(rig.dev, queue));
		t_check(!bln_kick_take(rig.dev, queue));
		t_equal(1, bln_process(rig.dev, queue));
	}
	t_equal(3, rig_count(&rig).kicks);
	t_equal(10, rig_count(&rig).inflated_pages);
	rig_drop(&rig);
}

static void test_core_dev_12_config_before_features_ok(void)
{
	uint32_t field = 1;
	struct rig rig;

	rig_make(&rig);
	t_equal(0, bln_set_target(rig.dev, 99));
	t_equal(0, bln_config_read(rig.dev, 0, &field, 4));
	t_equal(99, le32toh(field));
	t_equal(0, bln_config_read(rig.dev, 12, &field, 4));
	t_equal(0, field);
	rig_drop(&rig);
}

static void test_core_dev_13_trn_01_target_notifies(void)
{
	const uint32_t actual = htole32(77);
	uint32_t generation;
	struct rig rig;

	rig_make(&rig);
	/* Nobody there yet (CORE-DEV-11). */
	t_equal(0, bln_set_target(rig.dev, 5));
	t_equal(0, rig_events(bln_config_fd(rig.dev)));
	rig_start(&rig, 0, 8);
	generation = bln_config_generation(rig.dev);
	/* No change; but the driver, which holds nothing, is asked anew. */
	t_equal(0, bln_set_target(rig.dev, 5));
	t_equal(generation, bln_config_generation(rig.dev));
	t_equal(1, rig_events(bln_config_fd(rig.dev)));
	t_equal(0, bln_set_target(rig.dev, 6));
	t_equal(6, bln_target(rig.dev));
	t_check(generation != bln_config_generation(rig.dev));
	t_equal(1, rig_events(bln_config_fd(rig.dev)));
	t_equal(2, rig_count(&rig).config_changes);
	for (uint32_t i = 0; i < 256; i++) /* T-41 */
		t_equal(0, bln_set_target(rig.dev, 100 + i));
	t_check(generation + 256 < bln_config_generation(rig.dev));
	rig_events(bln_config_fd(rig.dev));

	generation = bln_config_generation(rig.dev);
	t_equal(0, bln_config_write(rig.dev, 4, &actual, 4));
	t_equal(77, bln_actual(rig.dev));
	t_equal(0, rig_events(bln_config_fd(rig.dev)));
	t_equal(generation, bln_config_generation(rig.dev));
	t_equal(0, bln_set_target(rig.dev, 77));
	rig_events(bln_config_fd(rig.dev));
	t_equal(0, bln_set_target(rig.dev, 77)); /* asked for, and there */
	t_equal(0, rig_events(bln_config_fd(rig.dev)));

	t_equal(0, bln_set_target(rig.dev, RIG_PAGES));
	t_equal(-EINVAL, bln_set_target(rig.dev, RIG_PAGES + 1));
	rig_drop(&rig);
}

static void test_queue_enable_errors(void)
{
	struct vq_config config = {.size = 16, .driver_addr = 0x4000, .device_addr = 0x8000};
	struct vq_device_counters count;
	struct rig rig;

	rig_make(&rig);
	t_equal(-EBUSY, bln_queue_enable(rig.dev, INFLATE, &config)); /* no FEATURES_OK */
	rig_negotiate(&rig, 0);
	config.size = 512;
	t_equal(-EINVAL, bln_queue_enable(rig.dev, INFLATE, &config)); /* above the maximum */
	config.size = 12;
	t_equal(-EINVAL, bln_queue_enable(rig.dev, INFLATE, &config));
	config.size = 0;
	t_equal(-EINVAL, bln_queue_enable(rig.dev, INFLATE, &config));
	config.size = 16;
	config.desc_addr = 8;
	t_equal(-EINVAL, bln_queue_enable(rig.dev, INFLATE, &config)); /* alignment */
	config.desc_addr = (uint64_t)RIG_PAGES << GM_PAGE_SHIFT;
	t_equal(-EFAULT, bln_queue_enable(rig.dev, INFLATE, &config));
	config.desc_addr = 0;
	t_equal(-EINVAL, bln_queue_counters(rig.dev, INFLATE, &count));
	t_equal(-EINVAL, bln_queue_depth(rig.dev, INFLATE));
	/* What the caller says about features does not count. */
	config.features = VQ_F_RING_PACKED;
	t_equal(0, bln_queue_enable(rig.dev, INFLATE, &config));
	t_equal(-EBUSY, bln_queue_enable(rig.dev, INFLATE, &config));
	t_equal(0, bln_queue_counters(rig.dev, INFLATE, &count));
	t_equal(-EINVAL, bln_queue_counters(rig.dev, 3, &count));
	t_equal(-EINVAL, bln_queue_depth(rig.dev, 3));
	t_equal(0, bln_set_status(rig.dev, 0)); /* TRN-02 */
	t_equal(-EINVAL, bln_queue_depth(rig.dev, INFLATE));
	rig_drop(&rig);
}

/* ---- PFN requests ------------------------------------------------------- */

static void test_inflate_and_deflate(void)
{
	struct bln_counters count;
	struct histogram *latency = malloc(sizeof(*latency));
	struct rig rig;
	int64_t before;

	rig_make(&rig);
	rig_start(&rig, BLN_F_MUST_TELL_HOST | VQ_F_EVENT_IDX, 16);
	t_equal(0, gm_populate(rig.mem, (uint64_t)RIG_USER << GM_PAGE_SHIFT, 512 * GM_PAGE_SIZE));
	rig_send_run(&rig, INFLATE, RIG_USER, 256); /* the array is in memory from here on */
	before = gm_allocated_bytes(rig.mem);
	t_equal(1, bln_process(rig.dev, INFLATE));
	rig_take(&rig, INFLATE);
	t_equal(before - 256 * GM_PAGE_SIZE, gm_allocated_bytes(rig.mem));
	t_equal(1, bln_holds(rig.dev, RIG_USER));
	t_equal(0, bln_holds(rig.dev, RIG_USER + 256));
	t_equal(-EINVAL, bln_holds(rig.dev, RIG_PAGES));
	rig_run(&rig, DEFLATE, RIG_USER + 10, 20);

	count = rig_count(&rig);
	t_equal(2, count.requests);
	t_equal(256, count.inflated_pages);
	t_equal(20, count.deflated_pages);
	t_equal(236, count.held_pages);
	t_equal(1, count.discard.ranges);
	t_equal(1, count.discard.syscalls);
	t_equal(256, count.discard.pages);
	t_equal(0, count.pfns_duplicate + count.pfns_never_inflated + count.pfns_out_of_range);
	t_equal(0, bln_latency(rig.dev, INFLATE, latency));
	t_equal(1, latency->count);
	t_equal(-EINVAL, bln_latency(rig.dev, STATS, latency));
	free(latency);
	rig_drop(&rig);
}

static void test_a_request_in_steps(void)
{
	const uint32_t first = htole32(RIG_USER), second = htole32(RIG_USER + 1);
	uint32_t seen[2] = {0};
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, BLN_F_MUST_TELL_HOST, 8);
	t_equal(0, gm_populate(rig.mem, (uint64_t)RIG_USER << GM_PAGE_SHIFT, 2 * GM_PAGE_SIZE));
	t_equal(0, bln_step(rig.dev, INFLATE, BLN_STEP_POP, NULL, 0));
	t_equal(-EINVAL, bln_step(rig.dev, INFLATE, BLN_STEP_READ, seen, 2));
	t_equal(-EINVAL, bln_step(rig.dev, STATS, BLN_STEP_POP, NULL, 0));

	rig_send(&rig, INFLATE, &first, 4);
	t_equal(1, bln_step(rig.dev, INFLATE, BLN_STEP_POP, NULL, 0));
	t_equal(-EINVAL, bln_step(rig.dev, INFLATE, BLN_STEP_POP, NULL, 0));
	t_equal(0, bln_process(rig.dev, INFLATE));
	/* The array is the driver's to change until it is read. */
	t_equal(0, gm_write(rig.mem, rig_data(INFLATE), &second, 4));
	t_equal(1, bln_step(rig.dev, INFLATE, BLN_STEP_READ, seen, 2));
	t_equal(RIG_USER + 1, seen[0]);
	t_check(rig_present(&rig, RIG_USER + 1));
	t_equal(1, bln_step(rig.dev, INFLATE, BLN_STEP_ACT, NULL, 0));
	t_check(!rig_present(&rig, RIG_USER + 1));
	t_check(rig_present(&rig, RIG_USER));
	t_equal(1, bln_holds(rig.dev, RIG_USER + 1));
	t_equal(0, t_raw_used_idx(&rig.rings[INFLATE]));
	t_equal(1, bln_step(rig.dev, INFLATE, BLN_STEP_USE, NULL, 0));
	t_equal(1, t_raw_used_idx(&rig.rings[INFLATE]));
	t_equal(0, rig_events(bln_call_fd(rig.dev, INFLATE)));
	t_equal(1, bln_step(rig.dev, INFLATE, BLN_STEP_CALL, NULL, 0));
	t_equal(1, rig_events(bln_call_fd(rig.dev, INFLATE)));
	rig_take(&rig, INFLATE);
	rig_run(&rig, INFLATE, RIG_USER + 4, 2); /* whole passes go on */
	t_equal(2, rig_count(&rig).requests);
	rig_drop(&rig);
}

static void test_a_request_in_steps_is_forgotten_or_read_again(void)
{
	uint32_t seen[1];
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, BLN_F_MUST_TELL_HOST, 8);
	rig_send_run(&rig, INFLATE, RIG_USER, 1);
	t_equal(1, bln_step(rig.dev, INFLATE, BLN_STEP_POP, NULL, 0));
	t_equal(0, bln_queue_stop(rig.dev, INFLATE));
	t_equal(-EINVAL, bln_step(rig.dev, INFLATE, BLN_STEP_READ, seen, 1));
	t_equal(-EBUSY, bln_step(rig.dev, INFLATE, BLN_STEP_POP, NULL, 0));
	t_equal(0, bln_queue_start(rig.dev, INFLATE, &rig.rings[INFLATE].config, 0));
	t_equal(1, bln_process(rig.dev, INFLATE));
	rig_take(&rig, INFLATE);

	rig_send_run(&rig, INFLATE, RIG_USER + 1, 1);
	t_equal(1, bln_step(rig.dev, INFLATE, BLN_STEP_POP, NULL, 0));
	t_equal(0, bln_set_status(rig.dev, 0));
	t_equal(0, bln_holds(rig.dev, RIG_USER + 1));
	rig_start(&rig, BLN_F_MUST_TELL_HOST, 8);
	rig_run(&rig, INFLATE, RIG_USER + 2, 1);
	rig_drop(&rig);
}

static void test_a_request_too_long_for_steps(void)
{
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, BLN_F_MUST_TELL_HOST, 8);
	rig_offer(&rig, INFLATE, rig_data(INFLATE), 4 * 4096 + 4);
	t_equal(1, bln_step(rig.dev, INFLATE, BLN_STEP_POP, NULL, 0));
	t_equal(-E2BIG, bln_step(rig.dev, INFLATE, BLN_STEP_READ, NULL, 0));
	t_equal(-E2BIG, bln_step(rig.dev, INFLATE, BLN_STEP_READ, NULL, 0));
	rig_drop(&rig);
}

static void test_t_15_bad_pfns_are_counted_ignored_and_acknowledged(void)
{
	uint32_t pfns[] = {RIG_USER, RIG_USER + 1, RIG_USER, RIG_PAGES, UINT32_MAX, RIG_PAGES - 1};
	struct bln_counters count;
	struct rig rig;

	for (unsigned i = 0; i < T_COUNT(pfns); i++)
		pfns[i] = htole32(pfns[i]);
	rig_make(&rig);
	rig_start(&rig, 0, 16);
	rig_send(&rig, INFLATE, pfns, sizeof(pfns));
	t_equal(1, bln_process(rig.dev, INFLATE));
	rig_take(&rig, INFLATE);
	count = rig_count(&rig);
	t_equal(3, count.inflated_pages);
	t_equal(1, count.pfns_duplicate);
	t_equal(2, count.pfns_out_of_range);

	rig_run(&rig, INFLATE, RIG_USER, 4); /* two of them are held already */
	t_equal(3, rig_count(&rig).pfns_duplicate);
	rig_run(&rig, DEFLATE, RIG_USER + 2, 4); /* two are not */
	count = rig_count(&rig);
	t_equal(2, count.pfns_never_inflated);
	t_equal(3, count.held_pages);
	rig_send(&rig, DEFLATE, pfns, sizeof(pfns)); /* twice the same, two outside */
	t_equal(1, bln_process(rig.dev, DEFLATE));
	rig_take(&rig, DEFLATE);
	count = rig_count(&rig);
	t_equal(0, count.held_pages);
	t_equal(3, count.pfns_never_inflated);
	t_equal(4, count.pfns_out_of_range);
	t_equal(0, bln_status(rig.dev) & BLN_STATUS_NEEDS_RESET);

	for (uint32_t len = 1; len <= 7; len++) { /* bytes that are no whole PFN */
		const uint64_t odd = rig_count(&rig).odd_bytes;

		rig_send(&rig, INFLATE, pfns, len);
		t_equal(1, bln_process(rig.dev, INFLATE));
		rig_take(&rig, INFLATE);
		t_equal(odd + len % 4, rig_count(&rig).odd_bytes);
	}
	rig_drop(&rig);
}

static void test_t_15_chains_without_a_readable_byte(void)
{
	struct t_ring *ring;
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, BLN_F_STATS_VQ, 16);
	for (unsigned queue = 0; queue < BLN_QUEUES; queue++) {
		ring = &rig.rings[queue];
		t_raw_desc(ring, 0, rig_data(queue), 0, 0, 0); /* empty */
		t_raw_desc(ring, 1, rig_data(queue), 64, T_WRITE, 0);
		t_raw_offer(ring, 0);
		t_raw_offer(ring, 1);
		t_equal(2, bln_process(rig.dev, queue));
		/* Statistics: the second one is held. */
		t_equal(queue == STATS ? 1 : 2, t_raw_used_idx(ring));
		t_equal(0, le32_load(t_raw_used_entry(ring, 0) + 4));
	}
	t_equal(0, rig_count(&rig).held_pages);
	t_equal(4, rig_count(&rig).requests);
	rig_drop(&rig);
}

static void test_t_28_split_dev_01_pfns_cut_anywhere(void)
{
	enum { BYTES = 14 }; /* three PFNs and two odd bytes */
	uint8_t bytes[BYTES] = {0};

	for (uint32_t i = 0; i < 3; i++) {
		const uint32_t pfn = htole32(RIG_USER + 2 * i);

		memcpy(bytes + 4 * i, &pfn, 4);
	}
	/* a and b are the cuts; equal ones, or at an end, leave an empty descriptor. */
	for (uint32_t a = 0; a <= BYTES; a++) {
		struct bln_counters count;
		struct rig rig;

		rig_make(&rig);
		rig_start(&rig, 0, 4);
		for (uint32_t b = a; b <= BYTES; b++) {
			const uint32_t starts[] = {0, a, b, BYTES};
			const uint64_t requests = rig_count(&rig).requests;

			for (unsigned i = 0; i < 3; i++) {
				/* Not side by side in memory either. */
				const uint64_t at = rig_data(INFLATE) + 4096 * i + 3 * i;

				t_equal(0, gm_write(rig.mem, at, bytes + starts[i],
						    starts[i + 1] - starts[i]));
				t_raw_desc(&rig.rings[INFLATE], i, at, starts[i + 1] - starts[i],
					   i < 2 ? T_NEXT : 0, i + 1);
			}
			t_raw_offer(&rig.rings[INFLATE], 0);
			t_equal(1, bln_process(rig.dev, INFLATE));
			count = rig_count(&rig);
			t_equal(requests + 1, count.requests);
			t_equal(3, count.held_pages);
			t_equal(2 * count.requests, count.odd_bytes);
			t_equal(0, count.pfns_out_of_range);
			for (uint32_t pfn = RIG_USER; pfn < RIG_USER + 6; pfn++)
				t_equal(pfn % 2 == 0, bln_holds(rig.dev, pfn));
		}
		rig_drop(&rig);
	}
}

static void test_t_16_a_million_pfns_in_one_chain(void)
{
	enum { N = 1 << 20, SEGMENTS = 61 };
	const uint64_t table = rig_data(DEFLATE);
	struct vq_segment segments[SEGMENTS];
	uint32_t *pfns, at = 0;
	struct bln_counters count;
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, VQ_F_INDIRECT_DESC, 64);
	t_equal(0, gm_populate(rig.mem, (uint64_t)RIG_USER << GM_PAGE_SHIFT, 8192 * GM_PAGE_SIZE));
	pfns = gm_at(rig.mem, rig_data(INFLATE), N * sizeof(*pfns));
	for (uint32_t i = 0; i < N; i++) /* scattered, and each page 128 times */
		pfns[i] = htole32(RIG_USER + (i * 4099) % 8192);
	for (unsigned i = 0; i < SEGMENTS; i++) { /* odd lengths: PFNs are cut */
		const uint32_t len = i + 1 < SEGMENTS ? 68759 : N * 4 - at;

		segments[i] = (struct vq_segment){rig_data(INFLATE) + at, len};
		at += len;
	}
	t_equal(0,
		vq_driver_add_indirect(rig.rings[INFLATE].driver, segments, SEGMENTS, 0, table, 1));
	vq_driver_publish(rig.rings[INFLATE].driver);
	t_equal(1, bln_process(rig.dev, INFLATE));
	rig_take(&rig, INFLATE);
	count = rig_count(&rig);
	t_equal(1, count.requests);
	t_equal(8192, count.inflated_pages);
	t_equal(N - 8192, count.pfns_duplicate);
	t_equal(0, count.odd_bytes);
	t_equal(8192, count.discard.pages);
	t_check(!rig_present(&rig, RIG_USER) && !rig_present(&rig, RIG_PAGES - 1));
	rig_drop(&rig);
}

static void test_bal_dev_04_every_head_once(void)
{
	enum { SIZE = 16 };
	uint64_t random = 9, token;
	unsigned outstanding = 0;
	bool out[65536] = {0};
	uint16_t next = 0;
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, VQ_F_EVENT_IDX, SIZE);
	/* Far enough that the 16-bit indices wrap. */
	for (unsigned round = 0; round < 20000; round++) {
		struct vq_driver *driver = rig.rings[INFLATE].driver;

		for (unsigned n = (unsigned)(t_random(&random) % 8); n > 0; n--) {
			const struct vq_segment segments[] = {{rig_data(INFLATE), 4},
							      {rig_data(INFLATE) + 64, 8}};

			if (vq_driver_add(driver, segments, 1 + n % 2, 0, next))
				break;
			out[next++] = true;
			outstanding++;
		}
		vq_driver_publish(driver);
		bln_process(rig.dev, INFLATE);
		while (vq_driver_get_used(driver, &token, NULL) == 1) {
			t_check(out[token]);
			out[token] = false;
			outstanding--;
		}
		t_equal(0, outstanding);
		t_equal(0, bln_queue_depth(rig.dev, INFLATE));
	}
	rig_drop(&rig);
}

static void test_bal_dev_05_content_is_stable_after_the_acknowledgement(void)
{
	uint32_t pfns[64];
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, 0, 16); /* without bit 0 nobody waits for the deflate */
	for (uint32_t i = 0; i < 64; i++)
		pfns[i] = RIG_USER + i;
	t_equal(64, gm_stamp(rig.mem, pfns, 64, 1));
	rig_run(&rig, INFLATE, RIG_USER, 64);
	for (uint32_t i = 0; i < 64; i++)
		t_check(!rig_present(&rig, RIG_USER + i));
	rig_send_run(&rig, DEFLATE, RIG_USER, 64);
	t_equal(64, gm_stamp(rig.mem, pfns, 64, 2));
	t_equal(1, bln_process(rig.dev, DEFLATE));
	rig_run(&rig, INFLATE, RIG_USER + 64, 64);
	t_equal(0, gm_verify(rig.mem, pfns, 64, 2, NULL, 0));
	rig_drop(&rig);
}

static void test_bal_dev_06_late_discard_only_with_tell_host(void)
{
	for (unsigned tell = 0; tell < 2; tell++) {
		struct rig rig;

		rig_make(&rig);
		rig_start(&rig, tell ? BLN_F_MUST_TELL_HOST : 0, 16);
		discard_set_host_page(rig.dev->discard, 4 * GM_PAGE_SIZE);
		t_equal(
		    0, gm_populate(rig.mem, (uint64_t)RIG_USER << GM_PAGE_SHIFT, 8 * GM_PAGE_SIZE));
		rig_run(&rig, INFLATE, RIG_USER, 2);
		t_check(rig_present(&rig, RIG_USER));
		t_equal(2, rig_count(&rig).discard.partial);
		/* The rest of that host page, and one of the next. */
		rig_run(&rig, INFLATE, RIG_USER + 2, 3);
		t_equal(!tell, rig_present(&rig, RIG_USER));
		t_equal(!tell, rig_present(&rig, RIG_USER + 3));
		t_check(rig_present(&rig, RIG_USER + 4));
		/* One that went back meanwhile keeps its host page. */
		rig_run(&rig, DEFLATE, RIG_USER + 4, 1);
		rig_run(&rig, INFLATE, RIG_USER + 5, 3);
		t_check(rig_present(&rig, RIG_USER + 5));
		rig_drop(&rig);
	}
}

static void test_t_39_actual_is_not_trusted(void)
{
	const uint32_t actual = htole32(9999);
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, 0, 16);
	rig_run(&rig, INFLATE, RIG_USER, 5);
	t_equal(0, bln_config_write(rig.dev, 4, &actual, 4));
	t_equal(9999, bln_actual(rig.dev));
	t_equal(5, rig_count(&rig).held_pages);
	rig_drop(&rig);
}

static void test_split_dev_03_06_driver_memory_is_only_read(void)
{
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, BLN_F_STATS_VQ | VQ_F_EVENT_IDX, 16);
	for (unsigned queue = 0; queue < BLN_QUEUES; queue++) {
		struct t_ring *ring = &rig.rings[queue];
		uint8_t *data = gm_at(rig.mem, rig_data(queue), 4096);

		rig_send_run(&rig, queue, RIG_USER, 30);
		/* A store to any of them is a fault from here on. */
		t_equal(0, mprotect(ring->desc, 4096, PROT_READ));
		t_equal(0, mprotect(ring->avail, 4096, PROT_READ));
		t_equal(0, mprotect(data, 4096, PROT_READ));
		t_equal(1, bln_process(rig.dev, queue));
		t_equal(0, mprotect(ring->desc, 4096, PROT_READ | PROT_WRITE));
		t_equal(0, mprotect(ring->avail, 4096, PROT_READ | PROT_WRITE));
	}
	rig_drop(&rig);
}

/* ---- notifications ------------------------------------------------------ */

static void test_calls_as_the_driver_wants(void)
{
	for (unsigned event_idx = 0; event_idx < 2; event_idx++) {
		struct vq_device_counters queue;
		struct vq_driver *driver;
		struct rig rig;
		int fd;

		rig_make(&rig);
		rig_start(&rig, event_idx ? VQ_F_EVENT_IDX : 0, 16);
		driver = rig.rings[INFLATE].driver;
		fd = bln_call_fd(rig.dev, INFLATE);
		rig_run(&rig, INFLATE, RIG_USER, 1);
		t_equal(1, rig_events(fd));
		vq_driver_disable_calls(driver);
		rig_run(&rig, INFLATE, RIG_USER + 1, 1);
		t_equal(0, rig_events(fd));
		t_equal(0, vq_driver_enable_calls(driver));
		rig_run(&rig, INFLATE, RIG_USER + 2, 1);
		t_equal(1, rig_events(fd));
		t_equal(2, rig_count(&rig).calls);
		t_equal(1, rig_count(&rig).calls_suppressed);
		t_equal(0, bln_queue_counters(rig.dev, INFLATE, &queue));
		t_equal(3, queue.popped);
		t_equal(3, queue.pushed);
		t_equal(2, queue.calls);
		t_equal(1, queue.calls_suppressed);

		/* Several at once, the wanted one in the middle: one call (T-30). */
		vq_driver_enable_calls_after(driver, 3);
		for (uint32_t i = 0; i < 5; i++)
			rig_send_run(&rig, INFLATE, RIG_USER, 1);
		t_equal(5, bln_queue_depth(rig.dev, INFLATE));
		t_equal(5, bln_process(rig.dev, INFLATE));
		t_equal(1, rig_events(fd));
		t_equal(3, rig_count(&rig).calls);
		rig_drop(&rig);
	}
}

static void test_device_listens_before_it_calls(void)
{
	for (unsigned event_idx = 0; event_idx < 2; event_idx++) {
		struct vq_driver *driver;
		struct rig rig;

		/* After each pass the driver is told to kick, exactly once a request. */
		rig_make(&rig);
		rig_start(&rig, event_idx ? VQ_F_EVENT_IDX : 0, 4);
		driver = rig.rings[INFLATE].driver;
		for (unsigned i = 0; i < 100; i++) {
			rig_send_run(&rig, INFLATE, RIG_USER, 1);
			t_equal(1, vq_driver_kick_needed(driver));
			t_equal(1, bln_process(rig.dev, INFLATE));
			rig_take(&rig, INFLATE);
		}
		rig_drop(&rig);
	}
}

static void test_split_dev_24_spurious_kicks(void)
{
	struct rig rig;

	rig_make(&rig);
	t_equal(0, bln_process(rig.dev, INFLATE)); /* nothing enabled */
	rig_start(&rig, BLN_F_STATS_VQ, 16);
	for (unsigned queue = 0; queue < 9; queue++)
		t_equal(0, bln_process(rig.dev, queue));
	t_equal(0, rig_count(&rig).calls + rig_count(&rig).calls_suppressed);
	rig_run(&rig, INFLATE, RIG_USER, 1);
	rig_drop(&rig);
}

/* ---- statistics --------------------------------------------------------- */

struct entry {
	uint16_t tag;
	uint64_t value;
} __attribute__((packed));

static void send_stats(struct rig *rig, const struct entry *entries, unsigned n, uint32_t extra)
{
	uint8_t bytes[4096] = {0};

	for (unsigned i = 0; i < n; i++) {
		const struct entry le = {htole16(entries[i].tag), htole64(entries[i].value)};

		memcpy(bytes + 10 * i, &le, 10);
	}
	rig_send(rig, STATS, bytes, n * 10 + extra);
	t_equal(1, bln_process(rig->dev, STATS));
}

static void test_bal_dev_07_stats_buffer_is_held_until_asked_for(void)
{
	const struct entry first[] = {{4, 1000}, {5, 2000}}, second[] = {{4, 900}, {5, 2000}};
	struct bln_stats stats;
	struct rig rig;
	int fd;

	_Static_assert(sizeof(struct entry) == 10, "BAL-DRV-27");
	rig_make(&rig);
	rig_start(&rig, BLN_F_STATS_VQ | VQ_F_EVENT_IDX, 8);
	fd = bln_call_fd(rig.dev, STATS);
	t_equal(-EAGAIN, bln_stats_request(rig.dev));
	bln_stats_get(rig.dev, &stats);
	t_equal(0, stats.updates);
	t_check(stats.time_ns == 0);

	send_stats(&rig, first, 2, 0);
	t_equal(0, vq_driver_get_used(rig.rings[STATS].driver, NULL, NULL));
	t_equal(0, rig_events(fd));
	t_equal(1, bln_queue_depth(rig.dev, STATS));
	bln_stats_get(rig.dev, &stats);
	t_equal(1, stats.updates);
	t_equal(2, stats.count);
	t_equal(4, stats.entries[0].tag);
	t_equal(1000, stats.entries[0].value);
	t_check(stats.time_ns > 0);

	t_equal(0, bln_stats_request(rig.dev));
	rig_take(&rig, STATS);
	t_equal(1, rig_events(fd));
	t_equal(0, bln_queue_depth(rig.dev, STATS));
	t_equal(-EAGAIN, bln_stats_request(rig.dev)); /* not a second time */
	t_equal(1, rig_count(&rig).stats_requests);

	send_stats(&rig, second, 2, 0);
	bln_stats_get(rig.dev, &stats);
	t_equal(2, stats.updates);
	t_equal(900, stats.entries[0].value);
	rig_drop(&rig);
}

static void test_bal_dev_08_unknown_tags_kept(void)
{
	const struct entry entries[] = {{0, 1},     {10, 2}, {15, 3}, {65535, 4},
					{65534, 5}, {9, 6},  {100, 7}};
	struct bln_stats stats;
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, BLN_F_STATS_VQ, 8);
	send_stats(&rig, entries, T_COUNT(entries), 0);
	bln_stats_get(rig.dev, &stats);
	t_equal(T_COUNT(entries), stats.count);
	for (unsigned i = 0; i < T_COUNT(entries); i++) {
		t_equal(entries[i].tag, stats.entries[i].tag);
		t_equal(entries[i].value, stats.entries[i].value);
	}
	t_equal(15, bln_status(rig.dev));
	rig_drop(&rig);
}

static uint64_t value_of(const struct bln_stats *stats, uint16_t tag)
{
	for (uint32_t i = 0; i < stats->count; i++) {
		if (stats->entries[i].tag == tag)
			return stats->entries[i].value;
	}
	return UINT64_MAX;
}

static void test_bal_dev_09_any_order_and_duplicates(void)
{
	struct entry entries[10];
	struct bln_stats stats;
	uint64_t random = 77;
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, BLN_F_STATS_VQ, 8);
	for (uint16_t i = 0; i < 10; i++)
		entries[i] = (struct entry){(uint16_t)(i % 8), (uint64_t)i << 40 | 5};
	for (unsigned round = 0; round < 50; round++) {
		for (unsigned i = 10; i > 1; i--) {
			const unsigned j = (unsigned)(t_random(&random) % i);
			const struct entry swap = entries[i - 1];

			entries[i - 1] = entries[j];
			entries[j] = swap;
		}
		send_stats(&rig, entries, 10, 0);
		bln_stats_get(rig.dev, &stats);
		t_equal(8, stats.count);
		for (uint16_t tag = 0; tag < 8; tag++) {
			uint64_t last = 0;

			for (unsigned i = 0; i < 10; i++)
				last = entries[i].tag == tag ? entries[i].value : last;
			t_check(value_of(&stats, tag) == last);
		}
		t_equal(0, bln_stats_request(rig.dev));
		rig_take(&rig, STATS);
	}
	rig_drop(&rig);
}

static void test_bal_dev_09_more_tags_than_are_kept(void)
{
	struct entry entries[BLN_STATS_MAX + 10];
	struct bln_stats stats;
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, BLN_F_STATS_VQ, 8);
	for (uint16_t i = 0; i < T_COUNT(entries); i++)
		entries[i] = (struct entry){(uint16_t)(300 + i), i};
	entries[BLN_STATS_MAX + 5].tag = 300; /* known: still updated */
	send_stats(&rig, entries, T_COUNT(entries), 0);
	bln_stats_get(rig.dev, &stats);
	t_equal(BLN_STATS_MAX, stats.count);
	t_equal(BLN_STATS_MAX + 5, value_of(&stats, 300));
	t_equal(BLN_STATS_MAX - 1, stats.entries[BLN_STATS_MAX - 1].value);
	rig_drop(&rig);
}

static void test_t_03_empty_buffer_is_no_news(void)
{
	const struct entry entry = {4, 42};
	struct bln_stats stats;
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, BLN_F_STATS_VQ, 8);
	send_stats(&rig, &entry, 0, 9); /* nine bytes are no entry */
	bln_stats_get(rig.dev, &stats);
	t_equal(0, stats.updates);
	t_equal(0, stats.count);
	t_equal(9, stats.malformed);
	t_equal(0, bln_stats_request(rig.dev)); /* held all the same */
	rig_take(&rig, STATS);
	send_stats(&rig, &entry, 1, 3);
	bln_stats_get(rig.dev, &stats);
	t_equal(1, stats.updates);
	t_equal(1, stats.count);
	t_equal(3, stats.malformed);
	t_equal(0, bln_stats_request(rig.dev));
	rig_take(&rig, STATS);
	send_stats(&rig, &entry, 0, 1);
	bln_stats_get(rig.dev, &stats);
	t_equal(1, stats.updates);
	t_equal(42, value_of(&stats, 4)); /* what was known stays */
	t_equal(1, stats.malformed);
	rig_drop(&rig);
}

static void test_bal_drv_22_second_buffer_returns_the_first(void)
{
	const struct entry first = {4, 1}, second = {4, 2};
	struct bln_stats stats;
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, BLN_F_STATS_VQ, 8);
	send_stats(&rig, &first, 1, 0);
	t_equal(0, rig_events(bln_call_fd(rig.dev, STATS)));
	send_stats(&rig, &second, 1, 0);
	rig_take(&rig, STATS);
	t_equal(1, rig_events(bln_call_fd(rig.dev, STATS)));
	t_equal(0, vq_driver_get_used(rig.rings[STATS].driver, NULL, NULL));
	bln_stats_get(rig.dev, &stats);
	t_equal(2, value_of(&stats, 4));
	t_equal(0, bln_stats_request(rig.dev));
	rig_take(&rig, STATS);
	t_equal(0, vq_driver_outstanding(rig.rings[STATS].driver));
	rig_drop(&rig);
}

static void test_t_28_split_dev_01_stats_cut_anywhere(void)
{
	enum { BYTES = 20 };
	const struct entry entries[] = {{htole16(0x0102), htole64(0x1122334455667788)},
					{htole16(0xfffe), htole64(0x99aabbccddeeff00)}};
	struct bln_stats stats;
	uint8_t bytes[BYTES];
	struct rig rig;

	memcpy(bytes, entries, BYTES);
	rig_make(&rig);
	for (uint32_t a = 0; a <= BYTES; a++) {
		for (uint32_t b = a; b <= BYTES; b++) {
			const uint32_t starts[] = {0, a, b, BYTES};

			rig_start(&rig, BLN_F_STATS_VQ, 4);
			for (unsigned i = 0; i < 3; i++) {
				const uint64_t at = rig_data(STATS) + 4096 * i + i;

				t_equal(0, gm_write(rig.mem, at, bytes + starts[i],
						    starts[i + 1] - starts[i]));
				t_raw_desc(&rig.rings[STATS], i, at, starts[i + 1] - starts[i],
					   i < 2 ? T_NEXT : 0, i + 1);
			}
			t_raw_offer(&rig.rings[STATS], 0);
			t_equal(1, bln_process(rig.dev, STATS));
			bln_stats_get(rig.dev, &stats);
			t_equal(1, stats.updates); /* since reset */
			t_equal(2, stats.count);
			t_equal(0, stats.malformed);
			t_check(value_of(&stats, 0x0102) == 0x1122334455667788);
			t_check(value_of(&stats, 0xfffe) == 0x99aabbccddeeff00);
		}
	}
	rig_drop(&rig);
}

/* ---- reset and broken rings --------------------------------------------- */

static void test_t_14_reset_forgets(void)
{
	const struct entry entry = {4, 42};
	const uint32_t actual = htole32(10);
	struct bln_stats stats;
	uint32_t field;
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, BLN_F_STATS_VQ, 8);
	t_equal(0, bln_set_target(rig.dev, 10));
	rig_run(&rig, INFLATE, RIG_USER, 10);
	t_equal(0, bln_config_write(rig.dev, 4, &actual, 4));
	send_stats(&rig, &entry, 1, 0);
	field = bln_config_generation(rig.dev);
	t_equal(0, bln_set_status(rig.dev, 0));

	t_check(field != bln_config_generation(rig.dev));
	t_equal(0, t_raw_used_idx(&rig.rings[STATS])); /* dropped, not used */
	t_equal(0, rig_events(bln_call_fd(rig.dev, INFLATE)));
	t_equal(0, rig_events(bln_config_fd(rig.dev)));
	t_equal(0, bln_actual(rig.dev));
	t_equal(10, bln_target(rig.dev)); /* the host still wants it */
	t_equal(0, rig_count(&rig).held_pages);
	t_equal(0, bln_holds(rig.dev, RIG_USER));
	t_equal(0, bln_driver_features(rig.dev));
	bln_stats_get(rig.dev, &stats);
	t_equal(0, stats.updates + stats.count);
	rig_start(&rig, BLN_F_STATS_VQ, 16);
	t_equal(-EAGAIN, bln_stats_request(rig.dev));
	rig_run(&rig, INFLATE, RIG_USER, 10);
	t_equal(0, rig_count(&rig).pfns_duplicate);
	rig_drop(&rig);
}

static void test_core_dev_03_04_broken_ring(void)
{
	unsigned queue = 99;
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, VQ_F_EVENT_IDX, 8);
	t_equal(VQ_OK, bln_broken(rig.dev, &queue));
	/* A good request, then one that lies outside memory. */
	rig_send_run(&rig, DEFLATE, RIG_USER, 1);
	t_raw_desc(&rig.rings[DEFLATE], 5, 1ull << 50, 4, 0, 0);
	t_raw_offer(&rig.rings[DEFLATE], 5);
	t_equal(-EIO, bln_process(rig.dev, DEFLATE));
	rig_take(&rig, DEFLATE); /* the good one is not lost */
	t_equal(1, rig_events(bln_call_fd(rig.dev, DEFLATE)));
	t_equal(15 | BLN_STATUS_NEEDS_RESET, bln_status(rig.dev));
	t_equal(1, rig_events(bln_config_fd(rig.dev)));
	t_equal(VQ_BROKEN_ADDRESS, bln_broken(rig.dev, &queue));
	t_equal(DEFLATE, queue);
	t_equal(-EIO, bln_process(rig.dev, DEFLATE));
	t_equal(0, rig_events(bln_config_fd(rig.dev))); /* told once */

	/* The other queue goes on, status cannot be written away, a reset cures. */
	rig_run(&rig, INFLATE, RIG_USER, 1);
	t_equal(0, bln_set_status(rig.dev, 15));
	t_equal(15 | BLN_STATUS_NEEDS_RESET, bln_status(rig.dev));
	rig_start(&rig, 0, 8);
	t_equal(VQ_OK, bln_broken(rig.dev, &queue));
	rig_run(&rig, DEFLATE, RIG_USER, 1);
	rig_drop(&rig);
}

static void test_core_dev_03_broken_stats_ring(void)
{
	const struct entry entry = {4, 42};
	unsigned queue = 99;
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, BLN_F_STATS_VQ, 8);
	send_stats(&rig, &entry, 1, 0);
	le16_store(rig.rings[STATS].avail + 2, 500);
	t_equal(-EIO, bln_process(rig.dev, STATS));
	t_equal(VQ_BROKEN_AVAIL_IDX, bln_broken(rig.dev, &queue));
	t_equal(STATS, queue);
	t_equal(-EAGAIN, bln_stats_request(rig.dev));
	t_equal(0, bln_queue_depth(rig.dev, STATS)); /* nonsense is not shown */
	rig_drop(&rig);
}

/* ---- faults ------------------------------------------------------------- */

static void test_fault_failed_discards(void)
{
	struct bln_faults faults = {.fail_discards = 3}, left;
	struct bln_counters count;
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, 0, 8);
	t_equal(0, gm_populate(rig.mem, (uint64_t)RIG_USER << GM_PAGE_SHIFT, 8 * GM_PAGE_SIZE));
	bln_set_faults(rig.dev, &faults);
	rig_run(&rig, INFLATE, RIG_USER, 4); /* acknowledged all the same */
	bln_faults_get(rig.dev, &left);
	t_equal(2, left.fail_discards);
	t_check(rig_present(&rig, RIG_USER));
	count = rig_count(&rig);
	t_equal(1, count.discard.failed);
	t_equal(0, count.discard.pages);
	t_equal(4, count.held_pages);
	memset(&faults, 0, sizeof(faults));
	bln_set_faults(rig.dev, &faults);
	rig_run(&rig, INFLATE, RIG_USER + 4, 4);
	t_equal(4, rig_count(&rig).discard.pages);
	rig_drop(&rig);
}

static void test_fault_stall_and_lost_calls(void)
{
	struct bln_faults faults = {.stall_queues = 1u << INFLATE, .lose_calls = 1}, left;
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, 0, 8);
	for (unsigned queue = 0; queue < 2; queue++)
		bln_kick_take(rig.dev, queue); /* those of DRIVER_OK */
	bln_set_faults(rig.dev, &faults);
	rig_send_run(&rig, INFLATE, RIG_USER, 4);
	t_equal(0, bln_process(rig.dev, INFLATE));
	t_equal(1, bln_queue_depth(rig.dev, INFLATE));
	rig_run(&rig, DEFLATE, RIG_USER, 4);
	t_equal(0, rig_events(bln_call_fd(rig.dev, DEFLATE))); /* lost */
	t_equal(0, rig_count(&rig).calls);
	bln_faults_get(rig.dev, &left);
	t_equal(0, left.lose_calls);
	faults.stall_queues = 0;
	faults.lose_calls = 0;
	bln_set_faults(rig.dev, &faults);
	t_check(bln_kick_take(rig.dev, INFLATE)); /* the worker is told to look again */
	t_equal(0, rig_count(&rig).kicks);
	t_equal(1, bln_process(rig.dev, INFLATE));
	t_equal(1, rig_events(bln_call_fd(rig.dev, INFLATE)));
	rig_drop(&rig);
}

static void test_fault_wrong_used_len_and_lost_kicks(void)
{
	struct bln_faults faults = {.wrong_used_len = 1, .lose_kicks = 3}, left;
	uint32_t len = 0;
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, 0, 8);
	bln_kick_take(rig.dev, INFLATE);
	bln_set_faults(rig.dev, &faults);
	rig_send_run(&rig, INFLATE, RIG_USER, 4);
	t_equal(1, bln_process(rig.dev, INFLATE));
	t_equal(1, vq_driver_get_used(rig.rings[INFLATE].driver, NULL, &len));
	t_equal(0xdeadbeef, len);

	rig_kick(&rig, INFLATE);
	t_check(!bln_kick_take(rig.dev, INFLATE));
	bln_faults_get(rig.dev, &left);
	t_equal(2, left.lose_kicks);
	for (unsigned i = 0; i < 3; i++) /* three in one reading, two of them lost */
		rig_kick(&rig, INFLATE);
	t_check(bln_kick_take(rig.dev, INFLATE));
	t_equal(4, rig_count(&rig).kicks);
	rig_drop(&rig);
}

static const struct t_test tests[] = {
    T_TEST(test_bal_dev_01_trn_03_queues_by_features),
    T_TEST(test_bal_dev_02_config_bytes),
    T_TEST(test_bal_dev_03_strict_tell_host),
    T_TEST(test_core_dev_05_08_15_offered_features),
    T_TEST(test_core_dev_06_09_every_subset_twice),
    T_TEST(test_core_dev_07_16_invalid_sets_are_refused),
    T_TEST(test_core_dev_01_10_core_drv_02_status),
    T_TEST(test_core_dev_02_nothing_before_driver_ok),
    T_TEST(test_core_dev_12_config_before_features_ok),
    T_TEST(test_core_dev_13_trn_01_target_notifies),
    T_TEST(test_queue_enable_errors),
    T_TEST(test_inflate_and_deflate),
    T_TEST(test_a_request_in_steps),
    T_TEST(test_a_request_in_steps_is_forgotten_or_read_again),
    T_TEST(test_a_request_too_long_for_steps),
    T_TEST(test_t_15_bad_pfns_are_counted_ignored_and_acknowledged),
    T_TEST(test_t_15_chains_without_a_readable_byte),
    T_TEST(test_t_28_split_dev_01_pfns_cut_anywhere),
    T_TEST(test_t_16_a_million_pfns_in_one_chain),
    T_TEST(test_bal_dev_04_every_head_once),
    T_TEST(test_bal_dev_05_content_is_stable_after_the_acknowledgement),
    T_TEST(test_bal_dev_06_late_discard_only_with_tell_host),
    T_TEST(test_t_39_actual_is_not_trusted),
    T_TEST(test_split_dev_03_06_driver_memory_is_only_read),
    T_TEST(test_calls_as_the_driver_wants),
    T_TEST(test_device_listens_before_it_calls),
    T_TEST(test_split_dev_24_spurious_kicks),
    T_TEST(test_bal_dev_07_stats_buffer_is_held_until_asked_for),
    T_TEST(test_bal_dev_08_unknown_tags_kept),
    T_TEST(test_bal_dev_09_any_order_and_duplicates),
    T_TEST(test_bal_dev_09_more_tags_than_are_kept),
    T_TEST(test_t_03_empty_buffer_is_no_news),
    T_TEST(test_bal_drv_22_second_buffer_returns_the_first),
    T_TEST(test_t_28_split_dev_01_stats_cut_anywhere),
    T_TEST(test_t_14_reset_forgets),
    T_TEST(test_core_dev_03_04_broken_ring),
    T_TEST(test_core_dev_03_broken_stats_ring),
    T_TEST(test_fault_failed_discards),
    T_TEST(test_fault_stall_and_lost_calls),
    T_TEST(test_fault_wrong_used_len_and_lost_kicks),
};

int main(void)
{
	return t_run(tests, T_COUNT(tests));
}
