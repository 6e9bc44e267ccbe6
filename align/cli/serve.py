"""`align serve`: serve a model with vLLM's OpenAI-compatible server, on this machine only."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
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
    """Serve a model with vLLM as an OpenAI-compatible API. It listens on this machine only.

    Every start makes a new key and shows it once. A LoRA adapter is served with its base model. Ctrl-C stops the server.
    """
    from align.engines.vllm_server import check_can_serve
    from align.export.source import open_source
    from align.pipeline.worker import prepare_process

    source = open_source(model)
    source.require("language", "serve")
    check_can_serve(port)
    prepare_process()
    # By default SIGTERM ends Python at once. As an exception it leaves the `with` block, which stops the server.
    signal.signal(signal.SIGTERM, _end)
    try:
        with contextlib.ExitStack() as running:
            print(f"loading {source.name} into vLLM", file=sys.stderr)
            server = _start(running, source, port)
            _announce(server, source.name)
            server.wait()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _end(number: int, _: Any) -> None:
    raise SystemExit(128 + number)


def _start(running: contextlib.ExitStack, source: ModelSource, port: int) -> RunningServer:
    """Start a server of the model. An adapter is served unmerged where vLLM can do that, else merged into its base model."""
    from align.engines.vllm_server import can_serve_unmerged, start_server
    from align.errors import StageError
    from align.export.merged import merged_model

    folder = source.folder
    if folder.is_adapter:
        source.require_mergeable("serve")
        if can_serve_unmerged(folder):
            try:
                return running.enter_context(start_server(folder, name=source.name, port=port))
            # `can_serve_unmerged` reads the adapter's files only; vLLM may still refuse it when it loads them.
            except StageError as error:
                print(f"vLLM does not serve this adapter as it is: {str(error).splitlines()[-1].strip()}", file=sys.stderr)
        folder = running.enter_context(merged_model(source, "serve"))
    return running.enter_context(start_server(folder, name=source.name, port=port))


def _announce(server: RunningServer, name: str) -> None:
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "안녕?"}]}, ensure_ascii=False)
    # The address alone on stdout, for scripts; key and example go to stderr.
    print(f"{server.url}/v1", flush=True)
    print(
        f"Key, shown this once: {server.key}\n\n"
        f"curl {server.url}/v1/chat/completions \\\n"
        f"  -H 'Authorization: Bearer {server.key}' \\\n"
        f"  -H 'Content-Type: application/json' \\\n"
        f"  -d '{body}'\n\n"
        "Ctrl-C stops the server.",
        file=sys.stderr,
    )
