/* Runs a compiled network: its kernels in order, each on its places in memory.
 *
 * All arguments are in the caller's memory, contiguous and aligned. The arena holds intermediates;
 * its contents mean nothing before and after a run. Nothing is allocated, and nothing but outputs
 * and arena is written to: threads may run the same network at the same time, on arenas of their
 * own.
 */
#define _POSIX_C_SOURCE 199309L
#include "network.h"

#include <string.h>
#include <time.h>

#include "directconv.h"

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t n);

int directconv_copy_rows(void *self, const Any *args, int32_t num_args, Any *result) {
    const DLTensor *from = args[0].value.pointer, *to = args[1].value.pointer;
    size_t bytes = (size_t)from->shape[1] * from->type_bits / 8;
    size_t stride = to->strides ? (size_t)to->strides[0] * to->type_bits / 8 : bytes;
    (void)self, (void)num_args, (void)result;
    for (int64_t row = 0; row < from->shape[0]; row++)
        memcpy((char *)to->data + (size_t)row * stride, (const char *)from->data + (size_t)row * bytes,
               bytes);
    return 0;
}

/* Python turns messages of this kind into its exception of this name. */
static int refuse_packed(const char *what, const char *expected, const char *more) {
    const char *parts[] = {what, ": expected ", expected, more};
    TVMFFIErrorSetRaisedFromCStrParts("ValueError", parts, 4);
    return -1;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Memory is the arena, the weights, and then the arguments. */
static int run(const Network *network, char *const *memory, double *seconds) {
    for (uint32_t i = 0; i < network->step_count; i++) {
        const Step *step = &network->steps[i];
        DLTensor tensors[network->most_operands];
        Any args[network->most_operands];
        Any result = {0, 0, {0}};
        double start = seconds ? now() : 0;
        for (uint32_t k = 0; k < step->count; k++) {
            const Operand *operand = &network->operands[step->first + k];
            tensors[k] = (DLTensor){
                memory[operand->memory] + operand->offset,
                DEVICE_CPU,
                0,
                operand->type.ndim,
                operand->type.type_code,
                operand->type.type_bits,
                1,
                (int64_t *)&network->dims[operand->type.dims],
                operand->stride ? (int64_t *)&operand->stride : NULL,
                0,
            };
            args[k] = (Any){INDEX_DLTENSOR, 0, {.pointer = &tensors[k]}};
        }
        if (step->kernel(NULL, args, (int32_t)step->count, &result) != 0)
            return DIRECTCONV_KERNEL_ERROR;
        if (seconds) seconds[i] = now() - start;
    }
    return DIRECTCONV_OK;
}

/* ---- As a C function ---- */

/* Why memory cannot be used, NULL if it can be. */
static const char *unusable(const void *pointer) {
    if (!pointer) return " is NULL";
    return (uintptr_t)pointer % DIRECTCONV_ALIGNMENT ? " is not aligned" : NULL;
}

static int refuse(const Network *network, int code, const char *what, const char *why,
                  const char *expected) {
    const char *parts[] = {what, why, ": expected ", expected};
    TVMFFIErrorSetRaisedFromCStrParts(network->name, parts, 4);
    return code;
}

static int overlap(const char *a, uint64_t a_bytes, const char *b, uint64_t b_bytes) {
    return a < b + b_bytes && b < a + a_bytes;
}

/* Whether what is written to lies in other arguments as well. */
static int overlap_any(const Network *network, const char *written, uint64_t bytes, uint32_t self,
                       void *const *arguments) {
    for (uint32_t i = 0; i < network->inputs + network->outputs; i++)
        if (i != self && overlap(written, bytes, arguments[i], network->parameters[i].bytes))
            return 1;
    return 0;
}

int directconv_run(const Network *network, void *const *arguments, const void *weights,
                   void *arena, size_t arena_bytes) {
    uint32_t count = network->inputs + network->outputs;
    const Parameter *parameters = network->parameters;
    const WeightsHeader *header = weights;
    char *memory[ARGUMENT + count];
    const char *why;
    for (uint32_t i = 0; i < count; i++) {
        memory[ARGUMENT + i] = arguments[i];
        why = unusable(arguments[i]);
        if (why)
            return refuse(network, DIRECTCONV_BAD_ARGUMENT, "an argument", why,
                          parameters[i].expected);
    }
    for (uint32_t i = network->inputs; i < count; i++)
        if (overlap_any(network, arguments[i], parameters[i].bytes, i, arguments))
            return refuse(network, DIRECTCONV_BAD_ARGUMENT, "an output", " overlaps another argument",
                          parameters[i].expected);
    if (network->arena_bytes) {
        why = unusable(arena);
        if (!why && arena_bytes < network->arena_bytes) why = " is too small";
        if (!why && overlap_any(network, arena, network->arena_bytes, count, arguments))
            why = " overlaps an argument";
        if (why)
            return refuse(network, DIRECTCONV_BAD_ARENA, "the arena", why,
                          parameters[count].expected);
    }
    if (network->has_weights) {
        why = unusable(weights);
        if (why)
            return refuse(network, DIRECTCONV_BAD_WEIGHTS, "the pointer to the weights", why,
                          "weights aligned to 64 bytes");
        if (memcmp(header->magic, WEIGHTS_MAGIC, sizeof header->magic) != 0 ||
            header->bytes < network->weights_bytes ||
            memcmp(header->id, network->weights_id, sizeof header->id) != 0)
            return refuse(network, DIRECTCONV_BAD_WEIGHTS, "the weights",
                          " are not those of this network", "those that it was compiled with");
    }
    memory[ARENA] = arena;
    memory[WEIGHTS] = (char *)weights;
    return run(network, memory, NULL);
}

/* ---- As a packed function ---- */

static DLTensor *tensor_of(const Any *arg) {
    if (arg->type_index == INDEX_DLTENSOR) return arg->value.pointer;
    if (arg->type_index != INDEX_TENSOR) return NULL;
    return (DLTensor *)((char *)arg->value.pointer + OBJECT_HEADER);
}

static char *data_of(const DLTensor *tensor) {
    return (char *)tensor->data + tensor->byte_offset;
}

/* Whether a tensor in the caller's memory can be used as it is. */
static int is_usable(const DLTensor *tensor, const Type *type, const int64_t *dims) {
    int64_t stride = 1;
    if (!tensor || !tensor->data || tensor->device_type != DEVICE_CPU ||
        tensor->type_code != type->type_code || tensor->type_bits != type->type_bits ||
        tensor->type_lanes != 1 || tensor->ndim != type->ndim ||
        (uintptr_t)data_of(tensor) % DIRECTCONV_ALIGNMENT)
        return 0;
    for (int i = type->ndim - 1; i >= 0; i--) {
        if (tensor->shape[i] != dims[type->dims + (uint32_t)i]) return 0;
        if (tensor->strides && tensor->shape[i] != 1 && tensor->strides[i] != stride) return 0;
        stride *= tensor->shape[i];
    }
    return 1;
}

int directconv_run_packed(const Network *network, const void *weights, const Any *args,
                          int32_t num_args, int profile) {
    uint32_t count = network->inputs + network->outputs;
    char *memory[ARGUMENT + count + 1]; /* the last one is the arena as an argument */
    const DLTensor *seconds = NULL;
    if (num_args != (int32_t)count + 1 + profile)
        return refuse_packed("wrong number of arguments", network->arguments,
                             profile ? " and seconds" : "");
    for (uint32_t i = 0; i <= count; i++) {
        const DLTensor *tensor = tensor_of(&args[i]);
        if (!is_usable(tensor, &network->parameters[i].type, network->dims))
            return refuse_packed("an argument of the network cannot be used",
                                 network->parameters[i].expected, "");
        memory[ARGUMENT + i] = data_of(tensor);
    }
    memory[ARENA] = memory[ARGUMENT + count];
    memory[WEIGHTS] = (char *)weights;
    if (profile) {
        seconds = tensor_of(&args[count + 1]);
        if (!seconds || seconds->type_code != TYPE_FLOAT || seconds->type_bits != 64 ||
            seconds->ndim != 1 || seconds->shape[0] != (int64_t)network->step_count)
            return refuse_packed("the seconds of the steps cannot be used",
                                 "a float64 tensor with one element for each step", "");
    }
    return run(network, memory, seconds ? (double *)data_of(seconds) : NULL) ? -1 : 0;
}
