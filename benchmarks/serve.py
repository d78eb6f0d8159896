"""What does serving a model cost, and what does it survive?: `python -m benchmarks.serve`.

`muva serve`'s application runs on the cores of this machine, and its clients beside it. 32 clients
that wait for each answer give the throughput, compared with the bare model on batches in memory, on
the same cores. Requests that arrive at random at half that rate give the latencies. Under load a
replica is killed and another model deployed; then 1,000 malformed requests are sent. `--check`
exits with 1 where a goal is missed.
"""

from __future__ import annotations

import asyncio
import io
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import ray
import torch
from PIL import Image

import muva
from benchmarks.baseline import Table, benchmark_parser, exit_code, median_of, write_results
from benchmarks.baseline import measurement as measured_value
from benchmarks.malformed import malformed_requests
from benchmarks.memory import memory_mb
from benchmarks.serving import random_model
from muva.config import ModelConfig
from muva.data.artifacts import open_artifact
from muva.data.store import open_store
from muva.model.bundle import Bundle
from muva.models import model_description
from muva.synthetic import render
from workflows.runtime.available import usable_cpus
from workflows.runtime.cluster import ray_cluster
from workflows.runtime.local import HOST, usable_port
from workflows.serving.server import deploy, served
from workflows.serving.settings import Scaling, ServeSettings
from workflows.serving.token import LOOPBACK, access_by
from workflows.session import Session
from workflows.steps.named_model import named_model

MIN_SHARE = 0.85
"""Goal: the fraction of the bare model's images per second that clients get."""
MAX_GROWTH = 0.05
"""Goal: how much the service's memory may grow over the second half of the malformed requests."""
CLIENTS, BATCH, MALFORMED = 32, 32, 1000
ROUNDS = 4
"""In which the bare model and the service are measured in turn."""
TOKEN = "a-token-of-the-benchmark"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
WORKS = {"ViT-B-16": True, "synthetic": False}
"""Model -> whether the goal of the throughput applies to it."""
ANSWERED_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Load:
    """How much is measured."""

    seconds: float
    """Of each measurement."""
    fault_s: float
    """Of load before, between and after the faults."""
    malformed: int


def main() -> int:
    """Measure and print; with --check, exit with 1 if a goal is missed."""
    parser = benchmark_parser("serve", __doc__, check="exit 1 when a goal is missed")
    parser.add_argument("--works", nargs="*", default=list(WORKS), choices=list(WORKS))
    parser.add_argument("--seconds", type=float, default=60, help="of each measurement")
    parser.add_argument("--malformed", type=int, default=MALFORMED, help="0: leave faults out")
    arguments = parser.parse_args()
    load = Load(seconds=arguments.seconds, fault_s=5, malformed=arguments.malformed)
    found: dict[str, Any] = {"rates": {}}
    with tempfile.TemporaryDirectory() as folder, ray_cluster():
        home = Path(folder)
        session = Session(home=home, store=open_store(home / "store"), tracking_uri=None)
        print("| model | bare, images/s | served | share | p50, ms | p95, ms |")
        print("|---|---:|---:|---:|---:|---:|")
        for name in arguments.works:
            found["rates"][name] = rates(session, name, load)
            print_rates(name, found["rates"][name])
        if load.malformed:
            found["faults"] = faults(session, load)
            print_faults(found["faults"])
    write_results(arguments, found, baseline_tables)
    return exit_code(arguments, misses(found))


def rates(session: Session, name: str, load: Load) -> dict[str, Any]:
    """The bare model's and the service's images per second, and latencies at half of that."""
    bundle = muva.load("synthetic") if name == "synthetic" else random_model(ModelConfig())
    address = stored(session, bundle, name)
    # The service holds all cores.
    bare: Any = ray.remote(num_cpus=0)(Bare).remote(address)
    bare_rates, served_rates = [], []
    with service(address, replicas=1) as (url, _):
        crops = shots(bundle)
        asyncio.run(closed_loop(url, crops, seconds=min(5, load.seconds)))  # warm up
        for _ in range(ROUNDS):
            bare_rates.append(ray.get(bare.rate.remote(load.seconds / ROUNDS)))
            served_rates.append(
                asyncio.run(closed_loop(url, crops, seconds=2 * load.seconds / ROUNDS))
            )
        served_rate = median_of(served_rates)
        latencies = asyncio.run(open_loop(url, crops, rate=served_rate / 2, seconds=load.seconds))
    p50, p95 = np.percentile(latencies, [50, 95]) * 1000
    return {
        "bare": median_of(bare_rates),
        "served": served_rate,
        "share": median_of(
            [one / other for one, other in zip(served_rates, bare_rates, strict=True)]
        ),
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "requests": len(latencies),
    }


def stored(session: Session, bundle: Bundle, name: str) -> str:
    """The address of a bundle's copy in the store."""
    folder = session.home / name
    bundle.save(folder)
    return named_model(session, str(folder)).uri


def settings_for(address: str, *, replicas: int) -> ServeSettings:
    """A service on all cores of this machine."""
    return ServeSettings(
        model=address,
        access=access_by(TOKEN, hosts=LOOPBACK),
        scaling=Scaling(
            min_replicas=replicas,
            max_replicas=replicas,
            cpus=max(1, usable_cpus() // replicas),
            batch_size=BATCH,
        ),
    )


@contextmanager
def service(address: str, *, replicas: int) -> Iterator[tuple[str, Callable[[str], None]]]:
    """The service during the block: its URL, and what deploys another model."""
    port = usable_port(0)
    with served(settings_for(address, replicas=replicas), host=HOST, port=port):
        yield f"http://{HOST}:{port}", lambda one: deploy(settings_for(one, replicas=replicas))


class Bare:
    """The model alone, in a worker of Ray: these have a lower priority than the benchmark.

    It is measured in turn with the service, so that other work on the machine slows both down.
    """

    def __init__(self, address: str) -> None:
        torch.set_num_threads(usable_cpus())
        self._bundle = muva.load(address)
        size = (self._bundle.image_height, self._bundle.image_width)
        self._batch = torch.randint(0, 256, (BATCH, 3, *size), dtype=torch.uint8)
        self._bundle.embed_pixels(self._batch)

    def rate(self, seconds: float) -> float:
        """Images per second, on batches in memory."""
        started_at, images = time.perf_counter(), 0
        while (spent := time.perf_counter() - started_at) < seconds:
            self._bundle.embed_pixels(self._batch)
            images += BATCH
        return images / spent


def shots(bundle: Bundle) -> list[bytes]:
    """JPEGs of rendered people, of the model's size."""
    found = []
    for pid in range(1, 17):
        size = {"height": bundle.image_height, "width": bundle.image_width}
        written = io.BytesIO()
        image = render("syn-plaza", pid=pid, camid=1, index=0, **size).image
        Image.fromarray(image).save(written, "JPEG")
        found.append(written.getvalue())
    return found


async def closed_loop(url: str, crops: list[bytes], *, seconds: float) -> float:
    """Images per second of clients that each wait for an answer before they ask again."""
    answered = 0
    ends_at = time.perf_counter() + seconds

    async def client(number: int) -> None:
        nonlocal answered
        async with httpx2.AsyncClient(headers=HEADERS, timeout=ANSWERED_S) as http:
            while time.perf_counter() < ends_at:
                await embedded(http, url, crops[number % len(crops)])
                answered += 1

    started_at = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return answered / (time.perf_counter() - started_at)


async def open_loop(url: str, crops: list[bytes], *, rate: float, seconds: float) -> list[float]:
    """Seconds from when each request was due, which arrive at random, to its answer."""
    rng = np.random.default_rng(0)
    due = np.cumsum(rng.exponential(1 / rate, max(1, round(rate * seconds))))
    latencies = []
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=CLIENTS)
    async with httpx2.AsyncClient(headers=HEADERS, timeout=ANSWERED_S, limits=limits) as http:
        started_at = time.perf_counter()

        async def ask(number: int, at: float) -> None:
            await asyncio.sleep(max(0.0, started_at + at - time.perf_counter()))
            await embedded(http, url, crops[number % len(crops)])
            latencies.append(time.perf_counter() - started_at - at)

        await asyncio.gather(*(ask(number, float(at)) for number, at in enumerate(due)))
    return latencies


async def embedded(http: httpx2.AsyncClient, url: str, crop: bytes) -> Mapping[str, Any]:
    """The answer for one image; it must be a success."""
    response = await http.post(f"{url}/v1/embed", files={"image": ("crop.jpg", crop)})
    response.raise_for_status()
    return response.json()


def faults(session: Session, load: Load) -> dict[str, Any]:
    """What is lost when a replica dies and a model changes, and how malformed requests end."""
    first = muva.load("synthetic")
    second = muva.load("synthetic")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in second.model.parameters():
            parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
    addresses = stored(session, first, "first"), stored(session, second, "second")
    crops = shots(first)
    expected = {
        str(model_description(open_artifact(address))["sha256"]): bundle.embed(crops)
        for address, bundle in zip(addresses, (first, second), strict=True)
    }
    with service(addresses[0], replicas=min(2, usable_cpus())) as (url, deploy_model):
        under_load = asyncio.run(
            changes_under_load(url, crops, expected, lambda: deploy_model(addresses[1]), load)
        )
        refused = asyncio.run(malformed(url, crops, load.malformed))
    return {"under_load": under_load, "malformed": refused}


async def changes_under_load(
    url: str,
    crops: list[bytes],
    expected: Mapping[str, np.ndarray],
    change: Callable[[], None],
    load: Load,
) -> dict[str, Any]:
    """Kill a replica, then change the model, while clients ask; count what went wrong."""
    counts: Counter[str] = Counter()
    over = asyncio.Event()
    slowest = 0.0

    async def client(number: int) -> None:
        nonlocal slowest
        async with httpx2.AsyncClient(headers=HEADERS, timeout=ANSWERED_S) as http:
            while not over.is_set():
                index = number % len(crops)
                started_at = time.perf_counter()
                try:
                    answer = await embedded(http, url, crops[index])
                except httpx2.HTTPError:
                    counts["lost"] += 1
                    continue
                slowest = max(slowest, time.perf_counter() - started_at)
                weights = answer["model"]["weights"]
                right = expected[weights][index]
                counts[f"model {list(expected).index(weights) + 1}"] += 1
                counts["mixed"] += not np.allclose(answer["features"][0], right, atol=1e-3)

    clients = [asyncio.create_task(client(number)) for number in range(CLIENTS)]
    await asyncio.sleep(load.fault_s)
    await asyncio.to_thread(kill_a_replica)
    await asyncio.sleep(load.fault_s)
    await asyncio.to_thread(change)
    await asyncio.sleep(load.fault_s)
    over.set()
    await asyncio.gather(*clients)
    return {
        "answers": counts["model 1"] + counts["model 2"],
        "of_new_model": counts["model 2"],
        "lost": counts["lost"],
        "mixed": counts["mixed"],
        "slowest_s": slowest,
    }


def kill_a_replica() -> None:
    """Kill the process of one of the model's replicas."""
    named: list[Any] = ray.util.list_named_actors(all_namespaces=True)
    names = [one["name"] for one in named]
    name = next(one for one in names if "Recogniser" in one)
    ray.kill(ray.get_actor(name, namespace="serve"), no_restart=True)


async def malformed(url: str, crops: list[bytes], count: int) -> dict[str, Any]:
    """How malformed requests end; what the service's processes are and hold before and after."""
    statuses: Counter[str] = Counter()
    unexplained: list[str] = []
    half = 0.0
    processes = service_processes()
    for number, one in enumerate(malformed_requests(count, crops[0])):
        if number == count // 2:
            half = service_memory_mb()
        headers = {"Content-Type": one.content_type, **(HEADERS if one.token else {})}
        if one.declared is not None:
            headers["Content-Length"] = str(one.declared)
        status, explained = await answer_to(url, one.path, headers, one.content)
        statuses[str(status)] += 1
        if not 400 <= status < 500 or not explained:
            unexplained.append(f"{one.kind}: {status}")
    async with httpx2.AsyncClient(headers=HEADERS, timeout=ANSWERED_S) as http:
        await embedded(http, url, crops[0])
    after = service_memory_mb()
    return {
        "requests": count,
        "statuses": dict(sorted(statuses.items())),
        "unexplained": unexplained,
        "same_processes": processes == service_processes(),
        "memory_half_mb": half,
        "memory_mb": after,
        "growth": after / half - 1,
    }


async def answer_to(
    url: str, path: str, headers: Mapping[str, str], content: bytes
) -> tuple[int, bool]:
    """The status of a response, which may come before all is sent, and whether it has a reason."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    sent = {"Host": f"{host}:{port}", "Connection": "close", "Content-Length": str(len(content))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in {**sent, **headers}.items())

    async def send() -> None:
        writer.write(f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + content)
        await writer.drain()

    sending = asyncio.create_task(send())
    try:
        answer = await asyncio.wait_for(_one_response(reader), ANSWERED_S)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    return (int(words[1]) if len(words) > 1 else 0), b'"message":"' in body


async def _one_response(reader: asyncio.StreamReader) -> bytes:
    answer = b""
    try:
        while chunk := await reader.read(65_536):
            answer += chunk
            if b"\r\n\r\n" in answer and answer.endswith(b"}}"):
                break
    except ConnectionError:
        pass  # the server closes while the rest of a large request is on its way
    return answer


def service_processes() -> dict[int, str]:
    """The processes of Ray Serve on this machine by their ids."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if title.startswith(("ray::ServeReplica", "ray::ProxyActor")):
            found[int(folder.name)] = title.split(":")[2]
    return found


def service_memory_mb() -> float:
    """What these processes hold together."""
    return sum(memory_mb(Path(f"/proc/{number}")) for number in service_processes())


def misses(found: Mapping[str, Any]) -> list[str]:
    """The goals that were missed."""
    missed = [
        f"{name}: {of['share']:.3f} of the bare model, expected {MIN_SHARE}"
        for name, of in found["rates"].items()
        if WORKS[name] and of["share"] < MIN_SHARE
    ]
    if "faults" not in found:
        return missed
    changed, refused = found["faults"]["under_load"], found["faults"]["malformed"]
    missed += [
        f"{changed[name]} answers {name} while replicas changed"
        for name in ("lost", "mixed")
        if changed[name]
    ]
    if not changed["of_new_model"]:
        missed.append("no answer of the new model")
    if refused["unexplained"]:
        missed.append(f"malformed requests without a reason: {refused['unexplained'][:5]}")
    if not refused["same_processes"]:
        missed.append("a process of the service died")
    if refused["growth"] > MAX_GROWTH:
        missed.append(f"memory grew by {refused['growth']:.1%}, expected {MAX_GROWTH:.0%}")
    return missed


def baseline_tables(found: Mapping[str, Any]) -> dict[str, Table]:
    """`rates`: a row per model. `faults`: a row of what changed, one of what was malformed."""
    rates_rows = [
        {
            "model": "ViT-B/16, 256 x 128" if name == "ViT-B-16" else name,
            "bare": measured_value(of["bare"]),
            "served": measured_value(of["served"]),
            "share": measured_value(of["share"]),
            "p50_ms": of["p50_ms"],
            "p95_ms": of["p95_ms"],
            **({"goal": MIN_SHARE} if WORKS[name] else {}),
        }
        for name, of in found["rates"].items()
    ]
    tables = {"rates": Table(rows=rates_rows)}
    if "faults" in found:
        changed, refused = found["faults"]["under_load"], found["faults"]["malformed"]
        tables["faults"] = Table(
            rows=[
                {
                    "what": "a replica killed, then a new model",
                    "requests": changed["answers"] + changed["lost"],
                    "wrong": changed["lost"] + changed["mixed"],
                },
                {
                    "what": "malformed requests",
                    "requests": refused["requests"],
                    "wrong": len(refused["unexplained"]),
                },
            ]
        )
    return tables


def print_rates(name: str, of: Mapping[str, float]) -> None:
    """A row of the table."""
    print(
        f"| {name} | {of['bare']:.1f} | {of['served']:.1f} | {of['share']:.3f} | "
        f"{of['p50_ms']:.0f} | {of['p95_ms']:.0f} |",
        flush=True,
    )


def print_faults(found: Mapping[str, Mapping[str, Any]]) -> None:
    """What happened under faults, a line each."""
    for title, of in found.items():
        print(f"\n{title.replace('_', ' ')}: " + ", ".join(f"{k} {v}" for k, v in of.items()))


if __name__ == "__main__":
    sys.exit(main())
