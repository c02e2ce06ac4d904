"""How much memory there is."""

import os
import resource
from pathlib import Path


def free() -> int:
    """Return how many bytes a process can get before others are ended for want of memory."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    # Linux knows what it can take back from files, and of containers what they may use.
    found += _numbers("/proc/meminfo", "MemAvailable:", 1024)
    group = "/sys/fs/cgroup/memory."
    parts = (("max", ""), ("current", ""), ("stat", "file "))
    numbers = (_numbers(group + file, name) for file, name in parts)
    found += [most - used + files for most, used, files in zip(*numbers, strict=False)]
    size = _numbers("/proc/self/status", "VmSize:", 1024)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    found += [limit - size[0]] if size and limit != resource.RLIM_INFINITY else []
    return max(0, min(found))


def _numbers(file: str, name: str = "", unit: int = 1) -> list[int]:
    """Return the number in a file, or of the line that begins with a name, if there is one."""
    try:
        lines = Path(file).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
    words = (line.removeprefix(name).split() for line in lines if line.startswith(name))
    return [int(w[0]) * unit for w in words if w and w[0].isdecimal()][:1]
