/* Description: a chain as a byte stream; no framing is assumed (SPLIT-DEV-01, T-28). */
/* SPDX-License-Identifier: MIT */
#include "chain.h"
#include "helpers.h"

#define LENGTH 24u

static void fill(uint8_t *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++)
		bytes[i] = (uint8_t)(i * 7 + 1);
}

/* Reads the whole stream in pieces of `step` and compares it. */
static void check_stream(const struct vq_chain *chain, const uint8_t *expected, size_t n,
			 size_t step)
{
	struct vq_reader reader;
	uint8_t out[64];
	size_t done = 0;

	vq_reader_init(&reader, chain);
	while (done < n) {
		size_t want = n - done < step ? n - done : step;

		t_equal(n - done, vq_reader_left(&reader));
		t_equal(want, vq_read(&reader, out, step));
		t_check(memcmp(out, expected + done, want) == 0);
		done += want;
	}
	t_equal(0, vq_reader_left(&reader));
	t_equal(0, vq_read(&reader, out, sizeof(out)));
}

/* Cut at every pair of places, read in every step, through the real device half. */
static void test_split_dev_01_any_framing_reads_the_same(void)
{
	uint8_t bytes[LENGTH];
	struct t_ring r;

	t_ring_make(&r, 8, 0);
	fill(bytes, sizeof(bytes));
	for (uint32_t a = 0; a <= LENGTH; a++) {
		for (uint32_t b = a; b <= LENGTH; b++) {
			const uint32_t cuts[4] = {0, a, b, LENGTH};
			struct vq_chain chain;

			/* Far apart, in a shuffled order of descriptors; empty pieces stay in. */
			for (unsigned i = 0; i < 3; i++) {
				uint32_t len = cuts[i + 1] - cuts[i];

				t_equal(0,
					gm_write(r.mem, T_DATA + 5000 * i, bytes + cuts[i], len));
				t_raw_desc(&r, 7 - i * 2, T_DATA + 5000 * i, len,
					   i < 2 ? T_NEXT : 0, 5 - i * 2);
			}
			t_raw_offer(&r, 7);
			t_equal(1, vq_device_pop(r.device, &chain));
			t_equal(LENGTH, chain.readable_bytes);
			for (size_t step = 1; step <= 11; step++)
				check_stream(&chain, bytes, LENGTH, step);
		}
	}
	t_ring_drop(&r);
}

/* Writable segments are no part of the stream. */
static void test_split_dev_04_writable_part_is_never_read(void)
{
	uint8_t readable[6] = {1, 2, 3, 4, 5, 6};
	struct vq_iovec segments[] = {
	    {readable, 4, 0},
	    {readable + 4, 2, 0},
	    {NULL, 4096, 0}, /* NULL: reading crashes */
	};
	struct vq_chain chain = {segments, 3, 2, 6, 4096, 0};
	struct vq_reader reader;
	uint8_t out[16];

	vq_reader_init(&reader, &chain);
	t_equal(6, vq_reader_left(&reader));
	t_equal(6, vq_read(&reader, out, sizeof(out)));
	t_check(memcmp(out, readable, 6) == 0);
	t_equal(0, vq_read(&reader, out, sizeof(out)));
}

static void test_empty_chain(void)
{
	struct vq_chain chain = {NULL, 0, 0, 0, 0, 0};
	struct vq_reader reader;
	uint8_t out;

	vq_reader_init(&reader, &chain);
	t_equal(0, vq_reader_left(&reader));
	t_equal(0, vq_read(&reader, &out, 1));
	t_equal(0, vq_read(&reader, &out, 0));
}

static const struct t_test tests[] = {
    T_TEST(test_split_dev_01_any_framing_reads_the_same),
    T_TEST(test_split_dev_04_writable_part_is_never_read),
    T_TEST(test_empty_chain),
};

int main(void)
{
	return t_run(tests, T_COUNT(tests));
}
