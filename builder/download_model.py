"""Downloads a model from the Hugging Face hub into FOLDER/OWNER/NAME, when an image is built.

Called by the Dockerfile. Without a name it does nothing: the worker then finds its model at run time.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="hub id, OWNER/NAME; empty: nothing to do")
    parser.add_argument("--revision", default="", help="branch, tag or commit")
    parser.add_argument("--token-file", type=Path, help="file with a Hugging Face token; need not exist")
    parser.add_argument("--to", type=Path, required=True, help="folder that holds models by their ids")
    options = parser.parse_args(arguments)
    options.to.mkdir(parents=True, exist_ok=True)
    if not options.name:
        return 0
    from huggingface_hub import snapshot_download

    has_token = options.token_file is not None and options.token_file.is_file()
    snapshot_download(
        options.name,
        revision=options.revision or None,
        token=options.token_file.read_text().strip() if has_token else None,
        local_dir=options.to / options.name,
        # Weights once, in the form vLLM prefers.
        ignore_patterns=["*.pth", "*.gguf", "original/*", "*.onnx", "*.h5", "*.msgpack"],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
