"""Fetching pinned data: from a mirror on disk and from a server in this process, whole, resumed, and refused."""

import contextlib
import dataclasses
import http.server
import io
import os
import shutil
import subprocess
import tarfile
import threading
from pathlib import Path
from typing import ClassVar

import pytest

from tasks.catalog.registry import benchmark_names, catalog
from tools import fetch_data
from tools.fetch_data import Download

REVISION = "a" * 40
FILES = {
    "data/one.tsv": "a\tb\n",
    "data/deep/two.tsv": "c\td\n" * 1000,
    "run.sh": "true\n",
    "other.txt": "not wanted\n",
}


def write_files(directory):
    for name, content in FILES.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content)
    (directory / "run.sh").chmod(0o755)


@pytest.fixture
def tree(tmp_path):
    """A checkout."""
    write_files(tmp_path / "tree")
    return tmp_path / "tree"


@pytest.fixture
def mirror(tmp_path, tree):
    """The archive as GitHub serves it: all lies in one folder."""
    path = tmp_path / "mirror" / "someone" / "data" / "tar.gz" / REVISION
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as file:
        file.add(tree, f"data-{REVISION}")
    return tmp_path / "mirror"


@pytest.fixture
def pinned(monkeypatch, tree):
    """Requests a folder, a file and a manual download."""

    def row(folder, path, git_id):
        return Download("flan", folder, "someone/data", REVISION, path, git_id, "MIT", "")

    listed = [
        row("rows", "data", fetch_data.git_id(tree / "data")),
        row("run.sh", "run.sh", fetch_data.git_id(tree / "run.sh")),
        Download("flan", "more/", "https://example.org", "", "", "", "own", "behind an agreement"),
    ]
    monkeypatch.setattr(fetch_data, "sources", lambda: listed)
    return listed


def run(tmp_path, mirror, *more):
    fetch_data.main([f"--data_dir={tmp_path / 'data'}", f"--mirror={mirror}", *more])


class Handler(http.server.SimpleHTTPRequestHandler):
    """A server that knows ranges; `ranges` are the requested ones."""

    ranges: ClassVar[list] = []
    short = 0  # bytes that the next answer lacks

    def do_GET(self):
        content = Path(self.translate_path(self.path)).read_bytes()
        expected = self.headers.get("Range")
        Handler.ranges.append(expected)
        start = int(expected.removeprefix("bytes=").removesuffix("-")) if expected else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : len(content) - Handler.short])
        Handler.short = 0

    def log_message(self, *words):
        pass


@pytest.fixture
def server(mirror):
    Handler.ranges = []
    handler = lambda *words: Handler(*words, directory=str(mirror))  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_ids_are_those_of_git(tree):
    def git(*words):
        return subprocess.run(["git", *words], cwd=tree, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    git("add", "-A")
    whole = git("write-tree")
    assert fetch_data.git_id(tree / "data") == git("rev-parse", f"{whole}:data")
    assert fetch_data.git_id(tree / "run.sh") == git("rev-parse", f"{whole}:run.sh")
    shutil.rmtree(tree / ".git")
    assert fetch_data.git_id(tree) == whole


@pytest.mark.usefixtures("pinned")
def test_what_is_wanted_comes_into_place_and_is_not_fetched_twice(tmp_path, mirror, capsys):
    run(tmp_path, f"file://{mirror}")
    place = tmp_path / "data" / "flan"
    assert (place / "rows/deep/two.tsv").read_text() == FILES["data/deep/two.tsv"]
    assert os.access(place / "run.sh", os.X_OK) and not (place / "other.txt").exists()
    assert not (tmp_path / "data" / fetch_data.DOWNLOADS).exists()
    output = capsys.readouterr().out
    assert output.count("fetched\n") == 2 and "MIT" in output and "behind an agreement" in output
    shutil.rmtree(mirror)
    run(tmp_path, f"file://{mirror}")
    assert capsys.readouterr().out.count("was there") == 2


@pytest.mark.usefixtures("pinned")
def test_a_download_that_ended_early_goes_on_where_it_was(tmp_path, mirror, server, capsys):
    Handler.short = 100
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, server)
    assert stopped.value.code == 2 and "run the same command to continue" in capsys.readouterr().err
    [part] = (tmp_path / "data" / fetch_data.DOWNLOADS).glob("*.part")
    have = part.stat().st_size
    assert have > 0 and not (tmp_path / "data" / "flan").exists()
    run(tmp_path, server)
    assert Handler.ranges == [None, f"bytes={have}-"]
    assert (tmp_path / "data/flan/rows/one.tsv").read_text() == "a\tb\n"


def test_other_content_is_refused_and_nothing_of_it_is_taken(tmp_path, mirror, pinned, monkeypatch, capsys):
    other = dataclasses.replace(pinned[1], git_id="0" * 40)
    monkeypatch.setattr(fetch_data, "sources", lambda: [pinned[0], other])
    with pytest.raises(SystemExit):
        run(tmp_path, f"file://{mirror}")
    assert "run.sh has the git id" in capsys.readouterr().err
    assert not (tmp_path / "data" / "flan").exists()


@pytest.mark.usefixtures("pinned")
def test_a_file_of_the_users_own_is_left_alone(tmp_path, mirror, capsys):
    user_file = tmp_path / "data" / "flan" / "run.sh"
    user_file.parent.mkdir(parents=True)
    user_file.write_text("mine\n")
    with pytest.raises(SystemExit):
        run(tmp_path, f"file://{mirror}")
    assert "move it away" in capsys.readouterr().err and user_file.read_text() == "mine\n"


@pytest.mark.usefixtures("pinned")
@pytest.mark.parametrize("name", ["data-x/../../escaped.txt", "/escaped.txt", "../escaped.txt"])
def test_an_archive_that_leaves_its_folder_is_refused_by_name(tmp_path, mirror, name, capsys):
    path = mirror / "someone" / "data" / "tar.gz" / REVISION
    with tarfile.open(path, "w:gz") as file:
        member = tarfile.TarInfo(name)
        member.size = 2
        file.addfile(member, io.BytesIO(b"no"))
    with pytest.raises(SystemExit):
        run(tmp_path, f"file://{mirror}")
    error = capsys.readouterr().err
    assert f" {name} would be written outside" in error and error.count("\n") == 1
    assert not [path for path in tmp_path.parent.rglob("escaped.txt")]


@pytest.mark.usefixtures("pinned")
@pytest.mark.parametrize("content", [b"", b"not an archive", None])
def test_what_is_no_archive_or_not_there_takes_one_line(tmp_path, mirror, content, capsys):
    path = mirror / "someone" / "data" / "tar.gz" / REVISION
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(SystemExit):
        run(tmp_path, f"file://{mirror}")
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and REVISION in error
    assert not list((tmp_path / "data" / fetch_data.DOWNLOADS).glob("*.gz"))


def test_the_list_names_every_benchmark_of_the_paper_and_pins_what_it_fetches(capsys):
    fetch_data.main(["--list"])
    output = capsys.readouterr().out
    listed = fetch_data.sources()
    assert {source.benchmark for source in listed} == set(benchmark_names()) - {"samples", "small_study", "jsonl"}
    for source in listed:
        assert source.benchmark in output and source.licence
        if source.revision:
            assert len(source.revision) == 40 and source.path and "/" in source.source
            assert len(source.git_id) == 40 or source.benchmark == "super_natural_instructions"
            assert not source.folder.startswith(("/", ".")) and ".." not in source.folder
        else:
            assert source.note, "how, and why not by this program"
    with contextlib.suppress(SystemExit):
        fetch_data.main(["--benchmarks=flam", "--list"])
    assert "flan" in capsys.readouterr().err


def test_where_only_the_commit_is_known_every_task_of_the_catalog_must_be_there(tmp_path):
    [tasks] = [source for source in fetch_data.sources() if source.folder == "tasks"]
    names = [name.partition(".")[2] for name in catalog(tasks.benchmark)]
    for name in names[1:]:
        (tmp_path / f"{name}.json").touch()
    assert fetch_data.fault(tasks, tmp_path) == f"lacks 1 tasks of the catalog, such as {names[0]}"
    (tmp_path / f"{names[0]}.json").touch()
    assert fetch_data.fault(tasks, tmp_path) == ""
    assert fetch_data.fault(tasks, tmp_path / "nowhere") == "is not there"
