"""Scripts for a Ray cluster with a tracking server and a database, and the test that starts one."""
