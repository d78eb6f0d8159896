"""Time and memory for a row of the paper's tables: `python -m benchmarks.paper --row "MA->D"`.

Prints the commands from the archives to the results of the row, the work (images from the published
counts, epochs from the recipe), and the hours that follow from images per second. These rates are
measured here, on a ViT-B/16 with random weights and noise, because the values of weights do not
affect speed, or come from the JSON of `benchmarks.large`, run on the intended device: hours are
never extrapolated from one device to another. `--row all` prints a line for each row of all
protocols.
"""

from __future__ import annotations

import difflib
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.baseline import Table, benchmark_parser, write_results
from benchmarks.openai_files import VIT_B_16, Sizes, openai_state_dict, random_clip
from benchmarks.phases import PHASE_TITLES, PHASES, NoiseImages, best_device, device_name, learn
from muva.config import ExperimentConfig, load_recipe, with_settings
from muva.data.benchmarks import BENCHMARKS
from muva.errors import MuvaError, SettingsError
from muva.grounding.experts import EXPERTS
from muva.model.clip import build_clip
from muva.model.muva_model import MuvaModel, build_model
from muva.model.precision import resolve_precision
from muva.paper import PROTOCOLS, Row, published_for, rows, short_names
from muva.training.optimisers import trained_parameters

BATCHES = (16, 32)
"""Batch sizes at which memory is measured, to be extrapolated to the recipe's."""
IDENTITIES, EACH = 16, 8
"""Identities of the noise that is trained on."""
FLOAT_BYTES = 4
GROUNDING = "grounding"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Memory that a model needs in stage 2 independently of the batch, in 10^6 bytes."""

    weights_mb: float
    gradients_and_adam_mb: float
    identities: int
    """Of this model; included in the sums."""
    identity_mb: float
    """Per identity: contexts, a classifier row with gradient and moments, prototype, centroid."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """A device's speed in each phase, and its memory in stage 2 at some batch sizes."""

    device: str
    precision: str
    per_s: Mapping[str, float]
    """Phase -> images per second, for `prompts` identities."""
    peak_mb: Mapping[int, float]
    """Batch size -> peak memory during the steps, on a GPU that of the GPU."""
    weights: Weights | None = None
    """None if the rates come from a file."""


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A training and one of its targets, as in the paper's tables."""

    name: str
    row: Row
    recipe: str

    @property
    def target(self) -> str:
        """The target."""
        return self.row.targets[0]


@dataclass(frozen=True, kw_only=True)
class Share:
    """A phase of a row: the amount of work and the time for it."""

    phase: str
    work: int | None
    """Images or identities; None if their number has not been published."""
    per_s: float | None

    @property
    def hours(self) -> float | None:
        """None if work or rate is unknown."""
        return self.work / self.per_s / 3600 if self.work is not None and self.per_s else None


def main() -> int:
    """Print one row, or all of them."""
    parser = benchmark_parser("paper", __doc__)
    parser.add_argument("--row", required=True, help='"MA->D", "MS+D+C3->MA", or all')
    parser.add_argument("--rates", type=Path, help="JSON of benchmarks.large [measured here]")
    parser.add_argument("--expert", default="florence-2", choices=[*EXPERTS], help="for the boxes")
    parser.add_argument("--grounding-rate", type=float, help="images per second of that expert")
    parser.add_argument(
        "--images", action="append", default=[], metavar="NAME=COUNT",
        help="training images of a data set whose number nobody has published",
    )  # fmt: skip
    arguments = parser.parse_args()
    try:
        chosen = list(every_row()) if arguments.row == "all" else [find_row(arguments.row)]
        given = _counts_given(arguments.images)
        by_recipe: dict[str, Rates] = {}
        facts = []
        for one in chosen:
            if one.recipe not in by_recipe:
                by_recipe[one.recipe] = (
                    read_rates(arguments.rates) if arguments.rates else measured_rates(one.recipe)
                )
            facts.append(
                described(
                    one,
                    by_recipe[one.recipe],
                    expert=arguments.expert,
                    grounding_rate=arguments.grounding_rate,
                    images=given,
                )
            )
    except MuvaError as mistake:
        print(f"Error: {mistake}", file=sys.stderr)
        return 2 if isinstance(mistake, SettingsError) else 1
    print(overview(facts) if arguments.row == "all" else as_text(facts[0]))
    write_results(arguments, facts, baseline_tables)
    return 0


def every_row() -> Iterator[PaperRow]:
    """All rows of all protocols, with one target each, by their names in the paper's tables."""
    for protocol in PROTOCOLS:
        for row in rows(protocol):
            for target in row.targets:
                sources = "+".join(map(_short, row.sources))
                yield PaperRow(
                    name=f"{protocol if protocol == 'classical' else sources}->{_short(target)}",
                    row=Row(protocol=protocol, sources=row.sources, targets=(target,)),
                    recipe="msmt17" if row.sources == ("msmt17",) else "base",
                )


def find_row(name: str) -> PaperRow:
    """The row with that name; sources in any order, abbreviated or in full.

    Raises SettingsError for an unknown one, with the closest.
    """
    known = {_key(one.name): one for one in every_row()}
    known |= {_key(f"{'+'.join(one.row.sources)}->{one.target}"): one for one in every_row()}
    if _key(name) in known:
        return known[_key(name)]
    names = [one.name for one in every_row()]
    by_case = {one.upper(): one for one in names}
    close = difflib.get_close_matches(name.upper().replace(" ", ""), by_case, n=4, cutoff=0.3)
    raise SettingsError(
        f"row {name!r} is none of the paper's; closest: "
        f"{', '.join(by_case[one] for one in close) or ', '.join(names)}. --row all lists them"
    )


def commands(one: PaperRow, *, expert: str) -> list[str]:
    """The commands from the archives to the row, compared with the published one."""
    row = one.row
    choice = []
    if row.protocol in ("single-source", "same-domain"):
        choice += ["--source", row.sources[0]]
    if row.protocol != "same-domain":
        choice += ["--target", one.target]
    run = ["muva", "run", row.protocol, *choice, "--recipe", one.recipe]
    there = dict.fromkeys((*row.sources, one.target))
    return [
        *(
            shlex.join(["muva", "data", "import", name, "--from", f"ARCHIVES/{name}"])
            for name in there
        ),
        *(shlex.join(["muva", "ground", name, "--expert", expert]) for name in row.sources),
        shlex.join([*run, "--set", f"grounding.expert={expert}"]),
        *([] if row.protocol == "classical" else [shlex.join(["muva", "compare", row.protocol])]),
    ]


def work_of(one: PaperRow, *, images: Mapping[str, int]) -> dict[str, int | None]:
    """The work of each phase: identities for `prompts`, images for the others.

    Boxes are predicted in all images of a source, also in those used only for testing. A P x K
    epoch shows about as many images as there are: what an identity has beyond a multiple of K is
    left out, and one with fewer than K shows some twice. `images` are counts for data sets that
    have no published one.
    """
    config = load_recipe(one.recipe)
    learned, grounded = (
        _total([images.get(name, _images(name, everyone)) for name in one.row.sources])
        for everyone in (one.row.protocol == "classical", True)
    )
    counts = BENCHMARKS[one.target].counts
    embedded = _total([counts[split].images for split in ("query", "gallery")])
    return phase_work(config, grounded=grounded, learned=learned, embedded=embedded)


def phase_work(
    config: ExperimentConfig, *, grounded: int | None, learned: int | None, embedded: int | None
) -> dict[str, int | None]:
    """The work of each phase of a recipe for so many images, see `work_of`."""
    return {
        GROUNDING: grounded,
        "features": learned,
        "prompts": None
        if learned is None
        else config.stage1.epochs * (learned // config.stage1.images_per_identity),
        "memory": None if learned is None else config.stage2.epochs * learned,
        "steps": None if learned is None else config.stage2.epochs * learned,
        "embedding": embedded,
    }


def baseline_tables(facts: list[dict[str, Any]]) -> dict[str, Table]:
    """`hours`: work, rate and hours of each phase of each row."""
    rows = [
        {"row": row["row"], "phase": PHASE_TITLES.get(phase, phase)}
        | {key: value for key, value in of.items() if value is not None}
        for row in facts
        for phase, of in row["phases"].items()
    ]
    return {"hours": Table(rows=rows)}


def described(
    one: PaperRow,
    rates: Rates,
    *,
    expert: str,
    grounding_rate: float | None = None,
    images: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """A row as plain data: commands, work, hours by phase and in total, memory."""
    config = load_recipe(one.recipe)
    per_s = {GROUNDING: grounding_rate, **rates.per_s}
    shares = [
        Share(phase=phase, work=work, per_s=per_s[phase])
        for phase, work in work_of(one, images=images or {}).items()
    ]
    trained = [share.hours for share in shares if share.phase != GROUNDING]
    paper = [p for p in published_for(one.row.sources, one.target) if p.method == "MUVA"]
    return {
        "row": one.name,
        "protocol": one.row.protocol,
        "sources": list(one.row.sources),
        "target": one.target,
        "recipe": one.recipe,
        "published": [{"mean_ap": p.mean_ap, "rank1": p.rank1} for p in paper],
        "commands": commands(one, expert=expert),
        "device": rates.device,
        "precision": rates.precision,
        "phases": {
            share.phase: {"work": share.work, "per_s": share.per_s, "hours": share.hours}
            for share in shares
        },
        "hours": None if None in trained else sum(hours or 0 for hours in trained),
        "memory": memory_at(rates, config.stage2.batch_size, identities=_identities(one.row)),
    }


def memory_at(rates: Rates, batch: int, *, identities: int) -> dict[str, Any] | None:
    """Peak memory of stage 2 at a batch size: measured, or linearly extrapolated from two others.

    Extrapolated figures are of the row's identities, measured ones of whom was learned from.
    """
    peaks = rates.peak_mb
    if batch in peaks:
        return {"batch": batch, "mb": peaks[batch], "measured_at": [batch]}
    if len(peaks) < 2 or rates.weights is None:
        return None
    small, large = min(peaks), max(peaks)
    each = (peaks[large] - peaks[small]) / (large - small)
    kept = rates.weights
    more = (identities - kept.identities) * kept.identity_mb
    return {
        "batch": batch,
        "mb": peaks[small] + each * (batch - small) + more,
        "each_image_mb": each,
        "weights_mb": kept.weights_mb,
        "gradients_and_adam_mb": kept.gradients_and_adam_mb,
        "measured_at": [small, large],
    }


def weights_of(model: MuvaModel) -> Weights:
    """Memory that a model needs in stage 2 independently of the batch."""
    learning = sum(parameter.numel() for parameter in trained_parameters(model).values())
    weights = sum(parameter.numel() for parameter in model.parameters())
    of_identity = model.contexts[0].numel() + (4 + 2) * model.feature_dim
    return Weights(
        weights_mb=weights * FLOAT_BYTES / 1e6,
        gradients_and_adam_mb=3 * learning * FLOAT_BYTES / 1e6,
        identities=model.identities,
        identity_mb=of_identity * FLOAT_BYTES / 1e6,
    )


def read_rates(path: Path) -> Rates:
    """The rates in a JSON file of `benchmarks.large`. Raises MuvaError for any other file."""
    try:
        figures = json.loads(path.read_text())
        phases = {name: figures["phases"][name] for name in PHASES}
        steps = phases["steps"]
        peak = steps["gpu_peak_mb"] if steps["gpu_peak_mb"] is not None else steps["peak_mb"]
        return Rates(
            device=figures["device"],
            precision=figures["precision"],
            per_s={name: float(phase["per_s"]) for name, phase in phases.items()},
            peak_mb={int(figures["batch"]): float(peak)},
        )
    except (OSError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise MuvaError(
            f"{path}: expected the JSON of `python -m benchmarks.large --json FILE` ({error!r})"
        ) from error


def measured_rates(
    recipe: str,
    *,
    sizes: Sizes = VIT_B_16,
    overrides: Sequence[str] = (),
    batches: Sequence[int] = BATCHES,
) -> Rates:
    """Measure this device's rates with a recipe's settings, at the larger of the batch sizes."""
    device = best_device()
    peaks: dict[int, float] = {}
    per_s: dict[str, float] = {}
    precision = ""
    weights = None
    for batch in sorted(batches):
        config = with_settings(
            load_recipe(recipe, overrides=overrides),
            {f"{stage}.{key}": value
             for stage in ("stage1", "stage2")
             for key, value in (("batch_size", batch), ("epochs", 1))},
            where=recipe,
        )  # fmt: skip
        precision = resolve_precision(config.stage2.precision, device)
        stage = _noise(config, sizes)
        weights = weights or weights_of(stage()[0])
        size = (config.model.image_height, config.model.image_width, 3)
        pictures = [np.full(size, at, np.uint8) for at in range(3 * batch)]
        with tempfile.TemporaryDirectory(prefix="muva-paper-") as folder:
            learned = learn(
                {"stage1": stage, "stage2": stage},
                config,
                device=device,
                pictures=pictures,
                folder=Path(folder),
            )
        steps = learned.phases["steps"]
        peaks[batch] = steps.peak_mb if steps.gpu_peak_mb is None else steps.gpu_peak_mb
        per_s = {name: phase.per_s for name, phase in learned.phases.items()}
    return Rates(
        device=device_name(device), precision=precision, per_s=per_s, peak_mb=peaks, weights=weights
    )


def _noise(config: ExperimentConfig, sizes: Sizes) -> Callable[[], tuple[MuvaModel, NoiseImages]]:
    """A new model with random weights for a stage, and noise to train on."""

    def open_stage() -> tuple[MuvaModel, NoiseImages]:
        clip = build_clip(
            openai_state_dict(random_clip(sizes), sizes),
            image_size=(config.model.image_height, config.model.image_width),
            stride=config.model.stride,
        )
        model = build_model(
            clip,
            model=config.model,
            prompts=config.prompts,
            identities=IDENTITIES,
            seed=config.seed,
        )
        images = NoiseImages(config, identities=IDENTITIES, each=EACH, grid=model.grid)
        return model, images

    return open_stage


def as_text(facts: Mapping[str, Any]) -> str:
    """A row as text: commands, then a table, then memory."""
    lines = [
        f"{facts['row']}: {facts['protocol']}, {' + '.join(facts['sources'])} -> {facts['target']}"
    ]
    for paper in facts["published"]:
        figures = [
            f"{name} {100 * paper[key]:.1f}"
            for name, key in (("mAP", "mean_ap"), ("rank-1", "rank1"))
            if paper[key] is not None
        ]
        lines.append(f"published: {', '.join(figures)}")
    lines += ["", *facts["commands"], "", f"On {facts['device']}, {facts['precision']}:", ""]
    lines += ["| phase | work | per second | hours |", "|---|---:|---:|---:|"]
    for phase, share in facts["phases"].items():
        unit = "identities" if phase == "prompts" else "images"
        work = "?" if share["work"] is None else f"{share['work']} {unit}"
        rate = "?" if share["per_s"] is None else f"{share['per_s']:.1f}"
        lines.append(f"| {phase} | {work} | {rate} | {_hours(share['hours'])} |")
    lines.append(f"| all but grounding | | | {_hours(facts['hours'])} |")
    unknown = [
        name for name in facts["sources"] if _images(name, facts["protocol"] == "classical") is None
    ]
    if facts["phases"]["features"]["work"] is None:
        lines.append(
            f"\nNobody has published how many images {', '.join(unknown)} has: --images NAME=COUNT"
        )
    if facts["protocol"] == "classical":
        lines.append(
            "\nJunk images and distractors, which are not trained on, are counted as images too."
        )
    lines.append(f"\n{_memory(facts)}")
    return "\n".join(lines)


def overview(facts: Sequence[Mapping[str, Any]]) -> str:
    """All rows as text, one line each."""
    devices = sorted({f"{one['device']}, {one['precision']}" for one in facts})
    lines = [
        f"Hours on {'; '.join(devices)}, grounding left out",
        "",
        "| row | protocol | recipe | images | stage 1 | stage 2 | embedding | all |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for one in facts:
        phases = one["phases"]
        hours = {name: phases[name]["hours"] for name in PHASES}
        cells = [_sum(hours, "features", "prompts"), _sum(hours, "memory", "steps"),
                 hours["embedding"], one["hours"]]  # fmt: skip
        images = phases["features"]["work"]
        lines.append(
            f"| {one['row']} | {one['protocol']} | {one['recipe']} "
            f"| {'?' if images is None else images} | {' | '.join(map(_hours, cells))} |"
        )
    return "\n".join(lines)


def _memory(facts: Mapping[str, Any]) -> str:
    memory = facts["memory"]
    if memory is None:
        return "Memory at the recipe's batch was not measured."
    summary = (
        f"Stage 2 takes {memory['mb']:.0f} MB at its batch of {memory['batch']} on this device"
    )
    at = memory["measured_at"]
    if len(at) == 1:
        return f"{summary}, measured."
    return (
        f"{summary}: linearly extrapolated from measurements at {at[0]} and {at[1]}, "
        f"{memory['each_image_mb']:.1f} MB an image. Weights take {memory['weights_mb']:.0f}, "
        f"gradients and Adam {memory['gradients_and_adam_mb']:.0f}."
    )


def _hours(hours: float | None) -> str:
    return "?" if hours is None else f"{hours:.2f}"


def _sum(hours: Mapping[str, float | None], *names: str) -> float | None:
    found = [hours[name] for name in names]
    return None if None in found else sum(one or 0 for one in found)


def _images(name: str, everyone: bool) -> int | None:
    """The number of training images; None if it has not been published."""
    counts = BENCHMARKS[name].counts
    return _total([counts[split].images for split in counts if everyone or split == "train"])


def _identities(row: Row) -> int:
    """The number of training identities of a row."""
    splits = ("train", "gallery") if row.protocol == "classical" else ("train",)
    counts = [BENCHMARKS[name].counts for name in row.sources]
    return sum(one[split].identities for one in counts for split in splits if split in one)


def _total(counts: Sequence[int | None]) -> int | None:
    """The sum; None if a term is unknown."""
    return None if None in counts else sum(count or 0 for count in counts)


def _counts_given(images: Sequence[str]) -> dict[str, int]:
    given = {}
    for one in images:
        name, _, count = one.partition("=")
        if name not in BENCHMARKS or not count.isdigit():
            raise SettingsError(
                f"--images {one}: expected NAME=COUNT, a public data set's name and a number"
            )
        given[name] = int(count)
    return given


def _short(name: str) -> str:
    return short_names().get(name, name)


def _key(name: str) -> tuple[tuple[str, ...], str]:
    """A row's name normalised for case, spaces, order and abbreviations."""
    sources, _, target = name.replace("→", "->").partition("->")
    whole = {short.lower(): full for full, short in short_names().items()}
    parts = [part.strip().lower() for part in (*sources.split("+"), target)]
    *named, aim = [whole.get(part, part) for part in parts]
    return tuple(sorted(named)), aim


if __name__ == "__main__":
    sys.exit(main())
