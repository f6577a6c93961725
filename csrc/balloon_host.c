/* SPDX-License-Identifier: MIT */
/*
 * The host's side of the device: its wish, the numbers it watches, the trouble it
 * injects. None of these calls waits for a pass over a queue, however long that
 * takes: numbers come from relaxed atomics, and the state lock is held only for
 * moments. So several numbers read together need not belong to one moment.
 */
#include "balloon_internal.h"

#include <errno.h>

#include "barrier.h"

/* ---- the balloon's size -------------------------------------------------- */

int bln_set_target(struct bln_device *dev, uint32_t pages)
{
	int rc = 0;

	pthread_mutex_lock(&dev->state);
	if (pages > gm_size(dev->mem) >> GM_PAGE_SHIFT) {
		rc = -EINVAL;
	} else if (pages != dev->num_pages || pages != dev->actual) {
		/* New generation before the notification: who is woken reads it (TRN-01). The same
		 * target again is no change, and asks a driver anew that has fallen short of it. */
		if (pages != dev->num_pages)
			atomic_set(dev->generation, dev->generation + 1);
		atomic_set(dev->num_pages, pages);
		/* After a reset there is nobody to tell; a new driver reads it anyway (CORE-DEV-11). */
		if (dev->status != 0)
			bln_config_changed(dev);
	}
	pthread_mutex_unlock(&dev->state);
	return rc;
}

uint32_t bln_target(const struct bln_device *dev)
{
	return atomic_get(dev->num_pages);
}

uint32_t bln_actual(const struct bln_device *dev)
{
	return atomic_get(dev->actual);
}

uint64_t bln_actual_writes(const struct bln_device *dev)
{
	return atomic_get(dev->actual_writes);
}

int bln_actual_fd(const struct bln_device *dev)
{
	return dev->actual_fd;
}

uint32_t bln_actual_take(struct bln_device *dev)
{
	uint32_t actual;

	pthread_mutex_lock(&dev->state);
	if (dev->actual_told)
		bln_lower(dev->actual_fd);
	dev->actual_told = false;
	actual = dev->actual;
	pthread_mutex_unlock(&dev->state);
	return actual;
}

/* ---- numbers for the host ----------------------------------------------- */

/* Some twenty loads and no lock: it may be polled as often as one likes. */
void bln_counters_get(struct bln_device *dev, struct bln_counters *out)
{
	const struct bln_counters *count = &dev->count;

	out->requests = atomic_get(count->requests);
	out->inflated_pages = atomic_get(count->inflated_pages);
	out->deflated_pages = atomic_get(count->deflated_pages);
	out->pfns_duplicate = atomic_get(count->pfns_duplicate);
	out->pfns_out_of_range = atomic_get(count->pfns_out_of_range);
	out->pfns_never_inflated = atomic_get(count->pfns_never_inflated);
	out->odd_bytes = atomic_get(count->odd_bytes);
	out->kicks = atomic_get(count->kicks);
	out->calls = atomic_get(count->calls);
	out->calls_suppressed = atomic_get(count->calls_suppressed);
	out->config_changes = atomic_get(count->config_changes);
	out->resets = atomic_get(count->resets);
	out->stats_requests = atomic_get(count->stats_requests);
	out->held_pages = atomic_get(count->held_pages);
	out->owed_pages = atomic_get(count->owed_pages);
	out->lazy_pages = atomic_get(count->lazy_pages);
	discard_counters_get(dev->discard, &out->discard);
}

int bln_queue_counters(struct bln_device *dev, unsigned queue, struct vq_device_counters *out)
{
	struct bln_queue *q;
	int rc = -EINVAL;

	if (queue >= BLN_QUEUES)
		return -EINVAL;
	/* From our copy: the device half itself belongs to the pass, which may be long. */
	q = &dev->queues[queue];
	pthread_mutex_lock(&dev->state);
	if (q->vq) {
		out->popped = atomic_get(q->count.popped);
		out->pushed = atomic_get(q->count.pushed);
		out->calls = atomic_get(q->count.calls);
		out->calls_suppressed = atomic_get(q->count.calls_suppressed);
		rc = 0;
	}
	pthread_mutex_unlock(&dev->state);
	return rc;
}

int bln_queue_depth(struct bln_device *dev, unsigned queue)
{
	const uint16_t *avail_idx;
	struct bln_queue *q;
	int depth = -EINVAL;

	if (queue >= BLN_QUEUES)
		return -EINVAL;
	q = &dev->queues[queue];
	pthread_mutex_lock(&dev->state);
	if (q->vq) {
		/* The area was checked when the queue was enabled. A number only, so relaxed. */
		avail_idx = gm_at(dev->mem, q->avail_idx_addr, sizeof(*avail_idx));
		depth = (uint16_t)(le16_load(avail_idx) - atomic_get(q->shown));
		if ((uint32_t)depth > q->size)
			depth = 0; /* a nonsense index */
	}
	pthread_mutex_unlock(&dev->state);
	return depth;
}

/* Statistics are held on purpose, so a service time would say nothing. */
int bln_latency(struct bln_device *dev, unsigned queue, struct histogram *out)
{
	if (queue != QUEUE_INFLATE && queue != QUEUE_DEFLATE)
		return -EINVAL;
	histogram_copy(&dev->queues[queue].latency, out);
	return 0;
}

/* One bit of one word: exact for the page. The lock only keeps the record where it is. */
int bln_holds(struct bln_device *dev, uint64_t pfn)
{
	int rc = -EINVAL;

	pthread_mutex_lock(&dev->state);
	if (pfn < dev->pages)
		rc = (atomic_get(dev->held[pfn / 64]) >> (pfn % 64)) & 1;
	pthread_mutex_unlock(&dev->state);
	return rc;
}

enum vq_broken bln_broken(struct bln_device *dev, unsigned *queue)
{
	enum vq_broken reason;

	pthread_mutex_lock(&dev->state);
	reason = dev->broken;
	if (reason != VQ_OK)
		*queue = dev->broken_queue;
	pthread_mutex_unlock(&dev->state);
	return reason;
}

/* ---- faults ------------------------------------------------------------- */

void bln_set_faults(struct bln_device *dev, const struct bln_faults *faults)
{
	uint32_t freed;

	pthread_mutex_lock(&dev->state);
	freed = dev->faults.stall_queues & ~faults->stall_queues;
	atomic_set(dev->faults.ack_delay_ns, faults->ack_delay_ns);
	atomic_set(dev->faults.stall_queues, faults->stall_queues);
	atomic_set(dev->faults.lose_kicks, faults->lose_kicks);
	atomic_set(dev->faults.lose_calls, faults->lose_calls);
	atomic_set(dev->faults.wrong_used_len, faults->wrong_used_len);
	discard_fail_next(dev->discard, faults->fail_discards);
	/* The kicks for a stalled queue came and went, so it must be looked at now. */
	for (unsigned i = 0; i < BLN_QUEUES; i++) {
		if ((freed & (1u << i)) && dev->queues[i].vq)
			bln_poke(dev, i);
	}
	pthread_mutex_unlock(&dev->state);
	bln_delay_wake(dev);
}

/* What is left of each: the counted ones go down as they strike. */
void bln_faults_get(struct bln_device *dev, struct bln_faults *out)
{
	out->ack_delay_ns = atomic_get(dev->faults.ack_delay_ns);
	out->stall_queues = atomic_get(dev->faults.stall_queues);
	out->lose_kicks = atomic_get(dev->faults.lose_kicks);
	out->lose_calls = atomic_get(dev->faults.lose_calls);
	out->wrong_used_len = atomic_get(dev->faults.wrong_used_len);
	out->fail_discards = (uint32_t)discard_fail_left(dev->discard);
}
