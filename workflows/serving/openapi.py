"""What OpenAPI says of each endpoint: bodies in JSON and as a form, answers, and examples."""

from __future__ import annotations

from typing import Any

from workflows.serving.fields import CompareFields, Fields, ForgetFields, RowFields, SearchFields

DESCRIPTION = """Embeds, compares and searches images of people.

Send images in JSON, in base64 (`{"images": [{"image": "…"}]}`), or as a form with files named
`image`. Addresses and paths are never opened. Every answer names the model that it is from. Errors
are `{"error": {"code": "…", "message": "…"}}`."""

_IMAGE = "/9j/4AAQSkZJRgABAQ…"
_MODEL = {"address": "s3://bucket/store/models/muva-0f3a…", "weights": "9c1e…"}
_LINE = {"threshold": 0.61, "far": 0.001}
_PROBLEM = {"error": {"code": "too_large", "message": "expected a request of at most 64 MB"}}
_STATUSES = {
    400: "The body is malformed or incomplete.",
    401: "No token, or a wrong one.",
    413: "The request, or an image in it, exceeds a limit.",
    415: "Neither JSON nor a form.",
    422: "A field, or an image, is not what was expected.",
    503: "Too many requests are waiting, or no replica answers; try again.",
}


def _inlined(kind: type[Fields]) -> dict[str, Any]:
    schema = kind.model_json_schema()
    return {"properties": schema["properties"], "required": schema.get("required", [])}


def _operation(
    summary: str,
    *,
    fields: type[Fields] | None,
    answer: dict[str, Any],
    request: dict[str, Any] | None = None,
    images: tuple[int, int | None] | None = None,
    beside: type[Fields] | None = None,
) -> dict[str, Any]:
    """What FastAPI's decorators take.

    Args:
        summary: what the endpoint does.
        fields: its fields beside the images.
        answer: an example.
        request: an example; None for requests without a body.
        images: the least and the greatest number of images.
        beside: fields that stand beside each image.
    """
    responses = {
        str(status): {
            "description": text,
            "content": {"application/json": {"example": _PROBLEM}},
        }
        for status, text in _STATUSES.items()
    }
    found: dict[str, Any] = {
        "summary": summary,
        "responses": {
            200: {"description": "Done.", "content": {"application/json": {"example": answer}}},
            **responses,
        },
        "openapi_extra": {"security": [{"token": []}]},
    }
    if request is None:
        return found
    own = _inlined(fields) if fields is not None else {"properties": {}, "required": []}
    per_image = _inlined(beside) if beside is not None else {"properties": {}, "required": []}
    json_schema, form = _schemas(own, per_image, images)
    found["openapi_extra"]["requestBody"] = {
        "required": True,
        "content": {
            "application/json": {"schema": json_schema, "example": request},
            "multipart/form-data": {"schema": form},
        },
    }
    return found


def _schemas(
    own: dict[str, Any], per_image: dict[str, Any], images: tuple[int, int | None] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    json_schema = {"type": "object", **own, "additionalProperties": False}
    form = {
        "type": "object",
        "properties": {**own["properties"], **per_image["properties"]},
        "required": [*own["required"], *per_image["required"]],
    }
    if images is None:
        return json_schema, form
    least, most = images
    image = {"type": "string", "contentEncoding": "base64", "description": "JPEG, PNG, WebP, BMP."}
    json_schema["properties"] = {
        "images": {
            "type": "array",
            "minItems": least,
            **({} if most is None else {"maxItems": most}),
            "items": {
                "type": "object",
                "properties": {"image": image, **per_image["properties"]},
                "required": ["image", *per_image["required"]],
                "additionalProperties": False,
            },
        },
        **own["properties"],
    }
    json_schema["required"] = ["images", *own["required"]]
    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    form["properties"] = {"image": files, **form["properties"]}
    form["required"] = ["image", *form["required"]]
    return json_schema, form


EMBED = _operation(
    "The features of images, of unit length",
    fields=None,
    images=(1, None),
    request={"images": [{"image": _IMAGE}]},
    answer={"model": _MODEL, "features": [[0.0312, -0.0071, 0.0154]]},
)
COMPARE = _operation(
    "Whether two images show the same person",
    fields=CompareFields,
    images=(2, 2),
    request={"images": [{"image": _IMAGE}, {"image": _IMAGE}], "far": 0.001},
    answer={
        "model": _MODEL,
        "cosine": 0.731,
        "probability": 0.972,
        "same_person": True,
        **_LINE,
    },
)
SEARCH = _operation(
    "The gallery's images that are most similar to one or several images of a person",
    fields=SearchFields,
    images=(1, None),
    request={
        "images": [{"image": _IMAGE}],
        "top": 5,
        "camids": [1, 4],
        "after": "2026-11-30T08:00:00+01:00",
    },
    answer={
        "model": _MODEL,
        "matches": [
            {
                "rank": 1,
                "image_id": "cam1/0007.jpg",
                "cosine": 0.731,
                "probability": 0.972,
                "same_person": True,
                "pid": 7,
                "camid": 1,
                "time": "2026-11-30T07:12:09+00:00",
                "place": "north gate",
                "picture": True,
            }
        ],
        **_LINE,
    },
)
ADD = _operation(
    "Add images to the gallery; one whose id it has is replaced",
    fields=None,
    beside=RowFields,
    images=(1, None),
    request={
        "images": [
            {"image": _IMAGE, "image_id": "cam1/0007.jpg", "camid": 1, "place": "north gate"}
        ]
    },
    answer={"model": _MODEL, "added": 1},
)
FORGET = _operation(
    "Delete people or images from the gallery",
    fields=ForgetFields,
    request={"pids": [7], "image_ids": []},
    answer={"model": _MODEL, "deleted": 12},
)
MODEL = _operation(
    "The model that answers",
    fields=None,
    answer={"model": _MODEL, "feature_dim": 512, "fars": [0.01, 0.001]},
)
GALLERY = _operation(
    "What is in the gallery",
    fields=None,
    answer={"name": "lobby", "images": 1200, "people": 80, "camids": [1, 4], "places": ["gate"]},
)
