"""The policy of a client: frozen backbone, shared LoRA, private parts.

Shapes: P pairs, T tokens, N response tokens, H hidden size. Numbers in brackets are the equations
of docs/method.md.
"""

import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fedpdpo.client.backbone import Backbone
from fedpdpo.client.layers import SplitDecoder, can_split
from fedpdpo.client.logps import response_logps
from fedpdpo.client.lora import lora_parameters, with_lora
from fedpdpo.client.objective import PairScores
from fedpdpo.client.packing import Pack, pack
from fedpdpo.client.private import PrivateHead, PrivateParts
from fedpdpo.client.tokens import PairTokens
from fedpdpo.common.errors import BadModel, BadState
from fedpdpo.common.log import fields
from fedpdpo.common.run import Run

log = logging.getLogger(__name__)

#: What hidden states may differ by, as a share of their norm: packed from plain, on average, and by
#: the tokens that they must not see, at most. Rounding alone gives 1e-6 in float32, and 1e-2 and
#: nothing in bfloat16.
_TOLERANCE = {torch.float32: (1e-4, 1e-4)}
_LOW_PRECISION_TOLERANCE = (5e-2, 1e-2)


class Policy:
    """Backbone, LoRA and private parts as one model that scores packs of pairs."""

    def __init__(self, backbone: Backbone, run: Run, *, private_seed: int) -> None:
        model = backbone.model
        head = model.get_output_embeddings().weight
        self.device = head.device
        self.dtype = head.dtype
        self.private = PrivateParts(head, run.method, seed=private_seed).to(self.device)
        self.pretrained = PrivateHead(head, "frozen", 1, torch.Generator()).to(self.device)
        if run.method.head == "frozen":
            self.pretrained = self.private.head
        self.trains_whole_head = run.method.head == "full"
        self.peft_model = with_lora(model, run.lora)
        decoder = model.get_decoder()
        num_layers = model.config.get_text_config().num_hidden_layers
        trunk = max(0, num_layers - run.lora.last_layers) if run.lora.last_layers else 0
        self.decoder = SplitDecoder(decoder, num_trunk_layers=trunk if can_split(decoder) else 0)

    def lora(self) -> list[Tensor]:
        """The shared parameters."""
        return lora_parameters(self.peft_model)

    def entering(self, batch: Pack) -> Tensor | None:
        """What the frozen trunk makes of a pack, (T, H); None where there is no trunk."""
        return self.decoder.trunk(batch) if self.decoder.num_trunk_layers else None

    def hidden(self, batch: Pack, entering: Tensor | None = None) -> Tensor:
        """Features h of a pack's tokens with the present LoRA [1], (T, H) in float32.

        `entering` are the trunk's hidden states (T, H), where they are known.
        """
        if entering is None:
            entering = self.entering(batch)
        if entering is None:
            return self.decoder.whole(batch).float()
        return self.decoder.upper(batch, entering.to(self.dtype)).float()

    def scores(self, batch: Pack, h: Tensor, *, personalized: bool = True) -> PairScores:
        """Log-probabilities and explicit rewards of a pack's pairs from their features (T, H).

        Without `personalized` the head is the pretrained one, without bottleneck and reward: the
        global model.
        """
        z = self.private.features(h) if personalized else h
        head = self.private.head if personalized else self.pretrained
        logps = response_logps(
            z[batch.predicting], head, batch.targets, batch.owner, num_responses=len(batch.last)
        )
        last = z[batch.last]
        rewards = self.private.rewards(last) if personalized else last.new_zeros(len(last))
        return PairScores(logps[0::2], logps[1::2], rewards[0::2], rewards[1::2])

    def reference_scores(self, batch: Pack, entering: Tensor | None = None) -> PairScores:
        """The same of the reference [4]: no LoRA, pretrained head."""
        with torch.no_grad(), self.peft_model.disable_adapter():
            return self.scores(batch, self.hidden(batch, entering), personalized=False)

    def check(self, pair: PairTokens) -> None:
        """Check on one pair that packing gives what the model's own plain pass gives.

        Gives up the trunk where only the split is at fault. Raises BadModel where this model
        cannot take packed pairs.
        """
        batch = pack([pair], [0], device=self.device)
        most_off, most_leak = _TOLERANCE.get(self.dtype, _LOW_PRECISION_TOLERANCE)
        with torch.no_grad(), self.peft_model.disable_adapter():
            plain = self._plain_hidden(pair)
            for attempt in self._attempts():
                attempt()
                h, other = self.hidden(batch), self.hidden(batch.with_other_chosen())
                off = float(_shares(h[batch.in_response], plain).mean())
                leak = float(_shares(other[batch.in_rejected], h[batch.in_rejected]).max())
                if off <= most_off and leak <= most_leak:
                    kind = f"{self.decoder.num_trunk_layers} frozen trunk layers"
                    log.info(fields("engine", packing="shared prefix", trunk=kind, off=off))
                    return
        raise BadModel(
            f"packed pairs give hidden states {100 * off:.3g} % off this model's plain ones, and a "
            f"chosen response moves the rejected one's by {100 * leak:.3g} %; its layers do not "
            "take the mask, or its attention window is shorter than the pairs, so it cannot be "
            "trained here"
        )

    def _attempts(self) -> list[Callable[[], None]]:
        def give_up_trunk() -> None:
            self.decoder.num_trunk_layers = 0

        return [lambda: None, give_up_trunk] if self.decoder.num_trunk_layers else [lambda: None]

    def _plain_hidden(self, pair: PairTokens) -> Tensor:
        parts = []
        for response in (pair.chosen, pair.rejected):
            ids = torch.tensor([*pair.prompt, *response], device=self.device)
            parts.append(self.decoder.plain(ids).float()[len(pair.prompt) :])
        return torch.cat(parts)


def _shares(h: Tensor, expected: Tensor) -> Tensor:
    """How far states are off, as a share of the expected one's norm. (T, H), (T, H) -> (T,)."""
    shares: Tensor = (h - expected).norm(dim=-1) / expected.norm(dim=-1)
    return shares


def private_parameters(policy: Policy) -> dict[str, Tensor]:
    """The trained private parameters by name, on the CPU."""
    return {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in policy.private.named_parameters()
        if parameter.requires_grad
    }


def put_private_parameters(policy: Policy, parameters: Mapping[str, Tensor]) -> None:
    """Set what `private_parameters` gave.

    Raises BadState where they are not those of the run's method settings.
    """
    known = {
        name: parameter
        for name, parameter in policy.private.named_parameters()
        if parameter.requires_grad
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
    if shapes != {name: tuple(tensor.shape) for name, tensor in known.items()}:
        raise BadState("the private parts on disk are not those of the run's method settings")
    with torch.no_grad():
        for name, tensor in parameters.items():
            known[name].copy_(tensor)
