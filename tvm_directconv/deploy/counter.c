/* Counts the instructions that an emulated AArch64 program executes, by kind, and what caches would do
 * meanwhile: a plugin of qemu's user mode, loaded into qemu itself.
 *
 * qemu-aarch64 -plugin counter.so,counts=FILE[,library=LIBRARY][,caches=BYTES/WAYS:...] PROGRAM...
 *
 * With a library, what is executed in it counts; without, all that is executed from the program's
 * instruction "hint #100" to its "hint #101", which do nothing, each with a branch next to it: what is
 * translated together counts together. At the latter, or with a library when the program ends, FILE
 * holds one JSON object, the counts by kind:
 *
 *   fma        multiply-adds of vectors of floats, the second factor a vector or a lane of one
 *   dot        multiply-adds of whole numbers or bfloat16 that add several products to a sum
 *   multiply   all others that multiply vectors of whole numbers
 *   floating   all others that compute with vectors of floats
 *   vector     all others that compute with or move floating-point and vector registers
 *   load       into registers of any kind
 *   store
 *   prefetch
 *   integer    general-purpose registers: counters and addresses
 *   branch     and what the system is asked for
 *   other      of later extensions, as SVE
 *   loaded     transfers of up to 16 bytes that loads consist of
 *   stored
 *
 * With caches, the first level first, each of so many bytes and ways, "caches" has for each how many
 * lines of 64 bytes it did not have ("missed"), and how many went back to the next level or memory
 * ("written"). They write back, allocate lines that are written, and give up the line that was used
 * longest ago; they are empty at first, and nothing is fetched ahead.
 *
 * Counts are exact, and the same ones each time, as long as one thread computes.
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
enum { NO_REGISTERS = 0, LOADS_AND_STORES = 3 };

extern void qemu_plugin_register_vcpu_tb_trans_cb(Id, void (*translated)(Id, Block *));
extern void qemu_plugin_register_vcpu_tb_exec_inline(Block *, int operation, void *, uint64_t);
extern void qemu_plugin_register_vcpu_insn_exec_cb(
    Instruction *, void (*executed)(unsigned, void *), int registers, void *);
extern void qemu_plugin_register_vcpu_mem_cb(
    Instruction *, void (*accessed)(unsigned, uint32_t, uint64_t, void *), int registers, int which,
    void *);
extern void qemu_plugin_register_atexit_cb(Id, void (*ended)(Id, void *), void *);
extern size_t qemu_plugin_tb_n_insns(const Block *);
extern Instruction *qemu_plugin_tb_get_insn(const Block *, size_t);
extern void *qemu_plugin_insn_haddr(const Instruction *);
extern unsigned qemu_plugin_mem_size_shift(uint32_t);
extern bool qemu_plugin_mem_is_store(uint32_t);

#define EXPORTED __attribute__((visibility("default")))
EXPORTED int qemu_plugin_version = 1;

/* ---- Kinds of instructions. ---- */

enum {
    FMA, DOT, MULTIPLY, FLOATING, VECTOR, LOAD, STORE, PREFETCH, INTEGER, BRANCH, OTHER, /* kinds */
    LOADED, STORED, SUMS
};
static const char *const names[SUMS] = {
    [FMA] = "fma",           [DOT] = "dot",         [MULTIPLY] = "multiply",
    [FLOATING] = "floating", [VECTOR] = "vector",   [LOAD] = "load",
    [STORE] = "store",       [PREFETCH] = "prefetch", [INTEGER] = "integer",
    [BRANCH] = "branch",     [OTHER] = "other",     [LOADED] = "loaded",
    [STORED] = "stored",
};
enum { HINT = 0xd503201f, BEGIN = HINT | 100 << 5, END = HINT | 101 << 5 };

static bool is(uint32_t code, uint32_t mask, uint32_t value) { return (code & mask) == value; }

/* By the tables of "A64 instruction set encoding" in the ARM Architecture Reference Manual, whose
 * names of classes these are. */
static int kind_of_vectors(uint32_t code) {
    bool u = code >> 29 & 1;
    unsigned size = code >> 22 & 3;
    if (is(code, 0x9f200400, 0x0e200400)) { /* three same */
        unsigned operation = code >> 11 & 31;
        if (operation == 0x19 && (!u || !(size & 1))) return FMA; /* FMLA, FMLS, FMLAL2, FMLSL2 */
        if (operation == 0x1d && !u && !(size & 1)) return FMA;   /* FMLAL, FMLSL */
        if (operation >= 0x18) return FLOATING;
        return operation == 0x12 || operation == 0x13 || operation == 0x16 ? MULTIPLY : VECTOR;
    }
    if (is(code, 0x9f60c400, 0x0e400400)) /* three same, of halves */
        return (code >> 11 & 7) == 1 && !u ? FMA : FLOATING;
    if (is(code, 0x9f208400, 0x0e008400)) { /* three same, extra */
        unsigned operation = code >> 11 & 15;
        if (operation <= 1) return MULTIPLY;
        return operation <= 5 || operation == 13 || operation == 15 ? DOT : FLOATING;
    }
    if (is(code, 0x9f200c00, 0x0e200000)) { /* three different */
        unsigned operation = code >> 12 & 15;
        return operation >= 8 && operation <= 14 ? MULTIPLY : VECTOR;
    }
    if (is(code, 0x9f000400, 0x0f000000)) { /* by element */
        unsigned operation = code >> 12 & 15;
        bool of_floats = operation == 1 || operation == 5 || (!u && size == 2 && !(operation & 11));
        if (!u && of_floats) return FMA;
        if (u && size == 2 && (operation == 8 || operation == 12)) return FMA; /* FMLAL2, FMLSL2 */
        if (operation == 14 || (!u && operation == 15)) return DOT;
        return operation == 9 || (u && size && (operation & 9) == 1) ? FLOATING : MULTIPLY;
    }
    if (is(code, 0x9f3e0c00, 0x0e200800)) { /* two registers, miscellaneous */
        unsigned operation = code >> 12 & 31;
        return operation >= 0x16 || (size >= 2 && operation >= 12 && operation <= 15) ? FLOATING
                                                                                     : VECTOR;
    }
    return is(code, 0x9f7e0c00, 0x0e780800) ? FLOATING : VECTOR; /* two registers, of halves */
}

static int kind(uint32_t code) {
    if (is(code, 0x0e000000, 0x0e000000)) return kind_of_vectors(code);
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

/* How many transfers of up to 16 bytes a load or store is. */
static unsigned transfers(uint32_t code) {
    if (is(code, 0xbf200000, 0x0c000000)) { /* several structures: of 1 to 4 registers */
        unsigned operation = code >> 12 & 15, bytes = code >> 30 & 1 ? 16 : 8;
        unsigned registers = operation == 7 ? 1 : operation >= 8 ? 2 : operation >= 4 ? 3 : 4;
        return (registers * bytes + 15) / 16;
    }
    return is(code, 0xfe000000, 0xac000000) ? 2 : 1; /* a pair of 16 bytes each */
}

/* ---- Caches: in each set, the lines by when they were used, the latest one first. ---- */

enum { LINE = 64, LEVELS = 4 };
typedef struct {
    uint64_t *lines; /* number + 1, 0 where there is none */
    bool *changed;
    size_t sets, ways;
    uint64_t missed, written;
} Cache;

static Cache caches[LEVELS];
static int levels;

static void touch(int level, uint64_t line, bool store) {
    if (level == levels) return;
    Cache *cache = &caches[level];
    uint64_t *lines = cache->lines + line % cache->sets * cache->ways;
    bool *changed = cache->changed + line % cache->sets * cache->ways;
    size_t way = 0;
    while (way < cache->ways && lines[way] != line + 1) way++;
    if (way == cache->ways) {
        cache->missed++;
        way--;
        if (changed[way]) {
            cache->written++;
            touch(level + 1, lines[way] - 1, true);
        }
        touch(level + 1, line, false);
        changed[way] = false;
    }
    store |= changed[way];
    memmove(lines + 1, lines, way * sizeof *lines);
    memmove(changed + 1, changed, way * sizeof *changed);
    lines[0] = line + 1;
    changed[0] = store;
}

/* ---- Counting: how often each block was executed, times what is in it. ---- */

typedef struct Counted {
    struct Counted *next;
    uint64_t executed, sums[SUMS];
} Counted;

static Counted *blocks;
static const char *library, *counts;
static bool between_marks, reported;

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

static void accessed(unsigned cpu, uint32_t access, uint64_t address, void *nothing) {
    (void)cpu, (void)nothing;
    if (!library && !between_marks) return;
    bool store = qemu_plugin_mem_is_store(access);
    uint64_t last = address + (1u << qemu_plugin_mem_size_shift(access)) - 1;
    for (uint64_t line = address / LINE; line <= last / LINE; line++) touch(0, line, store);
}

static void report(void) {
    uint64_t sums[SUMS] = {0};
    for (Counted *block = blocks; block; block = block->next)
        for (int i = 0; i < SUMS; i++) sums[i] += block->executed * block->sums[i];
    FILE *f = fopen(counts, "w");
    if (!f) fail("cannot write", counts);
    for (int i = 0; i < SUMS; i++)
        fprintf(f, "%s\"%s\": %" PRIu64, i ? ", " : "{", names[i], sums[i]);
    fprintf(f, ", \"caches\": [");
    for (int i = 0; i < levels; i++)
        fprintf(f, "%s{\"missed\": %" PRIu64 ", \"written\": %" PRIu64 "}", i ? ", " : "",
                caches[i].missed, caches[i].written);
    if (fputs("]}\n", f) < 0 || fclose(f) != 0) fail("cannot write", counts);
}

static void begun(unsigned cpu, void *nothing) {
    (void)cpu, (void)nothing;
    for (Counted *block = blocks; block; block = block->next) block->executed = 0;
    between_marks = true;
}

static void finished(unsigned cpu, void *nothing) {
    (void)cpu, (void)nothing;
    if (!between_marks || reported) return;
    between_marks = false;
    reported = true;
    report();
}

static void ended(Id id, void *nothing) {
    (void)id, (void)nothing;
    if (library) report();
}

static void translated(Id id, Block *block) {
    (void)id;
    if (library && !in_library(qemu_plugin_insn_haddr(qemu_plugin_tb_get_insn(block, 0)))) return;
    Counted *counted = calloc(1, sizeof *counted);
    if (!counted) fail("no memory to count", counts);
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        Instruction *instruction = qemu_plugin_tb_get_insn(block, i);
        uint32_t code; /* little-endian, as the machines that this runs on */
        memcpy(&code, qemu_plugin_insn_haddr(instruction), sizeof code);
        int found = kind(code);
        counted->sums[found]++;
        if (found == LOAD || found == STORE) {
            counted->sums[found == LOAD ? LOADED : STORED] += transfers(code);
            if (levels)
                qemu_plugin_register_vcpu_mem_cb(instruction, accessed, NO_REGISTERS,
                                                 LOADS_AND_STORES, NULL);
        }
        if (!library && (code == (uint32_t)BEGIN || code == (uint32_t)END))
            qemu_plugin_register_vcpu_insn_exec_cb(
                instruction, code == (uint32_t)BEGIN ? begun : finished, NO_REGISTERS, NULL);
    }
    counted->next = blocks;
    blocks = counted;
    qemu_plugin_register_vcpu_tb_exec_inline(block, ADD, &counted->executed, 1);
}

static void add_caches(const char *text) {
    for (const char *next = text; *next; levels++) {
        size_t bytes, ways;
        int read = 0;
        sscanf(next, "%zu/%zu%n", &bytes, &ways, &read);
        if (!read || levels == LEVELS || !ways || bytes < ways * LINE || bytes % (ways * LINE))
            fail("expected up to four times BYTES/WAYS, with : between them, got", text);
        next += read;
        next += *next == ':';
        Cache *cache = &caches[levels];
        cache->ways = ways;
        cache->sets = bytes / LINE / ways;
        cache->lines = calloc(bytes / LINE, sizeof *cache->lines);
        cache->changed = calloc(bytes / LINE, sizeof *cache->changed);
        if (!cache->lines || !cache->changed) fail("no memory for caches of", text);
    }
}

EXPORTED int qemu_plugin_install(Id id, const void *info, int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "library=", 8) == 0) library = argv[i] + 8;
        if (strncmp(argv[i], "counts=", 7) == 0) counts = argv[i] + 7;
        if (strncmp(argv[i], "caches=", 7) == 0) add_caches(argv[i] + 7);
    }
    if (!counts) fail("expected", "counts=FILE");
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
