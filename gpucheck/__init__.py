"""Checks and measurements of training on a GPU, without Ray and MLflow."""
