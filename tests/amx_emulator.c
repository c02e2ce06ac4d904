/* Executes the instructions of AMX on processors that do not have them, for tests.
 *
 * Loaded before a program (LD_PRELOAD), it catches the signal of unknown instructions, does what
 * Intel's manual says of those of AMX, and goes on behind them. It answers the request for
 * permission as well: with AMX_EMULATOR_REFUSES in the environment, as a kernel that has none.
 *
 * As on processors, nothing may be done with tiles before the permission is asked for, nor before
 * they are configured. Then, and where rows or bytes of tiles do not fit each other, the signal
 * remains what it was. A program that leaves tiles configured fails at its end.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { TILES = 8, ROWS = 16, BYTES = 64, ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} Config;

typedef struct {
    Config config;
    uint8_t data[TILES][ROWS][BYTES];
} State;

static __thread State state;
static int permitted;
static int configured; /* threads */

static float of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

long syscall(long number, ...) {
    long a[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(list, long);
    va_end(list);
    if (number == SYS_arch_prctl && a[0] == ARCH_REQ_XCOMP_PERM && a[1] == XTILEDATA) {
        if (getenv("AMX_EMULATOR_REFUSES")) {
            errno = EINVAL;
            return -1;
        }
        permitted = 1;
        return 0;
    }
    register long r10 __asm__("r10") = a[3], r8 __asm__("r8") = a[4], r9 __asm__("r9") = a[5];
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    if (result < 0 && result > -4096) {
        errno = (int)-result;
        return -1;
    }
    return result;
}

/* Registers in the order of their encodings. */
static const int GENERAL[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

static int usable(int tile) { return state.config.palette == 1 && state.config.rows[tile] != 0; }

static int multiply(int prefix, int opcode, int to, int a, int b) {
    const Config *c = &state.config;
    if (!usable(to) || !usable(a) || !usable(b))
        return 0;
    /* Pixels have as many bytes as there are rows of words, sums as many rows as pixels. */
    if (c->rows[to] != c->rows[a] || c->bytes[to] != c->bytes[b] || c->bytes[a] != 4 * c->rows[b])
        return 0;
    for (int m = 0; m < c->rows[to]; m++) {
        for (int n = 0; n < c->bytes[to] / 4; n++) {
            uint32_t sum;
            memcpy(&sum, &state.data[to][m][4 * n], 4);
            float real = of_bits(sum);
            for (int k = 0; k < c->bytes[a] / 4; k++) {
                const uint8_t *x = &state.data[a][m][4 * k], *w = &state.data[b][k][4 * n];
                if (opcode == 0x5c) {
                    for (int i = 0; i < 2; i++) {
                        uint32_t xi = (uint32_t)x[2 * i + 1] << 24 | (uint32_t)x[2 * i] << 16;
                        uint32_t wi = (uint32_t)w[2 * i + 1] << 24 | (uint32_t)w[2 * i] << 16;
                        real += of_bits(xi) * of_bits(wi);
                    }
                    continue;
                }
                for (int i = 0; i < 4; i++) { /* Signed are with F2 both, F3 x, 66 w, else none. */
                    int xi = prefix >= 2 ? (int8_t)x[i] : x[i];
                    int wi = prefix == 3 || prefix == 1 ? (int8_t)w[i] : w[i];
                    sum += (uint32_t)(xi * wi);
                }
            }
            if (opcode == 0x5c)
                memcpy(&sum, &real, 4);
            memcpy(&state.data[to][m][4 * n], &sum, 4);
        }
    }
    return 1;
}

/* Return whether it was an instruction of AMX, which is done then. */
static int done(ucontext_t *context) {
    greg_t *registers = context->uc_mcontext.gregs;
    const uint8_t *code = (const uint8_t *)registers[REG_RIP];
    if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x84) != 0)
        return 0;
    int prefix = code[2] & 3; /* none, 66, F3, F2 */
    int opcode = code[3], mod = code[4] >> 6;
    int reg = (code[4] >> 3 & 7), rm = code[4] & 7, other = ~code[2] >> 3 & 15;
    if (opcode == 0x5e || opcode == 0x5c) {
        if (mod != 3 || (opcode == 0x5c && prefix != 2) || !permitted)
            return 0;
        if (!multiply(prefix, opcode, reg, rm, other))
            return 0;
        registers[REG_RIP] += 5;
        return 1;
    }
    if (opcode != 0x49 && opcode != 0x4b)
        return 0;
    if (mod == 3) {
        if (opcode != 0x49)
            return 0;
        if (prefix == 0 && code[4] == 0xc0) {
            if (state.config.palette)
                __atomic_fetch_sub(&configured, 1, __ATOMIC_RELAXED);
            memset(&state, 0, sizeof state);
        } else if (prefix == 3 && rm == 0 && permitted && usable(reg)) {
            memset(state.data[reg], 0, sizeof state.data[reg]);
        } else {
            return 0;
        }
        registers[REG_RIP] += 5;
        return 1;
    }
    const uint8_t *next = code + 5;
    int64_t address = 0, stride = 0;
    int base = rm | (code[1] & 0x20 ? 0 : 8), relative = 0;
    if (rm == 4) {
        int sib = *next++;
        int index = (sib >> 3 & 7) | (code[1] & 0x40 ? 0 : 8);
        base = (sib & 7) | (code[1] & 0x20 ? 0 : 8);
        if (index != 4)
            stride = registers[GENERAL[index]] << (sib >> 6);
    } else if (mod == 0 && rm == 5) {
        relative = 1;
    }
    int only_displacement = relative || (mod == 0 && rm == 4 && (base & 7) == 5);
    if (!only_displacement)
        address = registers[GENERAL[base]];
    if (mod == 1) {
        address += *(const int8_t *)next++;
    } else if (mod == 2 || only_displacement) {
        int32_t displacement;
        memcpy(&displacement, next, 4);
        address += displacement;
        next += 4;
    }
    if (relative)
        address += (int64_t)next;
    uint8_t *memory = (uint8_t *)address;
    if (opcode == 0x49) {
        memory += stride; /* no tile: an address like others */
        if (prefix != 0)
            return 0;
        if (!state.config.palette)
            __atomic_fetch_add(&configured, 1, __ATOMIC_RELAXED);
        memset(&state, 0, sizeof state);
        memcpy(&state.config, memory, sizeof state.config);
    } else {
        if (!permitted || !usable(reg))
            return 0;
        int store = prefix == 2;
        if (prefix == 0)
            return 0;
        for (int row = 0; row < state.config.rows[reg]; row++) {
            uint8_t *data = state.data[reg][row], *there = memory + row * stride;
            if (store) {
                memcpy(there, data, state.config.bytes[reg]);
            } else {
                memset(data, 0, BYTES);
                memcpy(data, there, state.config.bytes[reg]);
            }
        }
    }
    registers[REG_RIP] = (greg_t)next;
    return 1;
}

/* The functions of the C library that are replaced here. */
static int set_action(int number, const struct sigaction *action, struct sigaction *before) {
    int (*next)(int, const struct sigaction *, struct sigaction *) = dlsym(RTLD_NEXT, "sigaction");
    return next(number, action, before);
}

static void unknown_instruction(int number, siginfo_t *info, void *context) {
    static const struct sigaction otherwise = {.sa_handler = SIG_DFL};
    (void)info;
    if (!done(context))
        set_action(number, &otherwise, NULL); /* It happens again, and ends the program. */
}

/* Programs may neither take the signal nor block it. */

int sigaction(int number, const struct sigaction *action, struct sigaction *before) {
    return number == SIGILL ? 0 : set_action(number, action, before);
}

void (*signal(int number, void (*handler)(int)))(int) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART}, before;
    return sigaction(number, &action, &before) ? SIG_ERR : SIG_DFL;
}

int pthread_sigmask(int how, const sigset_t *wanted, sigset_t *before) {
    int (*next)(int, const sigset_t *, sigset_t *) = dlsym(RTLD_NEXT, "pthread_sigmask");
    sigset_t kept;
    if (wanted) {
        kept = *wanted;
        if (how != SIG_UNBLOCK)
            sigdelset(&kept, SIGILL);
        wanted = &kept;
    }
    return next(how, wanted, before);
}

static void check(void) {
    if (configured) {
        fprintf(stderr, "%d threads leave tiles configured\n", configured);
        _exit(99);
    }
}

__attribute__((constructor)) static void begin(void) {
    struct sigaction action = {.sa_flags = SA_SIGINFO | SA_NODEFER};
    action.sa_sigaction = unknown_instruction;
    set_action(SIGILL, &action, NULL);
    atexit(check);
}
