/* SPDX-License-Identifier: MIT */
/*
 * The split virtqueue (virtio 1.3, 2.7): driver half and device half.
 *
 * Three areas, N = queue size, all fields little-endian:
 *
 *   descriptor table, 16 N bytes, aligned 16. Written by the driver only.
 *     0        8     12      14     16
 *     | addr   | len | flags | next |  x N     flags: 1 NEXT, 2 WRITE, 4 INDIRECT
 *
 *   available ring, 6 + 2 N bytes, aligned 2. Written by the driver only.
 *     0       2     4                    4+2N
 *     | flags | idx | ring[0..N-1], le16 | used_event |
 *               ring[] holds heads: indices of first descriptors
 *
 *   used ring, 6 + 8 N bytes, aligned 4. Written by the device only, except that
 *   the driver zeroes it when it makes the queue (SPLIT-DRV-19, T-36).
 *     0       2     4                            4+8N
 *     | flags | idx | ring[0..N-1], le32 id, len | avail_event |
 *
 * Index rules. Both idx fields run freely modulo 2^16 and only ever grow; entry
 * number i stands in slot i mod N (N divides 2^16, so the wrap is seamless).
 * Each half counts in 64 bits and stores the low 16, so that "how many since"
 * never suffers from the wrap:
 *
 *   driver   used_next <= used_seen <= published <= added
 *   device   avail_next <= avail_seen              used_published <= used_next
 *
 * Driver, in words. Free descriptors form a queue in private memory; nothing
 * that the device could have changed is ever read back from the table. (A queue
 * and not a stack: the descriptor that is wanted next is then never the one that
 * came back last, so that add() need not wait for the entry that named it, and
 * neighbours in time are neighbours in the table, four to a cache line, and the
 * lines that are wanted next are known and fetched ahead.) add()
 * takes descriptors from it, fills them and writes the head into the next
 * ring slot. publish() stores idx once for the whole batch. get_used() compares
 * used idx with its cached copy and looks at shared memory only when the cache
 * runs out.
 *
 * Device, in words. pop() takes the next head, then walks: every descriptor is
 * read by two loads, once, into registers, and checked there; what the driver
 * changes afterwards has no effect. Steps are counted, not places remembered
 * (T-34), so any loop ends after at most N elements. push() writes used entries,
 * publish() stores idx once for the batch.
 *
 * What runs for every buffer is `inline`, a hint to link-time optimisation: its callers
 * in other files take it in, and what they do not look at is not even computed.
 *
 * Suppression. Without EVENT_IDX: the flags word of the other side's area, 1 =
 * leave me alone. With it: flags stay 0 and an event word names the entry that is
 * wanted. Both are the same Dekker dance:
 *
 *   publisher   store idx;        full fence;  load event word
 *   sleeper     store event word; full fence;  load idx
 *
 * At least one of the two loads sees the other's store, so a wake-up is sent or
 * the sleeper does not sleep.
 */
#include "split.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "barrier.h"

/* Places inside the areas (checklist 3.8). */
enum {
	DESC_BYTES = 16,  /* one descriptor */
	DESC_ADDR = 0,    /* le64 */
	DESC_REST = 8,    /* le32 len, le16 flags, le16 next, handled as one le64 */
	RING_FLAGS = 0,   /* le16, both rings */
	RING_IDX = 2,     /* le16, both rings */
	RING_ENTRIES = 4, /* first entry, both rings */
	AVAIL_ENTRY = 2,  /* one entry of the available ring */
	USED_ENTRY = 8,   /* one entry of the used ring */
	USED_ID = 0,      /* le32 in a used entry */
	USED_LEN = 4,     /* le32 in a used entry */
	EVENT_BYTES = 2,  /* the event word after the last entry */
};

#define DESC_F_NEXT     1u
#define DESC_F_WRITE    2u
#define DESC_F_INDIRECT 4u

#define AVAIL_F_NO_INTERRUPT 1u
#define USED_F_NO_NOTIFY     1u

#define CHAIN_BYTES_MAX (1ull << 32) /* SPLIT-DRV-06 */

/*
 * Entries between the one that is looked at and the one whose cache line is fetched: four lines of
 * descriptors, two of the used ring. While the driver goes through that many, a line arrives
 * from another processor.
 */
#define FETCH_AHEAD 16u

/* An event this far away is passed by nobody soon: no batch reaches across half the indices. */
#define EVENT_FAR 0x8000u

/* A descriptor, read once and decoded. */
struct desc {
	uint64_t addr;  /* guest-physical */
	uint32_t len;   /* bytes */
	uint16_t flags; /* DESC_F_* */
	uint16_t next;  /* index; meaningful with DESC_F_NEXT */
};

int split_layout(uint32_t size, struct vq_layout *out)
{
	if (size == 0 || size > VQ_SIZE_MAX || (size & (size - 1))) /* SPLIT-DRV-02 */
		return -EINVAL;
	out->desc_bytes = (uint64_t)DESC_BYTES * size;
	/* The event words are always counted, negotiated or not (SPLIT-DRV-02). */
	out->driver_bytes = RING_ENTRIES + (uint64_t)AVAIL_ENTRY * size + EVENT_BYTES;
	out->device_bytes = RING_ENTRIES + (uint64_t)USED_ENTRY * size + EVENT_BYTES;
	out->desc_align = 16; /* SPLIT-DRV-01 */
	out->driver_align = 2;
	out->device_align = 4;
	return 0;
}

/*
 * 1 if moving a free-running index from old to now passes `event`. This is vq_need_event() but
 * for the length of the step, which keeps all its bits: in 2^16 and more every event lies.
 */
static inline bool event_passed(uint16_t event, uint64_t now, uint64_t old)
{
	return (uint16_t)(now - event - 1) < now - old;
}

/* ---- driver half ------------------------------------------------------- */

#define POSITION_FREE UINT64_MAX /* of a descriptor that heads no buffer */
#define CHAIN_END     UINT16_MAX /* no descriptor follows */

/* Private state of one descriptor. */
struct slot {
	uint64_t token;    /* head: the caller's name for the buffer */
	uint64_t position; /* head: number of the buffer, from 0; POSITION_FREE if no head */
};

struct split_driver {
	struct vq_driver half; /* first: the common head */

	bool event_idx;       /* VQ_F_EVENT_IDX was negotiated */
	bool indirect;        /* VQ_F_INDIRECT_DESC was negotiated */
	bool calls_disabled;  /* the last wish was "no calls" */
	uint32_t size;        /* descriptors in all */
	uint32_t mask;        /* size - 1 */
	uint8_t *desc;        /* descriptor table */
	uint8_t *avail;       /* available ring */
	uint8_t *used;        /* used ring */
	uint8_t *used_event;  /* event word of the available ring */
	uint8_t *avail_event; /* event word of the used ring */
	uint16_t *free;       /* queue of the free descriptors, behind the slots */
	uint16_t *next; /* next descriptor of a chain or CHAIN_END; all free ones: CHAIN_END */
	const struct gm *mem;    /* to check segments */
	struct gm_window window; /* last region that held a segment */

	uint64_t added;     /* buffers staged so far; the next ring slot */
	uint64_t published; /* of those, visible: low 16 bits are the idx in memory */
	uint64_t kick_old;  /* `published` when a kick was last thought about */
	uint64_t used_seen; /* used entries known to be there (cached used idx) */
	uint64_t used_next; /* used entries taken */
	uint64_t free_next; /* descriptors taken from free[]; entry number i stands at i mod size */
	uint64_t free_end;  /* descriptors put into it */

	uint64_t publications;     /* counter: index stores */
	uint64_t kicks;            /* counter: kicks asked for */
	uint64_t kicks_suppressed; /* counter: kicks spared */

	struct slot slots[]; /* one a descriptor */
};

static struct split_driver *driver_of(struct vq_driver *half)
{
	return (struct split_driver *)half;
}

static const struct split_driver *driver_of_const(const struct vq_driver *half)
{
	return (const struct split_driver *)half;
}

int split_driver_create(struct gm *mem, const struct vq_config *config, struct vq_driver **out)
{
	uint32_t size = config->size;
	struct split_driver *vq;
	struct vq_layout layout;

	if (split_layout(size, &layout))
		return -EINVAL;
	vq = vq_alloc(sizeof(*vq) +
		      size * (sizeof(vq->slots[0]) + sizeof(vq->free[0]) + sizeof(vq->next[0])));
	if (!vq)
		return -ENOMEM;
	vq->event_idx = config->features & VQ_F_EVENT_IDX;
	vq->indirect = config->features & VQ_F_INDIRECT_DESC;
	vq->size = size;
	vq->mask = size - 1;
	vq->mem = mem;
	vq->desc = gm_at(mem, config->desc_addr, layout.desc_bytes);
	vq->avail = gm_at(mem, config->driver_addr, layout.driver_bytes);
	vq->used = gm_at(mem, config->device_addr, layout.device_bytes);
	vq->used_event = vq->avail + layout.driver_bytes - EVENT_BYTES;
	vq->avail_event = vq->used + layout.device_bytes - EVENT_BYTES;
	vq->free = (uint16_t *)&vq->slots[size];
	vq->next = vq->free + size;
	vq->free_end = size;
	for (uint32_t i = 0; i < size; i++) {
		vq->slots[i].position = POSITION_FREE;
		vq->free[i] = (uint16_t)i;
		vq->next[i] = CHAIN_END;
	}

	/* Memory may hold anything, also the remains of a ring before (SPLIT-DRV-19). This is the
	 * only time that the driver writes the device's area (T-36). */
	memset(vq->desc, 0, layout.desc_bytes);
	memset(vq->avail, 0, layout.driver_bytes);
	memset(vq->used, 0, layout.device_bytes);
	*out = &vq->half;
	return 0;
}

void split_driver_destroy(struct vq_driver *half)
{
	free(half);
}

/* The rules for a buffer's segments; 0 or the error that vq_driver_add() promises. */
static inline int check_segments(struct split_driver *vq, const struct vq_segment *segments,
				 unsigned readable, unsigned writable)
{
	uint64_t total = 0;
	unsigned count;

	if (unlikely(vq->half.broken))
		return -EIO;
	/* Each part is compared alone first, so that the sum cannot wrap. SPLIT-DRV-09, for
	 * indirect tables too (T-34). */
	if (readable > vq->size || writable > vq->size || readable + writable > vq->size)
		return -EINVAL;
	count = readable + writable;
	if (count == 0)
		return -EINVAL;
	for (unsigned i = 0; i < count; i++) {
		if (segments[i].len == 0)
			return -EINVAL;
		total += segments[i].len; /* at most 2^15 * 2^32 */
	}
	if (total > CHAIN_BYTES_MAX) /* SPLIT-DRV-06, T-35 */
		return -E2BIG;
	for (unsigned i = 0; i < count; i++)
		if (!gm_at_window(vq->mem, &vq->window, segments[i].addr, segments[i].len))
			return -EFAULT;
	return 0;
}

/* len, flags and next of a descriptor as the one word they are stored by. */
static uint64_t desc_rest(uint32_t len, unsigned flags, unsigned next)
{
	return len | (uint64_t)flags << 32 | (uint64_t)next << 48;
}

static void desc_store(uint8_t *desc, uint64_t addr, uint64_t rest)
{
	le64_store(desc + DESC_ADDR, addr);
	le64_store(desc + DESC_REST, rest);
}

/* Flags of segment i: readable ones first (SPLIT-DRV-04), NEXT on all but the last. */
static unsigned segment_flags(unsigned i, unsigned readable, unsigned count)
{
	return (i >= readable ? DESC_F_WRITE : 0) | (i + 1 < count ? DESC_F_NEXT : 0);
}

static inline uint32_t free_count(const struct split_driver *vq)
{
	return (uint32_t)(vq->free_end - vq->free_next);
}

/* The i-th free descriptor. */
static inline uint16_t free_at(const struct split_driver *vq, uint64_t i)
{
	return vq->free[(vq->free_next + i) & vq->mask];
}

/* Remembers the buffer. Returns the ring slot into which its head has yet to be written. */
static inline uint8_t *stage(struct split_driver *vq, uint16_t head, unsigned count, uint64_t token)
{
	struct slot *slot = &vq->slots[head];
	const uint64_t position = vq->added;

	slot->token = token;
	slot->position = position;
	vq->free_next += count;
	vq->added = position + 1;
	return vq->avail + RING_ENTRIES + AVAIL_ENTRY * (position & vq->mask);
}

/* Any buffer; as split_driver_add(). */
static __attribute__((noinline)) int add_chain(struct split_driver *vq,
					       const struct vq_segment *segments, unsigned readable,
					       unsigned writable, uint64_t token)
{
	const uint16_t head = free_at(vq, 0);
	unsigned count = readable + writable;
	uint16_t at = head;
	int rc = check_segments(vq, segments, readable, writable);

	if (rc)
		return rc;
	if (count > free_count(vq))
		return -ENOSPC;

	for (unsigned i = 0;; i++) {
		uint8_t *desc = vq->desc + (size_t)DESC_BYTES * at;
		unsigned flags = segment_flags(i, readable, count);
		uint16_t next = flags & DESC_F_NEXT ? free_at(vq, i + 1) : 0;

		desc_store(desc, segments[i].addr, desc_rest(segments[i].len, flags, next));
		if (!(flags & DESC_F_NEXT))
			break;
		vq->next[at] = next;
		at = next;
	}
	le16_store(stage(vq, head, count, token), head);
	return 0;
}

inline int split_driver_add(struct vq_driver *half, const struct vq_segment *segments,
			    unsigned readable, unsigned writable, uint64_t token)
{
	struct split_driver *vq = driver_of(half);
	const uint16_t head = free_at(vq, 0);
	uint64_t addr, rest;
	uint8_t *entry;

	/* The balloon's own case, one descriptor where the last one was, without the loops: the
	 * same checks for one segment; an empty one is in no window. A broken queue shows no free
	 * descriptor here. readable <= 1 is there since the sum may have wrapped. */
	if (unlikely(readable + writable != 1 || readable > 1 || free_count(vq) == 0 ||
		     !gm_window_holds(&vq->window, segments->addr, segments->len)))
		return add_chain(vq, segments, readable, writable, token);
	/* The device read the line of this descriptor when it was in use, so a store has to take
	 * the line back. If fewer are free, it is one in use, for which nothing is lost but time. */
	prefetch_for_write(vq->desc + (size_t)DESC_BYTES * free_at(vq, FETCH_AHEAD));
	/* Stores to shared memory last: after each, the compiler loads private fields anew. */
	addr = segments->addr;
	rest = desc_rest(segments->len, writable ? DESC_F_WRITE : 0, 0);
	entry = stage(vq, head, 1, token);
	desc_store(vq->desc + (size_t)DESC_BYTES * head, addr, rest);
	le16_store(entry, head);
	return 0;
}

int split_driver_add_indirect(struct vq_driver *half, const struct vq_segment *segments,
			      unsigned readable, unsigned writable, uint64_t table_addr,
			      uint64_t token)
{
	struct split_driver *vq = driver_of(half);
	unsigned count = readable + writable;
	uint16_t head = free_at(vq, 0);
	uint8_t *table, *desc;
	int rc;

	if (!vq->indirect) /* SPLIT-DRV-07 */
		return -EOPNOTSUPP;
	rc = check_segments(vq, segments, readable, writable);
	if (rc)
		return rc;
	table = gm_at_window(vq->mem, &vq->window, table_addr, (uint64_t)DESC_BYTES * count);
	if (!table)
		return -EFAULT;
	if (free_count(vq) == 0)
		return -ENOSPC;

	/* Entries in order, from 0 (SPLIT-DEV-08); no INDIRECT among them (SPLIT-DRV-08). */
	for (unsigned i = 0; i < count; i++) {
		unsigned flags = segment_flags(i, readable, count);
		uint8_t *entry = table + (size_t)DESC_BYTES * i;

		le64_store_unaligned(entry + DESC_ADDR, segments[i].addr);
		le64_store_unaligned(entry + DESC_REST, desc_rest(segments[i].len, flags,
								  flags & DESC_F_NEXT ? i + 1 : 0));
	}
	/* INDIRECT alone: never with NEXT (SPLIT-DRV-10). */
	desc = vq->desc + (size_t)DESC_BYTES * head;
	desc_store(desc, table_addr, desc_rest(DESC_BYTES * count, DESC_F_INDIRECT, 0));
	le16_store(stage(vq, head, 1, token), head);
	return 0;
}

inline unsigned split_driver_publish(struct vq_driver *half)
{
	struct split_driver *vq = driver_of(half);
	uint64_t added = vq->added;
	uint64_t staged = added - vq->published;

	if (staged == 0 || vq->half.broken)
		return 0;
	vq->published = added;
	vq->publications++;
	/* Release: descriptors, tables, payload and ring slots before idx; the device loads idx
	 * with acquire and then reads them (SPLIT-DRV-27). */
	le16_store_release(vq->avail + RING_IDX, (uint16_t)added);
	return (unsigned)staged;
}

inline int split_driver_kick_needed(struct vq_driver *half)
{
	struct split_driver *vq = driver_of(half);
	uint64_t old = vq->kick_old;
	uint64_t now = vq->published;
	bool wanted;

	if (old == now)
		return 0;
	vq->kick_old = now;
	/* Store of available idx (publish) before load of avail_event or used.flags, else the
	 * device arms and sleeps while we still see its old wish (SPLIT-DRV-28). */
	fence_full();
	if (vq->event_idx) /* flags are ignored: SPLIT-DRV-23; -24, -25 */
		wanted = event_passed(le16_load(vq->avail_event), now, old);
	else /* avail_event is ignored: SPLIT-DRV-20; -21, -22 */
		wanted = !(le16_load(vq->used + RING_FLAGS) & USED_F_NO_NOTIFY);
	if (wanted)
		vq->kicks++;
	else
		vq->kicks_suppressed++;
	return wanted;
}

/* Marks the queue broken; callers come here once, since every path looks at `broken` first. The
 * hot paths need not: without free descriptors and known used entries they end up where it is
 * looked at, and there is no publication left to kick for. */
static __attribute__((cold)) int driver_break(struct split_driver *vq, enum vq_broken reason)
{
	vq->half.broken = reason;
	vq->free_next = vq->free_end;
	vq->used_seen = vq->used_next;
	vq->kick_old = vq->published;
	return -EIO;
}

inline int split_driver_get_used(struct vq_driver *half, uint64_t *token, uint32_t *len)
{
	struct split_driver *vq = driver_of(half);
	const uint64_t at = vq->used_next;
	const uint8_t *entry;
	uint64_t free_end;
	struct slot *slot;
	uint32_t id, bytes;

	if (at == vq->used_seen) {
		uint16_t idx, fresh;

		if (unlikely(vq->half.broken))
			return -EIO;
		/* Acquire: used idx before the used entries and before whatever the device wrote
		 * into the buffers, which it stored before idx (T-20). */
		idx = le16_load_acquire(vq->used + RING_IDX);
		fresh = (uint16_t)(idx - (uint16_t)at);
		if (fresh == 0)
			return 0;
		if (unlikely(at + fresh > vq->published))
			return driver_break(vq, VQ_BROKEN_USED_IDX);
		vq->used_seen = at + fresh;
	}

	entry = vq->used + RING_ENTRIES + USED_ENTRY * (at & vq->mask);
	/* It may not be there yet; it is read when its turn comes. */
	prefetch_for_read(vq->used + RING_ENTRIES + USED_ENTRY * ((at + FETCH_AHEAD) & vq->mask));
	id = le32_load(entry + USED_ID);
	bytes = le32_load(entry + USED_LEN);
	/* One comparison refuses free descriptors, middles of chains (both POSITION_FREE) and
	 * buffers that are staged but were never shown. */
	if (unlikely(id >= vq->size || vq->slots[id].position >= vq->published))
		return driver_break(vq, VQ_BROKEN_USED_ID);

	slot = &vq->slots[id];
	slot->position = POSITION_FREE;
	vq->used_next = at + 1;
	if (token)
		*token = slot->token;
	if (len)
		*len = bytes;
	/* Last, as it reuses `id`. */
	free_end = vq->free_end;
	for (;;) {
		uint16_t next = vq->next[id];

		vq->free[free_end++ & vq->mask] = (uint16_t)id;
		if (likely(next == CHAIN_END))
			break;
		vq->next[id] = CHAIN_END;
		id = next;
	}
	vq->free_end = free_end;
	return 1;
}

void split_driver_disable_calls(struct vq_driver *half)
{
	struct split_driver *vq = driver_of(half);

	if (vq->calls_disabled)
		return;
	vq->calls_disabled = true;
	if (vq->event_idx) /* flags must stay 0 (SPLIT-DRV-14) */
		le16_store(vq->used_event, (uint16_t)(vq->used_next + EVENT_FAR));
	else
		le16_store(vq->avail + RING_FLAGS, AVAIL_F_NO_INTERRUPT); /* SPLIT-DRV-13 */
}

int split_driver_enable_calls_after(struct vq_driver *half, uint16_t count)
{
	struct split_driver *vq = driver_of(half);
	uint16_t next = (uint16_t)vq->used_next;

	if (count == 0 || !vq->event_idx)
		count = 1;
	vq->calls_disabled = false;
	if (vq->event_idx) /* the slot that completes the count (SPLIT-DRV-15) */
		le16_store(vq->used_event, (uint16_t)(next + count - 1));
	else
		le16_store(vq->avail + RING_FLAGS, 0); /* SPLIT-DRV-12 */
	if (vq->half.broken)
		return 0;
	/* Store of used_event or flags before load of used idx, else the device publishes, sees
	 * our old wish and stays silent while we miss its entry (SPLIT-DRV-29, T-20). */
	fence_full();
	return (uint16_t)(le16_load(vq->used + RING_IDX) - next) >= count;
}

unsigned split_driver_outstanding(const struct vq_driver *half)
{
	const struct split_driver *vq = driver_of_const(half);

	return (unsigned)(vq->added - vq->used_next);
}

unsigned split_driver_free(const struct vq_driver *half)
{
	return free_count(driver_of_const(half));
}

void split_driver_counters_get(const struct vq_driver *half, struct vq_driver_counters *out)
{
	const struct split_driver *vq = driver_of_const(half);

	out->added = vq->added;
	out->published = vq->publications;
	out->used = vq->used_next;
	out->kicks = vq->kicks;
	out->kicks_suppressed = vq->kicks_suppressed;
}

/* ---- device half ------------------------------------------------------- */

struct split_device {
	struct vq_device half; /* first: the common head */

	bool event_idx;            /* VQ_F_EVENT_IDX was negotiated */
	bool indirect;             /* VQ_F_INDIRECT_DESC was negotiated */
	bool kicks_disabled;       /* the last wish was "no kicks" */
	bool call_always;          /* base was set: what the driver knows is unknown, call once */
	uint32_t size;             /* descriptors in all */
	uint32_t mask;             /* size - 1 */
	uint32_t chain_max;        /* most elements of a chain (SPLIT-DEV-02) */
	const uint8_t *desc;       /* descriptor table, never written (SPLIT-DEV-06) */
	const uint8_t *avail;      /* available ring, never written */
	uint8_t *used;             /* used ring */
	const uint8_t *used_event; /* event word of the available ring */
	uint8_t *avail_event;      /* event word of the used ring */
	const struct gm *mem;      /* to check addresses */
	struct gm_window window;   /* last region that held a buffer */

	uint64_t avail_next;     /* available entries taken */
	uint64_t avail_seen;     /* available entries known to be there (cached idx) */
	uint64_t used_next;      /* used entries staged */
	uint64_t used_published; /* of those, visible: low 16 bits are the idx in memory */
	uint64_t call_old;       /* `used_published` when a call was last thought about */

	uint64_t avail_base;       /* avail_next at the start: the chains taken come of it */
	uint64_t used_base;        /* used_next at the start: the entries staged */
	uint64_t calls;            /* counter: calls asked for */
	uint64_t calls_suppressed; /* counter: calls spared */

	struct vq_iovec segments[]; /* the popped chain; chain_max of them */
};

/* What a walk has seen so far. */
struct walk {
	uint32_t steps;          /* elements, zero-length ones included */
	uint32_t count;          /* segments kept */
	uint32_t readable;       /* of those, device-readable */
	bool writing;            /* a device-writable element was seen */
	uint64_t readable_bytes; /* sum over the readable segments */
	uint64_t writable_bytes; /* sum over the writable segments */
};

static struct split_device *device_of(struct vq_device *half)
{
	return (struct split_device *)half;
}

static const struct split_device *device_of_const(const struct vq_device *half)
{
	return (const struct split_device *)half;
}

int split_device_create(struct gm *mem, const struct vq_config *config, struct vq_device **out)
{
	uint32_t chain_max = config->chain_max;
	struct split_device *vq;
	struct vq_layout layout;

	if (split_layout(config->size, &layout))
		return -EINVAL;
	/* Never more than the ring's size, also through a table (SPLIT-DRV-09, T-34). */
	if (chain_max == 0 || chain_max > config->size)
		chain_max = config->size;
	vq = vq_alloc(sizeof(*vq) + chain_max * sizeof(vq->segments[0]));
	if (!vq)
		return -ENOMEM;
	vq->event_idx = config->features & VQ_F_EVENT_IDX;
	vq->indirect = config->features & VQ_F_INDIRECT_DESC;
	vq->size = config->size;
	vq->mask = config->size - 1;
	vq->chain_max = chain_max;
	vq->mem = mem;
	vq->desc = gm_at(mem, config->desc_addr, layout.desc_bytes);
	vq->avail = gm_at(mem, config->driver_addr, layout.driver_bytes);
	vq->used = gm_at(mem, config->device_addr, layout.device_bytes);
	vq->used_event = vq->avail + layout.driver_bytes - EVENT_BYTES;
	vq->avail_event = vq->used + layout.device_bytes - EVENT_BYTES;
	*out = &vq->half;
	return 0;
}

void split_device_destroy(struct vq_device *half)
{
	free(half);
}

void split_device_set_base(struct vq_device *half, uint16_t avail_idx, uint16_t used_idx)
{
	struct split_device *vq = device_of(half);

	vq->avail_base = avail_idx - (vq->avail_next - vq->avail_base); /* counts go on */
	vq->used_base = used_idx - (vq->used_next - vq->used_base);
	vq->avail_next = vq->avail_seen = avail_idx;
	vq->used_next = vq->used_published = vq->call_old = used_idx;
	vq->call_always = true;
}

uint16_t split_device_avail_base(const struct vq_device *half)
{
	return (uint16_t)device_of_const(half)->avail_next;
}

/* As driver_break(): known available entries are forgotten, so that pop() looks at `broken`. */
static __attribute__((cold)) int device_break(struct split_device *vq, enum vq_broken reason)
{
	vq->half.broken = reason;
	vq->avail_seen = vq->avail_next;
	return -EIO;
}

static struct desc decode(uint64_t addr, uint64_t rest)
{
	struct desc desc = {
	    .addr = addr,
	    .len = (uint32_t)rest,
	    .flags = (uint16_t)(rest >> 32),
	    .next = (uint16_t)(rest >> 48),
	};

	return desc;
}

/* Checks one element and appends it to the chain. `desc` is a private copy. */
static inline enum vq_broken take(struct split_device *vq, struct walk *walk,
				  const struct desc *desc)
{
	bool writable = desc->flags & DESC_F_WRITE;
	struct vq_iovec *segment;
	uint8_t *base;

	if (unlikely(walk->steps == vq->chain_max)) /* SPLIT-DEV-02, SPLIT-DRV-06, T-34 */
		return VQ_BROKEN_LOOP;
	walk->steps++;
	if (unlikely(!writable && walk->writing)) /* SPLIT-DRV-04 */
		return VQ_BROKEN_ORDER;
	walk->writing = writable; /* never back to false, by the check above */
	/* An empty element adds nothing to the byte stream, wherever it points: skip it. It did
	 * count as a step, so that a ring of them ends. */
	if (unlikely(desc->len == 0))
		return VQ_OK;
	base = gm_at_window(vq->mem, &vq->window, desc->addr, desc->len);
	if (unlikely(!base))
		return VQ_BROKEN_ADDRESS;

	segment = &vq->segments[walk->count++]; /* count <= steps <= chain_max */
	segment->base = base;
	segment->len = desc->len;
	segment->guest_addr = desc->addr;
	if (writable) {
		walk->writable_bytes += desc->len;
	} else {
		walk->readable_bytes += desc->len;
		walk->readable++;
	}
	/* At most 2^15 elements below 2^32 each: the sum cannot wrap. */
	if (unlikely(walk->readable_bytes + walk->writable_bytes > CHAIN_BYTES_MAX))
		return VQ_BROKEN_TOTAL; /* SPLIT-DRV-06 */
	return VQ_OK;
}

/* Walks the table that `pointer` names; the chain ends with it. WRITE on the pointer is
 * ignored (SPLIT-DEV-09). Not inlined: the common chain has no table. */
static __attribute__((noinline)) enum vq_broken
walk_table(struct split_device *vq, struct walk *walk, const struct desc *pointer)
{
	const uint8_t *table;
	uint32_t entries = pointer->len / DESC_BYTES;
	uint32_t at = 0; /* entries start at 0 and follow next (SPLIT-DEV-08) */

	if (!vq->indirect) /* SPLIT-DRV-07 */
		return VQ_BROKEN_INDIRECT_FEATURE;
	if (pointer->flags & DESC_F_NEXT) /* SPLIT-DRV-10 */
		return VQ_BROKEN_INDIRECT_NEXT;
	if (pointer->len == 0 || pointer->len % DESC_BYTES) /* T-23 */
		return VQ_BROKEN_INDIRECT_LENGTH;
	table = gm_at_window(vq->mem, &vq->window, pointer->addr, pointer->len);
	if (!table)
		return VQ_BROKEN_INDIRECT_ADDRESS;

	for (;;) {
		const uint8_t *entry = table + (size_t)DESC_BYTES * at;
		struct desc desc = decode(le64_load_unaligned(entry + DESC_ADDR),
					  le64_load_unaligned(entry + DESC_REST));
		enum vq_broken reason;

		if (desc.flags & DESC_F_INDIRECT) /* SPLIT-DRV-08 */
			return VQ_BROKEN_INDIRECT_NESTED;
		reason = take(vq, walk, &desc);
		if (reason || !(desc.flags & DESC_F_NEXT))
			return reason;
		if (desc.next >= entries)
			return VQ_BROKEN_NEXT;
		at = desc.next;
	}
}

static struct desc desc_load(const struct split_device *vq, uint32_t at)
{
	const uint8_t *entry = vq->desc + (size_t)DESC_BYTES * at;

	return decode(le64_load(entry + DESC_ADDR), le64_load(entry + DESC_REST));
}

/*
 * Walks a chain from its first descriptor: plain ones, then at most one table (SPLIT-DEV-10).
 * Fills *out if it returns VQ_OK.
 */
static __attribute__((noinline)) enum vq_broken walk_chain(struct split_device *vq,
							   struct walk *out, struct desc desc)
{
	struct walk walk = {0}; /* ours alone, so that a plain chain's stays in registers */

	for (;;) {
		enum vq_broken reason;

		if (unlikely(desc.flags & DESC_F_INDIRECT)) {
			struct desc pointer = desc; /* only copies need an address */

			*out = walk;
			return walk_table(vq, out, &pointer);
		}
		reason = take(vq, &walk, &desc);
		if (unlikely(reason))
			return reason;
		if (!(desc.flags & DESC_F_NEXT))
			break;
		if (unlikely(desc.next >= vq->size))
			return VQ_BROKEN_NEXT;
		desc = desc_load(vq, desc.next);
	}
	*out = walk;
	return VQ_OK;
}

/* The chain that was walked is the caller's. */
static inline int hand_out(struct split_device *vq, struct vq_chain *chain, uint16_t head,
			   struct walk walk)
{
	vq->avail_next++;
	chain->segments = vq->segments;
	chain->count = walk.count;
	chain->readable = walk.readable;
	chain->readable_bytes = walk.readable_bytes;
	chain->writable_bytes = walk.writable_bytes;
	chain->head = head;
	return 1;
}

inline int split_device_pop(struct vq_device *half, struct vq_chain *chain)
{
	struct split_device *vq = device_of(half);
	const uint64_t at = vq->avail_next;
	struct desc desc;
	uint16_t head;
	bool writable;

	if (at == vq->avail_seen) {
		uint16_t idx, fresh;

		if (unlikely(vq->half.broken))
			return -EIO;
		/* Acquire: available idx before ring slots, descriptors and payload, which the
		 * driver stored before idx (SPLIT-DRV-27, T-20). */
		idx = le16_load_acquire(vq->avail + RING_IDX);
		fresh = (uint16_t)(idx - (uint16_t)at);
		if (fresh == 0)
			return 0;
		/* A head occupies at least one descriptor, so more than N cannot be waiting; it
		 * also catches an index that went backwards (SPLIT-DRV-11). */
		if (unlikely(fresh > vq->size))
			return device_break(vq, VQ_BROKEN_AVAIL_IDX);
		vq->avail_seen = at + fresh;
	}

	head = le16_load(vq->avail + RING_ENTRIES + AVAIL_ENTRY * (at & vq->mask));
	if (unlikely(head >= vq->size))
		return device_break(vq, VQ_BROKEN_HEAD);
	desc = desc_load(vq, head);
	/* The balloon's own case, one plain descriptor where the last one was, needs no walk; an
	 * empty one is in no window. */
	if (unlikely(desc.flags & (DESC_F_NEXT | DESC_F_INDIRECT) ||
		     !gm_window_holds(&vq->window, desc.addr, desc.len))) {
		struct walk walk;
		enum vq_broken reason = walk_chain(vq, &walk, desc);

		return unlikely(reason) ? device_break(vq, reason)
					: hand_out(vq, chain, head, walk);
	}
	writable = desc.flags & DESC_F_WRITE;
	vq->segments[0].base = vq->window.host + (desc.addr - vq->window.guest_addr);
	vq->segments[0].len = desc.len;
	vq->segments[0].guest_addr = desc.addr;
	return hand_out(vq, chain, head,
			(struct walk){.count = 1,
				      .readable = !writable,
				      .readable_bytes = writable ? 0 : desc.len,
				      .writable_bytes = writable ? desc.len : 0});
}

unsigned split_device_pending(struct vq_device *half)
{
	struct split_device *vq = device_of(half);
	/* Nothing is read on the strength of it, so no order is needed; pop() loads idx again. */
	uint16_t idx = le16_load(vq->avail + RING_IDX);
	uint16_t fresh = (uint16_t)(idx - (uint16_t)vq->avail_next);

	return fresh <= vq->size ? fresh : 0;
}

inline void split_device_push(struct vq_device *half, uint16_t head, uint32_t len)
{
	struct split_device *vq = device_of(half);
	const uint64_t at = vq->used_next;
	uint8_t *entry = vq->used + RING_ENTRIES + USED_ENTRY * (at & vq->mask);

	vq->used_next = at + 1;
	le32_store(entry + USED_ID, head);
	le32_store(entry + USED_LEN, len);
}

inline unsigned split_device_publish(struct vq_device *half)
{
	struct split_device *vq = device_of(half);
	uint64_t next = vq->used_next;
	uint64_t staged = next - vq->used_published;

	if (staged == 0)
		return 0;
	vq->used_published = next;
	/* Release: what was written into the buffers, and id and len of the entries, before
	 * used idx; the driver loads idx with acquire (SPLIT-DEV-17, SPLIT-DEV-18). */
	le16_store_release(vq->used + RING_IDX, (uint16_t)next);
	return (unsigned)staged;
}

inline int split_device_call_needed(struct vq_device *half)
{
	struct split_device *vq = device_of(half);
	uint64_t old = vq->call_old;
	uint64_t now = vq->used_published;
	bool wanted;

	if (old == now)
		return 0;
	vq->call_old = now;
	/* Store of used idx (publish) before load of used_event or avail.flags, else the driver
	 * arms and sleeps while we still see its old wish (T-20). */
	fence_full();
	if (vq->event_idx) /* flags are ignored: SPLIT-DEV-14; -15, -16 */
		wanted = event_passed(le16_load(vq->used_event), now, old);
	else /* used_event is ignored: SPLIT-DEV-11; -12, -13 */
		wanted = !(le16_load(vq->avail + RING_FLAGS) & AVAIL_F_NO_INTERRUPT);
	if (unlikely(vq->call_always)) {
		vq->call_always = false;
		wanted = wanted || vq->event_idx;
	}
	if (wanted)
		vq->calls++;
	else
		vq->calls_suppressed++;
	return wanted;
}

void split_device_disable_kicks(struct vq_device *half)
{
	struct split_device *vq = device_of(half);

	if (vq->kicks_disabled)
		return;
	vq->kicks_disabled = true;
	if (vq->event_idx) /* flags must stay 0 (SPLIT-DEV-22) */
		le16_store(vq->avail_event, (uint16_t)(vq->avail_next + EVENT_FAR));
	else
		le16_store(vq->used + RING_FLAGS, USED_F_NO_NOTIFY); /* SPLIT-DEV-21 */
}

int split_device_enable_kicks(struct vq_device *half)
{
	struct split_device *vq = device_of(half);
	uint16_t next = (uint16_t)vq->avail_next;

	vq->kicks_disabled = false;
	if (vq->event_idx)
		le16_store(vq->avail_event, next); /* the next slot (SPLIT-DEV-23) */
	else
		le16_store(vq->used + RING_FLAGS, 0); /* SPLIT-DEV-20 */
	if (vq->half.broken)
		return 0;
	/* Store of avail_event or flags before load of available idx, else the driver publishes,
	 * sees our old wish and does not kick while we miss its buffer (SPLIT-DEV-21, T-20). */
	fence_full();
	return le16_load(vq->avail + RING_IDX) != next;
}

void split_device_counters_get(const struct vq_device *half, struct vq_device_counters *out)
{
	const struct split_device *vq = device_of_const(half);

	out->popped = vq->avail_next - vq->avail_base;
	out->pushed = vq->used_next - vq->used_base;
	out->calls = vq->calls;
	out->calls_suppressed = vq->calls_suppressed;
}
