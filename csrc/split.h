/* SPDX-License-Identifier: MIT */
/*
 * Internal: the split ring behind virtqueue.h. Each function does what the one
 * of the same name there says. Callers have checked the configuration.
 */
#ifndef BALLOONVQ_SPLIT_H
#define BALLOONVQ_SPLIT_H

#include "vq_half.h"

int split_layout(uint32_t size, struct vq_layout *out);

int split_driver_create(struct gm *mem, const struct vq_config *config, struct vq_driver **out);
void split_driver_destroy(struct vq_driver *half);
int split_driver_add(struct vq_driver *half, const struct vq_segment *segments, unsigned readable,
		     unsigned writable, uint64_t token);
int split_driver_add_indirect(struct vq_driver *half, const struct vq_segment *segments,
			      unsigned readable, unsigned writable, uint64_t table_addr,
			      uint64_t token);
unsigned split_driver_publish(struct vq_driver *half);
int split_driver_kick_needed(struct vq_driver *half);
int split_driver_get_used(struct vq_driver *half, uint64_t *token, uint32_t *len);
void split_driver_disable_calls(struct vq_driver *half);
int split_driver_enable_calls_after(struct vq_driver *half, uint16_t count);
unsigned split_driver_outstanding(const struct vq_driver *half);
unsigned split_driver_free(const struct vq_driver *half);
void split_driver_counters_get(const struct vq_driver *half, struct vq_driver_counters *out);

int split_device_create(struct gm *mem, const struct vq_config *config, struct vq_device **out);
void split_device_destroy(struct vq_device *half);
void split_device_set_base(struct vq_device *half, uint16_t avail_idx, uint16_t used_idx);
uint16_t split_device_avail_base(const struct vq_device *half);
int split_device_pop(struct vq_device *half, struct vq_chain *chain);
unsigned split_device_pending(struct vq_device *half);
void split_device_push(struct vq_device *half, uint16_t head, uint32_t len);
unsigned split_device_publish(struct vq_device *half);
int split_device_call_needed(struct vq_device *half);
void split_device_disable_kicks(struct vq_device *half);
int split_device_enable_kicks(struct vq_device *half);
void split_device_counters_get(const struct vq_device *half, struct vq_device_counters *out);

#endif
