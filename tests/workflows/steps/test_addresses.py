"""Addresses of artifacts: which steps a format version reaches, found without computing any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from muva.config import ExperimentConfig, load_recipe, with_overrides
from muva.config.augmentation import STRENGTHS
from muva.config.schema import CLIP_EDITIONS, Stage2Config
from muva.data import formats
from muva.data.artifacts import Artifact
from muva.data.lineage import Role
from muva.data.shards import open_dataset
from muva.data.store import open_store
from muva.grounding.experts import choose_expert
from tests.data.test_training_images import dataset
from workflows.session import Session
from workflows.steps import domain_map, evaluate
from workflows.steps.calibrate import calibration_step
from workflows.steps.embed import UNTRAINED, EvaluationSet, features_step
from workflows.steps.encoder import chosen_step
from workflows.steps.forget import without_step
from workflows.steps.ground import labels_step
from workflows.steps.import_data import synthetic_step
from workflows.steps.refine import refine_step
from workflows.steps.step import Step
from workflows.steps.train import declare_training
from workflows.tuning.search import check_search
from workflows.tuning.study import study_of

OF_A_MODEL = {
    "model", "chosen model", "features", "metrics", "domain map", "calibrated model"
}  # fmt: skip
DEPENDS_ON = {
    # Whatever is made from a data set is addressed by its content, not by how it is stored.
    "SHARDS": {"data set", "data set without a person"},
    "LABELS": {"labels", "refined labels", "prompts", *OF_A_MODEL, "study", "trial"},
    "PROMPTS": {"prompts", "prompts without parts", *OF_A_MODEL, "model without parts"},
    "BUNDLE": {*OF_A_MODEL, "model without parts"},
    "FEATURES": {"features", "features of CLIP", "metrics", "calibrated model"},
    "CALIBRATION": {"calibrated model"},
    "METRICS": {"metrics"},
    "DOMAIN_MAP": {"domain map"},
    "STUDY": {"study", "trial"},
    "TRIAL": {"trial"},
}
"""Format version -> the steps whose artifacts it is part of, directly or through an input."""


class _DeclaredError(Exception):
    """Raised with the step in place of computing it."""


@pytest.fixture
def config() -> ExperimentConfig:
    overrides = ("sources=[town, city]", "targets=[village]", "validation={identities: 0.4}")
    return load_recipe("demo", overrides=overrides)


@pytest.fixture
def declared(
    config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Artifact]]:
    """Declares one step of each kind, on data sets of the same content each time.

    It takes overrides of the settings.
    """

    def refuse(step: Step, **_: object) -> None:
        raise _DeclaredError(step)

    def nothing(*_: object) -> None:
        """Features are embedded before the metrics are made from them."""

    for module in (domain_map, evaluate):
        monkeypatch.setattr(module, "run_step", refuse)
    monkeypatch.setattr(evaluate, "embed", nothing)

    def declare(*overrides: str) -> dict[str, Artifact]:
        folder = tmp_path / f"formats-{len(list(tmp_path.iterdir()))}"
        session = Session(home=folder, store=open_store(folder), tracking_uri=None)
        town, city = (dataset(folder, name, [1, 2, 3]).artifact for name in config.sources)
        village = dataset(folder, "village", [1, 2, 3], split="query").artifact
        changed = with_overrides(config, overrides, where="test")
        return _artifacts(session, changed, town, city, village)

    return declare


def _artifacts(
    session: Session, config: ExperimentConfig, town: Artifact, city: Artifact, village: Artifact
) -> dict[str, Artifact]:
    """Where the results of a step of each kind would be."""
    assert config.grounding is not None and config.tune is not None
    expert = choose_expert(config.grounding)
    sources = [town, city]
    grounded = [labels_step(session, one, config.grounding, expert) for one in sources]
    labels = [step.artifact for step in grounded]
    trained = declare_training(session, config, sources=sources, labels=labels, name="parts")
    without_parts = config.model_copy(
        update={"model": config.model.model_copy(update={"parts": ()}), "grounding": None}
    )
    plain = declare_training(session, without_parts, sources=sources, labels=None, name="plain")
    model, clip = trained.encoder.artifact.uri, UNTRAINED + config.model.clip
    images = EvaluationSet(dataset=village, held_out=False)
    search = check_search(config)
    study = study_of(
        session.store,
        config,
        search.settings,
        search.space,
        objectives=search.objectives,
        inputs={Role.SOURCE: sources, Role.LABELS: labels},
    )

    def mapped() -> None:
        domain_map.map_of_domains(session, {"parts": model}, [town], config.model, name="parts")

    def evaluated() -> None:
        evaluate.evaluate_on(session, model, village, config, name="parts")

    features = features_step(session, model, images, config.model, name="parts")
    steps = {
        "data set": synthetic_step(session, "syn-station", config.synthetic),
        "data set without a person": without_step(session, open_dataset(town), [1]),
        "labels": grounded[0],
        "refined labels": refine_step(session, town, labels[0], ["drop-tiny"]),
        "prompts": trained.prompts,
        "prompts without parts": plain.prompts,
        "model": trained.encoder,
        "chosen model": chosen_step(trained.encoder),
        "model without parts": plain.encoder,
        "features": features,
        "features of CLIP": features_step(session, clip, images, config.model, name="clip"),
        "metrics": _declared_by(evaluated),
        "calibrated model": calibration_step(
            session, trained.encoder.artifact, [features.artifact], on=["village"], name="sure"
        ),
        "domain map": _declared_by(mapped),
    }
    trial = study.trial({"stage2.mask_loss": "mse"})
    artifacts = {name: step.artifact for name, step in steps.items()}
    return {**artifacts, "study": study.artifact, "trial": trial}


def _declared_by(computes: Callable[[], object]) -> Step:
    with pytest.raises(_DeclaredError) as declared:
        computes()
    return declared.value.args[0]


def test_declaring_the_same_steps_again_gives_the_same_addresses(
    declared: Callable[[], dict[str, Artifact]],
) -> None:
    first, again = declared(), declared()
    assert _addresses(first) == _addresses(again)
    assert len(set(_addresses(first).values())) == len(first), "no two steps share an artifact"
    for artifact in first.values():
        assert artifact.manifest() is None, "nothing was computed"


def test_every_format_version_is_tried() -> None:
    versions = {name for name, value in vars(formats).items() if isinstance(value, int)}
    assert versions == DEPENDS_ON.keys()


@pytest.mark.parametrize("version", DEPENDS_ON)
def test_a_new_format_version_gives_new_addresses_to_what_depends_on_it_alone(
    version: str,
    declared: Callable[[], dict[str, Artifact]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = _addresses(declared())
    monkeypatch.setattr(formats, version, getattr(formats, version) + 1)
    after = _addresses(declared())
    assert {name for name, address in after.items() if address != before[name]} == (
        DEPENDS_ON[version]
    )


def test_other_weights_of_a_shipped_clip_give_new_addresses_to_what_is_made_from_it(
    declared: Callable[..., dict[str, Artifact]], monkeypatch: pytest.MonkeyPatch
) -> None:
    small, searched = ["model.clip=small"], ["tune.space={model.clip: [tiny, small]}"]
    before, other = _addresses(declared()), _addresses(declared(*small))
    study = declared(*small, *searched)["study"].address
    monkeypatch.setitem(CLIP_EDITIONS, "tiny", CLIP_EDITIONS["tiny"] + 1)
    after = _addresses(declared())
    assert {name for name, address in after.items() if address != before[name]} == {
        *DEPENDS_ON["PROMPTS"], "features of CLIP", "study", "trial"
    }  # fmt: skip
    assert _addresses(declared(*small)) == other
    assert declared(*small, *searched)["study"].address != study


SWITCHES = {"pad": 4, "gamma": 1.5, "cast": 0.1}


@pytest.mark.parametrize("setting", STRENGTHS)
def test_augmentation_gives_new_addresses_to_stage_2_and_what_follows(
    setting: str, declared: Callable[..., dict[str, Artifact]]
) -> None:
    before = _addresses(declared())
    after = _addresses(declared(f"augmentation.{setting}={SWITCHES.get(setting, 0.5)}"))
    assert {name for name, address in after.items() if address != before[name]} == {
        *OF_A_MODEL, "model without parts", "study", "trial"
    }  # fmt: skip


def test_addresses_are_those_from_before_augmentation_existed_while_it_is_off(
    declared: Callable[..., dict[str, Artifact]], config: ExperimentConfig
) -> None:
    off = _addresses(declared())
    # What an augmentation that is off would do changes nothing.
    assert _addresses(declared("augmentation={jpeg_quality: [1, 2], hue: 0.5}")) == off
    assert "augmentation" not in config.result_settings()
    on = with_overrides(config, ["augmentation={jpeg: 0.5, pad: 0}"], where="test")
    assert on.result_settings()["augmentation"] == {"jpeg": 0.5, "jpeg_quality": [30, 90]}
    assert {k: v for k, v in on.result_settings().items() if k != "augmentation"} == (
        config.result_settings()
    )


def test_the_part_tokens_factor_is_part_of_addresses_only_where_it_has_an_effect(
    declared: Callable[..., dict[str, Artifact]], config: ExperimentConfig
) -> None:
    assert config.stage2.part_token_lr_factor != 1
    before, after = _addresses(declared()), _addresses(declared("stage2.part_token_lr_factor=1"))
    assert {name for name, address in after.items() if address != before[name]} == {
        *OF_A_MODEL, "model without parts", "study", "trial"
    }  # fmt: skip
    assert "part_token_lr_factor" not in Stage2Config().result_settings()


def _addresses(artifacts: dict[str, Artifact]) -> dict[str, str]:
    return {name: artifact.address for name, artifact in artifacts.items()}
