/* A compiled network: runs its kernels in order, each on its places in memory.
 *
 * Compiled together with tables that are generated for one network (DIRECTCONV_TABLES names their
 * file) and linked with its kernels. What comes out has two functions in the calling convention of
 * TVM's packed functions:
 *
 *   __tvm_ffi_main     inputs, outputs, arena: computes the outputs
 *   __tvm_ffi_profile  the same and then a float64 tensor: the seconds of each step as well
 *
 * All arguments are DLPack tensors in the caller's memory, contiguous and aligned to 64 bytes. The
 * arena is a float32 tensor that holds intermediates; its contents mean nothing before and after a
 * run. Weights are in the library. Nothing is allocated, and nothing but the arena is written to:
 * threads may run the same network at the same time, on arenas of their own.
 */
#define _POSIX_C_SOURCE 199309L
#include <string.h>
#include <time.h>

#include "packed.h"

enum { ALIGNMENT = 64 };

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t n);

typedef struct {
    uint8_t type_code, type_bits, ndim;
    uint32_t dims; /* where its extents are in the table of them */
} Type;

/* Where an operand is: in the arena, among the weights, or in an argument (ARGUMENT + its number).
 * A stride that is not 0 is that of rows, for copies. */
enum { ARENA, WEIGHTS, ARGUMENT };

typedef struct {
    Type type;
    uint32_t memory;
    uint64_t offset, stride;
} Operand;

typedef struct {
    Kernel *kernel;
    uint32_t first, count;
} Step;

typedef struct {
    Type type;
    const char *expected;
} Parameter;

static int copy_rows(void *self, const Any *args, int32_t num_args, Any *result);

extern const unsigned char directconv_weights[] __attribute__((visibility("hidden")));

#include DIRECTCONV_TABLES

static int copy_rows(void *self, const Any *args, int32_t num_args, Any *result) {
    const DLTensor *from = args[0].value.pointer, *to = args[1].value.pointer;
    size_t bytes = (size_t)from->shape[1] * from->type_bits / 8;
    size_t stride = to->strides ? (size_t)to->strides[0] * to->type_bits / 8 : bytes;
    (void)self, (void)num_args, (void)result;
    for (int64_t row = 0; row < from->shape[0]; row++)
        memcpy((char *)to->data + (size_t)row * stride, (const char *)from->data + (size_t)row * bytes,
               bytes);
    return 0;
}

static int refuse(const char *what, const char *expected) {
    const char *parts[] = {what, ": expected ", expected};
    TVMFFIErrorSetRaisedFromCStrParts("ValueError", parts, 3);
    return -1;
}

static DLTensor *tensor_of(const Any *arg) {
    if (arg->type_index == INDEX_DLTENSOR) return arg->value.pointer;
    if (arg->type_index != INDEX_TENSOR) return NULL;
    return (DLTensor *)((char *)arg->value.pointer + OBJECT_HEADER);
}

static char *data_of(const DLTensor *tensor) {
    return (char *)tensor->data + tensor->byte_offset;
}

/* Whether a tensor in the caller's memory can be used as it is. */
static int is_usable(const DLTensor *tensor, const Type *type) {
    int64_t stride = 1;
    if (!tensor || tensor->device_type != DEVICE_CPU || tensor->type_code != type->type_code ||
        tensor->type_bits != type->type_bits || tensor->type_lanes != 1 ||
        tensor->ndim != type->ndim || (uintptr_t)data_of(tensor) % ALIGNMENT)
        return 0;
    for (int i = type->ndim - 1; i >= 0; i--) {
        if (tensor->shape[i] != dims[type->dims + (uint32_t)i]) return 0;
        if (tensor->strides && tensor->shape[i] != 1 && tensor->strides[i] != stride) return 0;
        stride *= tensor->shape[i];
    }
    return 1;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int run(const Any *args, double *seconds) {
    char *memory[ARGUMENT + PARAMETERS];
    for (int i = 0; i < PARAMETERS; i++) {
        const DLTensor *tensor = tensor_of(&args[i]);
        if (!is_usable(tensor, &parameters[i].type))
            return refuse("an argument of the network cannot be used", parameters[i].expected);
        memory[ARGUMENT + i] = data_of(tensor);
    }
    memory[ARENA] = memory[ARGUMENT + PARAMETERS - 1];
    memory[WEIGHTS] = (char *)directconv_weights;
    for (uint32_t i = 0; i < STEPS; i++) {
        DLTensor tensors[MAX_OPERANDS];
        Any operands_[MAX_OPERANDS];
        Any result = {0, 0, {0}};
        double start = seconds ? now() : 0;
        for (uint32_t k = 0; k < steps[i].count; k++) {
            const Operand *operand = &operands[steps[i].first + k];
            tensors[k] = (DLTensor){
                memory[operand->memory] + operand->offset,
                DEVICE_CPU,
                0,
                operand->type.ndim,
                operand->type.type_code,
                operand->type.type_bits,
                1,
                (int64_t *)&dims[operand->type.dims],
                operand->stride ? (int64_t *)&operand->stride : NULL,
                0,
            };
            operands_[k] = (Any){INDEX_DLTENSOR, 0, {.pointer = &tensors[k]}};
        }
        int status = steps[i].kernel(NULL, operands_, (int32_t)steps[i].count, &result);
        if (status != 0) return status;
        if (seconds) seconds[i] = now() - start;
    }
    return 0;
}

__attribute__((visibility("default"))) int __tvm_ffi_main(void *self, const Any *args,
                                                          int32_t num_args, Any *result) {
    (void)self, (void)result;
    if (num_args != PARAMETERS) return refuse("wrong number of arguments", EXPECTED_ARGUMENTS);
    return run(args, NULL);
}

__attribute__((visibility("default"))) int __tvm_ffi_profile(void *self, const Any *args,
                                                             int32_t num_args, Any *result) {
    (void)self, (void)result;
    if (num_args != PARAMETERS + 1)
        return refuse("wrong number of arguments", EXPECTED_ARGUMENTS " and seconds");
    const DLTensor *seconds = tensor_of(&args[PARAMETERS]);
    if (!seconds || seconds->type_code != TYPE_FLOAT || seconds->type_bits != 64 ||
        seconds->ndim != 1 || seconds->shape[0] != STEPS)
        return refuse("the seconds of the steps cannot be used",
                      "a float64 tensor with one element for each step");
    return run(args, (double *)data_of(seconds));
}
