/* Description: split ring, device half: chains of every shape, every broken rule, its own area only. */
/* SPDX-License-Identifier: MIT */
#include <stdbool.h>

#include "chain.h"
#include "helpers.h"

#define TABLE (T_DATA + 0x100000)

/* One entry of the table at TABLE. */
static void table_entry(struct t_ring *r, unsigned i, uint64_t addr, uint32_t len, unsigned flags,
			unsigned next)
{
	t_raw_desc_at(gm_at(r->mem, TABLE + 16 * (uint64_t)i, 16), addr, len, flags, next);
}

/* Offers head, expects the queue to break so, and stays broken. */
static void expect_broken(struct t_ring *r, unsigned head, enum vq_broken reason)
{
	struct vq_chain chain;

	t_raw_offer(r, head);
	t_equal(-EIO, vq_device_pop(r->device, &chain));
	t_equal(reason, vq_device_broken(r->device));
	/* A good buffer after it does not heal the queue, nor does another fault rename it. */
	t_raw_desc(r, 0, T_DATA, 4, 0, 0);
	t_raw_offer(r, 0);
	t_equal(-EIO, vq_device_pop(r->device, &chain));
	t_raw_offer(r, 0xffff);
	t_equal(-EIO, vq_device_pop(r->device, &chain));
	t_equal(reason, vq_device_broken(r->device));
	t_equal(0, vq_device_enable_kicks(r->device));
	t_ring_drop(r);
}

static void test_split_dev_02_chain_limit(void)
{
	for (uint32_t limit = 1; limit <= 20; limit++) {
		struct vq_device *device;
		struct vq_chain chain;
		struct t_ring r;

		t_ring_make(&r, 16, VQ_F_INDIRECT_DESC);
		r.config.chain_max = limit;
		t_equal(0, vq_device_create(r.mem, &r.config, &device));
		vq_device_destroy(r.device);
		r.device = device;
		for (unsigned i = 0; i < 16; i++)
			t_raw_desc(&r, i, T_DATA, 1, i < 15 ? T_NEXT : 0, i + 1);
		/* 16 - i elements from descriptor i on; the ring's size caps a bigger limit */
		if (limit < 16) {
			t_raw_offer(&r, 16 - limit);
			t_equal(1, vq_device_pop(device, &chain));
			t_equal(limit, chain.count);
			expect_broken(&r, 15 - limit, VQ_BROKEN_LOOP);
		} else {
			t_raw_offer(&r, 0);
			t_equal(1, vq_device_pop(device, &chain));
			t_equal(16, chain.count);
			t_raw_desc(&r, 15, T_DATA, 1, T_NEXT, 0);
			expect_broken(&r, 0, VQ_BROKEN_LOOP);
		}
	}
}

/* 03 and 05: a pass over a queue leaves payload bytes as they are, in both directions. */
static void payload_stays(void)
{
	uint8_t before[256], after[256];
	struct vq_segment segments[] = {{T_DATA, 100}, {T_DATA + 100, 156}};
	struct t_ring r;

	t_ring_make(&r, 8, 0);
	for (unsigned i = 0; i < sizeof(before); i++)
		before[i] = (uint8_t)(i ^ 0x5a);
	t_equal(0, gm_write(r.mem, T_DATA, before, sizeof(before)));
	t_equal(0, vq_driver_add(r.driver, segments, 1, 1, 0));
	vq_driver_publish(r.driver);
	t_equal(1, t_serve(&r));
	t_equal(0, gm_read(r.mem, T_DATA, after, sizeof(after)));
	t_check(memcmp(before, after, sizeof(after)) == 0);
	t_ring_drop(&r);
}

static void test_split_dev_03_readable_buffers_are_not_written(void)
{
	struct vq_segment segment = {T_DATA, 64};
	struct vq_reader reader;
	struct vq_chain chain;
	struct t_ring r;
	uint8_t out[64];

	payload_stays();
	/* And with the pages read-only, through the reader. */
	t_ring_make(&r, 8, 0);
	t_protect(gm_at(r.mem, T_DATA, 0), PROT_READ);
	t_equal(0, vq_driver_add(r.driver, &segment, 1, 0, 0));
	vq_driver_publish(r.driver);
	t_equal(1, vq_device_pop(r.device, &chain));
	vq_reader_init(&reader, &chain);
	t_equal(64, vq_read(&reader, out, sizeof(out)));
	t_equal(1, chain.readable);
	t_ring_drop(&r);
}

/* A writable page that is not there stays so: it was not looked at. */
static void test_split_dev_04_writable_buffers_are_not_read(void)
{
	struct vq_segment segment = {T_DATA + 0x200000, 4096};
	struct vq_reader reader;
	struct vq_chain chain;
	struct t_ring r;
	int64_t before;
	uint8_t out[8];

	t_ring_make(&r, 8, 0);
	t_equal(0, vq_driver_add(r.driver, &segment, 0, 1, 0));
	vq_driver_publish(r.driver);
	t_protect(gm_at(r.mem, T_DATA + 0x200000, 0), PROT_NONE);
	before = gm_allocated_bytes(r.mem);
	t_equal(1, vq_device_pop(r.device, &chain));
	t_equal(0, chain.readable);
	t_equal(4096, chain.writable_bytes);
	vq_reader_init(&reader, &chain);
	t_equal(0, vq_read(&reader, out, sizeof(out)));
	t_equal(before, gm_allocated_bytes(r.mem));
	t_ring_drop(&r);
}

/* A permission, for diagnosis: the segments say where the bytes are, nothing is copied. */
static void test_split_dev_05_writable_buffers_may_be_looked_at(void)
{
	struct vq_segment segment = {T_DATA, 8};
	struct vq_chain chain;
	struct t_ring r;

	t_ring_make(&r, 8, 0);
	t_equal(0, gm_write(r.mem, T_DATA, "earlier", 8));
	t_equal(0, vq_driver_add(r.driver, &segment, 0, 1, 0));
	vq_driver_publish(r.driver);
	t_equal(1, vq_device_pop(r.device, &chain));
	t_check(memcmp(chain.segments[0].base, "earlier", 8) == 0);
	t_equal(T_DATA, chain.segments[0].guest_addr);
	t_ring_drop(&r);
}

/* Descriptor table and available ring read-only; a table in read-only memory as well. */
static void test_split_dev_06_never_writes_the_drivers_areas(void)
{
	struct vq_chain chain;
	struct t_ring r;

	for (unsigned event = 0; event < 2; event++) {
		t_ring_make(&r, 8, VQ_F_INDIRECT_DESC | (event ? VQ_F_EVENT_IDX : 0));
		for (unsigned i = 0; i < 3; i++)
			table_entry(&r, i, T_DATA, 4, i < 2 ? T_NEXT : 0, i + 1);
		t_raw_desc(&r, 0, T_DATA, 4, T_NEXT, 1);
		t_raw_desc(&r, 1, TABLE, 48, T_INDIRECT, 0);
		for (unsigned i = 0; i < 8; i++)
			t_raw_offer(&r, 0);
		t_protect(r.desc, PROT_READ);
		t_protect(r.avail, PROT_READ);
		t_protect(gm_at(r.mem, T_DATA, 0), PROT_READ);
		t_protect(gm_at(r.mem, TABLE, 0), PROT_READ);
		for (unsigned i = 0; i < 8; i++) {
			t_equal(1, vq_device_pop(r.device, &chain));
			t_equal(4, chain.count);
			vq_device_push(r.device, chain.head, 0);
			t_equal(1, vq_device_publish(r.device));
			vq_device_call_needed(r.device);
			vq_device_disable_kicks(r.device);
			vq_device_enable_kicks(r.device);
		}
		t_equal(0, vq_device_pop(r.device, &chain));
		t_ring_drop(&r);
	}
}

static void test_split_dev_07_used_entries(void)
{
	struct t_ring r;

	t_ring_make(&r, 4, 0);
	t_equal(0, t_raw_used_idx(&r));
	for (uint32_t i = 0; i < 3 * 65536; i++) {
		t_add(&r, i);
		vq_driver_publish(r.driver);
		t_equal(1, t_serve(&r));
		t_equal((uint16_t)(i + 1), t_raw_used_idx(&r));
		t_equal(t_raw_avail_entry(&r, i), le32_load(t_raw_used_entry(&r, i)));
		t_equal(0, le32_load(t_raw_used_entry(&r, i) + 4)); /* T-27 */
		t_equal(1, t_drain(&r));
	}
	t_ring_drop(&r);
}

static void test_split_dev_08_table_follows_next(void)
{
	static const unsigned order[] = {0, 6, 3, 7, 1}; /* 5 of 8 entries, scrambled */
	struct vq_chain chain;
	struct t_ring r;

	/* The table at every alignment: virtio sets none for it. */
	for (uint64_t off = 0; off < 16; off++) {
		t_ring_make(&r, 8, VQ_F_INDIRECT_DESC);
		for (unsigned i = 0; i < 5; i++)
			t_raw_desc_at(gm_at(r.mem, TABLE + off + 16 * order[i], 16),
				      T_DATA + 0x1000 * i, i + 1, i < 4 ? T_NEXT : 0,
				      i < 4 ? order[i + 1] : 0xffff);
		t_raw_desc(&r, 5, TABLE + off, 8 * 16, T_INDIRECT, 0xffff);
		t_raw_offer(&r, 5);
		t_equal(1, vq_device_pop(r.device, &chain));
		t_equal(5, chain.count);
		t_equal(5, chain.head);
		for (unsigned i = 0; i < 5; i++) {
			t_equal(T_DATA + 0x1000 * i, chain.segments[i].guest_addr);
			t_equal(i + 1, chain.segments[i].len);
		}
		/* next is measured against the table, not against the ring */
		t_raw_desc_at(gm_at(r.mem, TABLE + off, 16), T_DATA, 1, T_NEXT, 8);
		expect_broken(&r, 5, VQ_BROKEN_NEXT);
	}
}

/* A table longer than the ring is fine as long as the chain in it is not. */
static void test_split_dev_08_table_longer_than_the_ring(void)
{
	struct vq_chain chain;
	struct t_ring r;

	t_ring_make(&r, 4, VQ_F_INDIRECT_DESC);
	table_entry(&r, 0, T_DATA, 1, T_NEXT, 1000);
	table_entry(&r, 1000, T_DATA, 2, 0, 0);
	t_raw_desc(&r, 0, TABLE, 1001 * 16, T_INDIRECT, 0);
	t_raw_offer(&r, 0);
	t_equal(1, vq_device_pop(r.device, &chain));
	t_equal(2, chain.count);
	t_raw_desc(&r, 0, TABLE, 1000 * 16, T_INDIRECT, 0);
	expect_broken(&r, 0, VQ_BROKEN_NEXT);
}

static void test_split_dev_09_write_on_the_table_pointer_is_ignored(void)
{
	for (unsigned flags = 0; flags < 4; flags += 2) {
		struct vq_chain chain;
		struct t_ring r;

		t_ring_make(&r, 8, VQ_F_INDIRECT_DESC);
		table_entry(&r, 0, T_DATA, 4, T_NEXT, 1);
		table_entry(&r, 1, T_DATA, 8, T_WRITE, 0);
		t_raw_desc(&r, 0, TABLE, 32, T_INDIRECT | flags, 0);
		t_raw_offer(&r, 0);
		t_equal(1, vq_device_pop(r.device, &chain));
		t_equal(2, chain.count);
		t_equal(1, chain.readable);
		t_equal(4, chain.readable_bytes);
		t_equal(8, chain.writable_bytes);
		t_ring_drop(&r);
	}
}

static void test_split_dev_10_plain_descriptors_then_a_table(void)
{
	for (unsigned plain = 0; plain <= 5; plain++) {
		struct vq_chain chain;
		struct t_ring r;

		t_ring_make(&r, 8, VQ_F_INDIRECT_DESC);
		for (unsigned i = 0; i < plain; i++)
			t_raw_desc(&r, i, T_DATA + 16 * i, i + 1, T_NEXT, i + 1);
		t_raw_desc(&r, plain, TABLE, 48, T_INDIRECT, 0);
		for (unsigned i = 0; i < 3; i++)
			table_entry(&r, i, T_DATA + 16 * (plain + i), plain + i + 1,
				    (i < 2 ? T_NEXT : 0) | (i == 2 ? T_WRITE : 0), i + 1);
		t_raw_offer(&r, 0);
		t_equal(1, vq_device_pop(r.device, &chain));
		t_equal(plain + 3, chain.count);
		t_equal(plain + 2, chain.readable);
		for (unsigned i = 0; i < plain + 3; i++) {
			t_equal(T_DATA + 16 * i, chain.segments[i].guest_addr);
			t_equal(i + 1, chain.segments[i].len);
		}
		t_ring_drop(&r);
	}
}

/* The order rule holds across the seam between plain descriptors and table. */
static void test_split_dev_10_order_across_the_table(void)
{
	struct t_ring r;

	t_ring_make(&r, 8, VQ_F_INDIRECT_DESC);
	t_raw_desc(&r, 0, T_DATA, 4, T_NEXT | T_WRITE, 1);
	t_raw_desc(&r, 1, TABLE, 16, T_INDIRECT | T_WRITE, 0);
	table_entry(&r, 0, T_DATA, 4, 0, 0);
	expect_broken(&r, 0, VQ_BROKEN_ORDER);
}

/* What the driver half sees of len before it sees the entry; two threads do it in test_split_stress. */
static void test_split_dev_17_len_is_there_before_the_index(void)
{
	struct vq_chain chain;
	struct t_ring r;

	t_ring_make(&r, 4, 0);
	t_add(&r, 0);
	vq_driver_publish(r.driver);
	t_equal(1, vq_device_pop(r.device, &chain));
	vq_device_push(r.device, chain.head, 0x1234);
	t_equal(0, t_raw_used_idx(&r));
	t_equal(0x1234, le32_load(t_raw_used_entry(&r, 0) + 4));
	t_equal(1, vq_device_publish(r.device));
	t_equal(1, t_raw_used_idx(&r));
	t_equal(0, vq_device_publish(r.device));
	t_ring_drop(&r);
}

/* The bytes are the caller's to write; the half passes len on and shows the entry only after. */
static void test_split_dev_18_written_bytes_come_before_the_index(void)
{
	struct vq_segment segments[] = {{T_DATA, 3}, {T_DATA + 4096, 13}};
	struct vq_chain chain;
	char text[16] = "";
	struct t_ring r;
	uint32_t len;

	t_ring_make(&r, 4, 0);
	t_equal(0, vq_driver_add(r.driver, segments, 0, 2, 0));
	vq_driver_publish(r.driver);
	t_equal(1, vq_device_pop(r.device, &chain));
	memcpy(chain.segments[0].base, "abc", 3); /* from the first writable byte on */
	memcpy(chain.segments[1].base, "de", 2);
	vq_device_push(r.device, chain.head, 5);
	t_equal(0, vq_driver_get_used(r.driver, NULL, &len));
	vq_device_publish(r.device);
	t_equal(1, vq_driver_get_used(r.driver, NULL, &len));
	t_equal(5, len);
	t_equal(0, gm_read(r.mem, T_DATA, text, 3));
	t_equal(0, gm_read(r.mem, T_DATA + 4096, text + 3, len - 3));
	t_check(strcmp(text, "abcde") == 0);
	t_ring_drop(&r);
}

static void test_split_dev_19_underreporting_is_accepted(void)
{
	struct vq_segment segment = {T_DATA, 64};
	struct vq_chain chain;
	struct t_ring r;
	uint32_t len;

	t_ring_make(&r, 4, 0);
	t_equal(0, vq_driver_add(r.driver, &segment, 0, 1, 0));
	vq_driver_publish(r.driver);
	t_equal(1, vq_device_pop(r.device, &chain));
	memset(chain.segments[0].base, 1, 64);
	vq_device_push(r.device, chain.head, 0);
	vq_device_publish(r.device);
	t_equal(1, vq_driver_get_used(r.driver, NULL, &len));
	t_equal(0, len);
	t_equal(VQ_OK, vq_driver_broken(r.driver));
	t_ring_drop(&r);
}

static void test_empty_elements_are_skipped(void)
{
	struct vq_chain chain;
	struct t_ring r;

	t_ring_make(&r, 8, 0);
	t_raw_desc(&r, 0, UINT64_MAX, 0, T_NEXT, 1); /* wherever it points */
	t_raw_desc(&r, 1, T_DATA, 4, T_NEXT, 2);
	t_raw_desc(&r, 2, T_DATA, 0, T_NEXT, 3);
	t_raw_desc(&r, 3, T_DATA, 8, T_WRITE | T_NEXT, 4);
	t_raw_desc(&r, 4, 0x7777777777ull, 0, T_WRITE, 0);
	t_raw_offer(&r, 0);
	t_raw_offer(&r, 4);
	t_equal(1, vq_device_pop(r.device, &chain));
	t_equal(2, chain.count);
	t_equal(1, chain.readable);
	t_equal(4, chain.readable_bytes);
	t_equal(8, chain.writable_bytes);
	t_equal(1, vq_device_pop(r.device, &chain)); /* nothing at all in it */
	t_equal(0, chain.count);
	t_equal(4, chain.head);
	/* A ring of nothing but empty elements ends all the same. */
	t_raw_desc(&r, 4, T_DATA, 0, T_NEXT, 4);
	expect_broken(&r, 4, VQ_BROKEN_LOOP);
}

/* Single descriptors after the first, which showed where memory is: the way without a walk. */
static void test_single_descriptors(void)
{
	static const unsigned flags[] = {0, 0, T_WRITE, T_WRITE, 0};
	static const uint32_t lens[] = {4, 8, 16, 0, 0};
	struct vq_chain chain;
	struct t_ring r;

	t_ring_make(&r, 8, 0);
	for (unsigned i = 0; i < T_COUNT(lens); i++) {
		const bool writable = flags[i] & T_WRITE;

		t_raw_desc(&r, i, T_DATA + i, lens[i], flags[i], 0);
		t_raw_offer(&r, i);
		t_equal(1, vq_device_pop(r.device, &chain));
		t_equal(i, chain.head);
		t_equal(lens[i] != 0, chain.count); /* an empty element is skipped */
		t_equal(lens[i] != 0 && !writable, chain.readable);
		t_equal(writable ? 0 : lens[i], chain.readable_bytes);
		t_equal(writable ? lens[i] : 0, chain.writable_bytes);
		if (lens[i]) {
			t_check(chain.segments[0].base == gm_at(r.mem, T_DATA + i, lens[i]));
			t_equal(T_DATA + i, chain.segments[0].guest_addr);
			t_equal(lens[i], chain.segments[0].len);
		}
	}
	t_ring_drop(&r);
}

static void test_broken_avail_idx(void)
{
	static const uint16_t jumps[] = {9, 10, 0x7fff, 0x8000, 0xffff};

	for (unsigned i = 0; i < T_COUNT(jumps); i++) {
		struct vq_chain chain;
		struct t_ring r;

		t_ring_make(&r, 8, 0);
		t_raw_desc(&r, 0, T_DATA, 4, 0, 0);
		t_raw_offer(&r, 0);
		t_equal(1, vq_device_pop(r.device, &chain));
		le16_store(r.avail + 2, (uint16_t)(1 + jumps[i])); /* also SPLIT-DRV-11 */
		t_equal(0, vq_device_pending(r.device));
		t_equal(-EIO, vq_device_pop(r.device, &chain));
		t_equal(VQ_BROKEN_AVAIL_IDX, vq_device_broken(r.device));
		t_ring_drop(&r);
	}
}

static void test_avail_idx_ahead_by_the_whole_queue(void)
{
	struct t_ring r;

	t_ring_make(&r, 8, 0);
	for (unsigned i = 0; i < 8; i++) {
		t_raw_desc(&r, i, T_DATA, 4, 0, 0);
		t_raw_offer(&r, i);
	}
	t_equal(8, vq_device_pending(r.device));
	t_equal(8, t_serve(&r));
	t_ring_drop(&r);
}

/* A fresh ring of 8 with all features of interest. */
static void make(struct t_ring *r, uint64_t features)
{
	t_ring_make(r, 8, features);
	for (unsigned i = 0; i < 8; i++)
		t_raw_desc(r, i, T_DATA, 4, 0, 0);
}

static void test_broken_head_and_next(void)
{
	static const uint16_t wrong[] = {8, 9, 0x8000, 0xffff};
	struct t_ring r;

	for (unsigned i = 0; i < T_COUNT(wrong); i++) {
		make(&r, 0);
		expect_broken(&r, wrong[i], VQ_BROKEN_HEAD);
		make(&r, 0);
		t_raw_desc(&r, 7, T_DATA, 4, T_NEXT, wrong[i]);
		expect_broken(&r, 7, VQ_BROKEN_NEXT);
	}
}

static void test_broken_loop(void)
{
	struct vq_chain chain;
	struct t_ring r;

	make(&r, 0);
	t_raw_desc(&r, 3, T_DATA, 4, T_NEXT, 3);
	expect_broken(&r, 3, VQ_BROKEN_LOOP);
	make(&r, 0);
	t_raw_desc(&r, 1, T_DATA, 4, T_NEXT, 2);
	t_raw_desc(&r, 2, T_DATA, 4, T_NEXT, 1);
	expect_broken(&r, 1, VQ_BROKEN_LOOP);
	/* A chain of all descriptors is fine. */
	make(&r, 0);
	for (unsigned i = 0; i < 8; i++)
		t_raw_desc(&r, i, T_DATA, 4, i < 7 ? T_NEXT : 0, i + 1);
	t_raw_offer(&r, 0);
	t_equal(1, vq_device_pop(r.device, &chain));
	t_equal(8, chain.count);
	t_raw_desc(&r, 7, T_DATA, 4, T_NEXT, 0);
	expect_broken(&r, 0, VQ_BROKEN_LOOP);
}

/* T-34: the limit stays the ring's size while walking a table, plain elements included. */
static void test_broken_loop_in_a_table(void)
{
	struct vq_chain chain;
	struct t_ring r;

	make(&r, VQ_F_INDIRECT_DESC);
	table_entry(&r, 0, T_DATA, 4, T_NEXT, 0);
	t_raw_desc(&r, 0, TABLE, 16, T_INDIRECT, 0);
	expect_broken(&r, 0, VQ_BROKEN_LOOP);

	make(&r, VQ_F_INDIRECT_DESC);
	for (unsigned i = 0; i < 9; i++)
		table_entry(&r, i, T_DATA, 4, i < 7 ? T_NEXT : 0, i + 1);
	t_raw_desc(&r, 0, TABLE, 9 * 16, T_INDIRECT, 0);
	t_raw_offer(&r, 0);
	t_equal(1, vq_device_pop(r.device, &chain)); /* 8: the pointer is no element */
	t_equal(8, chain.count);
	table_entry(&r, 7, T_DATA, 4, T_NEXT, 8);
	expect_broken(&r, 0, VQ_BROKEN_LOOP); /* 9 */

	make(&r, VQ_F_INDIRECT_DESC);
	for (unsigned i = 0; i < 8; i++)
		table_entry(&r, i, T_DATA, 4, i < 7 ? T_NEXT : 0, i + 1);
	t_raw_desc(&r, 1, T_DATA, 4, T_NEXT, 0);
	t_raw_desc(&r, 0, TABLE, 8 * 16, T_INDIRECT, 0);
	expect_broken(&r, 1, VQ_BROKEN_LOOP); /* 1 + 8 */
}

static void test_broken_address(void)
{
	static const struct {
		uint64_t addr;
		uint32_t len;
	} wrong[] = {
	    {T_DATA - 1, 1},
	    {T_DATA - 1, 2},
	    {T_DATA + T_DATA_BYTES, 1},
	    {T_DATA + T_DATA_BYTES - 1, 2},
	    {T_DATA + T_DATA_BYTES - 1, 0xffffffff},
	    {UINT64_MAX, 1},
	    {UINT64_MAX, 2},
	    {UINT64_MAX - 0xfffffffe, 0xffffffff},
	    {T_USED + T_AREA_BYTES - 2, 4},
	    {T_AVAIL - 2, 4}, /* two regions that touch are still two */
	};
	struct t_ring r;

	for (unsigned i = 0; i < T_COUNT(wrong); i++) {
		make(&r, 0);
		t_raw_desc(&r, 0, wrong[i].addr, wrong[i].len, 0, 0);
		expect_broken(&r, 0, VQ_BROKEN_ADDRESS);
		make(&r, VQ_F_INDIRECT_DESC);
		t_raw_desc(&r, 0, T_DATA, 1, T_NEXT, 1);
		t_raw_desc(&r, 1, TABLE, 16, T_INDIRECT, 0);
		table_entry(&r, 0, wrong[i].addr, wrong[i].len, T_WRITE, 0);
		expect_broken(&r, 0, VQ_BROKEN_ADDRESS);
	}
}

static void test_broken_order(void)
{
	struct t_ring r;

	make(&r, 0);
	t_raw_desc(&r, 0, T_DATA, 4, T_NEXT | T_WRITE, 1);
	expect_broken(&r, 0, VQ_BROKEN_ORDER);
}

static void test_broken_total(void)
{
	struct vq_chain chain;
	struct t_ring r;

	make(&r, 0);
	t_raw_desc(&r, 0, T_DATA, 0x80000000u, T_NEXT, 1);
	t_raw_desc(&r, 1, T_DATA, 0x7fffffffu, T_NEXT | T_WRITE, 2);
	t_raw_desc(&r, 2, T_DATA, 1, T_WRITE, 0);
	t_raw_offer(&r, 0);
	t_equal(1, vq_device_pop(r.device, &chain)); /* 2^32 exactly (SPLIT-DRV-06) */
	t_equal(1ll << 32, chain.readable_bytes + chain.writable_bytes);
	t_raw_desc(&r, 2, T_DATA, 2, T_WRITE, 0);
	expect_broken(&r, 0, VQ_BROKEN_TOTAL);
}

static void test_broken_indirect(void)
{
	static const uint32_t lengths[] = {0, 1, 15, 17, 24, 0xffffffff};
	static const uint64_t addresses[] = {T_DATA - 1, T_DATA + T_DATA_BYTES - 15, UINT64_MAX};
	struct t_ring r;

	make(&r, 0);
	t_raw_desc(&r, 0, TABLE, 16, T_INDIRECT, 0);
	expect_broken(&r, 0, VQ_BROKEN_INDIRECT_FEATURE);

	make(&r, VQ_F_INDIRECT_DESC);
	table_entry(&r, 0, TABLE, 16, T_INDIRECT, 0);
	t_raw_desc(&r, 0, TABLE, 16, T_INDIRECT, 0);
	expect_broken(&r, 0, VQ_BROKEN_INDIRECT_NESTED);

	make(&r, VQ_F_INDIRECT_DESC);
	table_entry(&r, 0, T_DATA, 4, 0, 0);
	t_raw_desc(&r, 0, TABLE, 16, T_INDIRECT | T_NEXT, 1);
	expect_broken(&r, 0, VQ_BROKEN_INDIRECT_NEXT);

	for (unsigned i = 0; i < T_COUNT(lengths); i++) { /* T-23 */
		make(&r, VQ_F_INDIRECT_DESC);
		t_raw_desc(&r, 0, TABLE, lengths[i], T_INDIRECT, 0);
		expect_broken(&r, 0, VQ_BROKEN_INDIRECT_LENGTH);
	}
	for (unsigned i = 0; i < T_COUNT(addresses); i++) {
		make(&r, VQ_F_INDIRECT_DESC);
		t_raw_desc(&r, 0, addresses[i], 16, T_INDIRECT, 0);
		expect_broken(&r, 0, VQ_BROKEN_INDIRECT_ADDRESS);
	}
}

/* Unknown flag bits are nobody's business. */
static void test_unknown_flags_are_ignored(void)
{
	struct vq_chain chain;
	struct t_ring r;

	make(&r, VQ_F_INDIRECT_DESC);
	t_raw_desc(&r, 0, T_DATA, 4, 0xfff8, 0xffff);
	t_raw_offer(&r, 0);
	t_equal(1, vq_device_pop(r.device, &chain));
	t_equal(1, chain.readable);
	t_ring_drop(&r);
}

static void test_set_base(void)
{
	struct vq_device_counters counters;
	struct vq_device *second;
	struct vq_chain chain;
	struct t_ring r;

	t_ring_make(&r, 4, VQ_F_EVENT_IDX);
	for (uint32_t i = 0; i < 65534; i++) {
		t_add(&r, i);
		vq_driver_publish(r.driver);
		t_serve(&r);
		vq_device_call_needed(r.device);
		t_drain(&r);
	}
	t_equal(65534, vq_device_avail_base(r.device));
	/* Another device goes on where the first stopped, across the wrap. */
	t_equal(0, vq_device_create(r.mem, &r.config, &second));
	vq_device_set_base(second, vq_device_avail_base(r.device), t_raw_used_idx(&r));
	vq_device_destroy(r.device);
	r.device = second;
	t_equal(0, vq_device_pending(second));
	t_equal(0, vq_device_pop(second, &chain));
	t_equal(0, vq_device_call_needed(second)); /* nothing published yet */
	for (uint32_t i = 0; i < 8; i++) {
		t_add(&r, i);
		vq_driver_publish(r.driver);
		t_equal(1, t_serve(&r));
		/* The first must call: what was signalled before is unknown. used_event is 0,
		 * so the third (index 65536) calls as well. */
		t_equal(i == 0 || i == 2, vq_device_call_needed(second));
		t_equal(1, t_drain(&r));
	}
	t_equal(6, vq_device_avail_base(second));
	vq_device_counters_get(second, &counters);
	t_equal(8, counters.popped);
	t_equal(8, counters.pushed);
	t_equal(2, counters.calls);
	t_equal(6, counters.calls_suppressed);
	t_ring_drop(&r);
}

/* Without EVENT_IDX the driver's flag stands in the ring: it holds for the next device at once. */
static void test_set_base_without_event_idx(void)
{
	struct t_ring r;

	t_ring_make(&r, 4, 0);
	vq_device_set_base(r.device, 0, 0);
	vq_driver_disable_calls(r.driver);
	t_add(&r, 0);
	vq_driver_publish(r.driver);
	t_equal(1, t_serve(&r));
	t_equal(0, vq_device_call_needed(r.device));
	t_ring_drop(&r);
}

/* The device half touches no ring memory when it is made. */
static void test_create_touches_nothing(void)
{
	struct vq_device *device;
	struct t_ring r;

	t_ring_make(&r, 8, 0);
	t_protect(r.desc, PROT_NONE);
	t_protect(r.avail, PROT_NONE);
	t_protect(r.used, PROT_NONE);
	t_equal(0, vq_device_create(r.mem, &r.config, &device));
	vq_device_destroy(device);
	r.config.size = 3;
	t_equal(-EINVAL, vq_device_create(r.mem, &r.config, &device));
	r.config.size = 8;
	r.config.features |= VQ_F_RING_PACKED;
	t_equal(-EOPNOTSUPP, vq_device_create(r.mem, &r.config, &device));
	t_ring_drop(&r);
}

/* What was popped before the fault may still be acknowledged. */
static void test_popped_chains_outlive_the_fault(void)
{
	struct vq_chain chain;
	struct t_ring r;

	make(&r, 0);
	t_raw_offer(&r, 0);
	t_raw_offer(&r, 8);
	t_equal(1, vq_device_pop(r.device, &chain));
	{
		struct vq_chain second;

		t_equal(-EIO, vq_device_pop(r.device, &second));
	}
	vq_device_push(r.device, chain.head, 0);
	t_equal(1, vq_device_publish(r.device));
	t_equal(1, t_raw_used_idx(&r));
	t_ring_drop(&r);
}

static const struct t_test tests[] = {
    T_TEST(test_split_dev_02_chain_limit),
    T_TEST(test_split_dev_03_readable_buffers_are_not_written),
    T_TEST(test_split_dev_04_writable_buffers_are_not_read),
    T_TEST(test_split_dev_05_writable_buffers_may_be_looked_at),
    T_TEST(test_split_dev_06_never_writes_the_drivers_areas),
    T_TEST(test_split_dev_07_used_entries),
    T_TEST(test_split_dev_08_table_follows_next),
    T_TEST(test_split_dev_08_table_longer_than_the_ring),
    T_TEST(test_split_dev_09_write_on_the_table_pointer_is_ignored),
    T_TEST(test_split_dev_10_plain_descriptors_then_a_table),
    T_TEST(test_split_dev_10_order_across_the_table),
    T_TEST(test_split_dev_17_len_is_there_before_the_index),
    T_TEST(test_split_dev_18_written_bytes_come_before_the_index),
    T_TEST(test_split_dev_19_underreporting_is_accepted),
    T_TEST(test_empty_elements_are_skipped),
    T_TEST(test_single_descriptors),
    T_TEST(test_broken_avail_idx),
    T_TEST(test_avail_idx_ahead_by_the_whole_queue),
    T_TEST(test_broken_head_and_next),
    T_TEST(test_broken_loop),
    T_TEST(test_broken_loop_in_a_table),
    T_TEST(test_broken_address),
    T_TEST(test_broken_order),
    T_TEST(test_broken_total),
    T_TEST(test_broken_indirect),
    T_TEST(test_unknown_flags_are_ignored),
    T_TEST(test_set_base),
    T_TEST(test_set_base_without_event_idx),
    T_TEST(test_create_touches_nothing),
    T_TEST(test_popped_chains_outlive_the_fault),
};

int main(void)
{
	return t_run(tests, T_COUNT(tests));
}
