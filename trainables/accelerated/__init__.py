"""Faster training of a trial, the same up to rounding: native convolutions, stacks of trials, and probes of both."""
