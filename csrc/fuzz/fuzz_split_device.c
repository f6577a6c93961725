/* SPDX-License-Identifier: MIT */
/*
 * The device half against a driver that writes anything anywhere.
 *
 * Input: 8 bytes of set-up, then the bytes of the guest's memory from the
 * descriptor table on, then calls. A call byte may also be a store by the
 * "guest", so that memory changes between two calls.
 *
 * Invariants:
 *   every segment that pop() hands out lies wholly inside guest memory;
 *   at most min(chain_max, N) segments, readable ones first, none empty, sums right;
 *   descriptor table, available ring and buffers are never written;
 *   a broken queue says -EIO for ever, with its first reason;
 *   no more than N chains come out of one refresh of the index, so a drain ends.
 */
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "chain.h"
#include "guest_memory.h"
#include "input.h"
#include "virtqueue.h"

#define RING_BYTES 2048u /* region 0: descriptor table and available ring */
#define USED_ADDR  0x2000u
#define DATA_ADDR  0x10000u
#define DATA_BYTES 4096u

static void add_memory(struct gm *mem, uint64_t addr, uint64_t bytes)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC);

	must(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
	must(gm_add_region(mem, addr, bytes, fd, 0) == 0);
}

static void check_chain(const struct gm *mem, const struct vq_chain *chain, uint32_t limit)
{
	uint64_t readable = 0, writable = 0;
	struct vq_reader reader;
	uint8_t byte;

	must(chain->count <= limit && chain->readable <= chain->count);
	for (uint32_t i = 0; i < chain->count; i++) {
		const struct vq_iovec *segment = &chain->segments[i];

		must(segment->len > 0);
		must(gm_at(mem, segment->guest_addr, segment->len) == segment->base);
		if (i < chain->readable)
			readable += segment->len;
		else
			writable += segment->len;
	}
	must(readable == chain->readable_bytes && writable == chain->writable_bytes);
	must(readable + writable <= 1ull << 32);
	/* The first and the last byte can be read; a sanitizer watches. */
	vq_reader_init(&reader, chain);
	must(vq_reader_left(&reader) == readable);
	must(vq_read(&reader, &byte, 1) == (readable ? 1 : 0));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct gm *mem; /* made once: three memfds an input would be all we measure */
	static uint8_t shadow[RING_BYTES], shadow_data[DATA_BYTES];
	static const uint8_t zero[64];
	struct vq_config config = {.desc_addr = 0, .device_addr = USED_ADDR};
	struct input in = {data, size};
	enum vq_broken broken = VQ_OK;
	struct vq_device *vq;
	struct vq_layout layout;
	uint8_t *ring, *used, *buffers;
	uint32_t limit;

	if (!mem) {
		must(gm_create_empty(&mem) == 0);
		add_memory(mem, 0, RING_BYTES);
		add_memory(mem, USED_ADDR, 4096);
		add_memory(mem, DATA_ADDR, DATA_BYTES);
	}
	ring = gm_at(mem, 0, RING_BYTES);
	used = gm_at(mem, USED_ADDR, 4096);
	buffers = gm_at(mem, DATA_ADDR, DATA_BYTES);

	config.size = 1u << take(&in) % 7; /* 1..64: the table is 1 KiB at most */
	config.driver_addr = 16 * config.size;
	config.features = VQ_F_VERSION_1;
	if (take(&in) & 1)
		config.features |= VQ_F_EVENT_IDX;
	if (take(&in) & 3)
		config.features |= VQ_F_INDIRECT_DESC;
	config.chain_max = take(&in) % 80;
	limit = config.chain_max && config.chain_max < config.size ? config.chain_max : config.size;
	must(vq_layout(config.features, config.size, &layout) == 0);

	memset(ring, 0, RING_BYTES);
	memset(used, 0, 4096);
	memset(buffers, 0, DATA_BYTES);
	must(vq_device_create(mem, &config, &vq) == 0);
	if (take(&in) & 1) {
		uint16_t base = (uint16_t)(take(&in) << 8 | take(&in));

		vq_device_set_base(vq, base, base);
		memcpy(ring + config.driver_addr + 2, &base, 2); /* little-endian hosts only */
	}

	/* Descriptors in short form, so that inputs are dense: which region, offset, length,
	 * flags, next. A quarter of them verbatim. */
	for (uint32_t i = 0; i < config.size + 16 && in.size >= 8; i++) {
		uint8_t *at = i < config.size ? ring + 16 * i : buffers + 16 * (i - config.size);
		uint8_t how = take(&in);

		if (how % 4 == 0 && in.size >= 16) {
			memcpy(at, in.data, 16);
			in.data += 16;
			in.size -= 16;
			continue;
		}
		uint64_t addr =
		    (how & 4 ? 0 : DATA_ADDR) + (uint64_t)take(&in) * (how & 8 ? 1 : 16);
		uint32_t len = how & 16 ? take(&in) : 16u * (take(&in) % 17);
		uint16_t flags = take(&in) & 7;
		uint16_t next = take(&in) % 70;

		memcpy(at, &addr, 8);
		memcpy(at + 8, &len, 4);
		memcpy(at + 12, &flags, 2);
		memcpy(at + 14, &next, 2);
	}

	while (in.size > 0) {
		uint8_t call = take(&in);
		uint8_t argument = take(&in);
		uint8_t *avail = ring + config.driver_addr;
		struct vq_chain chain;
		unsigned pops = 0;
		int rc = 0;

		switch (call % 8) {
		case 0: /* the guest stores a byte somewhere in its areas */
			ring[(argument << 4 | call >> 4) %
			     (16 * config.size + layout.driver_bytes)] = take(&in);
			continue;
		case 1: /* or one into a buffer, where tables are */
			buffers[argument] = take(&in);
			continue;
		case 2: { /* or offers a head as a driver does */
			uint16_t idx, head = argument % (config.size + (call > 250));

			memcpy(&idx, avail + 2, 2);
			memcpy(avail + 4 + 2 * (idx % config.size), &head, 2);
			idx++;
			memcpy(avail + 2, &idx, 2);
			continue;
		}
		default:
			break;
		}

		memcpy(shadow, ring, RING_BYTES);
		memcpy(shadow_data, buffers, DATA_BYTES);
		switch (call % 8) {
		case 3:
			vq_device_disable_kicks(vq);
			break;
		case 4:
			vq_device_enable_kicks(vq);
			break;
		case 5:
			must(vq_device_pending(vq) <= config.size);
			vq_device_call_needed(vq);
			break;
		default: /* a drain */
			while ((rc = vq_device_pop(vq, &chain)) == 1) {
				must(broken == VQ_OK);
				must(++pops <= config.size);
				check_chain(mem, &chain, limit);
				vq_device_push(vq, chain.head, argument);
			}
			must(rc == 0 || rc == -EIO);
			must((rc == -EIO) == (vq_device_broken(vq) != VQ_OK));
			must(vq_device_publish(vq) == pops);
			break;
		}
		must(memcmp(shadow, ring, RING_BYTES) == 0);
		must(memcmp(shadow_data, buffers, DATA_BYTES) == 0);
		must(memcmp(used + layout.device_bytes, zero, 64) == 0);
		must(broken == VQ_OK || broken == vq_device_broken(vq));
		broken = vq_device_broken(vq);
	}
	vq_device_destroy(vq);
	return 0;
}
