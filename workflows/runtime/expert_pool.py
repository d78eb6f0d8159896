"""Actors that hold a grounding expert, as many as there is room for, and shards for them.

Nodes come and go: room that appears is used, and what a lost process held is given to another. An
image that ends the process which looks at it ends it three times, in a batch and twice alone, and
is set aside.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.util.metrics import Counter as Metric
from ray.util.metrics import Gauge

from muva.data.artifacts import Artifact
from muva.data.shards import Dataset, open_dataset
from muva.errors import MuvaError
from muva.grounding.experts import EXPERTS, ChosenExpert
from muva.grounding.ground import BrokenExpertError, RetryPlan, ShardReport, ground_shard
from muva.grounding.labels import label_key, write_shard_labels
from workflows.runtime.cluster import alive_nodes
from workflows.runtime.messages import POLL_S, Board, results

ROOM_EVERY_S = 5.0
MOST_DEATHS, MOST_DEATHS_LOADING, MOST_BROKEN = 5, 3, 2
"""Of processes at one shard without an image to blame; of lots of which one died before it had
loaded the expert, while nobody is at work; of experts that broke one after the other."""

LOST = (RayActorError, OutOfMemoryError)
"""How Ray says that a process is no more; the second where its watch over memory has ended it."""

SHARDS_AHEAD = 2
"""Shards that an actor holds: enough to keep it busy, few enough to bound memory."""

PROCESS_BYTES = 0.5e9
ROOM_FOR_ANSWERS = 1.2
"""What an actor takes beside the weights: libraries, and a share of them for activations."""


@dataclass(frozen=True, kw_only=True)
class Actors:
    """The processes that hold the expert."""

    count: int | None = None
    """None: as many as the cluster has room for at any time."""
    cpus_each: int = 1
    gpus_each: float | None = None
    """None: one for an expert that wants it, where the cluster has any."""

    def needs(self, expert: ChosenExpert, nodes: Iterable[Mapping[str, float]]) -> dict[str, float]:
        """What each holds of a node's resources, in Ray's names; a fraction shares a GPU."""
        gpus = self.gpus_each
        if gpus is None:
            looks = expert.info.memory_gb > 0
            gpus = 1.0 if looks and any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
        needs = {"CPU": float(self.cpus_each), "GPU": gpus}
        weights = expert.weight_bytes()
        if weights is not None and not gpus:  # a GPU's memory is looked at where the GPU is
            needs["memory"] = PROCESS_BYTES + ROOM_FOR_ANSWERS * weights
        return {name: amount for name, amount in needs.items() if amount}


def room_for(needs: Mapping[str, float], nodes: Iterable[Mapping[str, float]]) -> int:
    """How many actors of these needs all nodes together hold when nothing else runs."""
    return sum(
        min(int(node.get(name, 0) / amount + 1e-6) for name, amount in needs.items())
        for node in nodes
    )


def nodes_alive() -> list[dict[str, float]]:
    """The resources of each node of the cluster, in Ray's names."""
    return [node["Resources"] for node in alive_nodes()]


class ShardQueue:
    """The shards that are still to be done, and what their earlier attempts have taught."""

    def __init__(self, shards: Iterable[int], *, most_aside: float) -> None:
        self.waiting = deque(shards)
        self._most_aside = most_aside
        self._alone: dict[int, frozenset[int]] = defaultdict(frozenset)
        self._aside: dict[int, frozenset[int]] = defaultdict(frozenset)
        self._died_at: Counter[tuple[int, int]] = Counter()
        self._unexplained: Counter[int] = Counter()
        self._broken_at: set[int] = set()
        self._broken_in_a_row = 0

    def take(self) -> tuple[int, RetryPlan]:
        """The next shard, and how it is to be treated."""
        shard = self.waiting.popleft()
        return shard, RetryPlan(isolate=self._alone[shard], quarantine=self._aside[shard])

    def died(self, shard: int, *, begun: bool, at: range | None, why: str) -> None:
        """A process died that held the shard; `at`: the rows that it looked at, as far as known.

        Raises MuvaError when this has happened too often.
        """
        self.waiting.appendleft(shard)
        if not begun:
            return
        if at is None or at[0] in self._aside[shard]:
            self._unexplained[shard] += 1
            if self._unexplained[shard] >= MOST_DEATHS:
                raise MuvaError(
                    f"shard {shard}: {MOST_DEATHS} processes died at it, with no image to blame; "
                    f"the last one: {why}"
                )
        elif len(at) > 1:
            self._alone[shard] |= frozenset(at)
        else:
            row = at[0]
            self._died_at[shard, row] += 1
            if self._died_at[shard, row] >= 2:
                self._aside[shard] |= {row}
                aside = sum(map(len, self._aside.values()))
                if aside > self._most_aside:
                    raise MuvaError(
                        f"{aside} images ended the expert's process twice each, the last one in "
                        f"row {row} of shard {shard}: {why}"
                    )

    def broke(self, shard: int, error: BrokenExpertError) -> None:
        """An expert broke at the shard; another process may do better. Raises the error else."""
        self.waiting.appendleft(shard)
        self._broken_in_a_row += 1
        if shard in self._broken_at or self._broken_in_a_row >= MOST_BROKEN:
            raise error
        self._broken_at.add(shard)

    def done(self) -> None:
        """A shard has been labelled: the expert can do it."""
        self._broken_in_a_row = 0


@dataclass
class Spent:
    """What the shards took that were done here, summed over the actors."""

    images: int = 0
    failed: int = 0
    decode_s: float = 0.0
    model_s: float = 0.0
    elapsed_s: float = 0.0
    """Of the driver's clock."""
    actors: int = 0
    """At work now."""
    starting: int = 0
    """That load the expert, or wait for room."""
    in_flight: int = 0
    """Images of unfinished shards that have been looked at."""

    def add(self, report: ShardReport) -> None:
        """One shard more."""
        self.images += report.images
        self.failed += report.failed
        self.decode_s += report.decode_s
        self.model_s += report.model_s

    @property
    def images_per_s(self) -> float:
        """Of all actors together, start included."""
        return (self.images + self.in_flight) / self.elapsed_s if self.elapsed_s else 0.0


def ground_shards(
    dataset: Dataset,
    labels: Artifact,
    expert: ChosenExpert,
    phrases: Mapping[str, str],
    *,
    shards: Iterable[int],
    actors: Actors,
    most_aside: float,
    tell: Callable[[int, Spent], None] = lambda looked_at, spent: None,
) -> Spent:
    """Writes the labels of these shards; the manifest is left to the caller.

    `tell` hears how many of their images have been looked at. Raises MuvaError for an expert that
    fits on no node, for one that cannot be loaded or breaks at most images, and when more images
    than `most_aside` are set aside: the shards that hold these are forgotten, to be asked again.
    """
    # In an order of its own: drivers that ground the same data set at once meet in few shards.
    shuffled = list(shards)
    random.shuffle(shuffled)
    queue = ShardQueue(shuffled, most_aside=most_aside)
    pool = _Pool(dataset, labels, expert, phrases, actors, shards=len(shuffled))
    left = Gauge("muva_grounding_shards_left", "Shards without labels.", ("dataset",))
    spent = Spent()
    failing: dict[int, ShardReport] = {}
    done = 0
    started_at = time.monotonic()
    try:
        while queue.waiting or pool.running:
            pool.enlist()
            pool.hand_out(queue)
            for shard, report in pool.finished(queue):
                done += dataset.shards[shard].rows
                if report is not None:
                    spent.add(report)
                    if report.failed:
                        failing[shard] = report
            if spent.failed > most_aside:
                raise _too_many_aside(labels, expert, failing, spent)
            spent.elapsed_s = time.monotonic() - started_at
            spent.actors, spent.starting = pool.strength()
            spent.in_flight = pool.looked_at()
            left.set(len(queue.waiting) + len(pool.running), {"dataset": dataset.name})
            tell(done + spent.in_flight, spent)
    finally:
        pool.dismiss()
    return spent


def _too_many_aside(
    labels: Artifact, expert: ChosenExpert, failing: Mapping[int, ShardReport], spent: Spent
) -> MuvaError:
    for shard in failing:
        labels.store.delete(labels.key(label_key(shard)))
    return MuvaError(
        f"expert {expert.name}: {spent.failed} of the first {spent.images} images could not be "
        f"looked at, for example {next(iter(failing.values())).reason}. The labels of their "
        f"{len(failing)} shards are not kept: start again when it is mended, or go on without "
        "such images with --set grounding.quarantine_limit=SHARE"
    )


@dataclass(eq=False)
class _Worker:
    """An actor, and what it holds."""

    lot: int
    """Of those started together."""
    actor: Any
    ready: ray.ObjectRef | None
    """Until the expert is loaded."""
    shards: dict[ray.ObjectRef, int] = field(default_factory=dict)


class _Pool:
    """The actors of one driver."""

    def __init__(
        self,
        dataset: Dataset,
        labels: Artifact,
        expert: ChosenExpert,
        phrases: Mapping[str, str],
        actors: Actors,
        *,
        shards: int,
    ) -> None:
        self._expert, self._actors, self._most = expert, actors, shards
        self._board = Board()
        self._needs = actors.needs(expert, nodes_alive())
        # What is lost is started anew by `enlist`, where there is room then.
        self._kind: Any = ray.remote(
            num_cpus=self._needs["CPU"],
            num_gpus=self._needs.get("GPU", 0),
            memory=int(self._needs.get("memory", 0)),
            max_restarts=0,
        )(_Grounder)
        self._arguments = (
            dataset.artifact,
            labels,
            expert,
            dict(phrases),
            actors.cpus_each,
            "GPU" in self._needs,
            self._board,
        )
        self._workers: list[_Worker] = []
        self._begun: dict[int, range | None] = {}
        self._looked_at_room = -ROOM_EVERY_S
        self._lots = 0
        self._lots_lost: set[int] = set()
        self._ever_loaded = False

    @property
    def running(self) -> list[ray.ObjectRef]:
        """What will say that a shard is done."""
        return [reference for worker in self._workers for reference in worker.shards]

    def enlist(self) -> None:
        """Starts actors where there is room for more; looks every few seconds."""
        if self._workers and time.monotonic() - self._looked_at_room < ROOM_EVERY_S:
            return
        self._looked_at_room = time.monotonic()
        wanted = self._actors.count
        if wanted is None:
            nodes = nodes_alive()
            wanted = room_for(self._needs, nodes)
            if not (wanted or self._workers or self._ever_loaded):
                raise _no_room(self._expert, self._needs, nodes)
        self._lots += 1
        for _ in range(min(wanted, self._most) - len(self._workers)):
            actor = self._kind.remote(*self._arguments)
            self._workers.append(_Worker(self._lots, actor, actor.load.remote()))

    def hand_out(self, queue: ShardQueue) -> None:
        """Gives shards to those who hold fewest; a second one only while there are plenty.

        None waits for an actor that is still to get its cores: where another driver holds them,
        and waits for cores in its turn, neither would ever end.
        """
        loaded = [worker for worker in self._workers if worker.ready is None]
        for ahead in range(SHARDS_AHEAD):
            for worker in loaded:
                if len(worker.shards) == ahead and len(queue.waiting) > ahead * len(loaded):
                    shard, plan = queue.take()
                    worker.shards[worker.actor.ground.remote(shard, plan)] = shard

    def finished(self, queue: ShardQueue) -> list[tuple[int, ShardReport | None]]:
        """The shards that have been done meanwhile, with what they took; None: by another driver.

        Waits a moment for the first of them.
        """
        owner = {reference: worker for worker in self._workers for reference in worker.shards}
        owner |= {worker.ready: worker for worker in self._workers if worker.ready is not None}
        if not owner:  # all are lost, and no node has room
            time.sleep(POLL_S)
            return []
        references, _ = ray.wait([*owner], num_returns=1, timeout=POLL_S)
        if references:  # and whatever else is ready
            references, _ = ray.wait([*owner], num_returns=len(owner), timeout=0)
        self._read_board()
        done: list[tuple[int, ShardReport | None]] = []
        for reference in references:
            worker = owner[reference]
            if worker not in self._workers:  # buried a moment ago: others do what it held
                continue
            try:
                [report] = results([reference])
            except LOST as error:
                self._bury(worker, queue, why=str(error).strip().splitlines()[0])
                continue
            except NoRoomOnGpuError as error:
                self._bury(worker, queue, why=str(error), error=error)
                continue
            except BrokenExpertError as error:
                shard = worker.shards.pop(reference)
                self._begun.pop(shard, None)
                queue.broke(shard, error)
                self._bury(worker, queue, why=str(error))
                continue
            if worker.ready is not None:
                worker.ready = None
                self._ever_loaded = True
                self._lots_lost.clear()
                continue
            shard = worker.shards.pop(reference)
            self._begun.pop(shard, None)
            queue.done()
            done.append((shard, report))
        return done

    def strength(self) -> tuple[int, int]:
        """Actors at work, and those that have not started."""
        starting = sum(worker.ready is not None for worker in self._workers)
        return len(self._workers) - starting, starting

    def looked_at(self) -> int:
        """Images of shards that are not done yet, as far as actors have told."""
        return sum(rows.start for rows in self._begun.values() if rows is not None)

    def dismiss(self) -> None:
        """Ends all actors."""
        for worker in self._workers:
            ray.kill(worker.actor)

    def _bury(
        self, worker: _Worker, queue: ShardQueue, *, why: str, error: MuvaError | None = None
    ) -> None:
        """Gives what it held to others. Raises `error` or another where no process gets to work."""
        self._read_board()
        self._workers.remove(worker)
        ray.kill(worker.actor)  # one that cannot be reached may live
        at_work, _ = self.strength()
        if not at_work:
            self._looked_at_room = -ROOM_EVERY_S
        for shard in worker.shards.values():
            begun = shard in self._begun
            queue.died(shard, begun=begun, at=self._begun.pop(shard, None), why=why)
        if worker.ready is not None:
            self._lots_lost.add(worker.lot)
            if len(self._lots_lost) >= MOST_DEATHS_LOADING and not at_work:
                raise error or MuvaError(
                    f"expert {self._expert.name}: {MOST_DEATHS_LOADING} processes died while they "
                    f"loaded it; the last one: {why}. Is there memory for it? `muva experts` tells "
                    "sizes"
                )

    def _read_board(self) -> None:
        held = {shard for worker in self._workers for shard in worker.shards.values()}
        for shard, rows in self._board.drain():
            if shard in held:
                self._begun[shard] = rows


def _no_room(
    expert: ChosenExpert, needs: Mapping[str, float], nodes: Iterable[Mapping[str, float]]
) -> MuvaError:
    largest = max((node.get("memory", 0) for node in nodes), default=0)
    if "memory" in needs and needs["memory"] > largest:
        return MuvaError(
            f"expert {expert.name}: needs about {needs['memory'] / 1e9:.1f} GB of memory; the "
            f"largest node of this cluster has {largest / 1e9:.1f} GB for it. Choose "
            f"{_fitting(largest - PROCESS_BYTES)}; or ask with --actors N, which waits for nodes "
            "that an autoscaler adds"
        )
    wanted = ", ".join(f"{amount:g} {name}" for name, amount in needs.items() if name != "memory")
    return MuvaError(
        f"expert {expert.name}: no node of this cluster has {wanted} for an actor. Choose less "
        "with --cpus-per-actor and --gpus-per-actor; or ask with --actors N, which waits for nodes "
        "that an autoscaler adds"
    )


def _fitting(room: float) -> str:
    """The experts whose weights and answers fit into so many bytes, as advice."""
    names = [
        name
        for name, info in EXPERTS.items()
        if 0 < ROOM_FOR_ANSWERS * info.memory_gb * 1e9 <= room
    ]
    return f"one that fits: {', '.join(names)}" if names else "a larger machine"


class NoRoomOnGpuError(MuvaError):
    """The GPU of a process has no room for the expert; that of another may have."""


def _check_gpu(expert: ChosenExpert) -> None:
    """NoRoomOnGpuError where the GPU of this process has no room for the expert's weights."""
    weights = expert.weight_bytes()
    if not weights or not torch.cuda.is_available():
        return
    free, total = torch.cuda.mem_get_info()
    needed = ROOM_FOR_ANSWERS * weights
    if needed > free:
        raise NoRoomOnGpuError(
            f"expert {expert.name}: needs about {needed / 1e9:.1f} GB of a GPU's memory; "
            f"{free / 1e9:.1f} of {total / 1e9:.1f} GB are free. Choose {_fitting(free)}; or fewer "
            "actors to a GPU with --gpus-per-actor 1"
        )


class _Grounder:
    """An expert at work: labels one shard after the other."""

    def __init__(
        self,
        dataset: Artifact,
        labels: Artifact,
        expert: ChosenExpert,
        phrases: Mapping[str, str],
        threads: int,
        on_gpu: bool,
        board: Board,
    ) -> None:
        torch.set_num_threads(threads)
        if not on_gpu:  # Ray hides none from who asks for none
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._batch_images = expert.info.batch_images
        self._labels, self._board = labels, board
        self._chosen, self._phrases = expert, phrases
        self._dataset_at = dataset
        tags = ("dataset", "expert")
        self._tags = {"dataset": dataset.name, "expert": expert.name}
        self._images = Metric("muva_grounding_images", "Images looked at.", tags)
        self._failed = Metric("muva_grounding_failed", "Images set aside.", tags)
        self._decode_s = Metric("muva_grounding_decode_s", "Seconds in decoding.", tags)
        self._model_s = Metric("muva_grounding_model_s", "Seconds in the expert.", tags)

    def load(self) -> None:
        """Opens the data set and loads the expert: a method, so that its errors arrive as such."""
        self._dataset = open_dataset(self._dataset_at)
        _check_gpu(self._chosen)
        try:
            self._expert = self._chosen.load()
        except torch.OutOfMemoryError as error:
            raise NoRoomOnGpuError(
                f"expert {self._chosen.name}: does not fit on this GPU ({error}). Choose a smaller "
                "one, or fewer actors to a GPU with --gpus-per-actor 1"
            ) from error

    def ground(self, shard: int, plan: RetryPlan) -> ShardReport | None:
        """Writes the labels of one shard, unless another driver's actor has meanwhile."""
        if self._labels.store.exists(self._labels.key(label_key(shard))):
            return None
        careful = bool(plan.isolate or plan.quarantine)
        self._board.post((shard, None), wait=careful)
        table, report = ground_shard(
            self._dataset,
            shard,
            expert=self._expert,
            name=self._chosen.name,
            phrases=self._phrases,
            batch_images=self._batch_images,
            plan=plan,
            on_start=lambda rows: self._board.post((shard, rows), wait=careful),
        )
        self._batch_images = report.batch_images
        if not write_shard_labels(self._labels, shard, table):
            return None
        self._images.inc(report.images, self._tags)
        for counter, amount in (
            (self._failed, report.failed),
            (self._decode_s, report.decode_s),
            (self._model_s, report.model_s),
        ):
            if amount > 0:
                counter.inc(amount, self._tags)
        return report
