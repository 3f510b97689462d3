"""The test of reports in a browser."""
