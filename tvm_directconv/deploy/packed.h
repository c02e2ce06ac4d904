/* What compiled code and its callers agree on: TVM's packed functions, whose tensors are DLPack's,
 * passed as tagged 16-byte values; TVM's parallel loops; and how a file of weights begins. */
#ifndef TVM_DIRECTCONV_PACKED_H
#define TVM_DIRECTCONV_PACKED_H

#include <stdint.h>

typedef struct {
    void *data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t type_code, type_bits;
    uint16_t type_lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} DLTensor;

typedef struct {
    int32_t type_index;
    uint32_t padding;
    union {
        int64_t integer;
        void *pointer;
    } value;
} Any;

/* A tensor argument is a DLTensor, or an object with one after its header. */
enum { DEVICE_CPU = 1, TYPE_FLOAT = 2, TYPE_BFLOAT = 4, INDEX_DLTENSOR = 7, INDEX_TENSOR = 70, OBJECT_HEADER = 24 };

typedef int Kernel(void *self, const Any *args, int32_t num_args, Any *result);

typedef struct {
    void *sync_handle;
    int32_t num_task;
} ParallelEnv;

/* Computes one of env->num_task shares of a loop. */
typedef int ParallelBody(int task, ParallelEnv *env, void *data);
typedef int ParallelLaunch(ParallelBody *body, void *data, int requested);

/* Numbers are the machine's own: weights are packed for one kind of processor anyway. */
#define WEIGHTS_MAGIC "directconv\0\0\0\0\0\1"
typedef struct {
    char magic[16]; /* the last byte is the version */
    uint64_t bytes; /* of the file, this header included */
    uint8_t id[32]; /* SHA-256 of what follows the header */
    uint8_t unused[8];
} WeightsHeader;

typedef char check_tensor[sizeof(DLTensor) == (sizeof(void *) == 8 ? 48 : 40) ? 1 : -1];
typedef char check_any[sizeof(Any) == 16 ? 1 : -1];
typedef char check_header[sizeof(WeightsHeader) == 64 ? 1 : -1];

#endif
