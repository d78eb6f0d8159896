"""Data sets as steps: images of people become checked Parquet shards."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from muva.config import SyntheticConfig
from muva.data.artifacts import Artifact, check_name, find_artifact, fingerprint
from muva.data.benchmarks import BENCHMARKS, file_listing, read_tree
from muva.data.benchmarks.benchmark import Trial, counts_differ, is_complete
from muva.data.protocols import write_trials
from muva.data.records import Record
from muva.data.shards import SHARD_FORMAT, write_shards
from muva.errors import SettingsError
from muva.synthetic import DOMAINS, RENDERER_VERSION, synthetic_records
from workflows.progress import track
from workflows.runtime.cluster import ray_cluster
from workflows.runtime.messages import Board, gather
from workflows.session import Session
from workflows.steps.step import Done, Step, do_step


def datasets_of(session: Session, names: Sequence[str], config: SyntheticConfig) -> dict[str, Done]:
    """The data sets of these names: synthetic ones rendered where missing, others found."""
    synthetic = [name for name in names if name in DOMAINS]
    rendered = import_synthetic(session, synthetic, config) if synthetic else {}
    return {name: rendered.get(name) or _imported(session, name) for name in names}


def import_synthetic(
    session: Session, domains: Sequence[str], config: SyntheticConfig
) -> dict[str, Done]:
    """Renders the domains that are missing, a Ray task for each; domain -> its step."""
    steps = {domain: _synthetic_step(session, domain, config) for domain in domains}
    missing = [domain for domain in domains if steps[domain].artifact.manifest() is None]
    rendered = dict(zip(missing, _render(steps, missing, config), strict=True))
    return {
        domain: do_step(
            step,
            session=session,
            work=lambda _, d=domain: rendered[d].summary,
            spent_s=rendered[domain].seconds if domain in rendered else 0.0,
        )
        for domain, step in steps.items()
    }


def import_benchmark(
    session: Session, name: str, root: Path, *, accept_counts: bool = False
) -> Done:
    """Reads a public data set's tree; MuvaError unless it holds what was published of it.

    With `accept_counts` other counts are accepted, and the data set is marked as altered.
    """
    benchmark = BENCHMARKS[name]
    options = dict(benchmark.options)
    records = read_tree(benchmark.layout, root, domain=name, options=options)
    altered = not is_complete(benchmark, records)
    if altered and not accept_counts:
        raise counts_differ(benchmark, records, where=str(root))
    trials = benchmark.trials(records, root) if benchmark.trials else None
    settings = {"benchmark": name, "altered": altered}
    return _import_records(session, name, records, settings, trials=trials)


def import_tree(
    session: Session, name: str, root: Path, *, layout: str, options: dict[str, Any]
) -> Done:
    """Reads a folder of images in a layout's form.

    The address is a hash of the listing (names, sizes, times), so an unchanged tree is not read
    again.
    """
    for taken, what in ((DOMAINS, "synthetic domain"), (BENCHMARKS, "public data set")):
        if name in taken:
            raise SettingsError(f"{name} is the name of a {what}: give your data set another name")
    check_name(name)
    records = read_tree(layout, root, domain=name, options=options)
    return _import_records(session, name, records, {"layout": layout, "options": options})


def _import_records(
    session: Session,
    name: str,
    records: Sequence[Record],
    settings: dict[str, Any],
    *,
    trials: Sequence[Trial] | None = None,
) -> Done:
    settings = settings | {"files": fingerprint(file_listing(records))}
    if trials is not None:
        settings |= {"trials": fingerprint([dataclasses.asdict(trial) for trial in trials])}
    artifact = Artifact(session.store, "datasets", name, fingerprint(settings))

    def work(_: object) -> dict[str, Any]:
        with track(f"import {name}") as progress:
            summary = write_shards(records, artifact=artifact, progress=progress.update)
        if trials is not None:
            write_trials(artifact, trials)
        return dataclasses.asdict(summary)

    step = Step(
        label=f"import {name}",
        artifact=artifact,
        format_version=SHARD_FORMAT,
        config=settings,
        inputs={},
    )
    return do_step(step, session=session, work=work)


def _imported(session: Session, name: str) -> Done:
    artifact = find_artifact(session.store, "datasets", name)
    manifest = artifact.manifest(format_version=SHARD_FORMAT)
    assert manifest is not None, artifact.address
    step = Step(
        label=f"import {name}",
        artifact=artifact,
        format_version=SHARD_FORMAT,
        config=manifest["config"],
        inputs={},
    )
    return do_step(step, session=session, work=lambda _: manifest["summary"])


def _synthetic_step(session: Session, domain: str, config: SyntheticConfig) -> Step:
    settings = {"domain": domain, "renderer": RENDERER_VERSION, **config.model_dump(mode="json")}
    return Step(
        label=f"import {domain}",
        artifact=Artifact(session.store, "datasets", domain, fingerprint(settings)),
        format_version=SHARD_FORMAT,
        config=settings,
        inputs={},
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rendered:
    """A domain whose shards are written."""

    summary: dict[str, Any]
    seconds: float


def _render(
    steps: dict[str, Step], domains: Sequence[str], config: SyntheticConfig
) -> list[_Rendered]:
    if not domains:
        return []
    with ray_cluster(), track(f"render {', '.join(domains)}") as progress:
        board = Board()
        people = config.train_people + config.test_people
        cameras = sum(DOMAINS[domain].cameras for domain in domains)
        total = people * cameras * config.images_per_camera
        done = dict.fromkeys(domains, 0)

        def show(message: tuple[str, int]) -> None:
            domain, images = message
            done[domain] = images
            progress.update(sum(done.values()), total)

        tasks = [_render_domain.remote(steps[d].artifact, config, board) for d in domains]
        return gather(tasks, board=board, on_message=show)


@ray.remote(num_cpus=1, max_retries=2)
def _render_domain(artifact: Artifact, config: SyntheticConfig, board: Board) -> _Rendered:
    started_at = time.monotonic()

    def show(done: int, total: int) -> None:
        if done % 32 == 0 or done == total:
            board.post((artifact.name, done))

    records = synthetic_records(artifact.name, **config.model_dump(), progress=show)
    summary = dataclasses.asdict(write_shards(records, artifact=artifact))
    return _Rendered(summary=summary, seconds=time.monotonic() - started_at)
