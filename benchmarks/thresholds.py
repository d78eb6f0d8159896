"""Do thresholds transfer to unseen camera networks?: `python -m benchmarks.thresholds`.

Takes the MUVA models that `benchmarks.generalisation` left in a store, each with the domain that it
was not trained on. Thresholds for a false-accept rate are learned from people of the sources whom
the model has not seen, in several ways, and applied to the target: what rate do they deliver there,
and how many genuine pairs do they accept? With `--model`, a calibrated model's own thresholds are
applied to all named domains instead. `--check` exits with 1 where the threshold that `muva
calibrate` stores delivers more than three times, or less than a third of, the 1 % that it promised.

The other ways: the threshold of the strictest source; and the scores of speaker verification that
are normalised by a cohort, here the training images of the sources. S-norm takes each image's mean
and deviation over the cohort (Kenny, Odyssey 2010), AS-norm those over its nearest images in the
cohort (Matejka et al., Interspeech 2017). A source can be left out of its own cohort, so that it
is as foreign to it as the target. With the gallery as cohort, no identities of the target are
needed, but its images: that row is no prediction for an unseen domain.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from benchmarks.baseline import (
    Row,
    Table,
    benchmark_parser,
    exit_code,
    mean_of,
    measurement,
    write_results,
)
from benchmarks.part_accuracy import BATCH, muva_models, targets_of
from muva.data.artifacts import Artifact, find_artifact
from muva.data.shards import open_dataset
from muva.data.store import Store
from muva.model.bundle import Bundle
from muva.model.bundle_description import CALIBRATION
from muva.models import load
from muva.pretraining.clip import unseen
from muva.retrieval.calibration import Calibration
from muva.retrieval.calibration_fit import Pairs, thresholds_of
from muva.retrieval.camera_rule import CameraRule, checked_rule
from muva.synthetic import DOMAINS
from workflows.session import open_session

RATES = (1e-2, 1e-3)
PROMISED, MOST_TIMES = 1e-2, 3.0
"""The rate and the factor of the goal."""
NEAREST = 200
"""Images of the cohort that AS-norm looks at."""
OURS = "one threshold (`muva calibrate`)"
AFTERWARDS = "a threshold of the target itself"

Figures = dict[str, dict[str, dict[str, list[float]]]]
"""Target -> method -> `far/RATE` and `tar/RATE` of each model, as fractions."""


@dataclass(frozen=True, kw_only=True)
class Domain:
    """The features of a data set, and which pairs of query and gallery images count."""

    query: np.ndarray
    gallery: np.ndarray
    train: np.ndarray
    genuine: np.ndarray
    """(queries, gallery) bool."""
    impostors: np.ndarray

    def pairs(self, scores: np.ndarray) -> Pairs:
        """The pairs as a calibration takes them, with these scores."""
        query_of = np.broadcast_to(np.arange(len(scores))[:, None], scores.shape)
        return Pairs(
            genuine=scores[self.genuine],
            genuine_pids=query_of[self.genuine],
            impostors=scores[self.impostors],
            impostor_pids=query_of[self.impostors],
        )


def main() -> int:
    """Print a table; with --check, exit with 1 where our thresholds do not transfer."""
    parser = benchmark_parser(
        "thresholds", __doc__, check="exit 1 where a promise is missed by more than a factor of 3"
    )
    parser.add_argument("--home", default="runs", help="where benchmarks.generalisation ran")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", help="a calibrated model instead, as `muva.load` opens it")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.model:
        kept = promises_of(arguments.model)
        print_table(kept)
        write_results(arguments, kept, partial(baseline_tables, name=arguments.model))
        return exit_code(arguments, broken_promises(kept))
    store = open_session(home=arguments.home).store
    found: Figures = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for artifact in muva_models(store):
        bundle = load(artifact.uri)
        for target in targets_of(bundle):
            for method, figures in delivered(store, bundle, target).items():
                for name, value in figures.items():
                    found[target][method][name].append(value)
            print(f"{artifact.address} on {target}: done", file=sys.stderr)
    if not found:
        print("no model of benchmarks.generalisation there; run it first", file=sys.stderr)
        return 1
    print_table(found)
    write_results(arguments, found, baseline_tables)
    return exit_code(arguments, broken_promises(found))


def promises_of(model: str) -> Figures:
    """The same of a model's stored thresholds, on the test people of all named domains."""
    bundle = load(model)
    promised = Calibration.from_json(bundle.metadata[CALIBRATION]).thresholds
    found: Figures = {}
    for domain in DOMAINS:
        result = unseen(
            lambda images: torch.from_numpy(bundle.embed(list(images))), domain, promised=promised
        )
        assert result.verification is not None
        delivered = result.verification.delivered
        found[domain] = {
            OURS: {
                f"{kind}/{rate:g}": [getattr(delivered[rate], kind)]
                for rate in RATES
                for kind in ("far", "tar")
            }
        }
    return found


def delivered(store: Store, bundle: Bundle, target: str) -> dict[str, dict[str, float]]:
    """Method -> `far/RATE` and `tar/RATE` on the target."""
    sources = [
        domain_of(bundle, Artifact(store, "datasets", *name.rsplit("-", 1)))
        for name in bundle.metadata["sources"]
    ]
    target_domain = domain_of(bundle, find_artifact(store, "datasets", target))
    cohort = np.concatenate([source.train for source in sources])
    others = [
        np.concatenate([other.train for other in sources if other is not source])
        for source in sources
    ]

    domains = [*sources, target_domain]

    def normalised(nearest: int | None, *, itself: bool = True) -> list[np.ndarray]:
        """The scores on each source, by a cohort with or without `itself`, and on the target."""
        cohorts = [*([cohort] * len(sources) if itself else others), cohort]
        return [
            s_norm(domain.query, domain.gallery, by, nearest=nearest)
            for domain, by in zip(domains, cohorts, strict=True)
        ]

    plain = [domain.query @ domain.gallery.T for domain in domains]
    by_gallery = [
        s_norm(domain.query, domain.gallery, domain.gallery, nearest=None) for domain in domains
    ]
    found = {}
    for method, scores in (
        (OURS, plain),
        ("S-norm", normalised(None)),
        ("S-norm, a source without itself", normalised(None, itself=False)),
        (f"AS-norm, {NEAREST} nearest", normalised(NEAREST)),
        ("S-norm by the target's gallery", by_gallery),
    ):
        pairs = [domain.pairs(values) for domain, values in zip(domains, scores, strict=True)]
        learned = thresholds_of({str(n): some for n, some in enumerate(pairs[:-1])})
        found[method] = _on(pairs[-1], learned)
        if method == OURS:
            each = [thresholds_of({"source": some}) for some in pairs[:-1]]
            strictest = {rate: max(one[rate] for one in each) for rate in RATES}
            found["the strictest source's threshold"] = _on(pairs[-1], strictest)
    afterwards = target_domain.pairs(plain[-1])
    found[AFTERWARDS] = _on(afterwards, thresholds_of({"target": afterwards}))
    return found


def _on(pairs: Pairs, thresholds: Mapping[float, float]) -> dict[str, float]:
    figures = {}
    for rate in RATES:
        figures[f"far/{rate:g}"] = float(np.mean(pairs.impostors > thresholds[rate]))
        figures[f"tar/{rate:g}"] = float(np.mean(pairs.genuine > thresholds[rate]))
    return figures


def s_norm(
    query: np.ndarray, gallery: np.ndarray, cohort: np.ndarray, *, nearest: int | None
) -> np.ndarray:
    """(queries, gallery): the mean of the scores normalised by each side's cohort scores."""
    sides = []
    for features in (query, gallery):
        scores = features @ cohort.T
        if nearest is not None:
            scores = np.partition(scores, -nearest, axis=1)[:, -nearest:]
        sides.append((scores.mean(axis=1), scores.std(axis=1)))
    (query_mean, query_deviation), (gallery_mean, gallery_deviation) = sides
    cosines = query @ gallery.T
    by_query = (cosines - query_mean[:, None]) / query_deviation[:, None]
    return (by_query + (cosines - gallery_mean) / gallery_deviation) / 2


def domain_of(bundle: Bundle, artifact: Artifact) -> Domain:
    """The features of a data set's training and test images."""
    dataset = open_dataset(artifact)

    def embedded(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = dataset.rows(["pid", "camid"], splits=[split])
        places = rows["row"].to_numpy()
        features = [
            bundle.embed(dataset.read_images(places[first : first + BATCH]))
            for first in range(0, len(places), BATCH)
        ]
        return np.concatenate(features), rows["pid"].to_numpy(), rows["camid"].to_numpy()

    query, query_pids, query_camids = embedded("query")
    gallery, gallery_pids, gallery_camids = embedded("gallery")
    rule = checked_rule(
        query_pids=query_pids,
        query_camids=query_camids,
        gallery_pids=gallery_pids,
        gallery_camids=gallery_camids,
        queries=len(query),
        gallery=len(gallery),
    )
    genuine = _matches(rule)
    return Domain(
        query=query,
        gallery=gallery,
        train=embedded("train")[0],
        genuine=genuine,
        impostors=(query_pids[:, None] != gallery_pids) & genuine.any(axis=1, keepdims=True),
    )


def _matches(rule: CameraRule) -> np.ndarray:
    matches = np.zeros((len(rule.query), len(rule.gallery_pids)), bool)
    for index in range(len(rule.query)):
        matches[index, rule.matches_and_ignored(index)[0]] = True
    return matches


def broken_promises(found: Figures) -> list[str]:
    """Where the threshold of `muva calibrate` delivers another rate than it promised."""
    missed = []
    for target, methods in found.items():
        far = float(np.mean(methods[OURS][f"far/{PROMISED:g}"]))
        if not PROMISED / MOST_TIMES <= far <= PROMISED * MOST_TIMES:
            missed.append(
                f"{target}: {100 * far:.2f} % of the impostors accepted, {100 * PROMISED:g} % "
                "promised"
            )
    return missed


def print_table(found: Figures) -> None:
    """A row per target and method, means over the models."""
    heads = [f"{kind} at {100 * rate:g} %" for rate in RATES for kind in ("FAR", "TAR")]
    print("per cent\n\n| target | method | " + " | ".join(heads) + " |")
    print("|---|---|" + "---:|" * len(heads))
    for target, methods in found.items():
        for method, figures in methods.items():
            cells = [
                f"{100 * np.mean(figures[f'{kind}/{rate:g}']):.{digits}f}"
                for rate in RATES
                for kind, digits in (("far", 2), ("tar", 1))
            ]
            print(f"| {target} | {method} | " + " | ".join(cells) + " |")


def baseline_tables(
    found: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]], *, name: str = "scores"
) -> dict[str, Table]:
    """`scores`, or the name of a model: a row per target and method."""
    rows: list[Row] = []
    for target, methods in found.items():
        for method, figures in methods.items():
            row: Row = {"target": target, "method": method, "models": len(figures["far/0.01"])}
            row |= {
                name.replace("/", "_at_").replace(".", "_"): measurement(mean_of(list(values)))
                for name, values in figures.items()
            }
            rows.append(row)
    return {name: Table(rows=rows, statistic="mean over the models of a target")}


if __name__ == "__main__":
    sys.exit(main())
