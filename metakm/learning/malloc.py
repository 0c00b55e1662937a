"""Keep freed memory in the process.

A second-order step allocates and frees gigabytes of activations. glibc hands large blocks back to the kernel at once,
so every step pays the page faults of all its buffers again. Commands call this once at their start; in
library use it is optional. Its effect alone has not been measured.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Tell glibc to reuse freed blocks instead of returning them; False where the C library is another."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 * 2**20))
    return all([mallopt(option, value) == 1 for option, value in settings])  # noqa: C419 (set all of them)
