"""What Ray runs: a pack of trials in one process."""
