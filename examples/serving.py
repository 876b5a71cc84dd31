"""Serve an exported network over HTTP, using only ONNX Runtime, Pillow and NumPy.

  keras-nfnets export digits digits.onnx --preprocessing
  python examples/serving.py digits.onnx
  curl --data-binary @image.png http://127.0.0.1:8000/

The response is JSON with the three most probable classes. JPEG, PNG and WebP
images of up to 20 MiB and 16 million pixels are accepted. `--measure=image.png`
measures the latency of 1, 8 and 32 concurrent requests instead, and exits.
"""

import argparse
import concurrent.futures
import http.client
import http.server
import io
import json
import math
import pathlib
import sys
import threading
import time
import warnings

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 2**24
# Shorter sides count as this, because the memory for resizing grows with the longer side.
LEAST_SIDE = 1024
# Decoders of other formats are less used and have had more bugs.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
CLIENTS = (1, 8, 32)  # each waits for an answer before the next request
REQUESTS = 160  # per measurement


class Network:
    """Exported network that classifies images of any size.

    Args:
        path: str. ONNX file, written with preprocessing.

    Raises:
        ValueError: the file expects preprocessed images, or is not an ONNX file.
    """

    def __init__(self, path):
        try:
            self._session = onnxruntime.InferenceSession(path)
        except Exception as error:  # ONNX Runtime does not document the classes
            raise ValueError(f"{path} cannot be loaded: {error}") from error
        [self._input] = self._session.get_inputs()
        if self._input.type != "tensor(uint8)":
            raise ValueError(
                f"{path} expects preprocessed images. Export it with --preprocessing. "
                f"Received: a file with inputs of {self._input.type}"
            )
        names = self._session.get_modelmeta().custom_metadata_map.get("class_names")
        self._names = json.loads(names) if names else None

    def classify(self, image, top=3):
        """Return the most probable classes of a Pillow RGB image, a list of dicts."""
        x = np.asarray(image)[np.newaxis]
        [[probabilities]] = self._session.run(None, {self._input.name: x})
        return [
            {
                "class": self._names[i] if self._names else int(i),
                "probability": float(probabilities[i]),
            }
            for i in np.argsort(-probabilities)[:top]
        ]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers a POST of an image file with its classes."""

    protocol_version = "HTTP/1.1"  # clients keep their connections
    # Otherwise the body waits for the client's confirmation of the headers, 40 ms.
    disable_nagle_algorithm = True
    timeout = 30

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        encoded = "Transfer-Encoding" in self.headers
        if encoded or not length.isdecimal() or len(length) > 20:
            self._answer(
                411,
                {"error": "The request must have a Content-Length and no encoding."},
            )
        elif int(length) > MAX_BYTES:
            self._answer(
                413, {"error": f"Images may have at most {MAX_BYTES:,} bytes."}
            )
        else:
            self._classify(self.rfile.read(int(length)))

    def _classify(self, content):
        try:
            image = read(content)
        except ValueError as error:
            self._answer(400, {"error": str(error)})
            return
        try:
            classes = self.server.network.classify(image)
        except Exception as error:  # noqa: BLE001  (as above)
            self.log_error("%s", error)
            self._answer(500, {"error": "The network failed."})
            return
        self._answer(200, {"classes": classes})

    def do_GET(self):
        self._answer(405, {"error": "Send an image in a POST request."})

    do_PUT = do_DELETE = do_PATCH = do_GET

    def _answer(self, status, content):
        body = json.dumps(content).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status in (405, 411, 413):  # the body was not read
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, *_):
        """Log errors only."""


class Server(http.server.ThreadingHTTPServer):
    """HTTP server of a network, with a thread per connection."""

    request_queue_size = 128

    def __init__(self, network, host, port):
        self.network = network
        super().__init__((host, port), Handler)


def read(content):
    """Decode an image file to RGB, upright and on white.

    Raises:
        ValueError: the content is not an image of an accepted format, or is too large.
    """
    try:
        # Pillow warns of large images, which are refused here.
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
        if math.prod(max(side, LEAST_SIDE) for side in image.size) > MAX_PIXELS:
            raise ValueError(f"Images may have at most {MAX_PIXELS:,} pixels.")
        if image.mode.startswith(("I", "F")):
            raise ValueError("Images must have 8 bits per channel.")
        image = ImageOps.exif_transpose(image).convert("RGBA")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"The request must be a complete {', '.join(IMAGE_FORMATS)} image."
        ) from error
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def measure(address, content, clients):
    """Measure the latency of concurrent requests.

    Returns:
        Median and 95th percentile of the seconds per request, and requests per second.
    """

    def requests(count):
        connection = http.client.HTTPConnection(*address)
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            connection.request("POST", "/", content)
            response = connection.getresponse()
            answer = response.read()
            if response.status != 200:
                raise ValueError(answer.decode())
            seconds.append(time.perf_counter() - start)
        connection.close()
        return seconds

    with concurrent.futures.ThreadPoolExecutor(clients) as executor:
        start = time.perf_counter()
        parts = executor.map(requests, [REQUESTS // clients] * clients)
        seconds = [second for part in parts for second in part]
        total = time.perf_counter() - start
    return *np.percentile(seconds, [50, 95]), len(seconds) / total


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="ONNX file, exported with --preprocessing")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="0 chooses a free one")
    parser.add_argument("--measure", metavar="IMAGE", help="measure with this image")
    chosen = parser.parse_args(arguments)
    try:
        network = Network(chosen.model)
        server = Server(network, chosen.host, 0 if chosen.measure else chosen.port)
    except (ValueError, OSError) as error:
        sys.exit(f"serving.py: {error}")
    with server:
        if chosen.measure:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                show(server.server_address, pathlib.Path(chosen.measure).read_bytes())
            except (ValueError, OSError) as error:
                sys.exit(f"serving.py: {error}")
            finally:
                server.shutdown()
            return
        host, port = server.server_address[:2]
        print(f"Listening on http://{host}:{port}/; Ctrl-C ends.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nEnded.")


def show(address, content):
    """Print a table of latencies."""
    measure(address, content, 1)  # warm-up
    print("| concurrent requests | median | 95 % within | images per second |")
    print("| ---: | ---: | ---: | ---: |")
    for clients in CLIENTS:
        median, most, rate = measure(address, content, clients)
        print(f"| {clients} | {median:.4f} s | {most:.4f} s | {rate:.0f} |")


if __name__ == "__main__":
    main()
