"""Models without weights, and weights that one process reads for all that share them.

A bare model is built from its configuration alone, on torch's device `meta`: everything but numbers. Where processes
share weights (FSDP2), the first one reads them, the others build the bare model, and each is dealt its part.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, distributed

from cwdpo.errors import ModelError
from cwdpo.processes import processes

__all__ = ["bare_copy", "build_bare", "deal_when_wrapped", "is_bare", "make_room", "on_meta", "wrap_dealt"]


def build_bare(where: str, **settings: Any) -> Any:
    """Build what `AutoModelForImageTextToText.from_pretrained` gives, without its weights.

    Args:
        where: Directory or hub id.
        **settings: `dtype`, `attn_implementation` and `trust_remote_code`.

    Raises:
        ModelError: The weights are quantised.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    trusted: bool = settings["trust_remote_code"]
    config: Any = AutoConfig.from_pretrained(where, trust_remote_code=trusted)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"{where}: quantised weights cannot be shared among processes; use DDP, or the original model")
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config, **settings)
    if model.can_generate() and hasattr(model, "adjust_generation_fn"):
        files = dict.fromkeys(("cache_dir", "proxies", "token", "revision"))
        files |= {"force_download": False, "local_files_only": False, "subfolder": ""}
        model.adjust_generation_fn(None, False, False, where, **files, trust_remote_code=trusted)
    return model.eval()


def is_bare(model: Any) -> bool:
    """Whether a model has no weights."""
    return any(weight.is_meta for weight in model.parameters())


def on_meta(model: Any) -> AbstractContextManager[Any]:
    """Return a block in which what is added to a model has no numbers where the model has none."""
    return torch.device("meta") if is_bare(model) else nullcontext()


def bare_copy(model: Any) -> Any:
    """Return a copy of a model without its weights."""
    memo: dict[int, Any] = {}
    for _, place, name in _places(model):
        memo.setdefault(id(place[name]), _like(place[name], "meta", place[name].dtype))
    return copy.deepcopy(model, memo)


def wrap_dealt(model: Any, wrap: Callable[[Any], Any], source: Any = None) -> Any:
    """Share a model's weights, where processes have a bare one out of those of the first process.

    All processes call this together, and wait here until the last one has come.

    Args:
        model: The model; in the first process whole, or with `source` in all of them bare.
        wrap: Shares the weights of a model (FSDP2).
        source: The whole model that `model` is a bare copy of.

    Raises:
        ModelError: A process has built another model than the first one.
    """
    deal = deal_when_wrapped(model, source)
    wrapped = wrap(model)
    deal(wrapped)
    return wrapped


def deal_when_wrapped(model: Any, source: Any = None) -> Callable[[Any], None]:
    """Give a bare model room for its weights; return what deals them to it once it is wrapped, as `wrap_dealt` does.

    Only as much of the room is used as is written to: a process's part.
    """
    team = processes()
    if not any(team.gather(is_bare(model))):
        return lambda _: None
    first = team.gather(_structure(model if source is None else source))[0]
    team.each(lambda: _require_alike(_structure(model), first))
    held: Any = model if source is None else source
    whole: list[Tensor] | None = [tensor.detach() for tensor in _tensors(held)] if team.main else None
    if is_bare(model):
        make_room(model, [dtype for *_, dtype in first.values()])
    return lambda wrapped: _deal(wrapped, whole)


def _places(model: Any) -> Iterator[tuple[str, MutableMapping[str, Any], str]]:
    """Yield every place where a module keeps a tensor, and what it is called there."""
    for prefix, module in model.named_modules():
        state = vars(module)
        for place in (state["_parameters"], state["_buffers"], state):
            for name in [name for name, value in place.items() if isinstance(value, Tensor)]:
                yield f"{prefix}.{name}", place, name


def _tensors(model: Any) -> list[Tensor]:
    """Return every tensor of a model once, in an order that wrapping keeps."""
    return list({id(place[name]): place[name] for _, place, name in _places(model)}.values())


def _structure(model: Any) -> dict[str, tuple[Any, ...]]:
    """Return of every tensor, under the first of its names: all of them, shape, whether it is trained, and type."""
    names: dict[int, list[str]] = {}
    found: dict[int, Tensor] = {}
    for name, place, key in _places(model):
        names.setdefault(id(place[key]), []).append(name)
        found[id(place[key])] = place[key]
    return {
        known[0]: (known, tuple(found[key].shape), found[key].requires_grad, found[key].dtype)
        for key, known in names.items()
    }


def _require_alike(mine: dict[str, tuple[Any, ...]], first: dict[str, tuple[Any, ...]]) -> None:
    """Refuse a model that is another one than that of the first process, but for the types of its weights."""
    for name in (*first, *mine):
        ours, theirs = mine.get(name, ())[:-1], first.get(name, ())[:-1]
        if ours != theirs:
            raise ModelError(
                f"{name.removeprefix('.')}: the model that is built without weights is not the one that is read (its "
                f"names, shape, trained: {ours or 'missing'} and {theirs or 'missing'}); set "
                "fsdp_cpu_ram_efficient_loading: false"
            )


def _like(tensor: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    made = torch.empty_like(tensor, device=device, dtype=dtype)
    return torch.nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else made


def make_room(model: Any, types: list[torch.dtype] | None = None) -> None:
    """Put tensors of a processor in place of those without numbers; what was one tensor stays one.

    Wrappers tell weights apart by their addresses, which they lack on `meta`.

    Args:
        model: The bare model.
        types: Of every tensor; None: as they are.
    """
    rest, made = iter(types or [tensor.dtype for tensor in _tensors(model)]), dict[int, Tensor]()
    for _, place, name in _places(model):
        tensor = place[name]
        if id(tensor) not in made:
            made[id(tensor)] = _like(tensor, "cpu", next(rest))
        place[name] = made[id(tensor)]


def _deal(model: Any, whole: list[Tensor] | None) -> None:
    """Fill a model that was wrapped, in place, with the tensors that the first process holds, one after the other."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    mine = _tensors(model)
    mesh = next(tensor.device_mesh for tensor in mine if isinstance(tensor, DTensor))
    with torch.no_grad():
        for place, tensor in enumerate(mine):
            if whole is None:
                sent = torch.empty(tensor.shape, dtype=tensor.dtype, device=mesh.device_type)
            else:
                sent = whole[place].to(mesh.device_type, tensor.dtype).contiguous()
                whole[place] = tensor  # lets go of what is whole
            if isinstance(tensor, DTensor):
                part = distribute_tensor(sent, tensor.device_mesh, tensor.placements)
                tensor.to_local().copy_(part.to_local())
            else:
                distributed.broadcast(sent, src=0)
                tensor.copy_(sent)
