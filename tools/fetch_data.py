r"""Downloads the official data that can be downloaded automatically, at pinned revisions, into one folder per
benchmark.

    python -m tools.fetch_data --data_dir=data
    python -m tools.fetch_data --data_dir=data --benchmarks=flan,reasoning
    python -m tools.fetch_data --data_dir=data --mirror=file:///mnt/archives
    python -m tools.fetch_data --list

`tasks/catalog/sources.tsv` lists the downloads: paths of GitHub repositories at a commit, each with the git id of its
content, which is checked. Files that are present and match are not downloaded again; an interrupted download
continues. The remaining data must be downloaded by hand, and the last table explains how and why.

A mirror holds the archives as GitHub serves them: `<mirror>/<owner>/<name>/tar.gz/<commit>`.
"""

import argparse
import hashlib
import http
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from optiml_jax.common.errors import DataError, UserError, check_known, exit_on_user_error
from optiml_jax.common.files import exclusive
from optiml_jax.common.tables import Parser, table
from tasks.catalog.registry import CATALOG, catalog, listed

SOURCES = CATALOG.with_name("sources.tsv")
GITHUB = "https://codeload.github.com"
DOWNLOADS = ".downloads"  # folder in the data directory for archives; removed at the end
CHUNK = 1 << 20
FAILED = "FAILED"


@dataclass(frozen=True)
class Download:
    """A line of `sources.tsv`.

    Attributes:
      folder: destination in the benchmark's folder; a file or a folder.
      source: `owner/name` on GitHub; for manual downloads, the location.
      path: path in the repository.
      git_id: git id of the content of the file or folder. Empty if only the commit is known: then the names are checked
        against the catalog.
      note: for manual downloads, how and why.
    """

    benchmark: str
    folder: str
    source: str
    revision: str
    path: str
    git_id: str
    licence: str
    note: str


def sources() -> list[Download]:
    """All of them."""
    return [Download(**row) for row in listed(SOURCES)]


def git_id(path: Path) -> str:
    """Returns the git id of the content of a file (a blob) or of a folder (a tree)."""
    if path.is_dir():
        entries = []
        for entry in path.iterdir():
            mode = "40000" if entry.is_dir() else "100755" if os.access(entry, os.X_OK) else "100644"
            sort_by = entry.name + ("/" if entry.is_dir() else "")
            entries.append((sort_by.encode(), f"{mode} {entry.name}\0".encode() + bytes.fromhex(git_id(entry))))
        content = b"".join(entry for _, entry in sorted(entries))
        return hashlib.sha1(b"tree %d\0" % len(content) + content).hexdigest()
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def fault(source: Download, path: Path) -> str:
    """Returns why a file or folder differs from the pinned version, or an empty string."""
    if not path.exists():
        return "is not there"
    if source.git_id:
        actual = git_id(path)
        return "" if actual == source.git_id else f"has the git id {actual}, not {source.git_id}"
    if source.folder == "tasks":
        available = {path.stem for path in path.iterdir()}
        stems = (name.partition(".")[2] for name, row in catalog(source.benchmark).items())
        missing = [
            stem for stem in stems if stem not in available and not any(name.startswith(stem[:9]) for name in available)
        ]
        return f"lacks {len(missing)} tasks of the catalog, such as {missing[0]}" if missing else ""
    return "" if any(path.iterdir()) else "is empty"


def download(url: str, target: Path) -> None:
    """Downloads a file and continues a partial download.

    Raises:
      UserError: it cannot be fetched.
    """
    part = target.with_name(f"{target.name}.part")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(
        url, headers={"User-Agent": "optiml-jax"} | ({"Range": f"bytes={have}-"} if have else {})
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            going_on = have > 0 and getattr(answer, "status", None) == http.HTTPStatus.PARTIAL_CONTENT
            size = int(answer.headers.get("Content-Length") or 0)
            have = have if going_on else 0
            bar = tqdm(
                desc=target.name,
                total=have + size or None,
                initial=have,
                unit="B",
                unit_scale=True,
                leave=False,
                delay=1,
            )
            with part.open("ab" if going_on else "wb") as file, bar:
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
        if size and part.stat().st_size != have + size:
            raise UserError(
                f"{url}: ended early, after {part.stat().st_size:,} bytes; run the same command to continue"
            )
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise UserError(f"{url}: {error.code} {error.reason}; --mirror sets another location") from None
        part.unlink()  # the server's file has changed
        download(url, target)
        return
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{url}: cannot be fetched ({reason}); run the same command to go on") from None
    part.replace(target)


def unpack(archive: Path, paths: Iterable[str], target: Path) -> None:
    """The paths paths of an archive, without the folder that all of it lies in.

    Raises:
      DataError: the archive is damaged, or has a member that would be written outside `target`.
    """
    paths = tuple(paths)
    try:
        with tarfile.open(archive, "r|gz") as file:
            for member in file:
                parts = PurePosixPath(member.name).parts
                if member.name.startswith("/") or ".." in parts:
                    raise DataError(
                        f"{archive}: its member {member.name} would be written outside the folder; nothing was unpacked"
                    )
                name = "/".join(parts[1:])
                inside = any(name == path or name.startswith(f"{path}/") for path in paths)
                if inside and (member.isfile() or member.isdir()):
                    file.extract(member.replace(name=name, deep=False), target, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        archive.unlink()
        raise DataError(f"{archive}: cannot be unpacked ({error}), and was removed; run the same command") from None


def fetch(some: Sequence[Download], data_dir: Path, base: str) -> None:
    """Moves paths of one repository at one commit to their destination, after checking each.

    Raises:
      DataError: a file does not match its pinned version. Existing files are not changed.
    """
    repository, revision = some[0].source, some[0].revision
    downloads = data_dir / DOWNLOADS
    downloads.mkdir(parents=True, exist_ok=True)
    archive = downloads / f"{repository.replace('/', '-')}-{revision}.tar.gz"
    if not archive.exists():
        download(f"{base.rstrip('/')}/{repository}/tar.gz/{revision}", archive)
    with tempfile.TemporaryDirectory(dir=downloads) as folder:
        unpack(archive, (source.path for source in some), Path(folder))
        for source in some:
            if problem := fault(source, Path(folder) / source.path):
                archive.unlink()
                raise DataError(f"{repository} at {revision}: {source.path} {problem}; nothing of it was used")
        for source in some:
            target = data_dir / source.benchmark / source.folder
            if target.exists():
                continue  # it matches: `main` has refused files that do not
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(folder) / source.path, target)
    archive.unlink()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("tools.fetch_data", __doc__)
    add = parser.add_argument
    benchmarks = list(dict.fromkeys(source.benchmark for source in sources()))
    add("--data_dir", default=os.environ.get("OPTIML_DATA_DIR"), help="target folder, with one folder per benchmark")
    add("--benchmarks", help=f"benchmarks among {', '.join(benchmarks)} (all)")
    add("--mirror", default=GITHUB, help="file://... or http://... in place of GitHub")
    add("--list", action="store_true", help="list the downloads, automatic and manual, without downloading")
    flags = parser.parse_args(arguments)
    if flags.data_dir is None and not flags.list:
        parser.error("--data_dir is missing")
    if urllib.parse.urlsplit(_address(flags.mirror)).scheme not in ("http", "https", "ftp", "file"):
        parser.error(f"--mirror={flags.mirror}: is no address; give file:///..., http://... or https://...")
    flags.benchmarks = flags.benchmarks.split(",") if flags.benchmarks else benchmarks
    for name in flags.benchmarks:
        check_known("benchmark", name, benchmarks)
    return flags


def _address(text: str) -> str:
    """The text, or nothing if it cannot be an address."""
    try:
        host = urllib.parse.urlsplit(text).netloc
    except ValueError:
        return ""
    return "" if any(character.isspace() for character in text) or (text[:4] != "file" and not host) else text


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    selected = [source for source in sources() if source.benchmark in flags.benchmarks]
    pinned = [source for source in selected if source.revision]
    data_dir = Path(flags.data_dir or "data")
    states, errors = {}, []
    if not flags.list:
        with exclusive(data_dir, "wait for it"):
            states = _fetch_all(pinned, data_dir, flags.mirror, errors)
            if not errors:
                shutil.rmtree(data_dir / DOWNLOADS, ignore_errors=True)
    rows = [
        (
            source.benchmark,
            source.folder,
            source.source,
            source.revision[:8],
            source.licence,
            states.get(source, "pinned"),
        )
        for source in pinned
    ]
    print(table(("benchmark", "file or folder", "repository", "commit", "licence", "state"), rows))
    by_hand = [
        (source.benchmark, source.folder, source.source, source.licence, source.note)
        for source in selected
        if not source.revision
    ]
    if by_hand:
        print(
            "\nto be downloaded by hand:\n" + table(("benchmark", "file or folder", "where", "licence", "how"), by_hand)
        )
    if errors:
        for error in errors[1:]:
            print(error)
        more = f" (and {len(errors) - 1} more failed, listed above)" if errors[1:] else ""
        raise type(errors[0])(f"{errors[0]}{more}")


def _fetch_all(pinned: Sequence[Download], data_dir: Path, base: str, errors: list[UserError]) -> dict[Download, str]:
    """Returns the state of each source and appends failures to `errors`. Refuses a user's own files before fetching."""
    faults = {
        source: fault(source, data_dir / source.benchmark / source.folder)
        for source in tqdm(pinned, "checking", leave=False, delay=1)
    }
    for source, problem in faults.items():
        path = data_dir / source.benchmark / source.folder
        if problem and path.exists():
            raise UserError(f"{path}: {problem}; move it away, or leave {source.benchmark} out with --benchmarks")
    missing: dict[tuple[str, str], list[Download]] = {}
    for source, problem in faults.items():
        if problem:
            missing.setdefault((source.source, source.revision), []).append(source)
    states = {source: "was there" for source in pinned}
    for some in missing.values():  # a failed repository does not stop the others
        try:
            fetch(some, data_dir, base)
            states |= dict.fromkeys(some, "fetched")
        except (UserError, DataError) as error:
            states |= dict.fromkeys(some, FAILED)
            errors.append(error)
    return states


if __name__ == "__main__":
    main()
