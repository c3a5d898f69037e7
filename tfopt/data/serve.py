"""Serves training batches to other hosts, until Ctrl-C; see `tfopt.data.local_service`.

python -m tfopt.data.serve --host=first --port=5050 --workers=4
python -m tfopt.data.serve --dispatcher=first:5050 --host=second --workers=8     further workers, on another host
"""

import argparse
import contextlib
import sys
import threading

from tfopt.data.service import local_service, worker_processes


def main() -> None:
    """Starts what the arguments say, and waits."""
    parser = argparse.ArgumentParser(
        prog="python -m tfopt.data.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2, help="processes on this host")
    parser.add_argument("--host", default="localhost", help="the name by which trainings reach this host")
    parser.add_argument("--port", type=int, default=5050, help="of the dispatcher")
    parser.add_argument("--worker_port", type=int, default=0, help="of the first worker; 0: any that are free")
    parser.add_argument("--folder", help="for the journal of the dispatcher, so that it can be started again")
    parser.add_argument("--dispatcher", help="host:port of a dispatcher that runs already: start workers only")
    chosen = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        if chosen.dispatcher is None:
            service = local_service(chosen.workers, chosen.port, chosen.folder, chosen.host, chosen.worker_port)
            address = stack.enter_context(service)
        else:
            stack.enter_context(worker_processes(chosen.dispatcher, chosen.workers, chosen.host, chosen.worker_port))
            address = f"grpc://{chosen.dispatcher}"
        sys.stdout.write(f"serving at {address}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()
