"""The OpenAPI 3.1 document, written from the table of operations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from coapgw import __version__
from coapgw.http.operations import BODY_BYTES, JSON, Access, Operation, OperationTable, Parameter, phrase_of
from coapgw.http.schema import Schema
from coapgw.http.schemas import ERROR

ALWAYS_POSSIBLE: Final = (400, 500, 503)
"""Of any operation that does something; a path that takes bodies may answer 413 too, one with a token 401."""


def openapi(table: OperationTable) -> dict[str, Any]:
    """Return the document; an alias is an operation of its own there."""
    components: dict[str, Any] = {}
    paths: dict[str, dict[str, Any]] = {}
    for operation in table.operations:
        for number, path in enumerate((operation.path, *operation.aliases)):
            paths.setdefault(path, {})[operation.method.lower()] = _described(operation, number, components)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "coapgw",
            "version": __version__,
            "description": "Devices, their keys, and the gateway's health. Bodies are JSON in UTF-8, whatever "
            "Content-Type says. The token is in the file admin.token of the data directory.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _described(operation: Operation, number: int, components: dict[str, Any]) -> dict[str, Any]:
    """Return an operation as the document has it; *number* 0 is its own path, others are aliases."""
    described: dict[str, Any] = {
        "operationId": operation.name + ("", "Alias", "SecondAlias")[number],
        "summary": operation.summary,
        "security": [{"token": []}] if operation.access is Access.TOKEN else [],
        "responses": dict(_responses(operation, components)),
    }
    parameters = [_parameter(one, "path", components) for one in operation.path_parameters]
    parameters += [_parameter(one, "query", components) for one in operation.query]
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {
            "required": True,
            "description": f"at most {operation.body_limit // 1024} kB",
            "content": {JSON: {"schema": _placed(operation.body, components)}},
        }
    if number:
        described["description"] = f"The same as {operation.path}."
    return described


def _parameter(parameter: Parameter, place: str, components: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": place,
        "required": place == "path",
        "description": parameter.description,
        "schema": _placed(parameter.schema, components),
    }


def _responses(operation: Operation, components: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for status, answered in operation.answered.items():
        response: dict[str, Any] = {"description": answered.description}
        if answered.schema is not None:
            response["content"] = {answered.content_type: {"schema": _placed(answered.schema, components)}}
        elif answered.content_type != JSON:
            response["content"] = {answered.content_type: {"schema": {"type": "string"}}}
        yield str(status), response
    for status in sorted(statuses_refused(operation) - operation.answered.keys()):
        yield (
            str(status),
            {
                "description": phrase_of(status),
                "content": {JSON: {"schema": _placed(ERROR, components)}},
            },
        )


def statuses_refused(operation: Operation) -> set[int]:
    """Return every status of an error that the operation may answer with."""
    statuses = {*ALWAYS_POSSIBLE, *operation.refused}
    if operation.access is Access.TOKEN:
        statuses.add(401)
    if operation.body is not None or operation.body_limit != BODY_BYTES:
        statuses.add(413)
    return statuses


def _placed(schema: Schema, components: dict[str, Any]) -> dict[str, Any]:
    """Return *schema* as the document has it, with everything that has a title moved to the components."""
    placed = dict(schema)
    if "properties" in placed:
        placed["properties"] = {name: _placed(part, components) for name, part in placed["properties"].items()}
    if "items" in placed:
        placed["items"] = _placed(placed["items"], components)
    if "title" not in placed:
        return placed
    components.setdefault(placed["title"], placed)
    return {"$ref": f"#/components/schemas/{placed['title']}"}
