"""A worker of a tf.data service; run as a script, and imports TensorFlow only, to start fast.

Arguments: address of the dispatcher, own host, own port. Prints a line when it is ready, and ends with its input: so
also when whoever started it is killed.
"""

import os
import sys

# Workers leave accelerators to the training.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf


def main() -> None:
    """Serves until the end of the input."""
    dispatcher, host, port = sys.argv[1:]
    config = tf.data.experimental.service.WorkerConfig(
        dispatcher_address=dispatcher,
        worker_address=f"{host}:{port}",
        port=int(port),
        heartbeat_interval_ms=1000,
        # Of a dispatcher that is gone there is nothing to wait for.
        dispatcher_timeout_ms=10_000,
    )
    server = tf.data.experimental.service.WorkerServer(config)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    del server
    # Not by the interpreter, which waits for threads that wait for the dispatcher.
    os._exit(0)


if __name__ == "__main__":
    main()
