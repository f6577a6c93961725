/* SPDX-License-Identifier: MIT */
/*
 * One pass over a queue:
 *
 *   ask for no kicks
 *   repeat
 *       pop a chain -> do what it asks -> (injected delay) -> used entry -> publish
 *   until there is none
 *   decide whether the driver wants a call for what was published
 *   ask for kicks; a chain came in between: once more from "repeat"
 *   call
 *
 * Used entries are shown one by one, so a polling driver gets each as soon as its
 * pages are gone; the call is decided for all of them together. Kicks are asked for
 * before the call goes out: a driver that the call wakes finds the device listening,
 * and kicks exactly once for its next request.
 *
 * A pass takes at most as many chains as the ring has descriptors, which is more than
 * were visible at its start. If the driver was quicker than that, the pass pokes its
 * own queue and ends, so that the other queues have their turn and calls go out.
 *
 * A PFN request (inflate, deflate) is an le32 array read as one byte stream (T-28), of
 * any length (T-16): copied out in pieces, each byte once, so a driver that changes the
 * array meanwhile cannot get past the check. For a piece of an inflate request:
 *
 *   copy -> range and duplicate check against the page record -> mark -> discard, or owe
 *
 * Owed pages are discarded later, by another thread, which only MUST_TELL_HOST allows (lazy.c).
 * A page that the host refused to take back stays marked: the guest gave it up, and
 * only its memory was not regained (counted by the discarder).
 */
#include "balloon_internal.h"

#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "barrier.h"
#include "chain.h"

#define NS_PER_S  1000000000ull
#define WRONG_LEN 0xdeadbeefu /* the used length of the fault `wrong_used_len` */

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

/* Takes up to n from a counted-down fault; how many it got. */
static uint64_t fault_take(uint32_t *left, uint64_t n)
{
	uint32_t seen = atomic_get(*left);
	uint32_t take;

	do {
		take = seen < n ? seen : (uint32_t)n;
		if (take == 0)
			return 0;
	} while (!__atomic_compare_exchange_n(left, &seen, seen - take, true, __ATOMIC_RELAXED,
					      __ATOMIC_RELAXED));
	return take;
}

/* ---- notifications ------------------------------------------------------ */

/* Reads our own eventfd: how many kicks of the driver, and whether there was anything. */
static bool take_own(struct bln_queue *q, uint64_t *kicks)
{
	uint64_t value, ours;

	if (read(q->kick_fd, &value, sizeof(value)) != sizeof(value))
		return false;
	/* The eventfd adds writes up; those that are not our own pokes are the driver's. A poke
	 * counted and not yet written is only mistaken for a kick that comes at the same time. */
	ours = atomic_get(q->pokes);
	if (ours > value)
		ours = value;
	__atomic_fetch_sub(&q->pokes, ours, __ATOMIC_RELAXED);
	*kicks = value - ours;
	return true;
}

/*
 * The same of a front end's. It may be a blocking one, or a pipe, and its other owner may read it
 * too: RWF_NOWAIT never sleeps, and what does not know that flag was made non-blocking when it came.
 */
static bool take_outside(struct bln_device *dev, struct bln_queue *q, uint64_t *kicks)
{
	uint64_t value = 0;
	struct iovec iov = {.iov_base = &value, .iov_len = sizeof(value)};
	ssize_t rc = -1;
	int fd;

	pthread_mutex_lock(&dev->state); /* keeps the descriptor from being closed */
	fd = q->outside[BLN_FD_KICK];
	if (fd >= 0) {
		rc = preadv2(fd, &iov, 1, -1, RWF_NOWAIT);
		if (rc < 0 && errno == EOPNOTSUPP)
			rc = read(fd, &value, sizeof(value));
		/* An end of file or an error would wake us for ever. */
		if (rc == 0 || (rc < 0 && errno != EAGAIN && errno != EINTR))
			epoll_ctl(dev->kicks_fd, EPOLL_CTL_DEL, fd, NULL);
	}
	pthread_mutex_unlock(&dev->state);
	*kicks = rc == sizeof(value) ? value : 1;
	return rc > 0;
}

bool bln_kick_take(struct bln_device *dev, unsigned mark)
{
	struct bln_queue *q = &dev->queues[mark % BLN_QUEUES];
	uint64_t kicks, lost;

	if (mark >= BLN_QUEUES) {
		if (!take_outside(dev, q, &kicks))
			return false;
		atomic_add(dev->count.kicks, kicks);
		lost = fault_take(&dev->faults.lose_kicks, kicks);
		return lost < kicks;
	}
	if (!take_own(q, &kicks))
		return false;
	atomic_add(dev->count.kicks, kicks);
	lost = fault_take(&dev->faults.lose_kicks, kicks);
	return lost < kicks || kicks == 0;
}

bool bln_call_wanted(struct bln_device *dev, struct bln_queue *q)
{
	const bool wanted = vq_device_call_needed(q->vq) == 1;

	if (wanted) {
		atomic_add(q->count.calls, 1);
	} else {
		atomic_add(q->count.calls_suppressed, 1);
		atomic_add(dev->count.calls_suppressed, 1);
	}
	return wanted;
}

/*
 * Writes to a front end's eventfd, or to our own where it gave none. Its own may be a blocking
 * one: full means that it has not looked since, and nothing is missed.
 */
static void notify(struct bln_queue *q, enum bln_fd which, int own)
{
	struct pollfd room = {.fd = q->outside[which], .events = POLLOUT};

	if (room.fd < 0 && own >= 0)
		bln_raise(own);
	else if (room.fd >= 0 && poll(&room, 1, 0) == 1 && (room.revents & POLLOUT))
		bln_raise(room.fd);
}

void bln_call(struct bln_device *dev, struct bln_queue *q)
{
	if (fault_take(&dev->faults.lose_calls, 1))
		return;
	atomic_add(dev->count.calls, 1);
	notify(q, BLN_FD_CALL, q->call_fd);
}

/* ---- acknowledgement ---------------------------------------------------- */

void bln_delay_wake(struct bln_device *dev)
{
	/* Taking the mutex puts this after the sleeper's look at the reason, or before it. */
	pthread_mutex_lock(&dev->delay);
	pthread_cond_broadcast(&dev->delay_over);
	pthread_mutex_unlock(&dev->delay);
}

void bln_hurry(struct bln_device *dev, bool on)
{
	if (on)
		__atomic_fetch_add(&dev->hurrying, 1, __ATOMIC_RELAXED);
	else
		__atomic_fetch_sub(&dev->hurrying, 1, __ATOMIC_RELAXED);
	bln_delay_wake(dev);
}

bool bln_ack_delay(struct bln_device *dev)
{
	uint64_t start, end, delay;
	struct timespec t;

	if (atomic_get(dev->faults.ack_delay_ns) > 0) {
		start = now_ns();
		pthread_mutex_lock(&dev->delay);
		while (!atomic_get(dev->resetting) && !atomic_get(dev->hurrying)) {
			/* Read each time: a new delay counts from the same start. */
			delay = atomic_get(dev->faults.ack_delay_ns);
			end = delay < UINT64_MAX / 2 ? start + delay : UINT64_MAX / 2;
			if (now_ns() >= end)
				break;
			t.tv_sec = (time_t)(end / NS_PER_S);
			t.tv_nsec = (long)(end % NS_PER_S);
			pthread_cond_timedwait(&dev->delay_over, &dev->delay, &t);
		}
		pthread_mutex_unlock(&dev->delay);
	}
	return !atomic_get(dev->resetting);
}

void bln_acknowledge(struct bln_device *dev, struct bln_queue *q, uint16_t head)
{
	/* No chain of this device has a writable part, so nothing was written (T-27, SPLIT-DEV-07). */
	vq_device_push(q->vq, head, atomic_get(dev->faults.wrong_used_len) ? WRONG_LEN : 0);
	atomic_add(q->count.pushed, 1);
	atomic_set(q->shown, (uint16_t)(atomic_get(q->shown) + 1));
	/*
	 * vq_device_publish() is a release store. It puts everything before it (the discarded
	 * pages, unless they are owed; the page record, all counters) before the used entry for a driver that reads
	 * the index with acquire (T-24, SPLIT-DEV-17).
	 */
	vq_device_publish(q->vq);
}

/* ---- PFN requests ------------------------------------------------------- */

/* Is it a whole page of guest memory? */
static bool valid_pfn(const struct bln_device *dev, struct gm_window *window, uint32_t pfn)
{
	return pfn < dev->pages &&
	       gm_at_window(dev->mem, window, (uint64_t)pfn << GM_PAGE_SHIFT, GM_PAGE_SIZE);
}

/* Works off n little-endian PFNs in q->pfns. Returns how many pages came into the balloon. */
static size_t inflate_piece(struct bln_device *dev, struct bln_queue *q, size_t n)
{
	struct gm_window window = {0};
	size_t kept = 0, outside = 0;

	pthread_mutex_lock(&dev->pages_lock);
	for (size_t i = 0; i < n; i++) {
		const uint32_t pfn = le32toh(q->pfns[i]);
		const uint64_t bit = 1ull << (pfn % 64);
		uint64_t *word;

		if (!valid_pfn(dev, &window, pfn)) {
			outside++;
			continue;
		}
		word = &dev->held[pfn / 64];
		if (*word & bit)
			continue;
		atomic_set(*word, *word | bit);
		q->pfns[kept++] = pfn;
	}
	/* Refusals are counted by the discarder; the driver has no way to hear of them (T-15). */
	if (kept > 0 && dev->lazy.on)
		bln_lazy_owe(dev, q->pfns, kept);
	else if (kept > 0)
		(void)discard_pages(dev->discard, q->pfns, kept);
	pthread_mutex_unlock(&dev->pages_lock);

	atomic_add(dev->count.inflated_pages, kept);
	atomic_add(dev->count.held_pages, kept);
	if (kept < n) {
		atomic_add(dev->count.pfns_out_of_range, outside);
		atomic_add(dev->count.pfns_duplicate, n - outside - kept);
	}
	return kept;
}

/*
 * The way back only clears the record. Shared file memory comes back by itself at the first
 * touch, as zeroes; a page that was still owed has its content. What is being discarded at this
 * moment must be gone before the acknowledgement: after it the guest writes there (BAL-DEV-06).
 * Returns how many pages left the balloon.
 */
static size_t deflate_piece(struct bln_device *dev, struct bln_queue *q, size_t n)
{
	struct gm_window window = {0};
	size_t kept = 0, outside = 0;
	unsigned flights = 0;

	pthread_mutex_lock(&dev->pages_lock);
	for (size_t i = 0; i < n; i++) {
		const uint32_t pfn = le32toh(q->pfns[i]);
		const uint64_t bit = 1ull << (pfn % 64);
		uint64_t *word;

		if (!valid_pfn(dev, &window, pfn)) {
			outside++;
			continue;
		}
		word = &dev->held[pfn / 64];
		if (*word & bit)
			kept++;
		atomic_set(*word, *word & ~bit);
		flights |= bln_lazy_forgive(dev, pfn);
	}
	if (flights)
		bln_lazy_land(dev, flights);
	pthread_mutex_unlock(&dev->pages_lock);

	atomic_add(dev->count.deflated_pages, kept);
	__atomic_fetch_sub(&dev->count.held_pages, kept, __ATOMIC_RELAXED);
	if (kept < n) {
		atomic_add(dev->count.pfns_out_of_range, outside);
		atomic_add(dev->count.pfns_never_inflated, n - outside - kept);
	}
	return kept;
}

static size_t pfn_piece(struct bln_device *dev, struct bln_queue *q, unsigned queue, size_t n)
{
	return queue == QUEUE_INFLATE ? inflate_piece(dev, q, n) : deflate_piece(dev, q, n);
}

/* Works off a request and acknowledges it. False if a reset cut it short. */
static bool pfn_chain(struct bln_device *dev, struct bln_queue *q, unsigned queue,
		      const struct vq_chain *chain)
{
	const uint64_t start = now_ns();
	struct vq_reader reader;
	size_t bytes, n;

	vq_reader_init(&reader, chain);
	do {
		bytes = vq_read(&reader, q->pfns, PIECE_PFNS * sizeof(*q->pfns));
		n = bytes / sizeof(*q->pfns);
		if (n > 0)
			(void)pfn_piece(dev, q, queue, n);
		/* Only the last piece can be odd: a cut inside a PFN is no end (T-28). */
		if (bytes % sizeof(*q->pfns))
			atomic_add(dev->count.odd_bytes, bytes % sizeof(*q->pfns));
		if (atomic_get(dev->resetting))
			return false;
	} while (bytes == PIECE_PFNS * sizeof(*q->pfns));

	if (!bln_ack_delay(dev))
		return false;
	/* Before the used entry, so that a driver who saw that one finds this counted. */
	atomic_add(dev->count.requests, 1);
	histogram_record(&q->latency, now_ns() - start);
	bln_acknowledge(dev, q, chain->head);
	return true;
}

/* ---- a pass ------------------------------------------------------------- */

/* CORE-DEV-02: nothing happens on a queue before DRIVER_OK, nor after the driver gave up. */
static bool live(const struct bln_device *dev)
{
	const uint8_t status = atomic_get(dev->status);

	return (status & BLN_STATUS_DRIVER_OK) && !(status & BLN_STATUS_FAILED) &&
	       !atomic_get(dev->resetting);
}

/* Shift and not mask: bits beyond the queues are nobody's. */
static bool stalled(const struct bln_device *dev, unsigned queue)
{
	return (atomic_get(dev->faults.stall_queues) >> queue) & 1;
}

/* Is a pass to end although there may be more? */
static bool interrupted(const struct bln_device *dev, unsigned queue)
{
	return !live(dev) || atomic_get(dev->hurrying) || stalled(dev, queue);
}

/* Notes why a ring cannot be used any more, and tells the driver (CORE-DEV-03, CORE-DEV-04). */
static void broke(struct bln_device *dev, struct bln_queue *q, unsigned queue)
{
	pthread_mutex_lock(&dev->state);
	if (dev->broken == VQ_OK) {
		dev->broken = vq_device_broken(q->vq);
		dev->broken_queue = queue;
		atomic_set(dev->status, (uint8_t)(dev->status | BLN_STATUS_NEEDS_RESET));
		if (dev->status & BLN_STATUS_DRIVER_OK)
			bln_config_changed(dev);
		notify(q, BLN_FD_ERR, -1);
	}
	pthread_mutex_unlock(&dev->state);
}

/*
 * Pops and does chains until there is none, `most` are done, or something interrupts.
 * Returns how many; *error becomes -EIO when the ring broke.
 */
static unsigned drain(struct bln_device *dev, struct bln_queue *q, unsigned queue, unsigned most,
		      int *error)
{
	struct vq_chain chain;
	unsigned done;

	for (done = 0; done < most && !interrupted(dev, queue); done++) {
		const int rc = vq_device_pop(q->vq, &chain);
		bool finished;

		if (rc < 0) {
			broke(dev, q, queue);
			*error = -EIO;
		}
		if (rc <= 0)
			break;
		atomic_add(q->count.popped, 1);
		if (queue == QUEUE_STATS)
			finished = bln_stats_chain(dev, q, &chain);
		else
			finished = pfn_chain(dev, q, queue, &chain);
		if (!finished)
			break;
	}
	return done;
}

/* bln_process() with the queue's lock held. */
static int pass(struct bln_device *dev, struct bln_queue *q, unsigned queue)
{
	unsigned done = 0, most;
	bool call = false, more;
	int error = 0;

	if (!q->vq || !live(dev) || stalled(dev, queue) || q->next != BLN_STEP_POP)
		return 0;
	if (vq_device_broken(q->vq) != VQ_OK)
		return -EIO;
	most = q->size;

	vq_device_disable_kicks(q->vq);
	do {
		const uint16_t shown = atomic_get(q->shown);

		done += drain(dev, q, queue, most - done, &error);
		if (atomic_get(dev->resetting))
			return (int)done;
		/* A chain may be done and none shown: statistics are held back. */
		if (atomic_get(q->shown) != shown)
			call |= bln_call_wanted(dev, q);
		if (error)
			break;
		more = vq_device_enable_kicks(q->vq) == 1;
	} while (more && done < most && !interrupted(dev, queue));

	if (call)
		bln_call(dev, q);
	if (error)
		return error;
	/* Nobody kicks for what is left behind. */
	if (more)
		bln_poke(dev, queue);
	return (int)done;
}

int bln_process(struct bln_device *dev, unsigned queue)
{
	struct bln_queue *q;
	int rc;

	if (queue >= BLN_QUEUES)
		return 0;
	q = &dev->queues[queue];
	pthread_mutex_lock(&q->lock);
	rc = pass(dev, q, queue);
	pthread_mutex_unlock(&q->lock);
	return rc;
}

/* ---- a pass in steps ----------------------------------------------------- */

static int step_pop(struct bln_device *dev, struct bln_queue *q, unsigned queue)
{
	const int rc = vq_device_pop(q->vq, &q->chain);

	if (rc < 0)
		broke(dev, q, queue);
	else if (rc > 0)
		atomic_add(q->count.popped, 1);
	return rc < 0 ? -EIO : rc;
}

static int step_read(struct bln_device *dev, struct bln_queue *q, uint32_t *pfns, size_t n)
{
	struct vq_reader reader;
	size_t bytes;

	if (q->chain.readable_bytes > PIECE_PFNS * sizeof(*q->pfns))
		return -E2BIG;
	vq_reader_init(&reader, &q->chain);
	bytes = vq_read(&reader, q->pfns, PIECE_PFNS * sizeof(*q->pfns));
	atomic_add(dev->count.odd_bytes, bytes % sizeof(*q->pfns));
	q->in_hand = bytes / sizeof(*q->pfns);
	for (size_t i = 0; i < q->in_hand && i < n; i++)
		pfns[i] = le32toh(q->pfns[i]);
	return (int)q->in_hand;
}

static int step_use(struct bln_device *dev, struct bln_queue *q)
{
	atomic_add(dev->count.requests, 1);
	bln_acknowledge(dev, q, q->chain.head);
	return 1;
}

static int step_call(struct bln_device *dev, struct bln_queue *q)
{
	if (!bln_call_wanted(dev, q))
		return 0;
	bln_call(dev, q);
	return 1;
}

/* bln_step() with the queue's lock held, of a queue that may be stepped. */
static int do_step(struct bln_device *dev, struct bln_queue *q, unsigned queue, enum bln_step step,
		   uint32_t *pfns, size_t n)
{
	switch (step) {
	case BLN_STEP_POP:
		return step_pop(dev, q, queue);
	case BLN_STEP_READ:
		return step_read(dev, q, pfns, n);
	case BLN_STEP_ACT:
		return q->in_hand > 0 ? (int)pfn_piece(dev, q, queue, q->in_hand) : 0;
	case BLN_STEP_USE:
		return step_use(dev, q);
	default:
		return step_call(dev, q);
	}
}

int bln_step(struct bln_device *dev, unsigned queue, enum bln_step step, uint32_t *pfns, size_t n)
{
	struct bln_queue *q;
	int rc;

	if (queue != QUEUE_INFLATE && queue != QUEUE_DEFLATE)
		return -EINVAL;
	q = &dev->queues[queue];
	pthread_mutex_lock(&q->lock);
	if (step != q->next)
		rc = -EINVAL;
	else if (!q->vq || !live(dev))
		rc = -EBUSY;
	else if (vq_device_broken(q->vq) != VQ_OK)
		rc = -EIO;
	else
		rc = do_step(dev, q, queue, step, pfns, n);
	if (rc > 0 || (rc == 0 && step != BLN_STEP_POP))
		q->next = step == BLN_STEP_CALL ? BLN_STEP_POP : (enum bln_step)(step + 1);
	pthread_mutex_unlock(&q->lock);
	return rc;
}
