/* Description: PFNs -> ranges -> holes, against a page by page model of what must be gone. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "discard.h"
#include "guest_memory.h"
#include "helpers.h"

#define PAGES_MAX   4096u
#define BLOCK_PAGES 512u /* 2 MiB */

static struct gm *small_pages(uint64_t pages)
{
	struct gm *mem;

	t_equal(0, gm_create_anonymous(pages << GM_PAGE_SHIFT, GM_SMALL, &mem));
	return mem;
}

/* Does this kernel take many ranges of our own memory in one call (6.13)? */
static bool one_call_for_many(void)
{
	struct gm *mem = small_pages(4);
	const struct iovec both[2] = {{gm_at(mem, 0, 4096), 4096}, {gm_at(mem, 8192, 4096), 4096}};
	const int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
	const long done = syscall(SYS_process_madvise, self, both, 2, MADV_DONTNEED, 0);

	close(self);
	gm_destroy(mem);
	return done == 8192;
}

/* Is the page of guest memory there? Asking does not bring it back, reading it would. */
static bool present(const struct gm *mem, uint64_t pfn)
{
	const struct gm_region *region = gm_find(mem, pfn << GM_PAGE_SHIFT);
	unsigned char there;

	if (region->fd < 0) {
		t_equal(0, mincore(region->host + (pfn << GM_PAGE_SHIFT) - region->guest_addr,
				   GM_PAGE_SIZE, &there));
		return there & 1;
	}

	const off_t at = (off_t)(region->fd_offset + (pfn << GM_PAGE_SHIFT) - region->guest_addr);

	return lseek(region->fd, at, SEEK_DATA) == at;
}

static int fill(struct gm *mem, uint64_t first, uint64_t n)
{
	return gm_populate(mem, first << GM_PAGE_SHIFT, n << GM_PAGE_SHIFT);
}

enum shape { RISING, FALLING, SCATTERED, REPEATED, RUNS, SHAPES };

/* n PFNs below `pages`, of a shape. Returns how many. */
static size_t draw(uint32_t *pfns, size_t n, uint32_t pages, enum shape shape, uint64_t *random)
{
	uint32_t pfn = (uint32_t)(t_random(random) % pages);

	for (size_t i = 0; i < n; i++) {
		switch (shape) {
		case RISING:
			pfns[i] = pfn++ % pages;
			break;
		case FALLING:
			pfns[i] = pfn;
			pfn = (pfn + pages - 1) % pages;
			break;
		case RUNS:
			if (t_random(random) % 16 == 0)
				pfn = (uint32_t)(t_random(random) % pages);
			pfns[i] = pfn++ % pages;
			break;
		case REPEATED:
			pfns[i] = (uint32_t)(t_random(random) % (pages / 16 + 1));
			break;
		default:
			pfns[i] = (uint32_t)(t_random(random) % pages);
		}
	}
	return n;
}

/*
 * One request, against the model. `first` and `pages`: which PFNs are there;
 * `granule`: pages in a host page (aligned to PFN 0 and to the file alike).
 */
static void check_request(struct gm *mem, struct discard *d, uint32_t first, uint32_t pages,
			  uint32_t granule, uint32_t *pfns, size_t n)
{
	static bool asked[PAGES_MAX];
	struct discard_counters before, after;
	uint64_t gone = 0, ranges = 0, unique = 0;
	bool previous = false;
	int64_t rc;

	memset(asked, 0, sizeof(asked));
	for (size_t i = 0; i < n; i++)
		asked[pfns[i] - first] = true;
	discard_counters_get(d, &before);
	rc = discard_pages(d, pfns, n);
	discard_counters_get(d, &after);

	for (uint32_t i = 0; i < pages; i += granule) {
		bool whole = true;

		for (uint32_t j = i; j < i + granule; j++) {
			whole &= asked[j];
			unique += asked[j];
		}
		for (uint32_t j = i; j < i + granule; j++)
			t_equal(!whole, present(mem, first + j));
		gone += whole ? granule : 0;
		ranges += whole && !previous;
		previous = whole;
	}
	t_equal(ranges, rc);
	t_equal(ranges, after.ranges - before.ranges);
	/* All in one call, or one each, with a few more to empty the mapping. */
	t_check(after.syscalls - before.syscalls <= ranges + pages / BLOCK_PAGES + 1);
	t_equal(gone, after.pages - before.pages);
	t_equal(unique - gone, after.partial - before.partial);
	t_equal(0, after.failed);
}

/* Memory of either kind, and what gives it back. */
static void check_random_requests(bool anonymous)
{
	static uint32_t pfns[3 * PAGES_MAX];
	static const uint32_t sizes[] = {64, 512, PAGES_MAX};
	uint64_t random = 11;

	for (unsigned s = 0; s < 3; s++) {
		struct discard *d;
		struct gm *mem;

		if (anonymous)
			mem = small_pages(sizes[s]);
		else
			t_equal(0, gm_create((uint64_t)sizes[s] << GM_PAGE_SHIFT, &mem));
		t_equal(0, discard_create(mem, anonymous ? DISCARD_DONTNEED : DISCARD_PUNCH, &d));
		for (unsigned round = 0; round < 20; round++) {
			const size_t n = (size_t)(t_random(&random) % (3 * sizes[s]) + 1);

			t_equal(0, fill(mem, 0, sizes[s]));
			draw(pfns, round % 4 ? n : n % 30, sizes[s], round % SHAPES, &random);
			check_request(mem, d, 0, sizes[s], 1, pfns, round % 4 ? n : n % 30);
		}
		t_equal(0, discard_pages(d, pfns, 0));
		discard_destroy(d);
		gm_destroy(mem);
	}
}

static void test_random_requests_match_model(void)
{
	check_random_requests(false);
}

static void test_t_50_random_requests_in_private_memory_match_model(void)
{
	check_random_requests(true);
}

static void test_private_memory_leaves_in_one_call(void)
{
	static uint32_t pfns[256];
	struct discard_counters count;
	struct gm *mem = small_pages(1024);
	struct discard *d;

	if (!one_call_for_many()) {
		gm_destroy(mem);
		t_skip("the kernel takes only one range a call");
	}
	t_equal(0, discard_create(mem, DISCARD_DONTNEED, &d));
	t_equal(0, fill(mem, 0, 1024));
	for (uint32_t i = 0; i < 256; i++)
		pfns[i] = i * 167 % 512 * 2; /* every second page, in a wild order */
	t_equal(256, discard_pages(d, pfns, 256));
	discard_counters_get(d, &count);
	t_equal(1, count.syscalls);
	t_equal(256, count.ranges);
	t_equal(768 << GM_PAGE_SHIFT, gm_allocated_bytes(mem));
	discard_destroy(d);
	gm_destroy(mem);
}

/* A program of the guest that writes its pages over and over, and looks whether they stay. */
struct writer {
	struct gm *mem;
	const uint32_t *pfns;
	size_t n;
	atomic_bool end;
	int64_t lost;
};

static void *keep_writing(void *arg)
{
	struct writer *w = arg;

	for (uint64_t owner = 1; !atomic_load(&w->end); owner++) {
		gm_stamp(w->mem, w->pfns, w->n, owner);
		w->lost += gm_verify(w->mem, w->pfns, w->n, owner, NULL, 0);
	}
	return NULL;
}

/* Every second page goes, in pieces of a few, so that the mapping around them is emptied each time. */
static void test_emptied_mapping_loses_nothing_of_the_others(void)
{
	static uint32_t gone[PAGES_MAX / 2], kept[PAGES_MAX / 2];
	struct discard_counters count;
	struct discard *d;
	struct gm *mem;
	pthread_t thread;

	t_equal(0, gm_create((uint64_t)PAGES_MAX << GM_PAGE_SHIFT, &mem));
	t_equal(0, discard_create(mem, DISCARD_PUNCH, &d));
	for (uint32_t i = 0; i < PAGES_MAX / 2; i++)
		kept[i] = i * 2 + 1;
	struct writer w = {.mem = mem, .pfns = kept, .n = PAGES_MAX / 2};

	t_equal(0, pthread_create(&thread, NULL, keep_writing, &w));
	for (unsigned round = 0; round < 20; round++) {
		t_equal(0, fill(mem, 0, PAGES_MAX));
		for (uint32_t i = 0; i < PAGES_MAX / 2; i++)
			gone[i] = i * 1031 % (PAGES_MAX / 2) * 2;
		for (uint32_t at = 0; at < PAGES_MAX / 2; at += 64)
			t_equal(64, discard_pages(d, gone + at, 64));
		for (uint32_t i = 0; i < PAGES_MAX; i += 2)
			t_equal(false, present(mem, i));
	}
	atomic_store(&w.end, true);
	t_equal(0, pthread_join(thread, NULL));
	t_equal(0, w.lost);
	discard_counters_get(d, &count);
	/* The mapping was emptied, beside holes one by one or many a call. */
	t_check(count.syscalls > (one_call_for_many() ? count.ranges / 64 : count.ranges));
	t_equal(0, count.failed);
	discard_destroy(d);
	gm_destroy(mem);
}

/* Emptying is all at once, and its holes do not bring it on again. */
static void test_prepared_blocks_are_emptied_once(void)
{
	static uint32_t gone[PAGES_MAX / 2];
	static const struct discard_block blocks[] = {
	    {0, 256}, {1, 256}, {2, 256},       {3, 200},
	    {5, 8},   {7, 256}, {1000000, 256}, {UINT32_MAX, 9},
	};
	struct discard_counters before, after;
	struct discard *d, *beside;
	struct gm *mem;

	t_equal(0, gm_create((uint64_t)PAGES_MAX << GM_PAGE_SHIFT, &mem));
	t_equal(0, discard_create(mem, DISCARD_PUNCH, &d));
	t_equal(0, discard_create_beside(d, &beside));
	t_equal(0, fill(mem, 0, PAGES_MAX));
	for (uint32_t i = 0; i < PAGES_MAX; i++)
		t_equal(1, gm_stamp(mem, &i, 1, 4));
	discard_prepare(d, blocks, T_COUNT(blocks));
	t_equal((uint64_t)PAGES_MAX << GM_PAGE_SHIFT, gm_allocated_bytes(mem));
	discard_counters_get(d, &before);
	t_check(before.syscalls > 0);
	t_equal(0, before.ranges);
	for (uint32_t i = 0; i < PAGES_MAX / 2; i++)
		gone[i] = i * 2;
	t_equal(3 * BLOCK_PAGES / 2, discard_pages(beside, gone, 3 * BLOCK_PAGES / 2));
	discard_counters_get(d, &after);
	t_equal(3 * BLOCK_PAGES / 2, after.ranges);
	t_check(after.syscalls - before.syscalls <= (one_call_for_many() ? 2 : after.ranges));
	/* More than were announced: it is emptied once more. */
	before = after;
	t_equal(BLOCK_PAGES / 2,
		discard_pages(beside, gone + 3 * BLOCK_PAGES / 2, BLOCK_PAGES / 2));
	discard_counters_get(d, &after);
	t_equal(1 + (one_call_for_many() ? 1 : BLOCK_PAGES / 2), after.syscalls - before.syscalls);
	for (uint32_t i = 0; i < PAGES_MAX; i++) {
		t_equal(i % 2 || i >= 4 * BLOCK_PAGES, present(mem, i));
		if (present(mem, i))
			t_equal(0, gm_verify(mem, &i, 1, 4, NULL, 0));
	}
	discard_destroy(beside);
	discard_destroy(d);
	gm_destroy(mem);
}

/* A process without a descriptor to spare does the same, one by one. */
static void test_without_descriptors_it_is_one_by_one(void)
{
	struct rlimit limit, none;
	struct discard_counters count;
	uint32_t pfns[] = {1, 3, 5, 9};
	struct discard *d;
	struct gm *mem;

	t_equal(0, gm_create(16 << GM_PAGE_SHIFT, &mem));
	t_equal(0, fill(mem, 0, 16));
	t_equal(0, getrlimit(RLIMIT_NOFILE, &limit));
	none = (struct rlimit){.rlim_cur = 0, .rlim_max = limit.rlim_max};
	t_equal(0, setrlimit(RLIMIT_NOFILE, &none));
	t_equal(0, discard_create(mem, DISCARD_PUNCH, &d));
	t_equal(0, setrlimit(RLIMIT_NOFILE, &limit));
	t_equal(4, discard_pages(d, pfns, 4));
	discard_counters_get(d, &count);
	t_equal(4, count.syscalls);
	for (uint32_t i = 0; i < 16; i++)
		t_equal(i != 1 && i != 3 && i != 5 && i != 9, present(mem, i));
	discard_destroy(d);
	gm_destroy(mem);
}

/* A mapping that somebody else has put something over: the file is still ours to punch. */
static void test_holes_come_without_the_mapping(void)
{
	uint32_t pfns[] = {1, 3, 5, 9};
	struct discard *d;
	struct gm *mem;

	t_equal(0, gm_create(16 << GM_PAGE_SHIFT, &mem));
	t_equal(0, fill(mem, 0, 16));
	t_equal(0, discard_create(mem, DISCARD_PUNCH, &d));
	/* As the guard does where a file has shrunk. */
	t_check(mmap(gm_at(mem, 3 * 4096, 4096), 4096, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
	t_equal(4, discard_pages(d, pfns, 4));
	for (uint32_t i = 0; i < 16; i++)
		t_equal(i != 1 && i != 3 && i != 5 && i != 9, present(mem, i));
	/* Refused together, they come one by one, until there is another memory map. */
	discard_set_memory(d, mem);
	t_check(mmap(gm_at(mem, 0, 4096), 4096, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
	for (unsigned round = 0; round < 2; round++) {
		struct discard_counters before, after;
		uint32_t again[] = {0, 2, 4};

		discard_counters_get(d, &before);
		t_equal(3, discard_pages(d, again, 3));
		discard_counters_get(d, &after);
		t_equal(3 + (round == 0 && after.syscalls - before.syscalls == 4),
			after.syscalls - before.syscalls);
	}
	discard_destroy(d);
	gm_destroy(mem);
}

static void test_t_49_bigger_host_pages_are_rounded_inward(void)
{
	static uint32_t pfns[2048];
	uint64_t random = 12;

	for (uint32_t granule = 1; granule <= 64; granule *= 4) {
		struct discard *d;
		struct gm *mem;

		t_equal(0, gm_create(512ull << GM_PAGE_SHIFT, &mem));
		t_equal(0, discard_create(mem, DISCARD_PUNCH, &d));
		discard_set_host_page(d, (uint64_t)granule << GM_PAGE_SHIFT);
		for (unsigned round = 0; round < 20; round++) {
			const size_t n = (size_t)(t_random(&random) % 2047 + 1);

			t_equal(0, fill(mem, 0, 512));
			draw(pfns, n, 512, round % SHAPES, &random);
			check_request(mem, d, 0, 512, granule, pfns, n);
		}
		discard_destroy(d);
		gm_destroy(mem);
	}
}

static void test_t_49_rounding_goes_by_the_file_not_the_guest(void)
{
	uint32_t pfns[16];
	struct discard *d;
	struct gm *mem;
	int fd = memfd_create("t", MFD_CLOEXEC);

	/* Guest page p stands at file page p + 1, a host page is four pages. */
	t_equal(0, ftruncate(fd, 64 << GM_PAGE_SHIFT));
	t_equal(0, gm_create_empty(&mem));
	t_equal(0, gm_add_region(mem, 0, 32 << GM_PAGE_SHIFT, fd, GM_PAGE_SIZE));
	t_equal(0, discard_create(mem, DISCARD_PUNCH, &d));
	discard_set_host_page(d, 4 * GM_PAGE_SIZE);
	t_equal(0, fill(mem, 0, 32));
	for (uint32_t i = 0; i < 16; i++)
		pfns[i] = i; /* file pages 1 .. 16, so whole are 4 .. 15 */
	t_equal(1, discard_pages(d, pfns, 16));
	for (uint32_t i = 0; i < 32; i++)
		t_equal(i < 3 || i > 14, present(mem, i));
	discard_destroy(d);
	gm_destroy(mem);
}

static void test_t_49_held_record_completes_host_pages(void)
{
	struct discard_counters count;
	uint32_t pfns[256];
	uint64_t held[4] = {0}, random = 3;
	struct discard *d;
	struct gm *mem;

	t_equal(0, gm_create(256ull << GM_PAGE_SHIFT, &mem));
	t_equal(0, discard_create(mem, DISCARD_PUNCH, &d));
	discard_set_host_page(d, 16 * GM_PAGE_SIZE);
	discard_set_held(d, held);
	t_equal(0, fill(mem, 0, 256));
	for (uint32_t i = 0; i < 256; i++)
		pfns[i] = i;
	for (uint32_t i = 256; i > 1; i--) {
		const uint32_t j = (uint32_t)(t_random(&random) % i), pfn = pfns[i - 1];

		pfns[i - 1] = pfns[j];
		pfns[j] = pfn;
	}
	/* In scattered portions; after each, exactly the complete host pages are gone. */
	for (uint32_t at = 0; at < 256; at += 32) {
		uint32_t part[32];

		memcpy(part, pfns + at, sizeof(part));
		for (unsigned i = 0; i < 32; i++)
			held[part[i] / 64] |= 1ull << (part[i] % 64);
		t_check(discard_pages(d, part, 32) >= 0);
		for (uint32_t page = 0; page < 256; page += 16) {
			const uint64_t bits = (held[page / 64] >> (page % 64)) & 0xffff;

			for (uint32_t i = page; i < page + 16; i++)
				t_equal(bits != 0xffff, present(mem, i));
		}
	}
	discard_counters_get(d, &count);
	t_equal(256, count.pages);
	t_equal(0, gm_allocated_bytes(mem));
	discard_destroy(d);
	gm_destroy(mem);
}

static void test_split_at_region_borders(void)
{
	static uint32_t pfns[300];
	struct discard_counters count;
	struct discard *d;
	struct gm *mem;

	/* Two files side by side in guest memory, and a third behind a gap. */
	t_equal(0, gm_create_empty(&mem));
	for (unsigned i = 0; i < 3; i++) {
		const uint64_t base[] = {0, 100, 300};
		int fd = memfd_create("t", MFD_CLOEXEC);

		t_equal(0, ftruncate(fd, 200 << GM_PAGE_SHIFT));
		t_equal(0, gm_add_region(mem, base[i] << GM_PAGE_SHIFT, 100 << GM_PAGE_SHIFT, fd,
					 (uint64_t)i * 10 << GM_PAGE_SHIFT));
		t_equal(0, fill(mem, base[i], 100));
	}
	t_equal(0, discard_create(mem, DISCARD_PUNCH, &d));
	for (uint32_t i = 0; i < 100; i++) {
		pfns[i] = 150 - i; /* 51 .. 150 */
		pfns[100 + i] = 300 + i;
	}
	t_equal(3, discard_pages(d, pfns, 200));
	discard_counters_get(d, &count);
	t_equal(200, count.pages);
	for (uint32_t i = 0; i < 200; i++)
		t_equal(i < 51 || i > 150, present(mem, i));
	t_equal(100 << GM_PAGE_SHIFT, gm_allocated_bytes(mem));

	/* A PFN that the caller should have refused harms nothing. */
	pfns[0] = 250;
	pfns[1] = 20;
	t_equal(-EFAULT, discard_pages(d, pfns, 2));
	t_equal(0, present(mem, 20));
	discard_destroy(d);
	gm_destroy(mem);
}

static void test_failure_is_counted_and_the_rest_done(void)
{
	uint32_t pfns[] = {1, 2, 5, 6, 9};
	struct discard_counters count;
	struct discard *d;
	struct gm *mem;

	t_equal(0, gm_create(16 << GM_PAGE_SHIFT, &mem));
	t_equal(0, discard_create(mem, DISCARD_PUNCH, &d));
	t_equal(0, fill(mem, 0, 16));
	discard_fail_next(d, 2);
	t_equal(-EIO, discard_pages(d, pfns, 5));
	t_equal(0, discard_fail_left(d));
	discard_counters_get(d, &count);
	t_equal(2, count.failed);
	t_equal(1, count.ranges);
	t_equal(1, count.syscalls);
	t_equal(1, count.pages);
	for (uint32_t i = 0; i < 16; i++)
		t_equal(i != 9, present(mem, i));
	discard_destroy(d);
	gm_destroy(mem);
}

static void test_t_50_what_the_other_methods_do_to_shared_memory(void)
{
	const enum discard_method methods[] = {DISCARD_DONTNEED, DISCARD_FREE, DISCARD_NONE};

	for (unsigned i = 0; i < 3; i++) {
		uint32_t pfns[] = {3, 4, 5, 9};
		struct discard_counters count;
		struct discard *d;
		struct gm *mem;

		t_equal(0, gm_create(16 << GM_PAGE_SHIFT, &mem));
		t_equal(0, discard_create(mem, methods[i], &d));
		t_equal(0, fill(mem, 0, 16));
		if (methods[i] == DISCARD_FREE) /* refused by the kernel: private memory only */
			t_equal(-EINVAL, discard_pages(d, pfns, 4));
		else
			t_equal(2, discard_pages(d, pfns, 4));
		discard_counters_get(d, &count);
		t_equal(methods[i] == DISCARD_FREE ? 2 : 0, count.failed);
		if (methods[i] == DISCARD_DONTNEED)
			t_check(count.syscalls == (one_call_for_many() ? 1 : 3));
		else
			t_equal(methods[i] == DISCARD_NONE ? 0 : 2, count.syscalls);
		t_equal(16 << GM_PAGE_SHIFT, gm_allocated_bytes(mem)); /* nothing came free */
		discard_destroy(d);
		gm_destroy(mem);
	}

	struct discard *d;

	t_equal(-EINVAL, discard_create(NULL, DISCARD_PUNCH, &d));
}

static void test_content_is_zero_after_the_hole(void)
{
	uint32_t pfns[] = {7};
	struct discard *d;
	struct gm *mem;
	uint64_t word;

	t_equal(0, gm_create(16 << GM_PAGE_SHIFT, &mem));
	t_equal(0, discard_create(mem, DISCARD_PUNCH, &d));
	t_equal(1, gm_stamp(mem, pfns, 1, 99));
	t_equal(1, discard_pages(d, pfns, 1));
	t_equal(0, gm_read(mem, 7 << GM_PAGE_SHIFT, &word, sizeof(word)));
	t_equal(0, word);
	discard_destroy(d);
	gm_destroy(mem);
}

static const struct t_test tests[] = {
    T_TEST(test_random_requests_match_model),
    T_TEST(test_t_50_random_requests_in_private_memory_match_model),
    T_TEST(test_private_memory_leaves_in_one_call),
    T_TEST(test_emptied_mapping_loses_nothing_of_the_others),
    T_TEST(test_prepared_blocks_are_emptied_once),
    T_TEST(test_without_descriptors_it_is_one_by_one),
    T_TEST(test_holes_come_without_the_mapping),
    T_TEST(test_t_49_bigger_host_pages_are_rounded_inward),
    T_TEST(test_t_49_rounding_goes_by_the_file_not_the_guest),
    T_TEST(test_t_49_held_record_completes_host_pages),
    T_TEST(test_split_at_region_borders),
    T_TEST(test_failure_is_counted_and_the_rest_done),
    T_TEST(test_t_50_what_the_other_methods_do_to_shared_memory),
    T_TEST(test_content_is_zero_after_the_hole),
};

int main(void)
{
	return t_run(tests, T_COUNT(tests));
}
