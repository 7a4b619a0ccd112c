"""Request documents from options of the command line, or from a file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fl_unlearn.request_document import RequestDocument

# Hidden as in `stores`, and explained below the options.
File = Annotated[str | None, typer.Argument(metavar="[DOCUMENT]", hidden=True)]
FILE_HELP = "DOCUMENT: a file with a request document, or - for stdin; without it, options say what is asked."
Classes = Annotated[
    list[int] | None, typer.Option("--class", metavar="N", help="A class to forget; again for more.")
]
Clients = Annotated[
    list[str] | None,
    typer.Option(
        "--client",
        metavar="NAME",
        help="A client to forget everything of; with --class, whose data of the class. Again for more.",
    ),
]
Samples = Annotated[
    list[str] | None,
    typer.Option(
        "--sample",
        metavar="CLIENT=KEY",
        help="A sample to forget, by the key that the client knows it by. Again for more.",
    ),
]
Requester = Annotated[str | None, typer.Option(metavar="NAME", help="Who asks: a name in the policy.")]
Key = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Their private key; signs the document.", dir_okay=False)
]
Federation = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The only federation that may serve it, as its policy names it."),
]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why, for the record.")]
Scope = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="How deep: fast, deep, head, all, or parameters. [as the run says]"),
]
Deadline = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Serve it before: 2026-12-01 (00:00 UTC) or 2026-12-01T18:00:00Z."),
]


@dataclass(frozen=True)
class Asked:
    """What the options say; see there."""

    classes: list[int] | None
    clients: list[str] | None
    samples: list[str] | None
    requester: str | None
    federation: str | None
    reason: str
    scope: str | None
    deadline: str | None

    def document(self) -> RequestDocument:
        """The document, unsigned.

        Raises:
            RequestError: If it is not one.
        """
        from fl_unlearn.request_document import RequestDocument
        from fl_unlearn.types import ForgetRequest

        if self.requester is None:
            raise typer.BadParameter("say who asks with --requester, or give a document as a file")
        samples: dict[str, tuple[str, ...]] = {}
        for one in self.samples or ():
            client, equals, key = one.partition("=")
            if not (client and equals and key):
                raise typer.BadParameter(f"--sample must look like CLIENT=KEY, got {one!r}")
            samples[client] = (*samples.get(client, ()), key)
        request = ForgetRequest(tuple(self.classes or ()), tuple(self.clients or ()), self.reason, samples)
        return RequestDocument.new(
            self.requester,
            request,
            federation=self.federation,
            scope=self.scope,
            deadline=_time(self.deadline),
        )

    def check_unused(self) -> None:
        """Refuse options beside a file, which says all of that itself."""
        if any(value for value in vars(self).values()):
            raise typer.BadParameter("a document says itself what is asked; give a file or options, not both")


def read(file: str) -> bytes:
    """A document's bytes from a file, or from stdin ("-"); not more than a document has."""
    from fl_unlearn.document_checks import MAX_BYTES

    if file == "-":
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    with open(file, "rb") as opened:
        return opened.read(MAX_BYTES + 1)


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as e:
        raise typer.BadParameter(
            f"--deadline must look like 2026-12-01 or 2026-12-01T18:00:00Z, got {text!r}"
        ) from e
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC).replace(microsecond=0)
