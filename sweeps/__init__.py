"""What to run, and running it: each experiment is a short file of data."""
