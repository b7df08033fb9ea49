/* What the engine asks of the operating system, in one place.

   Two files define the same functions. A *descriptor* is an int for whoever calls them:
   on Windows the value of a handle or socket, of which only 32 bits are used. Where a
   function can fail it says so by its result, and why by errno. */

#ifndef FASTJOB_SYSTEM_H
#define FASTJOB_SYSTEM_H

#ifdef _WIN32
#include "fastjob/_core/system_windows.h"
#else
#include "fastjob/_core/system_posix.h"
#endif

/* Atomic operations on memory that processes share. */

static inline unsigned char shm_load(unsigned char *p) {
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
static inline void shm_store(unsigned char *p, unsigned char value) {
    __atomic_store_n(p, value, __ATOMIC_SEQ_CST);
}
static inline int shm_swap(unsigned char *p, unsigned char old, unsigned char value) {
    return __atomic_compare_exchange_n(p, &old, value, 0, __ATOMIC_SEQ_CST,
                                       __ATOMIC_ACQUIRE);
}
static inline unsigned int shm_add(unsigned int *p, int value) {
    return __atomic_add_fetch(p, value, __ATOMIC_SEQ_CST);
}
static inline unsigned int shm_count(unsigned int *p) {
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}
static inline unsigned long long shm_load64(unsigned long long *p) {
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
static inline void shm_store64(unsigned long long *p, unsigned long long value) {
    __atomic_store_n(p, value, __ATOMIC_RELEASE);
}
static inline void *shm_exchange(void **p, void *value) {
    return __atomic_exchange_n(p, value, __ATOMIC_ACQ_REL);
}
static inline int shm_swap_pointer(void **p, void *old, void *value) {
    return __atomic_compare_exchange_n(p, &old, value, 0, __ATOMIC_RELEASE,
                                       __ATOMIC_RELAXED);
}

#endif
