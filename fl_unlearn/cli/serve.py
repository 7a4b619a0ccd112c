"""``fl-unlearn serve``: request documents over HTTP, for operators' systems."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated

import typer

from fl_unlearn.cli import stores
from fl_unlearn.cli.gc import HeadFile, KeyFile
from fl_unlearn.cli.output import say
from fl_unlearn.cli.stores import Store


def serve(
    folder: Store,
    policy: Annotated[
        Path, typer.Option(metavar="FILE", help="Who may ask for what (TOML).", dir_okay=False)
    ],
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The token that clients must show. [the environment's FL_UNLEARN_TOKEN]",
            dir_okay=False,
        ),
    ] = None,
    host: Annotated[str, typer.Option(metavar="HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65535, help="Port to listen on.")] = 8750,
    signing_key: KeyFile = None,
    audit_head: HeadFile = None,
) -> None:
    """Take in request documents over HTTP: POST, GET and DELETE /requests, with a token."""
    import uvicorn

    from fl_unlearn.desk import Desk
    from fl_unlearn.policy import Policy
    from fl_unlearn.service import create_app, read_token

    token = read_token(token_file, os.environ)
    desk = Desk(folder, Policy.read(policy), signing_key, audit_head)
    with stores.reading(folder):  # a wrong folder is told of now, and not to the first client
        pass
    if (why := desk.trouble()) is not None:
        say(f"WARNING: nothing is decided here, documents wait for a run: {why}", "bold red", stderr=True)
    if not _is_loopback(host):
        say(
            f"WARNING: {host} can be reached from other machines, and the token and the documents travel "
            "unencrypted. Listen on 127.0.0.1 behind a proxy that speaks TLS",
            "bold red",
            stderr=True,
        )
    say(f"listening on http://{host}:{port}, store {folder}; Ctrl-C ends it", stderr=True)
    uvicorn.run(create_app(desk, token), host=host, port=port, log_level="warning", server_header=False)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
