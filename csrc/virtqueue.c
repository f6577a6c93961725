/* SPDX-License-Identifier: MIT */
/*
 * What does not depend on a ring's format, and the way to the format's own code.
 *
 *   vq_driver_add(vq, ..) ---> split_driver_add()  split.c
 *
 * Creation refuses formats that are not built in (vq_config_check). One is, so no call asks
 * which format its queue has, and link-time optimisation leaves nothing of the way.
 */
#include "virtqueue.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "split.h"
#include "vq_half.h"

const char *vq_broken_text(enum vq_broken reason)
{
	switch (reason) {
	case VQ_OK:
		return "not broken";
	case VQ_BROKEN_AVAIL_IDX:
		return "available index ran ahead by more than the queue size";
	case VQ_BROKEN_HEAD:
		return "head index is not below the queue size";
	case VQ_BROKEN_NEXT:
		return "next index is not below the table size";
	case VQ_BROKEN_LOOP:
		return "descriptor chain is longer than the queue allows";
	case VQ_BROKEN_ADDRESS:
		return "buffer lies outside guest memory";
	case VQ_BROKEN_ORDER:
		return "readable descriptor follows a writable one";
	case VQ_BROKEN_TOTAL:
		return "descriptor chain describes more than 2^32 bytes";
	case VQ_BROKEN_INDIRECT_FEATURE:
		return "indirect table used without the feature";
	case VQ_BROKEN_INDIRECT_NESTED:
		return "indirect descriptor inside an indirect table";
	case VQ_BROKEN_INDIRECT_NEXT:
		return "descriptor has both the indirect and the next flag";
	case VQ_BROKEN_INDIRECT_LENGTH:
		return "indirect table length is not a non-zero multiple of 16";
	case VQ_BROKEN_INDIRECT_ADDRESS:
		return "indirect table lies outside guest memory";
	case VQ_BROKEN_USED_ID:
		return "used entry names no outstanding buffer";
	case VQ_BROKEN_USED_IDX:
		return "used index ran ahead of the outstanding buffers";
	case VQ_BROKEN_REASONS:
		break;
	}
	return "unknown reason";
}

int vq_need_event(uint16_t event_idx, uint16_t new_idx, uint16_t old_idx)
{
	/* Both sides count backwards from the newest entry: its distance to the event against the
	 * length of the step. Equality of indices would lose batches (T-30). */
	return (uint16_t)(new_idx - event_idx - 1) < (uint16_t)(new_idx - old_idx);
}

int vq_layout(uint64_t features, uint32_t size, struct vq_layout *out)
{
	if (features & VQ_F_RING_PACKED)
		return -EOPNOTSUPP;
	return split_layout(size, out);
}

/* One area: 0, -EINVAL for its alignment, -EFAULT outside memory. */
static int check_area(const struct gm *mem, uint64_t addr, uint64_t bytes, uint32_t align)
{
	const void *host;

	if (addr % align) /* SPLIT-DRV-01 */
		return -EINVAL;
	host = gm_at(mem, addr, bytes);
	if (!host)
		return -EFAULT;
	/* A region whose file offset is odd is mapped odd; atomic accesses there are undefined.
	 * Descriptors are moved 8 bytes at a time, which 16 covers. */
	return (uintptr_t)host % align ? -EINVAL : 0;
}

int vq_config_check(const struct gm *mem, const struct vq_config *config)
{
	struct vq_layout layout;
	int rc = vq_layout(config->features, config->size, &layout);

	if (!rc)
		rc = check_area(mem, config->desc_addr, layout.desc_bytes, layout.desc_align);
	if (!rc)
		rc = check_area(mem, config->driver_addr, layout.driver_bytes, layout.driver_align);
	if (!rc)
		rc = check_area(mem, config->device_addr, layout.device_bytes, layout.device_align);
	return rc;
}

void *vq_alloc(size_t bytes)
{
	size_t rounded = (bytes + VQ_CACHE_LINE - 1) / VQ_CACHE_LINE * VQ_CACHE_LINE;
	void *memory = aligned_alloc(VQ_CACHE_LINE, rounded);

	if (memory)
		memset(memory, 0, rounded);
	return memory;
}

/* ---- driver half ------------------------------------------------------- */

int vq_driver_create(struct gm *mem, const struct vq_config *config, struct vq_driver **out)
{
	int rc = vq_config_check(mem, config);

	return rc ? rc : split_driver_create(mem, config, out);
}

void vq_driver_destroy(struct vq_driver *vq)
{
	split_driver_destroy(vq);
}

int vq_driver_add(struct vq_driver *vq, const struct vq_segment *segments, unsigned readable,
		  unsigned writable, uint64_t token)
{
	return split_driver_add(vq, segments, readable, writable, token);
}

int vq_driver_add_indirect(struct vq_driver *vq, const struct vq_segment *segments,
			   unsigned readable, unsigned writable, uint64_t table_addr,
			   uint64_t token)
{
	return split_driver_add_indirect(vq, segments, readable, writable, table_addr, token);
}

unsigned vq_driver_publish(struct vq_driver *vq)
{
	return split_driver_publish(vq);
}

int vq_driver_kick_needed(struct vq_driver *vq)
{
	return split_driver_kick_needed(vq);
}

int vq_driver_get_used(struct vq_driver *vq, uint64_t *token, uint32_t *len)
{
	return split_driver_get_used(vq, token, len);
}

int64_t vq_driver_get_buf(struct vq_driver *vq)
{
	uint64_t token;
	const int rc = vq_driver_get_used(vq, &token, NULL);

	if (rc <= 0)
		return rc;
	(void)vq_driver_enable_calls(vq);
	return (int64_t)token;
}

void vq_driver_disable_calls(struct vq_driver *vq)
{
	split_driver_disable_calls(vq);
}

int vq_driver_enable_calls(struct vq_driver *vq)
{
	return vq_driver_enable_calls_after(vq, 1);
}

int vq_driver_enable_calls_after(struct vq_driver *vq, uint16_t count)
{
	return split_driver_enable_calls_after(vq, count);
}

unsigned vq_driver_outstanding(const struct vq_driver *vq)
{
	return split_driver_outstanding(vq);
}

unsigned vq_driver_free(const struct vq_driver *vq)
{
	return split_driver_free(vq);
}

enum vq_broken vq_driver_broken(const struct vq_driver *vq)
{
	return vq->broken;
}

void vq_driver_counters_get(const struct vq_driver *vq, struct vq_driver_counters *out)
{
	memset(out, 0, sizeof(*out));
	split_driver_counters_get(vq, out);
}

/* ---- device half ------------------------------------------------------- */

int vq_device_create(struct gm *mem, const struct vq_config *config, struct vq_device **out)
{
	int rc = vq_config_check(mem, config);

	return rc ? rc : split_device_create(mem, config, out);
}

void vq_device_destroy(struct vq_device *vq)
{
	split_device_destroy(vq);
}

void vq_device_set_base(struct vq_device *vq, uint16_t avail_idx, uint16_t used_idx)
{
	split_device_set_base(vq, avail_idx, used_idx);
}

uint16_t vq_device_avail_base(const struct vq_device *vq)
{
	return split_device_avail_base(vq);
}

int vq_device_pop(struct vq_device *vq, struct vq_chain *chain)
{
	return split_device_pop(vq, chain);
}

unsigned vq_device_pending(struct vq_device *vq)
{
	return split_device_pending(vq);
}

void vq_device_push(struct vq_device *vq, uint16_t head, uint32_t len)
{
	split_device_push(vq, head, len);
}

unsigned vq_device_publish(struct vq_device *vq)
{
	return split_device_publish(vq);
}

int vq_device_call_needed(struct vq_device *vq)
{
	return split_device_call_needed(vq);
}

void vq_device_disable_kicks(struct vq_device *vq)
{
	split_device_disable_kicks(vq);
}

int vq_device_enable_kicks(struct vq_device *vq)
{
	return split_device_enable_kicks(vq);
}

enum vq_broken vq_device_broken(const struct vq_device *vq)
{
	return vq->broken;
}

void vq_device_counters_get(const struct vq_device *vq, struct vq_device_counters *out)
{
	memset(out, 0, sizeof(*out));
	split_device_counters_get(vq, out);
}

int vq_driver_send(struct vq_driver *vq, uint64_t addr, uint32_t len)
{
	const struct vq_segment segment = {.addr = addr, .len = len};
	int rc = vq_driver_add(vq, &segment, 1, 0, addr);

	if (rc == 0)
		vq_driver_publish(vq);
	return rc;
}

int vq_driver_submit(struct vq_driver *vq, uint64_t addr, uint32_t len)
{
	const int rc = vq_driver_send(vq, addr, len);

	return rc ? rc : vq_driver_kick_needed(vq);
}
