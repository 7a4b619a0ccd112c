"""What a user asks for when loading a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from simulations.datasets.bundle import DatasetError


@dataclass(frozen=True)
class Request:
    """The arguments of `simulations.datasets.load`, checked; its docstring says what each one means."""

    name: str
    root: str = ""
    seed: int = 0
    max_train: int = 0
    max_test: int = 0
    image_size: int = 0
    tokens: int = 64
    vocabulary: int = 20_000
    download: bool = False
    text_columns: tuple[str, ...] = ()
    label_column: str = ""

    def __post_init__(self) -> None:
        for what, least in (("seed", 0), ("max_train", 0), ("max_test", 0), ("image_size", 0)):
            self._at_least(what, least, " (0: everything)" if what.startswith("max") else "")
        self._at_least("tokens", 1, "")
        self._at_least("vocabulary", 3, " (padding, the unknown word and one word)")

    def _at_least(self, what: str, least: int, why: str) -> None:
        value = getattr(self, what)
        if value < least:
            raise DatasetError(f"{self.name}: {what} must be {least} or more{why}, got {value}")

    def folder(self, holds: str) -> Path:
        """The folder named by `root`.

        Args:
            holds: What must be in it, for the error.

        Raises:
            DatasetError: If it is not named or is no folder.
        """
        if not self.root:
            raise DatasetError(f"data set '{self.name}' needs a folder with {holds}: none was given as root")
        path = Path(self.root).expanduser()
        if not path.is_dir():
            raise DatasetError(
                f"data set '{self.name}': {path.absolute()} is not a folder; name the one with {holds}"
            )
        return path
