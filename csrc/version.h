/* SPDX-License-Identifier: MIT */
/* What a caller was built against: the version of the core, and of its binary interface. */
#ifndef BALLOONVQ_VERSION_H
#define BALLOONVQ_VERSION_H

/* Grows with every change of a struct or of a function's meaning that callers can notice. */
#define BALLOONVQ_ABI 1

/* The distribution's version, such as "0.1.0"; "unversioned" in a build without one. */
const char *balloonvq_version(void);

/* The compiler that built the core, such as "gcc 12.2.0"; a figure is read with it. */
const char *balloonvq_compiler(void);

#endif
