"""Benchmarks measure what this CPU can, so its kernels are not pinned as those of the tests are."""

import os

from stages.lib.core.arithmetic import PINNED_IF_PORTABLE

for name in PINNED_IF_PORTABLE:
    os.environ.pop(name, None)
