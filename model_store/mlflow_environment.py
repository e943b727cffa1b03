"""How MLflow behaves inside our processes; it can only be told through the environment, before it is imported.

What the user has set stays as it is.
"""

from __future__ import annotations

import logging
import os

_ENVIRONMENT = {
    # Nothing is sent to anybody but the registry that the user named.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # A server that is away is asked again by us, with our own back-off: MLflow's default would hang for 7 x 120 s.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    # "View run ... at" after each version, progress bars, a look for a uv project in the working directory, a warning
    # where there is no git.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    # INFO is "Creating initial MLflow database tables..." and the like; warnings and errors still come.
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


def prepare_mlflow() -> None:
    """Call before the first `import mlflow`."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # "Retrying ... after connection broken": the try that fails in the end raises, and that is told.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
