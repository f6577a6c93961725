/* SPDX-License-Identifier: MIT */
/*
 * Queues and memory, as they come and go.
 *
 * An emulated guest sets its queues up once. A vhost-user front end stops them at any
 * index, brings its own eventfds, exchanges the memory map while the guest runs, and goes on:
 *
 *   start    a device half over the ring as it lies in guest memory, at a given index
 *   stop     passes end after the chain in hand; with the queue's lock taken nobody touches
 *            the ring any more, and everything before the returned index is used; no page
 *            leaves guest memory until both PFN queues run again (lazy.c)
 *   memory   only while all queues are stopped, so a device half never outlives the map
 *            whose addresses it remembers
 *
 * The queue's lock is what makes "exactly" true: a pass holds it from the first descriptor
 * to the call.
 */
#include "balloon_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#include "barrier.h"

#define PFNS_MAX (1ull << 32) /* more cannot be named on the ring (T-17) */

/* Offsets in the available and the used ring (table 3.8). */
#define RING_IDX 2u

/* ---- starting and stopping ---------------------------------------------- */

uint32_t bln_queue_size_max(const struct bln_device *dev, unsigned queue)
{
	uint64_t features = dev->offer.features;

	if (queue >= BLN_QUEUES)
		return 0;
	/* What counts is what was agreed on, and before that what is on offer (BAL-DEV-01). */
	if (bln_status(dev) & BLN_STATUS_FEATURES_OK)
		features = bln_driver_features(dev);
	if (queue == QUEUE_STATS && !(features & BLN_F_STATS_VQ))
		return 0; /* TRN-03 */
	return dev->offer.queue_size_max;
}

/* control is held, which keeps q->vq as it is. */
static void update_lazy(struct bln_device *dev)
{
	pthread_mutex_lock(&dev->pages_lock);
	bln_lazy_update(dev);
	pthread_mutex_unlock(&dev->pages_lock);
}

/* base is NULL for a fresh ring: both indices are 0 and nothing was signalled. */
static int start(struct bln_device *dev, unsigned queue, const struct vq_config *config,
		 const uint16_t *base)
{
	struct vq_config negotiated = *config;
	struct vq_device *vq;
	struct bln_queue *q;
	uint16_t used = 0;
	int rc;

	if (queue >= BLN_QUEUES)
		return -EINVAL;
	q = &dev->queues[queue];
	pthread_mutex_lock(&dev->control);
	pthread_mutex_lock(&q->lock);
	/* control keeps status and vq as they are, except that NEEDS_RESET may appear. */
	if (!(bln_status(dev) & BLN_STATUS_FEATURES_OK) || q->vq) {
		rc = -EBUSY;
		goto out;
	}
	if (config->size > bln_queue_size_max(dev, queue)) {
		rc = -EINVAL;
		goto out;
	}
	negotiated.features = bln_driver_features(dev);
	rc = vq_device_create(dev->mem, &negotiated, &vq);
	if (rc)
		goto out;
	if (base) {
		/* The area was checked by the creation. A wrong index harms the guest alone. */
		used = le16_load((uint8_t *)gm_at(dev->mem, config->device_addr, 4) + RING_IDX);
		vq_device_set_base(vq, *base, used);
	}

	pthread_mutex_lock(&dev->state);
	q->vq = vq;
	q->size = config->size;
	q->avail_idx_addr = config->driver_addr + RING_IDX;
	q->holding = false;
	q->next = BLN_STEP_POP;
	atomic_set(q->shown, used);
	atomic_set(q->count.popped, 0);
	atomic_set(q->count.pushed, 0);
	atomic_set(q->count.calls, 0);
	atomic_set(q->count.calls_suppressed, 0);
	/* Late, but then it must be looked at as all others were (T-37). */
	if (dev->status & BLN_STATUS_DRIVER_OK)
		bln_poke(dev, queue);
	pthread_mutex_unlock(&dev->state);
	update_lazy(dev);
out:
	pthread_mutex_unlock(&q->lock);
	pthread_mutex_unlock(&dev->control);
	return rc;
}

int bln_queue_enable(struct bln_device *dev, unsigned queue, const struct vq_config *config)
{
	return start(dev, queue, config, NULL);
}

int bln_queue_start(struct bln_device *dev, unsigned queue, const struct vq_config *config,
		    uint16_t base)
{
	return start(dev, queue, config, &base);
}

int bln_queue_stop(struct bln_device *dev, unsigned queue)
{
	struct bln_queue *q;
	int rc = -EINVAL;

	if (queue >= BLN_QUEUES)
		return -EINVAL;
	q = &dev->queues[queue];
	pthread_mutex_lock(&dev->control);
	bln_hurry(dev, true); /* other queues' passes poke themselves and go on */
	pthread_mutex_lock(&q->lock);
	if (q->vq) {
		rc = vq_device_avail_base(q->vq);
		/* The buffer that is held came last, since an older one is given back for a newer. */
		if (q->holding)
			rc = (uint16_t)(rc - 1);
		/* Likewise what was popped by bln_step() and is not used yet. */
		if (q->next > BLN_STEP_POP && q->next <= BLN_STEP_USE)
			rc = (uint16_t)(rc - 1);
		q->holding = false;
		q->next = BLN_STEP_POP;
		pthread_mutex_lock(&dev->state);
		vq_device_destroy(q->vq);
		q->vq = NULL;
		pthread_mutex_unlock(&dev->state);
		update_lazy(dev);
	}
	pthread_mutex_unlock(&q->lock);
	bln_hurry(dev, false);
	pthread_mutex_unlock(&dev->control);
	return rc;
}

/* ---- eventfds ----------------------------------------------------------- */

int bln_kick_fd(const struct bln_device *dev, unsigned queue)
{
	return queue < BLN_QUEUES ? dev->queues[queue].kick_fd : -EINVAL;
}

int bln_call_fd(const struct bln_device *dev, unsigned queue)
{
	return queue < BLN_QUEUES ? dev->queues[queue].call_fd : -EINVAL;
}

int bln_follow(struct bln_device *dev, int fd, unsigned mark)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u32 = mark};

	return epoll_ctl(dev->kicks_fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

/* Neither pipe nor socket may make us wait; an eventfd keeps its flags, which its reader shares. */
static int tame(int fd)
{
	struct stat st;
	int flags;

	if (fstat(fd, &st))
		return -errno;
	if (!S_ISFIFO(st.st_mode) && !S_ISSOCK(st.st_mode))
		return 0;
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || (!(flags & O_NONBLOCK) && fcntl(fd, F_SETFL, flags | O_NONBLOCK)))
		return -errno;
	return 0;
}

int bln_queue_set_fd(struct bln_device *dev, unsigned queue, enum bln_fd which, int fd)
{
	struct bln_queue *q;
	int rc, old;

	if (queue >= BLN_QUEUES || (unsigned)which >= BLN_FDS || fd < -1)
		return -EINVAL;
	rc = fd < 0 ? 0 : tame(fd);
	if (rc)
		return rc;
	q = &dev->queues[queue];
	pthread_mutex_lock(&q->lock);
	pthread_mutex_lock(&dev->state);
	if (fd >= 0 && which == BLN_FD_KICK)
		rc = bln_follow(dev, fd, BLN_QUEUES + queue);
	if (rc == 0) {
		old = q->outside[which];
		q->outside[which] = fd;
		if (old >= 0) {
			/* The front end keeps its copy open, so closing ours would not end the watch. */
			if (which == BLN_FD_KICK)
				epoll_ctl(dev->kicks_fd, EPOLL_CTL_DEL, old, NULL);
			close(old);
		}
		/* What was kicked for or called for between the two would be lost with the old one. */
		if (q->vq && which == BLN_FD_KICK)
			bln_poke(dev, queue);
		else if (q->vq && which == BLN_FD_CALL && fd >= 0)
			bln_call(dev, q);
	}
	pthread_mutex_unlock(&dev->state);
	pthread_mutex_unlock(&q->lock);
	return rc;
}

/* ---- memory ------------------------------------------------------------- */

uint64_t bln_record_pages(const struct gm *mem)
{
	const uint64_t end = gm_pfn_end(mem);

	return end < PFNS_MAX ? end : PFNS_MAX;
}

/* Takes the record over as far as the new one reaches; returns how many pages fell out. */
static uint64_t copy_record(const struct bln_device *dev, uint64_t *held, uint64_t pages)
{
	uint64_t dropped = 0;

	for (uint64_t i = 0; i <= dev->pages / 64; i++) {
		uint64_t word = dev->held[i], kept = word;

		if (!word) /* the rule; what was never written costs no memory */
			continue;
		if (i * 64 >= pages)
			kept = 0;
		else if (pages - i * 64 < 64)
			kept &= (1ull << (pages - i * 64)) - 1;
		dropped += (uint64_t)__builtin_popcountll(word & ~kept);
		if (kept)
			held[i] = kept;
	}
	return dropped;
}

int bln_set_memory(struct bln_device *dev, struct gm *mem)
{
	const uint64_t pages = bln_record_pages(mem);
	uint64_t *held = calloc((size_t)(pages / 64 + 1), sizeof(*held));
	struct bln_owed owed;
	uint64_t dropped;
	int rc = 0;

	if (!held || bln_owed_make(&owed, pages)) {
		free(held);
		return -ENOMEM;
	}
	pthread_mutex_lock(&dev->control);
	for (unsigned i = 0; i < BLN_QUEUES; i++)
		pthread_mutex_lock(&dev->queues[i].lock);
	pthread_mutex_lock(&dev->pages_lock);
	pthread_mutex_lock(&dev->state);

	for (unsigned i = 0; i < BLN_QUEUES; i++) {
		if (dev->queues[i].vq)
			rc = -EBUSY;
	}
	if (rc == 0) {
		dropped = copy_record(dev, held, pages);
		__atomic_fetch_sub(&dev->count.held_pages, dropped, __ATOMIC_RELAXED);
		free(dev->held);
		dev->held = held;
		held = NULL;
		dev->pages = pages;
		dev->mem = mem;
		discard_set_memory(dev->discard, mem);
		bln_lazy_set_memory(dev, &owed); /* nothing flies while a queue is stopped */
		if ((dev->status & BLN_STATUS_FEATURES_OK) &&
		    (dev->driver_features & BLN_F_MUST_TELL_HOST))
			discard_set_held(dev->discard, dev->held); /* BAL-DEV-06 */
	}

	pthread_mutex_unlock(&dev->state);
	pthread_mutex_unlock(&dev->pages_lock);
	for (unsigned i = BLN_QUEUES; i-- > 0;)
		pthread_mutex_unlock(&dev->queues[i].lock);
	pthread_mutex_unlock(&dev->control);
	free(held);
	bln_owed_free(&owed);
	return rc;
}
