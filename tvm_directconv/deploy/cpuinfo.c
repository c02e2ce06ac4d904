/* Says what processor it runs on, to those who know a board by TVM's RPC only: servers load
 * libraries there, but hand out no files of /proc.
 *
 * __tvm_ffi_cpuinfo(text) fills a tensor of bytes with the beginning of /proc/cpuinfo, as far as
 * there is one; the other bytes are left as they are.
 * Build: cc -std=c99 -O2 -shared -fPIC cpuinfo.c -o cpuinfo.so
 */
#include <stdio.h>

#include "packed.h"

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
