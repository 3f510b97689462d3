"""Sweeps: the experiments' scripts, and the driver that runs what is missing of them."""

import trainables  # noqa: F401 (first, as it sets up how warnings are treated)
