"""The same application as Ray Serve replicas, on one node or a cluster."""

import logging
import os
import pathlib
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any

import ray
from ray import serve

from tfopt.config import require
from tfopt.serve.settings import Access, Settings

logger = logging.getLogger("tfopt.serve")
NAME = "tfopt"
_LOST_REPLICAS = pathlib.Path(__file__).parent / "proxy" / "lost_replicas.py"


class Replica:
    """One Ray replica: the application, with one worker process for each version of a model.

    It travels to the other nodes as it is, since importing it there from the package would import TensorFlow.

    Args:
      package: folder of tfopt.
      arguments: of the command line.
      tokens: of clients.
      version: of tfopt.
    """

    def __init__(self, package: str, arguments: list[str], tokens: Sequence[str], version: str) -> None:
        import dataclasses
        import runpy

        runpy.run_path(f"{package}/serve/light.py")["stub_package"]()
        from tfopt.serve.app import Application
        from tfopt.serve.flags import parse

        settings, _, _ = parse(arguments)
        self._application = Application(dataclasses.replace(settings, replicas=1), tokens, version)

    def __serve_build_asgi_app__(self) -> Any:
        """The application; Ray starts it."""
        return self._application.asgi


def run_ray(
    settings: Settings, access: Access, arguments: list[str], version: str, ray_address: str, most: int
) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Args:
      settings: what to serve; `replicas` are Ray's.
      access: where to listen, and to whom.
      arguments: of the command line, which each replica reads; paths must be the same on all nodes.
      version: of tfopt.
      ray_address: of a running cluster; "": Ray is started here.
      most: replicas up to which Ray adds some under load; 0: none.

    Raises:
      ValueError: what Ray does not do is asked for.
    """
    require(
        not access.client_ca,
        "Ray's proxy takes clients without a certificate too: --client_ca goes with --engine=local only",
    )
    require(
        most == 0 or most >= settings.replicas,
        f"--max_replicas must be at least --replicas={settings.replicas}, received {most}",
    )
    over = threading.Event()
    port = access.port or _free_port(access.host)
    if ray_address:
        ray.init(address=ray_address, log_to_driver=True)
    else:
        # Replicas that wait for a processor would never start.
        processors = max(os.cpu_count() or 1, max(most, settings.replicas) * settings.threads)
        _let_the_proxy_find(_LOST_REPLICAS)
        ray.init(num_cpus=processors, include_dashboard=False, log_to_driver=True)
    # Ray has handlers of its own, which end the process at once.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    try:
        serve.start(
            http_options={
                "host": access.host,
                "port": port,
                "ssl_certfile": access.certificate or None,
                "ssl_keyfile": access.key or None,
            }
        )
        serve.run(_deployment(settings, access, arguments, version, most), name=NAME, route_prefix="/")
        host = f"[{access.host}]" if ":" in access.host else access.host
        sys.stdout.write(f"serving at {'https' if access.certificate else 'http'}://{host}:{port}\n")
        sys.stdout.flush()
        over.wait()
    finally:
        serve.shutdown()
        ray.shutdown()


def _let_the_proxy_find(module: pathlib.Path) -> None:
    """Has the processes of Ray that are started from here import a module's middlewares into the proxy."""
    paths = [str(module.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = f"{module.stem}:middlewares"


def _deployment(settings: Settings, access: Access, arguments: list[str], version: str, most: int) -> Any:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    size: dict[str, Any] = {"num_replicas": settings.replicas}
    if most:
        size = {"autoscaling_config": {"min_replicas": settings.replicas, "max_replicas": most}}
    deployment: Any = serve.deployment(
        serve.ingress()(Replica),
        name=NAME,
        max_ongoing_requests=settings.limits.concurrency,
        ray_actor_options={"num_cpus": settings.threads},
        **size,
    )
    return deployment.bind(str(pathlib.Path(__file__).parents[1]), arguments, access.tokens(), version)


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        free.bind((host, 0))
        return free.getsockname()[1]
