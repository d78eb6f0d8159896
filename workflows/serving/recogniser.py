"""A replica of a model, with its calibration and its gallery.

Every answer comes from one call to one replica, so that it never mixes two models, and says which
model it is from. Mistakes of the caller are answers too: Ray Serve logs what a replica raises, with
a traceback.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ray.util.metrics import Counter, Histogram

import muva
from muva.data.artifacts import open_artifact
from muva.data.images import resized_rgb
from muva.errors import MuvaError
from muva.model.bundle_description import CALIBRATION
from muva.model.precision import Precision, resolve_precision
from muva.models import model_description
from muva.retrieval.calibration import Calibration
from workflows.serving.batches import Batches
from workflows.serving.errors import RequestError, invalid
from workflows.serving.fields import CompareFields, ForgetFields, RowFields, SearchFields
from workflows.serving.gallery import ServedGallery, open_served
from workflows.serving.metrics import BATCHES
from workflows.serving.settings import ServeSettings
from workflows.steps.calibrated import Decision

if TYPE_CHECKING:
    from muva.retrieval.gallery_rows import Match

DECIMALS = 6
_MOST_DECODERS = 8
_WARM_UP = 2

Answer = dict[str, Any]
"""`answer`, or `error` and its `status`."""


class Recogniser:
    """Embeds and compares images, and searches a gallery."""

    def __init__(self, settings: ServeSettings) -> None:
        scaling = settings.scaling
        if not scaling.gpus:
            # Ray sets OMP_NUM_THREADS to the whole cores of the replica, at least 1.
            torch.set_num_threads(max(1, round(scaling.cpus)))
        self._address = settings.model
        self._weights = model_description(open_artifact(settings.model))["sha256"]
        self._bundle = muva.load(settings.model)
        self._bundle.to("cuda" if scaling.gpus else "cpu")
        self._precision: Precision = resolve_precision(scaling.precision, self._bundle.device)
        stored = self._bundle.metadata.get(CALIBRATION)
        self._calibration = None if stored is None else Calibration.from_json(stored)
        self._gallery: ServedGallery | None = (
            None if settings.gallery is None else open_served(settings.gallery, self._weights)
        )
        self._batch_size = scaling.batch_size
        self._decoding = ThreadPoolExecutor(min(_MOST_DECODERS, os.cpu_count() or 1))
        self._searching = ThreadPoolExecutor(2)
        self._batches = Batches(
            self._encode, size=scaling.batch_size, wait_s=scaling.batch_wait_ms / 1000
        )
        self._batch_images = Histogram(
            "muva_serve_batch_images", "Images computed together.", boundaries=BATCHES
        )
        self._images = Counter("muva_serve_images", "Embedded images.")
        size = (self._bundle.image_height, self._bundle.image_width)
        self._encode([np.zeros((_WARM_UP, *size, 3), np.uint8)])  # the first pass is slow

    async def describe(self) -> Answer:
        """The model, its calibration, and what is in the gallery."""

        async def work() -> dict[str, Any]:
            known = self._calibration
            gallery = None
            if self._gallery is not None:
                gallery = await self._in_thread(self._searching, self._gallery.describe)
            return {
                "feature_dim": self._bundle.feature_dim,
                "image_height": self._bundle.image_height,
                "image_width": self._bundle.image_width,
                "fars": [] if known is None else sorted(known.thresholds),
                "gallery": gallery,
            }

        return await self._answer(work)

    async def embed(self, images: list[bytes]) -> Answer:
        """The features of images, float32 of unit length."""

        async def work() -> dict[str, Any]:
            return {"features": [one.tolist() for one in await self._features(images)]}

        return await self._answer(work)

    async def compare(self, images: list[bytes], fields: CompareFields) -> Answer:
        """Whether two images show the same person."""

        async def work() -> dict[str, Any]:
            decision = self._decision(fields.far)
            one, other = (await self._features(images)).astype(np.float64)
            cosine = float(one @ other)
            return {"cosine": round(cosine, DECIMALS), **self._decided(decision, cosine)} | (
                {} if decision is None else _line(decision)
            )

        return await self._answer(work)

    async def search(self, images: list[bytes], fields: SearchFields) -> Answer:
        """The gallery's images that are most similar to those of a person."""

        async def work() -> dict[str, Any]:
            gallery = self._opened_gallery()
            decision = self._decision(fields.far)
            mean = (await self._features(images)).astype(np.float64).mean(axis=0)
            length = np.linalg.norm(mean)
            if not length > 0:
                raise invalid("images: their features cancel each other out; send fewer")
            feature = (mean / length).astype(np.float32)
            matches = await self._in_thread(
                self._searching, lambda: gallery.search(feature, fields)
            )
            return {
                "matches": [
                    self._match(rank, match, decision) for rank, match in enumerate(matches, 1)
                ],
                **({} if decision is None else _line(decision)),
            }

        return await self._answer(work)

    async def add(self, images: list[bytes], rows: list[RowFields]) -> Answer:
        """Add images to the gallery; one whose id it has replaces that."""

        async def work() -> dict[str, Any]:
            gallery = self._opened_gallery()
            features = await self._features(images)
            await self._in_thread(self._searching, lambda: gallery.add(features, rows))
            return {"added": len(rows)}

        return await self._answer(work)

    async def forget(self, fields: ForgetFields) -> Answer:
        """Delete people or images from the gallery."""

        async def work() -> dict[str, Any]:
            gallery = self._opened_gallery()
            return {
                "deleted": await self._in_thread(self._searching, lambda: gallery.forget(fields))
            }

        return await self._answer(work)

    async def picture(self, image_id: str) -> bytes | None:
        """A small JPEG of an image of the gallery, where it is known and on this machine."""
        if self._gallery is None:
            return None
        return await self._in_thread(self._decoding, self._gallery.picture, image_id)

    async def check_health(self) -> None:
        """Ray Serve replaces a replica in which this fails or hangs."""
        await self._batches.idle()

    async def _answer(self, work: Callable[[], Any]) -> Answer:
        model = {"address": self._address, "weights": self._weights}
        try:
            return {"answer": {"model": model, **await work()}}
        except RequestError as error:
            return {"status": error.status, **error.as_json()}
        except MuvaError as error:
            return {"status": 422, **invalid(str(error)).as_json()}

    async def _features(self, images: Sequence[bytes]) -> np.ndarray:
        """(B, F) float32; at most a batch at a time, computed together with other requests'."""
        size = {"height": self._bundle.image_height, "width": self._bundle.image_width}

        def resized(numbered: tuple[int, bytes]) -> np.ndarray:
            number, image = numbered
            try:
                return resized_rgb(image, **size, interpolation="bilinear")
            except MuvaError as error:
                reason = str(error).partition(": ")[2] or str(error)
                raise invalid(f"images[{number}]: {reason[:200]}", code="not_an_image") from error

        pixels = await asyncio.gather(
            *(self._in_thread(self._decoding, resized, one) for one in enumerate(images))
        )
        parts = [
            np.stack(pixels[first : first + self._batch_size])
            for first in range(0, len(pixels), self._batch_size)
        ]
        return np.concatenate(await asyncio.gather(*(self._batches.result(part) for part in parts)))

    def _encode(self, parts: list[np.ndarray]) -> list[np.ndarray]:
        """The features (B, F) of each part (B, H, W, 3)."""
        batch = torch.from_numpy(np.concatenate(parts)).permute(0, 3, 1, 2)
        features = self._bundle.embed_pixels(batch, precision=self._precision)
        self._batch_images.observe(len(batch))
        self._images.inc(len(batch))
        return np.split(features, np.cumsum([len(part) for part in parts])[:-1])

    async def _in_thread(self, threads: ThreadPoolExecutor, work: Any, *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(threads, work, *given)

    def _opened_gallery(self) -> ServedGallery:
        if self._gallery is None:
            raise RequestError(
                404, "no_gallery", "this service has no gallery: muva serve MODEL --gallery NAME"
            )
        return self._gallery

    def _decision(self, far: float | None) -> Decision | None:
        """Where to separate the same person from others; None if the model is not calibrated."""
        if self._calibration is not None:
            return Decision.at(self._calibration, far, model="the model")
        if far is not None:
            raise invalid("far: the model is not calibrated, so it has no thresholds")
        return None

    def _decided(self, decision: Decision | None, cosine: float) -> dict[str, Any]:
        if decision is None:
            return {}
        return {
            "probability": round(decision.probability(cosine), DECIMALS),
            "same_person": decision.same(cosine),
        }

    def _match(self, rank: int, match: Match, decision: Decision | None) -> dict[str, Any]:
        row = match.row
        return {
            "rank": rank,
            "image_id": row.image_id,
            "cosine": round(match.cosine, DECIMALS),
            **self._decided(decision, match.cosine),
            "pid": row.pid,
            "camid": row.camid,
            "time": None if row.time is None else row.time.isoformat(),
            "place": row.place,
            "picture": row.folder is not None,
        }


def _line(decision: Decision) -> dict[str, float]:
    return {"threshold": decision.threshold, "far": decision.far}
