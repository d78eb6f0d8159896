"""mAP lost by an expert's labels compared with exact ones: `python -m benchmarks.label_cost`.

Trains MUVA with the settings of the demo, with each synthetic benchmark domain in turn as the
target and the others as sources, twice: with the exact boxes of `annotated` and with those of the
expert. Prints mean and standard deviation over the seeds, and the paired difference with its
standard error. Models that exist already are not trained again, so an interrupted run can be
resumed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.generalisation import evaluate_variants, print_table, values_of
from muva.synthetic import BENCHMARK
from tracking.names import experiment_name
from workflows.runtime.cluster import ray_cluster
from workflows.runtime.workers import Workers
from workflows.session import open_session

EXACT = "annotated"


def main() -> int:
    """Train and evaluate, then print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--expert", default="tiny")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--targets", nargs="+", default=list(BENCHMARK), choices=list(BENCHMARK))
    parser.add_argument("--home", default="runs", help="where artifacts and runs are kept")
    parser.add_argument("--cpus-per-worker", type=int, help="cores of a training [all]")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    session = open_session(home=arguments.home, experiment=experiment_name("label cost"))
    workers = Workers(cpus_each=arguments.cpus_per_worker)
    experts = (EXACT, arguments.expert)
    figures: dict[str, dict[str, dict[str, list[float]]]] = {"mAP": {}, "rank-1": {}}
    with ray_cluster():
        for target in arguments.targets:
            found = {
                expert: evaluate_variants(
                    session,
                    arguments.recipe,
                    target,
                    arguments.seeds,
                    workers,
                    {"variants": ["muva"], "grounding.expert": expert},
                )
                for expert in experts
            }
            for name, key in (("mAP", "mean_ap"), ("rank-1", "rank1")):
                figures[name][target] = {
                    expert: values_of(results, key)["muva"] for expert, results in found.items()
                }
    for name, by_target in figures.items():
        print(f"\n{name}, per cent, mean ± deviation over the seeds {arguments.seeds}\n")
        print_table(
            by_target, names={e: e for e in experts}, ours=arguments.expert, reference=EXACT
        )
    if arguments.json:
        content = {"seeds": arguments.seeds, **figures}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
