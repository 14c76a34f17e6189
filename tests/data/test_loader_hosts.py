"""The batches of several hosts and devices against those of one."""

import numpy as np
import pytest

from optiml_jax.data.loader import local_rows, to_devices
from tests.data.memory_store import MemoryStore, make_loader, make_tasks, take


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_any_number_of_hosts_makes_the_same_global_batches(hosts):
    tasks = make_tasks()
    whole = take(make_loader(tasks), 6)
    shares = np.array_split(np.arange(8), hosts)
    parts = [take(make_loader(tasks, rows=rows), 6) for rows in shares]
    for step, batch in enumerate(whole):
        for name, array in batch.arrays.items():
            joined = np.concatenate([part[step].arrays[name] for part in parts])
            assert joined.tobytes() == array.tobytes()
        for part in parts:
            ours = part[step]
            assert (ours.state, ours.real_tokens, ours.row_fill) == (batch.state, batch.real_tokens, batch.row_fill)
            assert ours.examples == batch.examples
        assert sum(part[step].local_label_tokens for part in parts) == batch.local_label_tokens


def test_a_host_reads_only_its_rows():
    tasks = make_tasks()
    store = MemoryStore(tasks)
    read = []
    store.read = lambda task, split, i: read.append((task, i)) or MemoryStore.read(store, task, split, i)
    batch = take(make_loader(tasks, store, rows=[2, 5], prefetch=0), 1)[0]
    assert read == batch.examples[2] + batch.examples[5]


class HostView:
    """A sharding as one process of several sees it."""

    def __init__(self, sharding, devices):
        self.sharding, self.devices = sharding, devices

    def addressable_devices_indices_map(self, shape):
        return {d: i for d, i in self.sharding.devices_indices_map(shape).items() if d in self.devices}


@pytest.mark.parametrize("mesh_shape", [(2, 2, 2), (8, 1, 1), (1, 1, 8)])
def test_global_arrays_on_a_mesh_equal_the_batch(mesh_shape):
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    devices = np.array(jax.devices()[:8]).reshape(mesh_shape)
    sharding = NamedSharding(jax.sharding.Mesh(devices, ("data", "fsdp", "tensor")), PartitionSpec(("data", "fsdp")))
    assert local_rows(sharding, 8, 128).tolist() == list(range(8))
    batch = take(make_loader(make_tasks()), 1)[0]
    for name, array in to_devices(batch.arrays, sharding, 8).items():
        assert array.sharding == sharding and array.dtype == batch.arrays[name].dtype
        assert (np.asarray(array) == batch.arrays[name]).all()


def test_a_host_asks_the_sharding_which_rows_are_its_own():
    """With the tensor axis across two processes each needs every row; with the data axis, half."""
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    devices = np.array(jax.devices()[:8])
    by_rows = NamedSharding(Mesh(devices.reshape(4, 2), ("data", "tensor")), PartitionSpec("data"))
    across = NamedSharding(Mesh(devices.reshape(2, 4).T, ("data", "tensor")), PartitionSpec("data"))
    second_host = set(devices[4:].tolist())
    assert local_rows(HostView(by_rows, second_host), 8, 16).tolist() == [4, 5, 6, 7]
    assert local_rows(HostView(across, second_host), 8, 16).tolist() == list(range(8))


def test_rows_that_were_not_read_cannot_be_placed():
    import jax
    from jax.sharding import SingleDeviceSharding

    batch = take(make_loader(make_tasks(), rows=[0, 1]), 1)[0]
    with pytest.raises(IndexError):
        to_devices(batch.arrays, SingleDeviceSharding(jax.devices()[0]), 8, np.array([0, 1]))
