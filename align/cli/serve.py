"""`align serve`: a model behind vLLM's OpenAI-compatible server, for this machine alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from align.cli.export import ModelArgument

if TYPE_CHECKING:
    from align.engines.vllm_server import RunningServer
    from align.export import ModelSource

EXIT_INTERRUPTED = 130


def serve(
    model: ModelArgument,
    port: Annotated[int, typer.Option("--port", metavar="PORT", min=1, max=65535, help="Port on 127.0.0.1.")] = 8000,
) -> None:
    """Serve a model with vLLM, in the way of OpenAI's API, on this machine alone.

    A key is made for every start and shown once. An adapter is merged first. Ctrl-C ends it.
    """
    from align.engines.vllm_server import check_can_serve, start_server
    from align.export.source import open_source
    from align.pipeline.worker import ENVIRONMENT

    source = open_source(model)
    source.require("language", "serve")
    check_can_serve(port)
    os.environ.update(ENVIRONMENT)
    signal.signal(signal.SIGTERM, _end)
    try:
        with _whole_model(source) as folder:
            print(f"loading {source.name} into vLLM", file=sys.stderr)
            with start_server(folder, name=source.name, port=port) as server:
                _announce(server, source.name)
                server.wait()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _end(number: int, _: Any) -> None:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _whole_model(source: ModelSource) -> Iterator[Path]:
    """The model's folder, or for an adapter a temporary one with the merged model."""
    from align.models.folder import is_adapter

    if not is_adapter(source.folder):
        yield source.folder
        return
    from align.export.folder import write_model

    source.require_mergeable("serve")
    print("merging the adapter into its base", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="align-serve-") as folder:
        write_model(source, Path(folder))
        yield Path(folder)


def _announce(server: RunningServer, name: str) -> None:
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "안녕?"}]}, ensure_ascii=False)
    print(f"{server.url}/v1", flush=True)
    print(
        f"Key, shown this once: {server.key}\n\n"
        f"curl {server.url}/v1/chat/completions \\\n"
        f"  -H 'Authorization: Bearer {server.key}' \\\n"
        f"  -H 'Content-Type: application/json' \\\n"
        f"  -d '{body}'\n\n"
        "Ctrl-C ends it.",
        file=sys.stderr,
    )
