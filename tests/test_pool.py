"""The threads of the C runtime."""

import subprocess
from pathlib import Path

import pytest

from tvm_directconv.deploy import runner
from tvm_directconv.hardware.host import native
from tvm_directconv.toolchain import find_toolchain, run_cc

DEPLOY = Path(runner.__file__).parent
# Three threads that may use one core only.
ONE_CORE = r"""
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <sys/resource.h>

#include "directconv.h"
#include "packed.h"

extern ParallelLaunch *__TVMBackendParallelLaunch;

static int count_share(int task, ParallelEnv *env, void *counts) {
    ((int *)counts)[task] += env->num_task == 3;
    return 0;
}

int main(void) {
    int counts[3] = {0, 0, 0};
    struct rusage before, after;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    if (sched_setaffinity(0, sizeof one, &one) != 0) return 1;
    if (directconv_start(3, DIRECTCONV_ANYWHERE) != DIRECTCONV_OK) return 1;
    getrusage(RUSAGE_THREAD, &before);
    for (int i = 0; i < 1000; i++) __TVMBackendParallelLaunch(count_share, counts, 0);
    getrusage(RUSAGE_THREAD, &after);
    directconv_stop();
    printf("%d %d %d %ld\n", counts[0], counts[1], counts[2], after.ru_nvcsw - before.ru_nvcsw);
    return 0;
}
"""


@pytest.mark.parametrize(
    "flags", [[], ["-DDIRECTCONV_SPIN_MICROSECONDS=0"]], ids=["awake", "asleep"]
)
def test_nobody_waits_for_a_thread_without_a_core(flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text(ONE_CORE)
    sources = [str(tmp_path / "main.c"), str(DEPLOY / "directconv.c"), f"-I{DEPLOY}"]
    program, toolchain = tmp_path / "main", find_toolchain(native().triple)
    run_cc([*sources, *flags, "-std=gnu99", "-O2", "-pthread"], program, toolchain)
    done = subprocess.run([program], check=True, capture_output=True, text=True)
    *shares, waited = map(int, done.stdout.split())
    assert shares == [1000] * 3
    assert waited < 100  # With a caller that waits for others, it is nearly always.
