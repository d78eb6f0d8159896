"""Rules that hold for all code and files, looked up in them: see docs/security.md."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from muva.config import load_recipe
from muva.data.artifacts import open_artifact
from muva.data.store import open_store
from muva.errors import MuvaError
from workflows.jobs.submit import submit_job

ROOT = Path(__file__).parent.parent
OURS = ("muva", "workflows", "tracking")


def calls(*folders: str) -> Iterator[tuple[Path, str, ast.Call]]:
    """Every call in our code: file, the called name with its dots, the call."""
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield file, ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(one.value) for one in call.keywords if one.arg == name), None)


def test_nothing_is_unpickled_evaluated_or_given_to_a_shell() -> None:
    never = {
        "eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load",
        "os.system", "os.popen", "shutil.unpack_archive", "joblib.load", "marshal.loads",
    }  # fmt: skip
    found = [
        f"{file.relative_to(ROOT)}: {name}"
        for file, name, call in calls(*OURS)
        if name in never
        or name.endswith((".extractall", ".extract"))
        or keyword(call, "shell") == "True"
        or (name == "torch.load" and keyword(call, "weights_only") != "True")
        or (name in ("np.load", "numpy.load") and keyword(call, "allow_pickle") == "True")
    ]
    assert found == []


def test_no_code_of_a_hub_is_trusted() -> None:
    loads = [(file, call) for file, name, call in calls(*OURS) if name.endswith(".from_pretrained")]
    assert loads
    for file, call in loads:
        assert keyword(call, "trust_remote_code") in (None, "False"), file


def test_no_server_of_ours_listens_beyond_this_machine() -> None:
    for folder in OURS:
        for file in (ROOT / folder).rglob("*.py"):
            assert "0.0.0.0" not in file.read_text(encoding="utf-8"), file


@pytest.mark.parametrize("key", ["../x", "models/../../x", "/etc/passwd", "a//b", "", "a/./b"])
def test_no_key_leads_out_of_the_store(key: str, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for use in (store.read, store.delete, store.path, lambda k: store.write(k, b"")):
        with pytest.raises(MuvaError, match="is not a key"):
            use(key)


@pytest.mark.parametrize("name", ["models/../etc-0123456789abcdef", "models/..-0123456789abcdef"])
def test_no_address_leads_out_of_the_store(name: str, tmp_path: Path) -> None:
    try:
        artifact = open_artifact(f"{tmp_path}/{name}")
    except MuvaError:
        return
    assert ".." not in Path(artifact.key("manifest.json")).parts


def test_a_recipe_makes_no_objects(tmp_path: Path) -> None:
    made = tmp_path / "made"
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(f"name: !!python/object/apply:pathlib.Path.touch [{made}]\n")
    with pytest.raises(MuvaError):
        load_recipe(recipe)
    assert not made.exists()


def test_words_of_a_submitted_command_stay_words(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    class Client:
        def list_jobs(self) -> list[object]:
            return []

        def submit_job(self, *, entrypoint: str, **rest: object) -> None:
            sent.append(entrypoint)

        def get_address(self) -> str:
            return "http://127.0.0.1:8265"

    monkeypatch.setattr("workflows.jobs.submit.jobs_client", lambda cluster: Client())
    evil = ["run", "demo; touch /tmp/x", "$(id)", "`id`", "--set", "seed=1 && id"]
    submit_job(evil, upload=False)
    (entrypoint,) = sent
    words = shlex.split(entrypoint)
    assert words[-len(evil) :] == evil
    bare = re.sub(r"'[^']*'", "", entrypoint.partition("exec")[2])
    assert not set("$`;&|<>") & set(bare)
