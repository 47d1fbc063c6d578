"""What the API answers when it does not do as it was asked: JSON {"detail": one sentence}, whatever went wrong.

A `Problem` is raised by whoever finds it; errors of the stores and of FastAPI's own validation become the same form
here. Which problem a request has is decided elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from synapse_worker.errors import StoreRefused, StoreUnavailable

log = logging.getLogger(__name__)

_NO_JSON = "the body cannot be read as JSON"
AWAY_SECONDS = 5
"""Retry-After of what a store's outage stands in the way of."""


class Detail(BaseModel):
    """The body of every answer that is not what was asked for."""

    detail: str = Field(description="One sentence: what is wrong, and what is accepted.")


class Problem(Exception):
    """An answer other than the one that was asked for."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """Return it as an answer."""
        return JSONResponse({"detail": str(self)}, status_code=self.status, headers=self.headers)


def store_problem(error: StoreUnavailable | StoreRefused) -> Problem:
    """Return what is answered while a store does not do its part: 503, never a guess."""
    return Problem(503, f"{error}; try again later", {"Retry-After": str(AWAY_SECONDS)})


def answers(*statuses: int) -> dict[int | str, dict[str, object]]:
    """Return the `responses` of a route that may answer with these problems beside 422 and those of every route."""
    said = {
        400: "A tenant that cannot be used here",
        404: "Unknown, or another tenant's",
        409: "Not possible as things stand",
        413: "The body is too large",
        422: "The request is not of the accepted form",
        503: "A store is away, or too many jobs are queued and active",
    }
    return {status: {"model": Detail, "description": said[status]} for status in (*statuses, 422, 503)}


def install(app: FastAPI, count: Callable[[Request], Awaitable[None]]) -> None:
    """Have an application answer in this form.

    Args:
        count: takes a request that was not of the accepted form out of its tenant's rate; raises as routes do.
    """

    async def unread(request: Request, problem: Problem) -> Response:
        try:
            await count(request)
        except Problem as refused:
            return refused.response()
        except (StoreUnavailable, StoreRefused) as error:
            return await away(request, error)
        return problem.response()

    @app.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> Response:
        return error.response()

    @app.exception_handler(StoreUnavailable)
    @app.exception_handler(StoreRefused)
    async def away(request: Request, error: StoreUnavailable | StoreRefused) -> Response:
        request.state.refusal = "store"
        log.warning("%s %s: %s", request.method, request.scope["path"], error)
        return store_problem(error).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return await unread(request, Problem(422, _sentence(error.errors())))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        if error.status_code == 400:  # what FastAPI says of a body that is no text, or nests too deeply
            return await unread(request, Problem(422, _NO_JSON))
        return Problem(error.status_code, str(error.detail), error.headers).response()

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return Problem(500, "the API met an unexpected error; its log says more").response()


def _sentence(errors: Sequence[Mapping[str, object]]) -> str:
    """Return the first error as a sentence; no value of the request is in it."""
    first = errors[0]
    place = first.get("loc")
    names = [str(part) for part in place] if isinstance(place, list | tuple) else []
    where = ".".join(names[1:]) or (names[0] if names else "the request")
    said = str(first.get("msg", "it is not accepted")).removeprefix("Value error, ")
    if first.get("type") == "json_invalid":
        return _NO_JSON
    return f"{where}: {said[0].lower()}{said[1:]}"
