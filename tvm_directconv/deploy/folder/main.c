/* Computes @name@ for inputs from files, prints the largest outputs, and the time.
 *
 * usage: @usage@
 *
 * Files hold raw values in the order of the shapes in @name@.h; inputs may be NumPy's .npy, too.
@if quantized@
 * Inputs that are quantised may be floats, too; of outputs, what numbers stand for is printed.
@end@
 */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "@name@.h"
#include "directconv.h"

enum { TOP = 5 };

#ifndef RUNS
#define RUNS 10 /* timed, the first one included */
#endif

#ifdef DIRECTCONV_NO_THREADS
enum { THREADS = 1 };
#else
enum { THREADS = @threads@ };
#endif

/* All the memory there is. */
@buffers@

static void stop(const char *what, const char *why) {
    fprintf(stderr, "@name@: %s: %s\n", what, why);
    exit(2);
}

/* Raw values, or NumPy's file of values of this type, whose beginning says what it holds. */
static void read_input(const char *path, void *data, size_t bytes, const char *type,
                       const char *shape) {
    char start[128] = "", expected[64], why[192];
    FILE *file = fopen(path, "rb");
    if (!file) stop(path, "cannot be opened");
    if (fread(start, 1, sizeof start - 1, file) > 10 && memcmp(start, "\x93NUMPY", 6) == 0) {
        snprintf(expected, sizeof expected, "{'descr': '%s', 'fortran_order': False,", type);
        snprintf(why, sizeof why, "holds values of another type, or columns before rows: expected %s",
                 shape);
        if (strncmp(start + 10, expected, strlen(expected)) != 0) stop(path, why);
        fseek(file, 10 + (unsigned char)start[8] + 256 * (unsigned char)start[9], SEEK_SET);
    } else {
        rewind(file);
    }
    snprintf(why, sizeof why, "holds more or fewer values than the input has: expected %s", shape);
    if (fread(data, 1, bytes, file) != bytes || fgetc(file) != EOF) stop(path, why);
    fclose(file);
}

@if quantized@
/* Whether a file holds floats, which are to be quantised, instead of an input's own numbers. */
static int holds_floats(const char *path, long bytes) {
    static const char expected[] = "{'descr': '@float@',";
    char start[128] = "";
    FILE *file = fopen(path, "rb");
    if (!file) stop(path, "cannot be opened");
    int found = 0;
    if (fread(start, 1, sizeof start - 1, file) > 10 && memcmp(start, "\x93NUMPY", 6) == 0)
        found = strncmp(start + 10, expected, sizeof expected - 1) == 0;
    else
        found = fseek(file, 0, SEEK_END) == 0 && ftell(file) == bytes;
    fclose(file);
    return found;
}

@readers@
@end@
static void write_output(const char *path, const void *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, bytes, file) != bytes || fclose(file) != 0)
        stop(path, "cannot be written");
}

@printers@
static double milliseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    double times[RUNS];
    if (argc < 1 + @inputs@ || argc > 1 + @inputs@ + @outputs@)
        stop("usage", "@usage@");
@read@
    if (directconv_start(THREADS, DIRECTCONV_ANYWHERE) != DIRECTCONV_OK)
        stop("threads", directconv_error());
    for (int run = 0; run < RUNS; run++) {
        double begin = milliseconds();
        if (@call@ != DIRECTCONV_OK)
            stop("run", directconv_error());
        times[run] = milliseconds() - begin;
    }
    directconv_stop();
@results@
    qsort(times, RUNS, sizeof *times, ascending);
    printf("milliseconds %.3f (median of %d runs)\n", times[RUNS / 2], RUNS);
    return 0;
}
