"""An exported personal model in Python: what `fedpdpo chat`, `score` and `eval` show."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedpdpo.client.data.preferences import Preference
from fedpdpo.client.data.tokens import pair_tokens
from fedpdpo.client.exporting.personal import load
from fedpdpo.client.model.backbone import Backbone, Quantize, device_of, dtype_of
from fedpdpo.client.model.objective import accuracy
from fedpdpo.client.model.policy import Policy
from fedpdpo.client.state import Identity
from fedpdpo.client.tool.chat import Speaker, Turn
from fedpdpo.client.tool.ranking import Scored, ranked
from fedpdpo.client.training.evaluation import evaluate
from fedpdpo.client.training.pairset import prepare
from fedpdpo.client.training.reference import ReferenceCache
from fedpdpo.common.metrics import Metrics

_TOKENS_PER_STEP = 1024


@dataclass(frozen=True)
class Measured:
    """What was measured on pairs: the global model, the personal one, and the backbone.

    likelier: the share of pairs whose chosen answer the plain backbone finds likelier.
    """

    shared: Metrics
    personal: Metrics
    likelier: float


class PersonalPolicy:
    """A folder written by `fedpdpo export`, loaded.

    model = PersonalPolicy.load("my-model")
    print(model.reply("How do I boil an egg?"))
    print(model.rank("How do I boil an egg?", ["Badly.", "For six minutes."])[0].answer)
    """

    def __init__(self, policy: Policy, backbone: Backbone, identity: Identity) -> None:
        self.identity = identity
        self._policy = policy
        self._backbone = backbone

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        model: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        quantize: Quantize = "none",
    ) -> "PersonalPolicy":
        """Load it; `model` says where the backbone lies if it moved. Raises BadState, BadModel.

        `quantize` should be the client's: a backbone in 4 bits is another model.
        """
        on = device_of(device)
        kind = dtype_of(dtype, on)
        return cls(*load(Path(folder), model=model, device=on, dtype=kind, quantize=quantize))

    def reply(
        self,
        said: str | Sequence[Turn],
        *,
        plain: bool = False,
        continue_text: bool = False,
        max_new_tokens: int = 200,
        temperature: float = 0.0,
    ) -> str:
        """The answer to a message, or to a conversation of `role` and `content`.

        `continue_text` goes on from the text itself. With `plain` the backbone alone speaks.
        `temperature` 0 takes the likeliest token every time.
        """
        model = self._backbone.model
        output = model.get_output_embeddings()
        speaker = Speaker(
            self._policy,
            self._backbone.tokenizer,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
        )
        try:
            if continue_text:
                text = said if isinstance(said, str) else said[-1]["content"]
                return speaker.continuation(text, plain=plain)
            turns = [{"role": "user", "content": said}] if isinstance(said, str) else said
            return speaker.reply(turns, plain=plain)
        finally:
            model.set_output_embeddings(output)

    def rank(
        self,
        prompt: str,
        answers: Sequence[str],
        *,
        continue_text: bool = False,
        max_tokens: int = 1024,
    ) -> list[Scored]:
        """Answers to a prompt with their rewards, the one most to the client's taste first.

        Raises BadData for fewer than two different answers, or blank ones.
        """
        tokenizer = self._backbone.tokenizer
        chat = bool(tokenizer.chat_template) and not continue_text
        method = self.identity.run.method
        return ranked(
            self._policy, tokenizer, method, prompt, answers, chat=chat, max_tokens=max_tokens
        )

    def measure(self, preferences: Sequence[Preference], *, max_tokens: int = 1024) -> Measured:
        """Preference accuracy, margin, loss and chosen shift. Raises BadData, BadModel."""
        tokenizer = self._backbone.tokenizer
        pairs = [pair_tokens(one, tokenizer, max_tokens=max_tokens) for one in preferences]
        self._policy.check(max(pairs, key=len))
        with tempfile.TemporaryDirectory() as folder:
            reference = ReferenceCache(Path(folder) / "reference.safetensors", key="")
            prepared = prepare(
                self._policy, pairs, tokens_per_step=_TOKENS_PER_STEP, reference=reference
            )
            shared, personal = evaluate(self._policy, prepared, self.identity.run.method)
        return Measured(shared, personal, accuracy(prepared.reference_margins))
