"""The command `llmpod plan`."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict

from llmpod.plan.errors import Exit, PlanError, UsageError
from llmpod.plan.estimate import Estimate, estimate
from llmpod.plan.gpus import POOLS, gpu_bytes, memory_bytes, pool_bytes
from llmpod.plan.memory import Request
from llmpod.plan.source import Model, read_model

REQUEST_OPTIONS = ("gpus", "max_model_len", "max_num_seqs", "utilization", "dtype", "kv_cache_dtype", "quantization")
"""Options that are fields of `Request`."""
EXIT_CODES = "exit codes: 0 it fits, 3 it does not, 1 it could not be told, 2 wrong usage"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="llmpod plan",
        description="Whether a model fits into a GPU's memory, how long and how many its requests may be, and the "
        "worker's settings for it. Reads config.json and the headers of the weights; downloads no weights.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    p.add_argument("model", metavar="MODEL", help="a folder, or an id on Hugging Face")
    p.add_argument("--revision", metavar="R", help="branch, tag or commit")
    where = p.add_mutually_exclusive_group()
    where.add_argument("--gpu", metavar="TYPE", help="a pool of RunPod's (ADA_24) or a card (RTX 4090)")
    where.add_argument("--memory", metavar="SIZE", help="of each GPU: 24G. Neither: the smallest pool that fits")
    p.add_argument("--gpus", type=_count, default=1, metavar="N", help="that share the model: %(default)s")
    p.add_argument("--max-model-len", type=_count, metavar="L", help="default: what the model was made for")
    p.add_argument("--max-num-seqs", type=_count, default=1, metavar="S", help="requests of that length at once")
    p.add_argument("--quantization", metavar="METHOD", help="fp8_per_tensor, awq …; default: as the model is stored")
    p.add_argument("--dtype", default="auto", metavar="TYPE", help="of the weights: %(default)s")
    p.add_argument("--kv-cache-dtype", default="auto", metavar="TYPE", help="auto or fp8: %(default)s")
    p.add_argument("--utilization", type=_share, default=0.9, metavar="SHARE", help="of the GPU's memory: %(default)s")
    p.add_argument("--json", action="store_true", help="the estimate as JSON")
    return p


def main(argv: Sequence[str]) -> int:
    """Runs the command; its exit code. A failure is one line on stderr."""
    chosen = parser().parse_args(argv)
    try:
        _quiet()
        model = read_model(chosen.model, revision=chosen.revision)
        made = _estimate(model, chosen)
    except PlanError as error:
        sys.stderr.write(f"llmpod plan: {error}\n")
        return Exit.USAGE if isinstance(error, UsageError) else Exit.UNKNOWN
    if chosen.json:
        sys.stdout.write(json.dumps(asdict(made), indent=1) + "\n")
    else:
        sys.stdout.write("\n".join(lines(made)) + "\n")
    return {True: Exit.FITS, False: Exit.TOO_LARGE, None: Exit.UNKNOWN}[made.fits]


def _estimate(model: Model, chosen: argparse.Namespace) -> Estimate:
    request = Request(**{name: getattr(chosen, name) for name in REQUEST_OPTIONS})
    if chosen.memory is not None:
        return estimate(model, memory_bytes(chosen.memory), request)
    if chosen.gpu is not None:
        return estimate(model, gpu_bytes(chosen.gpu), request)
    for pool in sorted(POOLS, key=pool_bytes):
        made = estimate(model, pool_bytes(pool), request)
        if made.fits:
            break
    return made


def _quiet() -> None:
    """No progress bars and warnings: they would be mixed with the line that says what is wrong."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    for name in ("transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)


def lines(made: Estimate) -> list[str]:
    """The estimate for a terminal."""
    out = [f"{made.model}  ({made.architecture})"]

    def row(name: str, value: str) -> None:
        out.append(f"  {name:<22}{value}")

    row("weights", _size(made.weights_bytes))
    per_token = made.kv_bytes_per_token
    row("KV cache", f"{per_token:,} bytes per token" if per_token is not None else "unknown")
    requests = f"{made.max_num_seqs:,} request{'s' if made.max_num_seqs > 1 else ''} of {made.max_model_len:,} tokens"
    if made.max_model_len is not None and made.kv_bytes_per_gpu is not None:
        row("", f"{_size(made.kv_bytes_per_gpu)} per GPU for {requests}")
    allowed = made.utilization * made.memory_bytes_per_gpu
    gpus = f"{made.gpus} GPU{'s' if made.gpus > 1 else ''} of {_size(made.memory_bytes_per_gpu)}"
    if made.need_bytes_per_gpu is not None:
        verdict = "fits" if made.fits else "does not fit"
        row("need", f"{_size(made.need_bytes_per_gpu)} per GPU; {_size(allowed)} may be used of {gpus}: {verdict}")
        row("largest MAX_MODEL_LEN", f"{made.largest_max_model_len:,} with {made.max_num_seqs} at once")
        row("largest MAX_NUM_SEQS", f"{made.largest_max_num_seqs:,} of {made.max_model_len:,} tokens, none preempted")
        row("fewest such GPUs", str(made.smallest_gpus or "more than 8"))
        row(
            "GPU types",
            ", ".join(one.pool if one.gpus == 1 else f"{one.gpus} x {one.pool}" for one in made.placements) or "none",
        )
    out += [f"  unknown: {reason}" for reason in made.unknown]
    if made.settings:
        out += ["", " ".join(f"{name}={shlex.quote(value)}" for name, value in made.settings.items())]
    return out


def _size(size: float | None) -> str:
    if size is None:
        return "unknown"
    return f"{size / (1 << 30):,.2f} GiB" if size >= 1 << 28 else f"{size / (1 << 20):,.1f} MiB"


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 10**9:
        raise argparse.ArgumentTypeError("must be a whole number from 1")
    return number


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError("must be more than 0 and at most 1")
    return share
