"""Files of format 1: migrated when opened for writing, all or nothing."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from cases_lineage import add_round, federation, graphs, names, write_v1
from crashes import killed_at
from hypothesis import given, settings

from fl_unlearn import lineage_format
from fl_unlearn.lineage import UMIG
from fl_unlearn.types import StoreError, StoreFullError


def version(file: Path) -> str:
    connection = sqlite3.connect(file)
    (row,) = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchall()
    connection.close()
    return str(row[0])


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_a_migrated_graph_is_the_same(tmp_path_factory, pair):
    umig, slow = pair
    file = tmp_path_factory.mktemp("v1") / "u"
    write_v1(umig, file)
    with UMIG(file) as migrated:
        assert list(migrated) == list(umig)
        assert migrated.edges().tolist() == umig.edges().tolist()
        assert migrated.owners() == umig.owners()
        assert migrated.owner_examples() == slow.most_examples()
        assert migrated.get_meta("signature") == "kept"
        tables = "SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name"
        assert [row[0] for row in migrated.connection.execute(tables)] == [
            "edge_block",
            "meta",
            "node",
            "owner",
        ]
    with UMIG(file, read_only=True) as again:
        assert names(again) == list(slow.parents)


def test_a_graph_of_many_blocks_is_migrated_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(lineage_format, "_AT_ONCE", 700)
    umig = federation(rounds=3, clients=900)
    write_v1(umig, tmp_path / "u")
    with UMIG(tmp_path / "u") as migrated:
        assert migrated.digest(1, len(umig)) == umig.digest(1, len(umig))
        add_round(migrated, 4, 5)
        assert len(list(migrated.descendants(["g0"]))) == 3 * 901 + 6


def test_a_file_of_format_1_is_not_read_without_migration(tmp_path):
    write_v1(federation(), tmp_path / "u")
    with pytest.raises(StoreError, match=r"format 1.*open it once for writing.*format 2"):
        UMIG(tmp_path / "u", read_only=True)
    assert version(tmp_path / "u") == "1"
    UMIG(tmp_path / "u").close()
    with UMIG(tmp_path / "u", read_only=True) as umig:
        assert len(umig) == 13


def test_a_migration_that_is_killed_at_any_step_changes_all_or_nothing(tmp_path):
    umig = federation()
    write_v1(umig, tmp_path / "v1")
    seen = []
    for at in range(1000):
        file = tmp_path / f"u{at}"
        shutil.copy(tmp_path / "v1", file)

        def work(begin, file=file):
            begin()
            UMIG(file).close()

        killed = killed_at(at, work)
        seen.append(version(file))
        with UMIG(file) as again:
            assert list(again) == list(umig)
            assert again.edges().tolist() == umig.edges().tolist()
        if not killed:
            break
    assert seen == sorted(seen)
    assert len(seen) > 15
    assert seen.count("1") > 10
    assert seen[-1] == "2"


def test_a_full_disk_leaves_format_1(tmp_path, monkeypatch):
    write_v1(federation(rounds=2, clients=900), tmp_path / "u")

    def migrate(connection):
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 1}")
        lineage_format.migrate(connection)

    with monkeypatch.context() as patch:
        patch.setattr("fl_unlearn.lineage_file.migrate", migrate)
        with pytest.raises(StoreFullError, match="nothing was changed"):
            UMIG(tmp_path / "u")
    assert version(tmp_path / "u") == "1"
    with UMIG(tmp_path / "u") as umig:
        assert len(umig) == 1 + 2 * 901
