"""A cluster's settings by name: what is read, what is refused, where the token comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from muva.errors import MuvaError, SettingsError
from tests.clusters.fields import CLUSTERS
from workflows.jobs.client import token_header
from workflows.jobs.cluster_settings import ClusterSettings, load_cluster


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home" / ".muva" / "clusters").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def written(folder: Path, text: str, name: str = "mine.yaml") -> str:
    file = folder / name
    file.write_text(text)
    return str(file)


def test_the_shipped_laptop_is_found_by_its_name(home: Path) -> None:
    assert load_cluster("laptop") == ClusterSettings(address="http://127.0.0.1:8265")


def test_ones_own_file_of_that_name_comes_first(home: Path) -> None:
    written(home / ".muva" / "clusters", "address: head:8265\n", "laptop.yaml")
    assert load_cluster("laptop").address == "http://head:8265"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("adress: http://head:8265", "adress: unknown setting; closest: address"),
        ("address: gs://head", "expected the dashboard's address, http://HOST:PORT"),
        ("address: http://me:hunter2@head:8265", "address contains a secret"),
        ("tracking_uri: postgresql://me:hunter2@db/m", "tracking_uri contains a secret"),
        ("store: runs/store", "expected s3://bucket/prefix, or the absolute path"),
        ("pass_on: [AWS_SECRET_ACCESS_KEY]", "Set secrets in the cluster's own environment"),
        ("token_variable: 0123 4567", "token_variable: String should match"),
        ("token_variable: A\ntoken_path_variable: B", "expected only one of the two"),
        ("wait_for: {GPU: 0}", "wait_for.GPU"),
        ("- address", "settings such as `address:"),
        ("address: [", "expected a YAML file"),
    ],
)
def test_what_cannot_be_meant_is_refused(home: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        load_cluster(written(home, text))
    assert said in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


def test_a_file_for_ray_up_is_told_from_settings(home: Path) -> None:
    with pytest.raises(SettingsError, match=r"is a file for `ray up`.*aws\.md"):
        load_cluster(str(CLUSTERS / "aws.yaml"))


def test_an_unknown_name_is_answered_with_the_closest(home: Path) -> None:
    with pytest.raises(SettingsError, match="closest: laptop"):
        load_cluster("labtop")


def test_jobs_get_places_and_named_variables(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3:9000")
    text = "store: s3://people/store\ntracking_uri: http://mlflow:5000\n"
    cluster = load_cluster(written(home, f"{text}pass_on: [AWS_ENDPOINT_URL, NOT_SET]\n"))
    assert cluster.variables() == {
        "AWS_ENDPOINT_URL": "http://s3:9000",
        "MUVA_STORE": "s3://people/store",
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
    }


def test_the_token_comes_from_the_named_place(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "rays-own")
    assert token_header(ClusterSettings()) == {"Authorization": "Bearer rays-own"}
    by_value = ClusterSettings(token_variable="TEAM_TOKEN")
    with pytest.raises(MuvaError, match="its token in TEAM_TOKEN, and this variable is not set"):
        token_header(by_value)
    monkeypatch.setenv("TEAM_TOKEN", "of-the-team")
    assert token_header(by_value) == {"Authorization": "Bearer of-the-team"}
    by_path = ClusterSettings(token_path_variable="TEAM_FILE")
    with pytest.raises(MuvaError, match=r"the path of its token's file in TEAM_FILE"):
        token_header(by_path)
    monkeypatch.setenv("TEAM_FILE", written(home, "in-a-file\n", "token"))
    assert token_header(by_path) == {"Authorization": "Bearer in-a-file"}
