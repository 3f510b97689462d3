"""Settings of a process that trains: threads, precision, device and memory."""

from __future__ import annotations

import torch

GPU_CONTEXT_BYTES = 512 * 2**20  # an allowance for the GPU memory that a process takes before it holds a tensor


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


def choose_device(gpus: float) -> torch.device:
    """Return the device that a pack trains on; on a GPU, limit the process to its share of the memory."""
    if not gpus or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.empty_cache()  # frees what the pack before this one has used
    limit_memory(gpus)
    return torch.device("cuda")


def limit_memory(gpus: float) -> None:
    """Limit the GPU memory of this process to that of the share `gpus`; more raises `torch.OutOfMemoryError`."""
    _, total_bytes = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(compute_memory_fraction(gpus, total_bytes))


def compute_memory_fraction(gpus: float, total_bytes: int) -> float:
    """Return the fraction of a GPU's memory that a process with the share `gpus` may fill with tensors."""
    return max(gpus / 2, gpus - GPU_CONTEXT_BYTES / total_bytes) if gpus < 1 else 1.0


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error, of PyTorch or of a library under it, says that a GPU had too little memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("out of memory", "STATUS_ALLOC_FAILED")
    )
