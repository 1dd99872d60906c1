"""A multimodal model of a few thousand random weights: it says nonsense, but it really looks at images.

LLaVA, because its image processor needs Pillow only.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from llmpod.worker.settings import DEMO_MODEL

PIXELS = 28
PATCH = 14

TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}{{- '<image>' if part.type == 'image' else part.text -}}{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def make_model(folder: Path) -> Path:
    """The model's folder, with the demonstration model's tokenizer."""
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        Qwen2Config,
    )

    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    language = Qwen2Config(
        vocab_size=len(tokenizer) + 64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=PIXELS,
        patch_size=PATCH,
        projection_dim=32,
    )
    config = LlavaConfig(
        text_config=language,
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": PIXELS, "width": PIXELS}
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": PIXELS}, crop_size=size),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def picture(colour: str, pixels: int = 64) -> str:
    """An image of one colour as a data URI. BMP: its bytes grow with its pixels."""
    file = io.BytesIO()
    Image.new("RGB", (pixels, pixels), colour).save(file, "BMP")
    return "data:image/bmp;base64," + base64.b64encode(file.getvalue()).decode()
