"""Memory estimate of a model before it is deployed: weights, KV cache, and which GPUs hold them.

Nothing is downloaded but config.json and the headers of the safetensors files. The worker calls `read_model` and
`estimate` before it starts vLLM; `llmpod plan` prints the same figures.
"""

from llmpod.plan.errors import PlanError
from llmpod.plan.estimate import Estimate, estimate
from llmpod.plan.memory import Request
from llmpod.plan.source import Model, read_model

__all__ = ["Estimate", "Model", "PlanError", "Request", "estimate", "read_model"]
