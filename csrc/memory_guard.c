/* SPDX-License-Identifier: MIT */
/*
 * The handler looks the faulting address up in a table of ranges:
 *
 *   base      0 = free, TAKEN = being filled, else the range's first address
 *   bytes     its length; written before base is published, so whoever sees base sees it
 *   page      likewise
 *
 * mmap() with MAP_FIXED puts a private page of zeroes at the address and the access is made
 * again. mmap() is a plain system call, which a handler may make.
 */
#include "memory_guard.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

#define TAKEN ((uintptr_t)1) /* no mapping begins there */

static struct {
	uintptr_t base; /* atomic */
	size_t bytes;
	size_t page;
} ranges[GUARD_RANGES];

static uint64_t replaced;         /* atomic */
static struct sigaction previous; /* whoever handled SIGBUS before us */
static int install_error;         /* of the one installation */
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Puts a page of zeroes where the address lies. 1 if it is guarded and that worked. */
static int replace(uintptr_t addr)
{
	for (unsigned i = 0; i < GUARD_RANGES; i++) {
		/* Acquire: base before bytes and page, which guard_add() stored before it. */
		const uintptr_t base = __atomic_load_n(&ranges[i].base, __ATOMIC_ACQUIRE);
		uintptr_t at;

		if (base <= TAKEN || addr - base >= ranges[i].bytes) /* wraps to huge below it */
			continue;
		at = base + (addr - base) / ranges[i].page * ranges[i].page;
		/* The address comes from the fault, so it has to be made a pointer. */
		if (mmap((void *)at, ranges[i].page, PROT_READ | PROT_WRITE, /* NOLINT */
			 MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
			return 0;
		__atomic_fetch_add(&replaced, 1, __ATOMIC_RELAXED);
		return 1;
	}
	return 0;
}

static void on_sigbus(int number, siginfo_t *info, void *context)
{
	const int error = errno;

	(void)context;
	/* Not ours: give way. The access is made again and meets whoever was there before. */
	if (!replace((uintptr_t)info->si_addr))
		sigaction(number, &previous, NULL);
	errno = error;
}

static void install(void)
{
	struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO};

	sigemptyset(&action.sa_mask);
	install_error = sigaction(SIGBUS, &action, &previous) ? -errno : 0;
}

int guard_add(void *base, size_t bytes, size_t page)
{
	pthread_once(&once, install);
	if (install_error)
		return install_error;
	for (unsigned i = 0; i < GUARD_RANGES; i++) {
		uintptr_t free_place = 0;

		if (!__atomic_compare_exchange_n(&ranges[i].base, &free_place, TAKEN, 0,
						 __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
			continue;
		ranges[i].bytes = bytes;
		ranges[i].page = page;
		/* Release: bytes and page before base, for the handler of any thread. */
		__atomic_store_n(&ranges[i].base, (uintptr_t)base, __ATOMIC_RELEASE);
		return 0;
	}
	return -ENOSPC;
}

void guard_remove(const void *base)
{
	for (unsigned i = 0; i < GUARD_RANGES; i++) {
		if (__atomic_load_n(&ranges[i].base, __ATOMIC_RELAXED) == (uintptr_t)base)
			__atomic_store_n(&ranges[i].base, 0, __ATOMIC_RELEASE);
	}
}

uint64_t guard_replaced(void)
{
	return __atomic_load_n(&replaced, __ATOMIC_RELAXED);
}
