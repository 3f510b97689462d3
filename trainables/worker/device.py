"""The device of a pack, and the GPU memory that its process may fill; this imports no MLflow."""

from __future__ import annotations

import torch

GPU_CONTEXT_BYTES = 512 * 2**20  # an allowance for the GPU memory that a process takes before it holds a tensor


def choose_device(gpus: float) -> torch.device:
    """Return the device that a pack trains on; on a GPU, limit the process to its share of the memory."""
    if not gpus or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.empty_cache()  # frees what the pack before this one has used
    _, total_bytes = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(compute_memory_fraction(gpus, total_bytes))
    return torch.device("cuda")


def compute_memory_fraction(gpus: float, total_bytes: int) -> float:
    """Return the fraction of a GPU's memory that a process with the share `gpus` may fill with tensors."""
    return max(gpus / 2, gpus - GPU_CONTEXT_BYTES / total_bytes) if gpus < 1 else 1.0


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error, of PyTorch or of a library under it, says that a GPU had too little memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("out of memory", "STATUS_ALLOC_FAILED")
    )
