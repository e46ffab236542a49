"""The load-balancing loss of mixtures of experts (Fedus et al., 2021, Eq. 4 to 6), as in transformers and TRL."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from cwdpo.models.parts import base_model
from cwdpo.scoring.batch import ResponseLogits

__all__ = ["AUX_LOSS", "LoadBalancing"]

AUX_LOSS = "aux_loss"
"""Name under which the loss is logged, without its coefficient."""

_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_top_k", "top_k")
"""Names under which configurations say how many experts a token goes to."""


class LoadBalancing:
    """Adds `router_aux_loss_coef` times the load-balancing loss, where the model's configuration has one.

    The loss is not a sum over tokens: it is taken over the tokens of each micro-batch, and averaged over micro-batches
    by their prompts. It alone depends on how the global batch is cut.

    Args:
        model: The policy.

    Attributes:
        weight: The coefficient; 0 for a model without experts.
    """

    def __init__(self, model: Any) -> None:
        inner = base_model(model)
        text = inner.config.get_text_config()
        self._routers = list(_routers(inner)) if hasattr(text, "output_router_logits") else []
        self._chosen = next((getattr(text, name) for name in _CHOSEN if hasattr(text, name)), 2)
        self.weight = float(getattr(text, "router_aux_loss_coef", 0.0) or 0.0) if self._routers else 0.0

    @contextmanager
    def recorded(self) -> Generator[list[Tensor]]:
        """Yield a list that gets the router logits of every layer that is run in the block."""
        found: list[Tensor] = []
        with ExitStack() as stack:
            for router, index in self._routers if self.weight else ():

                def record(module: Any, given: Any, output: Any, index: int = index) -> None:
                    found.append(output[index] if isinstance(output, tuple) else output)

                stack.callback(router.register_forward_hook(record).remove)
            yield found

    def loss(self, recorded: list[Tensor], scored: ResponseLogits) -> Tensor:
        """Return the load-balancing loss of a batch, 1 where all experts are used alike.

        Args:
            recorded: Router logits; what came before the batch's own forward passes is left out.
            scored: What the scorer returned.
        """
        from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

        passes = scored.shape[0] if scored.tokens is None else 1
        gates = tuple(logits.reshape(-1, logits.shape[-1]) for logits in recorded[-len(self._routers) * passes :])
        return load_balancing_loss_func(gates, gates[0].shape[-1], self._chosen, scored.tokens)  # type: ignore[return-value]


def _routers(inner: Any) -> Generator[tuple[nn.Module, int]]:
    """Yield the modules whose outputs transformers records as router logits, and at which place of the output."""
    specs: list[Any] = []
    for part in inner.modules():
        recorded = getattr(type(part), "_can_record_outputs", None)
        spec = recorded.get("router_logits") if isinstance(recorded, dict) else None
        specs += spec if isinstance(spec, list) else [] if spec is None else [spec]
    for name, module in inner.named_modules():
        for spec in specs:
            kind, place = getattr(spec, "target_class", spec), getattr(spec, "layer_name", None)
            if isinstance(module, kind) and (place is None or name.endswith(place)):
                yield module, getattr(spec, "index", 0)
                break
