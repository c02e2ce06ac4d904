/* Says what processor it runs on, to those who know a board by TVM's RPC only: servers load
 * libraries there, but hand out no files of /proc.
 *
 * __tvm_ffi_cpuinfo(text) fills a tensor of bytes with the beginning of /proc/cpuinfo, as far as
 * there is one; the other bytes are left as they are.
 * Build: cc -std=c99 -O2 -shared -fPIC cpuinfo.c -o cpuinfo.so
 */
#include <stdint.h>
#include <stdio.h>

/* See runner.c. */
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

int __tvm_ffi_cpuinfo(void *self, const Any *args, int32_t num_args, Any *result) {
    const DLTensor *text = args[0].value.pointer;
    FILE *file = fopen("/proc/cpuinfo", "r");
    (void)self, (void)num_args, (void)result;
    if (file) {
        size_t count = fread((char *)text->data + text->byte_offset, 1, text->shape[0], file);
        (void)count;
        fclose(file);
    }
    return 0;
}
