"""The decoder in two halves: a trunk that never changes, and the layers with LoRA above it."""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedpdpo.client.packing import Pack


class SplitDecoder:
    """Runs a transformers decoder whole, or from the hidden states that enter its last layers.

    `num_trunk_layers` layers belong to the trunk; 0 means that there is none.
    """

    def __init__(self, decoder: Any, *, num_trunk_layers: int) -> None:
        self._whole = decoder
        self.num_trunk_layers = num_trunk_layers
        if num_trunk_layers:
            layers = decoder.layers
            self._trunk = _view(decoder, layers[:num_trunk_layers])
            self._trunk._modules["norm"] = nn.Identity()
            self._upper = _view(decoder, layers[num_trunk_layers:])

    def trunk(self, pack: Pack) -> Tensor:
        """Hidden states entering the first layer above the trunk. Gives (T, H)."""
        with torch.no_grad():
            return _run(self._trunk, pack, input_ids=pack.token_ids[None])

    def upper(self, pack: Pack, entering: Tensor) -> Tensor:
        """Final hidden states from those entering the upper layers. Shapes: (T, H) -> (T, H)."""
        return _run(self._upper, pack, inputs_embeds=entering[None])

    def whole(self, pack: Pack) -> Tensor:
        """Final hidden states of all layers. Gives (T, H)."""
        return _run(self._whole, pack, input_ids=pack.token_ids[None])

    def plain(self, token_ids: Tensor) -> Tensor:
        """Final hidden states of one ordinary sequence (T,), by the model's own mask: (T, H)."""
        return cast(Tensor, self._whole(input_ids=token_ids[None], use_cache=False)[0][0])


def can_split(decoder: Any) -> bool:
    """Whether a decoder has the shape that SplitDecoder knows."""
    return isinstance(getattr(decoder, "layers", None), nn.ModuleList) and isinstance(
        getattr(decoder, "norm", None), nn.Module
    )


def _view(decoder: Any, layers: Any) -> Any:
    view = copy.copy(decoder)
    view.__dict__ = decoder.__dict__.copy()
    view._modules = decoder._modules.copy()
    view._modules["layers"] = nn.ModuleList(layers)
    view.config = copy.copy(decoder.config)
    view.config.num_hidden_layers = len(layers)
    return view


def _run(decoder: Any, pack: Pack, **inputs: Tensor) -> Tensor:
    hidden = decoder(
        attention_mask=pack.mask, position_ids=pack.positions[None], use_cache=False, **inputs
    )[0]
    return cast(Tensor, hidden[0])
