"""The test of what sweeps show in MLflow's UI, in a browser."""
