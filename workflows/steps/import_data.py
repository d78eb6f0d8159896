"""Importing data sets as steps: images of people become validated Parquet shards."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muva.config import SyntheticConfig
from muva.data import formats
from muva.data.artifacts import Artifact, check_name, find_artifact, fingerprint
from muva.data.benchmarks import BENCHMARKS, file_listing, read_tree
from muva.data.benchmarks.accounting import Account, account_for, sources, warnings
from muva.data.benchmarks.benchmark import Trial, counts_differ, is_complete
from muva.data.records import Record
from muva.errors import SettingsError
from muva.synthetic import image_count, is_synthetic, networks_in, renderer_version
from workflows.progress import say, track
from workflows.session import Session
from workflows.steps.step import Step, StepResult, run_step

if TYPE_CHECKING:
    from workflows.runtime.messages import MessageQueue


def datasets_of(
    session: Session, names: Sequence[str], config: SyntheticConfig
) -> dict[str, StepResult]:
    """The data sets with these names; synthetic ones are rendered if missing."""
    synthetic = [name for name in names if is_synthetic(name)]
    rendered = import_synthetic(session, synthetic, config) if synthetic else {}
    return {name: rendered.get(name) or _imported(session, name) for name in names}


def import_synthetic(
    session: Session, domains: Sequence[str], config: SyntheticConfig
) -> dict[str, StepResult]:
    """Render the missing domains, one Ray task per camera network; domain -> its data set."""
    steps = {domain: synthetic_step(session, domain, config) for domain in domains}
    missing = [domain for domain in domains if steps[domain].manifest() is None]
    rendered = _render(session, steps, missing, config)
    return {
        domain: run_step(
            step,
            session=session,
            work=lambda _, d=domain: rendered[d].summary,
            spent_s=rendered[domain].seconds if domain in rendered else 0.0,
        )
        for domain, step in steps.items()
    }


def synthetic_step(session: Session, domain: str, config: SyntheticConfig) -> Step:
    """Declare the data set of a synthetic domain."""
    settings = {
        "domain": domain,
        "renderer": renderer_version(domain),
        **config.model_dump(mode="json"),
    }
    return _step(session, domain, settings)


def import_benchmark(
    session: Session, name: str, root: Path, *, accept_counts: bool = False
) -> StepResult:
    """Import the folder of a public data set; MuvaError unless its counts are as published.

    With `accept_counts`, other counts are accepted, and the data set is marked as altered.
    """
    benchmark = BENCHMARKS[name]
    options = dict(benchmark.options)
    records = read_tree(benchmark.layout, root, domain=name, options=options)
    account = account_for(root, sources(records))
    altered = not is_complete(benchmark, records)
    if altered and not accept_counts:
        for line in warnings(account):
            say(line)
        raise counts_differ(benchmark, records, where=str(root))
    trials = benchmark.trials(records, root) if benchmark.trials else None
    settings = {"benchmark": name, "altered": altered}
    if not altered:  # no image is missing, whatever else is in the folder
        account = dataclasses.replace(account, unreadable=[])
    return _import_records(
        session, name, records, settings, account=account, warn=altered, trials=trials
    )


def import_tree(
    session: Session, name: str, root: Path, *, layout: str, options: dict[str, Any]
) -> StepResult:
    """Import a folder of images in one of the layouts.

    The address is a hash of the listing of the images (names, sizes, times), so that an unchanged
    folder is not read again. Files that are skipped are counted anew each time.
    """
    for taken, what in (
        (is_synthetic(name), "synthetic data set"),
        (name in BENCHMARKS, "public data set"),
    ):
        if taken:
            raise SettingsError(f"{name} is the name of a {what}: give your data set another name")
    check_name(name)
    records = read_tree(layout, root, domain=name, options=options)
    account = account_for(root, sources(records))
    settings = {"layout": layout, "options": options}
    return _import_records(session, name, records, settings, account=account)


def _import_records(
    session: Session,
    name: str,
    records: Sequence[Record],
    settings: dict[str, Any],
    *,
    account: Account,
    warn: bool = True,
    trials: Sequence[Trial] | None = None,
) -> StepResult:
    from muva.data.protocols import write_trials
    from muva.data.shards import write_shards

    settings = settings | {"files": fingerprint(file_listing(records))}
    if trials is not None:
        settings |= {"trials": fingerprint([dataclasses.asdict(trial) for trial in trials])}
    step = _step(session, name, settings)

    def work(_: object) -> dict[str, Any]:
        with track(f"import {name}") as progress:
            summary = write_shards(
                records,
                artifact=step.artifact,
                unreadable=account.unreadable,
                skipped=account.skipped,
                progress=progress.update,
            )
        if trials is not None:
            write_trials(step.artifact, trials)
        return dataclasses.asdict(summary)

    try:
        result = run_step(step, session=session, work=work)
    finally:  # skipped files may be why an import fails
        for line in warnings(account) if warn else ():
            say(line)
    return dataclasses.replace(result, summary=result.summary | {"skipped": account.skipped})


def _step(session: Session, name: str, settings: dict[str, Any]) -> Step:
    return Step(
        title=f"import {name}",
        store=session.store,
        kind="datasets",
        name=name,
        format_version=formats.SHARDS,
        settings=settings,
    )


def _imported(session: Session, name: str) -> StepResult:
    """An existing data set as a step of this pipeline."""
    artifact = find_artifact(session.store, "datasets", name)
    manifest = artifact.manifest(format_version=formats.SHARDS)
    assert manifest is not None, artifact.address
    step = dataclasses.replace(_step(session, name, manifest["config"]), known_artifact=artifact)
    return run_step(step, session=session, work=lambda _: manifest["summary"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rendered:
    """A domain whose shards have been written."""

    summary: dict[str, Any]
    seconds: float
    """What its tasks took together."""


def _render(
    session: Session, steps: dict[str, Step], domains: Sequence[str], config: SyntheticConfig
) -> dict[str, _Rendered]:
    if not domains:
        return {}
    session.check_tracking()  # rendering comes before the runs are opened
    from workflows.runtime.cluster import ray_cluster
    from workflows.runtime.messages import MessageQueue
    from workflows.runtime.tasks import run_tasks

    calls = [(domain, network, config) for domain in domains for network in networks_in(domain)]
    with ray_cluster(), track(f"render {', '.join(domains)}") as progress:
        queue = MessageQueue()
        total = sum(
            image_count(
                domain,
                train_people=config.train_people,
                test_people=config.test_people,
                images_per_camera=config.images_per_camera,
            )
            for domain in domains
        )
        done: dict[tuple[str, str], int] = {}

        def show(message: tuple[tuple[str, str], int]) -> None:
            network, images = message
            done[network] = images
            progress.update(sum(done.values()), total)

        found = run_tasks(
            _render_network,
            [(*call, queue) for call in calls],
            threads=None,
            queue=queue,
            on_message=show,
        )
    shares: dict[str, list[_Share]] = {domain: [] for domain in domains}
    for (domain, *_), share in zip(calls, found, strict=True):
        shares[domain].append(share)
    return {domain: _written(steps[domain].artifact, of) for domain, of in shares.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Share:
    """What a task has rendered: the records of one network of a domain."""

    records: list[Record]
    seconds: float


def _render_network(
    domain: str, network: str, config: SyntheticConfig, queue: MessageQueue
) -> _Share:
    from muva.synthetic import synthetic_records

    started_at = time.monotonic()

    def show(done: int, total: int) -> None:
        if done % 32 == 0 or done == total:
            queue.send(((domain, network), done))

    settings = config.model_dump()
    records = [*synthetic_records(domain, network=network, **settings, progress=show)]
    return _Share(records=records, seconds=time.monotonic() - started_at)


def _written(artifact: Artifact, shares: Sequence[_Share]) -> _Rendered:
    from muva.data.shards import write_shards

    started_at = time.monotonic()
    records = chain.from_iterable(share.records for share in shares)
    summary = dataclasses.asdict(write_shards(records, artifact=artifact))
    rendering = sum(share.seconds for share in shares)
    return _Rendered(summary=summary, seconds=rendering + time.monotonic() - started_at)
