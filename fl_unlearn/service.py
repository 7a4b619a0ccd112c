"""The HTTP service to which operators' systems hand in request documents, and which they ask about them.

It needs a token for whatever is asked, takes documents up to their greatest size and no further, and answers
errors as ``{"code": ..., "message": ...}``. It is a `desk.Desk` behind FastAPI: while a run holds the store,
it only puts documents into the inbox.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException

from fl_unlearn.desk import Desk
from fl_unlearn.document_checks import MAX_BYTES
from fl_unlearn.document_status import REFUSALS, STATES, DocumentStatus, find, statuses
from fl_unlearn.inbox import InboxFullError
from fl_unlearn.request_document import json_schema
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import RequestError, SettingsError, UnlearnError

log = logging.getLogger(__name__)

TOKEN_VARIABLE = "FL_UNLEARN_TOKEN"
SHORTEST_TOKEN = 32
_STATUS = {"malformed": 400, "replayed": 409, "expired": 422, "from-the-future": 422}
"""HTTP status by the code of a refusal; 403 for all others."""


class Problem(BaseModel):
    """What every error is answered with."""

    code: str
    message: str


class Health(BaseModel):
    """That the service answers, and how many documents wait."""

    status: Literal["ok"]
    waiting: int


class Documents(BaseModel):
    """Documents in the order they came."""

    requests: list[DocumentStatus]


def read_token(file: Path | None, environment: Mapping[str, str]) -> str:
    """The token that clients must show: the content of a file, or of the environment's `TOKEN_VARIABLE`.

    Raises:
        SettingsError: If there is none, it is shorter than `SHORTEST_TOKEN`, or no header can carry it.
    """
    if file is not None:
        try:
            token, source = file.read_text("utf-8").strip(), str(file)
        except (OSError, UnicodeDecodeError) as e:
            raise SettingsError(f"cannot read the token file {file}: {e}") from e
    else:
        token, source = environment.get(TOKEN_VARIABLE, "").strip(), f"${TOKEN_VARIABLE}"
    make = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
    if len(token) < SHORTEST_TOKEN:
        raise SettingsError(
            f"the token in {source} has {len(token)} characters, it needs at least {SHORTEST_TOKEN}; {make}"
        )
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise SettingsError(f"the token in {source} has spaces or characters beyond ASCII; {make}")
    return token


def create_app(desk: Desk, token: str) -> FastAPI:
    """The service for one store, as an ASGI application.

    Args:
        desk: The store, with a policy.
        token: What clients must send as ``Authorization: Bearer TOKEN``.

    Raises:
        SettingsError: If ``desk`` has no policy: everybody with the token could ask for anything.
    """
    if desk.policy is None:
        raise SettingsError("the service needs a policy that says who may ask for what; give a policy file")
    errors: dict[int | str, dict[str, Any]] = {"4XX": {"model": Problem}, "5XX": {"model": Problem}}
    app = FastAPI(
        title="fl-unlearn requests",
        version="1",
        docs_url=None,  # they load scripts from elsewhere, and cannot send the token
        redoc_url=None,
        responses=errors,
        dependencies=[Depends(HTTPBearer(auto_error=False))],  # for OpenAPI; `_guard` is what checks
    )
    app.middleware("http")(_guard(token))
    _answer_errors(app)
    _add_routes(app, desk)
    return app


def _guard(token: str) -> Callable[[Request, Any], Awaitable[Response]]:
    wanted = token.encode()

    async def guard(request: Request, call_next: Any) -> Response:
        """Nothing is looked at, nor said, without the token: not even which paths there are."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        same = secrets.compare_digest(given.strip().encode("utf-8", "surrogateescape"), wanted)
        if scheme.lower() != "bearer" or not same:
            told = _problem(401, "unauthorized", "send the service's token as: Authorization: Bearer TOKEN")
            told.headers["WWW-Authenticate"] = "Bearer"
            return told
        try:
            response: Response = await call_next(request)
        except Exception:  # anything unforeseen: for the log, not for the client
            log.exception("%s %s could not be answered", request.method, request.url.path)
            return _problem(500, "internal", "the service failed; its log says how")
        return response

    return guard


def _problem(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"code": code, "message": message}, status)


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(StarletteHTTPException)
    async def http(_: Request, error: StarletteHTTPException) -> JSONResponse:
        if isinstance(error.detail, dict):
            return _problem(error.status_code, error.detail["code"], error.detail["message"])
        code = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "error")
        return _problem(error.status_code, code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return _problem(422, "invalid", said)

    @app.exception_handler(UnlearnError)
    async def ours(_: Request, error: UnlearnError) -> JSONResponse:
        if isinstance(error, InboxFullError):
            return _problem(503, "full", str(error))
        if isinstance(error, RequestError):
            return _problem(404, "not-found", str(error))
        return _problem(503, "store-unavailable", str(error))


def _add_routes(app: FastAPI, desk: Desk) -> None:
    one_at_a_time = Lock()  # else one handler would take the other, which holds the store, for a run

    def hand_in(data: bytes) -> DocumentStatus:
        with one_at_a_time:
            status, why = desk.hand_in(data)
            return replace(status, message=why) if why and not status.message else status

    schema = {"requestBody": {"required": True, "content": {"application/json": {"schema": json_schema()}}}}

    @app.post("/requests", status_code=201, openapi_extra=schema, responses={202: {"model": DocumentStatus}})
    async def add(request: Request, response: Response) -> DocumentStatus:
        """Hand in a signed document. 201: it is accepted; 202: a run holds the store and will decide."""
        status = await run_in_threadpool(hand_in, await _body(request))
        if status.state in REFUSALS:
            code = status.code or status.state
            detail = {"code": code, "message": status.message}
            raise HTTPException(_STATUS.get(code, 403), detail)
        response.status_code = 202 if status.state == "waiting" else 201
        return status

    @app.get("/requests")
    def every(state: Annotated[str | None, Query(description=", ".join(STATES))] = None) -> Documents:
        """Every document that was handed in, and what has become of it."""
        with RunStore(desk.folder, read_only=True) as store:
            return Documents(requests=[s for s in statuses(store) if state in (None, s.state)])

    @app.get("/requests/{id}")
    def one(id: str) -> DocumentStatus:
        """One document, by its id or ticket."""
        with RunStore(desk.folder, read_only=True) as store:
            return find(store, id)

    @app.delete("/requests/{id}")
    def cancel(id: str) -> DocumentStatus:
        """Cancel a document that is not being served yet; a run that holds the store does it later."""
        with RunStore(desk.folder, read_only=True) as store:
            find(store, id)
        try:
            with one_at_a_time:
                return desk.withdraw(id)[0]
        except RequestError as e:
            raise HTTPException(409, {"code": "too-late", "message": str(e)}) from e

    @app.get("/health")
    def health() -> Health:
        """Whether the store can be read."""
        with RunStore(desk.folder, read_only=True) as store:
            return Health(status="ok", waiting=len(store.inbox.waiting()))


async def _body(request: Request) -> bytes:
    """The request's body; no more of it is read than a document may have."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_BYTES:
            detail = {"code": "too-large", "message": f"a document has at most {MAX_BYTES} bytes"}
            raise HTTPException(413, detail)
    return bytes(data)
