"""What MLflow sees: runs, names, pictures."""

import os

# Before mlflow is first imported: it would send usage statistics to its makers otherwise. Whoever
# wants to sets the variable to false.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# It prints a link behind each run to standard output, which is for results.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
