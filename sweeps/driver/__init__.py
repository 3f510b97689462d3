"""The driver: the process that runs a sweep, from a plan to its end.

Ray reads its settings from the environment when it is imported, so they are made here, before any module of this
package imports it. What the user has set stays, except for what would send files to the workers of a local sweep.
"""

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# Under `uv run`, Ray would send the current folder to the workers, and start them with `uv run` as well.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
# Tune would save the state of all trials again and again, for a restore that is never used.
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")
# Without a cluster, Ray would start one for whoever asks it something, even while it ends.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
if os.environ.get("RAY_ADDRESS") in (None, "", "local"):
    # A cluster of this machine alone must answer nobody else, and must not care whether the network changes. On Linux,
    # Ray uses the loopback address only if this variable says that the machine could not be part of a cluster.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # Its workers find everything on this machine, so what is to be sent to the workers of a cluster is not for them.
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    for name in ("RAY_RUNTIME_ENV_HOOK", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        os.environ.pop(name, None)
