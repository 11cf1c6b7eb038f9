"""Which port this process serves at: worker n of a host takes the first port + n."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping

from gradwatch.errors import ConfigError
from gradwatch.reading.text import clean

#: The port from which workers count; registered for no other common exporter on a training host.
DEFAULT_PORT = 9464

#: Environment variables that number the workers of one host, in the order they are asked.
WORKER_VARIABLES = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")


def worker_index(environ: Mapping[str, str] = os.environ) -> int:
    """Index of this process among the workers of its host, from the launcher's environment; else 0.

    Asked in this order: LOCAL_RANK (torchrun style launchers), OMPI_COMM_WORLD_LOCAL_RANK (Open MPI,
    Horovod), MPI_LOCALRANKID (Intel MPI, MPICH), SLURM_LOCALID (srun), and `task.index` of TF_CONFIG, which
    counts over all hosts: ports are then unique, too, but do not start at the first one on each host.

    Raises:
      ConfigError: TF_CONFIG or a variable does not hold an index.
    """
    for name in WORKER_VARIABLES:
        if environ.get(name):
            return _index_in(environ[name], name)
    if environ.get("TF_CONFIG"):
        try:
            task = json.loads(environ["TF_CONFIG"]).get("task", {})
            index = task.get("index", 0)
        except (ValueError, AttributeError) as exc:
            raise ConfigError("TF_CONFIG is not a JSON object; give worker= as a number") from exc
        return _index_in(index, "task.index of TF_CONFIG")
    return 0


def _index_in(value: object, name: str) -> int:
    if not re.fullmatch(r"\d{1,5}", str(value)):
        raise ConfigError(f"{name} must be an index >= 0, got {clean(value)!r}; give worker= as a number")
    return int(str(value))


def port_of(port: int, worker: int | str | None) -> int:
    """The port to listen on; arguments and errors as for `gradwatch.serve`."""
    if worker == "auto":
        worker = worker_index()
    if worker is not None and (not isinstance(worker, int) or isinstance(worker, bool) or worker < 0):
        raise ConfigError(f'worker must be an index >= 0, "auto" or None, got {worker!r}')
    if not isinstance(port, int) or isinstance(port, bool) or not 0 <= port <= 65535:
        raise ConfigError(f"port must be between 0 and 65535, got {port!r}; 0 takes a free one")
    if port == 0:
        return 0
    wanted = port + (worker or 0)
    if wanted > 65535:
        raise ConfigError(f"port {port} + worker {worker} is above 65535; begin at a lower port")
    return wanted
