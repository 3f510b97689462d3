"""TODO."""

from __future__ import annotations

NATIVE = "own"  # convolutions of `trainables/convolutions.cpp`


PYTORCH = "PyTorch"  # as they come


ONEDNN_VARIABLE = (
    "ONEDNN_MAX_CPU_ISA"  # environment variable of the library that computes torch's convolutions on the CPU
)


def get_environment(way: str | None) -> dict[str, str]:
    """The environment that convolutions computed in this way need when torch is imported."""
    return {} if way in (None, NATIVE, PYTORCH) else {ONEDNN_VARIABLE: str(way)}
