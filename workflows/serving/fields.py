"""The fields of requests beside the images, the same for JSON and forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from workflows.serving.bodies import Body
from workflows.serving.errors import RequestError, invalid
from workflows.serving.settings import Limits

MAX_ID = 512
_INT64 = 2**63 - 1

Integer = Annotated[int, Field(ge=-_INT64, le=_INT64)]


def _id(value: str) -> str:
    parts = value.split("/")
    if not value.isprintable() or any(part in ("", ".", "..") for part in parts) or "\\" in value:
        raise ValueError(
            "expected a relative path with forward slashes, without .. and control characters"
        )
    return value


def _utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


ImageId = Annotated[str, Field(min_length=1, max_length=MAX_ID), AfterValidator(_id)]
Time = Annotated[datetime, AfterValidator(_utc)]
Place = Annotated[str, Field(min_length=1, max_length=200)]
Far = Annotated[float | None, Field(gt=0, lt=1, description="False-accept rate. [0.001]")]


class Fields(BaseModel):
    """Fields of a request; those that it does not know are refused."""

    model_config = ConfigDict(extra="forbid")


class NoFields(Fields):
    """A request of images alone."""


class CompareFields(Fields):
    """How to compare two images."""

    far: Far = None


class SearchFields(Fields):
    """Which images of the gallery a search returns."""

    top: int = Field(20, ge=1, description="The number of matches.")
    far: Far = None
    camids: list[Integer] = Field([], max_length=1000, description="Cameras to search. [all]")
    places: list[Place] = Field([], max_length=1000, description="Places to search. [all]")
    after: Time | None = Field(None, description="The earliest time, ISO 8601.")
    before: Time | None = Field(None, description="The first time that is too late.")


class RowFields(Fields):
    """What is known of an image that is added."""

    image_id: ImageId
    pid: Integer | None = None
    camid: Integer | None = None
    time: Time | None = None
    place: Place | None = None


class ForgetFields(Fields):
    """Whom to forget: people, images, or both."""

    pids: list[Integer] = Field([], max_length=10_000)
    image_ids: list[ImageId] = Field([], max_length=10_000)


F = TypeVar("F", bound=Fields)


def fields_of(body: Body, kind: type[F]) -> F:
    """The fields of a request.

    Raises:
        RequestError: a field is unknown or has another type.
    """
    if any(one for one in body.details):
        raise invalid("images[0]: expected nothing but the image")
    return _validated(kind, _single(body.fields, kind) if body.is_form else body.fields)


def check_top(fields: SearchFields, limits: Limits) -> None:
    """Raise RequestError if more matches are asked for than a search may return."""
    if fields.top > limits.top:
        raise invalid(f"top: expected at most {limits.top}")


def rows_of(body: Body) -> list[RowFields]:
    """What a request says of each image that is to be added.

    In a form, a field is given once for each image, or once for all. Raises RequestError.
    """
    if not body.is_form:
        if body.fields:
            raise invalid(f"unknown field {ascii(next(iter(body.fields)))[:80]}")
        return [
            _validated(RowFields, one, where=f"images[{number}].")
            for number, one in enumerate(body.details)
        ]
    count = len(body.images)
    for name, values in body.fields.items():
        if len(values) not in (1, count):
            raise invalid(f"{ascii(name)[:80]}: expected 1 or {count} values, found {len(values)}")
    return [
        _validated(
            RowFields,
            {
                name: values[number % len(values)]
                for name, values in body.fields.items()
                if values[number % len(values)]
            },
            where=f"images[{number}].",
        )
        for number in range(count)
    ]


def _single(form: Mapping[str, Sequence[str]], kind: type[Fields]) -> dict[str, Any]:
    """The fields of a form as values: lists stay, empty texts are left out."""
    found: dict[str, Any] = {}
    for name, values in form.items():
        given = [value for value in values if value != ""]
        if name in ("camids", "places", "pids", "image_ids") and name in kind.model_fields:
            found[name] = given
        elif len(given) > 1:
            raise invalid(f"{ascii(name)[:80]}: expected one value, found {len(given)}")
        elif given:
            found[name] = given[0]
    return found


def _validated(kind: type[F], values: Mapping[str, Any], *, where: str = "") -> F:
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise _explained(error, where) from error


def _explained(error: ValidationError, where: str) -> RequestError:
    """The first problem, without the value that was sent."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])[:80]
    return invalid(f"{where}{ascii(place)[1:-1]}: {first['msg'][:300]}")
