"""What the C library does with memory that has been freed."""

from __future__ import annotations

import ctypes

# The parameters of mallopt that keep_memory sets, from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_memory() -> None:
    """Lets this process keep the memory that it frees, so that results on the CPU are written into memory that is there.

    By default, glibc gives large blocks back to the system as they are freed. Each large result then lies in new memory, which
    the system hands out and fills with zeros page by page as it is touched, and that takes longer than a neuron: LIF, forward
    and backward, takes two to three times as long. Call this once, best before the first large tensor.

    It sets two parameters of glibc's malloc for the whole process, until it ends: no block gets a mapping of its own
    (M_MMAP_MAX), and the heap is never trimmed (M_TRIM_THRESHOLD). What it costs: the process keeps the most memory that it
    ever used at once, and what lies in the holes between blocks: for a loop over one layer, 1.4 to 2 times as much in all. It serves the
    main thread; what other threads allocate is given back as before. It does nothing for memory on a GPU, which PyTorch keeps
    anyway, and nothing where another allocator (jemalloc, tcmalloc) stands in for malloc.

    Raises:
        RuntimeError: the C library has no mallopt (it is not glibc), or refuses.

    Example:
        >>> snnkern.keep_memory()  # doctest: +SKIP
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        raise RuntimeError("snnkern.keep_memory needs glibc: this C library has no mallopt")
    # -1 as size_t is the largest number: the heap is never trimmed.
    if not (mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1)):
        raise RuntimeError("snnkern.keep_memory: mallopt of this C library refused")
