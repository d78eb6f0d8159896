"""A served model: what is sent in which order, how many at once, and what its failures lead to."""

from __future__ import annotations

import base64
import io
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.chat_stub import answer_to, server_stats, stub_server
from benchmarks.grounding_speed import crowd
from muva.config import PHRASES, ExperimentConfig, GroundingConfig
from muva.data.shards import Dataset
from muva.errors import MuvaError
from muva.grounding.chat_client import RetrySettings, retry_after_s, retry_delay_s
from muva.grounding.circuit_breaker import BreakerSettings
from muva.grounding.expert import QUESTION, GroundingImage, RefusedImageError, StreamingExpert
from muva.grounding.experts import choose_expert, label_config
from muva.grounding.experts.http import Endpoint, HttpExpert
from muva.grounding.ground import BrokenExpertError, RetryPlan, ground_shard
from muva.synthetic.sensor import encode_jpeg

Response = tuple[int, dict[str, str], bytes]
BOX = "[[100,200,300,400]]"


@dataclass
class Request:
    """A request as the server has seen it."""

    size: tuple[int, int]
    pixels: np.ndarray
    question: str
    began_at: float
    content: list[dict[str, Any]]
    ended_at: float = float("inf")


@dataclass
class Server:
    """A chat endpoint; `respond` decides about a request, in a thread of its own."""

    respond: Callable[[Request], Response] = lambda request: chat(BOX)
    seen: list[Request] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""


def chat(text: str | None) -> Response:
    return 200, {}, json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    shown = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            began_at = time.monotonic()
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            content = body["messages"][0]["content"]
            picture = Image.open(
                io.BytesIO(base64.b64decode(content[0]["image_url"]["url"].partition(",")[2]))
            )
            request = Request(
                picture.size, np.asarray(picture), content[1]["text"], began_at, content
            )
            with shown.lock:
                shown.seen.append(request)
                shown.at_once += 1
                shown.most_at_once = max(shown.most_at_once, shown.at_once)
            status, headers, answer = shown.respond(request)
            with shown.lock:
                shown.at_once -= 1
            request.ended_at = time.monotonic()
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Listening(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    monkeypatch.setattr("muva.grounding.chat_client.RETRY", RetrySettings(backoff_s=0.01))
    with Listening(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        shown.url = f"http://127.0.0.1:{listening.server_port}/v1"
        yield shown
        listening.shutdown()


def expert_at(url: str, **settings: Any) -> HttpExpert:
    return HttpExpert("model", Endpoint(url=url, token=""), **settings)


def pictures(count: int, *, first_width: int = 20) -> list[bytes]:
    """Images of different widths."""
    rng = np.random.default_rng(0)
    return [
        encode_jpeg(rng.integers(0, 256, (24, first_width + n, 3), np.uint8), quality=90)
        for n in range(count)
    ]


def images(count: int) -> list[GroundingImage]:
    return [
        GroundingImage(image_id=f"{n}", encoded=encoded, annotated=None)
        for n, encoded in enumerate(pictures(count))
    ]


@pytest.fixture
def town(tmp_path: Path) -> Dataset:
    """24 images of different widths in two shards of about the same size in bytes."""
    made = crowd(tmp_path, "town", 24, encoded=pictures(24), shard_images=12)
    assert len(made.shards) == 2
    return made


def widths(dataset: Dataset, shard: int) -> list[int]:
    encoded = dataset.read_shard(shard, ["image"])["image"].to_pylist()
    return [Image.open(io.BytesIO(one)).size[0] for one in encoded]


def test_a_servers_prefix_cache_can_serve_the_other_phrases(server: Server) -> None:
    asked = images(3)
    answers = expert_at(server.url).ground(asked, PHRASES)
    assert [[one.answer for one in of_image] for of_image in answers] == [[BOX] * 3] * 3
    questions = [QUESTION.format(phrase=phrase) for phrase in PHRASES.values()]
    for image in asked:
        of_image = [one for one in server.seen if one.size == image.image.size]
        assert [part["type"] for one in of_image for part in one.content] == [
            "image_url",
            "text",
        ] * 3, "the image comes first"
        assert len({one.content[0]["image_url"]["url"] for one in of_image}) == 1
        assert of_image[0].question == questions[0]
        assert {one.question for one in of_image} == set(questions)
        assert all(one.began_at >= of_image[0].ended_at - 0.001 for one in of_image[1:])
        assert np.array_equal(of_image[0].pixels, np.asarray(image.image)), "losslessly"


def test_as_many_requests_are_in_flight_as_the_settings_say(server: Server) -> None:
    def slow(request: Request) -> Response:
        time.sleep(0.05)
        return chat(BOX)

    server.respond = slow
    expert_at(server.url, requests_in_flight=6).ground(images(12), PHRASES)
    assert server.most_at_once == 6
    assert len(server.seen) == 36


def test_no_image_waits_for_the_slow_answers_of_another(server: Server) -> None:
    release = threading.Event()

    def slow_at_first(request: Request) -> Response:
        if request.size[0] == 20:
            release.wait(30)
        return chat(BOX)

    server.respond = slow_at_first
    expert = expert_at(server.url, requests_in_flight=4)
    outcomes = expert.stream(images(40), PHRASES)
    before = [next(outcomes)[0] for _ in range(39)]
    assert sorted(before) == list(range(1, 40)), "39 others came in the meantime"
    release.set()
    assert [position for position, _ in outcomes] == [0]


def test_the_next_shard_is_sent_while_the_last_answers_of_one_are_outstanding(
    server: Server, town: Dataset
) -> None:
    [slow, *_], release = widths(town, 0), threading.Event()

    def slow_at_one(request: Request) -> Response:
        if request.size[0] == slow:
            release.wait(30)
        return chat(BOX)

    server.respond = slow_at_one
    expert = expert_at(server.url, requests_in_flight=4)
    tables: dict[int, Any] = {}

    def ground(shard: int) -> None:
        tables[shard] = ground_shard(town, shard, expert=expert, name="http")[0]

    threads = [threading.Thread(target=ground, args=(shard,)) for shard in range(2)]
    threads[0].start()
    while len(server.seen) < 12:
        time.sleep(0.01)
    threads[1].start()
    threads[1].join(20)
    assert list(tables) == [1], "the second is done before the first"
    release.set()
    threads[0].join(20)
    ids = [town.read_shard(shard, ["image_id"])["image_id"].to_pylist() for shard in range(2)]
    for shard in range(2):
        assert tables[shard]["image_id"].to_pylist() == [
            one for one in ids[shard] for _ in range(3)
        ]


def test_a_pause_that_the_endpoint_asks_for_is_kept(server: Server) -> None:
    def busy_once(request: Request) -> Response:
        return (429, {"Retry-After": "1"}, b"") if len(server.seen) == 1 else chat(BOX)

    server.respond = busy_once
    expert_at(server.url).ground(images(1), {"head": PHRASES["head"]})
    first, second = server.seen
    assert second.began_at - first.began_at >= 1


def test_pauses_double_have_jitter_and_are_never_shorter_than_asked() -> None:
    settings = RetrySettings(backoff_s=1.0, max_backoff_s=8.0)
    source = random.Random(0)
    for attempts, longest in ((1, 1), (2, 2), (3, 4), (4, 8), (9, 8)):
        drawn = [retry_delay_s(attempts, None, source, settings=settings) for _ in range(200)]
        assert longest / 2 <= min(drawn) < 0.6 * longest
        assert 0.9 * longest < max(drawn) <= longest
        asked = [retry_delay_s(attempts, 5.0, source, settings=settings) for _ in range(200)]
        assert min(asked) >= 5 and 5 + 0.9 * longest < max(asked) <= 5 + longest
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)
    assert retry_after_s({"Retry-After": in_a_minute}) == pytest.approx(60, abs=2)
    assert retry_after_s({"Retry-After": "2"}) == 2
    assert retry_after_s({"Retry-After": "soon"}) is None and retry_after_s({}) is None


def test_an_answer_that_does_not_come_in_time_is_asked_for_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = RetrySettings(backoff_s=0.01, timeout_s=0.3)
    monkeypatch.setattr("muva.grounding.chat_client.RETRY", settings)
    release = threading.Event()

    def hang_once(request: Request) -> Response:
        if len(server.seen) == 1:
            release.wait(30)
        return chat(BOX)

    server.respond = hang_once
    [[answer]] = expert_at(server.url).ground(images(1), {"head": PHRASES["head"]})
    assert answer.answer == BOX and len(server.seen) == 2
    release.set()


def test_an_endpoint_that_stays_busy_is_named_with_the_settings_to_change(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = RetrySettings(backoff_s=0.05, deadline_s=0.5)
    monkeypatch.setattr("muva.grounding.chat_client.RETRY", settings)
    server.respond = lambda request: (429, {}, b"slow down") if request.size[0] == 22 else chat(BOX)
    with pytest.raises(MuvaError, match=r"busy for 0\.5 s \(429 slow down\).*requests_in_flight=N"):
        expert_at(server.url, requests_in_flight=1).ground(images(40), PHRASES)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ((500, {}, b"cannot load it"), "the last time: 500 cannot load it"),
        ((0, {}, b""), "the last time: ServerDisconnectedError"),
        ((200, {}, b"<html>"), "the last time: an unexpected response"),
        ((200, {}, b"x" * 2**21), "the last time: an answer of more than"),
        ((413, {}, b"too large"), "refused by the endpoint: 413 too large"),
    ],
)
def test_an_image_at_which_alone_the_endpoint_fails_is_quarantined_with_the_reason(
    server: Server, town: Dataset, failure: Response, reason: str
) -> None:
    shown = widths(town, 0)
    server.respond = lambda request: failure if request.size[0] == shown[3] else chat(BOX)
    table, report = ground_shard(town, 0, expert=expert_at(server.url), name="http")
    errors = [row["error"] for row in table.to_pylist()][::3]
    assert [error is not None for error in errors] == [row == 3 for row in range(len(shown))]
    assert reason in errors[3]
    assert (report.failed, report.expert_failures) == (1, 1)
    assert table["found"].to_pylist() == [row != 3 for row in range(len(shown)) for _ in PHRASES]


def test_an_endpoint_that_fails_at_everything_is_not_asked_for_ever(
    server: Server, town: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaker = BreakerSettings(failures=6, pause_s=0.02, first_probes=3)
    monkeypatch.setattr("muva.grounding.circuit_breaker.BREAKER", breaker)
    server.respond = lambda request: (500, {}, b"no memory")
    expert = expert_at(server.url, requests_in_flight=4)
    with pytest.raises(MuvaError, match=r"does not answer \(\d+ requests .* one: 500 no memory"):
        ground_shard(town, 0, expert=expert, name="http")
    assert 6 + 3 <= len(server.seen) <= 6 + 3 + 4


def test_an_outage_that_ends_costs_no_image(
    server: Server, town: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaker = BreakerSettings(failures=4, pause_s=0.1)
    monkeypatch.setattr("muva.grounding.circuit_breaker.BREAKER", breaker)
    began_at = time.monotonic()

    def down_for_a_while(request: Request) -> Response:
        return (503, {}, b"") if 0.1 < time.monotonic() - began_at < 1 else chat(BOX)

    server.respond = down_for_a_while
    expert = expert_at(server.url, requests_in_flight=2)
    for shard in range(2):
        table, report = ground_shard(town, shard, expert=expert, name="http")
        assert report.failed == 0 and set(table["answer"].to_pylist()) == {BOX}
        time.sleep(max(0.0, 0.2 - (time.monotonic() - began_at)))


def test_an_endpoint_that_refuses_most_images_is_reported_before_all_were_sent(
    server: Server, tmp_path: Path
) -> None:
    people = crowd(tmp_path, "people", 200, encoded=pictures(4), shard_images=200)
    server.respond = lambda request: (400, {}, b"not a vision model")
    with pytest.raises(BrokenExpertError, match=r"101 of 200 .*400 not a vision model"):
        ground_shard(people, 0, expert=expert_at(server.url, requests_in_flight=4), name="http")
    time.sleep(0.2)
    assert len(server.seen) < 130, "what was outstanding is cancelled"


def test_rows_are_announced_before_they_are_prepared_and_none_while_answers_are_awaited(
    server: Server, town: Dataset
) -> None:
    expert = expert_at(server.url, requests_in_flight=2)
    assert isinstance(expert, StreamingExpert)
    started: list[range] = []
    rows = town.shards[0].rows
    ground_shard(town, 0, expert=expert, name="http", on_start=started.append)
    assert not started[0] and not started[-1], "empty ranges: no row is to blame"
    announced = [row for several in started for row in several]
    assert sorted(announced) == list(range(rows)) and Counter(announced).most_common(1)[0][1] == 1
    started.clear()
    server.seen.clear()
    plan = RetryPlan(isolate=frozenset({5}), quarantine=frozenset({7}))
    table, _ = ground_shard(town, 0, expert=expert, name="http", on_start=started.append, plan=plan)
    assert [*map(list, started)] == [[], *([row] for row in range(rows) if row != 7), []]
    assert len(server.seen) == 3 * (rows - 1)
    assert {row["error"] for row in table.to_pylist()[21:24]} == {
        "the expert's process died twice while it processed this image"
    }


def test_an_image_that_cannot_be_decoded_is_no_failure_of_the_expert(
    server: Server, tmp_path: Path
) -> None:
    encoded = [*pictures(3), pictures(1)[0][:80]]
    asked = [
        GroundingImage(image_id=f"{n}", encoded=one, annotated=None)
        for n, one in enumerate(encoded)
    ]
    outcomes = dict(expert_at(server.url).stream(asked, PHRASES))
    assert [isinstance(outcomes[n], Exception) for n in range(4)] == [False, False, False, True]
    assert "3" not in {f"{one.size}" for one in server.seen} and len(server.seen) == 9


def test_what_is_outstanding_is_cancelled_with_the_stream(server: Server) -> None:
    release = threading.Event()

    def hang(request: Request) -> Response:
        if request.size[0] != 20:
            release.wait(30)
        return chat(BOX)

    server.respond = hang
    expert = expert_at(server.url, requests_in_flight=2)
    with closing(expert.stream(images(2), PHRASES)) as outcomes:
        assert next(outcomes)[0] == 0
    release.set()
    server.respond = lambda request: chat(BOX)
    assert len(expert.ground(images(9), PHRASES)) == 9, "its places are free again"


def test_every_image_ends_once_in_the_labels_whatever_the_server_does(tmp_path: Path) -> None:
    encoded = pictures(30, first_width=40)
    people = crowd(tmp_path, "people", 30, encoded=encoded, shard_images=15)
    settings: dict[str, float] = {
        "slots": 16,
        "median_s": 0.02,
        "share": 0.3,
        "refused_width": 44,
        "seed": 1,
    }
    with stub_server(**settings) as address:
        expert = expert_at(f"{address}/v1", requests_in_flight=16)
        for shard in range(len(people.shards)):
            table, report = ground_shard(people, shard, expert=expert, name="http")
            expected = []
            for width in widths(people, shard):
                for phrase in PHRASES.values():
                    question = QUESTION.format(phrase=phrase)
                    refused = width == 44
                    expected.append("" if refused else answer_to((width, 24), question))
            assert table["answer"].to_pylist() == expected
            assert report.failed == widths(people, shard).count(44)
        faults = server_stats(address)["faults"]
        assert all(faults.values()), faults


def test_how_fast_a_server_is_asked_is_part_of_no_address() -> None:
    slow, fast = (
        GroundingConfig(expert="http", checkpoint="cogvlm", requests_in_flight=count)
        for count in (1, 256)
    )
    assert choose_expert(fast).requests_in_flight == 256
    assert label_config(choose_expert(slow)) == label_config(choose_expert(fast))
    experiments = [ExperimentConfig(grounding=one).result_settings() for one in (slow, fast)]
    assert experiments[0] == experiments[1]
    assert "requests_in_flight" not in json.dumps(experiments[0])


def test_ground_raises_for_an_image_that_is_refused(server: Server) -> None:
    server.respond = lambda request: (
        (400, {}, b"too small") if request.size[0] == 21 else chat(None)
    )
    expert = expert_at(server.url)
    with pytest.raises(RefusedImageError, match="refused by the endpoint: 400 too small"):
        expert.ground(images(3), PHRASES)
    [[nothing]] = expert.ground(images(1), {"head": PHRASES["head"]})
    assert nothing.box is None and nothing.answer == ""
