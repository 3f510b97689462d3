"""How one trial trains: architectures, data sets, the training loop, its tracking, and the Ray trainable."""
