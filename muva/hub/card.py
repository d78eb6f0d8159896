"""The card of a model: its README on the hub or in a folder, with the metadata of the hub's pages.

It says what a bundle's description knows, and nothing that depends on when or where it was written:
the same bundle gives the same card. https://huggingface.co/docs/hub/model-cards has the keys.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import yaml

from muva.config import SHIPPED_CLIPS
from muva.data.benchmarks import BENCHMARKS
from muva.data.benchmarks.listing import some
from muva.hub.address import is_hub_uri
from muva.model.bundle_description import CALIBRATION, trained_people
from muva.synthetic import is_synthetic

CARD = "README.md"
Results = Mapping[str, Mapping[str, float]]
"""Target -> scores under MLflow's names, `mAP`, `rank-1`, …, as fractions."""

TAGS = (
    "person-reidentification",
    "domain-generalization",
    "image-retrieval",
    "clip",
    "safetensors",
)
PIPELINE = "image-feature-extraction"
_SHOWN = ("rank-1", "mAP", "mINP")
_MARK = re.compile(r"<!-- muva models push: (?P<sha256>[0-9a-f]{64}) -->\n\Z")
_LIMITS = """\
## Limits

The model compares the appearance of people, mostly of their clothes: it confuses people who are
dressed alike, and does not recognise a person in other clothes. Results on other cameras than those
that it was evaluated on may differ; measure them on images of your own before you rely on it."""
_RENDERED_LIMITS = """
It has never seen a photograph: how well it recognises real people has to be measured."""
_MUST_NOT = """\
## What it must not be used for

- **Identifying people**, or deciding anything about one: whether to stop, admit, charge, hire or
  watch a person. A high similarity is no evidence of identity.
- **Following people without a legal basis.** Features of a person are personal data, as is the
  image that they are made from, and many laws (in the EU, the GDPR and the AI Act) restrict or
  forbid recognising people at a distance.
- **Guessing attributes** such as origin, religion, health or emotion from the features."""


def model_card(
    description: Mapping[str, Any],
    address: str,
    *,
    licence: str | None = None,
    results: Results | None = None,
) -> str:
    """The README of a repository or folder that holds a bundle with this description.

    Args:
        address: what opens the model: `hf://ORG/NAME`, `./FOLDER`, or the name of a shipped one.
        licence: that of the weights, by its identifier on the hub, such as `apache-2.0`; None: the
            card says that none is stated.
        results: scores to show; the hub's page shows them too.
    """
    name = address.rpartition("/")[2]
    sections = [
        f"# {name}\n\n{_summary(description)}",
        _use(address),
        _model(description["model"], description["feature_dim"]),
        _training(description),
        _results(results or {}),
        _calibration(description["metadata"].get(CALIBRATION)),
        _licence(licence, _sources(description["metadata"])),
        _LIMITS + (_RENDERED_LIMITS if _all_rendered(description) else ""),
        _MUST_NOT,
    ]
    body = "\n\n".join(section for section in sections if section)
    metadata = _metadata(description, name, licence=licence, results=results or {})
    stored = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    text = f"---\n{stored}---\n\n{body}\n\n"
    return f"{text}<!-- muva models push: {hashlib.sha256(text.encode()).hexdigest()} -->\n"


def is_unedited(card: str) -> bool:
    """Whether `model_card` wrote this text and nobody has changed it since."""
    mark = _MARK.search(card)
    if mark is None:
        return False
    return hashlib.sha256(card[: mark.start()].encode()).hexdigest() == mark["sha256"]


def _metadata(
    description: Mapping[str, Any], name: str, *, licence: str | None, results: Results
) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        **({"license": licence} if licence else {}),
        "library_name": "muva",
        "pipeline_tag": PIPELINE,
        "tags": list(TAGS),
    }
    if sources := _sources(description["metadata"]):
        metadata["datasets"] = list(sources)
    if results:
        metadata["metrics"] = sorted({metric for scores in results.values() for metric in scores})
        metadata["model-index"] = [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": PIPELINE, "name": "Person re-identification"},
                        "dataset": {"type": target, "name": target},
                        "metrics": [
                            {"type": metric, "name": metric, "value": round(value, 4)}
                            for metric, value in scores.items()
                        ],
                    }
                    for target, scores in results.items()
                ],
            }
        ]
    return metadata


def _summary(description: Mapping[str, Any]) -> str:
    parts = [part.replace("_", " ") for part in description["model"]["parts"]]
    named = " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
    attention = f" It attends to the whole person and to {named}." if parts else ""
    return (
        "A model for person re-identification across cameras. It maps an image of a person to "
        f"{description['feature_dim']} numbers of unit length; the cosine similarity of two images "
        f"is high if they show the same person.{attention}"
    )


def _use(address: str) -> str:
    pinned = ""
    if is_hub_uri(address):
        pinned = f"`{address}@REVISION` pins a branch, a tag or a commit. "
    return f"""\
## Use

```python
import muva

features = muva.load("{address}").embed(["a.jpg", "b.jpg"])
```

{pinned}On the command line: `muva embed FOLDER --model {address} --out features.parquet`."""


def _model(settings: Mapping[str, Any], feature_dim: int) -> str:
    rows = {
        "input": f"{settings['image_height']} x {settings['image_width']} pixels (height x width)",
        "mean, std": f"{_numbers(settings['mean'])}; {_numbers(settings['std'])}",
        "initialised from CLIP": PurePath(settings["clip"]).name,
        "parts": ", ".join(settings["parts"]) or "none",
        "feature": f"{feature_dim} numbers",
    }
    return "## Model\n\n" + _table(
        ("setting", "value"), [(key, f"{value}") for key, value in rows.items()]
    )


def _training(description: Mapping[str, Any]) -> str:
    metadata = description["metadata"]
    sources, imported = _sources(metadata), metadata.get("imported")
    lines = []
    if sources:
        people = trained_people(description)
        count = f" with {people:,} people" if people else ""
        lines.append(f"Trained on {', '.join(sources)}{count}.")
    if start := metadata.get("init"):
        lines.append(f"The training started from the model {start}.")
    if _all_rendered(description):
        lines.append(
            "All of these people are rendered by a program: no image of a real person was used, "
            "and there is nobody whose consent or rights the weights depend on."
        )
    if imported:
        lines.append(
            f"Imported from `{imported['file']}` ({imported['form']}, SHA-256 "
            f"{imported['sha256'][:16]}…), which another program wrote."
        )
    if epoch := metadata.get("epoch"):
        lines.append(f"The weights are those after epoch {epoch}.")
    lines.append("`bundle.json` has all settings and the SHA-256 of the weights.")
    return "## Training\n\n" + "\n".join(lines)


def _results(results: Results) -> str:
    if not results:
        return ""
    shown = [metric for metric in _SHOWN if any(metric in one for one in results.values())]
    rows = [
        (target, *(f"{100 * scores[key]:.1f}" if key in scores else "" for key in shown))
        for target, scores in results.items()
    ]
    return "## Results\n\nIn per cent.\n\n" + _table(("target", *shown), rows)


def _calibration(stored: Mapping[str, Any] | None) -> str:
    if stored is None:
        return ""
    rows = [
        (f"{100 * float(rate):g} %", f"{threshold:.3f}", f"{100 * stored['accepted'][rate]:.1f} %")
        for rate, threshold in stored["thresholds"].items()
    ]
    return (
        "## Same person?\n\nOf pairs of different people, the share under FAR has a higher cosine "
        "than the threshold, and of pairs of the same person that under TAR: on "
        f"{stored['people']:,} people of {some(stored['datasets'])} whom the model was not "
        "trained on. In other camera networks, the shares are different.\n\n"
        + _table(("FAR", "threshold", "TAR"), rows)
    )


def _licence(licence: str | None, sources: Sequence[str]) -> str:
    lines = ["## Licence", ""]
    lines.append(
        f"Of these weights: {licence}."
        if licence
        else "None was stated for these weights when they were pushed."
    )
    terms = [(name, BENCHMARKS[name].licence) for name in sources if name in BENCHMARKS]
    if terms:
        lines += ["The data sets have terms of their own, which may extend to the weights:", ""]
        lines.append(_table(("data set", "licence"), terms))
    return "\n".join(lines)


def _all_rendered(description: Mapping[str, Any]) -> bool:
    """Whether no photograph was used, neither by this training nor by what it started from."""
    sources = _sources(description["metadata"])
    from_photographs = (
        description["model"]["clip"] not in SHIPPED_CLIPS or "init" in description["metadata"]
    )
    return bool(sources) and all(map(is_synthetic, sources)) and not from_photographs


def _sources(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(metadata.get("source_names", ()))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines
    )


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
