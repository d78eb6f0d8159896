"""Commands that cannot be meant: exit code 2, before anything is read or computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from workflows.cli import main

IMPORT = ("data", "import", "mine", "--layout", "folder", "--from")


@pytest.mark.parametrize(
    ("words", "explanation"),
    [
        ((*IMPORT, ".", "--set", "synthetic.height=64"), "--set says how synthetic people"),
        ((*IMPORT, "people", "--pid-regex", "("), "is not a regular expression"),
        (
            (*IMPORT, "people", "--split", "train"),
            "expected no option split in addition, found 'train'",
        ),
        ((*IMPORT, ""), "An argument is empty, after --from. Is a variable"),
        (("store", "list", "--home="), "An argument is empty, --home="),
        (("data", "import", "a b", *IMPORT[3:], "people"), "name 'a b': expected letters"),
        (("ground", "mine", "--set", "grounding=null", "--set", "model.parts=[]"), "no expert"),
        (("ground", "mine", "--parts", "shoes"), "--phrases shoes='the shoes'"),
        (("ground", "mine", "--gpus-per-actor", "1.5"), "a fraction up to 1, or a whole number"),
        (("ground", "mine", "--phrases", "shoes"), "expected PART=PHRASE"),
        (("ground", "mine", "--phrases", "shoes=the <shoes>"), "without brackets"),
        (("models", "import", "a.pth", "--name", "a b"), "name 'a b': expected letters"),
        (("models", "import", "a.pth", "--name", "a", "--grid", "4"), "expected ROWSxCOLUMNS"),
        (("train", "--sources", "mine", "--name", "a b"), "name 'a b': expected letters"),
        (("run", "demo", "--set", "name=a b"), "name: String should match pattern"),
        (("tune", "base"), "expected one of all, augmentation, masks, prompts"),
        (("tune", "--recipe", "base"), "expected a section tune, found none, or a SPACE"),
        (("tune", "masks"), "expected two sources or more, found 0"),
        (("tune", "masks", "--recipe", "demo", "--objective", "median"), "no trial reports it"),
        (("evaluate", "--features", "f.npz", "--targets", "mine"), "is its own target"),
        (("evaluate", "clip:", "--targets", "mine"), "nor a name that open_clip knows"),
        (("evaluate", "clip:ViT-B-16:x", "--targets", "mine"), "no weights x for ViT-B-16"),
        (("submit", "--json", "--", "run", "demo"), "with --detach"),
        (("submit", "--cluster", "a", "--address", "b", "--", "run", "demo"), "one of the two"),
        (("submit", "--cluster", "nowhere", "--", "run", "demo"), "no cluster has this name"),
        (("submit", "--address", "gs://head", "--", "run", "demo"), "http://HOST:PORT"),
        (("submit", "--wait-for", "GPUs", "--", "run", "demo"), "expected NAME=COUNT"),
        (("jobs", "logs", "--follow", "--json", "job"), "one of the two"),
        (("doctor", "--set", "seed=1"), "name it with --recipe"),
        (("store", "list", "--store", "gs://bucket"), "found the scheme gs"),
        (("store", "list", "--tracking-uri", "gs://bucket"), "expected sqlite:///FILE"),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused(
    words: tuple[str, ...],
    explanation: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    image = tmp_path / "people" / "query" / "0001" / "1.jpg"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    assert explanation in " ".join(capsys.readouterr().err.split())
    assert stop.value.code == 2
    assert not (tmp_path / "runs").exists()


def test_a_current_folder_that_was_deleted_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "deleted"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(SystemExit, match="1"):
        main(["recipes"])
    assert "The current folder cannot be opened" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb",
    [
        *(("data", verb) for verb in ("import", "list", "check", "show")),
        *(("masks", verb) for verb in ("report", "show", "refine", "import", "export")),
        *(("models", verb) for verb in ("import", "list", "epoch", "log", "show")),
        *(("store", verb) for verb in ("list", "gc")),
        *((verb,) for verb in ("demo", "data", "experts", "ground", "masks", "models")),
        *((verb,) for verb in ("train", "evaluate", "embed", "search", "export", "recipes")),
        *(("jobs", verb) for verb in ("list", "logs", "stop", "show")),
        *(("tune", verb) for verb in ("search", "show", "best")),
        *((verb,) for verb in ("run", "tune", "submit", "jobs", "doctor", "store", "ui")),
    ],
)
def test_every_verbs_help_has_an_example(
    verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*verb, "--help"])
    assert stop.value.code == 0
    usage, _, rest = capsys.readouterr().out.partition("\n")
    assert f"muva {' '.join(verb)}" in usage
    assert f"muva {' '.join(verb)}" in rest


def test_a_fault_of_the_program_is_traced_without_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault() -> None:
        raise RuntimeError("no answer from http://me:s3cr3t@tracking:5000")

    monkeypatch.setattr("workflows.verbs.recipes.described_recipes", fault)
    with pytest.raises(SystemExit, match="1"):
        main(["recipes"])
    message = capsys.readouterr().err
    assert "Traceback" in message and "described_recipes()" in message
    assert "s3cr3t" not in message
