"""LoRA adapters with random weights, for the tests that serve one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from llmpod.worker.settings import DEMO_MODEL


def make_adapter(folder: Path, *, rank: int = 4, **settings: object) -> Path:
    """An adapter for the demonstration model; `settings`: more of its configuration."""
    config = json.loads((DEMO_MODEL / "config.json").read_text())
    random = np.random.default_rng(0)
    heads, head = config["num_attention_heads"], config["hidden_size"] // config["num_attention_heads"]
    hidden = config["hidden_size"]
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for name, out in (("q_proj", heads * head), ("v_proj", config["num_key_value_heads"] * head)):
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{key}.lora_A.weight"] = random.normal(size=(rank, hidden)).astype("float32")
            weights[f"{key}.lora_B.weight"] = random.normal(size=(out, rank)).astype("float32")
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    settings |= {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 8, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"target_modules": ["q_proj", "v_proj"]}))
    return folder
