"""Gain of part tokens on unseen camera networks: `python -m benchmarks.generalisation`.

Each synthetic benchmark domain in turn is the target, and the others are the sources; for the two
domains with the look of real cameras, networks of the open world are, which the shipped CLIPs have
not seen. CLIP without training, global-only and MUVA, with several seeds. Prints mean and standard
deviation over the seeds, and the paired difference MUVA - global-only with its standard error.
Models that exist already are not trained again, so an interrupted run can be resumed. `--check`
exits with 1 where training or the parts are of no use.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.baseline import (
    Row,
    Table,
    benchmark_parser,
    exit_code,
    mean_of,
    measurement,
    write_results,
)
from muva.config import load_recipe, with_settings
from muva.synthetic import BENCHMARK, REAL_LOOK
from tracking.names import experiment_name
from workflows.runtime.cluster import ray_cluster
from workflows.session import Session, open_session
from workflows.steps.pipeline import VARIANTS, log_pipeline, pipeline_run, run_pipeline

OPEN_WORLD = ("syn-world-400-407", "syn-world-408-415", "syn-world-416-423", "syn-world-424-431")
"""The sources for the domains with the look of real cameras; the CLIPs' networks end at 399."""

Figures = dict[str, dict[str, list[float]]]
"""Target -> variant -> mAP of each seed, as fractions."""

LEAST_MEAN_GAIN = 0.03
"""The mean gain in mAP of MUVA over global-only that is expected."""


def main() -> int:
    """Train and evaluate, then print the table; with --check, exit with 1 if it did not help."""
    parser = benchmark_parser(
        "generalisation", __doc__, check="exit 1 where training or the parts are of no use"
    )
    parser.add_argument("--expert", default="annotated", help="finds the parts")
    parser.add_argument("--clip", help="as the setting model.clip [that of the recipe]")
    add_training_options(parser, targets=[*BENCHMARK, *REAL_LOOK])
    arguments = parser.parse_args()
    session = open_session(home=arguments.home, experiment=experiment_name("generalisation"))
    settings = {
        "grounding.expert": arguments.expert,
        "execution.cpus_per_worker": arguments.cpus_per_worker,
    }
    if arguments.clip:
        settings["model.clip"] = arguments.clip
    found: dict[str, list[dict[str, dict[str, float]]]] = {}
    with ray_cluster():
        for sources, targets in _by_sources(arguments.targets).items():
            found |= evaluate_variants(
                session, arguments.recipe, sources, targets, arguments.seeds, settings
            )
    mean_ap = {target: values_of(results, "mean_ap") for target, results in found.items()}
    rank1 = {target: values_of(results, "rank1") for target, results in found.items()}
    for name, figures in (("mAP", mean_ap), ("rank-1", rank1)):
        print(f"\n{name}, per cent, mean ± deviation over the seeds {arguments.seeds}\n")
        print_table(figures)
    content = {"seeds": arguments.seeds, "mean_ap": mean_ap, "rank1": rank1}
    write_results(arguments, content, baseline_tables)
    return exit_code(arguments, [*not_improved(mean_ap), *parts_do_not_help(mean_ap)])


def add_training_options(
    parser: argparse.ArgumentParser, *, targets: Sequence[str] = BENCHMARK
) -> None:
    """Add the options of a benchmark that trains for each target and seed."""
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--targets", nargs="+", default=list(targets), choices=list(targets))
    parser.add_argument("--home", default="runs", help="where artifacts and runs are kept")
    parser.add_argument("--cpus-per-worker", type=int, help="cores of a training [all]")


def not_improved(mean_ap: Figures) -> list[str]:
    """Trained models whose mean over the seeds does not exceed the CLIP that they started from."""
    return [
        f"{VARIANTS[variant]} on {target}"
        for target, values in mean_ap.items()
        for variant in values
        if variant != "clip" and np.mean(values[variant]) <= np.mean(values["clip"])
    ]


def parts_do_not_help(mean_ap: Figures) -> list[str]:
    """Where MUVA's mean over the seeds is below that of global-only, or gains too little at all."""
    gains = {
        target: float(np.mean(values["muva"]) - np.mean(values["global_only"]))
        for target, values in mean_ap.items()
    }
    found = [f"MUVA below global-only on {target}" for target, gain in gains.items() if gain < 0]
    mean_gain = float(np.mean([*gains.values()]))
    if mean_gain < LEAST_MEAN_GAIN:
        found.append(
            f"MUVA gains {100 * mean_gain:+.1f} mAP on average, goal {100 * LEAST_MEAN_GAIN:+.1f}"
        )
    return found


def sources_for(target: str) -> tuple[str, ...]:
    """The data sets that models for this target are trained on."""
    if target in REAL_LOOK:
        return OPEN_WORLD
    return tuple(domain for domain in BENCHMARK if domain != target)


def _by_sources(targets: Sequence[str]) -> dict[tuple[str, ...], list[str]]:
    """Sources -> the targets that one model is evaluated on."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for target in targets:
        groups.setdefault(sources_for(target), []).append(target)
    return groups


def evaluate_variants(
    session: Session,
    recipe: str,
    sources: Sequence[str],
    targets: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
) -> dict[str, list[dict[str, dict[str, float]]]]:
    """Target -> for each seed: variant -> mean_ap and rank1.

    `settings`: section.key -> value, overriding the recipe.
    """
    results: dict[str, list[dict[str, dict[str, float]]]] = {target: [] for target in targets}
    for seed in seeds:
        chosen = {"sources": [*sources], "targets": targets, "seed": seed, "tune": None, **settings}
        config = with_settings(load_recipe(recipe), chosen, where=recipe)
        with pipeline_run(session, config) as (run, children):
            report = run_pipeline(children, config)
            if run is not None:
                log_pipeline(run, config, report)
        for target in targets:
            results[target].append(
                {
                    variant: {"mean_ap": judgement.mean_ap, "rank1": judgement.rank1}
                    for variant, judgement in report.targets[target].items()
                }
            )
    return results


def baseline_tables(content: Mapping[str, Any]) -> dict[str, Table]:
    """`scores`: mAP and then rank-1, a row per target and one for their mean."""
    rows: list[Row] = []
    for name, key in (("mAP", "mean_ap"), ("rank-1", "rank1")):
        rows.append({"target": f"**{name}**"})
        for target, values in {**content[key], "mean": over_targets(content[key])}.items():
            row: Row = {"target": target, "clip": measurement(mean_of(values["clip"]))}
            row |= {of: measurement(mean_of(values[of])) for of in ("global_only", "muva")}
            gains = np.subtract(values["muva"], values["global_only"]).tolist()
            row["difference"] = measurement(mean_of(gains), standard_error=True)
            rows.append(row)
    return {"scores": Table(rows=rows, statistic=over_seeds(content["seeds"]))}


def over_seeds(seeds: Sequence[int]) -> str:
    """What means over so many seeds and their spreads are."""
    return (
        f"mean ± standard deviation over {len(seeds)} seeds; of the paired difference the "
        "standard error"
    )


def over_targets(figures: Figures) -> dict[str, list[float]]:
    """Variant -> the mean over the targets of each seed."""
    variants = next(iter(figures.values()))
    return {
        variant: np.mean([values[variant] for values in figures.values()], axis=0).tolist()
        for variant in variants
    }


def print_table(
    figures: Figures,
    *,
    names: Mapping[str, str] = VARIANTS,
    ours: str = "muva",
    reference: str = "global_only",
) -> None:
    """A row per target and one for their mean; the last column is the difference `ours -
    reference`.

    `names`: what each of the figures' columns is called.
    """
    variants = list(next(iter(figures.values())))
    heads = [*(names[variant] for variant in variants), f"{names[ours]} - {names[reference]}"]
    print("| target | " + " | ".join(heads) + " |")
    print("|---|" + "---:|" * len(heads))
    for target, values in figures.items():
        print(f"| {target} | " + " | ".join(_cells(values, ours, reference)) + " |")
    print("| mean | " + " | ".join(_cells(over_targets(figures), ours, reference)) + " |")


def _cells(values: dict[str, list[float]], ours: str, reference: str) -> list[str]:
    gains = np.subtract(values[ours], values[reference])
    cells = [_mean(found, spread=_deviation(found)) for found in values.values()]
    return [*cells, _mean(gains, spread=_deviation(gains) / np.sqrt(len(gains)), sign="+")]


def _mean(values: Sequence[float] | np.ndarray, *, spread: float, sign: str = "") -> str:
    mean = f"{100 * np.mean(values):{sign}.1f}"
    return mean if np.isnan(spread) else f"{mean} ± {100 * spread:.1f}"


def _deviation(values: Sequence[float] | np.ndarray) -> float:
    """Standard deviation over the seeds; NaN for a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else np.nan


def values_of(results: list[dict[str, dict[str, float]]], name: str) -> dict[str, list[float]]:
    """Variant -> this metric for each seed."""
    return {variant: [result[variant][name] for result in results] for variant in results[0]}


if __name__ == "__main__":
    sys.exit(main())
