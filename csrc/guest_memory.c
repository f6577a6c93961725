/* SPDX-License-Identifier: MIT */
/*
 * Guest memory: regions, the way from a guest-physical address to a pointer,
 * and the emulated user's pattern.
 *
 * One region in the host's address space. Files can be mapped only at page
 * boundaries, so the mapping starts `lead` bytes early:
 *
 *   map                 host                              host + size
 *    |<----- lead ----->|<---------- region ------------->|<- tail ->|
 *    +------------------+---------------------------------+----------+
 *    page boundary      fd_offset in the file               page boundary
 *
 * Regions are kept sorted by guest_addr and never overlap, so that one binary
 * search answers gm_find(). Bounds are checked by subtraction only: with
 * offset = addr - guest_addr (modulo 2^64), [addr, addr + len) is inside the
 * region if offset < size and len <= size - offset. No sum is formed, so none
 * can wrap.
 *
 * Pattern of a page (gm_stamp): at byte 512*k, k = 0..7, the little word
 *   (mix(owner, pfn) + k * odd constant) | 1
 * which is never zero, while a page that left the host comes back as zeroes.
 *
 * Filling memory: stores simply fault their pages in. Populating runs of
 * neighbours with MADV_POPULATE_WRITE first was measured: 1 GiB of fresh pages
 * took the same 1.2 s in calm conditions (the kernel finding and clearing pages is
 * what costs), while pages already there took 0.2 s instead of 0.04 s.
 */
#include "guest_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "memory_guard.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14; older headers lack the name */
#endif

#define HUGETLBFS_TYPE 0x958458f6   /* f_type of hugetlbfs, from linux/magic.h */
#define GM_CREATE_MAX  (1ull << 44) /* 16 TiB: all that 32-bit PFNs reach (T-17) */
#define STAMP_STEP     512u         /* bytes between two words of the pattern */
#define STAMP_WORDS    (GM_PAGE_SIZE / STAMP_STEP)
#define HUGE_BYTES     (2ull << 20) /* of a huge page; anonymous memory begins at a multiple */
#define MINCORE_PAGES  8192u        /* asked for at once */

/* A region and what is needed to undo it. */
struct mapping {
	struct gm_region region; /* what callers see */
	uint8_t *map;            /* start of the mapping, page aligned */
	size_t map_bytes;        /* its length */
	dev_t dev;               /* device of the file; with ino, its identity */
	ino_t ino;               /* inode of the file */
};

struct gm {
	unsigned count; /* regions in use */
	bool guarded;   /* gm_guard() was called */
	bool anonymous; /* a region is not a file */
	int64_t peak;   /* highest sampled allocation; atomic, threads may sample */
	struct mapping mappings[GM_REGIONS_MAX]; /* sorted by guest_addr */
};

int gm_create_empty(struct gm **out)
{
	struct gm *mem = calloc(1, sizeof(*mem));

	if (!mem)
		return -ENOMEM;
	*out = mem;
	return 0;
}

/* A region of a new memfd at addr. 0 or -errno. */
static int add_memfd(struct gm *mem, uint64_t addr, uint64_t size)
{
	const int fd = memfd_create("guest-memory", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int rc;

	if (fd < 0)
		return -errno;
	/* Whoever is handed the file cannot shrink it under our mapping, which would make our
	 * next access a SIGBUS. Holes may still be punched. */
	if (ftruncate(fd, (off_t)size) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK))
		rc = -errno;
	else
		rc = gm_add_region(mem, addr, size, fd, 0);
	if (rc)
		close(fd);
	return rc;
}

int gm_create(uint64_t size, struct gm **out)
{
	const unsigned files = size / GM_FILES < GM_FILE_MIN ? 1 : GM_FILES;
	/* No huge page belongs to two files. */
	const uint64_t each = size / files / HUGE_BYTES * HUGE_BYTES;
	struct gm *mem = NULL;
	int rc;

	if (size == 0 || size % GM_PAGE_SIZE || size > GM_CREATE_MAX)
		return -EINVAL;
	rc = gm_create_empty(&mem);
	for (unsigned i = 0; rc == 0 && i < files; i++)
		rc = add_memfd(mem, i * each, i + 1 < files ? each : size - i * each);
	if (rc) {
		gm_destroy(mem);
		return rc;
	}
	*out = mem;
	return 0;
}

/* Maps size bytes of anonymous memory at a multiple of HUGE_BYTES. NULL with errno. */
static uint8_t *map_anonymous(size_t size)
{
	const size_t room = size + HUGE_BYTES;
	uint8_t *map, *at;
	size_t before;

	map = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		   -1, 0);
	if (map == MAP_FAILED)
		return NULL;
	before = (HUGE_BYTES - (uintptr_t)map % HUGE_BYTES) % HUGE_BYTES;
	at = map + before;
	if (before > 0)
		munmap(map, before);
	munmap(at + size, room - before - size);
	return at;
}

int gm_create_anonymous(uint64_t size, enum gm_pages pages, struct gm **out)
{
	struct mapping *m;
	struct gm *mem;
	int rc;

	if (size == 0 || size % GM_PAGE_SIZE || size > GM_CREATE_MAX)
		return -EINVAL;
	rc = gm_create_empty(&mem);
	if (rc)
		return rc;
	m = &mem->mappings[0];
	m->map_bytes = (size_t)size;
	m->map = map_anonymous(m->map_bytes);
	if (!m->map) {
		rc = -errno;
		free(mem);
		return rc;
	}
	/* Refused by a kernel without huge pages, where the pages are small anyway. */
	(void)madvise(m->map, m->map_bytes, pages == GM_HUGE ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	m->region = (struct gm_region){.size = size, .host = m->map, .fd = -1};
	mem->count = 1;
	mem->anonymous = true;
	*out = mem;
	return 0;
}

/* Page size of the file's memory: mmap() of hugetlbfs wants its own alignment. */
static uint64_t file_page(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs) == 0 && (unsigned long)fs.f_type == HUGETLBFS_TYPE)
		return (uint64_t)fs.f_bsize;
	return (uint64_t)sysconf(_SC_PAGESIZE);
}

/* Recomputes which regions have the same file, after the array changed. */
static void mark_files(struct gm *mem)
{
	for (unsigned i = 0; i < mem->count; i++) {
		struct mapping *m = &mem->mappings[i];
		unsigned j = 0;

		while (mem->mappings[j].dev != m->dev || mem->mappings[j].ino != m->ino)
			j++;
		m->region.file = j;
	}
}

int gm_add_region(struct gm *mem, uint64_t guest_addr, uint64_t size, int fd, uint64_t fd_offset)
{
	struct mapping m = {0};
	struct stat st;
	uint64_t page, lead;
	unsigned at;
	void *map;

	/* The last byte must have an address, in the guest and in the file (off_t is signed). */
	if (size == 0 || guest_addr > UINT64_MAX - size || fd_offset > INT64_MAX ||
	    size > (uint64_t)INT64_MAX - fd_offset)
		return -EINVAL;
	if (mem->count == GM_REGIONS_MAX)
		return -ENOSPC;

	/* The place in the order: after all that start below. Only the two neighbours can
	 * overlap. The ends do not wrap, by the check above. */
	for (at = 0; at < mem->count; at++)
		if (mem->mappings[at].region.guest_addr >= guest_addr)
			break;
	if (at < mem->count && mem->mappings[at].region.guest_addr - guest_addr < size)
		return -EINVAL;
	if (at > 0) {
		const struct gm_region *below = &mem->mappings[at - 1].region;

		if (guest_addr - below->guest_addr < below->size)
			return -EINVAL;
	}

	if (fstat(fd, &st))
		return -errno;
	/* A mapping past the end of the file is a SIGBUS in waiting. */
	if (S_ISREG(st.st_mode) && fd_offset + size > (uint64_t)st.st_size)
		return -EBADF;

	page = file_page(fd);
	lead = fd_offset % page;
	if (size > SIZE_MAX - lead - page)
		return -EINVAL;
	m.map_bytes = (size_t)((lead + size + page - 1) / page * page);
	/* NORESERVE: memory is taken page by page, and given back so. */
	map = mmap(NULL, m.map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd,
		   (off_t)(fd_offset - lead));
	if (map == MAP_FAILED)
		return -errno;

	m.map = map;
	m.region.guest_addr = guest_addr;
	m.region.size = size;
	m.region.fd_offset = fd_offset;
	m.region.host = m.map + lead;
	m.region.fd = fd;
	m.dev = st.st_dev;
	m.ino = st.st_ino;
	memmove(&mem->mappings[at + 1], &mem->mappings[at],
		(mem->count - at) * sizeof(mem->mappings[0]));
	mem->mappings[at] = m;
	mem->count++;
	mark_files(mem);
	return 0;
}

void gm_destroy(struct gm *mem)
{
	if (!mem)
		return;
	for (unsigned i = 0; i < mem->count; i++) {
		if (mem->guarded)
			guard_remove(mem->mappings[i].map);
		munmap(mem->mappings[i].map, mem->mappings[i].map_bytes);
		if (mem->mappings[i].region.fd >= 0)
			close(mem->mappings[i].region.fd);
	}
	free(mem);
}

int gm_guard(struct gm *mem)
{
	int rc = 0;

	mem->guarded = true;
	for (unsigned i = 0; i < mem->count && rc == 0; i++) {
		const struct mapping *m = &mem->mappings[i];

		if (m->region.fd >= 0) /* nobody can take other memory from under us */
			rc = guard_add(m->map, m->map_bytes, (size_t)file_page(m->region.fd));
	}
	return rc;
}

unsigned gm_region_count(const struct gm *mem)
{
	return mem->count;
}

int gm_region_at(const struct gm *mem, unsigned index, struct gm_region *out)
{
	if (index >= mem->count)
		return -ENOENT;
	*out = mem->mappings[index].region;
	return 0;
}

const struct gm_region *gm_find(const struct gm *mem, uint64_t addr)
{
	unsigned low = 0, high = mem->count;
	const struct gm_region *region;

	/* Invariant: regions below `low` start at or before addr, those from `high` on after it. */
	while (low < high) {
		unsigned middle = (low + high) / 2;

		if (mem->mappings[middle].region.guest_addr <= addr)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == 0)
		return NULL;
	region = &mem->mappings[low - 1].region;
	return addr - region->guest_addr < region->size ? region : NULL;
}

void *gm_at(const struct gm *mem, uint64_t addr, uint64_t len)
{
	const struct gm_region *region = gm_find(mem, addr);
	uint64_t offset;

	if (!region)
		return NULL;
	offset = addr - region->guest_addr; /* < size, gm_find() checked */
	if (len > region->size - offset)
		return NULL;
	return region->host + offset;
}

void *gm_at_slow(const struct gm *mem, struct gm_window *window, uint64_t addr, uint64_t len)
{
	const struct gm_region *region = gm_find(mem, addr);

	if (region) {
		window->guest_addr = region->guest_addr;
		window->size = region->size;
		window->host = region->host;
	}
	return gm_at(mem, addr, len);
}

uint64_t gm_size(const struct gm *mem)
{
	uint64_t bytes = 0;

	/* Cannot wrap: the regions are disjoint pieces of one 64-bit space. */
	for (unsigned i = 0; i < mem->count; i++)
		bytes += mem->mappings[i].region.size;
	return bytes;
}

uint64_t gm_pfn_end(const struct gm *mem)
{
	const struct gm_region *last;

	if (mem->count == 0)
		return 0;
	last = &mem->mappings[mem->count - 1].region;
	/* Rounded down: a page that is there only in part cannot be given back. */
	return (last->guest_addr + last->size) >> GM_PAGE_SHIFT;
}

/* Bytes of an anonymous mapping that are there, or -errno. */
static int64_t resident_bytes(const struct mapping *m)
{
	const size_t page = (size_t)sysconf(_SC_PAGESIZE);
	unsigned char there[MINCORE_PAGES];
	int64_t pages = 0;

	for (size_t at = 0; at < m->map_bytes; at += sizeof(there) * page) {
		const size_t left = m->map_bytes - at;
		const size_t bytes = left < sizeof(there) * page ? left : sizeof(there) * page;

		if (mincore(m->map + at, bytes, there))
			return -errno;
		for (size_t i = 0; i < (bytes + page - 1) / page; i++)
			pages += there[i] & 1;
	}
	return pages * (int64_t)page;
}

int64_t gm_allocated_bytes(const struct gm *mem)
{
	int64_t bytes = 0;

	for (unsigned i = 0; i < mem->count; i++) {
		struct stat st;

		if (mem->mappings[i].region.fd < 0) {
			const int64_t resident = resident_bytes(&mem->mappings[i]);

			if (resident < 0)
				return resident;
			bytes += resident;
			continue;
		}
		if (mem->mappings[i].region.file != i)
			continue;
		if (fstat(mem->mappings[i].region.fd, &st))
			return -errno;
		bytes += (int64_t)st.st_blocks * 512; /* st_blocks is in 512s whatever st_blksize */
	}
	return bytes;
}

/* Raises the peak to `now`; what it is then. */
static int64_t raise_peak(struct gm *mem, int64_t now)
{
	int64_t peak = __atomic_load_n(&mem->peak, __ATOMIC_RELAXED);

	/* A statistic that guards nothing: relaxed is enough, but the maximum must not get lost
	 * when two threads sample. On failure the loop has reloaded `peak`. */
	while (now > peak && !__atomic_compare_exchange_n(&mem->peak, &peak, now, true,
							  __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
	return now > peak ? now : peak;
}

int64_t gm_allocated_peak(struct gm *mem)
{
	const int64_t peak = __atomic_load_n(&mem->peak, __ATOMIC_RELAXED);

	/* Each anonymous page would have to be looked at, and there are no more of them. */
	if (mem->anonymous && (uint64_t)peak >= gm_size(mem))
		return peak;
	return raise_peak(mem, gm_allocated_bytes(mem));
}

int gm_allocated(struct gm *mem, int64_t *now, int64_t *peak)
{
	*now = gm_allocated_bytes(mem);
	if (*now < 0)
		return (int)*now;
	*peak = raise_peak(mem, *now);
	return 0;
}

/*
 * Makes host range [base, base + len) resident; the page size is the host's.
 * Returns 0, -EINVAL if the kernel cannot (before 5.14), -ENOSPC, -ENOMEM or another -errno.
 */
static int populate_host(uint8_t *base, size_t len)
{
	size_t lead = (uintptr_t)base % (uintptr_t)sysconf(_SC_PAGESIZE);

	if (madvise(base - lead, len + lead, MADV_POPULATE_WRITE) == 0)
		return 0;
	/* The kernel says EFAULT where a store would have raised SIGBUS: the file system behind
	 * the file has no room. */
	return errno == EFAULT ? -ENOSPC : -errno;
}

/* gm_populate() without MADV_POPULATE_WRITE: reserve, then touch. */
static int populate_by_hand(const struct gm_region *region, uint8_t *base, uint64_t len)
{
	uint64_t offset = region->fd_offset + (uint64_t)(base - region->host);
	uint64_t step = (uint64_t)sysconf(_SC_PAGESIZE);

	/* Room is taken here, where lack of it is an error code and not yet a signal. */
	if (region->fd >= 0 && fallocate(region->fd, 0, (off_t)offset, (off_t)len))
		return -errno;
	/* An atomic OR of nothing is a store that cannot undo what another thread writes. */
	for (uint64_t done = 0; done < len; done += step)
		__atomic_fetch_or(base + done, 0, __ATOMIC_RELAXED);
	__atomic_fetch_or(base + len - 1, 0, __ATOMIC_RELAXED);
	return 0;
}

/* Whether [addr, addr + len) lies in regions that follow each other without a gap. */
static bool covered(const struct gm *mem, uint64_t addr, uint64_t len)
{
	const struct gm_region *region = gm_find(mem, addr);

	while (region) {
		const uint64_t here = gm_region_rest(region, addr, len);

		addr += here;
		len -= here;
		if (len == 0)
			return true;
		region = gm_find(mem, addr);
	}
	return false;
}

int gm_populate(struct gm *mem, uint64_t addr, uint64_t len)
{
	int rc = 0;

	if (!covered(mem, addr, len))
		return -EFAULT;
	if (len == 0)
		return 0;
	while (rc == 0 && len > 0) {
		const struct gm_region *region = gm_find(mem, addr);
		const uint64_t offset = addr - region->guest_addr;
		const uint64_t here = gm_region_rest(region, addr, len);

		rc = populate_host(region->host + offset, (size_t)here);
		if (rc == -EINVAL)
			rc = populate_by_hand(region, region->host + offset, here);
		addr += here;
		len -= here;
	}
	gm_allocated_peak(mem);
	return rc;
}

/* splitmix64's finaliser: every input bit reaches every output bit. */
static uint64_t mix(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ull;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static uint64_t page_seed(uint64_t owner, uint32_t pfn)
{
	return mix(owner * 0x9e3779b97f4a7c15ull + pfn + 1);
}

/* Word k of a page's pattern; bit 0 keeps it from being zero. */
static uint64_t stamp_word(uint64_t seed, unsigned k)
{
	return (seed + k * 0x9e3779b97f4a7c15ull) | 1;
}

static uint8_t *page_at(const struct gm *mem, struct gm_window *window, uint32_t pfn)
{
	return gm_at_window(mem, window, (uint64_t)pfn << GM_PAGE_SHIFT, GM_PAGE_SIZE);
}

/* Checks all PFNs before anything is touched. */
static bool pages_inside(const struct gm *mem, struct gm_window *window, const uint32_t *pfns,
			 size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!page_at(mem, window, pfns[i]))
			return false;
	return true;
}

int64_t gm_stamp(struct gm *mem, const uint32_t *pfns, size_t n, uint64_t owner)
{
	struct gm_window window = {0};

	if (!pages_inside(mem, &window, pfns, n))
		return -EFAULT;
	for (size_t i = 0; i < n; i++) {
		uint8_t *page = page_at(mem, &window, pfns[i]);
		uint64_t seed = page_seed(owner, pfns[i]);

		/* memcpy: the mapping of a region need not be aligned to 8. */
		for (unsigned k = 0; k < STAMP_WORDS; k++) {
			uint64_t word = stamp_word(seed, k);

			memcpy(page + k * STAMP_STEP, &word, sizeof(word));
		}
	}
	/* Small batches, and many: too dear where every page has to be looked at. */
	if (!mem->anonymous)
		gm_allocated_peak(mem);
	return (int64_t)n;
}

int64_t gm_verify(const struct gm *mem, const uint32_t *pfns, size_t n, uint64_t owner,
		  uint32_t *bad, size_t bad_max)
{
	struct gm_window window = {0};
	size_t wrong = 0;

	if (!pages_inside(mem, &window, pfns, n))
		return -EFAULT;
	for (size_t i = 0; i < n; i++) {
		const uint8_t *page = page_at(mem, &window, pfns[i]);
		uint64_t seed = page_seed(owner, pfns[i]);
		uint64_t difference = 0;

		for (unsigned k = 0; k < STAMP_WORDS; k++) {
			uint64_t word;

			memcpy(&word, page + k * STAMP_STEP, sizeof(word));
			difference |= word ^ stamp_word(seed, k);
		}
		if (!difference)
			continue;
		if (wrong < bad_max)
			bad[wrong] = pfns[i];
		wrong++;
	}
	return (int64_t)wrong;
}

/* Copies region by region, `to` or `from` being what lies outside guest memory. 0, -EFAULT. */
static int copy(const struct gm *mem, uint64_t addr, uint8_t *to, const uint8_t *from, size_t len)
{
	if (!covered(mem, addr, len))
		return -EFAULT;
	while (len > 0) {
		const struct gm_region *region = gm_find(mem, addr);
		const uint64_t offset = addr - region->guest_addr;
		const size_t here = (size_t)gm_region_rest(region, addr, len);

		if (to) {
			memcpy(to, region->host + offset, here);
			to += here;
		} else {
			memcpy(region->host + offset, from, here);
			from += here;
		}
		addr += here;
		len -= here;
	}
	return 0;
}

int gm_read(const struct gm *mem, uint64_t addr, void *to, size_t len)
{
	return copy(mem, addr, to, NULL, len);
}

int gm_write(struct gm *mem, uint64_t addr, const void *from, size_t len)
{
	return copy(mem, addr, NULL, from, len);
}
