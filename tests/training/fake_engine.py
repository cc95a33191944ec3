"""A completion server that answers with our own decoder, from the folder it was told to load."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import numpy as np

from pdopt.models.checkpoints import load
from pdopt.training.prompts import batches
from pdopt.training.rollouter import Local
from pdopt.training.sampling import Sampling

KEY = jax.random.key(0)
SAMPLING = Sampling(max_new=4, temperature=0.0, top_k=5, eos=(2,))


class Handler(BaseHTTPRequestHandler):
    """Notes each request in `server.seen`; `server.spoil` changes an answer."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body))
        status, answer = self.server.spoil(self.path, self.server.answer(self.path, body))
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except BrokenPipeError:
            pass

    def log_message(self, *_):
        """Silent."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    model, sampling = None, SAMPLING

    def answer(self, path, body):
        if path == "/update_weights_from_disk":
            self.model = load(body["model_path"])
            return {"success": True}
        batch = next(batches(body["prompt"], len(body["prompt"])))
        found = Local(self.model).generate(batch, KEY, self.sampling)
        choices = []
        for row in range(len(body["prompt"])):
            size = int(found.mask[row].sum())
            choices.append({
                "index": row, "text": "", "finish_reason": "stop" if bool(found.finished[row]) else "length",
                "token_ids": np.asarray(found.tokens[row, :size]).tolist(),
                "logprobs": {"token_logprobs": np.asarray(found.log_probs[row, :size]).tolist()},
            })  # fmt: skip
        return {"choices": choices}
