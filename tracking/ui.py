"""Links to pages of the MLflow UI.

By default, MLflow 3 opens its view for language-model applications; `workflowType` selects the one
for model training, with metrics, charts and nested runs.
"""

from __future__ import annotations

import re

from tracking.connection import attached_client
from tracking.tagged_runs import RunRef

_TRAINING_VIEW = "workflowType=machine_learning"


def home_link(server: str) -> str:
    """Link to the list of experiments on a server such as `http://127.0.0.1:5000`."""
    return f"{_page(server)}/#/experiments?{_TRAINING_VIEW}"


def experiment_link(server: str, experiment_id: str) -> str:
    """Link to an experiment's runs, which are nested if sorted by creation time."""
    return f"{_page(server)}/#/experiments/{experiment_id}/runs?{_TRAINING_VIEW}"


def run_link(server: str, run: RunRef) -> str:
    """Link to a run's page with description, metrics and artifacts."""
    page = f"{_page(server)}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
    return f"{page}?{_TRAINING_VIEW}"


def experiment_links(tracking_uri: str, server: str) -> dict[str, str]:
    """Experiment -> link, newest first, without MLflow's empty experiment `Default`."""
    client = attached_client(tracking_uri)
    experiments = client.search_experiments(order_by=["creation_time DESC"])
    return {
        found.name: experiment_link(server, found.experiment_id)
        for found in experiments
        if found.experiment_id != "0"
    }


def _page(server: str) -> str:
    """The server's address without user name and password, because links are shown and shared."""
    return re.sub(r"//[^/@]*@", "//", server.rstrip("/"))
