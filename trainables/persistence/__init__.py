"""Everything that must survive a crash: a trial's folder on disk, and its run in the tracking store.

MLflow reads its settings from the environment when it is imported, so they are made here, before any module of this
package imports it. What the user has set stays.
"""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# MLflow would retry for minutes. A trial does not wait for an unreachable store: it trains on, and sends later.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
