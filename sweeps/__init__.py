"""Sweeps: the experiments' scripts, and the driver that runs what is missing of them."""
