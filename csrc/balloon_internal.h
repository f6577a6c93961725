/* SPDX-License-Identifier: MIT */
/*
 * What the parts of the balloon device share; nobody else includes this.
 *
 *   balloon_device.c   making and unmaking, status, features, configuration space
 *   balloon_rings.c    starting and stopping queues, their eventfds, exchanging the memory
 *   balloon_host.c     the host's wish, numbers and faults
 *   balloon_queues.c   passes over the queues: PFN requests, acknowledgement, calls
 *   balloon_stats.c    the statistics queue
 *   lazy.c             pages that are given back after their acknowledgement, by a thread of its own
 *   worker.c           the thread that makes the passes
 *
 * Locks, outermost first; none is taken while a later one is held:
 *
 *   control       one at a time who writes the status register, starts or stops a queue,
 *                 or exchanges the memory
 *   queue.lock    one a queue, in rising order; held for a whole pass, so a reset
 *                 that has all three knows that no ring is being touched (CORE-DEV-11)
 *   pages         the page record and the discarder, a piece of a request at a time; what is
 *                 owed and in flight, but not the holes of the flusher
 *   state         registers, configuration, last statistics; never held for long
 *   delay         only to sleep on, for the acknowledgement delay
 *
 * "atomic" at a field means: written under a lock or by anyone, and read without
 * a lock, always by the helpers below. They are relaxed: numbers for observers,
 * which order nothing. What must be ordered says so where it happens.
 */
#ifndef BALLOONVQ_BALLOON_INTERNAL_H
#define BALLOONVQ_BALLOON_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>

#include "balloon_device.h"

#define QUEUE_INFLATE 0u
#define QUEUE_DEFLATE 1u
#define QUEUE_STATS   2u

#define BLN_FDS 3u /* enum bln_fd */

#define PIECE_PFNS 4096u /* a longer request is worked off in pieces of this many (T-16) */

struct bln_queue {
	pthread_mutex_t lock;    /* see above */
	struct vq_device *vq;    /* NULL unless started; changes under lock and state */
	uint32_t *pfns;          /* PIECE_PFNS of a request; not for statistics */
	uint64_t avail_idx_addr; /* guest address of the driver's index; under state */
	uint32_t size;           /* descriptors; under state */
	uint16_t shown;          /* used index as the driver sees it; atomic */
	bool holding;            /* statistics: a buffer is held; under lock */
	enum bln_step next;      /* bln_step(): what is to be done next; under lock */
	struct vq_chain chain;   /* bln_step(): the request in hand; likewise */
	size_t in_hand;          /* bln_step(): PFNs of it in `pfns`; likewise */
	uint16_t held_head;      /* its head */
	int kick_fd;             /* driver to device; also our own pokes */
	int call_fd;             /* device to driver, unless there is an outside one */
	int outside[BLN_FDS]; /* a front end's eventfds or -1; under lock, kick also under state */
	uint64_t pokes;       /* our own writes to kick_fd not yet read; atomic */
	struct vq_device_counters count; /* copy of the device half's; atomic, each */
	struct histogram latency;        /* pop to publication, ns */
};

/* Pages whose memory is still to be given back, and blocks of 2 MiB of them. */
struct bln_owed {
	uint64_t *pages;    /* bit p % 64 of word p / 64: page p is owed */
	uint16_t *in_block; /* owed pages of each block */
	uint64_t *some;     /* bit a block: it has an owed page */
	uint64_t *whole;    /* bit a block: all its pages are owed */
	uint64_t blocks;    /* blocks that the record covers */
	uint64_t wholes;    /* set bits of `whole` */
};

enum bln_sleep {
	BLN_AWAKE,
	BLN_NAPPING, /* until nothing became owed for a while; a few whole blocks wake it */
	BLN_ASLEEP   /* until anything becomes owed */
};

/* Blocks whose memory is of one file, in which one thread at a time can make holes. A block in
 * which two files meet goes with either. */
struct bln_lane {
	uint64_t first;         /* its lowest block */
	uint64_t end;           /* one past its highest */
	uint64_t eager;         /* block from which whole ones are looked for */
	uint64_t cursor;        /* block at which the sweep stands */
	uint64_t sweeps;        /* wanted sweeps that are over */
	uint64_t sweeps_wanted; /* by bln_flush(); never less */
	unsigned file;          /* as in gm_region; several lanes may have one file */
};

/* A thread's turn at giving back, or at preparing for it. */
struct bln_flight {
	struct discard *discard; /* its own; the memory changes only with nothing in the air */
	bool taken;              /* by a thread, which uses the discarder */
	unsigned file;           /* of the pages in flight */
	uint64_t first;          /* lowest of them */
	uint64_t end;            /* one past the highest; 0: none, it is preparing, or not taken */
	uint64_t landed;         /* turns that are over */
};

#define BLN_FLIGHTS 2u /* at once */

/* See lazy.c. All under pages, unless said otherwise. */
struct bln_lazy {
	struct bln_owed owed;
	struct bln_flight flights[BLN_FLIGHTS];
	struct bln_lane lanes[GM_REGIONS_MAX];
	unsigned lane_count; /* those in use; at least 1 */
	unsigned turn;       /* lane that is looked at first */
	uint64_t prepare;   /* bln_flush(): block from which on to prepare; UINT64_MAX = all done */
	unsigned preparing; /* threads that do; nobody takes off before that is over */
	uint64_t owed_max;  /* pages; with more, inflating waits */
	uint64_t newest_ns; /* when a page last became owed */
	unsigned waiters;   /* for `changed` */
	unsigned flushing;  /* threads in bln_flush(), which give back in the flusher's place ... */
	bool beside;        /* ... or beside it */
	uint64_t flush_ns;  /* their processor time; atomic */
	enum bln_sleep sleep;   /* what the flusher does */
	bool possible;          /* by method and memory */
	bool running;           /* the thread is there; changes under control too */
	bool on;                /* pages may become owed and be taken; changes under control too */
	pthread_cond_t wake;    /* to the flusher */
	pthread_cond_t changed; /* from the flusher and others: less is owed, or a flight landed */
	pthread_t thread;       /* the flusher; of whoever starts and stops the worker */
	clockid_t clock;        /* its processor time; likewise */
};

struct bln_device {
	struct gm *mem; /* guest memory; under control, all queue locks, pages and state */
	struct bln_options offer; /* as created; features are the offered ones */
	struct discard *discard;  /* gives pages back; under pages */
	uint64_t *held; /* bit p % 64 of word p / 64: page p is ours; under pages, atomic */
	uint64_t pages; /* PFNs that the record covers */
	struct bln_lazy lazy;
	pthread_mutex_t control;    /* see above */
	pthread_mutex_t pages_lock; /* see above: pages */
	pthread_mutex_t state;      /* see above */
	pthread_mutex_t delay;      /* see above */
	pthread_cond_t delay_over;  /* with delay: the delay changed, or someone cannot wait */

	struct bln_queue queues[BLN_QUEUES];

	uint8_t status;           /* status register; under state, atomic */
	uint64_t driver_features; /* accepted; under state, atomic */
	uint32_t num_pages;       /* configuration; under state, atomic */
	uint32_t actual;          /* configuration; under state, atomic */
	uint32_t generation;    /* configuration changes made by the device; under state, atomic */
	uint64_t actual_writes; /* writes of `actual`; under state, atomic */
	int config_fd;          /* configuration change */
	int kicks_fd;           /* epoll set of all kick eventfds; marks see bln_follow() */
	int actual_fd;          /* `actual` was written ... */
	bool actual_told;       /* ... and it is raised since; under state */
	struct bln_stats stats; /* last statistics; under state */
	enum vq_broken broken;  /* first ring error since reset; under state */
	unsigned broken_queue;  /* its queue; under state */

	uint32_t resetting; /* resets under way: passes end at once; atomic */
	uint32_t hurrying;  /* a worker is to stop: passes end after the chain in hand; atomic */
	struct bln_faults faults;  /* injected trouble; atomic, each field */
	struct bln_counters count; /* atomic, each; `discard` is not used here */
};

/* ---- relaxed atomics ---------------------------------------------------- */

#define atomic_get(field)        __atomic_load_n(&(field), __ATOMIC_RELAXED)
#define atomic_set(field, value) __atomic_store_n(&(field), (value), __ATOMIC_RELAXED)
#define atomic_add(field, value) ((void)__atomic_fetch_add(&(field), (value), __ATOMIC_RELAXED))

/* ---- balloon_device.c --------------------------------------------------- */

/* Adds one to an eventfd; takes back what was added and not yet read. */
void bln_raise(int fd);
void bln_lower(int fd);

/* Raises a configuration change; state is held. */
void bln_config_changed(struct bln_device *dev);

/* Makes the worker look at a queue, without it counting as the driver's kick. */
void bln_poke(struct bln_device *dev, unsigned queue);

/* ---- balloon_rings.c ---------------------------------------------------- */

/* PFNs that the page record has to cover: no more than 32 bits can name (T-17). */
uint64_t bln_record_pages(const struct gm *mem);

/* Adds a kick eventfd to the set. The mark is the queue's number for our own eventfd, and
 * BLN_QUEUES more for one from outside. 0 or -errno. */
int bln_follow(struct bln_device *dev, int fd, unsigned mark);

/* ---- balloon_queues.c --------------------------------------------------- */

/* Reads the kick eventfd of a mark of the set. True if its queue is to be processed; false if
 * there was nothing, or it was swallowed. */
bool bln_kick_take(struct bln_device *dev, unsigned mark);

/* Ends acknowledgement delays now, and passes after the chain in hand, until called with false. */
void bln_hurry(struct bln_device *dev, bool on);

/* Wakes whoever sits out an acknowledgement delay, to look again. */
void bln_delay_wake(struct bln_device *dev);

/* Shows a used entry for a chain of this queue; its lock is held. */
void bln_acknowledge(struct bln_device *dev, struct bln_queue *q, uint16_t head);

/* Sleeps for the injected delay. False if a reset cut it short: then nothing is acknowledged. */
bool bln_ack_delay(struct bln_device *dev);

/* Decides on a call for what was published since the last decision, and counts it. */
bool bln_call_wanted(struct bln_device *dev, struct bln_queue *q);

/* Sends a call, unless it is to be lost. */
void bln_call(struct bln_device *dev, struct bln_queue *q);

/* ---- lazy.c ------------------------------------------------------------- */

/* A record in which nothing is owed. 0 or -ENOMEM. */
int bln_owed_make(struct bln_owed *owed, uint64_t pages);
void bln_owed_free(struct bln_owed *owed);

/* With the device: after its page record and discarder are there. 0 or -ENOMEM. */
int bln_lazy_create(struct bln_device *dev);
void bln_lazy_destroy(struct bln_device *dev);

/* With the worker: starts and stops the flusher. No hole comes after the stop. 0 or -errno. */
int bln_lazy_start(struct bln_device *dev);
void bln_lazy_stop(struct bln_device *dev);

/* Looks whether pages may be given back late, after something changed that decides it. If not, all
 * flights have landed when this returns. control and pages are held. */
void bln_lazy_update(struct bln_device *dev);

/* Stops giving back late until the next update, and forgets what is owed. Likewise. */
void bln_lazy_forget(struct bln_device *dev);

/* Takes the new memory of the device over, and the record for it. Likewise, nothing in flight. */
void bln_lazy_set_memory(struct bln_device *dev, struct bln_owed *fresh);

/* Notes pages that became the balloon's, while lazy.on; may wait until less is owed. pages is held,
 * and not while waiting. */
void bln_lazy_owe(struct bln_device *dev, const uint32_t *pfns, size_t n);

/* A page is to go back to the guest: it is not owed any more. The flight that it may be in, as a bit,
 * or 0; bln_lazy_land() is called with all of them before the lock is given away. pages is held. */
unsigned bln_lazy_forgive(struct bln_device *dev, uint32_t pfn);

/* Waits until these flights, bits of them, are over. pages is held, and not while waiting. */
void bln_lazy_land(struct bln_device *dev, unsigned flights);

/* ---- balloon_stats.c ---------------------------------------------------- */

/* Takes a statistics buffer in and holds it. False if a reset cut it short. */
bool bln_stats_chain(struct bln_device *dev, struct bln_queue *q, const struct vq_chain *chain);

#endif
