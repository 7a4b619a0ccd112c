from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import runs
from cases_cli import forget, interrupted, listing, run, run_json, run_lines
from typer.main import get_command
from typer.testing import CliRunner

from fl_unlearn import __version__
from fl_unlearn.cli import app
from fl_unlearn.lineage import UMIG
from fl_unlearn.run_store import RunStore

LOOKING = [("status",), ("lineage",), ("checkpoints", "list"), ("checkpoints", "verify"), ("gc", "--dry-run")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with runs.filled(tmp_path / "run") as store:
        forget(store, waiting=("0", "1"))
    return tmp_path / "run"


def commands() -> list[tuple[str, ...]]:
    found = []
    for name, command in get_command(app).commands.items():
        inner = getattr(command, "commands", None)
        found += [(name, n) for n in inner] if inner else [(name,)]
    return found


# --------------------------------------------------------------------------- the program
@pytest.mark.parametrize("command", [(), *commands()], ids=" ".join)
def test_every_command_explains_itself_and_its_arguments(command):
    text = run(*command, "--help").stdout
    usage = re.search(r"Usage: (.*?)\n", text)[1]
    for argument in re.findall(r"\b[A-Z]{3,}\b", usage.replace("OPTIONS", "").replace("ARGS", "")):
        assert f"{argument}:" in text or argument == "COMMAND", f"{argument} is explained"
    assert run(*command, "-h").stdout == text


def test_version():
    assert run("--version").stdout == f"fl-unlearn {__version__}\n"


def test_unknown_commands_and_options_are_refused(folder):
    run("forget-everything", code=2)
    run("status", folder, "--yaml", code=2)
    run("status", code=2)
    run("gc", folder, "--byte-budget", "0", code=2)


def python(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_help_costs_no_torch_and_no_command_needs_flower(folder):
    code = """if True:
        import sys
        from typer.testing import CliRunner
        from fl_unlearn.cli import app
        assert CliRunner().invoke(app, ["--help"]).exit_code == 0
        assert CliRunner().invoke(app, ["lineage", "--help"]).exit_code == 0
        print([m for m in ("torch", "numpy", "networkx", "matplotlib", "flwr") if m in sys.modules])
        for command in ("status", "lineage", "gc"):
            assert CliRunner().invoke(app, [command, sys.argv[1]]).exit_code == 0
        print([m for m in ("matplotlib", "flwr") if m in sys.modules])"""
    assert python(code, folder) == "[]\n[]\n"


def test_it_runs_as_a_module_and_by_its_installed_name(folder):
    shown = run("status", folder).stdout
    module = [sys.executable, "-m", "fl_unlearn.cli", "status", str(folder)]
    assert subprocess.run(module, check=True, capture_output=True, text=True).stdout == shown
    entry = "import sys; from fl_unlearn.cli import main; sys.argv[0] = 'fl-unlearn'; main()"
    assert python(entry, "status", folder) == shown
    failed = subprocess.run([*module[:-1], str(folder / "none")], capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert "Traceback" not in failed.stderr


def test_a_reader_that_has_seen_enough_ends_it_quietly(folder):
    asked = f"lineage '{folder}' --affected-by client:0 --json", f"audit log '{folder}' --json"
    for arguments in asked:
        command = f"'{sys.executable}' -u -m fl_unlearn.cli {arguments} | head -1"
        result = subprocess.run(command, shell=True, capture_output=True, text=True)
        assert result.stdout.count("\n") == 1
        assert result.stderr == ""


def test_errors_of_ours_are_not_hidden(folder, monkeypatch):
    monkeypatch.setattr("fl_unlearn.cli.status._status", lambda store: 1 / 0)
    assert isinstance(CliRunner().invoke(app, ["status", str(folder)]).exception, ZeroDivisionError)


# --------------------------------------------------------------------------- bad stores
def blank(path: Path) -> None:
    path.mkdir()


def a_file(path: Path) -> None:
    path.write_text("x")


def foreign(path: Path) -> None:
    path.mkdir()
    with closing(sqlite3.connect(path / "lineage.sqlite")) as db, db:
        db.execute("CREATE TABLE t (x)")


def no_database(path: Path) -> None:
    path.mkdir()
    (path / "lineage.sqlite").write_bytes(b"not a database" * 100)


def truncated(path: Path) -> None:
    runs.filled(path).close()
    database = path / "lineage.sqlite"
    database.write_bytes(database.read_bytes()[:5000])


def newer(path: Path) -> None:
    runs.filled(path).close()
    with closing(sqlite3.connect(path / "lineage.sqlite")) as db, db:
        db.execute("UPDATE meta SET value = '999' WHERE key = 'schema_version'")


def without_run(path: Path) -> None:
    path.mkdir()
    UMIG(path / "lineage.sqlite").close()


def absent(path: Path) -> None:
    pass


@pytest.mark.parametrize("command", [*LOOKING, ("gc",)], ids=" ".join)
@pytest.mark.parametrize(
    "make",
    [absent, blank, a_file, foreign, no_database, truncated, newer, without_run],
    ids=lambda f: f.__name__,
)
def test_what_is_no_store_is_refused_and_left_alone(tmp_path, command, make):
    path = tmp_path / "run"
    make(path)
    before = listing(tmp_path)
    result = run(command[0], *command[1:], path, code=2)
    assert result.stdout == ""
    assert str(path.name) in "".join(c for c in result.stderr if c not in " \n│")  # long paths are broken
    assert listing(tmp_path) == before


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder that the process, for as long as the test runs as nobody, may look into but not write to."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        runs.filled(Path(name) / "run").close()
        root = os.geteuid() == 0
        for path in (Path(name) / "run").rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)
        (Path(name) / "run").chmod(0o555)
        if root:
            os.seteuid(65534)
        try:
            yield Path(name) / "run"
        finally:
            if root:
                os.seteuid(0)
            for path in (Path(name) / "run", *(Path(name) / "run").rglob("*")):
                path.chmod(0o755)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("command", [*LOOKING, ("gc",)], ids=" ".join)
def test_a_folder_that_may_not_be_written_can_be_looked_at_and_no_more(unprivileged, command):
    before = listing(unprivileged)
    result = run(*command, unprivileged, code=2 if command == ("gc",) else 0)
    assert ("cannot make the store" in result.stderr) == (command == ("gc",))
    assert listing(unprivileged) == before


@pytest.mark.parametrize(
    "name", ["with space", "naïve-模型", "a#b", "a?mode=rwc", "50%41", "[bold]", "it's", "-dash", "nl\nin it"]
)
def test_paths_with_odd_characters(tmp_path, name):
    path = tmp_path / name
    with runs.filled(path) as store:
        forget(store)
    assert run_json("status", path)["models"]["total"] == 7
    run("checkpoints", "verify", path)
    target = path / f"{name}.json"
    run("lineage", path, "--export", target, "--affected-by", "class:3")
    assert target.is_file()
    run("gc", path)
    assert str(path.relative_to(tmp_path).parent) == "."


# --------------------------------------------------------------------------- status
def test_status_as_json(folder):
    with RunStore(folder, read_only=True) as store:
        (operation,) = store.operations.all()
        (decided,) = (e for e in store.audit.entries() if e.kind == "decided")
        entries = store.audit.head().seq
        size = sum(store.info(name).size for name in store.kept())
    found = run_json("status", folder)
    assert found == {
        "store": str(folder),
        "rounds": 2,
        "models": {"total": 7, "kinds": {"client-update": 4, "aggregate": 2, "initial": 1}},
        "clients": 2,
        "checkpoints": {"count": 7, "bytes": size},
        "operations": [
            {
                "digest": operation.digest,
                "client_update": operation.client_update,
                "classes": [3],
                "clients": [],
                "samples": {},
                "reason": "",
                "threshold": 2.5,
                "dampening": 1.0,
                "checkpoints": 5,
                "done": True,
                "outstanding": ["0", "1"],
                "decided": decided.time,
            }
        ],
        "audit_entries": entries,
        "interrupted_requests": [],
        "documents": {},
        "pending": [],
        "leftovers": [],
        "being_written": False,
    }


def test_status_for_people(folder):
    text = run("status", folder).stdout
    (digest,) = (o["digest"] for o in run_json("status", folder)["operations"])
    assert re.search(r"models +7 \(4 client-update, 2 aggregate, 1 initial\)", text)
    assert re.search(rf"{digest[:12]} +\d+-\d\d-\d\d +3 +all +2.5 +1 +5 +0, 1", text)
    assert digest not in text
    assert "\x1b" not in text, "no colours into a file"


def test_status_tells_who_writes_and_what_is_to_be_done(tmp_path):
    with runs.filled(tmp_path / "run") as store:
        changed = interrupted(store)
        (store.checkpoints.folder / "torn.safetensors.partial").write_bytes(b"x")
        found = run_json("status", store.folder)
        assert (found["pending"], found["being_written"]) == (changed, True)
        assert [Path(p).name for p in found["leftovers"]] == ["torn.safetensors.partial"]
        assert not found["operations"][0]["done"]
    text = run("status", store.folder).stdout
    assert (
        "2 checkpoints to put in place, 1 leftover file to remove (by the next run, or fl-unlearn gc)" in text
    )
    assert re.search("being written +no", text)


def test_looking_does_not_keep_a_run_from_starting(folder):
    run("status", folder)
    RunStore(folder).close()


def test_an_empty_store(tmp_path):
    RunStore(tmp_path).close()
    found = run_json("status", tmp_path)
    assert (found["rounds"], found["models"], found["clients"]) == (0, {"total": 0, "kinds": {}}, 0)
    assert "nothing was forgotten yet" in run("status", tmp_path).stdout
    assert run_json("lineage", tmp_path)["rounds"] == []
    assert run_lines("checkpoints", "list", tmp_path) == []
    run("lineage", tmp_path, "--picture", tmp_path / "p.png")
    assert "no client has trained yet" in run("lineage", tmp_path, "--affected-by", "client:1", code=2).stderr


def test_names_from_elsewhere_do_not_reach_the_terminal_as_commands(tmp_path):
    with RunStore(tmp_path / "run") as store:
        store.record("g0", runs.state(0), kind="[red]in\x1b[2Jitial", round_=0)
        store.record("u", None, kind="client-update", round_=1, parents={"g0": 1.0}, owner="a\x1b]0;x\x07\n")
        store.operations.decide("d" * 64, "d" * 64, {"classes": [1], "clients": ["\x1b[2J"]}, (), ["\x9b"])
    for command in [("status",), ("lineage",), ("checkpoints", "list"), ("checkpoints", "verify")]:
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", run(*command, tmp_path / "run").stdout)
    text = run("lineage", tmp_path / "run", "--affected-by", "client:a\x1b]0;x\x07\n").stdout
    assert r"a\x1b]0;x\x07\n" in text
    assert "[red]in" in run("lineage", tmp_path / "run").stdout


def test_status_tells_of_requests_that_were_interrupted(folder):
    from fl_unlearn.types import ForgetRequest, UnlearnSettings

    with RunStore(folder) as store:
        row = store.runs.requests.open(ForgetRequest((3,)), UnlearnSettings())
        store.runs.requests.note(row.id, "fisher")
    assert run_json("status", folder)["interrupted_requests"] == [{"request": row.id, "phase": "fisher"}]
    assert re.search(rf"requests +{row.id} \(after phase 'fisher'\)", run("status", folder).stdout)
