"""Settings of a process that trains: threads, precision and memory."""

from __future__ import annotations

import torch


def prepare_process(threads: int) -> None:
    """Make this process train with `threads` threads in full float32, and keep the memory of freed tensors.

    Without the two switches, GPUs from Ampere on compute convolutions in TF32, which keeps 10 of 23 bits, so that
    results would differ from those of the CPU by more than rounding.

    glibc returns freed blocks to the system unless a larger one has been freed before, up to 32 MB. Without this call,
    a process that trains `cnn_3` had 26,000 page faults per second and was a tenth slower.
    """
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.empty(31 * 2**20, dtype=torch.uint8)  # freed at once
