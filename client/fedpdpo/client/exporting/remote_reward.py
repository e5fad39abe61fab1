"""The explicit reward of a FedPDPO client, as a sequence classifier with one label.

Load it with transformers, which alone it needs:

    model = AutoModelForSequenceClassification.from_pretrained(FOLDER, trust_remote_code=True)
    model.score(tokenizer, PROMPT, [ANSWER, ANOTHER])   # higher is more to the client's taste

B is the batch, T tokens, H the hidden size, M the bottleneck's width.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel
from transformers import LlamaPreTrainedModel as Base
from transformers.modeling_outputs import SequenceClassifierOutput

#: The day on which all conversations take place, as in training.
_ONE_DAY = "{%- macro strftime_now(form) -%}26 Jul 2024{%- endmacro %}"


class RewardModel(Base):
    """v . (z_last + mean of z over the answer), with z = h + U gelu(D h)."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        setattr(self, self.base_model_prefix, AutoModel.from_config(config))
        hidden, width = config.get_text_config().hidden_size, config.personal_bottleneck
        self.down = nn.Parameter(torch.empty(width, hidden))
        self.up = nn.Parameter(torch.empty(hidden, width))
        self.v = nn.Parameter(torch.empty(hidden))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        **others: Any,
    ) -> SequenceClassifierOutput:
        """Rewards as logits (B, 1) of prompts with answers (B, T), padded on the right.

        The ids leave out the token that ends the answer. `prompt_lengths` (B,) are the tokens of
        the prompts, at least one each; without them the whole text counts as the answer.
        """
        others.pop("labels", None)
        decoder = getattr(self, self.base_model_prefix)
        h = decoder(input_ids=input_ids, attention_mask=attention_mask, **others)[0].float()
        z = h + F.linear(F.gelu(F.linear(h, self.down.float())), self.up.float())
        places = torch.arange(z.shape[1], device=z.device)[None]
        mask = torch.ones_like(z[..., 0]) if attention_mask is None else attention_mask
        lengths = mask.sum(1).long()
        first = torch.zeros_like(lengths) if prompt_lengths is None else prompt_lengths - 1
        counts = (places >= first[:, None]) & (places < lengths[:, None])
        mean = (z * counts[..., None]).sum(1) / counts.sum(1, keepdim=True)
        last = z[torch.arange(len(z), device=z.device), lengths - 1]
        return SequenceClassifierOutput(logits=((mean + last) @ self.v.float())[:, None])

    @torch.no_grad()
    def score(self, tokenizer: Any, prompt: Any, answers: Sequence[str]) -> Tensor:
        """Rewards (B,) of answers to a prompt: text, or chat messages and texts that reply."""
        rows, lengths = [], []
        for answer in answers:
            start, whole = _texts(tokenizer, prompt, answer)
            begun = _ids(tokenizer, start, bos=isinstance(prompt, str))
            rows.append((begun + _ended(tokenizer, _ids(tokenizer, whole)))[:-1])
            lengths.append(len(begun))
        padded = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True)
        found = self(
            input_ids=padded.to(self.device),
            attention_mask=mask.long().to(self.device),
            prompt_lengths=torch.tensor(lengths, device=self.device),
        )
        return cast(Tensor, found.logits)[:, 0]


def _texts(tokenizer: Any, prompt: Any, answer: str) -> tuple[str, str]:
    """A prompt, and the answer with what ends it."""
    if isinstance(prompt, str):
        return prompt, answer + (tokenizer.eos_token or "")
    turns = [*prompt, {"role": "assistant", "content": answer}]
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = _ONE_DAY + template
    how = {"chat_template": template, "tokenize": False}
    start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, **how)
    whole = tokenizer.apply_chat_template(turns, **how)
    return start, whole.removeprefix(start)


def _ended(tokenizer: Any, ids: list[int]) -> list[int]:
    """An answer without the blanks that a template puts behind the token that ends a turn."""
    last = len(ids)
    while last > 1 and not tokenizer.decode(ids[last - 1 : last]).strip():
        last -= 1
    token = tokenizer.added_tokens_decoder.get(ids[last - 1]) if ids else None
    return ids[:last] if token is not None and token.special else ids


def _ids(tokenizer: Any, text: str, *, bos: bool = False) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    starts = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return [tokenizer.bos_token_id, *ids] if bos and starts else ids
