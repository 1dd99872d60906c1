"""A multimodal model of a few thousand random weights: it says nonsense, but it really looks at images.

BLIP-2, because vLLM's module and the image processor need Pillow only, and because its attention is the usual causal
one, which vLLM has on the CPU.
"""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path

from PIL import Image

from llmpod.worker.settings import DEMO_MODEL

PIXELS = 28
PATCH = 14
IMAGE_TOKENS = 4


def make_model(folder: Path) -> Path:
    """The model's folder, with the demonstration model's tokenizer and chat template."""
    from transformers import (
        AutoTokenizer,
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        BlipImageProcessorPil,
        Qwen2Config,
    )

    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    language = Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        vocab_size=len(tokenizer) + 63,
        hidden_size=128,  # 64 for each head: vLLM's attention on the CPU has no smaller one than 32
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = Blip2VisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=PIXELS,
        patch_size=PATCH,
    )
    queries = Blip2QFormerConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        encoder_hidden_size=32,
    )
    config = Blip2Config(
        vision_config=vision,
        qformer_config=queries,
        text_config=language,
        num_query_tokens=IMAGE_TOKENS,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    Blip2Processor(
        image_processor=BlipImageProcessorPil(size={"height": PIXELS, "width": PIXELS}), tokenizer=tokenizer
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def picture(colour: str, pixels: int = 64) -> str:
    """An image of one colour as a data URI. BMP: its bytes grow with its pixels."""
    file = io.BytesIO()
    Image.new("RGB", (pixels, pixels), colour).save(file, "BMP")
    return "data:image/bmp;base64," + base64.b64encode(file.getvalue()).decode()


def bomb(pixels: int = 30_000) -> str:
    """A PNG of a few bytes, as a data URI, that says it has `pixels` by `pixels` of them."""
    header = struct.pack(">IIBBBBB", pixels, pixels, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(packed)).decode()
