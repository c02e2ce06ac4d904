/* Measures what a compiled network takes besides its own memory, and whether it stays in it. Linked
 * with the library of a folder named "net", whose network has one input x and one output y.
 *
 * overhead INPUT OUTPUT
 *
 * Prints JSON: "allocations", memory requests after the threads were started; "extra", by how many
 * bytes resident memory has grown from the beginning of main beyond weights, arena, input and output;
 * "different", outputs that are other ones where all of these lie between pages that cannot be
 * touched. Writes the output to a file.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "net.h"

enum { ALIGN = DIRECTCONV_ALIGNMENT, RUNS = 3, THREADS = 3 };

static DIRECTCONV_ALIGNED float x[NET_X_ELEMENTS], y[NET_Y_ELEMENTS];
static DIRECTCONV_ALIGNED unsigned char arena[NET_ARENA_BYTES];

/* These take precedence over the C library's, which has its own also by other names. */
static int counting, allocations;
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t),
    *__libc_memalign(size_t, size_t);

static void count(void) {
    if (__atomic_load_n(&counting, __ATOMIC_RELAXED))
        __atomic_add_fetch(&allocations, 1, __ATOMIC_RELAXED);
}

void *malloc(size_t size) {
    return count(), __libc_malloc(size);
}

void *calloc(size_t n, size_t size) {
    return count(), __libc_calloc(n, size);
}

void *realloc(void *p, size_t size) {
    return count(), __libc_realloc(p, size);
}

void *aligned_alloc(size_t align, size_t size) {
    return count(), __libc_memalign(align, size);
}

int posix_memalign(void **p, size_t align, size_t size) {
    count();
    *p = __libc_memalign(align, size);
    return *p ? 0 : ENOMEM;
}

static void stop(const char *what) {
    fprintf(stderr, "overhead: %s\n", what);
    exit(2);
}

/* Without stdio, whose buffers would show. */
static long resident(void) {
    static char text[4096];
    int fd = open("/proc/self/smaps_rollup", O_RDONLY);
    ssize_t size = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    const char *line;
    text[size > 0 ? size : 0] = '\0';
    line = strstr(text, "Rss:");
    if (fd < 0 || !line) stop("no /proc/self/smaps_rollup");
    close(fd);
    return 1024 * atol(line + 4);
}

static void check(int status) {
    if (status != DIRECTCONV_OK) stop(directconv_error());
}

/* A copy whose first byte is the first of a page, or whose last one is the last of a page as far as
 * alignment permits, with pages around it that cannot be touched. */
static void *guarded(const void *from, size_t bytes, int at_end) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), inside = (bytes + page - 1) / page * page;
    char *memory = mmap(NULL, inside + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory + page, inside, PROT_READ | PROT_WRITE) != 0)
        stop("no memory");
    memory += page + (at_end ? (inside - bytes) / ALIGN * ALIGN : 0);
    return memcpy(memory, from, bytes);
}

int main(int argc, char **argv) {
    long before = resident(), after;
    int different = 0;
    int fd = argc == 3 ? open(argv[1], O_RDONLY) : -1;
    if (fd < 0 || read(fd, x, sizeof x) != (ssize_t)sizeof x) stop("cannot read the input");
    close(fd);
    check(directconv_start(THREADS, DIRECTCONV_ANYWHERE));
    counting = 1;
    for (int run = 0; run < RUNS; run++) check(net_run(x, y, net_weights, arena, sizeof arena));
    counting = 0;
    after = resident();
    for (int at_end = 0; at_end < 2; at_end++) {
        float *found = guarded(y, sizeof y, at_end);
        memset(found, 0xff, sizeof y);
        check(net_run(guarded(x, sizeof x, at_end), found,
                      guarded(net_weights, NET_WEIGHTS_BYTES, at_end),
                      guarded(arena, sizeof arena, at_end), sizeof arena));
        different += memcmp(found, y, sizeof y) != 0;
    }
    fd = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (fd < 0 || write(fd, y, sizeof y) != (ssize_t)sizeof y) stop("cannot write the output");
    printf("{\"allocations\": %d, \"extra\": %ld, \"different\": %d}\n", allocations,
           after - before - (long)(NET_WEIGHTS_BYTES + sizeof arena + sizeof x + sizeof y),
           different);
    return 0;
}
