/* SPDX-License-Identifier: MIT */
/*
 * Survives guest memory that goes away: a front end can shrink the file behind a mapping at any
 * time, and the next access of ours is a SIGBUS that would end the process.
 *
 * A guarded range gets a page of zeroes in place of one that has no file any more. Whoever reads it
 * goes on with zeroes, and finds a ring that makes no sense. Faults elsewhere end the process as before.
 *
 * A signal handler has no argument, so this is the one place with state of the process. It does not
 * use any lock; ranges may be added and removed by several threads.
 */
#ifndef BALLOONVQ_MEMORY_GUARD_H
#define BALLOONVQ_MEMORY_GUARD_H

#include <stddef.h>
#include <stdint.h>

#define GUARD_RANGES 512u /* at once, in the process */

/* Guards [base, base + bytes) in units of `page`, its mapping's page. The first call installs the
 * handler of SIGBUS. 0, -ENOSPC when GUARD_RANGES are guarded, -errno of sigaction. */
int guard_add(void *base, size_t bytes, size_t page);

/* To be called before the range is unmapped; does nothing for a range that is not guarded. */
void guard_remove(const void *base);

/* Pages replaced since the process began. */
uint64_t guard_replaced(void);

#endif
