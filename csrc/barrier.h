/* SPDX-License-Identifier: MIT */
/*
 * Memory ordering, and fetching ahead, for rings that two threads (or two processes) share.
 *
 * An acquire load makes everything that the other side wrote before its
 * matching release store visible to the reads that follow it. A full fence is
 * the only thing that orders an earlier store before a later load; the two
 * places in a virtqueue that need it are the ones where a side publishes an
 * index and then looks at the other side's notification word (SPLIT-DRV-28,
 * T-20). A sequentially consistent store would do as well, but on x86 it is an
 * exchange, which begins to fetch its cache line only when all stores before it
 * are done: with two threads and a buffer a publication, that costs a third more.
 *
 * Every call site says which write it orders before which read.
 *
 * Little-endian loads and stores of ring fields go through these helpers and
 * nowhere else; each is one access of the field's width, so a value that the
 * other side may change is read exactly once. The one exception is named:
 * le64_load_unaligned() may be cut into pieces by the compiler, but reads each
 * byte once.
 */
#ifndef BALLOONVQ_BARRIER_H
#define BALLOONVQ_BARRIER_H

#include <endian.h>
#include <stdint.h>

static inline uint16_t le16_load(const void *field)
{
	return le16toh(__atomic_load_n((const uint16_t *)field, __ATOMIC_RELAXED));
}

static inline uint32_t le32_load(const void *field)
{
	return le32toh(__atomic_load_n((const uint32_t *)field, __ATOMIC_RELAXED));
}

static inline uint64_t le64_load(const void *field)
{
	return le64toh(__atomic_load_n((const uint64_t *)field, __ATOMIC_RELAXED));
}

static inline void le16_store(void *field, uint16_t value)
{
	__atomic_store_n((uint16_t *)field, htole16(value), __ATOMIC_RELAXED);
}

static inline void le32_store(void *field, uint32_t value)
{
	__atomic_store_n((uint32_t *)field, htole32(value), __ATOMIC_RELAXED);
}

static inline void le64_store(void *field, uint64_t value)
{
	__atomic_store_n((uint64_t *)field, htole64(value), __ATOMIC_RELAXED);
}

static inline uint16_t le16_load_acquire(const void *field)
{
	return le16toh(__atomic_load_n((const uint16_t *)field, __ATOMIC_ACQUIRE));
}

static inline void le16_store_release(void *field, uint16_t value)
{
	__atomic_store_n((uint16_t *)field, htole16(value), __ATOMIC_RELEASE);
}

/*
 * An indirect table may stand at any byte (virtio sets no alignment for it), and
 * an atomic access there is undefined. `volatile` keeps the compiler from reading
 * a byte a second time after it was checked.
 */
typedef uint64_t le64_unaligned __attribute__((aligned(1), may_alias));

static inline uint64_t le64_load_unaligned(const void *field)
{
	return le64toh(*(const volatile le64_unaligned *)field);
}

static inline void le64_store_unaligned(void *field, uint64_t value)
{
	*(volatile le64_unaligned *)field = htole64(value);
}

/*
 * Begins to fetch the cache line of an address that will be read, or written, so that it travels
 * while something else is done. Promises nothing and never faults. For writing, x86 has an
 * instruction of its own (a no-op where the processor lacks it), which compilers use only if told
 * to; otherwise they fetch the line for reading, and the store waits for it a second time.
 */
static inline void prefetch_for_read(const void *field)
{
	__builtin_prefetch(field, 0);
}

static inline void prefetch_for_write(void *field)
{
#ifdef __x86_64__
	__asm__("prefetchw %0" : : "m"(*(const char *)field));
#else
	__builtin_prefetch(field, 1);
#endif
}

/*
 * Orders every earlier store before every later load. ThreadSanitizer does not
 * model fences (gcc warns so), which costs it nothing here: a fence never
 * carries data, data is ordered by the acquire and release accesses above.
 */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#if __GNUC__ >= 11
#pragma GCC diagnostic ignored "-Wtsan"
#endif
#endif
static inline void fence_full(void)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#endif
