"""This project's side of `train`: the compiled step of `python -m optiml_jax.train`, on one device."""

from collections.abc import Sequence
from pathlib import Path

import jax
from jax.sharding import NamedSharding

from optiml_jax.data.loader import Batch, to_devices
from optiml_jax.model import sharding
from optiml_jax.model.config import OPTConfig
from optiml_jax.training import step
from optiml_jax.training.optimizer import Optimization
from optiml_jax.training.step import Computation
from optiml_jax.weights import save_hf


class Ours:
    """Trains on the given batches. The first call of `run` compiles."""

    def __init__(
        self,
        config: OPTConfig,
        optimization: Optimization,
        computation: Computation,
        batches: Sequence[Batch],
        seed: int,
        weights: Path | None,
    ) -> None:
        """`weights`: file to which the initial weights are written for the peer; None: no peer."""
        self._mesh = sharding.make_mesh(devices=jax.devices()[:1])
        self._key = jax.random.key(seed)
        self._step = 0
        with jax.set_mesh(self._mesh):
            self._state = step.init_state(self._key, config, optimization, computation, self._mesh)
            if weights:
                save_hf(self._state.params, config, None, weights)
            self._advance = step.compiled_step(config, optimization, computation, self._mesh)
            batch_sharding = NamedSharding(self._mesh, sharding.spec("BT"))
            self._batches = [to_devices(batch.arrays, batch_sharding, len(batch.rows)) for batch in batches]

    def run(self) -> list[float]:
        """Takes one step per batch and returns the losses, in nats per label token, when the device has finished."""
        losses = []
        with jax.set_mesh(self._mesh):
            for arrays in self._batches:
                key = jax.random.fold_in(self._key, self._step)
                self._state, metrics = self._advance(self._state, arrays, key)
                self._step += 1
                losses.append(metrics["loss"])
            jax.block_until_ready(self._state)
        return [float(loss) for loss in losses]

    @property
    def peak_bytes(self) -> int | None:
        """Returns the peak memory of arrays and temporaries on the device; None if it is not counted (CPUs)."""
        return (self._mesh.devices.flat[0].memory_stats() or {}).get("peak_bytes_in_use")
