"""Checkpoints move between meshes without changing a bit."""

import contextlib
import os
import re

import jax
import numpy as np
import pytest

from optiml_jax.checkpoints import orbax
from optiml_jax.common.errors import UserError
from optiml_jax.training import step
from optiml_jax.training.optimizer import Optimization
from optiml_jax.training.step import Computation
from tests.meshes import MESHES, mesh_of

real = orbax.fingerprint
SETTINGS, COMPUTATION = Optimization(), Computation(precision="fp16")


@pytest.fixture(scope="module")
def abstract(config):
    return step.abstract_state(config, SETTINGS, COMPUTATION)


def on_mesh(abstract, name):
    """The state as `ShapeDtypeStruct`s that lie on a mesh."""
    return orbax.with_shardings(abstract, step.state_shardings(abstract, SETTINGS, mesh_of(name)))


@pytest.fixture(scope="module")
def values(abstract):
    """Every array of a state, moments and counters included, filled with random bits that are numbers."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.asarray(1000 * rng.normal(size=x.shape), x.dtype), abstract)


@pytest.mark.parametrize(
    "saved_on", ["2x2x2", *(pytest.param(n, marks=pytest.mark.slow) for n in MESHES if n != "2x2x2")]
)
def test_a_checkpoint_restores_bit_identically_on_every_mesh(saved_on, abstract, values, tmp_path):
    state = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), values, on_mesh(abstract, saved_on))
    with contextlib.closing(orbax.Checkpoints(tmp_path, keep=2)) as checkpoints:
        checkpoints.save(7, state, {})
        checkpoints.wait()
        for name in MESHES:
            like = on_mesh(abstract, name)
            restored = checkpoints.restore(7, like)
            jax.tree.map(np.testing.assert_array_equal, restored, values)
            jax.tree.map(lambda x, want: x.sharding == want.sharding or pytest.fail(str(x.sharding)), restored, like)
            jax.tree.map(lambda x, want: x.dtype == want.dtype or pytest.fail(str(x.dtype)), restored, like)


@pytest.fixture
def saved(abstract, values, tmp_path):
    """A folder with one checkpoint, of step 7."""
    state = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), values, on_mesh(abstract, "1x1x1"))
    with contextlib.closing(orbax.Checkpoints(tmp_path, keep=2)) as checkpoints:
        checkpoints.save(7, state, {"data": {"block": 3, "row": 1}})
        checkpoints.wait()
    return tmp_path


def test_opening_to_read_touches_nothing_of_a_run_that_is_going_on(saved):
    """A checkpoint that is being written has a temporary name; opening with clean-up would remove it."""
    (saved / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir()
    before = sorted(saved.rglob("*"))
    with contextlib.closing(orbax.Checkpoints(saved)) as checkpoints:
        assert checkpoints.latest == 7 and checkpoints.meta(7)["data"] == {"block": 3, "row": 1}
    assert sorted(saved.rglob("*")) == before


@pytest.mark.slow  # test_a_changed_number_is_found... is its fast companion
def test_every_flipped_bit_of_a_checkpoint_is_found_or_changes_nothing(saved, abstract, values):
    """In the bytes of each file; Orbax's own bookkeeping may change without a number changing."""
    like, rng = on_mesh(abstract, "1x1x1"), np.random.default_rng(0)
    files = sorted(path for path in (saved / "checkpoints" / "7").rglob("*") if path.is_file() and path.stat().st_size)
    detected = 0
    for path in files:
        whole = path.read_bytes()
        for bit in rng.choice(8 * len(whole), 3, replace=False).tolist():
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            with contextlib.closing(orbax.Checkpoints(saved)) as checkpoints:
                try:
                    assert checkpoints.meta(7)["data"] == {"block": 3, "row": 1}
                    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(7, like), values)
                except UserError as error:
                    detected += 1
                    assert str(error).startswith(f"{saved / 'checkpoints' / '7'}: ")
        path.write_bytes(whole)
    assert detected >= len(files)


def test_deleting_a_step_is_advised_only_where_a_checksum_proves_damage(saved, abstract):
    """Another optimizer, a missing file and a form that this Orbax does not know are said to be what they are."""
    folder = saved / "checkpoints" / "7"

    def message(like) -> str:
        with contextlib.closing(orbax.Checkpoints(saved)) as checkpoints, pytest.raises(UserError) as error:
            checkpoints.restore(7, like)
        return str(error.value)

    like = on_mesh(abstract, "1x1x1")
    wide = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((3, *leaf.shape), leaf.dtype, sharding=leaf.sharding), like.trainable
    )
    other = message(like._replace(trainable=wide))
    assert re.search(r"7: its params has [\w/]+ \[[\d, ]+\], where \[3, [\d, ]+\] is expected", other)
    more = message(like._replace(optimizer={"first": like.optimizer, "second": like.optimizer}))
    assert re.search(r"7: its optimizer has optimizer/[\w/]+ .*where .* is expected", more)
    data = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    whole = data.read_bytes()
    data.unlink()
    missing = message(like)
    assert "orbax-checkpoint" in missing and "may be intact" in missing
    assert not any("delete" in text for text in (other, more, missing))
    data.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    assert "checkpoint is damaged" in message(like) and "delete this step's folder" in message(like)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_named(saved, abstract):
    path = next(path for path in sorted((saved / "checkpoints" / "7" / "params").rglob("*")) if path.is_file())
    path.chmod(0)
    refused = pytest.raises(UserError, match=f"{path}: no permission to read it")
    with contextlib.closing(orbax.Checkpoints(saved)) as checkpoints, refused:
        checkpoints.restore(7, on_mesh(abstract, "1x1x1"))


def test_a_changed_number_is_found_whatever_the_files_say(saved, abstract):
    """A bit that a disk flips before Orbax packs it: the arrays are hashed, not the files."""
    like = on_mesh(abstract, "1x1x1")
    with contextlib.closing(orbax.Checkpoints(saved)) as checkpoints:
        state, meta = checkpoints.restore(7, like), checkpoints.meta(7)
        bias = state.params["final_norm"]["bias"]
        state.params["final_norm"]["bias"] = bias.at[3].set(np.nextafter(np.float32(bias[3]), np.float32(1e9)))
        with pytest.raises(UserError, match=r"7: checkpoint is damaged \(checksum of its params\).*delete"):
            checkpoints._check(7, "params", state.params, meta)


@pytest.mark.parametrize("item", ["params", "optimizer"])
def test_arrays_that_are_not_those_of_the_metadata_are_refused(item, abstract, values, tmp_path, monkeypatch):
    """As a bit that memory flips between the hash and the file: the files are sound, and hold another number."""
    state = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), values, on_mesh(abstract, "1x1x1"))
    monkeypatch.setattr(
        orbax, "fingerprint", lambda tree: "0" * 32 if isinstance(tree, dict) is (item == "params") else real(tree)
    )
    with contextlib.closing(orbax.Checkpoints(tmp_path, keep=1)) as checkpoints:
        checkpoints.save(7, state, {})
        checkpoints.wait()
        monkeypatch.setattr(orbax, "fingerprint", real)
        with pytest.raises(UserError, match=rf"7: checkpoint is damaged \(checksum of its {item}\)"):
            checkpoints.restore(7, on_mesh(abstract, "1x1x1"))


def test_metadata_that_were_changed_are_refused(saved):
    file = saved / "checkpoints" / "7" / "meta" / "metadata"
    file.write_text(file.read_text().replace('"block": 3', '"block": 4'))
    refused = pytest.raises(UserError, match=r"7: checkpoint is damaged \(checksum of its metadata\)")
    with contextlib.closing(orbax.Checkpoints(saved)) as checkpoints, refused:
        checkpoints.meta(7)


def test_later_checkpoints_are_deleted_and_no_others(abstract, values, tmp_path):
    params = jax.tree.map(jax.numpy.asarray, values.params)
    with contextlib.closing(orbax.Checkpoints(tmp_path, keep=4)) as checkpoints:
        for number in (1, 2, 3, 4):
            checkpoints.save_weights(number, params, {})
        checkpoints.wait()
        checkpoints.delete_after(2)
        assert checkpoints.latest == 2
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]
