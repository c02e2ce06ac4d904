/* How a compiled network is written down, for its generated source: kernels in order, each with its
 * operands' places in memory. */
#ifndef TVM_DIRECTCONV_NETWORK_H
#define TVM_DIRECTCONV_NETWORK_H

#include <stddef.h>

#include "packed.h"

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
    uint64_t bytes;
    const char *expected; /* what it has to be, for messages */
} Parameter;

typedef struct {
    const char *name;
    const char *arguments; /* their names, for messages */
    const int64_t *dims;
    const Operand *operands;
    const Step *steps;
    const Parameter *parameters; /* inputs, outputs, and the arena */
    uint32_t step_count, inputs, outputs, most_operands, has_weights;
    uint64_t arena_bytes, weights_bytes; /* of weights with the header before them */
    uint8_t weights_id[32];
} Network;

/* A step that copies rows of its first operand into its second one. */
Kernel directconv_copy_rows;

/* Computes outputs, as a C function: DIRECTCONV_OK or one of the numbers in directconv.h. Arguments
 * are the inputs and outputs. */
int directconv_run(const Network *network, void *const *arguments, const void *weights,
                   void *arena, size_t arena_bytes);

/* Computes outputs, as a packed function of TVM's: inputs, outputs, arena, and, if `profile`, a
 * float64 tensor for the seconds of each step. */
int directconv_run_packed(const Network *network, const void *weights, const Any *args,
                          int32_t num_args, int profile);

#endif
