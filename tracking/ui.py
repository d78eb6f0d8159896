"""Links into MLflow's pages.

MLflow 3 opens in its view for language-model applications; `workflowType` asks for the one of
trainings, with metrics, charts and nested runs.
"""

from __future__ import annotations

from tracking.runs import RunRef

_TRAINING_VIEW = "workflowType=machine_learning"


def home_link(server: str) -> str:
    """The list of experiments on a server such as `http://127.0.0.1:5000`."""
    return f"{server.rstrip('/')}/#/experiments?{_TRAINING_VIEW}"


def experiment_link(server: str, experiment_id: str) -> str:
    """An experiment's runs. They nest under their parents while sorted by the time of creation."""
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{_TRAINING_VIEW}"


def run_link(server: str, run: RunRef) -> str:
    """A run's page: description, metrics, pictures."""
    page = f"/#/experiments/{run.experiment_id}/runs/{run.run_id}"
    return f"{server.rstrip('/')}{page}?{_TRAINING_VIEW}"
