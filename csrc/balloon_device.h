/* SPDX-License-Identifier: MIT */
/*
 * The balloon device: what the specification's "device" does, whoever the
 * driver is. An emulated guest reaches it through the calls below as a real one
 * reaches it through PCI registers or vhost-user messages.
 *
 * Configuration space (le32 each, 3.3):
 *   0 num_pages               the host's wish, 4 KiB pages; device writes
 *   4 actual                  what the driver says it holds; driver writes
 *   8 free_page_hint_cmd_id   device writes
 *  12 poison_val              driver writes, before DRIVER_OK
 *
 * Queues, numbered as in the specification (BAL-DEV-01):
 *   0 inflate   1 deflate   2 statistics   3 free page hints   4 reporting
 * This version offers the first three.
 *
 * A PFN request is read as one byte stream (T-28), of any length (T-16). PFNs
 * outside memory, already held, or never inflated are counted, ignored and still
 * acknowledged (T-15). Pages are discarded before the used entry is shown
 * (T-24); with MUST_TELL_HOST and a worker after it, by a thread of their own, and
 * always before the matching deflate is acknowledged (BAL-DEV-06). The device keeps
 * its own record, one bit a page, of what it holds, and does not trust `actual`
 * (T-39).
 *
 * Ring corruption sets DEVICE_NEEDS_RESET and raises a configuration change
 * (CORE-DEV-03, CORE-DEV-04); bln_broken() says which queue and why.
 *
 * A pass over a queue is one call, or five: bln_step() stops after each thing that a driver, or the
 * other queue, can meet half done.
 *
 * Threads: all calls may be made from any thread. Queues are processed by
 * bln_process(), by one thread at a time, normally the worker (worker.h).
 */
#ifndef BALLOONVQ_BALLOON_DEVICE_H
#define BALLOONVQ_BALLOON_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#include "discard.h"
#include "guest_memory.h"
#include "histogram.h"
#include "virtqueue.h"

#define BLN_F_MUST_TELL_HOST (1ull << 0)
#define BLN_F_STATS_VQ       (1ull << 1)
#define BLN_F_DEFLATE_ON_OOM (1ull << 2)

#define BLN_STATUS_ACKNOWLEDGE 1u
#define BLN_STATUS_DRIVER      2u
#define BLN_STATUS_DRIVER_OK   4u
#define BLN_STATUS_FEATURES_OK 8u
#define BLN_STATUS_NEEDS_RESET 64u
#define BLN_STATUS_FAILED      128u

#define BLN_CONFIG_BYTES 16u
#define BLN_QUEUES       3u  /* inflate, deflate, statistics */
#define BLN_STATS_MAX    64u /* distinct tags kept */

struct bln_device; /* opaque */

struct bln_options {
	uint64_t features;           /* offered; VERSION_1 is always added (CORE-DEV-15) */
	enum discard_method discard; /* how pages go back */
	uint32_t queue_size_max;     /* a power of 2, 1..32768 */
	uint32_t strict_tell_host;   /* 1: no FEATURES_OK without bit 0, if offered (BAL-DEV-03) */
	uint64_t owed_max; /* bytes acknowledged and still to be given back; 0 = 1 GiB, 1 = none */
};

/* One statistic as the driver sent it (3.5). Unknown tags are kept as they came. */
struct bln_stat {
	uint16_t tag;
	uint64_t value;
};

/* The last statistics buffer. */
struct bln_stats {
	uint64_t updates;   /* buffers that held at least one entry since reset */
	uint64_t time_ns;   /* CLOCK_REALTIME when the last of them came; 0 = never */
	uint32_t count;     /* entries below */
	uint32_t malformed; /* trailing bytes that were no whole entry, in the last buffer */
	/* One per tag; the last value of a duplicate wins. */
	struct bln_stat entries[BLN_STATS_MAX];
};

/* Counts since creation; a consistent snapshot is not promised between fields. */
struct bln_counters {
	uint64_t requests;            /* inflate and deflate chains acknowledged */
	uint64_t inflated_pages;      /* pages that came into the balloon */
	uint64_t deflated_pages;      /* pages that went back to the guest */
	uint64_t pfns_duplicate;      /* inflate of a page already held */
	uint64_t pfns_out_of_range;   /* PFN outside guest memory, either queue */
	uint64_t pfns_never_inflated; /* deflate of a page not held */
	uint64_t odd_bytes;           /* trailing bytes that were no whole PFN */
	uint64_t kicks;               /* eventfd kicks received */
	uint64_t calls;               /* used-buffer notifications sent */
	uint64_t calls_suppressed;    /* publications for which none was wanted */
	uint64_t config_changes;      /* configuration change notifications sent */
	uint64_t resets;              /* device resets */
	uint64_t stats_requests;      /* statistics buffers given back */
	uint64_t held_pages;          /* pages in the balloon now, by the device's own record */
	uint64_t owed_pages; /* pages acknowledged whose memory is still to be given back */
	uint64_t lazy_pages; /* pages given back, or refused by the host, after that */
	struct discard_counters discard;
};

/* Injected trouble, for tests and demonstrations; all zero = none. Takes effect at once. */
struct bln_faults {
	uint64_t ack_delay_ns;   /* sleep this long before each used entry is shown */
	uint32_t stall_queues;   /* bit q: queue q is not processed while set */
	uint32_t lose_kicks;     /* the next n kicks are swallowed */
	uint32_t lose_calls;     /* the next n calls are not sent */
	uint32_t wrong_used_len; /* used length is 0xdeadbeef instead of 0 while set */
	uint32_t fail_discards;  /* the next n discarded ranges fail */
};

/*
 * 0, -EINVAL (options; a feature that is not implemented counts as one, CORE-DEV-08),
 * -ENOMEM, or -errno of eventfd. mem must outlive the device, or its place in it; memory
 * that is added to it later is no part of the balloon.
 */
int bln_create(struct gm *mem, const struct bln_options *options, struct bln_device **out);
void bln_destroy(struct bln_device *dev);

/* ---- what a transport does --------------------------------------------- */

uint64_t bln_features(const struct bln_device *dev);        /* offered */
uint64_t bln_driver_features(const struct bln_device *dev); /* accepted */

/* -EBUSY after FEATURES_OK (CORE-DRV-22), else 0. The check is made at FEATURES_OK. */
int bln_set_driver_features(struct bln_device *dev, uint64_t features);

uint8_t bln_status(const struct bln_device *dev);

/*
 * Writes the status register. 0 resets: queues stop before it returns, status
 * is 0, the page record and `actual` are forgotten, the held statistics buffer
 * is dropped unused (T-14, CORE-DEV-11), and call and configuration eventfds are emptied.
 * num_pages and the counters stay. FEATURES_OK stays clear if the accepted set is not valid
 * (CORE-DEV-07), and so does DRIVER_OK then. Returns 0; -EINVAL if a bit other than by reset is
 * cleared (CORE-DRV-02; the write is ignored).
 */
int bln_set_status(struct bln_device *dev, uint8_t status);

/* Configuration space. -EINVAL when [offset, offset+len) is not inside BLN_CONFIG_BYTES. A write
 * touches only `actual` (and poison_val when offered); other bytes are ignored. */
int bln_config_read(struct bln_device *dev, uint32_t offset, void *to, uint32_t len);
int bln_config_write(struct bln_device *dev, uint32_t offset, const void *from, uint32_t len);
/* The same for a whole le32 field, by value in the host's byte order: its value, or -EINVAL. */
int64_t bln_config_read32(struct bln_device *dev, uint32_t offset);
int bln_config_write32(struct bln_device *dev, uint32_t offset, uint32_t value);
uint32_t bln_config_generation(const struct bln_device *dev);

/* Largest size of a queue; 0 when it is not there (TRN-03). */
uint32_t bln_queue_size_max(const struct bln_device *dev, unsigned queue);

/* Sets a fresh queue up and starts it: bln_queue_start() of a ring that nobody has used yet. */
int bln_queue_enable(struct bln_device *dev, unsigned queue, const struct vq_config *config);

/*
 * Starts a queue at available index `base`; the used index goes on from the one in the ring.
 * config->features is replaced by the accepted ones. -EINVAL (no such queue, size, alignment),
 * -EFAULT, -EBUSY (started already or not FEATURES_OK), -ENOMEM.
 */
int bln_queue_start(struct bln_device *dev, unsigned queue, const struct vq_config *config,
		    uint16_t base);

/*
 * Stops a queue and returns the available index at which it is to go on, or -EINVAL if it is not
 * started. Every chain before that index is used; once this returns, the ring is left alone. A
 * statistics buffer that is held counts as not taken: it is read again after the next start. So
 * does a request between two steps (bln_step()) that is not used yet.
 */
int bln_queue_stop(struct bln_device *dev, unsigned queue);

/* Eventfds, owned by the device, all non-blocking (poll before reading): the driver writes kick,
 * reads call; -EINVAL for no such queue. */
int bln_kick_fd(const struct bln_device *dev, unsigned queue);
int bln_call_fd(const struct bln_device *dev, unsigned queue);

/* The eventfds of a queue that a front end can bring. */
enum bln_fd {
	BLN_FD_KICK, /* it writes: buffers are available */
	BLN_FD_CALL, /* we write: buffers are used */
	BLN_FD_ERR,  /* we write: the ring is broken */
};

/*
 * Uses a front end's eventfd (or pipe) in place of the device's own; -1 goes back. An earlier one is
 * closed. The device takes ownership of fd on success only. The worker follows at once. May be called
 * in any state. A closed pipe must not kill the process: SIGPIPE is to be ignored. -EINVAL, or
 * -errno of epoll_ctl for a kick that cannot be waited for.
 */
int bln_queue_set_fd(struct bln_device *dev, unsigned queue, enum bln_fd which, int fd);

/*
 * Exchanges guest memory, while no queue is started (else -EBUSY). Pages in the balloon that the new
 * memory has too stay in it, and owed if they are. Once this returns 0 the old memory map may be
 * destroyed. -ENOMEM changes nothing.
 */
int bln_set_memory(struct bln_device *dev, struct gm *mem);

int bln_config_fd(const struct bln_device *dev); /* configuration change */

/* ---- what the host does ------------------------------------------------ */

/* Sets num_pages and, if it differs from what it was or from `actual`, and status is not 0
 * (CORE-DEV-11), raises a configuration
 * change. -EINVAL above the guest's pages. */
int bln_set_target(struct bln_device *dev, uint32_t pages);
uint32_t bln_target(const struct bln_device *dev);
uint32_t bln_actual(const struct bln_device *dev);

/*
 * Number of writes of `actual` so far, and an eventfd for waiters on the host side. The first write after
 * bln_actual_take() raises it, which returns `actual` and lowers it: one system call a look, and not one a write.
 */
uint64_t bln_actual_writes(const struct bln_device *dev);
int bln_actual_fd(const struct bln_device *dev);
uint32_t bln_actual_take(struct bln_device *dev);

/* Gives the held statistics buffer back so that the driver refreshes it. 0, -EAGAIN when none is
 * held, -EOPNOTSUPP without the feature. */
int bln_stats_request(struct bln_device *dev);
void bln_stats_get(struct bln_device *dev, struct bln_stats *out);

void bln_counters_get(struct bln_device *dev, struct bln_counters *out);

/* Queue counters of the device half; -EINVAL for no such or no enabled queue. */
int bln_queue_counters(struct bln_device *dev, unsigned queue, struct vq_device_counters *out);
/* Chains the driver has made visible and the device has not acknowledged; -EINVAL as above. */
int bln_queue_depth(struct bln_device *dev, unsigned queue);

/* Service time of inflate and deflate requests, pop to publish. -EINVAL for another queue. */
int bln_latency(struct bln_device *dev, unsigned queue, struct histogram *out);

/* 1 if the device holds the page, 0 if not, -EINVAL out of range. */
int bln_holds(struct bln_device *dev, uint64_t pfn);

/* Why the device needs a reset: fills *queue and returns the reason, or VQ_OK. */
enum vq_broken bln_broken(struct bln_device *dev, unsigned *queue);

/*
 * Gives all memory back that is owed when this is called: the caller does the work, or a part of it.
 * Returns 0; also early, if the worker, a queue or the device is stopped or reset meanwhile, or
 * its memory exchanged.
 * bln_flush_cpu_ns: processor time of all such calls so far.
 */
int bln_flush(struct bln_device *dev);
uint64_t bln_flush_cpu_ns(const struct bln_device *dev);

/* Replaces / reads the injected faults. */
void bln_set_faults(struct bln_device *dev, const struct bln_faults *faults);
void bln_faults_get(struct bln_device *dev, struct bln_faults *out);

/*
 * One pass over a queue: everything that is available when it starts is processed,
 * acknowledged and, if wanted, called for. If more came meanwhile than the ring holds, the kick
 * eventfd is raised for another pass. Returns the number of chains, 0 if the queue is
 * not enabled, stalled, or before DRIVER_OK (CORE-DEV-02), -EIO if it is or became broken.
 */
int bln_process(struct bln_device *dev, unsigned queue);

/* What a pass does with one inflate or deflate request, in this order. */
enum bln_step {
	BLN_STEP_POP,  /* takes the next chain */
	BLN_STEP_READ, /* reads its PFNs from guest memory */
	BLN_STEP_ACT,  /* inflate: notes the pages and discards them; deflate: gives them up */
	BLN_STEP_USE,  /* shows the used entry */
	BLN_STEP_CALL  /* notifies the driver, if it wants that */
};

/*
 * One step of one request, for a caller that decides what happens in between: a forced schedule.
 * While a request is in hand bln_process() leaves the queue alone. Injected faults do not delay or
 * stall steps. BLN_STEP_READ copies up to n PFNs to pfns, in the host's byte order.
 *
 * Returns, for POP: 1, or 0 if nothing is available; READ: the number of PFNs of the request;
 * ACT: how many came into or left the balloon; USE: 1; CALL: 1 if the driver was to be notified,
 * else 0. -EINVAL for no inflate or deflate queue, or a step that is not the next one; -EBUSY if
 * the queue is not started, or before DRIVER_OK; -E2BIG for a request of more than 4096 PFNs, which
 * stays as it is (reset or stop the queue); -EIO if it is or became broken.
 */
int bln_step(struct bln_device *dev, unsigned queue, enum bln_step step, uint32_t *pfns, size_t n);

#endif
