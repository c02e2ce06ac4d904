/* What a C or C++ program needs to run compiled convolutions and networks: threads, weights from a
 * file, and the message of what went wrong. C99; needs the C library and POSIX threads.
 *
 * Functions return 0 (DIRECTCONV_OK) or one of the numbers below. After that, directconv_error()
 * says what was wrong and what was expected. Nothing here ends the program.
 *
 * Memory is asked for by directconv_start (threads) and directconv_map (a file), and by nothing
 * else.
 *
 * Compiled with -DDIRECTCONV_NO_THREADS the same functions are there, and everything runs in the
 * thread that calls it; POSIX threads are not needed then.
 */
#ifndef TVM_DIRECTCONV_H
#define TVM_DIRECTCONV_H

#include <math.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    DIRECTCONV_OK = 0,
    DIRECTCONV_BAD_ARGUMENT = 1, /* a pointer or a number that cannot be used */
    DIRECTCONV_BAD_ARENA = 2,    /* missing, too small or not aligned */
    DIRECTCONV_BAD_WEIGHTS = 3,  /* of another network, damaged or truncated */
    DIRECTCONV_SYSTEM_ERROR = 4, /* the system refuses a thread or a file */
    DIRECTCONV_KERNEL_ERROR = 5  /* a kernel refuses its arguments */
};

/* What inputs, outputs, weights and arenas are aligned to, in bytes. */
enum { DIRECTCONV_ALIGNMENT = 64 };

/* Before a definition: static DIRECTCONV_ALIGNED float image[3 * 224 * 224]; */
#define DIRECTCONV_ALIGNED __attribute__((aligned(64)))

/* The message of the last failure in this thread; empty if there was none. It stays as it is until
 * the next failure. */
const char *directconv_error(void);

/* ---- Threads. There is one pool for the whole process. ---- */

/* How directconv_start may place threads on cores. */
enum {
    DIRECTCONV_ANYWHERE = 0, /* where the system likes; if cores differ, those started on fast ones */
    DIRECTCONV_PINNED = 1    /* each on a core of its own, the caller included, fastest first */
};

/* Start threads for code that was compiled for more than one. The thread that runs a network takes
 * part, so threads - 1 are started. 0 stands for all cores that are worth it: work is shared out
 * evenly, so a core counts only if having it is better than waiting for it.
 *
 * Any number of application threads may run networks at the same time. One of them has the pool,
 * the others compute their loops by themselves meanwhile: nobody waits. Nor does anybody wait for a
 * thread of the pool that sleeps, as they do after a millisecond without work: the caller computes
 * its share. After fork(), a child has no pool until it starts one.
 *
 * Returns DIRECTCONV_BAD_ARGUMENT if the number is not 0 to DIRECTCONV_MAX_THREADS, there is no
 * such placement, or the pool is there already; DIRECTCONV_SYSTEM_ERROR if a thread cannot be
 * started or placed. There is no pool then, and everything runs in the thread that calls it. */
int directconv_start(int threads, int placement);

/* Number of threads that share the work: those started, and the caller. 1 without a pool. */
int directconv_threads(void);

/* End the pool's threads; waits for a loop that they are at. Without a pool it does nothing. Threads
 * may go on running networks meanwhile and afterwards, alone. */
void directconv_stop(void);

#ifndef DIRECTCONV_MAX_THREADS
#define DIRECTCONV_MAX_THREADS 1024
#endif

/* ---- Weights in a file. ---- */

typedef struct {
    const void *data; /* what a network takes as its weights */
    size_t bytes;
} directconv_weights;

/* Map a file of weights into memory; processes share it. Returns DIRECTCONV_SYSTEM_ERROR if it
 * cannot be read, DIRECTCONV_BAD_WEIGHTS if it is no such file or not whole. Whether it is the right
 * one is checked by the network; whether its bytes are those that were written, by the next
 * function. The file must stay as long as it is while it is mapped. */
int directconv_map(directconv_weights *weights, const char *path);

/* Compare weights with the SHA-256 that they carry, which finds every damage. It reads all of them:
 * some seconds for each gigabyte, so it is done only if it is called. For weights that are linked in
 * it takes {NAME_weights, NAME_WEIGHTS_BYTES}. Returns DIRECTCONV_BAD_ARGUMENT for NULL,
 * DIRECTCONV_BAD_WEIGHTS if they are no weights, not whole or damaged. */
int directconv_check_weights(const directconv_weights *weights);

/* Give the memory back. */
void directconv_unmap(directconv_weights *weights);

/* ---- Quantised numbers: q stands for scale * (q - zero_point). ---- */

/* The number that stands for what is next to a value, half to even. Values beyond the range become
 * its least or its greatest number; NaN, the least. */
static inline int directconv_quantize(float value, float scale, int zero_point, int least,
                                      int greatest) {
    const float low = (float)(least - zero_point), high = (float)(greatest - zero_point);
    float found = value / scale;
    if (!(found > low)) found = low;
    if (found > high) found = high;
    return (int)lrintf(found) + zero_point;
}

/* What a number stands for. */
static inline float directconv_dequantize(int number, float scale, int zero_point) {
    return scale * (float)(number - zero_point);
}

#ifdef __cplusplus
}
#endif

#endif
