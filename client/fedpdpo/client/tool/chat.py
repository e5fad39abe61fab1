"""Talks with the personal model, and with the plain backbone for comparison."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedpdpo.client.data.tokens import rendered, text_ids
from fedpdpo.client.model.policy import Policy

Turn = dict[str, str]


class PersonalOutput(nn.Module):
    """The output layer of the personal model: bottleneck, then private head; (..., H) -> (..., V).

    While `plain` is set it is the pretrained head alone.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.private = policy.private
        self.pretrained = policy.pretrained
        self.plain = False

    def forward(self, h: Tensor) -> Tensor:
        """Logits in float32."""
        h = h.float()
        head = self.pretrained if self.plain else self.private.head
        logits: Tensor = head(h if self.plain else self.private.features(h))
        return logits


class Speaker:
    """Generates replies. `temperature` 0 takes the likeliest token every time."""

    def __init__(
        self, policy: Policy, tokenizer: Any, *, max_new_tokens: int, temperature: float
    ) -> None:
        policy.decoder.restore()
        self._model = policy.peft_model
        self._tokenizer = tokenizer
        self._output = PersonalOutput(policy)
        self._model.get_base_model().set_output_embeddings(self._output)
        self._settings: dict[str, Any] = {"max_new_tokens": max_new_tokens}
        if temperature > 0:
            self._settings |= {"do_sample": True, "temperature": temperature}
        else:
            self._settings |= {"do_sample": False}
        if tokenizer.pad_token_id is None:
            self._settings["pad_token_id"] = tokenizer.eos_token_id

    def reply(self, turns: Sequence[Turn], *, plain: bool = False) -> str:
        """What the personal model, or the plain backbone, answers to a conversation.

        Without a chat template the last turn's text is continued.
        """
        if self._tokenizer.chat_template:
            text = rendered(self._tokenizer, turns, reply=True)
            return self._answer(self._tokenizer(text, add_special_tokens=False)["input_ids"], plain)
        return self.continuation(turns[-1]["content"], plain=plain)

    def continuation(self, text: str, *, plain: bool = False) -> str:
        """How the personal model, or the plain backbone, goes on from a text."""
        return self._answer(text_ids(self._tokenizer, text), plain)

    def _answer(self, prompt: Sequence[int], plain: bool) -> str:
        given = torch.tensor([prompt], device=self._model.device)
        encoded = {"input_ids": given, "attention_mask": torch.ones_like(given)}
        self._output.plain = plain
        with torch.no_grad():
            if plain:
                with self._model.disable_adapter():
                    ids = self._model.generate(**encoded, **self._settings)
            else:
                ids = self._model.generate(**encoded, **self._settings)
        answer = ids[0, len(prompt) :]
        decoded: str = self._tokenizer.decode(answer, skip_special_tokens=True)
        return decoded.strip()
