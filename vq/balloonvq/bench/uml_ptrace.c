/* SPDX-License-Identifier: MIT */
/*
 * LD_PRELOAD for User Mode Linux on processors with a large XSAVE area (AMX and its like).
 *
 * UML keeps a process's floating point state in a buffer of fixed size, reads it with
 * PTRACE_GETREGSET, which fills what fits, and writes it back with PTRACE_SETREGSET. The host's
 * kernel takes only the whole area (xstateregs_set() in arch/x86/kernel/fpu/regset.c says EFAULT
 * for less), so init dies with "ptrace set fp regs failed". Here the whole state is read, UML's
 * bytes are laid over it, and all of it is written.
 *
 * With UML_PTRACE_ALWAYS set every write goes the long way, to test it on other processors.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

#define XSTATE     0x202  /* NT_X86_XSTATE */
#define AREA_BYTES 0x4000 /* more than any processor's (AMX: about 11 KiB) */

typedef long (*ptrace_fn)(int request, pid_t pid, void *addr, void *data);

static long write_whole(ptrace_fn real, pid_t pid, const struct iovec *theirs)
{
	static __thread unsigned char area[AREA_BYTES];
	struct iovec whole = {.iov_base = area, .iov_len = sizeof(area)};

	if (real(PTRACE_GETREGSET, pid, (void *)XSTATE, &whole) < 0)
		return -1;
	memcpy(area, theirs->iov_base,
	       theirs->iov_len < whole.iov_len ? theirs->iov_len : whole.iov_len);
	return real(PTRACE_SETREGSET, pid, (void *)XSTATE, &whole);
}

long ptrace(enum __ptrace_request request, ...)
{
	static ptrace_fn real;
	va_list args;
	pid_t pid;
	void *addr, *data;
	long rc;

	va_start(args, request);
	pid = va_arg(args, pid_t);
	addr = va_arg(args, void *);
	data = va_arg(args, void *);
	va_end(args);
	if (!real)
		real = (ptrace_fn)dlsym(RTLD_NEXT, "ptrace");
	if (request != PTRACE_SETREGSET || addr != (void *)XSTATE)
		return real((int)request, pid, addr, data);
	if (getenv("UML_PTRACE_ALWAYS"))
		return write_whole(real, pid, data);
	rc = real((int)request, pid, addr, data);
	return rc < 0 && errno == EFAULT ? write_whole(real, pid, data) : rc;
}
