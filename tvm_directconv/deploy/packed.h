/* TVM's packed functions, as generated code has and calls them, for C programs without TVM: tensors
 * are DLPack's, passed as tagged 16-byte values. */
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
enum { DEVICE_CPU = 1, TYPE_FLOAT = 2, INDEX_DLTENSOR = 7, INDEX_TENSOR = 70, OBJECT_HEADER = 24 };

typedef int Kernel(void *self, const Any *args, int32_t num_args, Any *result);

typedef char check_tensor[sizeof(DLTensor) == (sizeof(void *) == 8 ? 48 : 40) ? 1 : -1];
typedef char check_any[sizeof(Any) == 16 ? 1 : -1];

#endif
