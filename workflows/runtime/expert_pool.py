"""A pool of actors, each with a loaded grounding expert, and the shards that they label.

One pool serves all data sets of a pipeline, so that an expert is loaded once for each actor. Nodes
come and go: the pool scales up where they are added, and the shards of a lost process are given to
another. An image that kills the process that grounds it does so three times, once in a batch and
twice alone, and is then quarantined.
"""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.util.metrics import Counter as Metric
from ray.util.metrics import Gauge

from muva.data.artifacts import Artifact
from muva.data.shards import SHARD_BYTES, Dataset, open_dataset
from muva.errors import MuvaError
from muva.grounding.experts import EXPERTS, ChosenExpert
from muva.grounding.ground import BrokenExpertError, RetryPlan, ShardReport, ground_shard
from muva.grounding.labels import label_key, write_shard_labels
from workflows.runtime.cluster import alive_nodes
from workflows.runtime.messages import POLL_S, MessageQueue
from workflows.runtime.quirks import hide_gpus
from workflows.runtime.tasks import get_results

SCALE_UP_EVERY_S = 5.0
MAX_DEATHS, MAX_DEATHS_LOADING, MAX_BROKEN = 5, 3, 2
"""Limits: deaths at one shard without an image to blame; batches of actors of which one died before
it had loaded the expert, while no other actor works; consecutive experts that failed."""

LOST = (RayActorError, OutOfMemoryError)
"""The errors by which Ray reports a lost process; the second comes from its memory monitor."""

SHARDS_AHEAD = 2
"""Shards that an actor holds: enough to keep it busy, few enough to bound its memory."""

PROCESS_BYTES = 0.5e9
ACTIVATION_FACTOR = 1.2
"""What an actor needs in addition to the weights: libraries, and a multiple of the weights' size
for activations."""

Shard = tuple[int, int]
"""The index of a job, and of a shard of its data set."""


@dataclass(frozen=True, kw_only=True)
class Actors:
    """The size of the pool, and of each of its actors."""

    count: int | None = None
    """None: as many as fit on the cluster at any time."""
    cpus_each: int = 1
    gpus_each: float | None = None
    """None: one for an expert that uses GPUs, if the cluster has any."""

    def needs(self, expert: ChosenExpert, nodes: Iterable[Mapping[str, float]]) -> dict[str, float]:
        """The resources that each actor requests, by Ray's names; a fraction of a GPU is shared."""
        gpus = self.gpus_each
        if gpus is None:
            has_weights = expert.info.memory_gb > 0
            gpus = 1.0 if has_weights and any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
        needs = {"CPU": float(self.cpus_each), "GPU": gpus}
        weights = expert.weight_bytes()
        if weights is not None and not gpus:  # a GPU's memory is checked by the actor itself
            more_shards = (expert.info.shards_at_once - 1) * SHARD_BYTES
            needs["memory"] = PROCESS_BYTES + more_shards + ACTIVATION_FACTOR * weights
        return {name: amount for name, amount in needs.items() if amount}


@dataclass(frozen=True, kw_only=True)
class GroundingJob:
    """The shards of one data set that have to be labelled."""

    dataset: Dataset
    labels: Artifact
    shards: Iterable[int]
    max_quarantined: float
    """How many images may fail."""


def actors_that_fit(needs: Mapping[str, float], nodes: Iterable[Mapping[str, float]]) -> int:
    """How many actors with these needs fit on all nodes together when nothing else runs."""
    return sum(
        min(int(node.get(name, 0) / amount + 1e-6) for name, amount in needs.items())
        for node in nodes
    )


def _node_resources() -> list[dict[str, float]]:
    """The resources of each node of the cluster, by Ray's names."""
    return [node["Resources"] for node in alive_nodes()]


class ShardQueue:
    """The shards that have not been labelled yet, and what is known from earlier attempts."""

    def __init__(self, shards: Iterable[Shard], *, max_quarantined: Sequence[float]) -> None:
        """`max_quarantined`: for each job, how many images may kill the expert's process."""
        self.waiting = deque(shards)
        self._max_quarantined = max_quarantined
        self._isolate: dict[Shard, frozenset[int]] = defaultdict(frozenset)
        self._quarantine: dict[Shard, frozenset[int]] = defaultdict(frozenset)
        self._deaths_at: Counter[tuple[Shard, int]] = Counter()
        self._unexplained: Counter[Shard] = Counter()
        self._broken_at: set[Shard] = set()
        self._broken_in_a_row = 0

    def take(self) -> tuple[Shard, RetryPlan]:
        """The next shard and its retry plan."""
        shard = self.waiting.popleft()
        isolate, quarantine = self._isolate[shard], self._quarantine[shard]
        return shard, RetryPlan(isolate=isolate, quarantine=quarantine)

    def on_death(self, shard: Shard, *, begun: bool, at: range | None, why: str) -> None:
        """Record that a process died with the shard; `at`: the rows it was grounding, if known.

        No row is to blame if the range is empty. Raises MuvaError when this has happened too often.
        """
        self.waiting.appendleft(shard)
        if not begun or (at is not None and not at):
            return
        if at is None or at[0] in self._quarantine[shard]:
            self._unexplained[shard] += 1
            if self._unexplained[shard] >= MAX_DEATHS:
                raise MuvaError(
                    f"shard {shard[1]}: {MAX_DEATHS} processes died while they grounded it, with "
                    f"no image to blame; the last one: {why}"
                )
        elif len(at) > 1:
            self._isolate[shard] |= frozenset(at)
        else:
            row = at[0]
            self._deaths_at[shard, row] += 1
            if self._deaths_at[shard, row] >= 2:
                self._quarantine[shard] |= {row}
                job = shard[0]
                quarantined = sum(
                    len(rows) for other, rows in self._quarantine.items() if other[0] == job
                )
                if quarantined > self._max_quarantined[job]:
                    raise MuvaError(
                        f"{quarantined} images killed the expert's process twice each, the last "
                        f"one in row {row} of shard {shard[1]}: {why}"
                    )

    def on_broken_expert(self, shard: Shard, error: BrokenExpertError) -> None:
        """Record that an expert failed at most images of the shard; another process may do better.

        Raises the error after too many consecutive failures.
        """
        self.waiting.appendleft(shard)
        self._broken_in_a_row += 1
        if shard in self._broken_at or self._broken_in_a_row >= MAX_BROKEN:
            raise error
        self._broken_at.add(shard)

    def on_success(self) -> None:
        """Record that a shard has been labelled, so that the expert works."""
        self._broken_in_a_row = 0


@dataclass
class GroundingProgress:
    """The progress of a job, and its cost, summed over the actors."""

    images: int = 0
    failed: int = 0
    decode_s: float = 0.0
    model_s: float = 0.0
    elapsed_s: float = 0.0
    """Wall-clock time from the start of the pool to the last shard of the job."""
    actors: int = 0
    """Actors that are working now, for all jobs."""
    starting: int = 0
    """Actors that are loading the expert or waiting for resources."""
    in_flight: int = 0
    """Images of unfinished shards that have been grounded."""
    done: int = 0
    """Images of finished shards, including those that another driver labelled."""

    def add(self, report: ShardReport) -> None:
        """Add a finished shard."""
        self.images += report.images
        self.failed += report.failed
        self.decode_s += report.decode_s
        self.model_s += report.model_s

    @property
    def images_per_s(self) -> float:
        """The rate of all actors together, including the time of their start."""
        return (self.images + self.in_flight) / self.elapsed_s if self.elapsed_s else 0.0


def ground_shards(
    jobs: Sequence[GroundingJob],
    expert: ChosenExpert,
    phrases: Mapping[str, str],
    *,
    actors: Actors,
    on_progress: Callable[[list[GroundingProgress]], None] = lambda progress: None,
) -> list[GroundingProgress]:
    """Write the pseudo-labels of the jobs' shards; the caller writes the manifests.

    `on_progress` is called with the progress of every job.

    Raises:
        MuvaError: the expert fits on no node, cannot be loaded or fails at most images; or more
            images of a job fail than its `max_quarantined`. The labels of their shards are then
            deleted, so that they are made again.
    """
    # Each driver shuffles the shards, so that drivers which ground the same data set at the same
    # time rarely label the same shard.
    shuffled = []
    for number, job in enumerate(jobs):
        shards = [(number, shard) for shard in job.shards]
        random.shuffle(shards)
        shuffled += shards
    queue = ShardQueue(shuffled, max_quarantined=[job.max_quarantined for job in jobs])
    pool = _Pool(jobs, expert, phrases, actors, shards=len(shuffled))
    remaining = Gauge("muva_grounding_shards_left", "Shards without labels.", ("dataset",))
    progress = [GroundingProgress() for _ in jobs]
    failing: dict[Shard, ShardReport] = {}
    started_at = time.monotonic()
    try:
        while queue.waiting or pool.running:
            pool.scale_up()
            pool.dispatch(queue)
            finished = pool.finished(queue)
            elapsed_s = time.monotonic() - started_at
            for shard, report in finished:
                number, index = shard
                progress[number].done += jobs[number].dataset.shards[index].rows
                progress[number].elapsed_s = elapsed_s
                if report is not None:
                    progress[number].add(report)
                    if report.failed:
                        failing[shard] = report
            open_shards = [*queue.waiting, *pool.held()]
            for number, job in enumerate(jobs):
                one = progress[number]
                if one.failed > job.max_quarantined:
                    raise _too_many_failed(job, number, expert, failing, one)
                one.actors, one.starting = pool.counts()
                one.in_flight = pool.in_flight(number)
                left = sum(shard[0] == number for shard in open_shards)
                if left:
                    one.elapsed_s = elapsed_s
                remaining.set(left, {"dataset": job.dataset.name})
            on_progress(progress)
    finally:
        pool.shut_down()
    return progress


def _too_many_failed(
    job: GroundingJob,
    number: int,
    expert: ChosenExpert,
    failing: Mapping[Shard, ShardReport],
    progress: GroundingProgress,
) -> MuvaError:
    shards = [shard for shard in failing if shard[0] == number]
    for _, index in shards:
        job.labels.store.delete(job.labels.key(label_key(index)))
    return MuvaError(
        f"{job.dataset.name}: expert {expert.name} failed at {progress.failed} of the first "
        f"{progress.images} images, for example {failing[shards[0]].reason}. The labels of their "
        f"{len(shards)} shards are not kept: fix the cause and repeat the command, or accept such "
        "images with --set grounding.quarantine_limit=SHARE"
    )


@dataclass(eq=False)
class _Worker:
    """An actor and the shards that it holds."""

    launch: int
    """The index of the launch batch in which it was started."""
    actor: Any
    ready: ray.ObjectRef | None
    """Resolves when the expert is loaded; None afterwards."""
    shards: dict[ray.ObjectRef, Shard] = field(default_factory=dict)


class _Pool:
    """The actors of one driver."""

    def __init__(
        self,
        jobs: Sequence[GroundingJob],
        expert: ChosenExpert,
        phrases: Mapping[str, str],
        actors: Actors,
        *,
        shards: int,
    ) -> None:
        self._expert, self._actors, self._max_actors = expert, actors, shards
        self._queue = MessageQueue()
        self._needs = actors.needs(expert, _node_resources())
        # Ray does not restart lost actors: `scale_up` starts new ones wherever they fit then.
        options: dict[str, Any] = {
            "num_cpus": self._needs["CPU"],
            "num_gpus": self._needs.get("GPU", 0),
            "memory": int(self._needs.get("memory", 0)),
            "max_restarts": 0,
            "max_concurrency": expert.info.shards_at_once,
        }
        self._kind: Any = ray.remote(**options)(_Grounder)
        self._arguments = (
            [(job.dataset.artifact, job.labels) for job in jobs],
            expert,
            dict(phrases),
            actors.cpus_each,
            "GPU" in self._needs,
            self._queue,
        )
        self._workers: list[_Worker] = []
        self._begun: dict[Shard, range | None] = {}
        self._scaled_at = -SCALE_UP_EVERY_S
        self._launches = 0
        self._launches_lost: set[int] = set()
        self._ever_loaded = False

    @property
    def running(self) -> list[ray.ObjectRef]:
        """The references that resolve when a shard is done."""
        return [reference for worker in self._workers for reference in worker.shards]

    def held(self) -> list[Shard]:
        """The shards that actors hold."""
        return [shard for worker in self._workers for shard in worker.shards.values()]

    def scale_up(self) -> None:
        """Start more actors if they fit; the nodes are counted every few seconds."""
        if self._workers and time.monotonic() - self._scaled_at < SCALE_UP_EVERY_S:
            return
        self._scaled_at = time.monotonic()
        wanted = self._actors.count
        if wanted is None:
            nodes = _node_resources()
            wanted = actors_that_fit(self._needs, nodes)
            if not (wanted or self._workers or self._ever_loaded):
                raise _does_not_fit(self._expert, self._needs, nodes)
        self._launches += 1
        for _ in range(min(wanted, self._max_actors) - len(self._workers)):
            actor = self._kind.remote(*self._arguments)
            self._workers.append(_Worker(self._launches, actor, actor.load.remote()))

    def dispatch(self, queue: ShardQueue) -> None:
        """Give shards to the actors that hold the fewest; more than one only if there are plenty.

        An actor that has no CPUs yet gets no shards: if another driver holds the CPUs and is itself
        waiting for CPUs, the two would deadlock.
        """
        loaded = [worker for worker in self._workers if worker.ready is None]
        at_once = self._expert.info.shards_at_once
        # The last shards of a served model overlap too if no other actor could take them.
        others = len(loaded) if at_once == 1 else len(self._workers) - 1
        for ahead in range(max(SHARDS_AHEAD, at_once)):
            for worker in loaded:
                if len(worker.shards) == ahead and len(queue.waiting) > ahead * others:
                    shard, plan = queue.take()
                    worker.shards[worker.actor.ground.remote(*shard, plan)] = shard

    def finished(self, queue: ShardQueue) -> list[tuple[Shard, ShardReport | None]]:
        """The shards that were finished since the last call; None stands for another driver's.

        Waits a moment for the first one.
        """
        owner = {reference: worker for worker in self._workers for reference in worker.shards}
        owner |= {worker.ready: worker for worker in self._workers if worker.ready is not None}
        if not owner:  # all actors are lost, and no new one fits on any node
            time.sleep(POLL_S)
            return []
        references, _ = ray.wait([*owner], num_returns=1, timeout=POLL_S)
        if references:  # collect whatever else is ready
            references, _ = ray.wait([*owner], num_returns=len(owner), timeout=0)
        self._read_messages()
        done: list[tuple[Shard, ShardReport | None]] = []
        for reference in references:
            worker = owner[reference]
            if (
                worker not in self._workers
            ):  # it died a moment ago, and its shards went back to the queue
                continue
            try:
                [report] = get_results([reference])
            except LOST as error:
                self._on_actor_death(worker, queue, why=str(error).strip().splitlines()[0])
                continue
            except GpuOutOfMemoryError as error:
                self._on_actor_death(worker, queue, why=str(error), error=error)
                continue
            except BrokenExpertError as error:
                shard = worker.shards.pop(reference)
                self._begun.pop(shard, None)
                queue.on_broken_expert(shard, error)
                self._on_actor_death(worker, queue, why=str(error), blame=False)
                continue
            if worker.ready is not None:
                worker.ready = None
                self._ever_loaded = True
                self._launches_lost.clear()
                continue
            shard = worker.shards.pop(reference)
            self._begun.pop(shard, None)
            queue.on_success()
            done.append((shard, report))
        return done

    def counts(self) -> tuple[int, int]:
        """The numbers of actors that are working and that are starting."""
        starting = sum(worker.ready is not None for worker in self._workers)
        return len(self._workers) - starting, starting

    def in_flight(self, job: int) -> int:
        """Images of a job's unfinished shards that have been grounded, as far as reported."""
        return sum(
            rows.start
            for shard, rows in self._begun.items()
            if shard[0] == job and rows is not None
        )

    def shut_down(self) -> None:
        """Kills all actors."""
        for worker in self._workers:
            ray.kill(worker.actor)

    def _on_actor_death(
        self,
        worker: _Worker,
        queue: ShardQueue,
        *,
        why: str,
        error: MuvaError | None = None,
        blame: bool = True,
    ) -> None:
        """Return its shards to the queue, without `blame` as if none of them had been begun.

        Raises an error if no actor ever starts to work.
        """
        self._read_messages()
        self._workers.remove(worker)
        ray.kill(worker.actor)  # an actor that cannot be reached may still be alive
        working, _ = self.counts()
        if not working:
            self._scaled_at = -SCALE_UP_EVERY_S
        for shard in worker.shards.values():
            begun = blame and shard in self._begun
            queue.on_death(shard, begun=begun, at=self._begun.pop(shard, None), why=why)
        if worker.ready is not None:
            self._launches_lost.add(worker.launch)
            if len(self._launches_lost) >= MAX_DEATHS_LOADING and not working:
                raise error or MuvaError(
                    f"expert {self._expert.name}: {MAX_DEATHS_LOADING} processes died while they "
                    f"loaded it; the last one: {why}. Does it fit into memory? `muva experts` "
                    "shows the sizes"
                )

    def _read_messages(self) -> None:
        held = set(self.held())
        for shard, rows in self._queue.drain():
            if shard in held:
                self._begun[shard] = rows


def _does_not_fit(
    expert: ChosenExpert, needs: Mapping[str, float], nodes: Iterable[Mapping[str, float]]
) -> MuvaError:
    largest = max((node.get("memory", 0) for node in nodes), default=0)
    if "memory" in needs and needs["memory"] > largest:
        return MuvaError(
            f"expert {expert.name}: needs about {needs['memory'] / 1e9:.1f} GB of memory; the "
            f"largest node of this cluster has {largest / 1e9:.1f} GB for it. Choose "
            f"{_smaller_experts(largest - PROCESS_BYTES)}, or set --actors N, which waits for "
            "nodes that an autoscaler adds"
        )
    wanted = ", ".join(f"{amount:g} {name}" for name, amount in needs.items() if name != "memory")
    return MuvaError(
        f"expert {expert.name}: no node of this cluster has {wanted} for an actor. Request less "
        "with --cpus-per-actor and --gpus-per-actor, or set --actors N, which waits for nodes that "
        "an autoscaler adds"
    )


def _smaller_experts(available_bytes: float) -> str:
    """Advice that names the experts whose weights and activations fit into this many bytes."""
    names = [
        name
        for name, info in EXPERTS.items()
        if 0 < ACTIVATION_FACTOR * info.memory_gb * 1e9 <= available_bytes
    ]
    return f"one that fits ({', '.join(names)})" if names else "a larger machine"


class GpuOutOfMemoryError(MuvaError):
    """The expert does not fit on the GPU of a process; it may fit on that of another."""


def _check_gpu(expert: ChosenExpert) -> None:
    """Raise GpuOutOfMemoryError if the expert's weights do not fit on this process's GPU."""
    weights = expert.weight_bytes()
    if not weights or not torch.cuda.is_available():
        return
    free, total = torch.cuda.mem_get_info()
    needed = ACTIVATION_FACTOR * weights
    if needed > free:
        raise GpuOutOfMemoryError(
            f"expert {expert.name}: needs about {needed / 1e9:.1f} GB of a GPU's memory; "
            f"{free / 1e9:.1f} of {total / 1e9:.1f} GB are free. Choose {_smaller_experts(free)}, "
            "or put fewer actors on a GPU with --gpus-per-actor 1"
        )


class _Grounder:
    """The actor: a loaded expert that labels shards of any job.

    It labels one shard after the other, or several at a time, each in a thread, if the expert does.
    """

    def __init__(
        self,
        jobs: Sequence[tuple[Artifact, Artifact]],
        expert: ChosenExpert,
        phrases: Mapping[str, str],
        threads: int,
        on_gpu: bool,
        queue: MessageQueue,
    ) -> None:
        """`jobs`: for each job the data set, and the artifact of its pseudo-labels."""
        torch.set_num_threads(threads)
        if not on_gpu:
            hide_gpus()
        self._batch_images = expert.info.batch_images
        self._jobs, self._queue = jobs, queue
        self._chosen, self._phrases = expert, phrases
        self._datasets: dict[int, Dataset] = {}
        tags = ("dataset", "expert")
        self._images = Metric("muva_grounding_images", "Images grounded.", tags)
        self._failed = Metric("muva_grounding_failed", "Images quarantined.", tags)
        self._decode_s = Metric("muva_grounding_decode_s", "Seconds spent decoding images.", tags)
        self._model_s = Metric("muva_grounding_model_s", "Seconds spent in the expert.", tags)

    def load(self) -> None:
        """Load the expert: in a method, because errors in `__init__` lose their type."""
        _check_gpu(self._chosen)
        try:
            self._expert = self._chosen.load()
        except torch.OutOfMemoryError as error:
            raise GpuOutOfMemoryError(
                f"expert {self._chosen.name}: does not fit on this GPU ({error}). Choose a smaller "
                "one, or put fewer actors on a GPU with --gpus-per-actor 1"
            ) from error

    def ground(self, job: int, shard: int, plan: RetryPlan) -> ShardReport | None:
        """Write the labels of a shard, unless another driver's actor has already done so."""
        source, labels = self._jobs[job]
        if labels.store.exists(labels.key(label_key(shard))):
            return None
        if job not in self._datasets:
            self._datasets[job] = open_dataset(source)
        retried = bool(plan.isolate or plan.quarantine)
        self._queue.send(((job, shard), None), block=retried)
        table, report = ground_shard(
            self._datasets[job],
            shard,
            expert=self._expert,
            name=self._chosen.name,
            phrases=self._phrases,
            batch_images=self._batch_images,
            plan=plan,
            on_start=lambda rows: self._queue.send(((job, shard), rows), block=retried),
        )
        self._batch_images = report.batch_images
        if not write_shard_labels(labels, shard, table):
            return None
        tags = {"dataset": source.name, "expert": self._chosen.name}
        self._images.inc(report.images, tags)
        for counter, amount in (
            (self._failed, report.failed),
            (self._decode_s, report.decode_s),
            (self._model_s, report.model_s),
        ):
            if amount > 0:
                counter.inc(amount, tags)
        return report
