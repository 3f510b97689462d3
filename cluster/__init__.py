"""A Ray cluster with tracking server and database: its scripts, and the test that brings one up."""
