"""Calls that are silent for a while, through a gateway whose limits are longer."""

import os
import socket
import subprocess
import sys
import time
from concurrent import futures

import grpc

LIMIT_MS = "300000"


def unary(request, context):
    time.sleep(float(request))
    return b"done"


def stream(request, context):
    yield b"begun"
    time.sleep(float(request))
    yield b"done"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until_open(port, process):
    for _ in range(500):
        if process.poll() is not None:
            raise RuntimeError(f"the gateway ended with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.02)
    raise RuntimeError("the gateway does not listen")


def main():
    gateway, seconds = sys.argv[1], sys.argv[2]
    server = grpc.server(futures.ThreadPoolExecutor(8))
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Silent", handlers),))
    upstream = server.add_insecure_port("127.0.0.1:0")
    server.start()

    port = free_port()
    environment = {
        **os.environ,
        "LISTEN": f"127.0.0.1:{port}",
        "UPSTREAM": f"127.0.0.1:{upstream}",
        "UPSTREAM_HTTP2": "1",
        "READ_TIMEOUT_MS": LIMIT_MS,
        "TOTAL_TIMEOUT_MS": LIMIT_MS,
    }
    process = subprocess.Popen([gateway], env=environment)
    try:
        wait_until_open(port, process)
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        # both at the same time, so that one streak of silence covers the connection
        message = seconds.encode()
        call = channel.unary_unary("/test.Silent/Unary").future(message, timeout=250)
        messages = channel.unary_stream("/test.Silent/Stream")(message, timeout=250)
        found = [list(messages), call.result()]
    except grpc.RpcError as error:
        found = f"{error.code()}: {error.details()}"
    finally:
        process.terminate()
        process.wait()
        server.stop(None)
    expected = [[b"begun", b"done"], b"done"]
    print("grpc-core:", f"silent for {seconds} s, both answered" if found == expected else found)
    sys.exit(found != expected)


main()
