/* Counts the instructions that an emulated AArch64 program executes in one library, by kind: a plugin
 * of qemu's user mode, loaded into qemu itself.
 *
 * qemu-aarch64 -plugin counter.so,library=LIBRARY,counts=FILE PROGRAM...
 *
 * When the program ends, FILE holds one JSON object, the counts by kind:
 *
 *   fma        multiply-adds of vectors, FMLA and FMLS, the second factor a vector or a lane of one
 *   vector     all others that compute with or move floating-point and vector registers
 *   load       into registers of any kind
 *   store
 *   prefetch
 *   integer    general-purpose registers: counters and addresses
 *   branch     and what the system is asked for
 *   other      of later extensions, as SVE
 *
 * Counts are exact, and the same ones each time, as long as one thread runs the library.
 *
 * Build, for the machine that qemu runs on: cc -std=c99 -O2 -fPIC -shared counter.c -o counter.so
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- What is used of qemu's interface for plugins, version 1, as its documentation has it. ---- */

typedef uint64_t Id;
typedef struct qemu_plugin_tb Block; /* instructions that are translated together */
typedef struct qemu_plugin_insn Instruction;
enum { ADD = 0 };

extern void qemu_plugin_register_vcpu_tb_trans_cb(Id, void (*translated)(Id, Block *));
extern void qemu_plugin_register_vcpu_tb_exec_inline(Block *, int operation, void *, uint64_t);
extern void qemu_plugin_register_atexit_cb(Id, void (*ended)(Id, void *), void *);
extern size_t qemu_plugin_tb_n_insns(const Block *);
extern Instruction *qemu_plugin_tb_get_insn(const Block *, size_t);
extern void *qemu_plugin_insn_haddr(const Instruction *);

#define EXPORTED __attribute__((visibility("default")))
EXPORTED int qemu_plugin_version = 1;

/* ---- Kinds of instructions. ---- */

enum { FMA, VECTOR, LOAD, STORE, PREFETCH, INTEGER, BRANCH, OTHER, KINDS };
static const char *const names[KINDS] = {
    [FMA] = "fma",           [VECTOR] = "vector",   [LOAD] = "load",     [STORE] = "store",
    [PREFETCH] = "prefetch", [INTEGER] = "integer", [BRANCH] = "branch", [OTHER] = "other",
};

static bool is(uint32_t code, uint32_t mask, uint32_t value) { return (code & mask) == value; }

/* By the tables of "A64 instruction set encoding" in the ARM Architecture Reference Manual. */
static int kind(uint32_t code) {
    if (is(code, 0x0e000000, 0x0e000000)) { /* floating point and vectors */
        bool by_vector = is(code, 0xbf20fc00, 0x0e20cc00);
        bool by_lane = is(code, 0xbf80b400, 0x0f801000);
        bool of_halves = is(code, 0xbf60fc00, 0x0e400c00) || is(code, 0xbfc0b400, 0x0f001000);
        return by_vector || by_lane || of_halves ? FMA : VECTOR;
    }
    if (is(code, 0x0a000000, 0x08000000)) { /* memory */
        bool literal = is(code, 0x3b000000, 0x18000000);
        bool single = is(code, 0x3a000000, 0x38000000); /* and not a pair, nor several */
        if (is(code, 0xff000000, 0xd8000000) || (single && is(code, 0xc4c00000, 0xc0800000)))
            return PREFETCH;
        /* Bit 22 is set in loads, and among single registers clear in some that extend the sign. */
        bool extended = single && is(code, 0x04800000, 0x00800000);
        return literal || extended || (code & 0x00400000) ? LOAD : STORE;
    }
    if (is(code, 0x1c000000, 0x14000000)) return BRANCH;
    if (is(code, 0x1c000000, 0x10000000) || is(code, 0x0e000000, 0x0a000000)) return INTEGER;
    return OTHER;
}

/* ---- Counting: how often each block was executed, times what is in it. ---- */

typedef struct Counted {
    struct Counted *next;
    uint64_t executed, instructions[KINDS];
} Counted;

static Counted *blocks;
static const char *library, *counts;

static void fail(const char *what, const char *name) {
    fprintf(stderr, "counter: %s %s\n", what, name);
    exit(2);
}

/* In user mode the program's memory is memory of qemu, whose map says what file it comes from. */
static bool in_library(const void *address) {
    static uintptr_t begin, end; /* it stays where it is */
    if (!end) {
        char line[8192];
        FILE *map = fopen("/proc/self/maps", "r");
        if (!map) fail("cannot read", "/proc/self/maps");
        while (fgets(line, sizeof line, map)) {
            uintptr_t first, last;
            int path = 0;
            line[strcspn(line, "\n")] = '\0';
            sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %*s %*s %*s %*s %n", &first, &last, &path);
            if (!path || strcmp(line + path, library) != 0) continue;
            if (!end) begin = first;
            end = last;
        }
        fclose(map);
    }
    return (uintptr_t)address >= begin && (uintptr_t)address < end;
}

static void translated(Id id, Block *block) {
    (void)id;
    if (!in_library(qemu_plugin_insn_haddr(qemu_plugin_tb_get_insn(block, 0)))) return;
    Counted *counted = calloc(1, sizeof *counted);
    if (!counted) fail("no memory to count", library);
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        uint32_t code; /* little-endian, as the machines that this runs on */
        memcpy(&code, qemu_plugin_insn_haddr(qemu_plugin_tb_get_insn(block, i)), sizeof code);
        counted->instructions[kind(code)]++;
    }
    counted->next = blocks;
    blocks = counted;
    qemu_plugin_register_vcpu_tb_exec_inline(block, ADD, &counted->executed, 1);
}

static void ended(Id id, void *nothing) {
    uint64_t sums[KINDS] = {0};
    (void)id, (void)nothing;
    for (Counted *block = blocks; block; block = block->next)
        for (int i = 0; i < KINDS; i++) sums[i] += block->executed * block->instructions[i];
    FILE *f = fopen(counts, "w");
    if (!f) fail("cannot write", counts);
    for (int i = 0; i < KINDS; i++)
        fprintf(f, "%s\"%s\": %" PRIu64, i ? ", " : "{", names[i], sums[i]);
    if (fputs("}\n", f) < 0 || fclose(f) != 0) fail("cannot write", counts);
}

EXPORTED int qemu_plugin_install(Id id, const void *info, int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "library=", 8) == 0) library = argv[i] + 8;
        if (strncmp(argv[i], "counts=", 7) == 0) counts = argv[i] + 7;
    }
    if (!library || !counts) fail("expected", "library=LIBRARY,counts=FILE");
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
