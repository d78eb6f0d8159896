"""What a person sees in MLflow, in a real browser: `make test-browser`.

A small pipeline with held-out people, a search and a promotion fill a database; MLflow's own server
shows it. With `MUVA_SCREENSHOTS=FOLDER` the pages that are looked at are kept as pictures.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from muva.config import load_recipe
from muva.data.artifacts import open_artifact
from workflows.results.promotion import promote
from workflows.runtime.workers import Workers
from workflows.session import open_session
from workflows.steps.pipeline import recipe_run
from workflows.tuning.search import search
from workflows.verbs.ui import mlflow_server

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = os.environ.get("MUVA_CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: MUVA_CHROMIUM names one"),
]
TARGET = "syn-station"
PATIENCE_MS = 60_000
OPENED_ONCE = "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1"
"""Where MLflow keeps that its assistant has opened by itself, over a third of the page."""


@dataclass(frozen=True)
class Site:
    """MLflow's pages over what a pipeline left."""

    address: str
    page: Any
    client: MlflowClient
    experiment: str
    parent: MlflowRun

    def open(self, path: str, *, shows: str) -> None:
        """Goes to a page and waits until it shows a text."""
        view = "&" if "?" in path else "?"
        self.page.goto("about:blank")  # a change of what follows # alone keeps what was opened
        self.page.goto(f"{self.address}/#/{path}{view}workflowType=machine_learning")
        try:
            self.page.get_by_text(shows).first.wait_for(timeout=PATIENCE_MS)
        except playwright.TimeoutError:
            self.keep("not-shown")
            raise

    def keep(self, name: str) -> None:
        """A picture of the page, where pictures are wanted."""
        if folder := os.environ.get("MUVA_SCREENSHOTS"):
            self.page.wait_for_timeout(1500)
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"))

    def run(self, name: str) -> MlflowRun:
        """The run of this name."""
        found = self.client.search_runs(
            [self.experiment], f"attributes.run_name = '{name}'", max_results=1
        )
        return found[0]


@pytest.fixture(scope="module")
def site(
    ray_session: None, smoke_recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("home")
    session = open_session(home=home, experiment="muva/smoke")
    settings = ("validation={identities: 0.4}", "synthetic.train_people=8", "variants=[clip, muva]")
    config = load_recipe(smoke_recipe, overrides=settings)
    with recipe_run(session, config) as (run, inside, report):
        assert run is not None
        search(
            inside,
            config,
            sources=[report.datasets[name] for name in config.sources],
            labels=[report.labels[name] for name in config.sources],
            workers=Workers(),
        )
        ref = run.ref
    promote(session, open_artifact(report.models["muva, chosen"]), name="muva-smoke")
    uri = str(session.tracking_uri)
    client = MlflowClient(uri)
    with (
        mlflow_server(uri, port=0) as (address, _),
        playwright.sync_playwright() as browsers,
    ):
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 1200})
        page.add_init_script(f"localStorage.setItem('{OPENED_ONCE}', 'true')")
        page.set_default_timeout(PATIENCE_MS)
        yield Site(address, page, client, ref.experiment_id, client.get_run(ref.run_id))
        browser.close()


def test_the_table_of_runs_shows_the_pipeline_by_name(site: Site) -> None:
    name = f"{site.parent.info.run_name}"
    assert name == f"syn-harbour+syn-airport -> {TARGET} · smoke · seed 0"
    site.open(f"experiments/{site.experiment}/runs", shows=name)
    site.page.locator("[col-id*='Run Name'] button").first.click()
    for text in ("stage 2 of smoke-muva", f"evaluate smoke-muva on {TARGET}", "tune smoke"):
        site.page.get_by_text(text).first.wait_for()
    site.keep("mlflow-runs")


def test_a_parent_has_its_numbers_and_its_children(site: Site) -> None:
    path = f"experiments/{site.experiment}/runs/{site.parent.info.run_id}"
    site.open(path, shows="Re-identification in camera networks")
    for text in ("Child runs", "stage 2 of smoke-muva", f"{TARGET}/mAP", "Reproduce with"):
        site.page.get_by_text(text).first.wait_for()
    site.page.get_by_text("syn-harbour (").first.wait_for()  # what it learned from
    site.keep("mlflow-run")


def test_a_search_is_a_parent_of_trials_with_their_domains(site: Site) -> None:
    run = site.run("tune smoke")
    site.open(
        f"experiments/{site.experiment}/runs/{run.info.run_id}", shows="Steps that trials shared"
    )
    for text in ("trial 0", "trial 1", "syn-harbour/mAP"):
        site.page.get_by_text(text).first.wait_for()
    site.keep("mlflow-search")


def test_charts_are_grouped_by_domain(site: Site) -> None:
    site.open(
        f"experiments/{site.experiment}/runs?compareRunsMode=CHART",
        shows=TARGET,
    )
    site.page.get_by_text(TARGET, exact=True).last.scroll_into_view_if_needed()
    site.keep("mlflow-charts")


@pytest.mark.parametrize(
    ("run", "picture"),
    [
        (f"evaluate smoke-muva on {TARGET}", "ranked-gallery.png"),
        (f"evaluate smoke-muva on {TARGET}", "attention.png"),
        ("stage 2 of smoke-muva", "masks/epoch-001.png"),
        ("map of domains by smoke-muva-chosen", "domains.png"),
        ("tune smoke", "search/history.png"),
    ],
)
def test_pictures_are_shown(site: Site, run: str, picture: str) -> None:
    run_id = site.run(run).info.run_id
    site.open(
        f"experiments/{site.experiment}/runs/{run_id}/artifacts/{picture}",
        shows=picture.split("/")[-1],
    )
    image = site.page.locator("img[src^='blob:'], img[src*='get-artifact'], .preview img").first
    image.wait_for()
    assert image.evaluate("image => image.naturalWidth") > 100
    site.keep(f"mlflow-{Path(picture).stem}")


def test_models_are_ranked_and_the_champion_is_marked(site: Site) -> None:
    site.open(f"experiments/{site.experiment}/models", shows="smoke-muva-chosen")
    for text in (
        f"{TARGET} (",
        "muva-smoke",
    ):  # by whom it was judged, and what it is registered as
        site.page.get_by_text(text).first.wait_for()
    site.keep("mlflow-models")
    site.open("models/muva-smoke", shows="champion")
    site.keep("mlflow-registry")
