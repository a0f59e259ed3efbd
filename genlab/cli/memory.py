"""How the program's memory is managed, where the C library is glibc."""

import ctypes
import os

# Of glibc's malloc.h: blocks up to a GiB come from the heap, and what is free at its end stays.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_BLOCK, _LARGEST_INT = 2**30, 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process reuse what tensors leave behind in place of giving it back to the system.

    glibc returns large freed blocks at once, and the system clears every page of the next one: a
    DiT on a CPU took about a tenth longer. The process's memory stays at its peak, so this is for
    programs, not for libraries. Where the user has set ``MALLOC_*``, nothing is done.

    Returns:
        Whether it was done.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or not _has_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK) and mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
    )


def _has_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # Windows, macOS, musl
        return False
