"""The part of a mixture on which a run trains: tasks and categories by name, or a number of them (paper 4.4)."""

from collections import Counter
from collections.abc import Iterable, Sequence

from optiml_jax.common.errors import UserError
from optiml_jax.data.manifest import Manifest
from optiml_jax.data.permutation import key
from optiml_jax.data.settings import Data


def selected(manifest: Manifest, data: Data) -> Manifest:
    """Restricts a mixture to the tasks that the settings of a run select.

    Numbers of categories and tasks apply to what `tasks` and `categories` leave, categories first. A larger number
    selects everything that a smaller one does.

    Raises:
      UserError: nothing is left, or a number is larger than what there is or smaller than what is always selected.
    """
    manifest = manifest.only(data.tasks, data.categories)
    if data.scale_categories is not None:
        sizes = Counter(task.category for task in manifest.tasks)
        largest = sorted(sizes, key=lambda category: (-sizes[category], category))
        chosen = _first(largest, data.always_categories, data.scale_categories, "categories")
        manifest = manifest.with_tasks(task for task in manifest.tasks if task.category in chosen)
    if data.scale_tasks is not None:
        shuffled = sorted((task.name for task in manifest.tasks), key=lambda name: key(data.seed, "scale", name))
        chosen = _first(shuffled, data.always_tasks, data.scale_tasks, "tasks")
        manifest = manifest.with_tasks(task for task in manifest.tasks if task.name in chosen)
    return manifest


def _first(ordered: Sequence[str], always: Iterable[str] | None, count: int, kind: str) -> set[str]:
    """The first `count` names, after those that are always selected."""
    setting = f"SCALE_{kind.upper()} is {count}"
    fixed = [name for name in always or () if name in ordered]
    if count > len(ordered):
        raise UserError(f"{setting}: the mixture has {len(ordered)} {kind}; use at most that many, or None for all")
    if count < len(fixed):
        raise UserError(
            f"{setting}: {len(fixed)} {kind} are always selected ({', '.join(fixed)}); use at least that many, or "
            f"change Data.always_{kind}"
        )
    return {*fixed, *[name for name in ordered if name not in fixed][: count - len(fixed)]}
