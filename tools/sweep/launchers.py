"""Jobs of a cluster for the runs of a sweep: a Slurm array, or Kubernetes jobs."""

import json
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from tools.sweep.members import Member


class Resources(NamedTuple):
    """Of one run. `gpus`: per node."""

    nodes: int = 1
    gpus: int = 8
    time: str = "24:00:00"
    image: str = "optiml-jax:cuda"


def command(member: Member, python: str = "python") -> str:
    """The command line of a run, quoted for a shell."""
    return shlex.join([python, *member.words])


def slurm(name: str, members: Sequence[Member], resources: Resources, output: str) -> str:
    """A script for sbatch: an array with one run per index, which a requeued job resumes."""
    # one task per GPU, which find each other through Slurm's variables
    lines = "\n".join(
        f"    {index}) run_step {command(member, '.venv/bin/python')} ;;" for index, member in enumerate(members)
    )
    return f"""#!/bin/bash
# {len(members)} runs of the sweep {name}, one per index of the array. Submit it again to resume what was not finished.
#SBATCH --job-name={name}
#SBATCH --array=0-{len(members) - 1}
#SBATCH --nodes={resources.nodes}
#SBATCH --ntasks-per-node={resources.gpus}
#SBATCH --gpus-per-node={resources.gpus}
#SBATCH --time={resources.time}
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={output}/%a-%A.log
set -euo pipefail
source tools/launch/slurm_step.sh
case "$SLURM_ARRAY_TASK_ID" in
{lines}
esac
"""


def kubernetes(name: str, members: Sequence[Member], resources: Resources) -> str:
    """Manifests for kubectl: one indexed job of all runs if a run takes one node, else an indexed job per run."""
    job = _label(name)
    if resources.nodes == 1:
        cases = "\n".join(f"{index}) exec {command(member)} ;;" for index, member in enumerate(members))
        script = f'case "$JOB_COMPLETION_INDEX" in\n{cases}\nesac\n'
        return _job(job, len(members), ["bash", "-c", script], resources, coordinator=None)
    documents = []
    for member in members:
        label = _label(f"{name}-{member.name}-{member.seed}")
        documents.append(_service(label))
        words = ["python", *member.words]
        documents.append(_job(label, resources.nodes, words, resources, coordinator=f"{label}-0.{label}:8476"))
    return "---\n".join(documents)


def _label(name: str) -> str:
    """A name that Kubernetes accepts."""
    return "".join(sign if sign.isalnum() else "-" for sign in name.lower()).strip("-")[:52]


def _service(label: str) -> str:
    return f"""apiVersion: v1
kind: Service
metadata: {{ name: {label} }}
spec:
  clusterIP: None
  publishNotReadyAddresses: true # pods must find process 0 before they are ready
  selector: {{ job-name: {label} }}
"""


def _job(label: str, completions: int, words: Sequence[str], resources: Resources, coordinator: str | None) -> str:
    """An indexed job. With a coordinator its pods are the processes of one run, else each pod is a run."""
    variables = {}
    if coordinator:
        variables = {"OPTIML_COORDINATOR": coordinator, "OPTIML_PROCESSES": str(completions)}
    lines = (f"            - {{ name: {key}, value: {json.dumps(text)} }}\n" for key, text in variables.items())
    environment = f"          env:\n{''.join(lines)}" if variables else ""
    subdomain = f"      subdomain: {label}\n" if coordinator else ""
    return f"""apiVersion: batch/v1
kind: Job
metadata: {{ name: {label} }}
spec:
  completionMode: Indexed
  completions: {completions}
  parallelism: {completions}
  backoffLimit: 100 # a pod that is lost starts again and resumes from MODEL_DIR
  template:
    spec:
{subdomain}      restartPolicy: OnFailure
      terminationGracePeriodSeconds: 300 # for the checkpoint that SIGTERM asks for
      containers:
        - name: run
          image: {resources.image}
          workingDir: /optiml-jax
          command: {json.dumps(list(words))}
{environment}          resources:
            limits: {{ nvidia.com/gpu: {resources.gpus} }}
          volumeMounts:
            - {{ name: shared, mountPath: /shared }}
            - {{ name: memory, mountPath: /dev/shm }}
      volumes:
        - name: shared
          persistentVolumeClaim: {{ claimName: optiml }}
        - name: memory
          emptyDir: {{ medium: Memory }}
"""
