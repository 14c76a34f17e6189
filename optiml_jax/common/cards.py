"""GPU specifications: peak rates for planning and MFU, and the target description XLA needs to compile without a
GPU."""

import dataclasses

DEVICES_PER_NODE = 8


@dataclasses.dataclass(frozen=True)
class Card:
    """Data of a GPU from its vendor's data sheet.

    Attributes:
      description: the name that the driver reports.
      memory_bytes: memory available to a program; plans reserve a tenth of it for libraries and fragmentation.
      flops: dense bf16 FLOP/s.
      memory_bandwidth: bytes/s.
      node_bandwidth: bytes/s from one device to others of its node (NVLink or PCIe, one direction).
      network_bandwidth: bytes/s from one device to other nodes (one adapter per GPU).
      capability: CUDA compute capability.
      cores, fpus_per_core, clock_ghz, l2_bytes: of the chip.
      core_threads: maximum number of threads per core.
      core_shared_bytes, block_shared_bytes: shared memory per core, and the most that one block may request.
    """

    description: str
    memory_bytes: int
    flops: float
    memory_bandwidth: int
    node_bandwidth: float
    network_bandwidth: float
    capability: tuple[int, int]
    cores: int
    fpus_per_core: int
    clock_ghz: float
    l2_bytes: int
    core_shared_bytes: int
    block_shared_bytes: int
    core_threads: int = 2048

    @property
    def limit_bytes(self) -> int:
        """Memory usable by a plan: the total minus 10%."""
        return self.memory_bytes * 9 // 10

    def target_config(self) -> str:
        """XLA's `GpuTargetConfigProto` as text, for `jax.experimental.topologies`."""
        major, minor = self.capability
        fields = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "shared_memory_per_block": 49_152,
            "shared_memory_per_core": self.core_shared_bytes,
            "threads_per_core_limit": self.core_threads,
            "core_count": self.cores,
            "fpus_per_core": self.fpus_per_core,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 65_535,
            "block_dim_limit_z": 65_535,
            "memory_bandwidth": self.memory_bandwidth,
            "l2_cache_size": self.l2_bytes,
            "clock_rate_ghz": self.clock_ghz,
            "device_memory_size": self.memory_bytes,
            "shared_memory_per_block_optin": self.block_shared_bytes,
            "registers_per_core_limit": 65_536,
            "registers_per_block_limit": 65_536,
        }
        device = " ".join(f"{name}:{value}" for name, value in fields.items())
        return (
            f"gpu_device_info{{{device} cuda_compute_capability{{major:{major} minor:{minor}}}}} "
            'platform_name:"CUDA" dnn_version_info{major:9 minor:28} runtime_version{major:13 minor:0 patch:0} '
            f'device_description_str:"{self.description}"'
        )


_A100 = Card(
    description="NVIDIA A100-SXM4-40GB",
    memory_bytes=40 * 10**9,
    flops=312e12,
    memory_bandwidth=1_555 * 10**9,
    node_bandwidth=300e9,
    network_bandwidth=25e9,
    capability=(8, 0),
    cores=108,
    fpus_per_core=64,
    clock_ghz=1.41,
    l2_bytes=40 * 2**20,
    core_shared_bytes=167_936,
    block_shared_bytes=166_912,
)
_H100 = Card(
    description="NVIDIA H100 80GB HBM3",
    memory_bytes=80 * 10**9,
    flops=989e12,
    memory_bandwidth=3_350 * 10**9,
    node_bandwidth=450e9,
    network_bandwidth=50e9,
    capability=(9, 0),
    cores=132,
    fpus_per_core=128,
    clock_ghz=1.98,
    l2_bytes=50 * 2**20,
    core_shared_bytes=233_472,
    block_shared_bytes=232_448,
)
_L40S = Card(
    description="NVIDIA L40S",
    memory_bytes=48 * 10**9,
    flops=362e12,
    memory_bandwidth=864 * 10**9,
    node_bandwidth=32e9,
    network_bandwidth=25e9,
    capability=(8, 9),
    cores=142,
    fpus_per_core=128,
    clock_ghz=2.52,
    l2_bytes=96 * 2**20,
    core_shared_bytes=102_400,
    block_shared_bytes=101_376,
    core_threads=1536,
)
CARDS = {
    "a100-40gb": _A100,
    "a100-80gb": dataclasses.replace(
        _A100, description="NVIDIA A100-SXM4-80GB", memory_bytes=80 * 10**9, memory_bandwidth=2_039 * 10**9
    ),
    "h100": _H100,
    "h200": dataclasses.replace(
        _H100,
        description="NVIDIA H200",
        memory_bytes=139 * 2**30,
        memory_bandwidth=4_800 * 10**9,
        l2_bytes=60 * 2**20,
    ),
    "b200": dataclasses.replace(
        _H100,
        description="NVIDIA B200",
        memory_bytes=180 * 10**9,
        flops=2_250e12,
        memory_bandwidth=8_000 * 10**9,
        node_bandwidth=900e9,
        capability=(10, 0),
        cores=148,
        l2_bytes=126 * 2**20,
    ),
    "h100-pcie": dataclasses.replace(
        _H100,
        description="NVIDIA H100 PCIe",
        flops=756e12,
        memory_bandwidth=2_000 * 10**9,
        node_bandwidth=64e9,
        cores=114,
        clock_ghz=1.755,
    ),
    "l40s": _L40S,
    "rtx-4090": dataclasses.replace(
        _L40S,
        description="NVIDIA GeForce RTX 4090",
        memory_bytes=24 * 10**9,
        flops=165e12,
        memory_bandwidth=1_008 * 10**9,
        cores=128,
        l2_bytes=72 * 2**20,
    ),
}
KINDS = {  # substring of JAX's `device_kind` -> name in `CARDS`; longer substrings first
    "H100 PCIe": "h100-pcie",
    "H100": "h100",
    "H200": "h200",
    "B200": "b200",
    "A100-SXM4-80GB": "a100-80gb",
    "A100": "a100-40gb",
    "L40S": "l40s",
    "RTX 4090": "rtx-4090",
}


def card_of(device_kind: str) -> Card | None:
    """Returns the card of a JAX `device_kind`, or None for a device that is not in the table (a CPU)."""
    return next((CARDS[name] for part, name in KINDS.items() if part.lower() in device_kind.lower()), None)
