"""The worker: the process in which Ray trains a pack of trials."""
