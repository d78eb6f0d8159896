"""Everything that is written to MLflow: runs, metrics, pictures and models."""

import os

# Set before mlflow is first imported, which would otherwise send usage statistics to its makers. To
# allow that, set the variable to false.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# MLflow would print a link after each run to standard output, which is reserved for results.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
