/* SPDX-License-Identifier: MIT */
/*
 * The device's registers, as a transport reaches them. Queues and memory come and go
 * in balloon_rings.c and are worked off in balloon_queues.c and balloon_stats.c, the
 * host's side is balloon_host.c; balloon_internal.h has the layout and the order of locks.
 *
 * Life, as the status register tells it:
 *
 *   0 -> ACKNOWLEDGE -> DRIVER -> FEATURES_OK -> (queues are enabled) -> DRIVER_OK
 *
 *   FEATURES_OK   reads back clear unless the accepted set is valid (CORE-DEV-07)
 *   DRIVER_OK     every enabled queue is looked at once, since buffers may have
 *                 been put there before (T-37)
 *   NEEDS_RESET   set by the device when a ring is broken
 *   0             reset, from any state
 *
 * Reset: passes are told to end at once, then every queue's lock is taken. With
 * all of them in hand no ring is being touched; the device halves are thrown away
 * and status becomes 0 last of all, so whoever reads 0 knows that guest memory is
 * left alone (CORE-DEV-11). A request in work is not acknowledged then. The host's
 * wish (num_pages) survives; what the driver said and the page record do not (T-14).
 *
 * Configuration bytes are made on reading, from the fields; a driver that writes
 * changes only the bytes of `actual` among those it wrote.
 */
#include "balloon_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "barrier.h"

/* What this device can honour (CORE-DEV-08). None of them needs another one (CORE-DEV-05). */
#define IMPLEMENTED                                                                                \
	(BLN_F_MUST_TELL_HOST | BLN_F_STATS_VQ | BLN_F_DEFLATE_ON_OOM | VQ_F_INDIRECT_DESC |       \
	 VQ_F_EVENT_IDX | VQ_F_VERSION_1)

/* Bits that a driver may set. */
#define STATUS_OF_DRIVER                                                                           \
	(BLN_STATUS_ACKNOWLEDGE | BLN_STATUS_DRIVER | BLN_STATUS_DRIVER_OK |                       \
	 BLN_STATUS_FEATURES_OK | BLN_STATUS_FAILED)

/* Offsets in configuration space (3.3). */
#define CONFIG_NUM_PAGES 0u
#define CONFIG_ACTUAL    4u

void bln_raise(int fd)
{
	const uint64_t one = 1;
	ssize_t rc;

	/* Fails only when 2^64 - 2 events were never read; then it is raised anyway. */
	do {
		rc = write(fd, &one, sizeof(one));
	} while (rc < 0 && errno == EINTR);
}

void bln_lower(int fd)
{
	uint64_t value;
	ssize_t rc;

	do {
		rc = read(fd, &value, sizeof(value));
	} while (rc < 0 && errno == EINTR);
}

void bln_config_changed(struct bln_device *dev)
{
	atomic_add(dev->count.config_changes, 1);
	bln_raise(dev->config_fd);
}

void bln_poke(struct bln_device *dev, unsigned queue)
{
	atomic_add(dev->queues[queue].pokes, 1);
	bln_raise(dev->queues[queue].kick_fd);
}

/* ---- making and unmaking ------------------------------------------------ */

/* Non-blocking: neither side may hang on the other one's notification. */
static int open_event(int *fd)
{
	*fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return *fd < 0 ? -errno : 0;
}

static void close_event(int fd)
{
	if (fd >= 0)
		close(fd);
}

/* What of a queue lives as long as the device; the rest comes with bln_queue_start(). */
static int queue_init(struct bln_device *dev, unsigned queue)
{
	struct bln_queue *q = &dev->queues[queue];
	int rc;

	histogram_init(&q->latency);
	if (queue != QUEUE_STATS) {
		q->pfns = malloc(PIECE_PFNS * sizeof(*q->pfns));
		if (!q->pfns)
			return -ENOMEM;
	}
	rc = open_event(&q->kick_fd);
	if (rc == 0)
		rc = open_event(&q->call_fd);
	return rc ? rc : bln_follow(dev, q->kick_fd, queue);
}

static void locks_init(struct bln_device *dev)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&dev->control, NULL);
	pthread_mutex_init(&dev->pages_lock, NULL);
	pthread_mutex_init(&dev->state, NULL);
	pthread_mutex_init(&dev->delay, NULL);
	for (unsigned i = 0; i < BLN_QUEUES; i++)
		pthread_mutex_init(&dev->queues[i].lock, NULL);
	/* A delay must not change its length when the clock of the host is set. */
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&dev->delay_over, &attr);
	pthread_cond_init(&dev->lazy.wake, &attr);
	pthread_cond_init(&dev->lazy.changed, &attr);
	pthread_condattr_destroy(&attr);
}

int bln_create(struct gm *mem, const struct bln_options *options, struct bln_device **out)
{
	struct bln_device *dev;
	uint32_t size;
	int rc;

	if (!mem || (options->features & ~IMPLEMENTED)) /* CORE-DEV-08 */
		return -EINVAL;
	size = options->queue_size_max;
	if (size == 0 || size > VQ_SIZE_MAX || (size & (size - 1))) /* TRN-04 */
		return -EINVAL;

	dev = calloc(1, sizeof(*dev));
	if (!dev)
		return -ENOMEM;
	locks_init(dev);
	dev->config_fd = -1;
	dev->actual_fd = -1;
	dev->kicks_fd = -1;
	for (unsigned i = 0; i < BLN_QUEUES; i++) {
		dev->queues[i].kick_fd = -1;
		dev->queues[i].call_fd = -1;
		for (unsigned which = 0; which < BLN_FDS; which++)
			dev->queues[i].outside[which] = -1;
	}
	dev->mem = mem;
	dev->offer = *options;
	dev->offer.features |= VQ_F_VERSION_1; /* CORE-DEV-15 */

	rc = discard_create(mem, options->discard, &dev->discard);
	if (rc)
		goto fail;
	rc = -ENOMEM;
	dev->pages = bln_record_pages(mem);
	dev->held = calloc((size_t)(dev->pages / 64 + 1), sizeof(*dev->held));
	if (!dev->held)
		goto fail;
	rc = bln_lazy_create(dev);
	if (rc)
		goto fail;
	dev->kicks_fd = epoll_create1(EPOLL_CLOEXEC);
	rc = dev->kicks_fd < 0 ? -errno : open_event(&dev->config_fd);
	if (rc == 0)
		rc = open_event(&dev->actual_fd);
	for (unsigned i = 0; i < BLN_QUEUES && rc == 0; i++)
		rc = queue_init(dev, i);
	if (rc)
		goto fail;
	*out = dev;
	return 0;

fail:
	bln_destroy(dev);
	return rc;
}

void bln_destroy(struct bln_device *dev)
{
	if (!dev)
		return;
	for (unsigned i = 0; i < BLN_QUEUES; i++) {
		struct bln_queue *q = &dev->queues[i];

		vq_device_destroy(q->vq);
		free(q->pfns);
		close_event(q->kick_fd);
		close_event(q->call_fd);
		for (unsigned which = 0; which < BLN_FDS; which++)
			close_event(q->outside[which]);
		pthread_mutex_destroy(&q->lock);
	}
	close_event(dev->config_fd);
	close_event(dev->actual_fd);
	close_event(dev->kicks_fd);
	bln_lazy_destroy(dev);
	discard_destroy(dev->discard);
	free(dev->held);
	pthread_cond_destroy(&dev->lazy.changed);
	pthread_cond_destroy(&dev->lazy.wake);
	pthread_cond_destroy(&dev->delay_over);
	pthread_mutex_destroy(&dev->delay);
	pthread_mutex_destroy(&dev->state);
	pthread_mutex_destroy(&dev->pages_lock);
	pthread_mutex_destroy(&dev->control);
	free(dev);
}

/* ---- features and status ------------------------------------------------ */

uint64_t bln_features(const struct bln_device *dev)
{
	return dev->offer.features;
}

uint64_t bln_driver_features(const struct bln_device *dev)
{
	return atomic_get(dev->driver_features);
}

int bln_set_driver_features(struct bln_device *dev, uint64_t features)
{
	int rc = -EBUSY; /* CORE-DRV-22 */

	pthread_mutex_lock(&dev->state);
	if (!(dev->status & BLN_STATUS_FEATURES_OK)) {
		atomic_set(dev->driver_features, features);
		rc = 0;
	}
	pthread_mutex_unlock(&dev->state);
	return rc;
}

uint8_t bln_status(const struct bln_device *dev)
{
	/* Pairs with the release in reset(): who reads 0 sees the queues gone (CORE-DEV-11). */
	return __atomic_load_n(&dev->status, __ATOMIC_ACQUIRE);
}

/* Is the accepted set one that this device can work with? */
static bool features_valid(const struct bln_device *dev)
{
	const uint64_t accepted = dev->driver_features;
	const uint64_t offered = dev->offer.features;

	if (accepted & ~offered) /* CORE-DEV-07 */
		return false;
	if (!(accepted & VQ_F_VERSION_1)) /* CORE-DEV-16, T-12 */
		return false;
	if (dev->offer.strict_tell_host && (offered & ~accepted & BLN_F_MUST_TELL_HOST))
		return false; /* BAL-DEV-03 */
	return true;
}

/* Takes the device back to its first state; control is held. */
static void reset(struct bln_device *dev)
{
	atomic_add(dev->resetting, 1);
	bln_delay_wake(dev);
	for (unsigned i = 0; i < BLN_QUEUES; i++)
		pthread_mutex_lock(&dev->queues[i].lock);
	pthread_mutex_lock(&dev->pages_lock);
	bln_lazy_forget(dev); /* no hole once status reads 0: the pages are the guest's again */
	pthread_mutex_lock(&dev->state);

	for (unsigned i = 0; i < BLN_QUEUES; i++) {
		struct bln_queue *q = &dev->queues[i];

		vq_device_destroy(q->vq);
		q->vq = NULL;
		q->holding = false; /* dropped and not used (T-14) */
		q->next = BLN_STEP_POP;
		bln_lower(q->call_fd);
	}
	bln_lower(dev->config_fd);

	/* bln_holds() may be reading: word by word, not memset(). */
	for (uint64_t i = 0; atomic_get(dev->count.held_pages) > 0 && i <= dev->pages / 64; i++) {
		if (dev->held[i]) /* what was never written costs no memory, and is to stay so */
			atomic_set(dev->held[i], 0);
	}
	atomic_set(dev->count.held_pages, 0);
	discard_set_held(dev->discard, NULL);

	atomic_set(dev->actual, 0);
	atomic_set(dev->generation, dev->generation + 1);
	atomic_set(dev->driver_features, 0);
	memset(&dev->stats, 0, sizeof(dev->stats));
	dev->broken = VQ_OK;
	atomic_add(dev->count.resets, 1);
	/* Release: everything above before the 0 that says "done" (CORE-DEV-10, CORE-DEV-11). */
	__atomic_store_n(&dev->status, 0, __ATOMIC_RELEASE);

	pthread_mutex_unlock(&dev->state);
	pthread_mutex_unlock(&dev->pages_lock);
	for (unsigned i = BLN_QUEUES; i-- > 0;)
		pthread_mutex_unlock(&dev->queues[i].lock);
	__atomic_fetch_sub(&dev->resetting, 1, __ATOMIC_RELAXED);
}

/* Any write but 0; control is held. */
static int advance(struct bln_device *dev, uint8_t written)
{
	uint8_t old, new;
	bool starts;

	pthread_mutex_lock(&dev->pages_lock);
	pthread_mutex_lock(&dev->state);
	old = dev->status;
	new = written & STATUS_OF_DRIVER;
	if (old & ~new & STATUS_OF_DRIVER) { /* CORE-DRV-02 */
		pthread_mutex_unlock(&dev->state);
		pthread_mutex_unlock(&dev->pages_lock);
		return -EINVAL;
	}
	if ((new & BLN_STATUS_FEATURES_OK) && !(old & BLN_STATUS_FEATURES_OK)) {
		if (!features_valid(dev))
			new &= (uint8_t)~BLN_STATUS_FEATURES_OK;
		else if (dev->driver_features & BLN_F_MUST_TELL_HOST)
			discard_set_held(dev->discard, dev->held); /* BAL-DEV-06 */
	}
	/* A driver whose features were refused cannot go live either. */
	if (!(new & BLN_STATUS_FEATURES_OK))
		new &= (uint8_t)~BLN_STATUS_DRIVER_OK;
	starts = (new & ~old & BLN_STATUS_DRIVER_OK) != 0;
	atomic_set(dev->status, (uint8_t)(new | (old & BLN_STATUS_NEEDS_RESET)));

	for (unsigned i = 0; i < BLN_QUEUES && starts; i++) {
		if (dev->queues[i].vq)
			bln_poke(dev, i); /* T-37 */
	}
	pthread_mutex_unlock(&dev->state);
	pthread_mutex_unlock(&dev->pages_lock);
	return 0;
}

int bln_set_status(struct bln_device *dev, uint8_t status)
{
	int rc = 0;

	pthread_mutex_lock(&dev->control);
	if (status == 0)
		reset(dev);
	else
		rc = advance(dev, status);
	pthread_mutex_unlock(&dev->control);
	return rc;
}

/* ---- configuration space ------------------------------------------------ */

/* By subtraction: offset + len may wrap. */
static bool config_range(uint32_t offset, uint32_t len)
{
	return offset <= BLN_CONFIG_BYTES && len <= BLN_CONFIG_BYTES - offset;
}

int bln_config_read(struct bln_device *dev, uint32_t offset, void *to, uint32_t len)
{
	uint8_t bytes[BLN_CONFIG_BYTES] = {0}; /* hint id and poison: not offered, 0 (BAL-DEV-02) */
	uint32_t field;

	if (!config_range(offset, len))
		return -EINVAL;
	/* Both fields under one lock; reads are served in any state (CORE-DEV-12). */
	pthread_mutex_lock(&dev->state);
	field = htole32(dev->num_pages);
	memcpy(bytes + CONFIG_NUM_PAGES, &field, sizeof(field));
	field = htole32(dev->actual);
	memcpy(bytes + CONFIG_ACTUAL, &field, sizeof(field));
	pthread_mutex_unlock(&dev->state);
	memcpy(to, bytes + offset, len);
	return 0;
}

int bln_config_write(struct bln_device *dev, uint32_t offset, const void *from, uint32_t len)
{
	uint8_t bytes[sizeof(uint32_t)];
	const uint8_t *written = from;
	bool touched = false;
	uint32_t field;

	if (!config_range(offset, len))
		return -EINVAL;
	pthread_mutex_lock(&dev->state);
	field = htole32(dev->actual);
	memcpy(bytes, &field, sizeof(field));
	for (uint32_t i = 0; i < len; i++) {
		const uint32_t at = offset + i;

		if (at >= CONFIG_ACTUAL && at < CONFIG_ACTUAL + sizeof(bytes)) {
			bytes[at - CONFIG_ACTUAL] = written[i];
			touched = true;
		}
	}
	if (touched) {
		/* What the driver changes itself is no configuration change (CORE-DEV-13). */
		memcpy(&field, bytes, sizeof(field));
		atomic_set(dev->actual, le32toh(field));
		atomic_set(dev->actual_writes, dev->actual_writes + 1);
		if (!dev->actual_told)
			bln_raise(dev->actual_fd);
		dev->actual_told = true;
	}
	pthread_mutex_unlock(&dev->state);
	return 0;
}

int64_t bln_config_read32(struct bln_device *dev, uint32_t offset)
{
	uint32_t field;
	int rc = bln_config_read(dev, offset, &field, sizeof(field));

	return rc < 0 ? rc : (int64_t)le32toh(field);
}

int bln_config_write32(struct bln_device *dev, uint32_t offset, uint32_t value)
{
	const uint32_t field = htole32(value);

	return bln_config_write(dev, offset, &field, sizeof(field));
}

uint32_t bln_config_generation(const struct bln_device *dev)
{
	return atomic_get(dev->generation);
}

int bln_config_fd(const struct bln_device *dev)
{
	return dev->config_fd;
}
