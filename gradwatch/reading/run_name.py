"""What the run in this process is called, when nobody says."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from gradwatch.reading.text import clean

_LIMIT = 80  # characters: it is a label


def run_name(
    environ: Mapping[str, str] = os.environ, argv: Sequence[str] | None = None, module: str | None = None
) -> str:
    """A name by which a person knows this run among others.

    In this order: `GRADWATCH_RUN_NAME`; the name and number of the SLURM job (with its task, for an array); the pod,
    in Kubernetes; the script that is run, or the module after `python -m`. "" in an interactive interpreter or
    notebook, which has no name that helps.

    Args:
      environ, argv, module: for tests; default: those of this process.
    """
    return clean(_name(environ, sys.argv if argv is None else argv, module), _LIMIT)


def _name(environ: Mapping[str, str], argv: Sequence[str], module: str | None) -> str:
    if environ.get("GRADWATCH_RUN_NAME"):
        return environ["GRADWATCH_RUN_NAME"]
    if environ.get("SLURM_JOB_ID"):
        number = environ["SLURM_JOB_ID"]
        if environ.get("SLURM_ARRAY_JOB_ID") and environ.get("SLURM_ARRAY_TASK_ID"):
            number = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
        return "-".join(filter(None, (environ.get("SLURM_JOB_NAME"), number)))
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return environ.get("POD_NAME") or environ.get("HOSTNAME") or socket.gethostname()
    if module is None:
        spec = getattr(sys.modules.get("__main__"), "__spec__", None)
        module = getattr(spec, "name", None) or ""
    script = argv[0] if argv else ""
    if re.search(r"ipykernel|jupyter|colab_kernel", f"{module} {script}") or script in ("", "-c", "-m"):
        return ""
    if module and not module.startswith("__"):
        return module.removesuffix(".__main__")
    path = Path(script)
    return path.parent.name if path.stem == "__main__" else path.stem
