"""Names of the backends that compute convolutions on the CPU, and the environment that each one needs.

A backend is `NATIVE`, `PYTORCH`, or the name of an instruction set, such as "AVX2", to which PyTorch's convolutions are
limited. The names are stored in checkpoints, in tags and in `measured.json`, so they must never change. None in place
of a name means that nothing was chosen; training then uses PyTorch's convolutions.

An environment takes effect only if it is set before torch is imported. This module therefore does not import torch.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

# The convolutions of `convolutions.cpp`, compiled on the machine that trains. The first version stored this name.
NATIVE = "own"
PYTORCH = "PyTorch"  # PyTorch's convolutions, without a limit
ONEDNN_VARIABLE = "ONEDNN_MAX_CPU_ISA"  # limits the instruction set of oneDNN, which computes PyTorch's convolutions


def get_environment(backend: str | None) -> dict[str, str]:
    """Return the environment variables that must be set before torch is imported, for a backend or None."""
    return {} if backend in (None, NATIVE, PYTORCH) else {ONEDNN_VARIABLE: str(backend)}


@cache
def get_processor_name() -> str:
    """Return the name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
