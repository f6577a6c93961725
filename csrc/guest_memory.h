/* SPDX-License-Identifier: MIT */
/*
 * Guest memory: guest-physical ranges backed by files, so that the host can
 * take pages back by punching holes, or by private anonymous memory, where it
 * takes them back with MADV_DONTNEED.
 *
 *   guest-physical   0        region 0        |  hole  |   region 1
 *                    +------------------------+        +--------------+
 *   file             | fd, fd_offset ..       |        | fd, fd_offset|
 *                    +------------------------+        +--------------+
 *
 * An address range is valid only if it lies wholly inside one region. Every
 * access by a device goes through gm_at(), which checks that; nothing else
 * turns a guest-physical address into a pointer.
 */
#ifndef BALLOONVQ_GUEST_MEMORY_H
#define BALLOONVQ_GUEST_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GM_PAGE_SHIFT  12u
#define GM_PAGE_SIZE   (1u << GM_PAGE_SHIFT) /* 4096, whatever the host's page (BAL-DRV-07) */
#define GM_REGIONS_MAX 64u
#define GM_FILES       4u          /* of memory made by gm_create() ... */
#define GM_FILE_MIN    (16u << 20) /* ... if each has at least so many bytes */

struct gm; /* opaque; a memory map and the files behind it */

/* One region, as the caller sees it. */
struct gm_region {
	uint64_t guest_addr; /* first guest-physical address */
	uint64_t size;       /* bytes */
	uint64_t fd_offset;  /* where in the file guest_addr stands; 0 for anonymous memory */
	uint8_t *host;       /* where guest_addr is mapped in this process */
	int fd;              /* the file, owned by the memory map; -1: private anonymous memory */
	unsigned file;       /* index of the first region of the same file */
};

/* Bytes from addr, which the region holds, to the region's end, but no more than `most`. */
static inline uint64_t gm_region_rest(const struct gm_region *region, uint64_t addr, uint64_t most)
{
	const uint64_t rest = region->size - (addr - region->guest_addr);

	return rest < most ? rest : most;
}

/*
 * Makes a memory map of `size` bytes from guest-physical 0: one new memfd, or where there is
 * enough, GM_FILES of them, one region behind the other, since the kernel lets one thread at a time
 * make holes in a file. They are mapped shared, nothing of them is allocated yet. size is a
 * multiple of GM_PAGE_SIZE, at least one page, at most 16 TiB (T-17).
 * Returns 0, -EINVAL, -ENOMEM or the -errno of memfd_create/mmap.
 */
int gm_create(uint64_t size, struct gm **out);

/* Which pages the host uses for anonymous memory. */
enum gm_pages {
	GM_SMALL, /* its smallest, whatever the system prefers */
	GM_HUGE,  /* huge ones wherever one fits and the host has one */
};

/*
 * The same of private anonymous memory, which no other process can map. Its first byte is aligned
 * to 2 MiB, so huge pages of host and guest coincide. Errors as gm_create().
 */
int gm_create_anonymous(uint64_t size, enum gm_pages pages, struct gm **out);

/* An empty memory map, to which regions are added. 0 or -ENOMEM. */
int gm_create_empty(struct gm **out);

/*
 * Maps `size` bytes of `fd` from fd_offset at guest_addr. The map takes
 * ownership of fd on success only. fd_offset and guest_addr need not be page
 * aligned relative to the host (the mapping is rounded outward internally).
 * Returns 0; -EINVAL for an empty, wrapping or overlapping region; -ENOSPC when
 * GM_REGIONS_MAX are there; -EBADF when the file ends before the region does;
 * or the -errno of mmap/fstat.
 */
int gm_add_region(struct gm *mem, uint64_t guest_addr, uint64_t size, int fd, uint64_t fd_offset);

/*
 * For files that somebody else can shrink: an access to a page that has no file any more finds
 * zeroes, where it would have ended the process by SIGBUS. Call it when all regions are there.
 * See memory_guard.h for its limits and errors.
 */
int gm_guard(struct gm *mem);

/* Unmaps and closes everything, also the descriptors the map owns. NULL is allowed. */
void gm_destroy(struct gm *mem);

/* Number of regions; gm_region_at fills *out for 0 <= index < count (0 or -ENOENT). */
unsigned gm_region_count(const struct gm *mem);
int gm_region_at(const struct gm *mem, unsigned index, struct gm_region *out);

/* The region that holds guest-physical `addr`, or NULL. Valid until the map changes. */
const struct gm_region *gm_find(const struct gm *mem, uint64_t addr);

/*
 * Host address of [addr, addr + len), or NULL unless the whole range lies in
 * one region. len 0 is valid at any address inside a region.
 */
void *gm_at(const struct gm *mem, uint64_t addr, uint64_t len);

/*
 * A remembered region, for hot paths that ask about one address after another.
 * It is a copy: a region never moves and never goes before gm_destroy(), so it
 * stays right when regions are added. All zero = remembers nothing.
 */
struct gm_window {
	uint64_t guest_addr; /* as in gm_region */
	uint64_t size;       /* as in gm_region; 0 = empty */
	uint8_t *host;       /* as in gm_region */
};

/* Whether the window holds [addr, addr + len), which is not empty. */
static inline bool gm_window_holds(const struct gm_window *window, uint64_t addr, uint64_t len)
{
	uint64_t offset = addr - window->guest_addr; /* wraps to a huge value below the region */

	return offset < window->size && len - 1 < window->size - offset; /* 0 - 1 is huge as well */
}

/* gm_at() that looks into the window first and moves it on a miss. */
void *gm_at_slow(const struct gm *mem, struct gm_window *window, uint64_t addr, uint64_t len);
static inline void *gm_at_window(const struct gm *mem, struct gm_window *window, uint64_t addr,
				 uint64_t len)
{
	if (__builtin_expect(gm_window_holds(window, addr, len), 1))
		return window->host + (addr - window->guest_addr);
	return gm_at_slow(mem, window, addr, len);
}

/* Bytes of RAM in all regions. */
uint64_t gm_size(const struct gm *mem);

/* One past the highest PFN of any region: PFNs at or above it are out of range. */
uint64_t gm_pfn_end(const struct gm *mem);

/*
 * Bytes that the host really has allocated now: blocks of the regions' distinct files
 * (st_blocks), pages of anonymous memory that are there (mincore, which looks at each: a
 * millisecond or two a GiB). -errno on failure. This is what "measured" means: it counts pages,
 * not requests. Anonymous pages count that were only read, as in files. Of an anonymous huge page of which a part was given back, that part counts as
 * gone, although the kernel can use it only after it has split the page, which it does when
 * memory is short.
 */
int64_t gm_allocated_bytes(const struct gm *mem);

/*
 * The most that gm_allocated_bytes() has been, sampled at the end of every
 * gm_populate() and of every call of this function, and after every gm_stamp() if all regions are
 * files. Bytes. Anonymous memory that was all there once is not looked at again.
 */
int64_t gm_allocated_peak(struct gm *mem);

/* gm_allocated_bytes() and gm_allocated_peak() by one look. 0, -errno. */
int gm_allocated(struct gm *mem, int64_t *now, int64_t *peak);

/*
 * Makes [addr, addr+len) resident and dirty without changing its content; regions may follow each
 * other in it.
 * Reports a full file system or memory limit as -ENOSPC/-ENOMEM instead of the
 * SIGBUS that a plain store would raise. Returns 0, -EFAULT (range), -errno.
 */
int gm_populate(struct gm *mem, uint64_t addr, uint64_t len);

/*
 * The guest user's pattern. gm_stamp writes, in each of the n pages, a 64-bit
 * word at every 512th byte, derived from owner, PFN and position (never zero,
 * so a discarded page never looks right). gm_verify counts the pages of which
 * any word is wrong and puts up to bad_max of their PFNs into bad (may be NULL
 * when bad_max is 0). Looking at a hole in shared file memory fills it with a
 * zero page: verify only pages that should be there.
 * Both return the count of pages done (stamp) or bad (verify), or -EFAULT if a
 * PFN lies outside the memory, in which case nothing was touched. Where the host
 * may run out of room, gm_populate() first: a plain store is a SIGBUS then.
 */
int64_t gm_stamp(struct gm *mem, const uint32_t *pfns, size_t n, uint64_t owner);
int64_t gm_verify(const struct gm *mem, const uint32_t *pfns, size_t n, uint64_t owner,
		  uint32_t *bad, size_t bad_max);

/* Copies between guest memory and a buffer (for tests and slow paths); regions may follow each other
 * in it. 0, or -EFAULT and nothing was copied. */
int gm_read(const struct gm *mem, uint64_t addr, void *to, size_t len);
int gm_write(struct gm *mem, uint64_t addr, const void *from, size_t len);

#endif
