/* Description: pages that are given back after their acknowledgement: when they leave, and that none leaves too late. */
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "rig.h"

#define BLOCK 512u /* pages that leave without being asked for */

/* ---- holes that the test holds back ------------------------------------- */

static atomic_bool held_back;   /* holes wait ... */
static atomic_int held_fd = -1; /* ... in this file, or in all if it is below 0 */
static atomic_int waiting;      /* calls for holes that do */
static atomic_int most;         /* most that ever waited together */
static atomic_int holes;        /* calls for holes begun */
static atomic_int emptied;      /* calls that empty a mapping */

static void before_holes(int fd)
{
	int now, before;

	atomic_fetch_add(&holes, 1);
	now = atomic_fetch_add(&waiting, 1) + 1;
	before = atomic_load(&most);
	while (now > before && !atomic_compare_exchange_weak(&most, &before, now))
		;
	while (atomic_load(&held_back) &&
	       (atomic_load(&held_fd) < 0 || atomic_load(&held_fd) == fd))
		usleep(100);
	atomic_fetch_sub(&waiting, 1);
}

/* These stand before the C library's; what is tested calls them. One hole: */
int fallocate(int fd, int mode, off_t offset, off_t len)
{
	before_holes(fd);
	return (int)syscall(SYS_fallocate, fd, mode, offset, len);
}

/* Empties a mapping. */
int madvise(void *addr, size_t len, int advice)
{
	if (advice == MADV_DONTNEED)
		atomic_fetch_add(&emptied, 1);
	return (int)syscall(SYS_madvise, addr, len, advice);
}

/* Many of either at once. */
long syscall(long number, ...)
{
	static long (*_Atomic real)(long, ...);
	long a[6];
	va_list list;

	va_start(list, number);
	for (unsigned i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	if (!atomic_load(&real))
		atomic_store(&real, (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall"));
	if (number == SYS_process_madvise && a[3] == MADV_REMOVE)
		before_holes(-1);
	if (number == SYS_process_madvise && a[3] == MADV_DONTNEED)
		atomic_fetch_add(&emptied, 1);
	return atomic_load(&real)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* ---- the scene ---------------------------------------------------------- */

static void make_with(struct rig *rig, uint64_t features, const struct bln_options *options)
{
	atomic_store(&held_back, false);
	rig_make_with(rig, options);
	t_equal(0, gm_populate(rig->mem, (uint64_t)RIG_USER << GM_PAGE_SHIFT,
			       (uint64_t)(RIG_PAGES - RIG_USER) << GM_PAGE_SHIFT));
	t_equal(0, bln_worker_start(rig->dev, -1, &rig->worker));
	rig_start(rig, features, 64);
}

static void make(struct rig *rig)
{
	const struct bln_options options = rig_options();

	make_with(rig, RIG_ALL, &options);
}

static void send(struct rig *rig, unsigned queue, uint32_t first, uint32_t n)
{
	t_equal(0, vq_driver_enable_calls(rig->rings[queue].driver));
	rig_send_run(rig, queue, first, n);
	if (vq_driver_kick_needed(rig->rings[queue].driver))
		rig_kick(rig, queue);
}

static bool acknowledged(struct rig *rig, unsigned queue, int ms)
{
	if (!rig_wait(bln_call_fd(rig->dev, queue), ms))
		return false;
	rig_take(rig, queue);
	return true;
}

static void request(struct rig *rig, unsigned queue, uint32_t first, uint32_t n)
{
	send(rig, queue, first, n);
	t_check(acknowledged(rig, queue, 5000));
}

/* The first block is in flight and stays there until let_go(). */
static void hold_first_block(struct rig *rig)
{
	atomic_store(&held_back, true);
	request(rig, INFLATE, RIG_USER, BLOCK);
	rig_until(atomic_load(&waiting) == 1);
}

static void let_go(void)
{
	atomic_store(&held_back, false);
	atomic_store(&held_fd, -1);
}

static bool present(struct rig *rig, uint32_t first, uint32_t n)
{
	for (uint32_t pfn = first; pfn < first + n; pfn++) {
		if (!rig_present(rig, pfn))
			return false;
	}
	return true;
}

static bool gone(struct rig *rig, uint32_t first, uint32_t n)
{
	for (uint32_t pfn = first; pfn < first + n; pfn++) {
		if (rig_present(rig, pfn))
			return false;
	}
	return true;
}

static uint64_t *word_of(struct rig *rig, uint32_t pfn)
{
	return gm_at(rig->mem, (uint64_t)pfn << GM_PAGE_SHIFT, GM_PAGE_SIZE);
}

/* Calls something that may wait, from another thread. */
struct other {
	struct rig *rig;
	void (*call)(struct rig *rig);
	atomic_bool done;
	pthread_t thread;
};

static void *run_other(void *arg)
{
	struct other *other = arg;

	other->call(other->rig);
	atomic_store(&other->done, true);
	return NULL;
}

static void begin(struct other *other, struct rig *rig, void (*call)(struct rig *rig))
{
	other->rig = rig;
	other->call = call;
	atomic_store(&other->done, false);
	t_equal(0, pthread_create(&other->thread, NULL, run_other, other));
}

static void call_flush(struct rig *rig)
{
	bln_flush(rig->dev);
}

/* ---- when pages leave --------------------------------------------------- */

static void test_bal_dev_06_acknowledged_before_the_hole(void)
{
	struct rig rig;

	make(&rig);
	hold_first_block(&rig);
	t_equal(BLOCK, rig_count(&rig).owed_pages);
	t_equal(BLOCK, rig_count(&rig).held_pages);
	t_equal(0, rig_count(&rig).lazy_pages);
	t_check(present(&rig, RIG_USER, BLOCK));
	let_go();
	rig_until(rig_count(&rig).owed_pages == 0);
	t_check(gone(&rig, RIG_USER, BLOCK));
	t_equal(BLOCK, rig_count(&rig).lazy_pages);
	t_equal(BLOCK, rig_count(&rig).discard.pages);
	t_equal(1, rig_count(&rig).discard.syscalls);
	rig_drop(&rig);
}

static void test_t_24_without_the_feature_the_hole_comes_first(void)
{
	const struct bln_options options = rig_options();
	struct rig rig;

	make_with(&rig, RIG_ALL & ~BLN_F_MUST_TELL_HOST, &options);
	atomic_store(&held_back, true);
	send(&rig, INFLATE, RIG_USER, BLOCK);
	rig_until(atomic_load(&waiting) == 1);
	t_check(!acknowledged(&rig, INFLATE, 30));
	let_go();
	t_check(acknowledged(&rig, INFLATE, 5000));
	t_check(gone(&rig, RIG_USER, BLOCK));
	t_equal(0, rig_count(&rig).lazy_pages);
	t_equal(0, rig_count(&rig).owed_pages);
	rig_drop(&rig);
}

static void test_without_a_worker_the_hole_comes_first(void)
{
	struct rig rig;

	rig_make(&rig);
	rig_start(&rig, RIG_ALL, 8);
	rig_run(&rig, INFLATE, RIG_USER, BLOCK);
	t_equal(BLOCK, rig_count(&rig).discard.pages);
	t_equal(0, rig_count(&rig).lazy_pages);
	t_equal(0, bln_flush(rig.dev));
	rig_drop(&rig);
}

static void test_other_methods_are_not_late(void)
{
	struct bln_options options = rig_options();
	struct rig rig;

	options.discard = DISCARD_NONE;
	make_with(&rig, RIG_ALL, &options);
	request(&rig, INFLATE, RIG_USER, BLOCK);
	t_equal(BLOCK, rig_count(&rig).discard.pages);
	t_equal(0, rig_count(&rig).lazy_pages);
	rig_drop(&rig);
}

static void test_none_may_be_owed(void)
{
	struct bln_options options = rig_options();
	struct rig rig;

	options.owed_max = 1;
	make_with(&rig, RIG_ALL, &options);
	request(&rig, INFLATE, RIG_USER, BLOCK);
	t_equal(BLOCK, rig_count(&rig).discard.pages);
	t_equal(0, rig_count(&rig).lazy_pages);
	rig_drop(&rig);
}

static void test_the_rest_leaves_when_nothing_comes(void)
{
	struct rig rig;

	make(&rig);
	for (uint32_t round = 0; round < 20; round++) {
		request(&rig, INFLATE, RIG_USER + 100 * round + 3, 60);
		if (round % 4 == 3)
			rig_until(rig_count(&rig).owed_pages == 0);
	}
	for (uint32_t round = 0; round < 20; round++) {
		t_check(gone(&rig, RIG_USER + 100 * round + 3, 60));
		t_check(present(&rig, RIG_USER + 100 * round + 63, 40));
	}
	t_equal(1200, rig_count(&rig).discard.pages);
	rig_drop(&rig);
}

static void test_flush_gives_all_back(void)
{
	struct rig rig;

	make(&rig);
	t_equal(0, bln_flush(rig.dev));
	for (uint32_t round = 0; round < 16; round++) {
		/* Across blocks, too. */
		request(&rig, INFLATE, RIG_USER + 512 * round + 400, 300);
		t_equal(0, bln_flush(rig.dev));
		t_equal(0, rig_count(&rig).owed_pages);
		t_check(gone(&rig, RIG_USER + 512 * round + 400, 112));
	}
	rig_drop(&rig);
}

static void test_scattered_pages(void)
{
	uint32_t pfns[512];
	struct rig rig;

	make(&rig);
	hold_first_block(&rig); /* so that all of these are owed together */
	for (uint32_t part = 0; part < 8; part++) {
		for (uint32_t i = 0; i < 512; i++)
			pfns[i] = htole32(RIG_USER + BLOCK + (i * 8 + part) % 4096 / 2 * 2);
		t_equal(0, vq_driver_enable_calls(rig.rings[INFLATE].driver));
		rig_send(&rig, INFLATE, pfns, sizeof(pfns));
		if (vq_driver_kick_needed(rig.rings[INFLATE].driver))
			rig_kick(&rig, INFLATE);
		t_check(acknowledged(&rig, INFLATE, 5000));
	}
	t_equal(BLOCK + 2048, rig_count(&rig).owed_pages);
	let_go();
	t_equal(0, bln_flush(rig.dev));
	for (uint32_t i = 0; i < 4096; i++)
		t_equal(i % 2, rig_present(&rig, RIG_USER + BLOCK + i));
	t_equal(BLOCK + 2048, rig_count(&rig).discard.pages);
	rig_drop(&rig);
}

/*
 * Two huge pages whose small ones come interleaved, in any order and in requests of 256: the first
 * small page may leave only when all of its huge page may, or the huge page is split.
 */
static void check_huge_pages_leave_whole(bool anonymous)
{
	struct bln_options options = rig_options();
	uint32_t pfns[2 * BLOCK];
	uint64_t random = 5;
	struct rig rig;
	struct gm *mem;

	if (anonymous)
		options.discard = DISCARD_DONTNEED;
	atomic_store(&held_back, false);
	if (anonymous)
		t_equal(0,
			gm_create_anonymous((uint64_t)RIG_PAGES << GM_PAGE_SHIFT, GM_HUGE, &mem));
	else
		t_equal(0, gm_create((uint64_t)RIG_PAGES << GM_PAGE_SHIFT, &mem));
	rig_make_over(&rig, mem, &options);
	t_equal(0, gm_populate(rig.mem, (uint64_t)RIG_USER << GM_PAGE_SHIFT,
			       2ull * BLOCK << GM_PAGE_SHIFT));
	t_equal(0, bln_worker_start(rig.dev, -1, &rig.worker));
	rig_start(&rig, RIG_ALL, 64);
	for (uint32_t i = 0; i < 2 * BLOCK; i++)
		pfns[i] = htole32(RIG_USER + i % 2 * BLOCK + i / 2);
	for (uint32_t i = 2 * BLOCK; i > 1; i--) {
		const uint32_t j = (uint32_t)(t_random(&random) % i), pfn = pfns[i - 1];

		pfns[i - 1] = pfns[j];
		pfns[j] = pfn;
	}
	/* Visible together, so that the device does not fall idle in between. */
	t_equal(0, gm_write(rig.mem, rig_data(INFLATE), pfns, sizeof(pfns)));
	for (unsigned i = 0; i < 4; i++) {
		const struct vq_segment segment = {rig_data(INFLATE) + i * 1024, 1024};

		t_equal(0, vq_driver_add(rig.rings[INFLATE].driver, &segment, 1, 0, i));
	}
	t_equal(4, vq_driver_publish(rig.rings[INFLATE].driver));
	rig_kick(&rig, INFLATE);
	rig_until(rig_count(&rig).lazy_pages == 2 * BLOCK);
	t_check(rig_count(&rig).discard.ranges <= 2);
	t_check(rig_count(&rig).discard.syscalls <= 2);
	t_equal(0, rig_count(&rig).discard.failed);
	if (!anonymous)
		t_check(gone(&rig, RIG_USER, 2 * BLOCK));
	/* Back, and written: what comes late would take that away. */
	for (uint32_t at = 0; at < 2 * BLOCK; at += 256)
		request(&rig, DEFLATE, RIG_USER + at, 256);
	for (uint32_t i = 0; i < 2 * BLOCK; i++)
		*word_of(&rig, RIG_USER + i) = i + 1;
	bln_flush(rig.dev);
	for (uint32_t i = 0; i < 2 * BLOCK; i++)
		t_equal(i + 1, *word_of(&rig, RIG_USER + i));
	rig_drop(&rig);
}

static void test_interleaved_huge_pages_leave_whole(void)
{
	check_huge_pages_leave_whole(true);
	check_huge_pages_leave_whole(false);
}

/* ---- several files ------------------------------------------------------ */

#define FILE_PAGES (RIG_PAGES / GM_FILES) /* RIG_USER is where the last but one begins */

/* Every other page of both files of the rig's user area becomes owed, in one go. */
static void owe_scattered(struct rig *rig)
{
	uint32_t pfns[1024];

	for (uint32_t at = 0; at < 2 * FILE_PAGES; at += 2048) {
		for (uint32_t i = 0; i < 1024; i++)
			pfns[i] = htole32(RIG_USER + at + 2 * i);
		t_equal(0, vq_driver_enable_calls(rig->rings[INFLATE].driver));
		rig_send(rig, INFLATE, pfns, sizeof(pfns));
		if (vq_driver_kick_needed(rig->rings[INFLATE].driver))
			rig_kick(rig, INFLATE);
		t_check(acknowledged(rig, INFLATE, 5000));
	}
}

/* The flusher would take it before it is asked for; so it holds its first flight back. */
static void test_who_flushes_is_helped_in_another_file(void)
{
	struct other flush;
	struct rig rig;

	make(&rig);
	hold_first_block(&rig);
	owe_scattered(&rig);
	t_equal(2 * FILE_PAGES / 2 + BLOCK / 2, rig_count(&rig).owed_pages);
	begin(&flush, &rig, call_flush);
	/* The other file is not in the way of the one in flight. */
	rig_until(atomic_load(&waiting) == 2);
	let_go();
	pthread_join(flush.thread, NULL);
	t_equal(0, rig_count(&rig).owed_pages);
	for (uint32_t i = BLOCK; i < 2 * FILE_PAGES; i++)
		t_equal(i % 2, rig_present(&rig, RIG_USER + i));
	t_equal(2 * FILE_PAGES / 2 + BLOCK / 2, rig_count(&rig).lazy_pages);
	t_equal(0, rig_count(&rig).discard.failed);
	rig_drop(&rig);
}

/* With one file there is nothing to share: whoever flushes does all of it. */
static void test_one_file_is_one_threads(void)
{
	const struct bln_options options = rig_options();
	struct other flush;
	struct gm_region region;
	struct gm *files, *map;
	struct rig rig;

	t_equal(0, gm_create(GM_FILE_MIN, &files)); /* for a descriptor */
	t_equal(0, gm_region_at(files, 0, &region));
	t_equal(0, gm_create_empty(&map));
	t_equal(0, ftruncate(region.fd, (off_t)RIG_PAGES << GM_PAGE_SHIFT));
	t_equal(0, gm_add_region(map, 0, (uint64_t)RIG_PAGES << GM_PAGE_SHIFT,
				 fcntl(region.fd, F_DUPFD_CLOEXEC, 0), 0));
	gm_destroy(files);
	atomic_store(&held_back, false);
	rig_make_over(&rig, map, &options);
	t_equal(0, bln_worker_start(rig.dev, -1, &rig.worker));
	rig_start(&rig, RIG_ALL, 64);
	atomic_store(&most, 0);
	hold_first_block(&rig);
	owe_scattered(&rig);
	begin(&flush, &rig, call_flush);
	rig_sleep_ms(30); /* for a second one to show, if there were one */
	let_go();
	pthread_join(flush.thread, NULL);
	t_equal(1, atomic_load(&most));
	t_equal(0, rig_count(&rig).owed_pages);
	rig_drop(&rig);
}

/* All mappings are emptied before the first hole, and none later. */
static void test_mappings_are_emptied_first(void)
{
	struct other flush;
	struct rig rig;
	int before;

	make(&rig);
	hold_first_block(&rig);
	owe_scattered(&rig);
	atomic_store(&emptied, 0);
	begin(&flush, &rig, call_flush);
	rig_until(atomic_load(&waiting) == 2);
	before = atomic_load(&emptied);
	t_check(before > 0);
	let_go();
	pthread_join(flush.thread, NULL);
	t_equal(before, atomic_load(&emptied));
	rig_drop(&rig);
}

/* A deflate waits for the flight of its pages, and for no other. */
static void test_bal_dev_06_a_flight_in_another_file_is_not_waited_for(void)
{
	struct other flush;
	struct rig rig;

	make(&rig);
	hold_first_block(&rig);
	request(&rig, INFLATE, RIG_USER + FILE_PAGES, BLOCK);
	request(&rig, INFLATE, RIG_USER + FILE_PAGES + 4 * BLOCK, 10);
	begin(&flush, &rig, call_flush);
	rig_until(atomic_load(&waiting) == 2);
	/* Owed still, so that neither flight has it. */
	request(&rig, DEFLATE, RIG_USER + FILE_PAGES + 4 * BLOCK, 10);
	send(&rig, DEFLATE, RIG_USER + FILE_PAGES + 1, 1);
	t_check(!acknowledged(&rig, DEFLATE, 30));
	/* The one of the first file stays in flight. */
	atomic_store(&held_fd, gm_find(rig.mem, (uint64_t)RIG_USER << GM_PAGE_SHIFT)->fd);
	t_check(acknowledged(&rig, DEFLATE, 5000));
	t_check(atomic_load(&waiting) > 0);
	let_go();
	pthread_join(flush.thread, NULL);
	t_check(present(&rig, RIG_USER + FILE_PAGES + 4 * BLOCK, 10));
	rig_drop(&rig);
}

/* Memory of two files: regions 0, 2, ... are of one, the others of the second. */
static void interleaved(struct gm **map, uint64_t step)
{
	const uint64_t bytes = (uint64_t)RIG_PAGES << GM_PAGE_SHIFT;
	struct gm *one, *two;
	struct gm_region first, second;

	t_equal(0, gm_create(GM_FILE_MIN, &one)); /* for descriptors */
	t_equal(0, gm_create(GM_FILE_MIN, &two));
	t_equal(0, gm_region_at(one, 0, &first));
	t_equal(0, gm_region_at(two, 0, &second));
	t_equal(0, ftruncate(first.fd, (off_t)bytes));
	t_equal(0, ftruncate(second.fd, (off_t)bytes));
	t_equal(0, gm_create_empty(map));
	/* The rings and buffers lie in one piece. */
	t_equal(0, gm_add_region(*map, 0, bytes / 2, fcntl(first.fd, F_DUPFD_CLOEXEC, 0), 0));
	for (uint64_t at = bytes / 2, i = 0; at < bytes; at += step, i++) {
		const int fd = i % 2 ? first.fd : second.fd;
		const uint64_t size = step < bytes - at ? step : bytes - at;

		t_equal(0, gm_add_region(*map, at, size, fcntl(fd, F_DUPFD_CLOEXEC, 0), at));
	}
	gm_destroy(one);
	gm_destroy(two);
}

/* However regions alternate, and wherever they meet: one flight a file, and all of it leaves. */
static void test_regions_may_alternate(void)
{
	static const uint64_t steps[] = {1ull << 20, 2ull << 20, 5ull << 20, (3ull << 20) + 4096};

	for (unsigned s = 0; s < sizeof(steps) / sizeof(steps[0]); s++) {
		const struct bln_options options = rig_options();
		struct rig rig;
		struct gm *map;

		interleaved(&map, steps[s]);
		atomic_store(&held_back, false);
		rig_make_over(&rig, map, &options);
		t_equal(0, gm_populate(map, (uint64_t)RIG_USER << GM_PAGE_SHIFT,
				       2ull * FILE_PAGES << GM_PAGE_SHIFT));
		t_equal(0, bln_worker_start(rig.dev, -1, &rig.worker));
		rig_start(&rig, RIG_ALL, 64);
		owe_scattered(&rig);
		t_equal(0, bln_flush(rig.dev));
		for (uint32_t i = 0; i < 2 * FILE_PAGES; i++)
			t_equal(i % 2, rig_present(&rig, RIG_USER + i));
		t_equal(0, rig_count(&rig).discard.failed);
		rig_drop(&rig);
	}
}

/* A front end may name any address; PFNs reach only the first 16 TiB (T-17). */
static void test_t_17_regions_that_no_pfn_reaches(void)
{
	static const uint64_t far[] = {
	    (1ull << 44) - (2u << 20), 1ull << 44, 1ull << 45, 1ull << 52, 1ull << 60,
	    UINT64_MAX - 4095};

	for (unsigned f = 0; f < sizeof(far) / sizeof(far[0]); f++) {
		const struct bln_options options = rig_options();
		struct gm_region region;
		struct gm *mem, *other;
		struct rig rig;

		atomic_store(&held_back, false);
		t_equal(0, gm_create((uint64_t)RIG_PAGES << GM_PAGE_SHIFT, &mem));
		t_equal(0, gm_create(4096, &other));
		t_equal(0, gm_region_at(other, 0, &region));
		t_equal(0, gm_add_region(mem, far[f] / 4096 * 4096 - (f == 5 ? 4096 : 0), 4096,
					 fcntl(region.fd, F_DUPFD_CLOEXEC, 0), 0));
		gm_destroy(other);
		rig_make_over(&rig, mem, &options);
		t_equal(0, bln_worker_start(rig.dev, -1, &rig.worker));
		rig_start(&rig, RIG_ALL, 64);
		request(&rig, INFLATE, RIG_USER, 100);
		rig_until(rig_count(&rig).owed_pages == 0);
		request(&rig, INFLATE, RIG_USER + 100, BLOCK);
		t_equal(0, bln_flush(rig.dev));
		t_equal(0, rig_count(&rig).owed_pages);
		rig_drop(&rig);
	}
}

static void test_many_may_flush_at_once(void)
{
	struct other flushes[4];
	struct rig rig;

	make(&rig);
	for (unsigned round = 0; round < 10; round++) {
		owe_scattered(&rig);
		for (unsigned i = 0; i < 4; i++)
			begin(&flushes[i], &rig, call_flush);
		for (unsigned i = 0; i < 4; i++)
			pthread_join(flushes[i].thread, NULL);
		t_equal(0, rig_count(&rig).owed_pages);
		for (uint32_t i = 0; i < 2 * FILE_PAGES; i += 2)
			t_equal(0, rig_present(&rig, RIG_USER + i));
		for (uint32_t at = 0; at < 2 * FILE_PAGES; at += 1024)
			request(&rig, DEFLATE, RIG_USER + at, 1024);
		t_equal(0, gm_populate(rig.mem, (uint64_t)RIG_USER << GM_PAGE_SHIFT,
				       2ull * FILE_PAGES << GM_PAGE_SHIFT));
	}
	rig_drop(&rig);
}

static void test_failures_are_counted(void)
{
	const struct bln_faults faults = {.fail_discards = 2};
	struct bln_faults left;
	struct rig rig;

	make(&rig);
	bln_set_faults(rig.dev, &faults);
	request(&rig, INFLATE, RIG_USER, BLOCK);
	t_equal(0, bln_flush(rig.dev));
	request(&rig, INFLATE, RIG_USER + BLOCK, 10);
	t_equal(0, bln_flush(rig.dev));
	t_equal(2, rig_count(&rig).discard.failed);
	t_check(present(&rig, RIG_USER, BLOCK + 10));
	bln_faults_get(rig.dev, &left);
	t_equal(0, left.fail_discards);
	t_equal(BLOCK + 10, rig_count(&rig).held_pages);
	request(&rig, INFLATE, RIG_USER + BLOCK + 10, 10);
	t_equal(0, bln_flush(rig.dev));
	t_check(gone(&rig, RIG_USER + BLOCK + 10, 10));
	rig_drop(&rig);
}

static void test_no_more_is_owed_than_allowed(void)
{
	struct bln_options options = rig_options();
	struct rig rig;

	options.owed_max = 3ull * BLOCK * GM_PAGE_SIZE;
	make_with(&rig, RIG_ALL, &options);
	hold_first_block(&rig);
	request(&rig, INFLATE, RIG_USER + BLOCK, 2 * BLOCK); /* just as much */
	send(&rig, INFLATE, RIG_USER + 3 * BLOCK, 1);
	t_check(!acknowledged(&rig, INFLATE, 30));
	t_equal(3 * BLOCK + 1, rig_count(&rig).owed_pages);
	let_go();
	t_check(acknowledged(&rig, INFLATE, 5000));
	t_check(rig_count(&rig).owed_pages <= 3 * BLOCK);
	/* Pages that fill no block leave, too, when there is no room. */
	for (uint32_t i = 0; i < 12; i++)
		request(&rig, INFLATE, RIG_USER + 4 * BLOCK + i * 384, 300);
	t_check(rig_count(&rig).owed_pages <= 3 * BLOCK);
	rig_drop(&rig);
}

/* ---- the way back ------------------------------------------------------- */

static void test_bal_dev_06_deflate_waits_for_the_flight(void)
{
	struct rig rig;

	make(&rig);
	hold_first_block(&rig);
	send(&rig, DEFLATE, RIG_USER + 17, 1);
	t_check(!acknowledged(&rig, DEFLATE, 30));
	let_go();
	t_check(acknowledged(&rig, DEFLATE, 5000));
	*word_of(&rig, RIG_USER + 17) = 42;
	t_equal(0, bln_flush(rig.dev));
	rig_until(rig_count(&rig).owed_pages == 0);
	t_equal(42, *word_of(&rig, RIG_USER + 17));
	rig_drop(&rig);
}

static void test_bal_dev_06_others_do_not_wait(void)
{
	struct rig rig;

	make(&rig);
	request(&rig, INFLATE, RIG_USER + 2 * BLOCK, 20);
	t_equal(0, bln_flush(rig.dev));
	hold_first_block(&rig);
	request(&rig, DEFLATE, RIG_USER + 2 * BLOCK, 20);
	let_go();
	rig_drop(&rig);
}

static void test_bal_dev_06_owed_pages_stay_when_deflated(void)
{
	const uint32_t first = RIG_USER + BLOCK;
	struct rig rig;

	make(&rig);
	for (uint32_t i = 0; i < 2 * BLOCK; i++)
		*word_of(&rig, first + i) = i + 1;
	hold_first_block(&rig);
	request(&rig, INFLATE, first, 2 * BLOCK);
	request(&rig, DEFLATE, first + 100, 600);
	t_equal(3 * BLOCK - 600, rig_count(&rig).owed_pages);
	let_go();
	t_equal(0, bln_flush(rig.dev));
	t_check(gone(&rig, first, 100));
	t_check(gone(&rig, first + 700, 2 * BLOCK - 700));
	for (uint32_t i = 100; i < 700; i++)
		t_equal(i + 1, *word_of(&rig, first + i));
	t_equal(3 * BLOCK - 600, rig_count(&rig).discard.pages);
	/* Into the balloon once more. */
	request(&rig, INFLATE, first + 100, 600);
	t_equal(0, bln_flush(rig.dev));
	t_check(gone(&rig, first, 2 * BLOCK));
	rig_drop(&rig);
}

/* ---- ends --------------------------------------------------------------- */

static void call_reset(struct rig *rig)
{
	bln_set_status(rig->dev, 0);
}

static void call_queue_stop(struct rig *rig)
{
	bln_queue_stop(rig->dev, INFLATE);
}

static void call_worker_stop(struct rig *rig)
{
	bln_worker_stop(rig->worker);
}

/* With a block in flight and pages owed: the call waits for the flight, then no hole comes. */
static void end_by(struct rig *rig, void (*call)(struct rig *rig))
{
	struct other end, flush;
	int before;

	make(rig);
	hold_first_block(rig);
	request(rig, INFLATE, RIG_USER + BLOCK, BLOCK);
	request(rig, INFLATE, RIG_USER + 3 * BLOCK, 10);
	before = atomic_load(&holes);
	begin(&flush, rig, call_flush);
	begin(&end, rig, call);
	rig_sleep_ms(100);
	t_check(!atomic_load(&end.done));
	let_go();
	pthread_join(end.thread, NULL);
	pthread_join(flush.thread, NULL);
	before = atomic_load(&holes) - before;
	t_check(before <= 2); /* the block may have been faster than the end */
	before = atomic_load(&holes);
	rig_sleep_ms(30); /* longer than pages are left alone */
	t_equal(0, bln_flush(rig->dev));
	t_equal(before, atomic_load(&holes));
}

static void test_core_dev_11_no_hole_after_reset(void)
{
	struct rig rig;

	end_by(&rig, call_reset);
	t_equal(0, rig_count(&rig).owed_pages);
	t_equal(0, rig_count(&rig).held_pages);
	t_check(present(&rig, RIG_USER + 3 * BLOCK, 10));
	/* It begins anew. */
	rig_start(&rig, RIG_ALL, 64);
	request(&rig, INFLATE, RIG_USER + 3 * BLOCK, 10);
	t_equal(0, bln_flush(rig.dev));
	t_check(gone(&rig, RIG_USER + 3 * BLOCK, 10));
	rig_drop(&rig);
}

static void test_no_hole_after_a_queue_stopped(void)
{
	struct rig rig;

	end_by(&rig, call_queue_stop);
	t_equal(10, rig_count(&rig).owed_pages % BLOCK);
	rig_queue(&rig, INFLATE, 64);
	rig_until(rig_count(&rig).owed_pages == 0);
	t_check(gone(&rig, RIG_USER, 2 * BLOCK));
	t_check(gone(&rig, RIG_USER + 3 * BLOCK, 10));
	rig_drop(&rig);
}

static void test_no_hole_after_the_worker_stopped(void)
{
	struct rig rig;

	end_by(&rig, call_worker_stop);
	rig.worker = NULL;
	t_equal(10, rig_count(&rig).owed_pages % BLOCK);
	/* What is given back to the guest now stays. */
	t_equal(0, vq_driver_enable_calls(rig.rings[DEFLATE].driver));
	rig_run(&rig, DEFLATE, RIG_USER + 3 * BLOCK, 5);
	t_equal(0, bln_worker_start(rig.dev, -1, &rig.worker));
	rig_until(rig_count(&rig).owed_pages == 0);
	t_check(gone(&rig, RIG_USER, 2 * BLOCK));
	t_check(present(&rig, RIG_USER + 3 * BLOCK, 5));
	t_check(gone(&rig, RIG_USER + 3 * BLOCK + 5, 5));
	rig_drop(&rig);
}

static void test_what_is_owed_goes_on_in_other_memory(void)
{
	const uint64_t bytes = (uint64_t)(RIG_USER + 3 * BLOCK + 6) << GM_PAGE_SHIFT;
	struct gm_region region;
	struct gm *map, *first;
	struct rig rig;

	end_by(&rig, call_queue_stop);
	bln_queue_stop(rig.dev, DEFLATE);
	bln_queue_stop(rig.dev, STATS);
	/* A shorter map of the same files. */
	t_equal(0, gm_create_empty(&map));
	for (unsigned i = 0; gm_region_at(rig.mem, i, &region) == 0; i++) {
		if (region.guest_addr >= bytes)
			break;
		if (region.size > bytes - region.guest_addr)
			region.size = bytes - region.guest_addr;
		t_equal(0, gm_add_region(map, region.guest_addr, region.size,
					 fcntl(region.fd, F_DUPFD_CLOEXEC, 0), 0));
	}
	t_equal(0, bln_set_memory(rig.dev, map));
	t_equal(6, rig_count(&rig).owed_pages % BLOCK);
	first = rig.mem;
	rig.mem = map;
	rig_queue(&rig, INFLATE, 64);
	rig_queue(&rig, DEFLATE, 64);
	rig_until(rig_count(&rig).owed_pages == 0);
	t_check(gone(&rig, RIG_USER, 2 * BLOCK));
	t_check(gone(&rig, RIG_USER + 3 * BLOCK, 6));
	t_equal(0, rig_count(&rig).discard.failed);
	rig.mem = first; /* what the new map has no more */
	t_check(rig_present(&rig, RIG_USER + 3 * BLOCK + 6));
	rig.mem = map;
	gm_destroy(first);
	rig_drop(&rig);
}

/* ---- everything at once ------------------------------------------------- */

#define EXTENT  300u
#define EXTENTS ((RIG_PAGES - RIG_USER) / EXTENT)

static void *run_flushes(void *arg)
{
	struct other *other = arg;
	uint64_t random = 11;

	while (!atomic_load(&other->done)) {
		bln_flush(other->rig->dev);
		usleep((useconds_t)(t_random(&random) % 3000));
	}
	return NULL;
}

/* The guest writes as soon as it may, and finds everything it wrote until it gives a page up. */
static void test_bal_dev_06_nothing_written_is_lost(void)
{
	struct bln_options options = rig_options();
	uint64_t written[EXTENTS] = {0}; /* 0: in the balloon */
	uint64_t random = 7;
	struct other flushes = {0};
	struct rig rig;

	options.owed_max = 12ull << 20;
	make_with(&rig, RIG_ALL, &options);
	flushes.rig = &rig;
	t_equal(0, pthread_create(&flushes.thread, NULL, run_flushes, &flushes));
	request(&rig, INFLATE, RIG_USER, 512);
	request(&rig, DEFLATE, RIG_USER, 512);
	for (uint32_t extent = 0; extent < EXTENTS; extent++)
		request(&rig, INFLATE, RIG_USER + extent * EXTENT, EXTENT);
	for (uint64_t round = 1; round <= 3000; round++) {
		const uint32_t extent = (uint32_t)(t_random(&random) % EXTENTS);
		const uint32_t first = RIG_USER + extent * EXTENT;

		if (written[extent] == 0) {
			request(&rig, DEFLATE, first, EXTENT);
			for (uint32_t i = 0; i < EXTENT; i++)
				*word_of(&rig, first + i) = round + i;
			written[extent] = round;
		} else {
			for (uint32_t i = 0; i < EXTENT; i++)
				t_equal(written[extent] + i, *word_of(&rig, first + i));
			request(&rig, INFLATE, first, EXTENT);
			written[extent] = 0;
		}
	}
	t_check(rig_count(&rig).lazy_pages > 0);
	atomic_store(&flushes.done, true);
	pthread_join(flushes.thread, NULL);
	t_equal(0, bln_flush(rig.dev));
	for (uint32_t extent = 0; extent < EXTENTS; extent++) {
		const uint32_t first = RIG_USER + extent * EXTENT;

		for (uint32_t i = 0; i < EXTENT && written[extent]; i++)
			t_equal(written[extent] + i, *word_of(&rig, first + i));
		t_check(written[extent] || gone(&rig, first, EXTENT));
	}
	rig_drop(&rig);
}

static void test_resets_and_stops_at_any_moment(void)
{
	struct other flushes = {0};
	uint64_t random = 9;
	struct rig rig;

	make(&rig);
	flushes.rig = &rig;
	t_equal(0, pthread_create(&flushes.thread, NULL, run_flushes, &flushes));
	for (uint64_t life = 1; life <= 100; life++) {
		const uint32_t first = RIG_USER + (uint32_t)(t_random(&random) % 2000);

		for (uint32_t i = 0; i < 6; i++)
			rig_send_run(&rig, INFLATE, first + i * 1000, 1000);
		rig_kick(&rig, INFLATE);
		for (uint64_t n = t_random(&random) % 1000; n > 0; n -= n > 100 ? 100 : n)
			usleep(1);
		if (life % 4 == 0) {
			bln_worker_stop(rig.worker);
			t_equal(0, bln_worker_start(rig.dev, -1, &rig.worker));
		}
		t_equal(0, bln_set_status(rig.dev, 0));
		for (uint32_t pfn = first; pfn < first + 6000; pfn += 97)
			*word_of(&rig, pfn) = life;
		rig_start(&rig, RIG_ALL, 64);
		usleep((useconds_t)(t_random(&random) % 8000));
		for (uint32_t pfn = first; pfn < first + 6000; pfn += 97)
			t_equal(life, *word_of(&rig, pfn));
	}
	atomic_store(&flushes.done, true);
	pthread_join(flushes.thread, NULL);
	rig_drop(&rig);
}

static const struct t_test tests[] = {
    T_TEST(test_bal_dev_06_acknowledged_before_the_hole),
    T_TEST(test_t_24_without_the_feature_the_hole_comes_first),
    T_TEST(test_without_a_worker_the_hole_comes_first),
    T_TEST(test_other_methods_are_not_late),
    T_TEST(test_none_may_be_owed),
    T_TEST(test_the_rest_leaves_when_nothing_comes),
    T_TEST(test_flush_gives_all_back),
    T_TEST(test_scattered_pages),
    T_TEST(test_interleaved_huge_pages_leave_whole),
    T_TEST(test_who_flushes_is_helped_in_another_file),
    T_TEST(test_one_file_is_one_threads),
    T_TEST(test_mappings_are_emptied_first),
    T_TEST(test_bal_dev_06_a_flight_in_another_file_is_not_waited_for),
    T_TEST(test_regions_may_alternate),
    T_TEST(test_t_17_regions_that_no_pfn_reaches),
    T_TEST(test_many_may_flush_at_once),
    T_TEST(test_failures_are_counted),
    T_TEST(test_no_more_is_owed_than_allowed),
    T_TEST(test_bal_dev_06_deflate_waits_for_the_flight),
    T_TEST(test_bal_dev_06_others_do_not_wait),
    T_TEST(test_bal_dev_06_owed_pages_stay_when_deflated),
    T_TEST(test_core_dev_11_no_hole_after_reset),
    T_TEST(test_no_hole_after_a_queue_stopped),
    T_TEST(test_no_hole_after_the_worker_stopped),
    T_TEST(test_what_is_owed_goes_on_in_other_memory),
    T_TEST(test_bal_dev_06_nothing_written_is_lost),
    T_TEST(test_resets_and_stops_at_any_moment),
};

int main(void)
{
	return t_run(tests, T_COUNT(tests));
}
