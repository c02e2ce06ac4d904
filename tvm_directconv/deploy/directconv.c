/* Errors, threads and weights for compiled convolutions and networks. See directconv.h.
 *
 * Kernels reach their runtime by two names that TVM gives them: the function
 * TVMFFIErrorSetRaisedFromCStrParts, for messages, and the variable __TVMBackendParallelLaunch,
 * which points to what runs a parallel loop. Both are defined here.
 */
#define _GNU_SOURCE /* affinity of threads */
#include "directconv.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "packed.h"

/* ---- Errors ---- */

#ifdef DIRECTCONV_NO_THREADS
#define PER_THREAD
#else
#define PER_THREAD __thread
#endif

enum { MESSAGE = 512 };
static PER_THREAD char message[MESSAGE];

const char *directconv_error(void) {
    return message;
}

static int fail(int code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(message, MESSAGE, format, args);
    va_end(args);
    return code;
}

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t n) {
    size_t used = (size_t)snprintf(message, MESSAGE, "%s: ", kind);
    for (int32_t i = 0; i < n && used < MESSAGE; i++)
        if (parts[i]) used += (size_t)snprintf(message + used, MESSAGE - used, "%s", parts[i]);
}

/* ---- Threads ---- */

#ifdef DIRECTCONV_NO_THREADS

static int parallel_launch(ParallelBody *body, void *data, int requested) {
    (void)requested;
    return body(0, &(ParallelEnv){NULL, 1}, data);
}

int directconv_start(int threads, int placement) {
    if (threads < 0 || threads > 1 || placement != DIRECTCONV_ANYWHERE)
        return fail(DIRECTCONV_BAD_ARGUMENT,
                    "cannot start %d threads with placement %d: compiled with "
                    "DIRECTCONV_NO_THREADS, expected 0 or 1 threads placed anywhere",
                    threads, placement);
    return DIRECTCONV_OK;
}

int directconv_threads(void) {
    return 1;
}

void directconv_stop(void) {}

#else

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>

/* Where Linux describes its cores. */
#ifndef DIRECTCONV_CORES
#define DIRECTCONV_CORES "/sys/devices/system/cpu"
#endif

/* How long a thread that waits keeps its core busy before it sleeps: longer than it takes between
 * loops of a network, as to be woken takes as long as a small layer, and short enough not to matter
 * to whatever else runs. For the first part of that, it keeps the core to itself. It does not give way
 * from the beginning: where two threads of the pool happen to be on one core, Linux moves one that
 * insists to an idle core, but not one that always gives way. */
#ifndef DIRECTCONV_SPIN_MICROSECONDS
#define DIRECTCONV_SPIN_MICROSECONDS 1000
#endif
enum { INSIST_MICROSECONDS = DIRECTCONV_SPIN_MICROSECONDS / 5 };

/* Room for the frames of kernels, with much to spare: but what is locked into memory by mlockall is
 * not the 8 MiB that are usual. */
enum { STACK = 1 << 20 };

/* A worker's share of a loop. An offered one is for the worker, or for the caller of the loop if that
 * is through with its own and the worker has not come yet: nobody waits for a thread that sleeps, or
 * that has no core at the moment. TAKEN is what the worker has; what the caller took is NOTHING. */
enum { NOTHING, OFFERED, TAKEN, END };

/* All that passes between a worker and the caller is in one line of the cache, and nothing else is. */
typedef struct {
    DIRECTCONV_ALIGNED uint32_t share;
    ParallelBody *body;
    void *data;
    pthread_t thread;
} Worker;

static struct {
    Worker workers[DIRECTCONV_MAX_THREADS];
    int restores; /* whether the starter was pinned, and is to be as before */
    pthread_t starter;
    pid_t starter_id; /* Linux knows of threads that have ended, the C library does not */
    cpu_set_t before;
    pthread_mutex_t lock; /* for sleeping and waking alone */
    pthread_cond_t work, done;
    char error[MESSAGE]; /* of the task that failed */
    int failed;
    uint32_t count;   /* of workers */
    uint32_t asleep;  /* whether some of them want to be woken */
    uint32_t waiting; /* whether the caller of the loop wants to be */
    uint32_t takers;  /* threads that want the pool, not for a loop */
    DIRECTCONV_ALIGNED uint32_t busy; /* whether somebody has the pool */
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER,
          .work = PTHREAD_COND_INITIALIZER,
          .done = PTHREAD_COND_INITIALIZER};

static uint32_t load(const uint32_t *value) {
    return __atomic_load_n(value, __ATOMIC_SEQ_CST);
}

static void store(uint32_t *value, uint32_t to) {
    __atomic_store_n(value, to, __ATOMIC_SEQ_CST);
}

static uint64_t microseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield");
#endif
}

/* Waits for a value to become another, or this one; returns 0 if it takes too long. */
static int spin(const uint32_t *value, uint32_t reference, int equal) {
    uint64_t begin = microseconds(), waited;
    for (;;) {
        for (int i = 0; i < 64; i++) {
            if ((load(value) == reference) == equal) return 1;
            relax();
        }
        waited = microseconds() - begin;
        if (waited > DIRECTCONV_SPIN_MICROSECONDS) return 0;
        if (waited > INSIST_MICROSECONDS) sched_yield();
    }
}

static int try_pool(void) {
    return __atomic_exchange_n(&pool.busy, 1, __ATOMIC_SEQ_CST) == 0;
}

/* In a child of fork() there are no workers, and nobody else that uses the pool. */
static void forget_pool(void) {
    pool.lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    pool.work = pool.done = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
    if (pool.restores && pthread_equal(pthread_self(), pool.starter))
        sched_setaffinity(0, sizeof pool.before, &pool.before);
    pool.restores = 0;
    store(&pool.count, 0);
    store(&pool.asleep, 0);
    store(&pool.waiting, 0);
    store(&pool.takers, 0);
    store(&pool.busy, 0);
    pool.failed = 0;
}

static void register_forget_pool(void) {
    pthread_atfork(NULL, NULL, forget_pool);
}

/* For start and stop. Loops do not take the pool any more as soon as somebody waits here: else, with
 * many of them, it would be free too rarely. */
static void take_pool(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_forget_pool); /* first, as another thread may fork at any time */
    __atomic_add_fetch(&pool.takers, 1, __ATOMIC_SEQ_CST);
    while (!try_pool()) sched_yield();
    __atomic_sub_fetch(&pool.takers, 1, __ATOMIC_SEQ_CST);
}

/* A worker that is about to sleep says so and then looks once more; whoever wakes has offered shares
 * before asking who sleeps. In whatever order, one of the two sees the other. */
static void wake_workers(void) {
    if (!load(&pool.asleep)) return;
    pthread_mutex_lock(&pool.lock);
    store(&pool.asleep, 0);
    pthread_cond_broadcast(&pool.work);
    pthread_mutex_unlock(&pool.lock);
}

/* May return without a share: woken too late for a loop, a worker stays awake for the next one. */
static void await_share(const uint32_t *share) {
    if (spin(share, NOTHING, 0)) return;
    pthread_mutex_lock(&pool.lock);
    store(&pool.asleep, 1);
    if (load(share) == NOTHING) pthread_cond_wait(&pool.work, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
}

static void await_worker(const uint32_t *share) {
    if (spin(share, NOTHING, 1)) return;
    pthread_mutex_lock(&pool.lock);
    store(&pool.waiting, 1);
    while (load(share) != NOTHING) pthread_cond_wait(&pool.done, &pool.lock);
    store(&pool.waiting, 0);
    pthread_mutex_unlock(&pool.lock);
}

int directconv_threads(void) {
    return (int)load(&pool.count) + 1;
}

static void run_task(int task, ParallelBody *body, void *data) {
    ParallelEnv env = {NULL, directconv_threads()};
    if (body(task, &env, data) == 0) return;
    pthread_mutex_lock(&pool.lock);
    if (!pool.failed) memcpy(pool.error, message, MESSAGE);
    pool.failed = 1;
    pthread_mutex_unlock(&pool.lock);
}

static int take_share(uint32_t *share, uint32_t to) {
    uint32_t offered = OFFERED;
    return __atomic_compare_exchange_n(share, &offered, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static void *work(void *number) {
    int task = (int)(intptr_t)number;
    Worker *self = &pool.workers[task - 1];
    for (;;) {
        await_share(&self->share);
        if (take_share(&self->share, TAKEN)) {
            run_task(task, self->body, self->data);
            store(&self->share, NOTHING);
            if (!load(&pool.waiting)) continue;
            pthread_mutex_lock(&pool.lock);
            pthread_cond_signal(&pool.done);
            pthread_mutex_unlock(&pool.lock);
        } else if (load(&self->share) == END) {
            return NULL;
        }
    }
}

/* Generated loops divide their range by env->num_task, so any number of tasks is right: one for
 * each thread, whatever number is requested; and one where the pool is busy, with another thread's
 * loop or with the one that this loop is in. */
static int parallel_launch(ParallelBody *body, void *data, int requested) {
    (void)requested;
    int failed, count;
    if (!load(&pool.count) || load(&pool.takers) || !try_pool())
        return body(0, &(ParallelEnv){NULL, 1}, data);
    count = (int)load(&pool.count);
    for (int i = 0; i < count; i++) {
        pool.workers[i].body = body;
        pool.workers[i].data = data;
        store(&pool.workers[i].share, OFFERED);
    }
    wake_workers();
    run_task(0, body, data);
    for (int i = 0; i < count; i++) {
        uint32_t *share = &pool.workers[i].share;
        if (take_share(share, NOTHING)) run_task(i + 1, body, data);
        else await_worker(share);
    }
    failed = pool.failed;
    if (failed) {
        memcpy(message, pool.error, MESSAGE);
        pool.failed = 0;
    }
    store(&pool.busy, 0);
    return failed ? -1 : 0;
}

/* ---- Which cores ---- */

/* The first number in a file about a core; `otherwise` where there is none. */
static long core_number(int core, const char *file, long otherwise) {
    char path[128], text[32];
    int fd;
    ssize_t size;
    long number;
    snprintf(path, sizeof path, DIRECTCONV_CORES "/cpu%d/%s", core, file);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return otherwise;
    size = read(fd, text, sizeof text - 1);
    close(fd);
    if (size <= 0) return otherwise;
    text[size] = '\0';
    return sscanf(text, "%ld", &number) == 1 ? number : otherwise;
}

typedef struct {
    int core, shares; /* whether it is another core's second thread */
    long speed;       /* in any unit, the same for all; 0 if unknown */
} Core;

static int is_better(const Core *a, const Core *b) {
    return a->shares != b->shares ? a->shares < b->shares : a->speed > b->speed;
}

/* The cores that this thread may use, the best first; returns how many there are. */
static int find_cores(Core *cores, int most) {
    cpu_set_t allowed;
    int count = 0;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 0;
    for (int core = 0; core < CPU_SETSIZE && count < most; core++) {
        long sibling;
        int at = count++;
        Core found = {core, 0, 0};
        if (!CPU_ISSET(core, &allowed)) {
            count--;
            continue;
        }
        sibling = core_number(core, "topology/thread_siblings_list", core);
        found.shares = sibling >= 0 && sibling < core && CPU_ISSET((int)sibling, &allowed);
        /* ARM's measure counts the cycles' worth as well as their number. */
        found.speed = core_number(core, "cpu_capacity",
                                  core_number(core, "cpufreq/cpuinfo_max_freq", 0));
        for (; at > 0 && is_better(&found, &cores[at - 1]); at--) cores[at] = cores[at - 1];
        cores[at] = found;
    }
    return count;
}

/* Everybody gets the same share, so n cores are as fast as n times the slowest of them. */
static int cores_worth_it(const Core *cores, int count) {
    int best = 1;
    for (int n = 2; n <= count && !cores[n - 1].shares; n++)
        if (n * cores[n - 1].speed > best * cores[best - 1].speed || !cores[n - 1].speed) best = n;
    return best;
}

/* ---- Start and stop ---- */

/* With the pool taken. */
static void end_workers(void) {
    for (uint32_t i = 0; i < load(&pool.count); i++) store(&pool.workers[i].share, END);
    wake_workers();
    for (uint32_t i = 0; i < load(&pool.count); i++) pthread_join(pool.workers[i].thread, NULL);
    store(&pool.count, 0);
    if (pool.restores) sched_setaffinity(pool.starter_id, sizeof pool.before, &pool.before);
    pool.restores = 0;
}

/* Restricts a thread, number 0 being the caller's, to the cores that are for it. */
static int place(pthread_t thread, int number, const Core *cores, int threads, int placement) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int i = 0; i < threads; i++)
        if (placement == DIRECTCONV_ANYWHERE || i == number) CPU_SET(cores[i].core, &set);
    return pthread_setaffinity_np(thread, sizeof set, &set);
}

/* Has a thread begin on a core, though it may go elsewhere later. Else it would begin where its starter
 * is, and the two would share that core for some milliseconds. Where it is not permitted, they do. */
static void begin_on(pthread_t thread, int core) {
    cpu_set_t before, set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    if (pthread_getaffinity_np(thread, sizeof before, &before) == 0 &&
        pthread_setaffinity_np(thread, sizeof set, &set) == 0)
        pthread_setaffinity_np(thread, sizeof before, &before);
}

static int start_worker(int number) {
    pthread_attr_t attributes;
    sigset_t all, before;
    Worker *worker = &pool.workers[number - 1];
    int error = pthread_attr_init(&attributes);
    if (error) return error;
    pthread_attr_setstacksize(&attributes, STACK);
    /* Signals are for the application's threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    store(&worker->share, NOTHING);
    error = pthread_create(&worker->thread, &attributes, work, (void *)(intptr_t)number);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (!error) store(&pool.count, (uint32_t)number);
    return error;
}

/* With the pool taken. */
static int start_workers(int threads, int placement) {
    Core cores[DIRECTCONV_MAX_THREADS];
    int count = find_cores(cores, DIRECTCONV_MAX_THREADS), places, error = 0;
    if (directconv_threads() > 1 || pool.restores)
        return fail(DIRECTCONV_BAD_ARGUMENT,
                    "cannot start %d threads: there is a pool of %d; stop it before", threads,
                    directconv_threads());
    if (!threads) threads = count ? cores_worth_it(cores, count) : 1;
    if (placement == DIRECTCONV_PINNED && threads > count)
        return fail(DIRECTCONV_BAD_ARGUMENT,
                    "cannot pin %d threads to cores of their own: this process may use %d", threads,
                    count);
    places = placement == DIRECTCONV_PINNED ||
             (threads <= count && cores[threads - 1].speed != cores[count - 1].speed);
    for (int number = 1; number < threads && !error; number++) {
        pthread_t *thread = &pool.workers[number - 1].thread;
        error = start_worker(number);
        if (!error && number < count) /* the starter's own core is left to the starter */
            begin_on(*thread, cores[cores[number].core == sched_getcpu() ? 0 : number].core);
        if (!error && places) error = place(*thread, number, cores, threads, placement);
    }
    if (!error && placement == DIRECTCONV_PINNED) {
        pool.starter = pthread_self();
        pool.starter_id = (pid_t)syscall(SYS_gettid);
        error = pthread_getaffinity_np(pool.starter, sizeof pool.before, &pool.before);
        if (!error) error = place(pool.starter, 0, cores, threads, placement);
        pool.restores = !error;
    }
    if (!error) return DIRECTCONV_OK;
    count = directconv_threads();
    end_workers();
    return fail(DIRECTCONV_SYSTEM_ERROR, "cannot start or place threads: got %d of %d (%s)", count,
                threads, strerror(error));
}

int directconv_start(int threads, int placement) {
    int status;
    if (threads < 0 || threads > DIRECTCONV_MAX_THREADS)
        return fail(DIRECTCONV_BAD_ARGUMENT,
                    "cannot start %d threads: expected 1 to %d, or 0 for all cores", threads,
                    DIRECTCONV_MAX_THREADS);
    if (placement != DIRECTCONV_ANYWHERE && placement != DIRECTCONV_PINNED)
        return fail(DIRECTCONV_BAD_ARGUMENT,
                    "placement is %d: expected DIRECTCONV_ANYWHERE or DIRECTCONV_PINNED", placement);
    take_pool();
    status = start_workers(threads, placement);
    store(&pool.busy, 0);
    return status;
}

void directconv_stop(void) {
    take_pool();
    end_workers();
    store(&pool.busy, 0);
}

#endif

/* Strong, so it takes the place of the empty one in each object with a parallel loop. */
ParallelLaunch *__TVMBackendParallelLaunch = parallel_launch;

/* ---- Weights ---- */

int directconv_map(directconv_weights *weights, const char *path) {
    struct stat status;
    const WeightsHeader *header;
    int fd, error;
    if (!weights || !path)
        return fail(DIRECTCONV_BAD_ARGUMENT, "directconv_map got NULL: expected where to put the "
                                             "weights, and the name of their file");
    *weights = (directconv_weights){NULL, 0};
    /* A pipe that nobody writes to would keep the caller waiting. */
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &status) != 0) {
        error = errno;
        if (fd >= 0) close(fd);
        return fail(DIRECTCONV_SYSTEM_ERROR, "cannot open weights %.200s: %s", path,
                    strerror(error));
    }
    if (!S_ISREG(status.st_mode) || (uint64_t)status.st_size < sizeof *header) {
        close(fd);
        return fail(DIRECTCONV_BAD_WEIGHTS,
                    "%.200s holds less than the %d bytes that weights begin with: expected the "
                    "whole .weights file", path, (int)sizeof *header);
    }
    /* All of it at once, where that exists: not page by page in the first run. */
#ifndef MAP_POPULATE
#define MAP_POPULATE 0
#endif
    void *data = (uint64_t)status.st_size > SIZE_MAX
                     ? MAP_FAILED
                     : mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd,
                            0);
    error = (uint64_t)status.st_size > SIZE_MAX ? EFBIG : errno;
    close(fd);
    if (data == MAP_FAILED)
        return fail(DIRECTCONV_SYSTEM_ERROR, "cannot map weights %.200s: %s", path,
                    strerror(error));
    *weights = (directconv_weights){data, (size_t)status.st_size};
    header = data;
    if (memcmp(header->magic, WEIGHTS_MAGIC, sizeof header->magic) != 0)
        error = fail(DIRECTCONV_BAD_WEIGHTS,
                     "%.200s is no file of weights: expected the .weights file that belongs to "
                     "the network", path);
    else if (header->bytes != weights->bytes)
        error = fail(DIRECTCONV_BAD_WEIGHTS,
                     "%.200s holds %llu bytes, of weights that are %llu: copy it again", path,
                     (unsigned long long)weights->bytes, (unsigned long long)header->bytes);
    else
        return DIRECTCONV_OK;
    directconv_unmap(weights);
    return error;
}

/* SHA-256, as FIPS 180-4 has it. */
static uint32_t rotated(uint32_t x, int n) {
    return x >> n | x << (32 - n);
}

static void add_block(uint32_t state[8], const unsigned char *block) {
    static const uint32_t k[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
        0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
        0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
        0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
        0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
        0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
        0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
        0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
        0xc67178f2};
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 |
               (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 64; i++)
        w[i] = w[i - 16] + w[i - 7] +
               (rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3) +
               (rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10);
    memcpy(s, state, sizeof s);
    for (int i = 0; i < 64; i++) {
        uint32_t a = s[7] + (rotated(s[4], 6) ^ rotated(s[4], 11) ^ rotated(s[4], 25)) +
                     ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
        uint32_t b = (rotated(s[0], 2) ^ rotated(s[0], 13) ^ rotated(s[0], 22)) +
                     ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof *s);
        s[4] += a;
        s[0] = a + b;
    }
    for (int i = 0; i < 8; i++) state[i] += s[i];
}

int directconv_check_weights(const directconv_weights *weights) {
    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    unsigned char last[64] = {0x80}; /* a bit, and at the end how many there were before it */
    const WeightsHeader *header = weights ? weights->data : NULL;
    if (!header)
        return fail(DIRECTCONV_BAD_ARGUMENT, "directconv_check_weights got NULL: expected weights "
                                             "that are mapped or linked in");
    if (weights->bytes < sizeof *header || weights->bytes % 64 || header->bytes != weights->bytes ||
        memcmp(header->magic, WEIGHTS_MAGIC, sizeof header->magic) != 0)
        return fail(DIRECTCONV_BAD_WEIGHTS, "these are no weights, or not all of them: expected what "
                                            "directconv_map returned");
    for (size_t at = sizeof *header; at < weights->bytes; at += 64)
        add_block(state, (const unsigned char *)header + at);
    for (int i = 0; i < 8; i++)
        last[63 - i] = (unsigned char)((weights->bytes - sizeof *header) * 8ULL >> 8 * i);
    add_block(state, last);
    for (int i = 0; i < 32; i++)
        if (header->id[i] != (unsigned char)(state[i / 4] >> (24 - i % 4 * 8)))
            return fail(DIRECTCONV_BAD_WEIGHTS, "the weights are damaged, their SHA-256 is not the "
                                                "one that they carry: copy the .weights file again");
    return DIRECTCONV_OK;
}

void directconv_unmap(directconv_weights *weights) {
    if (weights && weights->data) munmap((void *)weights->data, weights->bytes);
    if (weights) *weights = (directconv_weights){NULL, 0};
}
