"""The checksum of each data set's content, which is part of what decides a result.

Quick to import: a plan, a rerun and an analysis compare the checksums of runs without loading a data set.
"""

from __future__ import annotations

# What `datasets.compute_checksum` returns for the right content, computed from files with the known MD5 values.
# CIFAR-10's is still to be added by somebody who has its files, which every version of this project has compared with
# their MD5. Until then, the only content that is known to be wrong for it is that of another data set.
CHECKSUMS = {
    "fashion_mnist": "ece172613115fb18",
    "mnist": "1e35582d42a90940",
    "digits": "ce945a0083a007ef",
}


def is_other_data(dataset: str, checksum: str, loaded: str = "") -> bool:
    """Return whether a checksum is known to be of other data than a data set's.

    Args:
        dataset: The name of the data set; if it is empty, nothing is known.
        checksum: The checksum to be judged; if it is empty, nothing is known.
        loaded: The checksum of the data set that was loaded, if one was.
    """
    if not dataset or not checksum:
        return False
    right = loaded or CHECKSUMS.get(dataset)
    return checksum != right if right else checksum in CHECKSUMS.values()


def describe_difference(dataset: str, checksum: str, loaded: str = "") -> str:
    """Return words that name a checksum for which `is_other_data` holds, and the right one, as far as it is known."""
    owners = [name for name, known in CHECKSUMS.items() if known == checksum]
    right = loaded or CHECKSUMS.get(dataset)
    return " ".join(
        [f"checksum {checksum}", *(f"of {name}" for name in owners), *([f"instead of {right}"] if right else [])]
    )
