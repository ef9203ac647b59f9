"""The OpenAPI file that `cog build` bakes into an image and the HTTP server validates requests with (facts: Cog, 1.6).

Cog writes it with a static parser in its command line tool. Where that tool is absent the server would accept
anything, so this module writes the same file from the SDK's own inspector.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from cog._adt import InputField, Repetition
from cog._inspector import create_predictor

SCHEMA_FILE = Path(".cog") / "openapi_schema.json"  # below the server's working directory

STRING = {"type": "string"}
RESPONSE = {
    "input": {"$ref": "#/components/schemas/Input"},
    "output": {"$ref": "#/components/schemas/Output"},
    "id": {"title": "Id", **STRING},
    "version": {"title": "Version", **STRING},
    "created_at": {"title": "Created At", "format": "date-time", **STRING},
    "started_at": {"title": "Started At", "format": "date-time", **STRING},
    "completed_at": {"title": "Completed At", "format": "date-time", **STRING},
    "status": {"title": "Status", **STRING},
    "error": {"title": "Error", **STRING},
    "logs": {"title": "Logs", **STRING},
    "metrics": {"title": "Metrics", "type": "object"},
}
VALIDATION_ERROR = {
    "loc": {
        "title": "Location",
        "type": "array",
        "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
    },
    "msg": {"title": "Message", **STRING},
    "type": {"title": "Error Type", **STRING},
}


def openapi_schema(module: str, predictor: str) -> dict[str, Any]:
    """The OpenAPI 3.0.2 document of class `predictor` in `module`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the names Predictor and predict are meant
        info = create_predictor(module, predictor)
    fields = list(info.inputs.values())
    optional = {field.name for field in fields if _optional(field) or field.default is not None}
    inputs: dict[str, Any] = {
        "title": "Input",
        "type": "object",
        "properties": {field.name: _property(field) for field in fields},
    }
    if required := [field.name for field in fields if field.name not in optional]:
        inputs["required"] = required
    choices = {field.name: _enumeration(field) for field in fields if field.choices}
    request = {"id": {"title": "Id", **STRING}, "input": {"$ref": "#/components/schemas/Input"}}
    statuses = ["starting", "processing", "succeeded", "canceled", "failed"]
    errors = {"title": "Detail", "type": "array", "items": {"$ref": "#/components/schemas/ValidationError"}}
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": "0.1.0"},
        "paths": _paths(),
        "components": {
            "schemas": {
                "Input": inputs,
                "Output": {"title": "Output", **info.output.type.json_type()},
                **choices,
                "PredictionRequest": _object("PredictionRequest", request),
                "PredictionResponse": _object("PredictionResponse", RESPONSE),
                "Status": {"title": "Status", "description": "An enumeration.", "enum": statuses, **STRING},
                "HTTPValidationError": _object("HTTPValidationError", {"detail": errors}),
                "ValidationError": _object("ValidationError", VALIDATION_ERROR) | {"required": ["loc", "msg", "type"]},
            }
        },
    }


def write_schema(folder: Path, module: str = "predict", predictor: str = "Predictor") -> Path:
    """Write the schema where a server started in `folder` looks for it; `module` must be importable."""
    path = folder / SCHEMA_FILE
    text = json.dumps(openapi_schema(module, predictor), indent=1)
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return path


def _optional(field: InputField) -> bool:
    return field.type.repetition in (Repetition.OPTIONAL, Repetition.OPTIONAL_REPEATED)


def _property(field: InputField) -> dict[str, Any]:
    """One input as the web form and the server's validator read it."""
    entry: dict[str, Any] = {"x-order": field.order}
    if field.choices:
        entry["allOf"] = [{"$ref": f"#/components/schemas/{field.name}"}]
    else:
        entry["title"] = " ".join(word.capitalize() for word in field.name.split("_"))
        entry |= field.type.primitive.json_type()
    if _optional(field):
        entry |= {"default": None, "nullable": True}
    if field.default is not None:
        entry["default"] = field.default
    for key, value in (
        ("description", field.description),
        ("minimum", _whole(field.ge)),
        ("maximum", _whole(field.le)),
        ("minLength", field.min_length),
        ("maxLength", field.max_length),
        ("pattern", field.regex),
    ):
        if value is not None:
            entry[key] = value
    return entry


def _whole(bound: float | None) -> float | int | None:
    """Bounds of integers arrive as floats; JSON wants 1, not 1.0."""
    return int(bound) if bound is not None and float(bound).is_integer() else bound


def _enumeration(field: InputField) -> dict[str, Any]:
    kind = field.type.primitive.json_type()["type"]
    return {"title": field.name, "description": "An enumeration.", "enum": field.choices, "type": kind}


def _object(title: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {"title": title, "type": "object", "properties": properties}


def _json(schema: dict[str, Any], description: str = "Successful Response") -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _paths() -> dict[str, Any]:
    invalid = _json({"$ref": "#/components/schemas/HTTPValidationError"}, "Validation Error")
    request = {"content": _json({"$ref": "#/components/schemas/PredictionRequest"})["content"]}
    prediction_id = {
        "required": True,
        "schema": {"title": "Prediction Id", **STRING},
        "name": "prediction_id",
        "in": "path",
    }
    return {
        "/": {"get": {"summary": "Root", "operationId": "root__get", "responses": {"200": _json({})}}},
        "/health-check": {
            "get": {
                "summary": "Healthcheck",
                "operationId": "healthcheck_health_check_get",
                "responses": {"200": _json({})},
            }
        },
        "/predictions": {
            "post": {
                "summary": "Predict",
                "description": "Run a single prediction on the model",
                "operationId": "predict_predictions_post",
                "requestBody": request,
                "responses": {
                    "200": _json({"$ref": "#/components/schemas/PredictionResponse"}),
                    "422": invalid,
                },
            }
        },
        "/predictions/{prediction_id}/cancel": {
            "post": {
                "summary": "Cancel",
                "operationId": "cancel_predictions__prediction_id__cancel_post",
                "parameters": [prediction_id],
                "responses": {"200": _json({}), "422": invalid},
            }
        },
    }
