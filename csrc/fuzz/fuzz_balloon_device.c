/* SPDX-License-Identifier: MIT */
/*
 * The balloon device against a driver that writes registers and rings as it likes.
 *
 * Input: one byte of options, then operations until the input ends. An operation
 * is a byte and its arguments: a status, features, a queue to enable, bytes of
 * configuration, a store to a ring or a buffer, a well-formed request, a pass, a
 * fault, a statistics request. Memory is one region, rings in its first pages.
 *
 * Invariants:
 *   held_pages is what inflate and deflate leave, and what the page record says;
 *   no page is dropped but those that the device holds;
 *   status never shows a bit that nobody set, features never one not offered;
 *   before DRIVER_OK and after a reset no used ring changes;
 *   a broken queue means NEEDS_RESET, until reset.
 */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "balloon_device.h"
#include "barrier.h"
#include "guest_memory.h"
#include "input.h"

#define PAGES      64u
#define RING_BYTES 0x1000u /* one page a queue: descriptors, available at +0x400, used at +0x800 */
#define AVAIL      0x400u
#define USED       0x800u
#define DATA       0x4000u

static uint64_t take_n(struct input *in, unsigned bytes)
{
	uint64_t value = 0;

	while (bytes-- > 0)
		value = value << 8 | take(in);
	return value;
}

static void enable(struct gm *mem, struct bln_device *dev, struct input *in)
{
	const unsigned queue = take(in) % 4;
	const uint64_t base = (uint64_t)queue * RING_BYTES;
	struct vq_config config = {.desc_addr = base,
				   .driver_addr = base + AVAIL,
				   .device_addr = base + USED,
				   .size = 1u << (take(in) % 6)};

	if (take(in) % 16 == 0) /* anywhere, any size */
		config = (struct vq_config){.desc_addr = take_n(in, 2),
					    .driver_addr = take_n(in, 2),
					    .device_addr = take_n(in, 2),
					    .size = (uint32_t)take_n(in, 2),
					    .chain_max = take(in)};
	else /* a well-behaved driver zeroes the rings first */
		memset(gm_at(mem, base, RING_BYTES), 0, RING_BYTES);
	(void)bln_queue_enable(dev, queue, &config);
}

/* A request as it should be, of descriptor 0: the hostile stores play around with these. */
static void request(struct gm *mem, struct input *in)
{
	const unsigned queue = take(in) % 3;
	uint8_t *ring = gm_at(mem, (uint64_t)queue * RING_BYTES, RING_BYTES);
	uint8_t *array = gm_at(mem, DATA, 256);
	const uint32_t n = take(in) % 16;
	const uint16_t idx = le16_load(ring + AVAIL + 2);

	for (uint32_t i = 0; i < n; i++)
		le32_store(array + 4 * i, take(in) % (PAGES + 8));
	le64_store(ring, DATA);
	le32_store(ring + 8, n * 4 + take(in) % 2);
	le32_store(ring + 12, 0);
	le16_store(ring + AVAIL + 4, 0);
	for (unsigned slot = 0; slot < 32; slot++)
		le16_store(ring + AVAIL + 4 + 2 * (size_t)slot, 0);
	le16_store(ring + AVAIL + 2, (uint16_t)(idx + 1));
}

static void set_faults(struct bln_device *dev, struct input *in)
{
	const struct bln_faults faults = {.ack_delay_ns = take(in) % 2,
					  .stall_queues = take(in) % 16 == 0 ? take(in) : 0,
					  .lose_calls = take(in) % 3,
					  .wrong_used_len = take(in) % 2,
					  .fail_discards = take(in) % 3};

	bln_set_faults(dev, &faults);
}

static void check(struct gm *mem, struct bln_device *dev)
{
	struct vq_device_counters queue_count;
	struct bln_counters count;
	struct bln_stats stats;
	uint64_t held = 0;
	unsigned queue = 99;

	bln_counters_get(dev, &count);
	for (uint32_t pfn = 0; pfn < PAGES; pfn++)
		held += (uint64_t)bln_holds(dev, pfn);
	must(held == count.held_pages);
	must(bln_holds(dev, PAGES) < 0);
	if (count.resets == 0)
		must(held == count.inflated_pages - count.deflated_pages);
	must(count.discard.pages <= count.inflated_pages);
	must(!(bln_status(dev) & (16 | 32)));
	if (bln_status(dev) & BLN_STATUS_FEATURES_OK)
		must(!(bln_driver_features(dev) & ~bln_features(dev)));
	else
		must(!(bln_status(dev) & BLN_STATUS_DRIVER_OK));
	if (bln_broken(dev, &queue) != VQ_OK)
		must(queue < BLN_QUEUES && (bln_status(dev) & BLN_STATUS_NEEDS_RESET));
	else
		must(!(bln_status(dev) & BLN_STATUS_NEEDS_RESET));
	bln_stats_get(dev, &stats);
	must(stats.count <= BLN_STATS_MAX && stats.malformed < 10);
	for (queue = 0; queue < BLN_QUEUES; queue++) {
		if (bln_queue_counters(dev, queue, &queue_count) == 0)
			must(queue_count.pushed <= queue_count.popped);
		must(bln_queue_depth(dev, queue) <= 32768);
	}
	must(gm_allocated_bytes(mem) >= 0);
}

static void step(struct gm *mem, struct bln_device *dev, struct input *in)
{
	static const uint8_t way[] = {0, 1, 3, 11, 15, 143};
	uint8_t bytes[BLN_CONFIG_BYTES], before[3 * RING_BYTES];
	const bool live = bln_status(dev) & BLN_STATUS_DRIVER_OK;
	uint32_t offset, len, pfn;
	uint8_t queue;

	switch (take(in) % 12) {
	case 0:
		(void)bln_set_status(dev, take(in) % 8 ? way[take(in) % 6] : take(in));
		break;
	case 1:
		(void)bln_set_driver_features(dev, take(in) % 8 ? bln_features(dev) & ~take_n(in, 1)
								: take_n(in, 8));
		break;
	case 2:
		enable(mem, dev, in);
		break;
	case 3: /* everything a driver does to get going */
		(void)bln_set_status(dev, 0);
		(void)bln_set_status(dev, 3);
		(void)bln_set_driver_features(dev, bln_features(dev));
		(void)bln_set_status(dev, 11);
		enable(mem, dev, in);
		enable(mem, dev, in);
		(void)bln_set_status(dev, 15);
		break;
	case 4:
		offset = take(in);
		len = take(in) % 32;
		memset(bytes, take(in), sizeof(bytes));
		if (bln_config_read(dev, offset % 20, bytes, len) == 0)
			must(offset % 20 + len <= BLN_CONFIG_BYTES);
		if (len <= sizeof(bytes))
			(void)bln_config_write(dev, offset % 20, bytes, len);
		break;
	case 5:
		*(uint8_t *)gm_at(mem, take_n(in, 2) % (3 * RING_BYTES), 1) = take(in);
		break;
	case 6:
		*(uint8_t *)gm_at(mem, DATA + take(in), 1) = take(in);
		break;
	case 7:
	case 8:
		request(mem, in);
		break;
	case 9:
		memcpy(before, gm_at(mem, 0, sizeof(before)), sizeof(before));
		queue = take(in);
		if (queue & 128)
			(void)bln_step(dev, queue % 4, (enum bln_step)(queue / 4 % 8), &pfn, 1);
		else
			(void)bln_process(dev, queue % 4);
		if (!live) /* CORE-DEV-02, CORE-DEV-11 */
			must(memcmp(before, gm_at(mem, 0, sizeof(before)), sizeof(before)) == 0);
		break;
	case 10:
		set_faults(dev, in);
		break;
	default:
		(void)bln_stats_request(dev);
		(void)bln_set_target(dev, take(in));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	struct bln_options options = {.queue_size_max = 32};
	const uint8_t choice = take(&in);
	struct bln_device *dev;
	struct gm *mem;

	options.features = choice & 7;
	options.features |= choice & 8 ? VQ_F_EVENT_IDX : 0;
	options.features |= choice & 16 ? VQ_F_INDIRECT_DESC : 0;
	options.discard = choice & 32 ? DISCARD_NONE : DISCARD_PUNCH;
	options.strict_tell_host = choice >> 7;
	must(gm_create(PAGES * GM_PAGE_SIZE, &mem) == 0);
	must(bln_create(mem, &options, &dev) == 0);
	while (in.size > 0) {
		step(mem, dev, &in);
		check(mem, dev);
	}
	bln_destroy(dev);
	gm_destroy(mem);
	return 0;
}
