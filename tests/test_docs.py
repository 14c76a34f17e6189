"""The documents: links, versions, the site. `test_snippets.py` runs what they say."""

import os
import re
import subprocess
import sys

import yaml

from optiml_jax import __version__
from tests.conftest import ROOT


def test_the_version_is_that_of_the_changelog_and_the_citation():
    newest, date = re.search(r"^## (\S+) \((.*)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).groups()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert newest == __version__ == citation["version"] and str(citation["date-released"]) == date
    forms = list((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 3
    for form in forms:
        assert {"name", "description", "labels", "body"} == yaml.safe_load(form.read_text()).keys()


def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path):
    """Warnings of mkdocs are dead links, missing anchors, pages that are in no list, and unknown names."""
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={tmp_path / 'site'}"]
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    assert all(f'id="optiml_jax.inference.model.{name}"' in page for name in ("load_model", "Model.instruct"))
    for path in (tmp_path / "site").glob("*.html"):
        fetched = re.findall(
            r'<(?:link|script|img)[^>]*(?:href|src)="(https?:[^"]*)"', path.read_text(encoding="utf-8")
        )
        assert not fetched, (path, fetched)


def test_links_of_the_files_beside_it_lead_somewhere():
    for file in sorted(ROOT.glob("*.md")):
        for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)", file.read_text(encoding="utf-8")):
            target = ROOT / link if link else file
            assert target.exists(), f"{file.name}: {link}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
                assert anchor[1:] in slugs, f"{file.name}: {link}{anchor}"
