"""Worker processes of a `tf.distribute` cluster on this host."""

import json
import os
import socket
import subprocess
import sys
import tempfile


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def in_workers(program, check, count=2):
    """Performs a check in worker processes; returns what each has printed."""
    workers = [f"127.0.0.1:{port}" for port in free_ports(count)]
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for index in range(count):
            task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
            environment = {**os.environ, "TF_CONFIG": json.dumps(task), "SHARED_FOLDER": folder}
            command = [sys.executable, program, check]
            processes.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
            )
        try:
            outputs = [process.communicate(timeout=500)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
    assert [process.returncode for process in processes] == [0] * count
    return outputs
