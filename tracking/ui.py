"""Links into MLflow's pages.

MLflow 3 opens in its view for language-model applications; `workflowType` asks for the one of
trainings, with metrics, charts and nested runs.
"""

from __future__ import annotations

import re

from tracking.addresses import attached_client
from tracking.tagged_runs import RunRef

_TRAINING_VIEW = "workflowType=machine_learning"


def home_link(server: str) -> str:
    """The list of experiments on a server such as `http://127.0.0.1:5000`."""
    return f"{_page(server)}/#/experiments?{_TRAINING_VIEW}"


def experiment_link(server: str, experiment_id: str) -> str:
    """An experiment's runs. They nest under their parents while sorted by the time of creation."""
    return f"{_page(server)}/#/experiments/{experiment_id}/runs?{_TRAINING_VIEW}"


def run_link(server: str, run: RunRef) -> str:
    """A run's page: description, metrics, pictures."""
    page = f"{_page(server)}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
    return f"{page}?{_TRAINING_VIEW}"


def experiment_links(tracking_uri: str, server: str) -> dict[str, str]:
    """Experiment -> link, the newest first; without MLflow's own empty `Default`."""
    client = attached_client(tracking_uri)
    experiments = client.search_experiments(order_by=["creation_time DESC"])
    return {
        found.name: experiment_link(server, found.experiment_id)
        for found in experiments
        if found.experiment_id != "0"
    }


def _page(server: str) -> str:
    """The address without a user's name and password: a link is shown and passed on."""
    return re.sub(r"//[^/@]*@", "//", server.rstrip("/"))
