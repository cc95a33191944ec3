"""Whole or not at all: contents, links and permissions (failures: tests/reliability/test_files.py)."""

import os

import pytest

from pdopt.runtime.files import write_atomic


def test_replaces_through_a_link(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_atomic(tmp_path / "link.txt", "new: größer\n")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text(encoding="utf-8") == "new: größer\n"
    assert sorted(os.listdir(tmp_path)) == ["link.txt", "real.txt"]


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "no" / "a.txt", "")
