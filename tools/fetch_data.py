r"""Fetches the official data that may be fetched by a program, at pinned revisions, into one folder a benchmark.

    python -m tools.fetch_data --data_dir=data
    python -m tools.fetch_data --data_dir=data --benchmarks=flan,reasoning
    python -m tools.fetch_data --data_dir=data --mirror=file:///mnt/archives
    python -m tools.fetch_data --list

`tasks/catalog/sources.tsv` says what is fetched: paths of GitHub repositories at a commit, each with the id that git
gives its content, which is what is checked. What is there already, and is as pinned, is not fetched again; a download
that was cut off goes on where it was. The rest must be fetched by hand, and the last table says how and why.

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
DOWNLOADS = ".downloads"  # in the data directory: archives, gone when all is in its place
CHUNK = 1 << 20
FAILED = "FAILED"


@dataclass(frozen=True)
class Source:
    """One line of `sources.tsv`.

    Attributes:
      folder: where it goes in the benchmark's folder; a file or a folder.
      source: `owner/name` on GitHub; of what must be fetched by hand, where it is.
      path: in the repository.
      git_id: of a file's or folder's content. Empty where only the commit is known: then names are checked, against
        the catalog.
      note: of what must be fetched by hand, how and why.
    """

    benchmark: str
    folder: str
    source: str
    revision: str
    path: str
    git_id: str
    licence: str
    note: str


def sources() -> list[Source]:
    """All of them."""
    return [Source(**row) for row in listed(SOURCES)]


def git_id(path: Path) -> str:
    """The id that git gives the content of a file (a blob) or of a folder (a tree)."""
    if path.is_dir():
        entries = []
        for entry in path.iterdir():
            mode = "40000" if entry.is_dir() else "100755" if os.access(entry, os.X_OK) else "100644"
            sort_by = entry.name + ("/" if entry.is_dir() else "")
            entries.append((sort_by.encode(), f"{mode} {entry.name}\0".encode() + bytes.fromhex(git_id(entry))))
        content = b"".join(entry for _, entry in sorted(entries))
        return hashlib.sha1(b"tree %d\0" % len(content) + content).hexdigest()
    found = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found.update(chunk)
    return found.hexdigest()


def fault(source: Source, place: Path) -> str:
    """Why a file or folder is not what was pinned; empty when it is."""
    if not place.exists():
        return "is not there"
    if source.git_id:
        found = git_id(place)
        return "" if found == source.git_id else f"has the git id {found}, not {source.git_id}"
    if source.folder == "tasks":
        there = {path.stem for path in place.iterdir()}
        stems = (name.partition(".")[2] for name, row in catalog(source.benchmark).items())
        missing = [stem for stem in stems if stem not in there and not any(one.startswith(stem[:9]) for one in there)]
        return f"lacks {len(missing)} tasks of the catalog, such as {missing[0]}" if missing else ""
    return "" if any(place.iterdir()) else "is empty"


def download(url: str, target: Path) -> None:
    """Fetches a file, on from what of it is there already.

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
            raise UserError(f"{url}: ended early, at {part.stat().st_size:,} bytes; run the same command to go on")
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise UserError(f"{url}: {error.code} {error.reason}; --mirror names another place") from None
        part.unlink()  # it was not what is there now
        download(url, target)
        return
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{url}: cannot be fetched ({reason}); run the same command to go on") from None
    part.replace(target)


def unpack(archive: Path, wanted: Iterable[str], target: Path) -> None:
    """The wanted paths of an archive, without the folder that all of it lies in.

    Raises:
      DataError: it is damaged, or has a member that would be written outside `target`.
    """
    wanted = tuple(wanted)
    try:
        with tarfile.open(archive, "r|gz") as file:
            for member in file:
                parts = PurePosixPath(member.name).parts
                if member.name.startswith("/") or ".." in parts:
                    raise DataError(f"{archive}: its member {member.name} leaves the folder; nothing was unpacked")
                name = "/".join(parts[1:])
                inside = any(name == path or name.startswith(f"{path}/") for path in wanted)
                if inside and (member.isfile() or member.isdir()):
                    file.extract(member.replace(name=name, deep=False), target, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        archive.unlink()
        raise DataError(f"{archive}: cannot be unpacked ({error}), and was removed; run the same command") from None


def fetch(some: Sequence[Source], data_dir: Path, base: str) -> None:
    """Brings paths of one repository at one commit into place, each checked before.

    Raises:
      DataError: something is not what was pinned. What is in its place stays as it was.
    """
    repository, revision = some[0].source, some[0].revision
    downloads = data_dir / DOWNLOADS
    downloads.mkdir(parents=True, exist_ok=True)
    archive = downloads / f"{repository.replace('/', '-')}-{revision}.tar.gz"
    if not archive.exists():
        download(f"{base.rstrip('/')}/{repository}/tar.gz/{revision}", archive)
    with tempfile.TemporaryDirectory(dir=downloads) as folder:
        unpack(archive, (one.path for one in some), Path(folder))
        for one in some:
            if wrong := fault(one, Path(folder) / one.path):
                archive.unlink()
                raise DataError(f"{repository} at {revision}: {one.path} {wrong}; nothing of it was taken")
        for one in some:
            place = data_dir / one.benchmark / one.folder
            if place.exists():
                continue  # as pinned, or the user's own: `main` has refused the latter
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(folder) / one.path, place)
    archive.unlink()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("tools.fetch_data", __doc__)
    add = parser.add_argument
    known = list(dict.fromkeys(one.benchmark for one in sources()))
    add("--data_dir", default=os.environ.get("OPTIML_DATA_DIR"), help="where to, one folder a benchmark")
    add("--benchmarks", help=f"some of {', '.join(known)} (all)")
    add("--mirror", default=GITHUB, help="file://... or http://... in place of GitHub")
    add("--list", action="store_true", help="say what would be fetched, and what by hand; fetch nothing")
    flags = parser.parse_args(arguments)
    if flags.data_dir is None and not flags.list:
        parser.error("--data_dir is missing")
    flags.benchmarks = flags.benchmarks.split(",") if flags.benchmarks else known
    for name in flags.benchmarks:
        check_known("benchmark", name, known)
    return flags


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    wanted = [one for one in sources() if one.benchmark in flags.benchmarks]
    pinned = [one for one in wanted if one.revision]
    data_dir = Path(flags.data_dir or "data")
    states, errors = {}, []
    if not flags.list:
        with exclusive(data_dir, "wait for it"):
            states = _fetch_all(pinned, data_dir, flags.mirror, errors)
            if not errors:
                shutil.rmtree(data_dir / DOWNLOADS, ignore_errors=True)
    rows = [
        (one.benchmark, one.folder, one.source, one.revision[:8], one.licence, states.get(one, "pinned"))
        for one in pinned
    ]
    print(table(("benchmark", "file or folder", "repository", "commit", "licence", "state"), rows))
    by_hand = [(one.benchmark, one.folder, one.source, one.licence, one.note) for one in wanted if not one.revision]
    if by_hand:
        print("\nto be fetched by hand:\n" + table(("benchmark", "file or folder", "where", "licence", "how"), by_hand))
    if errors:
        for error in errors[1:]:
            print(error)
        more = f" (and {len(errors) - 1} more failed, listed above)" if errors[1:] else ""
        raise type(errors[0])(f"{errors[0]}{more}")


def _fetch_all(pinned: Sequence[Source], data_dir: Path, base: str, errors: list[UserError]) -> dict[Source, str]:
    """What became of each; `errors` gets what failed. A file of the user is refused before anything is fetched."""
    faults = {
        one: fault(one, data_dir / one.benchmark / one.folder) for one in tqdm(pinned, "checking", leave=False, delay=1)
    }
    for one, wrong in faults.items():
        place = data_dir / one.benchmark / one.folder
        if wrong and place.exists():
            raise UserError(f"{place}: {wrong}; move it away, or leave {one.benchmark} out with --benchmarks")
    missing: dict[tuple[str, str], list[Source]] = {}
    for one, wrong in faults.items():
        if wrong:
            missing.setdefault((one.source, one.revision), []).append(one)
    states = {one: "was there" for one in pinned}
    for some in missing.values():  # one that fails does not keep the others
        try:
            fetch(some, data_dir, base)
            states |= dict.fromkeys(some, "fetched")
        except (UserError, DataError) as error:
            states |= dict.fromkeys(some, FAILED)
            errors.append(error)
    return states


if __name__ == "__main__":
    main()
