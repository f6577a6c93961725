/* SPDX-License-Identifier: MIT */
/*
 * A descriptor chain as a byte stream. Framing is never assumed (SPLIT-DEV-01,
 * T-28): a PFN array or a statistics entry may be cut anywhere, so devices read
 * through a cursor and never look at single descriptors.
 */
#ifndef BALLOONVQ_CHAIN_H
#define BALLOONVQ_CHAIN_H

#include <stddef.h>
#include <stdint.h>

#include "virtqueue.h"

/* A reading position in the device-readable part of a chain. */
struct vq_reader {
	const struct vq_chain *chain; /* what is read */
	uint32_t segment;             /* current segment */
	uint32_t offset;              /* bytes of it already read */
	uint64_t left;                /* bytes of the stream not read yet */
};

void vq_reader_init(struct vq_reader *reader, const struct vq_chain *chain);

/* Copies up to len bytes out; returns how many (less than len only at the end). */
size_t vq_read(struct vq_reader *reader, void *to, size_t len);

/* Bytes not read yet. */
uint64_t vq_reader_left(const struct vq_reader *reader);

#endif
