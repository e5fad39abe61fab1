"""The personal model of a FedPDPO client: a causal model with a bottleneck before its head.

Load it with transformers, which alone it needs:

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

H is the hidden size, V the vocabulary, M the bottleneck's width.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, empty, nn
from transformers import LlamaForCausalLM as Base


class PersonalHead(nn.Linear):
    """Logits of z = h + U gelu(D h); (..., H) -> (..., V)."""

    def __init__(self, hidden: int, vocabulary: int, width: int) -> None:
        super().__init__(hidden, vocabulary, bias=False)
        self.down = nn.Parameter(empty(width, hidden))
        self.up = nn.Parameter(empty(hidden, width))

    def forward(self, h: Tensor) -> Tensor:
        """Logits."""
        return super().forward(h + F.linear(F.gelu(F.linear(h, self.down)), self.up))


class PersonalModel(Base):
    """A causal model with a personal head."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        head = self.get_output_embeddings()
        width = config.personal_bottleneck
        self.set_output_embeddings(PersonalHead(head.in_features, head.out_features, width))
