/* Description: guest memory: regions, bounds, allocation figures, the user's pattern. */
/* SPDX-License-Identifier: MIT */
#include <fcntl.h>
#include <stdbool.h>
#include <sys/stat.h>

#include "helpers.h"

static void test_create_sizes(void)
{
	struct gm *mem = NULL;

	t_equal(-EINVAL, gm_create(0, &mem));
	t_equal(-EINVAL, gm_create(GM_PAGE_SIZE - 1, &mem));
	t_equal(-EINVAL, gm_create(GM_PAGE_SIZE + 1, &mem));
	t_equal(-EINVAL, gm_create((1ull << 44) + GM_PAGE_SIZE, &mem)); /* T-17 */
	t_equal(-EINVAL, gm_create(UINT64_MAX & ~0xfffull, &mem));
	t_equal(0, gm_create(GM_PAGE_SIZE, &mem));
	t_equal(1, gm_region_count(mem));
	t_equal(GM_PAGE_SIZE, gm_size(mem));
	t_equal(1, gm_pfn_end(mem));
	gm_destroy(mem);
	gm_destroy(NULL);
}

static void test_nothing_is_allocated_at_first(void)
{
	struct gm *mem;

	t_equal(0, gm_create(1ull << 36, &mem)); /* 64 GiB cost nothing */
	t_equal(0, gm_allocated_bytes(mem));
	t_equal(1ull << 24, gm_pfn_end(mem));
	gm_destroy(mem);
}

static void test_enough_memory_is_several_files(void)
{
	static const struct {
		uint64_t size;
		unsigned files;
	} cases[] = {
	    {GM_FILES * (uint64_t)GM_FILE_MIN - GM_PAGE_SIZE, 1},
	    {GM_FILES * (uint64_t)GM_FILE_MIN, GM_FILES},
	    {GM_FILES * (uint64_t)GM_FILE_MIN + GM_PAGE_SIZE, GM_FILES},
	    {(1ull << 30) + 5 * GM_PAGE_SIZE, GM_FILES},
	};

	for (unsigned c = 0; c < T_COUNT(cases); c++) {
		const uint64_t size = cases[c].size;
		struct gm_region region;
		uint64_t end = 0;
		struct gm *mem;
		char text[7];

		t_equal(0, gm_create(size, &mem));
		t_equal(cases[c].files, gm_region_count(mem));
		t_equal(size, gm_size(mem));
		t_equal(size >> GM_PAGE_SHIFT, gm_pfn_end(mem));
		for (unsigned i = 0; i < cases[c].files; i++) {
			t_equal(0, gm_region_at(mem, i, &region));
			t_equal(i, region.file);
			t_equal(end, region.guest_addr);
			t_equal(0, region.guest_addr % (2u << 20));
			t_equal(0, region.fd_offset);
			t_check(ftruncate(region.fd, 0) == -1 && errno == EPERM);
			end += region.size;
		}
		t_equal(size, end);
		/* What lies in two files: no single access, but populated like the rest. */
		if (cases[c].files > 1) {
			const uint64_t border = region.guest_addr;

			t_check(!gm_at(mem, border - 1, 2));
			t_equal(0, gm_populate(mem, border - GM_PAGE_SIZE, 2 * GM_PAGE_SIZE));
			t_equal(2 * GM_PAGE_SIZE, gm_allocated_bytes(mem));
			t_equal(0, gm_write(mem, border - 3, "across", 7));
			t_equal(0, gm_read(mem, border - 3, text, 7));
			t_check(memcmp(text, "across", 7) == 0);
			t_check(memcmp(gm_at(mem, border, 4), "oss", 4) == 0);
		}
		t_equal(-EFAULT, gm_write(mem, size - 3, "across", 7));
		t_equal(-EFAULT, gm_read(mem, size - 3, text, 7));
		t_equal(-EFAULT, gm_populate(mem, size - GM_PAGE_SIZE, 2 * GM_PAGE_SIZE));
		t_equal(cases[c].files > 1 ? 2 * GM_PAGE_SIZE : 0, gm_allocated_bytes(mem));
		t_equal(0, gm_populate(mem, size - GM_PAGE_SIZE, GM_PAGE_SIZE));
		gm_destroy(mem);
	}
}

static void test_file_cannot_shrink_but_takes_holes(void)
{
	struct gm_region region;
	struct gm *mem;

	t_equal(0, gm_create(16 * GM_PAGE_SIZE, &mem));
	t_equal(0, gm_region_at(mem, 0, &region));
	t_equal(-ENOENT, gm_region_at(mem, 1, &region));
	t_check(ftruncate(region.fd, GM_PAGE_SIZE) == -1 && errno == EPERM);
	t_equal(0, gm_populate(mem, 0, 16 * GM_PAGE_SIZE));
	t_equal(16 * GM_PAGE_SIZE, gm_allocated_bytes(mem));
	t_equal(0, fallocate(region.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
			     4 * GM_PAGE_SIZE));
	t_equal(12 * GM_PAGE_SIZE, gm_allocated_bytes(mem));
	t_equal(16 * GM_PAGE_SIZE, gm_allocated_peak(mem));
	gm_destroy(mem);
}

static void test_t_50_anonymous_memory_is_counted_page_by_page(void)
{
	static uint32_t pfns[100];
	struct gm_region region;
	int64_t now, peak;
	struct gm *mem;

	t_equal(-EINVAL, gm_create_anonymous(0, GM_SMALL, &mem));
	t_equal(-EINVAL, gm_create_anonymous(GM_PAGE_SIZE + 1, GM_SMALL, &mem));
	t_equal(-EINVAL,
		gm_create_anonymous((1ull << 44) + GM_PAGE_SIZE, GM_HUGE, &mem)); /* T-17 */
	t_equal(0, gm_create_anonymous(20000ull * GM_PAGE_SIZE, GM_SMALL, &mem));
	t_equal(20000, gm_pfn_end(mem));
	t_equal(0, gm_region_at(mem, 0, &region));
	t_equal(-1, region.fd);
	t_equal(0, (uintptr_t)region.host % (2u << 20));
	t_equal(0, gm_allocated_bytes(mem));
	/* Across the pieces in which the kernel is asked. */
	t_equal(0, gm_populate(mem, 8000 * GM_PAGE_SIZE, 9000 * GM_PAGE_SIZE));
	t_equal(9000 * GM_PAGE_SIZE, gm_allocated_bytes(mem));
	for (uint32_t i = 0; i < 100; i++)
		pfns[i] = 19999 - i;
	t_equal(100, gm_stamp(mem, pfns, 100, 3));
	t_equal(9100 * GM_PAGE_SIZE, gm_allocated_bytes(mem));
	t_equal(0, gm_verify(mem, pfns, 100, 3, NULL, 0));
	t_equal(9100 * GM_PAGE_SIZE, gm_allocated_peak(mem));
	t_equal(0, gm_allocated(mem, &now, &peak));
	t_equal(9100 * GM_PAGE_SIZE, now);
	t_equal(9100 * GM_PAGE_SIZE, peak);
	t_equal(0, madvise(region.host + 8000 * GM_PAGE_SIZE, 9000 * GM_PAGE_SIZE, MADV_DONTNEED));
	t_equal(100 * GM_PAGE_SIZE, gm_allocated_bytes(mem));
	t_equal(9100 * GM_PAGE_SIZE, gm_allocated_peak(mem));
	t_equal(0, gm_allocated(mem, &now, &peak));
	t_equal(100 * GM_PAGE_SIZE, now);
	t_equal(9100 * GM_PAGE_SIZE, peak);
	/* There is no more than all. */
	t_equal(0, gm_populate(mem, 0, 20000ull * GM_PAGE_SIZE));
	t_equal(20000ull * GM_PAGE_SIZE, gm_allocated_peak(mem));
	t_equal(0, madvise(region.host, 20000ull * GM_PAGE_SIZE, MADV_DONTNEED));
	t_equal(20000ull * GM_PAGE_SIZE, gm_allocated_peak(mem));
	t_equal(0, gm_allocated(mem, &now, &peak));
	t_equal(0, now);
	t_equal(20000ull * GM_PAGE_SIZE, peak);
	t_equal(0, gm_guard(mem)); /* nothing to guard */
	gm_destroy(mem);
}

static void test_huge_pages_back_huge_memory(void)
{
	struct gm_region region;
	struct gm *mem;
	char line[256];
	FILE *maps;
	unsigned long start, end, kib = 0;
	bool ours = false;

	t_equal(0, gm_create_anonymous(8u << 20, GM_HUGE, &mem));
	t_equal(0, gm_region_at(mem, 0, &region));
	t_equal(0, gm_populate(mem, 0, GM_PAGE_SIZE));
	maps = fopen("/proc/self/smaps", "r");
	t_check(maps);
	while (fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			ours = start <= (uintptr_t)region.host && (uintptr_t)region.host < end;
		else if (ours && sscanf(line, "AnonHugePages: %lu kB", &kib) == 1)
			break;
	}
	fclose(maps);
	if (kib == 0) {
		gm_destroy(mem);
		t_skip("the host has no huge page");
	}
	t_equal(2048, kib);
	t_equal(2u << 20, gm_allocated_bytes(mem));
	gm_destroy(mem);
}

static void test_bounds(void)
{
	const uint64_t size = 4 * GM_PAGE_SIZE;
	const uint64_t base = 0x10000;
	uint8_t *host;
	struct gm *mem;

	t_equal(0, gm_create_empty(&mem));
	t_check(!gm_at(mem, 0, 0));
	t_check(!gm_find(mem, 0));
	t_equal(0, gm_pfn_end(mem));
	t_equal(0, gm_add_region(mem, base, size, t_memfd(size), 0));
	host = gm_at(mem, base, size);
	t_check(host);
	t_check(gm_at(mem, base, 0) == host);
	t_check(gm_at(mem, base + size - 1, 1) == host + size - 1);
	t_check(gm_at(mem, base + size - 1, 0) == host + size - 1);
	t_check(!gm_at(mem, base + size - 1, 2));
	t_check(!gm_at(mem, base + size, 0));
	t_check(!gm_at(mem, base - 1, 0));
	t_check(!gm_at(mem, base - 1, 2));
	t_check(!gm_at(mem, base, size + 1));
	/* Sums that would wrap. */
	t_check(!gm_at(mem, base + 1, UINT64_MAX));
	t_check(!gm_at(mem, base, UINT64_MAX));
	t_check(!gm_at(mem, UINT64_MAX, 1));
	t_check(!gm_at(mem, UINT64_MAX, UINT64_MAX));
	t_check(!gm_at(mem, UINT64_MAX - size, size));
	gm_destroy(mem);
}

/* The window must answer as gm_at() does, whatever it remembers. */
static void test_window_agrees_with_lookup(void)
{
	static const uint64_t lens[] = {0, 1, 4095, 4096, 4097, 8192, 8193, UINT64_MAX};
	struct gm_window window = {0};
	uint64_t random = 7;
	struct gm *mem;

	t_equal(0, gm_create_empty(&mem));
	t_equal(0, gm_add_region(mem, 0x4000, 8192, t_memfd(8192), 0));
	t_equal(0, gm_add_region(mem, 0x6000, 4096, t_memfd(4096), 0)); /* touches the first */
	t_equal(0, gm_add_region(mem, 0x9000, 4096, t_memfd(4096), 0));
	for (unsigned i = 0; i < 20000; i++) {
		uint64_t addr = t_random(&random) % 0xb000;
		uint64_t len = lens[t_random(&random) % T_COUNT(lens)];

		t_check(gm_at_window(mem, &window, addr, len) == gm_at(mem, addr, len));
	}
	gm_destroy(mem);
}

static void test_add_region_refuses(void)
{
	int fd = t_memfd(8192);
	struct gm *mem;

	t_equal(0, gm_create_empty(&mem));
	t_equal(-EINVAL, gm_add_region(mem, 0, 0, fd, 0));
	t_equal(-EINVAL, gm_add_region(mem, UINT64_MAX - 4095, 8192, fd, 0));
	t_equal(-EINVAL, gm_add_region(mem, 0, 8192, fd, UINT64_MAX - 4095));
	t_equal(-EINVAL, gm_add_region(mem, 0, INT64_MAX, fd, 8192));
	t_equal(-EBADF, gm_add_region(mem, 0, 8193, fd, 0));
	t_equal(-EBADF, gm_add_region(mem, 0, 8192, fd, 1));
	t_equal(-EBADF, gm_add_region(mem, 0, 8192, -1, 0));
	t_equal(0, gm_add_region(mem, 0x10000, 8192, fd, 0));
	fd = t_memfd(8192); /* the first one belongs to the map now */
	t_equal(-EINVAL, gm_add_region(mem, 0x10000, 8192, fd, 0));
	t_equal(-EINVAL, gm_add_region(mem, 0xffff, 2, fd, 0));
	t_equal(-EINVAL, gm_add_region(mem, 0x11fff, 1, fd, 0));
	t_equal(-EINVAL, gm_add_region(mem, 0xf000, 8192, fd, 0));
	t_equal(1, gm_region_count(mem));
	t_equal(0, gm_add_region(mem, 0xe000, 8192, fd, 0)); /* ends where the other begins */
	gm_destroy(mem);
}

static void test_regions_are_sorted_and_limited(void)
{
	struct gm_region region;
	struct gm *mem;
	int fd;

	t_equal(0, gm_create_empty(&mem));
	for (unsigned i = 0; i < GM_REGIONS_MAX; i++) {
		uint64_t at = (i * 37 % GM_REGIONS_MAX) * 0x2000ull; /* 37: every place once */

		t_equal(0, gm_add_region(mem, at, 4096, t_memfd(4096), 0));
	}
	fd = t_memfd(4096);
	t_equal(-ENOSPC, gm_add_region(mem, 1ull << 40, 4096, fd, 0));
	close(fd);
	for (unsigned i = 0; i < GM_REGIONS_MAX; i++) {
		t_equal(0, gm_region_at(mem, i, &region));
		t_equal(i * 0x2000ull, region.guest_addr);
		t_check(gm_find(mem, i * 0x2000ull + 4095)->guest_addr == i * 0x2000ull);
		t_check(!gm_find(mem, i * 0x2000ull + 4096));
	}
	t_equal(GM_REGIONS_MAX * 4096, gm_size(mem));
	t_equal((GM_REGIONS_MAX - 1) * 2 + 1, gm_pfn_end(mem));
	gm_destroy(mem);
}

/* Two regions of one file count it once; a third file adds to it. */
static void test_allocated_counts_files_once(void)
{
	int fd = t_memfd(16 * 4096);
	struct gm *mem;

	t_equal(0, gm_create_empty(&mem));
	t_equal(0, gm_add_region(mem, 0x100000, 8 * 4096, dup(fd), 8 * 4096));
	t_equal(0, gm_add_region(mem, 0, 8 * 4096, fd, 0));
	t_equal(0, gm_populate(mem, 0, 4096));
	t_equal(0, gm_populate(mem, 0x100000, 2 * 4096));
	t_equal(3 * 4096, gm_allocated_bytes(mem));
	t_equal(0, gm_add_region(mem, 0x200000, 4096, t_memfd(4096), 0));
	t_equal(0, gm_populate(mem, 0x200000, 4096));
	t_equal(4 * 4096, gm_allocated_bytes(mem));
	t_equal(4 * 4096, gm_allocated_peak(mem));
	gm_destroy(mem);
}

static void test_unaligned_file_offset(void)
{
	uint32_t pfns[2] = {4, 5}, bad[2];
	int fd = t_memfd(5 * 4096);
	uint8_t byte = 0;
	struct gm *mem;

	t_equal(0, gm_create_empty(&mem));
	t_equal(0, gm_add_region(mem, 0x4000, 2 * 4096, fd, 4097));
	t_equal(2, gm_stamp(mem, pfns, 2, 9)); /* words stand at odd addresses */
	t_equal(0, gm_verify(mem, pfns, 2, 9, bad, 2));
	t_equal(1, pread(fd, &byte, 1, 4096)); /* the lead was not written */
	t_equal(0, byte);
	t_equal(0, gm_write(mem, 0x4000, "x", 1));
	t_equal(1, pread(fd, &byte, 1, 4097));
	t_equal('x', byte);
	t_equal(0, gm_populate(mem, 0x5fff, 1));
	gm_destroy(mem);
}

static void test_read_and_write(void)
{
	char text[6] = "";
	struct gm *mem;

	t_equal(0, gm_create(4096, &mem));
	t_equal(0, gm_write(mem, 100, "hello", 6));
	t_equal(0, gm_read(mem, 100, text, 6));
	t_check(strcmp(text, "hello") == 0);
	t_equal(-EFAULT, gm_write(mem, 4095, "ab", 2));
	t_equal(-EFAULT, gm_read(mem, 4096, text, 1));
	t_equal(-EFAULT, gm_populate(mem, 4095, 2));
	t_equal(0, gm_populate(mem, 4095, 0));
	gm_destroy(mem);
}

static void test_populate_keeps_content(void)
{
	char text[4];
	struct gm *mem;

	t_equal(0, gm_create(8 * 4096, &mem));
	t_equal(0, gm_write(mem, 4094, "abcd", 4));
	t_equal(0, gm_populate(mem, 0, 8 * 4096));
	t_equal(0, gm_read(mem, 4094, text, 4));
	t_check(memcmp(text, "abcd", 4) == 0);
	gm_destroy(mem);
}

#define PAGES 5000u

static void test_stamp_and_verify(void)
{
	static uint32_t pfns[PAGES];
	uint32_t bad[4];
	uint8_t *page;
	uint64_t word;
	struct gm *mem;

	t_equal(0, gm_create((uint64_t)PAGES * 4096, &mem));
	for (uint32_t i = 0; i < PAGES; i++)
		pfns[i] = i;
	t_equal(PAGES, gm_stamp(mem, pfns, PAGES, 1));
	t_equal((uint64_t)PAGES * 4096, gm_allocated_bytes(mem));
	t_equal((uint64_t)PAGES * 4096, gm_allocated_peak(mem));
	t_equal(0, gm_verify(mem, pfns, PAGES, 1, NULL, 0));
	t_equal(PAGES, gm_verify(mem, pfns, PAGES, 2, bad, 4)); /* another owner */
	t_check(bad[0] == 0 && bad[3] == 3);

	/* Never zero, at every 512th byte; one changed bit in any word is seen. */
	page = gm_at(mem, 77 * 4096, 4096);
	for (unsigned k = 0; k < 8; k++) {
		memcpy(&word, page + 512 * k, 8);
		t_check(word != 0);
		page[512 * k + 7] ^= 0x80;
		t_equal(1, gm_verify(mem, pfns, PAGES, 1, bad, 4));
		t_equal(77, bad[0]);
		page[512 * k + 7] ^= 0x80;
	}
	/* Two pages swapped. */
	t_equal(0, gm_read(mem, 0, &word, 8));
	t_equal(0, gm_write(mem, 4096, &word, 8));
	t_equal(1, gm_verify(mem, pfns, PAGES, 1, bad, 4));
	t_equal(1, bad[0]);
	gm_destroy(mem);
}

static void test_stamp_scattered_and_mixed_runs(void)
{
	/* a run, single ones, downward, a duplicate, a run again */
	uint32_t pfns[] = {10, 11, 12, 13, 14, 3, 900, 2, 1, 0, 3, 500, 501, 502, 503, 504, 505};
	struct gm *mem;

	t_equal(0, gm_create(1000 * 4096, &mem));
	t_equal(T_COUNT(pfns), gm_stamp(mem, pfns, T_COUNT(pfns), 5));
	t_equal(0, gm_verify(mem, pfns, T_COUNT(pfns), 5, NULL, 0));
	t_equal(16 * 4096, gm_allocated_bytes(mem)); /* 17 entries, one twice; nothing more */
	gm_destroy(mem);
}

static void test_stamp_outside_touches_nothing(void)
{
	uint32_t pfns[] = {0, 1, 2, 3, 4, 5, 6, 8};
	struct gm *mem;

	t_equal(0, gm_create(8 * 4096, &mem));
	t_equal(-EFAULT, gm_stamp(mem, pfns, 8, 1));
	t_equal(-EFAULT, gm_verify(mem, pfns, 8, 1, NULL, 0));
	pfns[7] = UINT32_MAX;
	t_equal(-EFAULT, gm_stamp(mem, pfns, 8, 1));
	t_equal(0, gm_allocated_bytes(mem));
	t_equal(0, gm_stamp(mem, pfns, 0, 1));
	gm_destroy(mem);
}

/* PFNs that follow each other across a gap or across two regions. */
static void test_stamp_across_regions(void)
{
	uint32_t pfns[8] = {0, 1, 2, 3, 4, 5, 6, 7};
	struct gm *mem;

	t_equal(0, gm_create_empty(&mem));
	t_equal(0, gm_add_region(mem, 4 * 4096, 4 * 4096, t_memfd(4 * 4096), 0));
	t_equal(0, gm_add_region(mem, 0, 4 * 4096, t_memfd(4 * 4096), 0));
	t_equal(8, gm_stamp(mem, pfns, 8, 1));
	t_equal(0, gm_verify(mem, pfns, 8, 1, NULL, 0));
	gm_destroy(mem);
}

static const struct t_test tests[] = {
    T_TEST(test_create_sizes),
    T_TEST(test_nothing_is_allocated_at_first),
    T_TEST(test_enough_memory_is_several_files),
    T_TEST(test_file_cannot_shrink_but_takes_holes),
    T_TEST(test_t_50_anonymous_memory_is_counted_page_by_page),
    T_TEST(test_huge_pages_back_huge_memory),
    T_TEST(test_bounds),
    T_TEST(test_window_agrees_with_lookup),
    T_TEST(test_add_region_refuses),
    T_TEST(test_regions_are_sorted_and_limited),
    T_TEST(test_allocated_counts_files_once),
    T_TEST(test_unaligned_file_offset),
    T_TEST(test_read_and_write),
    T_TEST(test_populate_keeps_content),
    T_TEST(test_stamp_and_verify),
    T_TEST(test_stamp_scattered_and_mixed_runs),
    T_TEST(test_stamp_outside_touches_nothing),
    T_TEST(test_stamp_across_regions),
};

int main(void)
{
	return t_run(tests, T_COUNT(tests));
}
