/* Checks the C runtime with a network whose kernels are written by hand. tests/test_runtime.py
 * compiles it in several ways and runs it in a folder of its own, in which it writes files.
 *
 * usage: runtime_test [CASE]
 * Exit status: 0, or 1 after a line that says where and what was found.
 *
 * LOOPS says how many loops run in a row, CHILDREN_START_NOTHING that children start no threads.
 * directconv.c is compiled with the names of some functions of the system replaced by names of
 * functions below, so that it can be shown other machines, and threads that cannot be started. It is
 * told that Linux describes its cores in the folder cores.
 */
#define _GNU_SOURCE
#include "directconv.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "network.h"

#ifndef DIRECTCONV_NO_THREADS
#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>
#endif

extern ParallelLaunch *__TVMBackendParallelLaunch;
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t n);

/* ---- Checks ---- */

enum { HANGS = 30 }; /* seconds in one case */

static const char *now; /* the case that runs */

static void fail_at(int line, const char *format, ...) {
    va_list args;
    char text[2048];
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "%s:%d: in %s: %s\n", __FILE__, line, now, text);
    _exit(1);
}

static void hangs(int number) {
    ssize_t ignored = write(2, "hangs in ", 9);
    ignored += write(2, now, strlen(now));
    (void)number, (void)ignored;
    _exit(1);
}

static void expect_at(int line, const char *what, long long found, long long expected) {
    if (found != expected) fail_at(line, "%s is %lld, expected %lld", what, found, expected);
}

static void expect_text_at(int line, const char *found, const char *expected) {
    if (strcmp(found, expected) != 0)
        fail_at(line, "found \"%s\", expected \"%s\"", found, expected);
}

static void accepted_at(int line, const char *what, int code) {
    if (code != DIRECTCONV_OK) fail_at(line, "%s is %d: %s", what, code, directconv_error());
}

static void refused_at(int line, const char *what, int code, int expected, const char *message) {
    expect_at(line, what, code, expected);
    expect_text_at(line, directconv_error(), message);
}

#define EXPECT(found, expected) expect_at(__LINE__, #found, found, expected)
#define EXPECT_TEXT(found, expected) expect_text_at(__LINE__, found, expected)
#define ACCEPTED(call) accepted_at(__LINE__, #call, call)
#define REFUSED(call, code, message) refused_at(__LINE__, #call, call, code, message)

/* ---- A network: y = 3 x + bias, which goes through rows that lie apart; z = y, last row first. ---- */

enum { ROWS = 12, COLUMNS = 16, APART = 24 };

typedef struct {
    DIRECTCONV_ALIGNED float at[ROWS][COLUMNS];
} Image;

typedef struct {
    DIRECTCONV_ALIGNED WeightsHeader header;
    float bias[COLUMNS];
} Bias;

typedef struct {
    float dense[ROWS][COLUMNS], apart[ROWS][APART];
} Arena;

static int raise_error(const char *message) {
    TVMFFIErrorSetRaisedFromCStrParts("ValueError", &message, 1);
    return -1;
}

/* A kernel's loop, divided as generated ones are. */
typedef struct {
    const DLTensor *tensors[3];
} Operands;

static int range(int task, const ParallelEnv *env, int *end) {
    int share = (ROWS + env->num_task - 1) / env->num_task;
    *end = (task + 1) * share < ROWS ? (task + 1) * share : ROWS;
    return task * share;
}

static int compute_rows(int task, ParallelEnv *env, void *data) {
    const Operands *operands = data;
    const float *x = operands->tensors[0]->data, *bias = operands->tensors[1]->data;
    float *y = operands->tensors[2]->data;
    int end;
    for (int i = range(task, env, &end); i < end; i++)
        for (int j = 0; j < COLUMNS; j++) {
            char message[32];
            snprintf(message, sizeof message, "row %d is negative", i);
            if (x[i * COLUMNS + j] < 0) return raise_error(message);
            y[i * COLUMNS + j] = 3 * x[i * COLUMNS + j] + bias[j];
        }
    return 0;
}

static int gather_rows(int task, ParallelEnv *env, void *data) {
    const Operands *operands = data;
    const float *x = operands->tensors[0]->data;
    float *y = operands->tensors[1]->data, *z = operands->tensors[2]->data;
    int64_t stride = operands->tensors[0]->strides[0];
    int end;
    for (int i = range(task, env, &end); i < end; i++) {
        memcpy(&y[i * COLUMNS], &x[i * stride], COLUMNS * sizeof *y);
        memcpy(&z[(ROWS - 1 - i) * COLUMNS], &x[i * stride], COLUMNS * sizeof *z);
    }
    return 0;
}

static int launch_kernel(ParallelBody *body, const Any *args, int32_t num_args) {
    Operands operands;
    if (num_args != 3) return raise_error("not three operands");
    for (int i = 0; i < 3; i++) {
        const DLTensor *tensor = args[i].value.pointer;
        if (args[i].type_index != INDEX_DLTENSOR || tensor->device_type != DEVICE_CPU ||
            tensor->type_code != TYPE_FLOAT || tensor->type_bits != 32 || tensor->type_lanes != 1 ||
            tensor->shape[tensor->ndim - 1] != COLUMNS || tensor->byte_offset)
            return raise_error("an operand is not as the table says");
        operands.tensors[i] = tensor;
    }
    return __TVMBackendParallelLaunch(body, &operands, 0);
}

static int compute(void *self, const Any *args, int32_t num_args, Any *result) {
    (void)self, (void)result;
    return launch_kernel(compute_rows, args, num_args);
}

static int gather(void *self, const Any *args, int32_t num_args, Any *result) {
    (void)self, (void)result;
    return launch_kernel(gather_rows, args, num_args);
}

#define IMAGE {TYPE_FLOAT, 32, 2, 0}
#define BIAS {TYPE_FLOAT, 32, 1, 1}
#define ARENA_TYPE {TYPE_FLOAT, 32, 1, 2}
static const int64_t dims[] = {ROWS, COLUMNS, sizeof(Arena) / 4};
static const Operand operands[] = {
    {IMAGE, ARGUMENT, 0, 0},
    {BIAS, WEIGHTS, offsetof(Bias, bias), 0},
    {IMAGE, ARENA, offsetof(Arena, dense), 0},
    /* of the copy */
    {IMAGE, ARENA, offsetof(Arena, dense), 0},
    {IMAGE, ARENA, offsetof(Arena, apart), APART},
    {IMAGE, ARENA, offsetof(Arena, apart), APART},
    {IMAGE, ARGUMENT + 1, 0, 0},
    {IMAGE, ARGUMENT + 2, 0, 0},
    /* of the other network */
    {IMAGE, ARGUMENT, 0, 0},
    {IMAGE, ARGUMENT + 1, 0, 0},
};
static const Step steps[] = {{compute, 0, 3}, {directconv_copy_rows, 3, 2}, {gather, 5, 3}};
static const Parameter parameters[] = {
    {IMAGE, sizeof(Image), "input x"},
    {IMAGE, sizeof(Image), "output y"},
    {IMAGE, sizeof(Image), "output z"},
    {ARENA_TYPE, sizeof(Arena), "1920 bytes"},
};
static const Network tiny = {
    .name = "tiny",
    .arguments = "x, y, z, arena",
    .dims = dims,
    .operands = operands,
    .steps = steps,
    .parameters = parameters,
    .step_count = 3,
    .inputs = 1,
    .outputs = 2,
    .most_operands = 3,
    .has_weights = 1,
    .arena_bytes = sizeof(Arena),
    .weights_id = {1, 2, 3},
};

/* One that has neither weights nor intermediates. */
static const Step copying[] = {{directconv_copy_rows, 8, 2}};
static const Network copy = {
    .name = "copy",
    .arguments = "x, y, arena",
    .dims = dims,
    .operands = operands,
    .steps = copying,
    .parameters = parameters,
    .step_count = 1,
    .inputs = 1,
    .outputs = 1,
    .most_operands = 2,
};

static const Bias bias = {
    {WEIGHTS_MAGIC, sizeof(Bias), {1, 2, 3}, {0}},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
};

/* All that one thread needs for it. The array is of 64 bytes more, for checks of what is not
 * aligned. */
typedef struct {
    Image x, y, z;
    DIRECTCONV_ALIGNED unsigned char arena[sizeof(Arena) + 64];
} Memory;

static void fill(Memory *memory, int seed) {
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLUMNS; j++) memory->x.at[i][j] = (float)(seed + 100 * i + j * j);
    memset(&memory->y, 0xff, sizeof memory->y);
    memset(&memory->z, 0xff, sizeof memory->z);
}

static int run(Memory *memory) {
    void *const arguments[] = {&memory->x, &memory->y, &memory->z};
    return directconv_run(&tiny, arguments, &bias, memory->arena, sizeof(Arena));
}

static void check_outputs(int line, const Memory *memory) {
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLUMNS; j++) {
            float expected = 3 * memory->x.at[i][j] + bias.bias[j];
            float y = memory->y.at[i][j], z = memory->z.at[ROWS - 1 - i][j];
            if (!(y == expected && z == expected))
                fail_at(line, "row %d, column %d: y is %g and z %g, expected %g", i, j, y, z,
                        expected);
        }
}

static void check_network(int line, int seed) {
    Memory memory;
    fill(&memory, seed);
    accepted_at(line, "the network", run(&memory));
    check_outputs(line, &memory);
}

#define NETWORK_IS_RIGHT(seed) check_network(__LINE__, seed)

/* ---- Errors ---- */

static void no_error_at_first(void) {
    EXPECT_TEXT(directconv_error(), "");
}

static void messages_are_cut(void) {
    char text[600], expected[700];
    const char *parts[] = {text, NULL, "more", "and more"};
    for (int length = 490; length < 520; length++) {
        memset(text, 'a' + length % 26, (size_t)length);
        text[length] = '\0';
        snprintf(expected, sizeof expected, "Error: %smoreand more", text);
        expected[511] = '\0';
        TVMFFIErrorSetRaisedFromCStrParts("Error", parts, 4);
        EXPECT_TEXT(directconv_error(), expected);
    }
    memset(text, 'k', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    TVMFFIErrorSetRaisedFromCStrParts(text, parts, 4);
    text[511] = '\0';
    EXPECT_TEXT(directconv_error(), text);
}

/* ---- Networks as C functions ---- */

static void networks_compute(void) {
    Memory memory;
    void *const arguments[] = {&memory.x, &memory.y};
    NETWORK_IS_RIGHT(1);
    fill(&memory, 2);
    ACCEPTED(directconv_run(&copy, arguments, NULL, NULL, 0));
    EXPECT(memcmp(&memory.x, &memory.y, sizeof memory.x), 0);
}

static void wrong_arguments(void) {
    static const char *const names[] = {"input x", "output y", "output z"};
    Memory memory;
    fill(&memory, 3);
    for (int i = 0; i < 3; i++) {
        void *arguments[] = {&memory.x, &memory.y, &memory.z};
        char expected[100];
        arguments[i] = NULL;
        snprintf(expected, sizeof expected, "tiny: an argument is NULL: expected %s", names[i]);
        REFUSED(directconv_run(&tiny, arguments, &bias, memory.arena, sizeof(Arena)),
                DIRECTCONV_BAD_ARGUMENT, expected);
        arguments[i] = memory.arena + 32;
        snprintf(expected, sizeof expected, "tiny: an argument is not aligned: expected %s",
                 names[i]);
        REFUSED(directconv_run(&tiny, arguments, &bias, memory.arena, sizeof(Arena)),
                DIRECTCONV_BAD_ARGUMENT, expected);
    }
}

static void overlapping_arguments(void) {
    static DIRECTCONV_ALIGNED unsigned char all[4 * sizeof(Image)];
    static DIRECTCONV_ALIGNED unsigned char arena[sizeof(Arena)];
    unsigned char *x = all + sizeof(Image);
    for (int from = -1; from <= 1; from++) {
        /* One row before it, on it, one row behind. */
        void *onto_input[] = {x, x + 64 * from, all + 3 * sizeof(Image)};
        void *onto_output[] = {all + 3 * sizeof(Image), x, x + 64 * from};
        REFUSED(directconv_run(&tiny, onto_input, &bias, arena, sizeof arena),
                DIRECTCONV_BAD_ARGUMENT,
                "tiny: an output overlaps another argument: expected output y");
        REFUSED(directconv_run(&tiny, onto_output, &bias, arena, sizeof arena),
                DIRECTCONV_BAD_ARGUMENT,
                "tiny: an output overlaps another argument: expected output y");
    }
    void *side_by_side[] = {x, all, x + sizeof(Image)};
    ACCEPTED(directconv_run(&tiny, side_by_side, &bias, arena, sizeof arena));
}

static void wrong_arenas(void) {
    static DIRECTCONV_ALIGNED unsigned char all[sizeof(Arena) + sizeof(Image)];
    Memory memory;
    void *arguments[] = {&memory.x, &memory.y, &memory.z};
    fill(&memory, 4);
    REFUSED(directconv_run(&tiny, arguments, &bias, NULL, sizeof(Arena)), DIRECTCONV_BAD_ARENA,
            "tiny: the arena is NULL: expected 1920 bytes");
    REFUSED(directconv_run(&tiny, arguments, &bias, memory.arena + 4, sizeof(Arena)),
            DIRECTCONV_BAD_ARENA, "tiny: the arena is not aligned: expected 1920 bytes");
    REFUSED(directconv_run(&tiny, arguments, &bias, memory.arena, sizeof(Arena) - 1),
            DIRECTCONV_BAD_ARENA, "tiny: the arena is too small: expected 1920 bytes");
    for (int i = 0; i < 3; i++) {
        void *inside[] = {&memory.x, &memory.y, &memory.z};
        inside[i] = all + sizeof(Arena) - 64;
        REFUSED(directconv_run(&tiny, inside, &bias, all, sizeof(Arena)), DIRECTCONV_BAD_ARENA,
                "tiny: the arena overlaps an argument: expected 1920 bytes");
        /* What is behind the part that is used may be anything. */
        inside[i] = all + sizeof(Arena);
        fill(&memory, 4);
        memset(inside[i], 0, sizeof(Image));
        ACCEPTED(directconv_run(&tiny, inside, &bias, all, sizeof all));
    }
}

static void wrong_weights(void) {
    Memory memory;
    void *arguments[] = {&memory.x, &memory.y, &memory.z};
    Bias other = bias;
    fill(&memory, 5);
    REFUSED(directconv_run(&tiny, arguments, NULL, memory.arena, sizeof(Arena)),
            DIRECTCONV_BAD_WEIGHTS,
            "tiny: the pointer to the weights is NULL: expected weights aligned to 64 bytes");
    REFUSED(directconv_run(&tiny, arguments, bias.bias + 1, memory.arena, sizeof(Arena)),
            DIRECTCONV_BAD_WEIGHTS,
            "tiny: the pointer to the weights is not aligned: expected weights aligned to 64 bytes");
    for (int i = 0; i < 2; i++) {
        other = bias;
        if (i) other.header.id[31] ^= 1;
        else other.header.magic[15] = 2;
        REFUSED(directconv_run(&tiny, arguments, &other, memory.arena, sizeof(Arena)),
                DIRECTCONV_BAD_WEIGHTS,
                "tiny: the weights are not those of this network: expected those that it was "
                "compiled with");
    }
}

static void kernels_fail(void) {
    Memory memory;
    for (int threads = 0; threads < 2; threads++) {
        fill(&memory, 6);
        memory.x.at[ROWS - 1][3] = -1;
        REFUSED(run(&memory), DIRECTCONV_KERNEL_ERROR, "ValueError: row 11 is negative");
        memory.x.at[ROWS - 1][3] = 1;
        ACCEPTED(run(&memory));
        check_outputs(__LINE__, &memory);
        /* It stays until the next one. */
        EXPECT_TEXT(directconv_error(), "ValueError: row 11 is negative");
#ifndef DIRECTCONV_NO_THREADS
        if (!threads) ACCEPTED(directconv_start(3, DIRECTCONV_ANYWHERE));
#endif
    }
    directconv_stop();
}

/* ---- Networks as functions of TVM ---- */

typedef struct {
    DIRECTCONV_ALIGNED Memory memory;
    double seconds[3];
    int64_t shape[2], arena_shape[1], seconds_shape[1];
    DLTensor tensors[5];
    Any args[5];
} Call;

static void prepare(Call *call) {
    void *data[] = {&call->memory.x, &call->memory.y, &call->memory.z, call->memory.arena,
                    call->seconds};
    *call = (Call){.shape = {ROWS, COLUMNS}, .arena_shape = {sizeof(Arena) / 4},
                   .seconds_shape = {3}, .seconds = {-1, -1, -1}};
    fill(&call->memory, 7);
    for (int i = 0; i < 5; i++) {
        int64_t *shapes[] = {call->shape, call->shape, call->shape, call->arena_shape,
                             call->seconds_shape};
        call->tensors[i] = (DLTensor){data[i], DEVICE_CPU, 0,    i < 3 ? 2 : 1, TYPE_FLOAT,
                                      i < 4 ? 32 : 64, 1, shapes[i], NULL, 0};
        call->args[i] = (Any){INDEX_DLTENSOR, 0, {.pointer = &call->tensors[i]}};
    }
}

static int run_packed(Call *call) {
    return directconv_run_packed(&tiny, &bias, call->args, 4, 0);
}

static void packed_calls(void) {
    Call call;
    int64_t strides[] = {COLUMNS, 1}, apart[] = {APART, 1}, transposed[] = {1, ROWS};
    int64_t higher[] = {ROWS + 1, COLUMNS}, narrower[] = {ROWS, COLUMNS - 1};
    DIRECTCONV_ALIGNED struct {
        unsigned char header[OBJECT_HEADER];
        DLTensor tensor;
    } object;
    prepare(&call);
    EXPECT(run_packed(&call), 0);
    check_outputs(__LINE__, &call.memory);

    /* Strides that say nothing new, data behind an offset, and an object that has the tensor. */
    prepare(&call);
    call.tensors[0].strides = strides;
    call.tensors[1].data = (char *)call.tensors[1].data - 8;
    call.tensors[1].byte_offset = 8;
    object.tensor = call.tensors[2];
    call.args[2] = (Any){INDEX_TENSOR, 0, {.pointer = &object}};
    EXPECT(run_packed(&call), 0);
    check_outputs(__LINE__, &call.memory);

    prepare(&call);
    EXPECT(directconv_run_packed(&tiny, &bias, call.args, 5, 1), 0);
    check_outputs(__LINE__, &call.memory);
    for (int i = 0; i < 3; i++) EXPECT(call.seconds[i] >= 0 && call.seconds[i] < HANGS, 1);

    static const char *const x = "ValueError: an argument of the network cannot be used: expected "
                                 "input x";
    for (int i = 0; i < 13; i++) {
        DLTensor *tensor = &call.tensors[0];
        prepare(&call);
        if (i == 0) tensor->type_code = 0;
        if (i == 1) tensor->type_bits = 64;
        if (i == 2) tensor->type_lanes = 2;
        if (i == 3) tensor->device_type = 2;
        if (i == 4) tensor->ndim = 1;
        if (i == 5) tensor->shape = higher;
        if (i == 6) tensor->shape = narrower;
        if (i == 7) tensor->strides = apart;
        if (i == 8) tensor->byte_offset = 4;
        if (i == 9) tensor->data = (char *)tensor->data + 4;
        if (i == 10) tensor->data = NULL;
        if (i == 11) call.args[0] = (Any){1, 0, {.integer = 3}};
        if (i == 12) tensor->strides = transposed;
        REFUSED(run_packed(&call), -1, x);
    }
    prepare(&call);
    call.tensors[2].ndim = 3;
    REFUSED(run_packed(&call), -1,
            "ValueError: an argument of the network cannot be used: expected output z");
    prepare(&call);
    call.arena_shape[0]--;
    REFUSED(run_packed(&call), -1,
            "ValueError: an argument of the network cannot be used: expected 1920 bytes");
    prepare(&call);
    call.memory.x.at[5][0] = -1;
    REFUSED(run_packed(&call), -1, "ValueError: row 5 is negative");

    prepare(&call);
    for (int count = 0; count < 6; count++) {
        if (count != 4)
            REFUSED(directconv_run_packed(&tiny, &bias, call.args, count, 0), -1,
                    "ValueError: wrong number of arguments: expected x, y, z, arena");
        if (count != 5)
            REFUSED(directconv_run_packed(&tiny, &bias, call.args, count, 1), -1,
                    "ValueError: wrong number of arguments: expected x, y, z, arena and seconds");
    }
    for (int i = 0; i < 5; i++) {
        prepare(&call);
        if (i == 0) call.tensors[4].type_code = 0;
        if (i == 1) call.tensors[4].type_bits = 32;
        if (i == 2) call.tensors[4].ndim = 2;
        if (i == 3) call.seconds_shape[0] = 2;
        if (i == 4) call.args[4].type_index = 1;
        REFUSED(directconv_run_packed(&tiny, &bias, call.args, 5, 1), -1,
                "ValueError: the seconds of the steps cannot be used: expected a float64 tensor "
                "with one element for each step");
    }
}

/* ---- Files of weights ---- */

static void write_file(const char *path, const void *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, bytes, file) != bytes || fclose(file) != 0)
        fail_at(__LINE__, "cannot write %s: %s", path, strerror(errno));
}

static void refuse_file(int line, int code, const char *path, const char *message) {
    directconv_weights weights = {&weights, 1};
    refused_at(line, "directconv_map", directconv_map(&weights, path), code, message);
    if (weights.data || weights.bytes) fail_at(line, "there are weights");
    directconv_unmap(&weights);
}

#define REFUSED_FILE(code, path, message) refuse_file(__LINE__, code, path, message)

static void weights_are_mapped(void) {
    directconv_weights a, b;
    Memory memory;
    void *arguments[] = {&memory.x, &memory.y, &memory.z};
    write_file("good", &bias, sizeof bias);
    ACCEPTED(directconv_map(&a, "good"));
    ACCEPTED(directconv_map(&b, "good"));
    EXPECT(a.bytes, sizeof bias);
    directconv_unmap(&a);
    EXPECT(a.data == NULL && a.bytes == 0, 1);
    directconv_unmap(&a);
    directconv_unmap(NULL);
    fill(&memory, 8);
    ACCEPTED(directconv_run(&tiny, arguments, b.data, memory.arena, sizeof(Arena)));
    check_outputs(__LINE__, &memory);
    directconv_unmap(&b);
}

static void weights_are_refused(void) {
    static const char *const null = "directconv_map got NULL: expected where to put the weights, "
                                    "and the name of their file";
    char text[sizeof bias + 1] = {0}, name[400], expected[400];
    directconv_weights weights;
    REFUSED(directconv_map(NULL, "good"), DIRECTCONV_BAD_ARGUMENT, null);
    REFUSED(directconv_map(&weights, NULL), DIRECTCONV_BAD_ARGUMENT, null);
    REFUSED_FILE(DIRECTCONV_SYSTEM_ERROR, "none",
                 "cannot open weights none: No such file or directory");
    /* Of a long name as much is said as leaves room for the reason. */
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    snprintf(expected, sizeof expected, "cannot open weights %.200s: File name too long", name);
    REFUSED_FILE(DIRECTCONV_SYSTEM_ERROR, name, expected);
    REFUSED_FILE(DIRECTCONV_BAD_WEIGHTS, ".",
                 ". holds less than the 64 bytes that weights begin with: expected the whole "
                 ".weights file");
    memcpy(text, &bias, sizeof bias);
    for (int bytes = 0; bytes <= 63; bytes += 63) {
        write_file("short", text, (size_t)bytes);
        REFUSED_FILE(DIRECTCONV_BAD_WEIGHTS, "short",
                     "short holds less than the 64 bytes that weights begin with: expected the "
                     "whole .weights file");
    }
    for (int bytes = 64; bytes <= (int)sizeof bias + 1; bytes++) {
        write_file("other", text, (size_t)bytes);
        snprintf(expected, sizeof expected,
                 "other holds %d bytes, of weights that are 128: copy it again", bytes);
        if (bytes != sizeof bias) REFUSED_FILE(DIRECTCONV_BAD_WEIGHTS, "other", expected);
    }
    text[15] ^= 1;
    write_file("other", text, sizeof bias);
    REFUSED_FILE(DIRECTCONV_BAD_WEIGHTS, "other",
                 "other is no file of weights: expected the .weights file that belongs to the "
                 "network");
}

/* ---- Loops ---- */

enum { MOST = 8 }; /* threads */

/* Counts how often each task of a loop runs. The counters are not atomic: each is for one task, and
 * the loop is over before the next one begins; thread sanitizers see where that is not so. */
typedef struct {
    int ran[MOST], tasks[MOST];
    unsigned naps[MOST]; /* microseconds that a task takes */
} Count;

static int count(int task, ParallelEnv *env, void *data) {
    Count *counts = data;
    if (task < 0 || task >= MOST) fail_at(__LINE__, "there is a task %d", task);
    if (counts->naps[task]) usleep(counts->naps[task]);
    counts->ran[task]++;
    counts->tasks[task] = env->num_task;
    return 0;
}

static int launch(ParallelBody *body, void *data) {
    return __TVMBackendParallelLaunch(body, data, 0);
}

/* Checks that each task of the loop ran once, and returns how many there were. */
static int check_counts(int line, const Count *counts) {
    int tasks = counts->tasks[0];
    if (tasks < 1 || tasks > MOST) fail_at(line, "there were %d tasks", tasks);
    for (int i = 0; i < MOST; i++) {
        if (counts->ran[i] != (i < tasks))
            fail_at(line, "task %d of %d ran %d times", i, tasks, counts->ran[i]);
        if (i < tasks && counts->tasks[i] != tasks)
            fail_at(line, "task %d was told of %d tasks, and task 0 of %d", i, counts->tasks[i],
                    tasks);
    }
    return tasks;
}

static void check_loop(int line, int threads, unsigned nap, uint32_t seed) {
    Count counts = {{0}, {0}, {0}};
    for (int i = 0; nap && i < MOST; i++)
        counts.naps[i] = (seed = seed * 1664525 + 1013904223) / 65536 % nap;
    expect_at(line, "the loop", launch(count, &counts), 0);
    expect_at(line, "the number of tasks", check_counts(line, &counts), threads);
}

#define LOOP_IS_RIGHT(threads) check_loop(__LINE__, threads, 0, 0)

static void without_a_pool(void) {
    directconv_stop();
    EXPECT(directconv_threads(), 1);
    LOOP_IS_RIGHT(1);
    NETWORK_IS_RIGHT(9);
    ACCEPTED(directconv_start(1, DIRECTCONV_ANYWHERE));
    EXPECT(directconv_threads(), 1);
    LOOP_IS_RIGHT(1);
    directconv_stop();
    directconv_stop();
}

static int fails(int task, ParallelEnv *env, void *data) {
    char message[40];
    (void)env;
    snprintf(message, sizeof message, "task %d fails", task);
    return task == *(int *)data ? raise_error(message) : 0;
}

#ifdef DIRECTCONV_NO_THREADS

static void start_without_threads(void) {
    static const struct {
        int threads, placement;
    } wrong[] = {{2, 0}, {-1, 0}, {1, 1}};
    char expected[200];
    for (int i = 0; i < 3; i++) {
        snprintf(expected, sizeof expected,
                 "cannot start %d threads with placement %d: compiled with "
                 "DIRECTCONV_NO_THREADS, expected 0 or 1 threads placed anywhere",
                 wrong[i].threads, wrong[i].placement);
        REFUSED(directconv_start(wrong[i].threads, wrong[i].placement), DIRECTCONV_BAD_ARGUMENT,
                expected);
    }
    ACCEPTED(directconv_start(0, DIRECTCONV_ANYWHERE));
    EXPECT(directconv_threads(), 1);
    directconv_stop();
}

static void a_task_fails(void) {
    int task = 0;
    EXPECT(launch(fails, &task), -1);
    EXPECT_TEXT(directconv_error(), "ValueError: task 0 fails");
}

#else

/* ---- Between directconv.c and the system ---- */

static int creations = -1; /* how many succeed before one fails; -1: all do */
static int alive;          /* threads of pools */

typedef struct {
    void *(*body)(void *);
    void *data;
} Thread;

static void *counted(void *data) {
    Thread thread = *(Thread *)data;
    sigset_t blocked;
    void *result;
    free(data);
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    if (!sigismember(&blocked, SIGINT) || !sigismember(&blocked, SIGALRM))
        fail_at(__LINE__, "a thread of the pool takes signals");
    result = thread.body(thread.data);
    __atomic_sub_fetch(&alive, 1, __ATOMIC_SEQ_CST);
    return result;
}

int test_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*body)(void *),
                void *data);
int test_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*body)(void *),
                void *data) {
    Thread *wrapped;
    if (creations == 0) return EAGAIN;
    if (creations > 0) creations--;
    wrapped = malloc(sizeof *wrapped);
    *wrapped = (Thread){body, data};
    __atomic_add_fetch(&alive, 1, __ATOMIC_SEQ_CST);
    return pthread_create(thread, attributes, counted, wrapped);
}

#define ALIVE __atomic_load_n(&alive, __ATOMIC_SEQ_CST)

/* In one of the builds, called before each step that other threads can see: now and then another
 * thread comes between it and the step before, however close they are. */
void test_pause(void);
void test_pause(void) {
    static __thread uint32_t seed;
    seed = (seed ? seed : (uint32_t)(uintptr_t)&seed) * 1664525 + 1013904223;
    if (seed >> 27 == 0) usleep(1 + (seed >> 16) % 100);
}

int test_wait(pthread_cond_t *condition, pthread_mutex_t *lock);
int test_wait(pthread_cond_t *condition, pthread_mutex_t *lock) {
    test_pause();
    return pthread_cond_wait(condition, lock);
}

static int pretends;          /* whether the next two are in use */
static cpu_set_t pretended;   /* the cores that there are */
static cpu_set_t placed[MOST]; /* where threads are to stay, in the order of their placing */
static pthread_t placed_threads[MOST];
static int placements; /* -1: placing fails */
static void (*when_looking)(void); /* called in the midst of directconv_start */

int test_allowed(pid_t thread, size_t size, cpu_set_t *set);
int test_allowed(pid_t thread, size_t size, cpu_set_t *set) {
    if (when_looking) when_looking();
    if (!pretends) return sched_getaffinity(thread, size, set);
    *set = pretended;
    return 0;
}

int test_place(pthread_t thread, size_t size, const cpu_set_t *set);
int test_place(pthread_t thread, size_t size, const cpu_set_t *set) {
    cpu_set_t everywhere;
    int i = 0;
    if (!pretends) return pthread_setaffinity_np(thread, size, set);
    if (placements < 0) return EINVAL;
    while (i < placements && !pthread_equal(thread, placed_threads[i])) i++;
    sched_getaffinity(0, sizeof everywhere, &everywhere);
    if (i < placements && CPU_EQUAL(set, &everywhere)) { /* it may go where it could before */
        placements = i;
        return 0;
    }
    if (i == MOST) return EINVAL;
    if (i == placements) placements++;
    placed_threads[i] = thread;
    placed[i] = *set;
    return 0;
}

/* ---- Start ---- */

/* Neither the thread sanitizer nor QEMU can start threads in the child of a process with several. */
#ifdef CHILDREN_START_NOTHING
enum { CHILDREN_START = 0 };
#else
enum { CHILDREN_START = 1 };
#endif

static int wait_for(pid_t child) {
    int status = -1;
    if (child < 0 || waitpid(child, &status, 0) != child) fail_at(__LINE__, "no child");
    return status;
}

static pid_t forked_child;

static void fork_once(void) {
    when_looking = NULL;
    forked_child = fork();
    if (forked_child) return;
    /* An alarm is not inherited. */
    alarm(HANGS);
    ACCEPTED(directconv_start(2, DIRECTCONV_ANYWHERE));
    LOOP_IS_RIGHT(2);
    directconv_stop();
    _exit(0);
}

/* As if another thread forked while this one starts the first pool. It must be the first case. */
static void fork_while_starting(void) {
    when_looking = fork_once;
    ACCEPTED(directconv_start(2, DIRECTCONV_ANYWHERE));
    EXPECT(wait_for(forked_child), 0);
    LOOP_IS_RIGHT(2);
    directconv_stop();
}

static void wrong_starts(void) {
    char expected[200];
    for (int threads = -1; threads <= DIRECTCONV_MAX_THREADS + 1;
         threads += DIRECTCONV_MAX_THREADS + 2) {
        snprintf(expected, sizeof expected,
                 "cannot start %d threads: expected 1 to %d, or 0 for all cores", threads,
                 DIRECTCONV_MAX_THREADS);
        REFUSED(directconv_start(threads, DIRECTCONV_ANYWHERE), DIRECTCONV_BAD_ARGUMENT, expected);
    }
    for (int placement = -1; placement <= 2; placement += 3) {
        snprintf(expected, sizeof expected,
                 "placement is %d: expected DIRECTCONV_ANYWHERE or DIRECTCONV_PINNED", placement);
        REFUSED(directconv_start(2, placement), DIRECTCONV_BAD_ARGUMENT, expected);
    }
    EXPECT(directconv_threads(), 1);
    EXPECT(ALIVE, 0);
    ACCEPTED(directconv_start(3, DIRECTCONV_ANYWHERE));
    REFUSED(directconv_start(2, DIRECTCONV_ANYWHERE), DIRECTCONV_BAD_ARGUMENT,
            "cannot start 2 threads: there is a pool of 3; stop it before");
    EXPECT(directconv_threads(), 3);
    LOOP_IS_RIGHT(3);
    directconv_stop();
}

static void the_most_threads(void) {
    ACCEPTED(directconv_start(DIRECTCONV_MAX_THREADS, DIRECTCONV_ANYWHERE));
    EXPECT(directconv_threads(), DIRECTCONV_MAX_THREADS);
    EXPECT(ALIVE, DIRECTCONV_MAX_THREADS - 1);
    NETWORK_IS_RIGHT(10);
    directconv_stop();
    EXPECT(ALIVE, 0);
}

static void threads_cannot_be_started(void) {
    char expected[200];
    for (creations = 3; creations >= 0;) {
        int got = creations + 1;
        snprintf(expected, sizeof expected,
                 "cannot start or place threads: got %d of 5 (Resource temporarily unavailable)",
                 got);
        REFUSED(directconv_start(5, DIRECTCONV_ANYWHERE), DIRECTCONV_SYSTEM_ERROR, expected);
        EXPECT(ALIVE, 0);
        EXPECT(directconv_threads(), 1);
        LOOP_IS_RIGHT(1);
        creations = got - 2;
    }
    ACCEPTED(directconv_start(5, DIRECTCONV_ANYWHERE));
    LOOP_IS_RIGHT(5);
    directconv_stop();
}

static void many_pools(void) {
    for (int i = 0; i < 1000; i++) {
        ACCEPTED(directconv_start(2 + i % 3, DIRECTCONV_ANYWHERE));
        LOOP_IS_RIGHT(2 + i % 3);
        directconv_stop();
        EXPECT(directconv_threads(), 1);
        EXPECT(ALIVE, 0);
    }
}

/* ---- Which cores ---- */

static void describe(int core, const char *file, const char *text) {
    char path[100];
    mkdir("cores", 0777);
    snprintf(path, sizeof path, "cores/cpu%d", core);
    mkdir(path, 0777);
    snprintf(path, sizeof path, "cores/cpu%d/topology", core);
    mkdir(path, 0777);
    snprintf(path, sizeof path, "cores/cpu%d/cpufreq", core);
    mkdir(path, 0777);
    snprintf(path, sizeof path, "cores/cpu%d/%s", core, file);
    write_file(path, text, strlen(text));
}

/* Cores are given as bits. */
static void pretend(unsigned cores) {
    pretends = 1;
    placements = 0;
    CPU_ZERO(&pretended);
    for (int i = 0; i < 32; i++)
        if (cores >> i & 1) CPU_SET(i, &pretended);
}

static unsigned bits(const cpu_set_t *set) {
    unsigned cores = 0;
    for (int i = 0; i < 32; i++)
        if (CPU_ISSET(i, set)) cores |= 1u << i;
    return cores;
}

/* Starts a pool on these cores, and checks how many threads there are and where they are put. */
static void check_placement(int line, unsigned cores, int threads, int placement, int expected,
                            const unsigned *places) {
    pretend(cores);
    accepted_at(line, "directconv_start", directconv_start(threads, placement));
    expect_at(line, "the number of threads", directconv_threads(), expected);
    for (int i = 0; places && i < placements; i++)
        expect_at(line, "a place", bits(&placed[i]), places[i]);
    expect_at(line, "the number of placements", placements,
              !places ? 0 : placement == DIRECTCONV_PINNED ? expected : expected - 1);
    pretends = 0; /* before the starter is put back */
    directconv_stop();
}

#define PLACED(cores, threads, placement, expected, ...) \
    check_placement(__LINE__, cores, threads, placement, expected, (const unsigned[]){__VA_ARGS__})
#define NOT_PLACED(cores, threads, expected) \
    check_placement(__LINE__, cores, threads, DIRECTCONV_ANYWHERE, expected, NULL)

static void fastest_cores(void) {
    static const char *const capacities[] = {"250\n", "250\n", "250\n", "250\n",
                                             "871\n", "871\n", "871\n", "1024\n"};
    /* Nothing is known: all of them. */
    NOT_PLACED(0xff, 0, 8);
    NOT_PLACED(0x24, 0, 2);
    NOT_PLACED(0xff, 3, 3);
    PLACED(0x2c, 3, DIRECTCONV_PINNED, 3, 0x08, 0x20, 0x04);

    /* 4 x 871 is more than 1 x 1024, and than 8 x 250. */
    for (int i = 0; i < 8; i++) describe(i, "cpu_capacity", capacities[i]);
    PLACED(0xff, 0, DIRECTCONV_ANYWHERE, 4, 0xf0, 0xf0, 0xf0);
    PLACED(0xff, 2, DIRECTCONV_ANYWHERE, 2, 0x90);
    NOT_PLACED(0xff, 8, 8);
    PLACED(0xff, 3, DIRECTCONV_ANYWHERE, 3, 0xb0, 0xb0);
    PLACED(0xff, 0, DIRECTCONV_PINNED, 4, 0x10, 0x20, 0x40, 0x80);
    NOT_PLACED(0x0f, 0, 4);
    NOT_PLACED(0x01, 0, 1);
    /* One core of 871, and of 250 as many as are worth more, which is three. */
    PLACED(0x13, 0, DIRECTCONV_ANYWHERE, 1);
    NOT_PLACED(0x1f, 0, 5);

    /* Capacity counts before frequency; without it, frequency. Twice as many that are half as fast
     * are not worth it. */
    for (int i = 0; i < 4; i++)
        describe(i, "cpufreq/cpuinfo_max_freq", i < 2 ? "1000000\n" : "2000000\n");
    NOT_PLACED(0x0f, 0, 4);
    for (int i = 0; i < 4; i++) describe(i, "cpu_capacity", i % 2 ? "" : "unknown\n");
    PLACED(0x0f, 0, DIRECTCONV_ANYWHERE, 2, 0x0c);
    PLACED(0x0f, 3, DIRECTCONV_PINNED, 3, 0x08, 0x01, 0x04);

    /* A core's second thread does not count, unless it is the only one. */
    for (int i = 8; i < 14; i++) describe(i, "topology/thread_siblings_list", i % 2 ? "" : "99\n");
    for (int i = 8; i < 14; i++) {
        char pair[20];
        snprintf(pair, sizeof pair, i < 12 ? "%d-%d\n" : "%d,%d\n", i / 2 * 2, i / 2 * 2 + 1);
        describe(i, "topology/thread_siblings_list", pair);
    }
    NOT_PLACED(0x3f00, 0, 3);
    NOT_PLACED(0x3a00, 0, 3);
    NOT_PLACED(0x3f00, 6, 6);
    PLACED(0x3f00, 4, DIRECTCONV_PINNED, 4, 0x0400, 0x1000, 0x0200, 0x0100);
    PLACED(0x2a00, 0, DIRECTCONV_PINNED, 3, 0x0800, 0x2000, 0x0200);
}

static void threads_cannot_be_placed(void) {
    pretend(0x7);
    REFUSED(directconv_start(4, DIRECTCONV_PINNED), DIRECTCONV_BAD_ARGUMENT,
            "cannot pin 4 threads to cores of their own: this process may use 3");
    placements = -1;
    REFUSED(directconv_start(3, DIRECTCONV_PINNED), DIRECTCONV_SYSTEM_ERROR,
            "cannot start or place threads: got 2 of 3 (Invalid argument)");
    EXPECT(ALIVE, 0);
    EXPECT(directconv_threads(), 1);
    pretends = 0;
}

/* Cores that a thread may use. */
static cpu_set_t own_cores(void) {
    cpu_set_t cores;
    EXPECT(sched_getaffinity(0, sizeof cores, &cores), 0);
    return cores;
}

static void expect_cores_at(int line, cpu_set_t expected) {
    cpu_set_t found = own_cores();
    if (!CPU_EQUAL(&found, &expected))
        fail_at(line, "the thread may use %d cores, or others, expected %d", CPU_COUNT(&found),
                CPU_COUNT(&expected));
}

static void pinned_threads(void) {
    cpu_set_t before = own_cores(), pinned;
    int most = CPU_COUNT(&before) < 4 ? CPU_COUNT(&before) : 4;
    for (int threads = 1; threads <= most; threads++) {
        ACCEPTED(directconv_start(threads, DIRECTCONV_PINNED));
        pinned = own_cores();
        EXPECT(CPU_COUNT(&pinned), 1);
        LOOP_IS_RIGHT(threads);
        /* Also if it is a pool of one. */
        char expected[100];
        snprintf(expected, sizeof expected,
                 "cannot start 1 threads: there is a pool of %d; stop it before", threads);
        REFUSED(directconv_start(1, DIRECTCONV_PINNED), DIRECTCONV_BAD_ARGUMENT, expected);
        /* A child is not the pool's, so it is not where the pool put its parent. */
        pid_t child = fork();
        if (!child) {
            alarm(HANGS);
            int again = CHILDREN_START ? threads : 1;
            expect_cores_at(__LINE__, before);
            ACCEPTED(directconv_start(again, DIRECTCONV_PINNED));
            LOOP_IS_RIGHT(again);
            directconv_stop();
            expect_cores_at(__LINE__, before);
            _exit(0);
        }
        EXPECT(wait_for(child), 0);
        directconv_stop();
        expect_cores_at(__LINE__, before);
    }
}

static void *start_pinned(void *data) {
    ACCEPTED(directconv_start(1, DIRECTCONV_PINNED));
    return data;
}

/* So large a stack is given back when the thread ends, and with it what the C library knows of it. */
static void the_starter_ends(void) {
    cpu_set_t before = own_cores();
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 128 << 20);
    EXPECT(pthread_create(&thread, &attributes, start_pinned, NULL), 0);
    pthread_join(thread, NULL);
    pthread_attr_destroy(&attributes);
    directconv_stop();
    expect_cores_at(__LINE__, before);
}

/* ---- Loops in a pool ---- */

static void loops_in_a_row(void) {
    for (int threads = 1; threads <= MOST; threads++) {
        ACCEPTED(directconv_start(threads, DIRECTCONV_ANYWHERE));
        for (int i = 0; i < LOOPS; i++) LOOP_IS_RIGHT(threads);
        directconv_stop();
    }
}

/* Pauses, and tasks, about as long as threads wait before they sleep. */
static void loops_with_sleep(void) {
    uint32_t seed = 1;
    for (int threads = 2; threads <= MOST; threads += 3) {
        ACCEPTED(directconv_start(threads, DIRECTCONV_ANYWHERE));
        for (int i = 0; i < 100; i++) {
            seed = seed * 1664525 + 1013904223;
            usleep(seed / 65536 % 500);
            check_loop(__LINE__, threads, i % 2 ? 500 : 0, seed);
        }
        usleep(20000); /* now all of them sleep */
        LOOP_IS_RIGHT(threads);
        usleep(20000);
        directconv_stop();
    }
}

static int nested(int task, ParallelEnv *env, void *data) {
    Count inner = {{0}, {0}, {0}};
    EXPECT(launch(count, &inner), 0);
    EXPECT(check_counts(__LINE__, &inner), 1);
    NETWORK_IS_RIGHT(task);
    return count(task, env, data);
}

static void loops_in_loops(void) {
    ACCEPTED(directconv_start(4, DIRECTCONV_ANYWHERE));
    for (int i = 0; i < 100; i++) {
        Count counts = {{0}, {0}, {0}};
        EXPECT(launch(nested, &counts), 0);
        EXPECT(check_counts(__LINE__, &counts), 4);
    }
    directconv_stop();
}

static int all_fail(int task, ParallelEnv *env, void *data) {
    (void)env, (void)data;
    return fails(task, env, &task);
}

static void a_task_fails(void) {
    ACCEPTED(directconv_start(4, DIRECTCONV_ANYWHERE));
    for (int task = 0; task < 100; task++) {
        int failing = task % 4;
        char expected[40];
        snprintf(expected, sizeof expected, "ValueError: task %d fails", failing);
        EXPECT(launch(fails, &failing), -1);
        EXPECT_TEXT(directconv_error(), expected);
        LOOP_IS_RIGHT(4);
        EXPECT_TEXT(directconv_error(), expected);
    }
    EXPECT(launch(all_fail, NULL), -1);
    EXPECT(strncmp(directconv_error(), "ValueError: task ", 17), 0);
    LOOP_IS_RIGHT(4);
    directconv_stop();
}

/* ---- Threads of the application ---- */

static int ending;         /* set when they are to end */
static int loops_together; /* loops that the pool's threads took part in */

#define ENDING __atomic_load_n(&ending, __ATOMIC_SEQ_CST)
#define TOGETHER __atomic_load_n(&loops_together, __ATOMIC_SEQ_CST)

static void start_threads(pthread_t *threads, int count, void *(*body)(void *)) {
    ending = 0;
    for (int i = 0; i < count; i++)
        EXPECT(pthread_create(&threads[i], NULL, body, (void *)(intptr_t)i), 0);
}

static void end_threads(const pthread_t *threads, int count) {
    __atomic_store_n(&ending, 1, __ATOMIC_SEQ_CST);
    for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
}

static void *run_loops(void *number) {
    while (!ENDING) {
        Count counts = {{0}, {0}, {0}};
        EXPECT(launch(count, &counts), 0);
        if (check_counts(__LINE__, &counts) > 1)
            __atomic_add_fetch(&loops_together, 1, __ATOMIC_SEQ_CST);
    }
    return number;
}

/* Waits until some loop has been one of the pool's. */
static void wait_for_a_loop(void) {
    for (int before = TOGETHER; TOGETHER == before;) usleep(10);
}

static void stop_while_loops_run(void) {
    pthread_t threads[4];
    start_threads(threads, 4, run_loops);
    for (int i = 0; i < 100; i++) {
        ACCEPTED(directconv_start(2 + i % 3, DIRECTCONV_ANYWHERE));
        if (i % 2) wait_for_a_loop();
        directconv_stop();
        EXPECT(ALIVE, 0);
    }
    end_threads(threads, 4);
}

static void *run_networks(void *number) {
    int thread = (int)(intptr_t)number;
    Memory *memory;
    char expected[40];
    EXPECT(posix_memalign((void **)&memory, 64, sizeof *memory), 0);
    EXPECT_TEXT(directconv_error(), "");
    snprintf(expected, sizeof expected, "ValueError: row %d is negative", thread);
    for (int i = 0; i < 20 || !ENDING; i++) {
        fill(memory, 1000 * thread + i);
        ACCEPTED(run(memory));
        check_outputs(__LINE__, memory);
        memory->x.at[thread][1] = -1;
        if (i % 3 == 0) REFUSED(run(memory), DIRECTCONV_KERNEL_ERROR, expected);
        EXPECT_TEXT(directconv_error(), expected);
    }
    free(memory);
    return number;
}

static void networks_at_once(void) {
    pthread_t threads[MOST];
    start_threads(threads, MOST, run_networks);
    for (int i = 0; i < 50; i++) {
        ACCEPTED(directconv_start(1 + i % 4, DIRECTCONV_ANYWHERE));
        usleep(500);
        directconv_stop();
    }
    end_threads(threads, MOST);
}

/* ---- Children ---- */

static void child_computes(void) {
    alarm(HANGS);
    EXPECT(directconv_threads(), 1);
    LOOP_IS_RIGHT(1);
    NETWORK_IS_RIGHT(11);
    alive = 0;
    int threads = CHILDREN_START ? 3 : 1;
    ACCEPTED(directconv_start(threads, DIRECTCONV_ANYWHERE));
    usleep(1000);
    LOOP_IS_RIGHT(threads);
    NETWORK_IS_RIGHT(12);
    directconv_stop();
    EXPECT(ALIVE, 0);
    directconv_stop();
    _exit(0);
}

static void children(void) {
    pid_t child;
    ACCEPTED(directconv_start(3, DIRECTCONV_ANYWHERE));
    for (int i = 0; i < 6; i++) {
        if (i % 2) usleep(5000); /* workers sleep, or do not yet */
        LOOP_IS_RIGHT(3);
        if (i % 3) usleep(5000);
        child = fork();
        if (!child) child_computes();
        LOOP_IS_RIGHT(3);
        EXPECT(wait_for(child), 0);
        LOOP_IS_RIGHT(3);
        NETWORK_IS_RIGHT(13);
    }
    directconv_stop();
    child = fork();
    if (!child) child_computes();
    EXPECT(wait_for(child), 0);
}

/* The pool is in use by other threads, which the children do not have. */
static void children_while_loops_run(void) {
    pthread_t threads[2];
    ACCEPTED(directconv_start(3, DIRECTCONV_ANYWHERE));
    start_threads(threads, 2, run_loops);
    for (int i = 0; i < 20; i++) {
        pid_t child = fork();
        if (!child) child_computes();
        EXPECT(wait_for(child), 0);
        wait_for_a_loop();
    }
    end_threads(threads, 2);
    directconv_stop();
}

#endif

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(void);
    } cases[] = {
#define CASE(name) {#name, name}
#ifndef DIRECTCONV_NO_THREADS
        CASE(fork_while_starting),
#endif
        CASE(no_error_at_first),
        CASE(messages_are_cut),
        CASE(networks_compute),
        CASE(wrong_arguments),
        CASE(overlapping_arguments),
        CASE(wrong_arenas),
        CASE(wrong_weights),
        CASE(kernels_fail),
        CASE(packed_calls),
        CASE(weights_are_mapped),
        CASE(weights_are_refused),
        CASE(without_a_pool),
        CASE(a_task_fails),
#ifdef DIRECTCONV_NO_THREADS
        CASE(start_without_threads),
#else
        CASE(wrong_starts),
        CASE(the_most_threads),
        CASE(threads_cannot_be_started),
        CASE(many_pools),
        CASE(fastest_cores),
        CASE(threads_cannot_be_placed),
        CASE(pinned_threads),
        CASE(the_starter_ends),
        CASE(loops_in_a_row),
        CASE(loops_with_sleep),
        CASE(loops_in_loops),
        CASE(stop_while_loops_run),
        CASE(networks_at_once),
        CASE(children),
        CASE(children_while_loops_run),
#endif
    };
    signal(SIGALRM, hangs);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        now = cases[i].name;
        if (argc > 1 && strcmp(argv[1], now) != 0) continue;
        alarm(HANGS);
        cases[i].run();
    }
    return 0;
}
