"""The policy of a client: frozen backbone, shared LoRA, private parts.

Shapes: P pairs, T tokens, N response tokens, H hidden size. Numbers in brackets are the equations
of docs/method.md.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedpdpo.client.data.tokens import PairTokens
from fedpdpo.client.model.backbone import Backbone
from fedpdpo.client.model.layers import PATHS, SplitDecoder, can_split, checkpoint_layers
from fedpdpo.client.model.lean import make_lean
from fedpdpo.client.model.logps import response_logps
from fedpdpo.client.model.lora import lora_parameters, with_lora
from fedpdpo.client.model.objective import PairScores
from fedpdpo.client.model.packing import Pack, pack
from fedpdpo.client.model.private import PrivateHead, PrivateParts, pooled
from fedpdpo.common.errors import BadModel, BadState
from fedpdpo.common.log import fields
from fedpdpo.common.run import MethodSettings, Run

log = logging.getLogger(__name__)

#: What hidden states may differ by, as a share of their norm: packed from plain, on average, and by
#: the tokens that they must not see, at most. Rounding alone gives 1e-6 in float32, and 1e-2 and
#: nothing in bfloat16.
_TOLERANCE = {torch.float32: (1e-4, 1e-4)}
_LOW_PRECISION_TOLERANCE = (5e-2, 1e-2)


class Policy:
    """Backbone, LoRA and private parts as one model that scores packs of pairs."""

    def __init__(
        self,
        backbone: Backbone,
        run: Run,
        *,
        private_seed: int,
        checkpoint_activations: bool = False,
    ) -> None:
        model = backbone.model
        head = model.get_output_embeddings().weight
        self.device = head.device
        self.dtype = head.dtype
        self.pretrained = PrivateHead(head, "frozen", 1, torch.Generator())
        self._output_weight = head.detach()
        self._put_private_parts(run.method, private_seed)
        self.peft_model = with_lora(model, run.lora)
        make_lean(self.peft_model)
        decoder = model.get_decoder()
        if checkpoint_activations and not checkpoint_layers(decoder):
            raise BadModel("this model's layers cannot be checkpointed; leave that setting out")
        num_layers = model.config.get_text_config().num_hidden_layers
        trunk = max(0, num_layers - run.lora.last_layers) if run.lora.last_layers else 0
        self.decoder = SplitDecoder(decoder, num_trunk_layers=trunk if can_split(decoder) else 0)

    def with_private_parts(self, method: MethodSettings, *, seed: int) -> "Policy":
        """Another client's policy on the same backbone and the same LoRA."""
        other = copy.copy(self)
        other._put_private_parts(method, seed)
        return other

    def _put_private_parts(self, method: MethodSettings, seed: int) -> None:
        dtype = self.dtype
        if method.head == "full":
            dtype = torch.promote_types(dtype, torch.float32)
        if self.pretrained.weight.dtype != dtype:
            weight = self._output_weight.to(dtype)
            self.pretrained = PrivateHead(weight, "frozen", 1, torch.Generator())
        self.private = PrivateParts(self.pretrained.weight, method, seed=seed).to(self.device)

    def lora(self) -> list[Tensor]:
        """The shared parameters."""
        return lora_parameters(self.peft_model)

    @property
    def is_personal(self) -> bool:
        """Whether there are private parts; without them it is the global model."""
        return bool(self.private.trained())

    @property
    def hidden_size(self) -> int:
        """Width H of the hidden states."""
        return int(self.peft_model.config.get_text_config().hidden_size)

    @property
    def has_trunk(self) -> bool:
        """Whether the lowest layers never change."""
        return self.decoder.num_trunk_layers > 0

    def entering(self, batch: Pack) -> Tensor:
        """What the frozen trunk makes of a pack, (T, H); only for a policy that has one."""
        return self.decoder.trunk(batch)

    def hidden(self, batch: Pack, entering: Tensor | None = None) -> Tensor:
        """Features h of a pack's tokens with the present LoRA [1], (T, H) in float32.

        `entering` are the trunk's hidden states (T, H), where they are known.
        """
        low = self.dtype == torch.bfloat16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            if not self.has_trunk:
                return self.decoder.whole(batch).float()
            states = self.entering(batch) if entering is None else entering.to(self.dtype)
            return self.decoder.upper(batch, states).float()

    def scores(self, batch: Pack, h: Tensor, *, personalized: bool = True) -> PairScores:
        """Log-probabilities and explicit rewards of a pack's pairs from their features (T, H).

        Without `personalized` the head is the pretrained one, without bottleneck and reward: the
        global model.
        """
        z = self.private.features(h) if personalized else h
        head = self.private.head if personalized else self.pretrained
        states = z[batch.states]
        logps = response_logps(states, head, batch)
        if personalized and self.private.reward is not None:
            rewards = self.private.reward(pooled(states, batch))
        else:
            rewards = torch.zeros_like(logps)
        return PairScores(logps[0::2], logps[1::2], rewards[0::2], rewards[1::2])

    def reference_scores(self, batch: Pack, entering: Tensor | None = None) -> PairScores:
        """The same of the reference [4]: no LoRA, pretrained head."""
        with torch.no_grad(), self.peft_model.disable_adapter():
            return self.scores(batch, self.hidden(batch, entering), personalized=False)

    @property
    def checked(self) -> bool:
        """Whether `check` has found this backbone's path, for this or another policy on it."""
        return self.decoder.checked

    def check(self, pair: PairTokens) -> None:
        """Find on one pair the fastest path that gives what the model's own plain pass gives.

        Raises BadModel where there is none.
        """
        swapped = replace(pair, chosen=tuple(pair.prompt[0] for _ in pair.chosen))
        trunks = sorted({self.decoder.num_trunk_layers, 0}, reverse=True)
        reasons = []
        with torch.no_grad(), self.peft_model.disable_adapter():
            alone = [self._alone(pair.prompt, one) for one in (pair.chosen, pair.rejected)]
            if alone[0].shape[-1] != self.hidden_size:
                raise BadModel(
                    f"this model's decoder gives states of width {alone[0].shape[-1]}, not the "
                    f"{self.hidden_size} that its head takes; it cannot be trained here"
                )
            for path in PATHS:
                for trunk in trunks if path != "plain" else [0]:
                    self.decoder.path, self.decoder.num_trunk_layers = path, trunk
                    reason = self._wrong(pair, swapped, alone)
                    if not reason:
                        self.decoder.checked = True
                        log.info(fields("engine", path=path, trunk_layers=trunk, dtype=self.dtype))
                        return
                    log.debug(fields("path_refused", path=path, trunk_layers=trunk, reason=reason))
                    reasons.append(f"{path}: {reason}")
        raise BadModel(f"no way of computing pairs gives this model's own states ({reasons[-1]})")

    def _wrong(self, pair: PairTokens, swapped: PairTokens, alone: Sequence[Tensor]) -> str:
        """What is wrong with the present path; empty where nothing is."""
        most_off, most_leak = _TOLERANCE.get(self.dtype, _LOW_PRECISION_TOLERANCE)
        try:
            chosen, rejected = self._of_responses(pair)
            _, other = self._of_responses(swapped)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            return f"{type(error).__name__}: {error}"
        off = float(_shares(torch.cat([chosen, rejected]), torch.cat(list(alone))).mean())
        leak = float(_shares(other, rejected).max())
        if off > most_off:
            return f"its hidden states are {100 * off:.3g} % off"
        if leak > most_leak:
            return f"a chosen response moves the rejected one's states by {100 * leak:.3g} %"
        return ""

    def _of_responses(self, pair: PairTokens) -> list[Tensor]:
        batch = pack([pair], [0], device=self.device)
        h = self.hidden(batch)
        return [h[list(path[len(pair.prompt) - 1 :])] for path in batch.paths]

    def _alone(self, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
        ids = torch.tensor([*prompt, *response[:-1]], device=self.device)
        return self.decoder.alone(ids).float()[len(prompt) - 1 :]


def _shares(h: Tensor, expected: Tensor) -> Tensor:
    """How far states are off, as a share of the expected one's norm. (T, H), (T, H) -> (T,)."""
    shares: Tensor = (h - expected).norm(dim=-1) / expected.norm(dim=-1)
    return shares


def private_parameters(policy: Policy) -> dict[str, Tensor]:
    """The trained private parameters by name, on the CPU."""
    return {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in policy.private.trained().items()
    }


def put_private_parameters(policy: Policy, parameters: Mapping[str, Tensor]) -> None:
    """Set what `private_parameters` gave.

    Raises BadState where they are not those of the run's method settings.
    """
    known = policy.private.trained()
    shapes = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
    if shapes != {name: tuple(tensor.shape) for name, tensor in known.items()}:
        raise BadState("the private parts on disk are not those of the run's method settings")
    with torch.no_grad():
        for name, tensor in parameters.items():
            known[name].copy_(tensor)
