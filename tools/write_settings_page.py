"""Writes docs/settings.md, the list of every setting, from the code and gin/train.gin and gin/evaluate.gin.

python -m tools.write_settings_page
"""

from pathlib import Path

from optiml_jax import gin_cli, settings_page
from optiml_jax.common.files import write_atomically

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"


def text() -> str:
    """The content of the page."""
    return settings_page.markdown(settings_page.sections(gin_cli.CONFIGURABLES, gin_cli.SEARCH_PATH))


if __name__ == "__main__":
    write_atomically(PAGE, text())
