"""Files that are whole or not there, and folders that one process writes at a time."""

import errno
import os
import subprocess
import sys

import filelock
import pytest

from optiml_jax.common.errors import UserError
from optiml_jax.common.files import HOLDER, atomic, exclusive, write_atomically
from tests.conftest import ROOT

HOLD = """
import sys, time
from optiml_jax.common.files import exclusive
with exclusive(sys.argv[1], "wait"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_naming_the_first_and_a_killed_one_leaves_nothing(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(UserError, match=rf"is being written by process {holder.pid} on .*; choose another MODEL_DIR"),
        exclusive(tmp_path, "choose another MODEL_DIR"),
    ):
        pytest.fail("two hold it")
    holder.kill()
    holder.wait()
    with exclusive(tmp_path, "wait"):
        assert (tmp_path / HOLDER).read_text().startswith(f"process {os.getpid()} on ")
    with exclusive(tmp_path, "wait"):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run: cannot be written \(Not a directory\)"):
        exclusive(tmp_path / "file" / "run", "wait").__enter__()


def test_what_fails_while_it_is_written_leaves_what_was_there(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_atomically(path, "first")
    with pytest.raises(ZeroDivisionError), atomic(path) as file:
        file.write(b"sec")
        file.flush()
        _ = 1 / 0
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]


def test_a_file_system_without_locks_is_mentioned_once(tmp_path, monkeypatch, capsys):
    def no_locks(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    for _ in range(2):
        with exclusive(tmp_path, "wait"):
            pass
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{tmp_path}: its file system has no locks" in error


def test_other_faults_of_a_lock_are_not_taken_for_that(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(filelock.FileLock, "acquire", full)
    with pytest.raises(UserError, match="No space left"):
        exclusive(tmp_path, "wait").__enter__()
