/* SPDX-License-Identifier: MIT */
/*
 * Reading a chain as one byte stream.
 *
 *   segments   [ a b c ][ d ][ e f g h ]        readable ones only
 *   stream       0 1 2    3    4 5 6 7
 *                         ^ segment 1, offset 0 = stream position 3
 *
 * A read copies from the current segment, moves on when it is exhausted, and
 * stops at the first device-writable segment: those are never read
 * (SPLIT-DEV-04). Where the segments are cut has no influence on what comes
 * out (SPLIT-DEV-01, T-28).
 */
#include "chain.h"

#include <string.h>

void vq_reader_init(struct vq_reader *reader, const struct vq_chain *chain)
{
	reader->chain = chain;
	reader->segment = 0;
	reader->offset = 0;
	reader->left = chain->readable_bytes;
}

size_t vq_read(struct vq_reader *reader, void *to, size_t len)
{
	const struct vq_chain *chain = reader->chain;
	uint8_t *out = to;
	size_t done = 0;

	while (done < len && reader->segment < chain->readable) {
		const struct vq_iovec *segment = &chain->segments[reader->segment];
		uint32_t left = segment->len - reader->offset;
		uint32_t take = len - done < left ? (uint32_t)(len - done) : left;

		memcpy(out + done, segment->base + reader->offset, take);
		done += take;
		reader->offset += take;
		if (reader->offset == segment->len) {
			reader->segment++;
			reader->offset = 0;
		}
	}
	reader->left -= done;
	return done;
}

uint64_t vq_reader_left(const struct vq_reader *reader)
{
	return reader->left;
}
