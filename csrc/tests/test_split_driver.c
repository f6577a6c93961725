/* Description: split ring, driver half: layout, building buffers, taking them back. */
/* SPDX-License-Identifier: MIT */
#include "helpers.h"

/* n segments of `len` bytes, one after the other. */
static const struct vq_segment *segments_of(unsigned n, uint32_t len)
{
	static struct vq_segment segments[VQ_SIZE_MAX + 1];

	for (unsigned i = 0; i < n; i++)
		segments[i] = (struct vq_segment){T_DATA + (uint64_t)i * 16, len};
	return segments;
}

static void test_split_drv_01_alignment(void)
{
	struct vq_layout layout;
	struct t_ring r;

	for (uint32_t size = 1; size <= VQ_SIZE_MAX; size *= 2) {
		t_equal(0, vq_layout(0, size, &layout));
		t_equal(16, layout.desc_align);
		t_equal(2, layout.driver_align);
		t_equal(4, layout.device_align);
	}
	t_ring_make(&r, 8, 0);
	for (uint64_t off = 0; off < 16; off++) {
		struct vq_config config = r.config;

		config.desc_addr += off;
		t_equal(off % 16 ? -EINVAL : 0, vq_config_check(r.mem, &config));
		config = r.config;
		config.driver_addr += off;
		t_equal(off % 2 ? -EINVAL : 0, vq_config_check(r.mem, &config));
		config = r.config;
		config.device_addr += off;
		t_equal(off % 4 ? -EINVAL : 0, vq_config_check(r.mem, &config));
	}
	t_ring_drop(&r);
}

/* An aligned guest address whose mapping is not: atomic accesses there are undefined. */
static void test_split_drv_01_alignment_of_the_mapping(void)
{
	struct vq_driver *driver;
	struct t_ring r;

	t_ring_make(&r, 8, 0);
	t_equal(0, gm_add_region(r.mem, 0x300000, 4096, t_memfd(8192), 3));
	r.config.device_addr = 0x300000;
	t_equal(-EINVAL, vq_config_check(r.mem, &r.config));
	t_equal(-EINVAL, vq_driver_create(r.mem, &r.config, &driver));
	t_ring_drop(&r);
}

static void test_split_drv_02_sizes(void)
{
	static const struct {
		uint32_t size;
		uint64_t desc, avail, used;
	} golden[] = {
	    {1, 16, 8, 14},
	    {2, 32, 10, 22},
	    {128, 2048, 262, 1030},
	    {256, 4096, 518, 2054},
	    {32768, 524288, 65542, 262150},
	};
	static const uint32_t wrong[] = {0,     3,     5,     255,         257,
					 32767, 32769, 65536, 0x80000000u, 0xffffffffu};
	struct vq_layout layout;

	for (unsigned i = 0; i < T_COUNT(golden); i++) {
		t_equal(0, vq_layout(VQ_F_EVENT_IDX * (i & 1), golden[i].size, &layout));
		t_equal(golden[i].desc, layout.desc_bytes);
		t_equal(golden[i].avail, layout.driver_bytes);
		t_equal(golden[i].used, layout.device_bytes);
	}
	for (unsigned i = 0; i < T_COUNT(wrong); i++)
		t_equal(-EINVAL, vq_layout(0, wrong[i], &layout));
	t_equal(-EOPNOTSUPP, vq_layout(VQ_F_RING_PACKED, 256, &layout));
}

/* The areas must be inside memory to the last byte of the event words. */
static void test_split_drv_02_areas_end_inside_memory(void)
{
	struct vq_config config;
	struct t_ring r;

	t_ring_make(&r, 256, 0);
	config = r.config;
	config.desc_addr = T_AREA_BYTES - 4096;
	t_equal(0, vq_config_check(r.mem, &config));
	config.desc_addr += 16;
	t_equal(-EFAULT, vq_config_check(r.mem, &config));
	config = r.config;
	config.driver_addr = T_AVAIL + T_AREA_BYTES - 518;
	t_equal(0, vq_config_check(r.mem, &config));
	config.driver_addr += 2;
	t_equal(-EFAULT, vq_config_check(r.mem, &config));
	config = r.config;
	config.device_addr = T_USED + T_AREA_BYTES - 2056;
	t_equal(0, vq_config_check(r.mem, &config));
	config.device_addr += 4;
	t_equal(-EFAULT, vq_config_check(r.mem, &config));
	config.device_addr = UINT64_MAX - 3;
	t_equal(-EFAULT, vq_config_check(r.mem, &config));
	t_ring_drop(&r);
}

/* The bytes themselves, written out by hand from the tables of 2.7. */
static void test_golden_bytes(void)
{
	static const uint8_t desc[] = {
	    0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x78, 0x56, 0x34, 0x02, 1, 0, 1, 0,
	    0x10, 0x20, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x04, 0x00, 0x00, 3, 0, 2, 0,
	    0x40, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x07, 0x00, 0x00, 0x00, 2, 0, 0, 0,
	    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0, 0, 0, 0,
	};
	static const uint8_t staged[] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
	static const uint8_t shown[] = {0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
	static const uint8_t used[] = {0, 0, 1, 0, 0, 0, 0, 0, 0x0b, 0x04, 0, 0, 0,
				       0, 0, 0, 0, 0, 0, 0, 0, 0,    0,    0, 0, 0,
				       0, 0, 0, 0, 0, 0, 0, 0, 0,    0,    0, 0};
	static const struct vq_segment segments[] = {
	    {T_DATA, 0x02345678}, {T_DATA + 0x2010, 1024}, {T_DATA + 0x40, 7}};
	struct vq_chain chain;
	struct t_ring r;

	t_ring_make(&r, 4, 0);
	t_equal(0, vq_driver_add(r.driver, segments, 1, 2, 0));
	t_check(memcmp(r.desc, desc, sizeof(desc)) == 0);
	t_check(memcmp(r.avail, staged, sizeof(staged)) == 0);
	t_equal(1, vq_driver_publish(r.driver));
	t_check(memcmp(r.avail, shown, sizeof(shown)) == 0);
	t_equal(1, vq_device_pop(r.device, &chain));
	vq_device_push(r.device, chain.head, 0x40b);
	t_equal(1, vq_device_publish(r.device));
	t_check(memcmp(r.used, used, sizeof(used)) == 0);
	t_ring_drop(&r);
}

static void test_split_drv_03_wraps_and_writes_only_its_own_area(void)
{
	struct t_ring r;

	t_ring_make(&r, 4, 0);
	t_protect(r.used, PROT_READ); /* T-36: from creation on, not before */
	for (uint32_t i = 0; i < 3 * 65536; i++) {
		uint64_t token;
		uint32_t len;

		t_add(&r, i);
		t_equal((uint16_t)i, t_raw_avail_idx(&r));
		t_equal(1, vq_driver_publish(r.driver));
		t_equal((uint16_t)(i + 1), t_raw_avail_idx(&r));
		vq_driver_kick_needed(r.driver);
		t_protect(r.used, PROT_READ | PROT_WRITE);
		t_raw_use(&r, t_raw_avail_entry(&r, i), i);
		t_protect(r.used, PROT_READ);
		t_equal(1, vq_driver_get_used(r.driver, &token, &len));
		t_equal(i, token);
		t_equal(i, len);
		vq_driver_enable_calls(r.driver);
		vq_driver_disable_calls(r.driver);
	}
	t_ring_drop(&r);
}

/* Every size, filled to the brim, twice round the indices where that is quick. */
static void test_split_drv_03_every_size_fills_and_wraps(void)
{
	for (uint32_t size = 1; size <= VQ_SIZE_MAX; size *= 2) {
		uint64_t next = 0, back = 0, token;
		struct t_ring r;

		t_ring_make(&r, size, VQ_F_EVENT_IDX);
		while (back < 2 * 65536 + 5) {
			struct vq_segment segment = {T_DATA, 1};

			while (vq_driver_free(r.driver))
				t_add(&r, next++);
			t_equal(-ENOSPC, vq_driver_add(r.driver, &segment, 1, 0, 0));
			t_equal(size, vq_driver_outstanding(r.driver));
			t_equal(size, vq_driver_publish(r.driver));
			t_equal(size, t_serve(&r));
			while (vq_driver_get_used(r.driver, &token, NULL) == 1)
				t_equal(back++, token);
			t_equal(size, vq_driver_free(r.driver));
			t_equal(0, vq_driver_outstanding(r.driver));
		}
		t_ring_drop(&r);
	}
}

static void test_split_drv_04_readable_before_writable(void)
{
	struct t_ring r;
	unsigned at;

	t_ring_make(&r, 8, 0);
	t_equal(0, vq_driver_add(r.driver, segments_of(5, 16), 2, 3, 0));
	at = t_raw_avail_entry(&r, 0);
	for (unsigned i = 0; i < 5; i++) {
		t_equal((i >= 2 ? T_WRITE : 0) | (i < 4 ? T_NEXT : 0), t_raw_desc_flags(&r, at));
		at = t_raw_desc_next(&r, at);
	}
	t_ring_drop(&r);
}

/* The nearest thing that a program can check: a buffer costs as many descriptors as segments. */
static void test_split_drv_05_no_needless_descriptors(void)
{
	struct t_ring r;

	t_ring_make(&r, 8, VQ_F_INDIRECT_DESC);
	t_add(&r, 0);
	t_equal(7, vq_driver_free(r.driver));
	t_equal(0, vq_driver_add(r.driver, segments_of(3, 16), 2, 1, 0));
	t_equal(4, vq_driver_free(r.driver));
	t_equal(0, vq_driver_add_indirect(r.driver, segments_of(8, 16), 8, 0, T_DATA + 4096, 0));
	t_equal(3, vq_driver_free(r.driver));
	t_ring_drop(&r);
}

static void test_split_drv_06_total_of_a_chain(void)
{
	struct vq_segment segments[] = {
	    {T_DATA, 0x80000000u}, {T_DATA, 0x7fffffffu}, {T_DATA, 1}, {T_DATA, 1}};
	struct t_ring r;

	t_ring_make(&r, 8, VQ_F_INDIRECT_DESC);
	t_equal(0, vq_driver_add(r.driver, segments, 3, 0, 0)); /* 2^32 exactly */
	t_equal(5, vq_driver_free(r.driver));
	t_equal(-E2BIG, vq_driver_add(r.driver, segments, 4, 0, 0));
	t_equal(-E2BIG, vq_driver_add(r.driver, segments, 3, 1, 0));
	t_equal(-E2BIG, vq_driver_add_indirect(r.driver, segments, 3, 1, T_DATA, 0));
	t_equal(5, vq_driver_free(r.driver));
	t_equal(1, vq_driver_outstanding(r.driver));
	t_ring_drop(&r);
}

static void test_split_drv_07_indirect_only_if_negotiated(void)
{
	struct t_ring r;

	t_ring_make(&r, 8, VQ_F_EVENT_IDX);
	t_equal(-EOPNOTSUPP, vq_driver_add_indirect(r.driver, segments_of(2, 16), 1, 1, T_DATA, 0));
	for (unsigned i = 0; i < 8; i++)
		t_equal(0, t_raw_desc_flags(&r, i) & T_INDIRECT);
	t_equal(0, vq_driver_outstanding(r.driver));
	t_ring_drop(&r);
}

/* A random mixture of direct and indirect buffers; what stands in memory is scanned after every
 * step. */
static void scan_random_mixture(void)
{
	const uint64_t tables = T_DATA + 0x100000;
	uint64_t random = 99;
	struct t_ring r;

	t_ring_make(&r, 16, VQ_F_INDIRECT_DESC);
	for (unsigned round = 0; round < 2000; round++) {
		unsigned n = 1 + (unsigned)(t_random(&random) % 16);
		unsigned readable = (unsigned)(t_random(&random) % (n + 1));
		uint64_t table = tables + round % 64 * 4096 + round % 16; /* any alignment */

		if (t_random(&random) & 1)
			vq_driver_add(r.driver, segments_of(n, 16), readable, n - readable, round);
		else if (vq_driver_add_indirect(r.driver, segments_of(n, 16), readable,
						n - readable, table, round) == 0)
			for (unsigned i = 0; i < n; i++) {
				const uint8_t *entry = gm_at(r.mem, table + 16 * i, 16);
				unsigned flags = entry[12] | (unsigned)entry[13] << 8;

				t_equal((i >= readable ? T_WRITE : 0) | (i + 1 < n ? T_NEXT : 0),
					flags);
				t_equal(i + 1 < n ? i + 1 : 0,
					entry[14] | (unsigned)entry[15] << 8);
			}
		for (unsigned i = 0; i < 16; i++) {
			unsigned flags = t_raw_desc_flags(&r, i);

			t_check(!(flags & T_INDIRECT) || flags == T_INDIRECT);
		}
		if (vq_driver_free(r.driver) == 0 || t_random(&random) % 4 == 0) {
			vq_driver_publish(r.driver);
			t_serve(&r);
			t_drain(&r);
		}
	}
	t_ring_drop(&r);
}

/* Entries of a table carry NEXT and WRITE only. */
static void test_split_drv_08_indirect_never_nested(void)
{
	scan_random_mixture();
}

/* A descriptor with INDIRECT carries no other flag. */
static void test_split_drv_10_indirect_never_with_next(void)
{
	scan_random_mixture();
}

static void test_split_drv_09_chain_not_longer_than_the_queue(void)
{
	struct t_ring r;

	for (uint32_t size = 1; size <= 256; size *= 4) {
		t_ring_make(&r, size, VQ_F_INDIRECT_DESC);
		t_equal(-EINVAL, vq_driver_add(r.driver, segments_of(size + 1, 1), size + 1, 0, 0));
		t_equal(-EINVAL, vq_driver_add(r.driver, segments_of(size + 1, 1), size, 1, 0));
		t_equal(-EINVAL, vq_driver_add_indirect(r.driver, segments_of(size + 1, 1), size, 1,
							T_DATA, 0));
		t_equal(0, vq_driver_outstanding(r.driver));
		t_equal(0, vq_driver_add(r.driver, segments_of(size, 1), size, 0, 0));
		t_equal(1, vq_driver_publish(r.driver));
		t_equal(1, t_serve(&r));
		t_equal(1, t_drain(&r));
		t_equal(0, vq_driver_add_indirect(r.driver, segments_of(size, 1), 0, size,
						  T_DATA + 0x10000, 0));
		t_equal(1, vq_driver_publish(r.driver));
		t_equal(1, t_serve(&r));
		t_equal(1, t_drain(&r));
		t_ring_drop(&r);
	}
}

static void test_split_drv_11_index_never_goes_back(void)
{
	uint64_t random = 3;
	uint16_t last = 0;
	struct t_ring r;

	t_ring_make(&r, 8, 0);
	for (unsigned i = 0; i < 100000; i++) {
		switch (t_random(&random) % 4) {
		case 0:
			if (vq_driver_free(r.driver))
				t_add(&r, i);
			break;
		case 1:
			vq_driver_publish(r.driver);
			break;
		case 2:
			t_serve(&r);
			break;
		default:
			t_drain(&r);
		}
		t_check((uint16_t)(t_raw_avail_idx(&r) - last) <= 8);
		last = t_raw_avail_idx(&r);
	}
	t_ring_drop(&r);
}

/* len is what the device says it wrote, and all that the caller is told of. */
static void used_len_with_poisoned_tail(void)
{
	struct vq_segment segment = {T_DATA, 64};
	struct vq_chain chain;
	struct t_ring r;
	uint32_t len;

	t_ring_make(&r, 4, 0);
	t_equal(0, vq_driver_add(r.driver, &segment, 0, 1, 5));
	vq_driver_publish(r.driver);
	t_equal(1, vq_device_pop(r.device, &chain));
	memset(chain.segments[0].base, 0xee, 64); /* more than it says (SPLIT-DEV-19) */
	vq_device_push(r.device, chain.head, 3);
	vq_device_publish(r.device);
	t_equal(1, vq_driver_get_used(r.driver, NULL, &len));
	t_equal(3, len);
	t_ring_drop(&r);
}

static void test_split_drv_17_not_relying_on_bytes_past_len(void)
{
	used_len_with_poisoned_tail();
}

static void test_split_drv_18_bytes_past_len_are_ignored(void)
{
	used_len_with_poisoned_tail();
}

static void test_split_drv_19_ring_is_cleared_when_made(void)
{
	struct vq_driver *driver;
	struct t_ring r;

	t_ring_make(&r, 16, 0);
	memset(r.desc, 0xff, T_AREA_BYTES);
	memset(r.avail, 0xff, T_AREA_BYTES);
	memset(r.used, 0xff, T_AREA_BYTES);
	t_equal(0, vq_driver_create(r.mem, &r.config, &driver));
	t_equal(0, le16_load(r.used));     /* flags */
	t_equal(0, le16_load(r.used + 2)); /* idx */
	t_equal(0, le16_load(t_raw_avail_event(&r)));
	t_equal(0, le16_load(r.avail));
	t_equal(0, le16_load(r.avail + 2));
	t_equal(0, le16_load(t_raw_used_event(&r)));
	/* Not a byte beyond the areas. */
	t_equal(0xff, r.desc[r.layout.desc_bytes]);
	t_equal(0xff, r.avail[r.layout.driver_bytes]);
	t_equal(0xff, r.used[r.layout.device_bytes]);
	vq_driver_destroy(driver);
	t_ring_drop(&r);
}

static void test_split_drv_26_a_batch_is_shown_at_once(void)
{
	struct vq_driver_counters counters;
	struct vq_chain chain;
	struct t_ring r;

	t_ring_make(&r, 64, 0);
	for (unsigned round = 0; round < 5000; round++) {
		unsigned n = 1 + round % 64;

		for (unsigned i = 0; i < n; i++) {
			t_add(&r, i);
			t_equal(0, vq_device_pending(r.device));
			t_equal(0, vq_device_pop(r.device, &chain));
		}
		t_equal(n, vq_driver_publish(r.driver));
		t_equal(0, vq_driver_publish(r.driver)); /* nothing left to show */
		t_equal(n, vq_device_pending(r.device));
		t_equal(n, t_serve(&r));
		t_equal(n, t_drain(&r));
	}
	vq_driver_counters_get(r.driver, &counters);
	t_equal(5000, counters.published);
	t_equal(counters.added, counters.used);
	t_ring_drop(&r);
}

static void test_add_refuses(void)
{
	struct vq_segment good = {T_DATA, 16};
	struct vq_segment empty[] = {{T_DATA, 16}, {T_DATA, 0}};
	struct vq_segment outside[] = {{T_DATA, 16}, {T_DATA + T_DATA_BYTES - 1, 2}};
	struct t_ring r;
	uint8_t before[8 * 16];

	t_ring_make(&r, 8, VQ_F_INDIRECT_DESC);
	memcpy(before, r.desc, sizeof(before));
	t_equal(-EINVAL, vq_driver_add(r.driver, &good, 0, 0, 0));
	t_equal(-EINVAL, vq_driver_add(r.driver, empty + 1, 1, 0, 0));
	t_equal(-EINVAL, vq_driver_add(r.driver, empty, 1, 1, 0));
	t_equal(-EFAULT, vq_driver_add(r.driver, outside, 2, 0, 0));
	t_equal(-EFAULT, vq_driver_add(r.driver, outside + 1, 0, 1, 0));
	/* Counts whose sum wraps to a small number. */
	t_equal(-EINVAL, vq_driver_add(r.driver, &good, UINT32_MAX, 2, 0));
	t_equal(-EINVAL, vq_driver_add(r.driver, &good, 2, UINT32_MAX, 0));
	t_equal(-EINVAL, vq_driver_add(r.driver, &good, UINT32_MAX, 1, 0));
	t_equal(-EFAULT, vq_driver_add_indirect(r.driver, &good, 1, 0, T_DATA - 8, 0));
	t_check(memcmp(before, r.desc, sizeof(before)) == 0);
	t_equal(0, vq_driver_outstanding(r.driver));
	/* Short of descriptors: nothing changes. */
	t_equal(0, vq_driver_add(r.driver, segments_of(6, 1), 6, 0, 0));
	memcpy(before, r.desc, sizeof(before));
	t_equal(-ENOSPC, vq_driver_add(r.driver, segments_of(3, 1), 3, 0, 0));
	t_check(memcmp(before, r.desc, sizeof(before)) == 0);
	t_equal(2, vq_driver_free(r.driver));
	/* The same for one segment, now that the driver knows where memory is. */
	t_equal(-EINVAL, vq_driver_add(r.driver, empty + 1, 1, 0, 0));
	t_equal(-EINVAL, vq_driver_add(r.driver, empty + 1, 0, 1, 0));
	t_equal(-EFAULT, vq_driver_add(r.driver, outside + 1, 1, 0, 0));
	t_equal(2, vq_driver_free(r.driver));
	t_ring_drop(&r);
}

/* Chains of random lengths, completed in random order, through both halves. */
static void test_out_of_order_completion(void)
{
	uint16_t heads[64];
	uint64_t random = 17, token, next = 0;
	unsigned held = 0, alive[64] = {0};
	struct vq_chain chain;
	struct t_ring r;

	t_ring_make(&r, 64, VQ_F_INDIRECT_DESC);
	for (unsigned round = 0; round < 50000; round++) {
		unsigned n = 1 + (unsigned)(t_random(&random) % 9);

		/* token = its number; it must come back exactly once */
		if (vq_driver_add(r.driver, segments_of(n, 4), n, 0, next) == 0)
			alive[next++ % 64]++;
		if (t_random(&random) & 1)
			vq_driver_publish(r.driver);
		while (vq_device_pop(r.device, &chain) == 1)
			heads[held++] = chain.head;
		if (held && t_random(&random) & 1) {
			unsigned pick = (unsigned)(t_random(&random) % held);

			vq_device_push(r.device, heads[pick], 0);
			heads[pick] = heads[--held];
			vq_device_publish(r.device);
		}
		while (vq_driver_get_used(r.driver, &token, NULL) == 1) {
			t_check(token < next);
			t_check(alive[token % 64] > 0);
			alive[token % 64]--;
		}
	}
	t_equal(VQ_OK, vq_driver_broken(r.driver));
	t_equal(VQ_OK, vq_device_broken(r.device));
	t_ring_drop(&r);
}

/* The descriptor table is the device's to read; a device that scribbles there does no harm. */
/* SPLIT-DRV-26: what one publication shows lies side by side in the table, and what came back
 * first is used first, so that a batch touches few cache lines. Orders of return do not matter to
 * whether a descriptor is in two buffers at once. */
static void test_split_drv_26_batches_walk_the_table_in_order(void)
{
	enum { SIZE = 16, BATCH = 4 };
	struct t_ring r;
	unsigned out[SIZE], n_out = 0; /* heads that the device has, oldest first */
	uint16_t seen = 0;

	t_ring_make(&r, SIZE, 0);
	/* Twice around in order. */
	for (unsigned i = 0; i < 2 * SIZE; i += BATCH) {
		for (unsigned k = 0; k < BATCH; k++)
			t_add(&r, i + k);
		t_equal(BATCH, vq_driver_publish(r.driver));
		for (unsigned k = 0; k < BATCH; k++)
			t_equal((i + k) % SIZE, t_raw_avail_entry(&r, i + k));
		t_equal(BATCH, t_serve(&r));
		t_equal(BATCH, t_drain(&r));
	}
	/* Then returned youngest first, half of what is out at a time. */
	seen = t_raw_avail_idx(&r);
	for (unsigned round = 0; round < 100; round++) {
		while (vq_driver_free(r.driver) > 0)
			t_add(&r, round);
		vq_driver_publish(r.driver);
		while (seen != t_raw_avail_idx(&r)) {
			const unsigned head = t_raw_avail_entry(&r, seen++);

			for (unsigned k = 0; k < n_out; k++)
				t_check(out[k] != head);
			out[n_out++] = head;
		}
		t_equal(SIZE, n_out);
		while (n_out > SIZE / 2)
			t_raw_use(&r, out[--n_out], 0);
		t_equal(SIZE / 2, t_drain(&r));
	}
	t_ring_drop(&r);
}

static void test_free_list_is_private(void)
{
	struct t_ring r;

	t_ring_make(&r, 8, 0);
	for (unsigned round = 0; round < 100; round++) {
		unsigned head;

		t_equal(0, vq_driver_add(r.driver, segments_of(5, 4), 5, 0, round));
		head = t_raw_avail_entry(&r, round);
		vq_driver_publish(r.driver);
		memset(r.desc, 0xff, 8 * 16);
		t_raw_use(&r, head, 0);
		t_equal(1, t_drain(&r));
		t_equal(8, vq_driver_free(r.driver));
	}
	t_ring_drop(&r);
}

/* What a device can break, and that a broken queue stays so. */
static void break_driver(enum vq_broken expected, uint32_t id, uint16_t idx)
{
	struct vq_segment segment = {T_DATA, 4};
	struct t_ring r;

	t_ring_make(&r, 8, 0);
	t_equal(0, vq_driver_add(r.driver, segments_of(2, 4), 2, 0, 1)); /* 0, 1 */
	t_add(&r, 2);                                                    /* 2 */
	vq_driver_publish(r.driver);
	t_add(&r, 3); /* 3: staged, never shown */
	le32_store(t_raw_used_entry(&r, 0), id);
	le16_store_release(r.used + 2, idx);
	t_equal(-EIO, vq_driver_get_used(r.driver, NULL, NULL));
	t_equal(expected, vq_driver_broken(r.driver));
	/* Stays broken with its first reason, whatever comes. */
	le32_store(t_raw_used_entry(&r, 0), 0);
	le16_store_release(r.used + 2, 1);
	t_equal(-EIO, vq_driver_get_used(r.driver, NULL, NULL));
	t_equal(-EIO, vq_driver_get_buf(r.driver));
	t_equal(-EIO, vq_driver_add(r.driver, &segment, 1, 0, 0));
	t_equal(0, vq_driver_publish(r.driver));
	t_equal(0, vq_driver_kick_needed(r.driver));
	t_equal(0, vq_driver_enable_calls(r.driver));
	t_equal(2, t_raw_avail_idx(&r));
	t_equal(expected, vq_driver_broken(r.driver));
	t_ring_drop(&r);
}

static void test_broken_by_the_device(void)
{
	break_driver(VQ_BROKEN_USED_IDX, 0, 3);      /* more than are visible */
	break_driver(VQ_BROKEN_USED_IDX, 0, 0xffff); /* backwards */
	break_driver(VQ_BROKEN_USED_ID, 8, 1);       /* not a descriptor */
	break_driver(VQ_BROKEN_USED_ID, 0xffffffff, 1);
	break_driver(VQ_BROKEN_USED_ID, 0x10000, 1); /* 0 if cut to 16 bits */
	break_driver(VQ_BROKEN_USED_ID, 1, 1);       /* middle of a chain */
	break_driver(VQ_BROKEN_USED_ID, 3, 1);       /* staged, not shown */
	break_driver(VQ_BROKEN_USED_ID, 5, 1);       /* free */
}

static void test_broken_by_using_twice(void)
{
	struct t_ring r;

	t_ring_make(&r, 8, 0);
	t_add(&r, 0);
	t_add(&r, 1);
	vq_driver_publish(r.driver);
	t_raw_use(&r, 0, 0);
	t_raw_use(&r, 0, 0);
	t_equal(1, vq_driver_get_used(r.driver, NULL, NULL));
	t_equal(-EIO, vq_driver_get_used(r.driver, NULL, NULL));
	t_equal(VQ_BROKEN_USED_ID, vq_driver_broken(r.driver));
	t_ring_drop(&r);
}

/* The smallest queue: what lies behind its only descriptor's state is not state of another. */
static void test_broken_by_an_id_behind_one_descriptor(void)
{
	struct t_ring r;

	t_ring_make(&r, 1, 0);
	t_add(&r, 0);
	vq_driver_publish(r.driver);
	t_raw_use(&r, 1, 0);
	t_equal(-EIO, vq_driver_get_used(r.driver, NULL, NULL));
	t_equal(VQ_BROKEN_USED_ID, vq_driver_broken(r.driver));
	t_ring_drop(&r);
}

static void test_broken_texts(void)
{
	for (int i = 0; i <= VQ_BROKEN_REASONS; i++) {
		const char *text = vq_broken_text((enum vq_broken)i);

		t_check(text && text[0] >= 'a' && text[0] <= 'z');
		for (int j = 0; j < i; j++)
			t_check(strcmp(text, vq_broken_text((enum vq_broken)j)) != 0);
	}
}

static void test_destroy_nothing(void)
{
	vq_driver_destroy(NULL);
	vq_device_destroy(NULL);
}

static const struct t_test tests[] = {
    T_TEST(test_split_drv_01_alignment),
    T_TEST(test_split_drv_01_alignment_of_the_mapping),
    T_TEST(test_split_drv_02_sizes),
    T_TEST(test_split_drv_02_areas_end_inside_memory),
    T_TEST(test_golden_bytes),
    T_TEST(test_split_drv_03_wraps_and_writes_only_its_own_area),
    T_TEST(test_split_drv_03_every_size_fills_and_wraps),
    T_TEST(test_split_drv_04_readable_before_writable),
    T_TEST(test_split_drv_05_no_needless_descriptors),
    T_TEST(test_split_drv_06_total_of_a_chain),
    T_TEST(test_split_drv_07_indirect_only_if_negotiated),
    T_TEST(test_split_drv_08_indirect_never_nested),
    T_TEST(test_split_drv_10_indirect_never_with_next),
    T_TEST(test_split_drv_09_chain_not_longer_than_the_queue),
    T_TEST(test_split_drv_11_index_never_goes_back),
    T_TEST(test_split_drv_17_not_relying_on_bytes_past_len),
    T_TEST(test_split_drv_18_bytes_past_len_are_ignored),
    T_TEST(test_split_drv_19_ring_is_cleared_when_made),
    T_TEST(test_split_drv_26_a_batch_is_shown_at_once),
    T_TEST(test_split_drv_26_batches_walk_the_table_in_order),
    T_TEST(test_add_refuses),
    T_TEST(test_out_of_order_completion),
    T_TEST(test_free_list_is_private),
    T_TEST(test_broken_by_the_device),
    T_TEST(test_broken_by_using_twice),
    T_TEST(test_broken_by_an_id_behind_one_descriptor),
    T_TEST(test_broken_texts),
    T_TEST(test_destroy_nothing),
};

int main(void)
{
	return t_run(tests, T_COUNT(tests));
}
