"""The command line imports none of the heavy libraries before a verb has work for them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.startup import commands, verbs

HEAVY = (
    *("torch", "torchvision", "open_clip", "transformers", "timm", "safetensors", "jaxtyping"),
    *("ray", "mlflow", "sqlalchemy", "optuna", "boto3", "botocore", "requests"),
    *("numpy", "scipy", "sklearn", "numba", "pandas", "pyarrow", "h5py"),
    *("matplotlib", "PIL", "cv2"),
)

PROGRAM = f"""
import contextlib, io, json, sys
from workflows.cli import main
loaded = {{}}
for words in json.loads(sys.argv[1]):
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        main(words)
    assert "Usage: muva" in output.getvalue(), words
    loaded[" ".join(words)] = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps(loaded))
"""


def test_no_help_text_imports_a_heavy_library() -> None:
    helps = [words for words, _ in commands() if words[-1] == "--help"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(helps)],
        check=True,
        capture_output=True,
        text=True,
    )
    loaded = json.loads(done.stdout)
    assert len(loaded) == len(helps) > 40
    assert {words: names for words, names in loaded.items() if names} == {}


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        (("recipes",), set()),
        (("experts",), {"numpy", "PIL"}),
        (("store", "list"), set()),
        (("data", "list"), {"numpy", "PIL", "pyarrow"}),
    ],
)
def test_a_list_imports_what_it_reads_and_no_more(
    words: tuple[str, ...], allowed: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = ["--home", str(tmp_path_factory.mktemp("home"))] if words[-1] == "list" else []
    program = (
        "import sys\nfrom workflows.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words, *home], check=True, capture_output=True, text=True
    )
    loaded = set(json.loads(done.stderr.splitlines()[-1].replace("'", '"')))
    assert loaded <= allowed


def test_every_verb_is_measured() -> None:
    found = set(verbs())
    assert {("data", "import"), ("tune", "search"), ("search",)} <= found
    assert {("data",), ("jobs", "logs"), ("masks", "report"), ("store", "gc")} <= found
