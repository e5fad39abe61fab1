"""The decoder in two halves: a trunk that never changes, and the layers with LoRA above it.

Shapes: T tokens of a pack, S responses, L tokens of the longest with its prompt, H hidden size.
"""

import copy
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from fedpdpo.client.model.attention import BLOCKS
from fedpdpo.client.model.packing import Pack, first_places

#: How a pack goes through the decoder, the fastest first: one sequence whose attention goes by
#: pair; one sequence with a mask of T x T; each response with its prompt in a padded row.
Path = Literal["blocks", "mask", "plain"]
PATHS: tuple[Path, ...] = ("blocks", "mask", "plain")


class SplitDecoder:
    """Runs a transformers decoder whole, or from the hidden states that enter its last layers.

    `num_trunk_layers` layers belong to the trunk; 0 means that there is none. `path` is how packs
    go through; the plain one has no trunk.
    """

    def __init__(self, decoder: Any, *, num_trunk_layers: int) -> None:
        self._whole = decoder
        self._own = decoder.config._attn_implementation
        self._views = [decoder]
        self.path: Path = "blocks"
        self.checked = False
        self.num_trunk_layers = num_trunk_layers
        if num_trunk_layers:
            self._trunk = _view(decoder, slice(num_trunk_layers))
            self._trunk._modules["norm"] = nn.Identity()
            self._upper = _view(decoder, slice(num_trunk_layers, None))
            self._views += [self._trunk, self._upper]

    def trunk(self, pack: Pack) -> Tensor:
        """Hidden states entering the first layer above the trunk. Gives (T, H)."""
        with torch.no_grad():
            return self._run(self._trunk, pack, input_ids=pack.token_ids[None])

    def upper(self, pack: Pack, entering: Tensor) -> Tensor:
        """Final hidden states from those entering the upper layers. Shapes: (T, H) -> (T, H)."""
        return self._run(self._upper, pack, inputs_embeds=entering[None])

    def whole(self, pack: Pack) -> Tensor:
        """Final hidden states of all layers. Gives (T, H)."""
        if self.path == "plain":
            return self._padded(pack)
        return self._run(self._whole, pack, input_ids=pack.token_ids[None])

    def alone(self, token_ids: Tensor) -> Tensor:
        """Final hidden states of one ordinary sequence (T,), by the model's own mask: (T, H)."""
        self.restore()
        return cast(Tensor, self._whole(input_ids=token_ids[None], use_cache=False)[0][0])

    def restore(self) -> None:
        """Give the model its own attention back, for use without packs."""
        self._attend_by(self._own)

    def _run(self, decoder: Any, pack: Pack, **inputs: Any) -> Tensor:
        if self.path == "blocks":
            self._attend_by(BLOCKS)
            inputs["pack"] = pack
        else:
            self.restore()
            inputs["attention_mask"] = pack.mask
        return cast(
            Tensor, decoder(position_ids=pack.positions[None], use_cache=False, **inputs)[0][0]
        )

    def _padded(self, pack: Pack) -> Tensor:
        self.restore()
        paths = [torch.tensor(path, device=pack.token_ids.device) for path in pack.paths]
        padded = nn.utils.rnn.pad_sequence(paths, batch_first=True, padding_value=-1)
        hidden = self._whole(
            input_ids=pack.token_ids[padded.clamp(min=0)],
            attention_mask=(padded >= 0).long(),
            use_cache=False,
        )[0]
        here = (padded >= 0).flatten().nonzero()[:, 0]
        places = here[first_places(padded.flatten()[here], len(pack.token_ids))]
        return cast(Tensor, hidden.flatten(0, 1)[places])

    def _attend_by(self, implementation: str) -> None:
        for view in self._views:
            view.config._attn_implementation = implementation


def checkpoint_layers(decoder: nn.Module) -> int:
    """Have each layer computed again in the backward pass; gives how many layers do so.

    Only the layers themselves are told that they train, not their dropouts.
    """
    layers = [one for one in decoder.modules() if isinstance(one, GradientCheckpointingLayer)]
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        layer.training = True
    return len(layers)


def can_split(decoder: Any) -> bool:
    """Whether a decoder has the shape that SplitDecoder knows."""
    return isinstance(getattr(decoder, "layers", None), nn.ModuleList) and isinstance(
        getattr(decoder, "norm", None), nn.Module
    )


def _view(decoder: Any, part: slice) -> Any:
    view = copy.copy(decoder)
    view.__dict__ = decoder.__dict__.copy()
    view._modules = decoder._modules.copy()
    view._modules["layers"] = nn.ModuleList(decoder.layers[part])
    view.config = copy.copy(decoder.config)
    view.config.num_hidden_layers = len(view.layers)
    if getattr(decoder.config, "layer_types", None):
        view.config.layer_types = decoder.config.layer_types[part]
    return view
