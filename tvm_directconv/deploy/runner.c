/* Runs one function of a library that TVM exported, a layer or a network (its function main),
 * without Python and without TVM's runtime.
 *
 * runner LIBRARY SYMBOL [--repeat N] [--warmup N] [--number N] [--threads N] [--pin]
 *        [--pool LIBRARY] [--limit SECONDS] [--guard begin|end] [--align BYTES] TENSOR...
 * runner --cpu
 *
 * Each TENSOR is one argument of the kernel, in order. in:FILE:4,56,56,16 is read from a file of
 * raw float32 values, out:FILE:SHAPE is written to one afterwards, and what becomes of
 * expect:FILE:SHAPE is compared with one. Another type stands before the shape, in:FILE:int64,2,3;
 * alone, in:FILE:int64, it is a single value of no dimensions. random:SHAPE is filled with small whole numbers, the same
 * ones each time; scratch:SHAPE is not filled, and not looked at: an arena, or an output that nobody
 * asks for. After --warmup untimed calls, --repeat batches of --number calls are timed, by --threads
 * threads, with --pin each on a core of its own; with --pool instead by those of TVM's runtime, which
 * reads their number from TVM_NUM_THREADS. After --limit seconds it gives up. With --guard, each
 * tensor begins where memory begins that may be touched, or ends (aligned to --align bytes) where it
 * ends: what reads beyond is ended by a signal. Standard output is one JSON object:
 *
 *   seconds           the time of one call, for each batch
 *   different         elements of the expect: tensors that are not equal to those expected
 *   outside           bytes beside the tensors, with --guard, that were written to
 *   allocations       memory requests that the kernel made during its first call
 *   allocated_bytes   their sum, workspaces included
 *   rss_growth_bytes  how far the first timed batch of calls raised the peak of resident memory
 *   status            0, or -1 when the kernel failed, with one of:
 *     error           what it says against its arguments
 *     signal          the number of the signal that ended it; SIGALRM after --limit
 *
 * With --cpu it is one with the text of /proc/cpuinfo as "cpuinfo".
 *
 * Exit status: 0, 1 when the kernel failed, 2 when the command line is wrong.
 * Build: cc -std=c99 -O2 runner.c directconv.c -o runner -rdynamic -pthread -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <link.h>
#include <malloc.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "directconv.h"
#include "packed.h"

enum { ALIGNMENT = DIRECTCONV_ALIGNMENT, MAX_DIMS = 8, MAX_TENSORS = 256 };

/* ---- Allocation counting: these definitions take precedence over the C library's. ---- */

static int counting;           /* set exactly while the kernel runs */
static __thread int searching; /* set while looking up the C library's functions */
static uint64_t allocations, allocated_bytes;

static void count(size_t size) {
    if (!__atomic_load_n(&counting, __ATOMIC_RELAXED) || searching) return;
    __atomic_fetch_add(&allocations, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&allocated_bytes, size, __ATOMIC_RELAXED);
}

/* That search may itself call calloc, which is then served from here. */
static char early[4096] __attribute__((aligned(16)));
static size_t early_used;

static void *early_calloc(size_t size) {
    size = (size + 15) & ~(size_t)15;
    if (size > sizeof early - early_used) return NULL;
    early_used += size;
    return early + early_used - size; /* zero, as none of it is used twice */
}

static void *find_real(void **real, const char *name) {
    if (!*real && !searching) {
        searching = 1;
        *real = dlsym(RTLD_NEXT, name);
        searching = 0;
    }
    return *real;
}

#define COUNTED(type, name, params, args, size, otherwise)                             \
    type name params {                                                                 \
        static void *real;                                                             \
        count(size);                                                                   \
        return find_real(&real, #name) ? ((type(*) params)real)args : otherwise;       \
    }
COUNTED(void *, malloc, (size_t n), (n), n, NULL)
COUNTED(void *, calloc, (size_t k, size_t n), (k, n), k * n, early_calloc(k * n))
COUNTED(void *, realloc, (void *p, size_t n), (p, n), n, NULL)
COUNTED(void *, aligned_alloc, (size_t a, size_t n), (a, n), n, NULL)
COUNTED(void *, memalign, (size_t a, size_t n), (a, n), n, NULL)
COUNTED(int, posix_memalign, (void **p, size_t a, size_t n), (p, a, n), n, ENOMEM)
COUNTED(void *, mmap, (void *p, size_t n, int protection, int flags, int fd, off_t offset),
        (p, n, protection, flags, fd, offset), n, MAP_FAILED)

void free(void *p) {
    static void *real;
    if ((uintptr_t)p - (uintptr_t)early < sizeof early) return;
    if (find_real(&real, "free")) ((void (*)(void *))real)(p);
}

static uint64_t memory_line(const char *file, const char *name) {
    static char text[8192]; /* no stdio here: its buffers would show in the measurement */
    int fd = open(file, O_RDONLY);
    ssize_t size = fd >= 0 ? read(fd, text, sizeof text - 1) : 0;
    if (fd >= 0) close(fd);
    text[size > 0 ? size : 0] = '\0';
    const char *line = strstr(text, name);
    return line ? strtoull(line + strlen(name), NULL, 10) * 1024 : 0;
}

/* Resident memory, and its peak so far. Growth of the peak also sees what counting requests
 * cannot: stack, and memory taken by direct system calls. In an emulator, code that has not run
 * before counts, as the emulator translates it: there, warm up.
 *
 * Linux counts pages for each processor or thread and adds the counts up late. A peak between two
 * readings may therefore be found some 100 KiB too low. So the kernel's memory is not given back
 * (prepare_memory), and what is resident is read as well, where Linux looks at every page. */
typedef struct {
    uint64_t resident, peak;
} Memory;

static Memory memory_now(void) {
    return (Memory){memory_line("/proc/self/smaps_rollup", "Rss:"),
                    memory_line("/proc/self/status", "VmHWM:")};
}

/* Lowers the peak to the present, where Linux permits it: if not, growth below an older peak goes
 * unseen. */
static void reset_peak(void) {
    int fd = open("/proc/self/clear_refs", O_WRONLY);
    if (fd < 0) return;
    ssize_t ignored = write(fd, "5", 1);
    (void)ignored;
    close(fd);
}

static uint64_t growth(Memory before, Memory after) {
    uint64_t resident = after.resident > before.resident ? after.resident - before.resident : 0;
    uint64_t peak = after.peak > before.peak ? after.peak - before.peak : 0;
    return peak > resident ? peak : resident;
}

/* ---- The part of TVM's runtime that directconv.c has not: workspaces. ---- */

static void *alloc_workspace(int device_type, int device_id, uint64_t size, int code, int bits) {
    (void)device_type, (void)device_id, (void)code, (void)bits;
    void *p = NULL;
    if (size > SIZE_MAX || posix_memalign(&p, ALIGNMENT, (size_t)size) != 0) return NULL;
    return p;
}

static int free_workspace(int device_type, int device_id, void *p) {
    (void)device_type, (void)device_id;
    free(p);
    return 0;
}

/* ---- Nothing but the kernel's own memory may show in the peak of resident memory. ---- */

enum { PAGE = 4096, STACK = 16384 }; /* the smallest pages there are; what calls need, and more */

/* Pages of code and constants are loaded from their file when they are first used. */
static int touch_object(struct dl_phdr_info *object, size_t size, void *nothing) {
    (void)size, (void)nothing;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &object->dlpi_phdr[i];
        if (part->p_type != PT_LOAD || !(part->p_flags & PF_R)) continue;
        const volatile char *start = (const volatile char *)(object->dlpi_addr + part->p_vaddr);
        for (size_t offset = 0; offset < part->p_filesz; offset += PAGE) (void)start[offset];
        if (part->p_filesz) (void)start[part->p_filesz - 1];
    }
    return 0;
}

extern ParallelLaunch *__TVMBackendParallelLaunch; /* of directconv.c */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Each thread has to do its own share, though whoever is first may do another's: so nobody is through
 * before all have begun, unless a thread gets no core for long. */
static int touch_stack(int task, ParallelEnv *env, void *begun) {
    volatile char stack[STACK];
    double end = now() + 0.1;
    (void)task;
    for (size_t offset = 0; offset < STACK; offset += PAGE) stack[offset] = 0;
    __atomic_add_fetch((int32_t *)begun, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n((int32_t *)begun, __ATOMIC_SEQ_CST) < env->num_task && now() < end)
        continue;
    return stack[0];
}

static void prepare_memory(void) {
    int32_t begun = 0;
    mallopt(M_MMAP_MAX, 0);
    mallopt(M_TRIM_THRESHOLD, -1);
    dl_iterate_phdr(touch_object, NULL);
    __TVMBackendParallelLaunch(touch_stack, &begun, 0);
    memory_now(); /* its buffer */
}

/* ---- The program. ---- */

/* A shell or ssh in between may hide how a program ended, so it says so itself. */
static void ended_by(int number) {
    char text[] = "{\"status\": -1, \"signal\": 00}\n";
    char *digits = strchr(text, '0');
    digits[0] = (char)(number < 10 ? ' ' : '0' + number / 10);
    digits[1] = (char)('0' + number % 10);
    ssize_t ignored = write(STDOUT_FILENO, text, sizeof text - 1);
    (void)ignored;
    _exit(1);
}

static void stop(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("runner: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(2);
}

static void use_pool(const char *path) {
    void *runtime = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    void *launch = runtime ? dlsym(runtime, "TVMBackendParallelLaunch") : NULL;
    if (!launch)
        stop("--pool %s: expected TVM's runtime library (%s)", path ? path : "(nothing)",
             path ? dlerror() : "it is missing");
    *(void **)&__TVMBackendParallelLaunch = launch;
}

/* The pointer variables through which a library reaches its runtime exist only where used. */
static void fill_slots(void *library, const char *path) {
    const struct {
        const char *name;
        void *function;
    } slots[] = {
        {"__TVMBackendParallelLaunch", (void *)__TVMBackendParallelLaunch},
        {"__TVMBackendAllocWorkspace", (void *)alloc_workspace},
        {"__TVMBackendFreeWorkspace", (void *)free_workspace},
        {"__TVMBackendParallelBarrier", NULL},
        {"__TVMFFIEnvModLookupFromImports", NULL},
        {"__TVMFFIErrorSetRaisedFromCStr", NULL},
        {"__TVMFFIFunctionCall", NULL},
        {"__TVMFFIHandleInitOnce", NULL},
    };
    for (size_t i = 0; i < sizeof slots / sizeof *slots; i++) {
        void **slot = dlsym(library, slots[i].name);
        if (slot && !slots[i].function)
            stop("%s calls %s, which only TVM's runtime has: export a kernel that calls no other "
                 "packed function", path, slots[i].name + 2);
        if (slot) *slot = slots[i].function;
    }
}

enum { TYPE_INT = 0, TYPE_UINT = 1, TYPE_BOOL = 6 }; /* DLPack's numbers */
enum { IN, OUT, EXPECT, RANDOM, SCRATCH, ROLES };

typedef struct {
    const char *file;
    int role;
    void *expected;
    int64_t shape[MAX_DIMS], strides[MAX_DIMS];
    size_t bytes;
    unsigned char *around, *end; /* memory that may be touched, with --guard */
    DLTensor dl;
} Tensor;

enum { NOWHERE, BEGIN, END };
static int guard = NOWHERE, align = ALIGNMENT;

/* What is written to what surrounds a tensor, to see whether it stays. */
enum { UNTOUCHED = 0xa5 };

static void *guarded(Tensor *t) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), rest;
    size_t inside = (t->bytes + page - 1) / page * page;
    unsigned char *memory =
        mmap(NULL, inside + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory + page, inside, PROT_READ | PROT_WRITE) != 0)
        return NULL;
    t->around = memory + page;
    t->end = t->around + inside;
    memset(t->around, UNTOUCHED, inside);
    rest = inside - t->bytes;
    return guard == BEGIN ? t->around : t->around + rest / (size_t)align * (size_t)align;
}

static uint64_t touched(const Tensor *t) {
    const unsigned char *data = t->dl.data;
    uint64_t count = 0;
    for (const unsigned char *p = t->around; p < data; p++) count += *p != UNTOUCHED;
    for (const unsigned char *p = data + t->bytes; p < t->end; p++) count += *p != UNTOUCHED;
    return count;
}

static void fill(float *data, size_t count) {
    static uint32_t state = 1; /* Numerical Recipes' generator; its upper bits are good */
    for (size_t i = 0; i < count; i++) {
        state = state * 1664525 + 1013904223;
        data[i] = (float)(state >> 28) - 8;
    }
}

static void read_values(const Tensor *t, void *data, const char *shape) {
    FILE *f = fopen(t->file, "rb");
    if (!f) stop("cannot open input %s: %s", t->file, strerror(errno));
    size_t got = fread(data, 1, t->bytes, f);
    if (got != t->bytes || fgetc(f) != EOF)
        stop("input %s holds %s than the %zu bytes of %s", t->file,
             got < t->bytes ? "less" : "more", t->bytes, shape);
    fclose(f);
}

/* Sets the type that stands before a shape, float32 if none does; returns what is before the first
 * extent, the end if there is none. */
static char *parse_type(const char *text, char *colon, DLTensor *dl) {
    static const struct {
        const char *name;
        uint8_t code, bits;
    } types[] = {
        {"float32", TYPE_FLOAT, 32}, {"float64", TYPE_FLOAT, 64}, {"float16", TYPE_FLOAT, 16},
        {"int8", TYPE_INT, 8},       {"int16", TYPE_INT, 16},     {"int32", TYPE_INT, 32},
        {"int64", TYPE_INT, 64},     {"uint8", TYPE_UINT, 8},     {"uint16", TYPE_UINT, 16},
        {"uint32", TYPE_UINT, 32},   {"uint64", TYPE_UINT, 64},   {"bool", TYPE_BOOL, 8},
        {"bfloat16", TYPE_BFLOAT, 16},
    };
    size_t length = strcspn(colon + 1, ","), chosen = 0, count = sizeof types / sizeof *types;
    int named = colon[1] >= 'a' && colon[1] <= 'z';
    while (named && chosen < count && (strlen(types[chosen].name) != length ||
                                       strncmp(types[chosen].name, colon + 1, length) != 0))
        chosen++;
    if (chosen == count)
        stop("tensor '%s': expected a shape, or before it a type like float32, int64 or bool", text);
    dl->type_code = types[chosen].code;
    dl->type_bits = types[chosen].bits;
    return named ? colon + 1 + length : colon;
}

static void parse_tensor(Tensor *t, char *text) {
    static const char *const roles[] = {[IN] = "in:", [OUT] = "out:", [EXPECT] = "expect:",
                                        [RANDOM] = "random:", [SCRATCH] = "scratch:"};
    char *colon = strrchr(text, ':');
    for (t->role = IN; t->role < ROLES; t->role++)
        if (strncmp(text, roles[t->role], strlen(roles[t->role])) == 0) break;
    t->file = t->role < ROLES ? text + strlen(roles[t->role]) : NULL;
    if (!t->file || (t->role < RANDOM ? colon <= t->file : colon != t->file - 1))
        stop("tensor '%s': expected in:FILE:SHAPE, out:FILE:SHAPE, expect:FILE:SHAPE, random:SHAPE "
             "or scratch:SHAPE", text);
    char *p = parse_type(text, colon, &t->dl);
    if (t->role == RANDOM && (t->dl.type_code != TYPE_FLOAT || t->dl.type_bits != 32))
        stop("tensor '%s': expected float32, no other type is filled", text);
    int ndim = 0;
    uint64_t size = t->dl.type_bits / 8;
    for (char *end; *p; p = end, ndim++) {
        errno = 0;
        long long extent = p[1] >= '0' && p[1] <= '9' ? strtoll(p + 1, &end, 10) : 0;
        if (errno || extent < 1 || (*end && *end != ',') || ndim == MAX_DIMS ||
            (uint64_t)extent > (uint64_t)PTRDIFF_MAX / size)
            stop("tensor '%s': expected a shape of 1 to %d positive numbers like 4,56,56,16 that "
                 "fits into memory", text, MAX_DIMS);
        t->shape[ndim] = extent;
        size *= (uint64_t)extent;
    }
    *colon = '\0';
    t->bytes = (size_t)size;
    for (int64_t i = ndim - 1, stride = 1; i >= 0; stride *= t->shape[i--]) t->strides[i] = stride;
    void *data = NULL;
    if (guard != NOWHERE) data = guarded(t);
    else if (posix_memalign(&data, ALIGNMENT, t->bytes) != 0) data = NULL;
    if (!data) stop("no memory for %zu bytes of tensor %s", t->bytes, t->file);
    memset(data, 0xff, t->bytes); /* NaN: an element that the kernel does not write shows */
    t->dl = (DLTensor){data,       DEVICE_CPU, 0,        ndim, t->dl.type_code, t->dl.type_bits, 1,
                       t->shape, t->strides, 0};
    if (t->role == RANDOM) fill(data, t->bytes / sizeof(float));
    if (t->role == IN) read_values(t, data, colon + 1);
    if (t->role == EXPECT) {
        t->expected = malloc(t->bytes);
        if (!t->expected) stop("no memory for %zu bytes of tensor %s", t->bytes, t->file);
        read_values(t, t->expected, colon + 1);
    }
}

/* No tolerance; 0 is equal to -0, and no NaN to anything. */
static int equal(const DLTensor *dl, const void *a, const void *b) {
    size_t size = dl->type_bits / 8;
    if (dl->type_code != TYPE_FLOAT && dl->type_code != TYPE_BFLOAT) return memcmp(a, b, size) == 0;
    union {
        double of64;
        float of32;
        uint16_t of16;
    } x, y;
    memcpy(&x, a, size);
    memcpy(&y, b, size);
    if (size == 8) return x.of64 == y.of64;
    if (size == 4) return x.of32 == y.of32;
    int infinity = dl->type_code == TYPE_BFLOAT ? 0x7f80 : 0x7c00;
    int zeros = ((x.of16 | y.of16) & 0x7fff) == 0, number = (x.of16 & 0x7fff) <= infinity;
    return zeros || (number && x.of16 == y.of16);
}

static uint64_t differences(const Tensor *t) {
    const char *found = t->dl.data, *expected = t->expected;
    size_t size = t->dl.type_bits / 8;
    uint64_t count = 0;
    for (size_t i = 0; i < t->bytes; i += size) count += !equal(&t->dl, found + i, expected + i);
    return count;
}

static void write_output(const Tensor *t) {
    FILE *f = fopen(t->file, "wb");
    if (!f) stop("cannot write output %s: %s", t->file, strerror(errno));
    size_t written = fwrite(t->dl.data, 1, t->bytes, f);
    if (fclose(f) != 0 || written != t->bytes)
        stop("cannot write output %s: %s", t->file, strerror(errno));
}

static int parse_count(const char *option, const char *text, int least) {
    char *end = NULL;
    errno = 0;
    long n = text ? strtol(text, &end, 10) : -1;
    if (!text || end == text || *end || errno || n < least || n > 1000000)
        stop("%s %s: expected a whole number from %d to 1000000", option, text ? text : "(nothing)",
             least);
    return (int)n;
}

static int parse_guard(const char *text) {
    if (text && strcmp(text, "begin") == 0) return BEGIN;
    if (text && strcmp(text, "end") == 0) return END;
    stop("--guard %s: expected begin or end", text ? text : "(nothing)");
    return NOWHERE;
}

static void print_in_json_string(const char *text) {
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') printf("\\%c", c);
        else if (c < 0x20) printf("\\u%04x", c);
        else putchar(c);
    }
}

static int print_cpu(void) {
    char line[1024];
    FILE *f = fopen("/proc/cpuinfo", "r");
    printf("{\"cpuinfo\": \"");
    while (f && fgets(line, sizeof line, f)) print_in_json_string(line);
    puts("\"}");
    return 0;
}

int main(int argc, char **argv) {
    static Tensor tensors[MAX_TENSORS];
    static Any args[MAX_TENSORS];
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGALRM};
    int repeat = 1, warmup = 0, number = 1, threads = 1, limit = 0, count_tensors = 0;
    int placement = DIRECTCONV_ANYWHERE;
    if (argc == 2 && strcmp(argv[1], "--cpu") == 0) return print_cpu();
    if (argc < 3)
        stop("usage: runner LIBRARY SYMBOL [--repeat N] [--warmup N] [--number N] [--threads N] "
             "[--pin] [--pool LIBRARY] [--guard begin|end] [--align BYTES] [--limit SECONDS] "
             "in:FILE:SHAPE|out:FILE:SHAPE|expect:FILE:SHAPE|random:SHAPE|scratch:SHAPE..., "
             "or runner --cpu");
    for (int i = 3; i < argc; i++) {
        char *option = argv[i];
        if (strcmp(option, "--repeat") == 0) repeat = parse_count(option, argv[++i], 1);
        else if (strcmp(option, "--warmup") == 0) warmup = parse_count(option, argv[++i], 0);
        else if (strcmp(option, "--number") == 0) number = parse_count(option, argv[++i], 1);
        else if (strcmp(option, "--threads") == 0) threads = parse_count(option, argv[++i], 1);
        else if (strcmp(option, "--pin") == 0) placement = DIRECTCONV_PINNED;
        else if (strcmp(option, "--pool") == 0) use_pool(argv[++i]);
        else if (strcmp(option, "--guard") == 0) guard = parse_guard(argv[++i]);
        else if (strcmp(option, "--align") == 0) align = parse_count(option, argv[++i], 4);
        else if (strcmp(option, "--limit") == 0) limit = parse_count(option, argv[++i], 1);
        else if (option[0] == '-') stop("unknown option %s", option);
        else if (count_tensors == MAX_TENSORS) stop("more than %d tensors", MAX_TENSORS);
        else parse_tensor(&tensors[count_tensors++], option);
    }
    for (int i = 0; i < count_tensors; i++) {
        args[i].type_index = INDEX_DLTENSOR;
        args[i].value.pointer = &tensors[i].dl;
    }

    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) signal(signals[i], ended_by);
    alarm((unsigned)limit);
    char *path = realpath(argv[1], NULL); /* without a slash, dlopen would search elsewhere */
    if (!path) stop("cannot open library %s: %s", argv[1], strerror(errno));
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) stop("cannot load library: %s", dlerror());
    char name[512];
    if (snprintf(name, sizeof name, "__tvm_ffi_%s", argv[2]) >= (int)sizeof name)
        stop("the name of the kernel is too long");
    Kernel *kernel;
    *(void **)&kernel = dlsym(library, name);
    if (!kernel) stop("no kernel %s in the library: %s", argv[2], dlerror());
    fill_slots(library, path);

    if ((threads > 1 || placement) && directconv_start(threads, placement) != DIRECTCONV_OK)
        stop("%s", directconv_error());
    double *seconds = malloc((size_t)repeat * sizeof *seconds);
    if (!seconds) stop("no memory for %d measurements", repeat);
    int status = 0;
    prepare_memory();
    uint64_t rss_growth = 0;
    int first = warmup ? -1 : 0; /* batch -1 is the warm-up */
    for (int batch = first; batch < repeat && status == 0; batch++) {
        int calls = batch < 0 ? warmup : number;
        Memory before = {0, 0};
        if (batch == 0) {
            malloc_trim(0); /* what the warm-up has left would be used again */
            reset_peak();
            before = memory_now();
        }
        double start = now();
        for (int call = 0; call < calls && status == 0; call++) {
            Any result = {0, 0, {0}};
            __atomic_store_n(&counting, batch == first && call == 0, __ATOMIC_RELAXED);
            status = kernel(NULL, args, count_tensors, &result);
            __atomic_store_n(&counting, 0, __ATOMIC_RELAXED);
        }
        if (batch >= 0) seconds[batch] = (now() - start) / calls;
        if (batch == 0) rss_growth = growth(before, memory_now());
    }
    if (status != 0) {
        printf("{\"status\": -1, \"error\": \"");
        print_in_json_string(*directconv_error() ? directconv_error()
                                                 : "the kernel failed without a message");
        puts("\"}");
        return 1;
    }
    uint64_t different = 0, outside = 0;
    for (int i = 0; i < count_tensors; i++) {
        if (tensors[i].role == OUT) write_output(&tensors[i]);
        if (tensors[i].role == EXPECT) different += differences(&tensors[i]);
        if (guard != NOWHERE) outside += touched(&tensors[i]);
    }
    printf("{\"seconds\": [");
    for (int i = 0; i < repeat; i++) printf("%s%.9g", i ? ", " : "", seconds[i]);
    printf("], \"different\": %" PRIu64 ", \"outside\": %" PRIu64 ", \"allocations\": %" PRIu64
           ", \"allocated_bytes\": %" PRIu64 ", \"rss_growth_bytes\": %" PRIu64
           ", \"status\": 0}\n",
           different, outside, allocations, allocated_bytes, rss_growth);
    return 0;
}
