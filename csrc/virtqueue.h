/* SPDX-License-Identifier: MIT */
/*
 * A virtqueue: what the split and the packed format share, and the one
 * interface of driver half and device half. virtqueue.c dispatches on the
 * format; split.c implements the split ring.
 *
 * The halves know nothing of each other. They meet in guest memory and through
 * two notifications that the caller carries: the driver's kick and the device's
 * call. Neither half starts a thread, sleeps or makes a system call.
 *
 * Life of a buffer:
 *   driver half   vq_driver_add() ..      writes descriptors, stages the head
 *                 vq_driver_publish()     one index store shows the whole batch
 *                 vq_driver_kick_needed() 1: the caller kicks
 *   device half   vq_device_pop() ..      a checked chain of host addresses
 *                 vq_device_push() ..     stages a used entry
 *                 vq_device_publish()     one index store
 *                 vq_device_call_needed() 1: the caller calls
 *   driver half   vq_driver_get_used()    the token comes back
 *
 * Trust: the device half believes nothing that it reads from guest memory; a
 * broken rule marks the queue broken with a reason and never asserts. The
 * driver half does the same with what the device wrote (bad id, bad count).
 *
 * Threads: one caller at a time for each half; the two halves may run at once.
 */
#ifndef BALLOONVQ_VIRTQUEUE_H
#define BALLOONVQ_VIRTQUEUE_H

#include <stddef.h>
#include <stdint.h>

#include "guest_memory.h"

#define VQ_SIZE_MAX 32768u

/* Feature bits that change a ring's behaviour (spec table 3.2). */
#define VQ_F_INDIRECT_DESC (1ull << 28)
#define VQ_F_EVENT_IDX     (1ull << 29)
#define VQ_F_VERSION_1     (1ull << 32)
#define VQ_F_RING_PACKED   (1ull << 34)
#define VQ_F_IN_ORDER      (1ull << 35)

/* Where the three areas of a ring lie, and what was negotiated for it. */
struct vq_config {
	uint64_t features;    /* negotiated; VQ_F_RING_PACKED picks the format */
	uint64_t desc_addr;   /* descriptor area, guest-physical */
	uint64_t driver_addr; /* driver area (split: available ring) */
	uint64_t device_addr; /* device area (split: used ring) */
	uint32_t size;        /* number of descriptors */
	uint32_t chain_max;   /* device half: most segments of a chain; 0 = size (SPLIT-DEV-02) */
};

/* Sizes and alignments of the three areas, bytes. */
struct vq_layout {
	uint64_t desc_bytes, driver_bytes, device_bytes;
	uint32_t desc_align, driver_align, device_align;
};

/* Why a queue is broken. Keep vq_broken_text() in step. */
enum vq_broken {
	VQ_OK = 0,
	VQ_BROKEN_AVAIL_IDX,        /* available index ran ahead by more than the queue size */
	VQ_BROKEN_HEAD,             /* head index is not below the queue size */
	VQ_BROKEN_NEXT,             /* next index is not below the (table) size */
	VQ_BROKEN_LOOP,             /* chain is longer than the queue allows */
	VQ_BROKEN_ADDRESS,          /* a buffer lies outside guest memory */
	VQ_BROKEN_ORDER,            /* a readable descriptor follows a writable one */
	VQ_BROKEN_TOTAL,            /* more than 2^32 bytes in one chain */
	VQ_BROKEN_INDIRECT_FEATURE, /* indirect table without the feature */
	VQ_BROKEN_INDIRECT_NESTED,  /* indirect descriptor inside a table */
	VQ_BROKEN_INDIRECT_NEXT,    /* INDIRECT and NEXT in one descriptor */
	VQ_BROKEN_INDIRECT_LENGTH,  /* table length is not a non-zero multiple of 16 */
	VQ_BROKEN_INDIRECT_ADDRESS, /* table lies outside guest memory */
	VQ_BROKEN_USED_ID,          /* driver half: used id names no outstanding buffer */
	VQ_BROKEN_USED_IDX,         /* driver half: more used entries than outstanding buffers */
	VQ_BROKEN_REASONS           /* count; not a reason */
};

/* A lower-case sentence for a reason; never NULL. */
const char *vq_broken_text(enum vq_broken reason);

/*
 * The reference formula of linux/virtio_ring.h: 1 if moving an index from
 * old_idx to new_idx passes event_idx, all modulo 2^16 (SPLIT-DRV-24, T-30).
 */
int vq_need_event(uint16_t event_idx, uint16_t new_idx, uint16_t old_idx);

/*
 * Sizes and alignments for `size` descriptors under `features`. Returns 0 or
 * -EINVAL (split: size is not a power of 2 in 1..32768; SPLIT-DRV-02).
 */
int vq_layout(uint64_t features, uint32_t size, struct vq_layout *out);

/*
 * Checks that the areas are aligned, sized and wholly inside guest memory.
 * Returns 0, -EINVAL (size or alignment, SPLIT-DRV-01), -EFAULT (outside
 * memory), -EOPNOTSUPP (a format that is not built in).
 */
int vq_config_check(const struct gm *mem, const struct vq_config *config);

/* ---- driver half ------------------------------------------------------- */

struct vq_driver; /* opaque */

/* A piece of a buffer, guest-physical. */
struct vq_segment {
	uint64_t addr;
	uint32_t len;
};

/* Counts since creation. */
struct vq_driver_counters {
	uint64_t added;            /* buffers staged */
	uint64_t published;        /* index stores that made at least one buffer visible */
	uint64_t used;             /* buffers taken back */
	uint64_t kicks;            /* vq_driver_kick_needed() said 1 */
	uint64_t kicks_suppressed; /* it said 0 after a publication */
};

/*
 * Makes the driver half and initialises its ring memory: zero indices, flags
 * and event words (SPLIT-DRV-19). The areas must be vq_config_check()ed or the
 * same error comes back; -ENOMEM. mem and the areas must outlive the half.
 */
int vq_driver_create(struct gm *mem, const struct vq_config *config, struct vq_driver **out);
void vq_driver_destroy(struct vq_driver *vq);

/*
 * Stages one buffer: `readable` segments that the device reads, then `writable`
 * ones. token comes back from vq_driver_get_used(). Nothing is visible to the
 * device before vq_driver_publish().
 * Returns 0; -ENOSPC when descriptors are short (ring memory unchanged);
 * -EINVAL for no segment at all, a segment of length 0, or more segments than
 * the queue size (SPLIT-DRV-09); -E2BIG above 2^32 bytes (SPLIT-DRV-06);
 * -EFAULT when a segment is outside guest memory; -EIO when broken.
 */
int vq_driver_add(struct vq_driver *vq, const struct vq_segment *segments, unsigned readable,
		  unsigned writable, uint64_t token);

/*
 * vq_driver_add() of one device-readable segment with its address as the token, and
 * vq_driver_publish() if that went well: what a driver with one request at a time needs.
 */
int vq_driver_send(struct vq_driver *vq, uint64_t addr, uint32_t len);

/*
 * vq_driver_send() and vq_driver_kick_needed() in one call, for a caller to whom a call costs more than what it
 * does. Returns 1 if the device wants a kick, 0 if not, or the error of the former.
 */
int vq_driver_submit(struct vq_driver *vq, uint64_t addr, uint32_t len);

/*
 * As vq_driver_add(), through an indirect table at guest-physical table_addr
 * (16 * (readable + writable) bytes, owned by the buffer until it is used).
 * -EOPNOTSUPP unless VQ_F_INDIRECT_DESC was negotiated (SPLIT-DRV-07).
 */
int vq_driver_add_indirect(struct vq_driver *vq, const struct vq_segment *segments,
			   unsigned readable, unsigned writable, uint64_t table_addr,
			   uint64_t token);

/* Shows all staged buffers with one index store. Returns how many. */
unsigned vq_driver_publish(struct vq_driver *vq);

/* After publishing: 1 if the device wants a kick, else 0. Counts the answer. */
int vq_driver_kick_needed(struct vq_driver *vq);

/*
 * Takes one used buffer back. Returns 1 and fills *token and *len (bytes the
 * device wrote; either may be NULL), 0 if there is none, -EIO if the device
 * broke a rule (vq_driver_broken() says which).
 */
int vq_driver_get_used(struct vq_driver *vq, uint64_t *token, uint32_t *len);

/*
 * vq_driver_get_used(), and vq_driver_enable_calls() if it gave one, as the kernel's virtqueue_get_buf()
 * does. Returns the token, which must be in 1..INT64_MAX, 0 or -EIO.
 */
int64_t vq_driver_get_buf(struct vq_driver *vq);

/*
 * vq_driver_disable_calls asks for no notifications (a hint). enable asks for
 * one at the next used buffer, and returns 1 if one is already there, so that
 * the caller drains again instead of sleeping (SPLIT-DRV-29), else 0.
 * enable_after asks for one only once `count` more buffers are used
 * (EVENT_IDX; without it the same as enable; SPLIT-DRV-15).
 */
void vq_driver_disable_calls(struct vq_driver *vq);
int vq_driver_enable_calls(struct vq_driver *vq);
int vq_driver_enable_calls_after(struct vq_driver *vq, uint16_t count);

/* Buffers staged or visible and not yet taken back; free descriptors. */
unsigned vq_driver_outstanding(const struct vq_driver *vq);
unsigned vq_driver_free(const struct vq_driver *vq);

enum vq_broken vq_driver_broken(const struct vq_driver *vq);
void vq_driver_counters_get(const struct vq_driver *vq, struct vq_driver_counters *out);

/* ---- device half ------------------------------------------------------- */

struct vq_device; /* opaque */

/* A piece of a chain after checking: host addresses, safe to access. */
struct vq_iovec {
	uint8_t *base;
	uint32_t len;
	uint64_t guest_addr; /* where base lies, guest-physical */
};

/* A chain that was popped. Segments belong to the device half and stay valid
 * until the next pop or destroy. */
struct vq_chain {
	const struct vq_iovec *segments; /* readable ones first */
	uint32_t count;                  /* segments in all */
	uint32_t readable;               /* how many of them are device-readable */
	uint64_t readable_bytes;
	uint64_t writable_bytes;
	uint16_t head; /* what vq_device_push() wants back */
};

/* Counts since creation. */
struct vq_device_counters {
	uint64_t popped;           /* chains taken */
	uint64_t pushed;           /* used entries staged */
	uint64_t calls;            /* vq_device_call_needed() said 1 */
	uint64_t calls_suppressed; /* it said 0 after a publication */
};

/* As vq_driver_create(); touches no ring memory. */
int vq_device_create(struct gm *mem, const struct vq_config *config, struct vq_device **out);
void vq_device_destroy(struct vq_device *vq);

/* Continue a ring at given free-running indices (vhost-user SET_VRING_BASE). */
void vq_device_set_base(struct vq_device *vq, uint16_t avail_idx, uint16_t used_idx);
uint16_t vq_device_avail_base(const struct vq_device *vq);

/*
 * Takes the next available chain. Returns 1 and fills *chain, 0 if there is
 * none, -EIO when the queue is or just became broken. Every field is read from
 * guest memory once and then checked.
 */
int vq_device_pop(struct vq_device *vq, struct vq_chain *chain);

/* Chains visible and not yet popped (0 if the index is nonsense). */
unsigned vq_device_pending(struct vq_device *vq);

/* Stages a used entry: head of a popped chain, len bytes written to it. */
void vq_device_push(struct vq_device *vq, uint16_t head, uint32_t len);

/* Shows all staged used entries with one index store. Returns how many. */
unsigned vq_device_publish(struct vq_device *vq);

/* After publishing: 1 if the driver wants a call, else 0. Counts the answer. */
int vq_device_call_needed(struct vq_device *vq);

/*
 * vq_device_disable_kicks asks for no kicks (a hint). enable asks for one at the
 * next buffer and returns 1 if one is already visible (drain again), else 0.
 */
void vq_device_disable_kicks(struct vq_device *vq);
int vq_device_enable_kicks(struct vq_device *vq);

enum vq_broken vq_device_broken(const struct vq_device *vq);
void vq_device_counters_get(const struct vq_device *vq, struct vq_device_counters *out);

#endif
