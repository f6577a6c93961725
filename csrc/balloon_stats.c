/* SPDX-License-Identifier: MIT */
/*
 * The statistics queue. The driver always leaves one buffer with the device; the
 * device gives it back when it wants fresh numbers, and gets it again, filled:
 *
 *   driver   buffer 0 ........................ buffer 1 .............
 *   device            [reads, holds .........] used     [reads, holds
 *                                            ^ bln_stats_request()    (BAL-DEV-07)
 *
 * A buffer is a packed array read as one byte stream (T-28):
 *
 *   byte   0  1 | 2 ........ 9 | 10 11 | 12 ...
 *          tag  | value        | tag   | value         le16, le64: 10 bytes (T-01)
 *
 * Entries come in any order (BAL-DEV-09), tags that nobody knows are kept as they
 * are and trouble nobody (BAL-DEV-08, T-47), and the last of several entries with
 * one tag counts. A buffer without a whole entry is held like any other, but is no
 * news: what was known stays (T-03).
 */
#include "balloon_internal.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "barrier.h"
#include "chain.h"

#define ENTRY_BYTES  10u /* le16 tag, le64 value (BAL-DRV-27) */
#define READ_ENTRIES 64u /* read at a time */

static void keep(struct bln_stats *stats, uint16_t tag, uint64_t value)
{
	uint32_t i;

	for (i = 0; i < stats->count && stats->entries[i].tag != tag; i++)
		;
	if (i == BLN_STATS_MAX)
		return;
	if (i == stats->count)
		stats->count++;
	stats->entries[i] = (struct bln_stat){.tag = tag, .value = value};
}

/* Reads the whole chain; fills count, malformed and entries. False if a reset cut it short. */
static bool parse(struct bln_device *dev, const struct vq_chain *chain, struct bln_stats *stats)
{
	uint8_t bytes[READ_ENTRIES * ENTRY_BYTES];
	struct vq_reader reader;
	size_t n, at;

	stats->count = 0;
	vq_reader_init(&reader, chain);
	do {
		n = vq_read(&reader, bytes, sizeof(bytes));
		for (at = 0; at + ENTRY_BYTES <= n; at += ENTRY_BYTES) {
			uint16_t tag;
			uint64_t value;

			memcpy(&tag, bytes + at, sizeof(tag));
			memcpy(&value, bytes + at + sizeof(tag), sizeof(value));
			keep(stats, le16toh(tag), le64toh(value));
		}
		if (atomic_get(dev->resetting))
			return false;
	} while (n == sizeof(bytes));
	stats->malformed = (uint32_t)(n - at);
	return true;
}

bool bln_stats_chain(struct bln_device *dev, struct bln_queue *q, const struct vq_chain *chain)
{
	const uint16_t head = chain->head;
	struct bln_stats stats;
	struct timespec t;

	if (!parse(dev, chain, &stats))
		return false;
	clock_gettime(CLOCK_REALTIME, &t);
	pthread_mutex_lock(&dev->state);
	dev->stats.malformed = stats.malformed;
	if (stats.count > 0) {
		dev->stats.updates++;
		dev->stats.time_ns = (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
		dev->stats.count = stats.count;
		memcpy(dev->stats.entries, stats.entries, stats.count * sizeof(stats.entries[0]));
	}
	pthread_mutex_unlock(&dev->state);

	/* A second buffer is against the rules (BAL-DRV-22). Keep the newer, so the device
	 * never holds more than one. */
	if (q->holding) {
		if (!bln_ack_delay(dev))
			return false;
		bln_acknowledge(dev, q, q->held_head);
	}
	q->holding = true;
	q->held_head = head;
	return true;
}

int bln_stats_request(struct bln_device *dev)
{
	struct bln_queue *q = &dev->queues[QUEUE_STATS];
	int rc = -EAGAIN;

	if (!(bln_driver_features(dev) & BLN_F_STATS_VQ))
		return -EOPNOTSUPP;
	pthread_mutex_lock(&q->lock);
	/* Holding implies enabled and past DRIVER_OK; a broken ring is left alone. No injected
	 * delay here: it is to hold up the driver, not the host. */
	if (q->holding && vq_device_broken(q->vq) == VQ_OK) {
		q->holding = false;
		atomic_add(dev->count.stats_requests, 1);
		bln_acknowledge(dev, q, q->held_head);
		if (bln_call_wanted(dev, q))
			bln_call(dev, q);
		rc = 0;
	}
	pthread_mutex_unlock(&q->lock);
	return rc;
}

void bln_stats_get(struct bln_device *dev, struct bln_stats *out)
{
	pthread_mutex_lock(&dev->state);
	*out = dev->stats;
	pthread_mutex_unlock(&dev->state);
}
