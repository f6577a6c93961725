/* SPDX-License-Identifier: MIT */
#include "version.h"

#ifndef BALLOONVQ_VERSION
#define BALLOONVQ_VERSION "unversioned"
#endif

const char *balloonvq_version(void)
{
	return BALLOONVQ_VERSION;
}

const char *balloonvq_compiler(void)
{
#if defined(__clang__)
	return __VERSION__; /* names itself */
#elif defined(__GNUC__)
	return "gcc " __VERSION__;
#else
	return "unknown";
#endif
}
