"""Starting Ray on this machine, or joining a cluster: quietly, and only if somebody answers."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import joblib

from vestige.errors import MissingExtra, VestigeError
from vestige.training.processes import ONE_CORE, TRIES

__all__ = ["guard", "join", "last_line", "leave"]

PATIENCE = 60.0
"""Seconds that a cluster has to answer."""

_ours: tuple[Any, tuple[str, str]] | None = None
"""What was asked of the Ray that was joined here, and who we are there."""


def join(address: str | None, workers: int | None) -> Any:
    """The ray module, connected to what was asked for or to what it already is.

    Raises:
        MissingExtra: Ray is not installed.
        VestigeError: it does not start, or nobody answers at the address.
    """
    global _ours
    asked = address or workers
    with _environment(_settings(address)):
        try:
            import ray
        except ImportError:
            raise MissingExtra(
                "expected Ray for this engine, found none; run `pip install 'vestige[ray]'`"
            ) from None
        if ray.is_initialized():
            if not _is_ours(ray) or (_ours and _ours[0] == asked):
                return ray
            ray.shutdown()
        _hush()
        where: dict[str, Any] = {"address": address}
        if address is None:
            count = workers or joblib.cpu_count()
            where = {"address": "local", "num_cpus": count, "include_dashboard": False}
        else:
            _probe(address)
        try:
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            raise VestigeError(f"expected Ray to start, got: {last_line(error)}") from error
    _ours = asked, _here(ray)
    return ray


def _here(ray: Any) -> tuple[str, str]:
    """Our node, and our job's number in the cluster."""
    context = ray.get_runtime_context()
    return context.get_node_id(), context.get_job_id()


def _is_ours(ray: Any) -> bool:
    return _ours is not None and _ours[1] == _here(ray)


def _settings(address: str | None) -> dict[str, str]:
    """Environment variables under which Ray is imported and started, and its workers with it."""
    always = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    if address is not None:
        return always
    # of tasks that were killed for want of memory; without an end by default
    tries = {"RAY_task_oom_retries": str(TRIES - 1)}
    # workers find what we find
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    return always | tries | {"PYTHONPATH": paths} | ONE_CORE


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _hush() -> None:
    """Ray prints to the terminal when a worker is killed, whatever it is told about logs."""
    with contextlib.suppress(ImportError):
        from ray._private import worker

        worker.print_to_stdstream = lambda *args, **options: None


_JOIN = """
import ray, sys
try:
    ray.init(address=sys.argv[1], log_to_driver=False)
except Exception as error:
    print(error)
    sys.exit(1)
"""


def _probe(address: str) -> None:
    """Join the cluster from another process: where nobody answers, Ray waits and cannot be ended.

    Raises:
        VestigeError: what came instead of an answer.
    """
    try:
        if address != "auto":
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        words = [sys.executable, "-c", _JOIN, address]
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
        why = " ".join(done.stdout.split()) if done.returncode else ""
    except subprocess.TimeoutExpired:
        why = f"no answer of Ray's within {PATIENCE:.0f} s"
    except (OSError, ValueError) as error:
        why = str(error)
    if why:
        raise VestigeError(
            f"expected a Ray cluster at {address}, got: {why}; start one with `ray start --head` "
            "and give its host:6379, or leave the address out"
        )


def guard() -> None:
    """A secret for the Ray that this program starts: it listens to all, and runs what it is sent.

    For a program of our own: no cluster can be joined after it. It counts where Ray has not been
    imported, and has no choice of the user's to keep to.
    """
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))


def leave() -> None:
    """Leave the Ray that was started or joined here."""
    global _ours
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized() and _is_ours(ray):
        ray.shutdown()
    _ours = None


def last_line(error: object) -> str:
    return str(error).strip().splitlines()[-1]
