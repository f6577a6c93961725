/* SPDX-License-Identifier: MIT */
#include "version.h"

#ifndef BALLOONVQ_VERSION
#define BALLOONVQ_VERSION "unversioned"
#endif

const char *balloonvq_version(void)
{
	return BALLOONVQ_VERSION;
}
