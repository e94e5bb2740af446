"""A process whose large arrays lie on large pages (Linux). Quick to import: it comes first."""

import os
import sys

ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""A step writes gigabytes that it has just been given; the kernel hands out large pages sooner."""


def restart() -> None:
    """Begin this process again with `ENVIRONMENT`, where it is not there and could matter.

    The C library reads it once, when a process begins. The number and the parent of the process
    stay, and so do its arguments. A GLIBC_TUNABLES of the user's is left as it is.
    """
    if sys.platform == "linux" and not os.environ.keys() & ENVIRONMENT.keys():
        arguments = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, arguments, os.environ | ENVIRONMENT)
