"""An HTTP program with a gRPC health service, for the tests of pods."""
import http.server
import os
import signal
import sys
import threading

import grpc
from concurrent import futures

SECRET = "/run/app/secret/token"
LABELS = "/run/app/pod/labels"


def read(path):
    with open(path) as file:
        return file.read()


class Health(grpc.GenericRpcHandler):
    """grpc.health.v1.Health/Check; field 1 of its answer is the status SERVING."""

    def service(self, call):
        if call.method == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"\x08\x01")
        return None


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/exit":
            self.answer("ending with 7")
            print("asked to end", flush=True)
            os._exit(7)
        self.answer("\n".join([
            "greeting " + os.environ["GREETING"],
            "pod " + os.environ["POD_NAME"],
            "node " + os.environ["NODE_NAME"],
            "address " + os.environ["POD_IP"],
            "memory " + os.environ["MEMORY_MIB"],
            "token " + read(SECRET).strip(),
            "labels " + read(LABELS).strip().replace("\n", ","),
            "uid %d gid %d groups %s" % (os.getuid(), os.getgid(), sorted(os.getgroups())),
        ]) + "\n")

    def answer(self, text):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, form, *args):
        print("request " + (form % args), flush=True)


def ended(signum, frame):
    print("ending on signal %d" % signum, flush=True)
    sys.exit(0)


def main():
    signal.signal(signal.SIGTERM, ended)
    health = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    health.add_generic_rpc_handlers((Health(),))
    health.add_insecure_port("0.0.0.0:9090")
    health.start()
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler)
    print("python %d.%d serves" % sys.version_info[:2], flush=True)
    print("this goes to stderr", file=sys.stderr, flush=True)
    server.serve_forever()


threading.stack_size(256 * 1024)
main()
