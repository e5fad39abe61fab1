"""Without private parts a round is plain DPO: its losses are, step by step, those of TRL."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from fedpdpo.client.data.tokens import PairTokens
from fedpdpo.client.model.lora import SharedState, lora_parameters, peft_config
from fedpdpo.client.model.policy import Policy
from fedpdpo.client.training.local_round import Point, train_round
from fedpdpo.client.training.optimizer import LocalOptimizer
from fedpdpo.client.training.schedule import steps_of_round
from fedpdpo.common.run import Run
from tiny import save_tiny_model, tiny_pairs, tiny_pairset, tiny_policy, tiny_run

pytestmark = pytest.mark.filterwarnings("ignore")

#: So few tokens go through at a time that a step takes several packs.
STEPS, BATCH, TOKENS = 20, 4, 100
SEED, ROUND = 7, 1


class InOrder(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer over token ids as they are, in their order; it notes its loss and its norm."""

    losses: list[float]

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _get_train_sampler(self, dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(dataset if dataset is not None else self.train_dataset)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().compute_loss(*args, **kwargs)
        self.losses.append(float(loss.detach()))
        return loss

    @property
    def norms(self) -> list[float]:
        return [entry["grad_norm"] for entry in self.state.log_history if "grad_norm" in entry]


def plain_dpo(**method: Any) -> Run:
    """A run whose clients keep nothing to themselves."""
    return tiny_run(
        alpha=0.0,
        anchor=0.0,
        head="frozen",
        bottleneck=0,
        reward_head=False,
        batch_pairs=BATCH,
        **method,
    )


def own_losses(policy: Policy, pairs: Sequence[PairTokens], run: Run, folder: Path) -> list[float]:
    """The mean loss of each step of a round."""
    points = [Point()]
    train_round(
        policy,
        tiny_pairset(policy, list(pairs), folder, tokens_per_step=TOKENS),
        run,
        LocalOptimizer(policy, run.method),
        seed=SEED,
        round_number=ROUND,
        after_step=points.append,
    )
    sums = [point.loss for point in points]
    return [(after - before) / BATCH for before, after in itertools.pairwise(sums)]


def trl_trainer(model: Path, pairs: Sequence[PairTokens], run: Run, folder: Path) -> InOrder:
    """TRL's trainer with the run's settings, over a round's pairs in the round's order."""
    steps = steps_of_round(run.method, num_pairs=len(pairs), seed=SEED, round_number=ROUND)
    order = [index for step in steps for index in step.pairs]
    rows = [
        {
            "prompt_ids": list(pairs[index].prompt),
            "chosen_ids": list(pairs[index].chosen),
            "rejected_ids": list(pairs[index].rejected),
        }
        for index in order
    ]
    backbone = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    trainer = InOrder(
        backbone,
        args=DPOConfig(
            output_dir=str(folder),
            beta=run.method.beta,
            learning_rate=run.method.lora_lr,
            max_grad_norm=run.method.max_grad_norm,
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            lr_scheduler_type="constant",
            warmup_steps=0,
            weight_decay=0.0,
            max_length=None,
            gradient_checkpointing=False,
            bf16=False,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=peft_config(run.lora, num_layers=backbone.config.num_hidden_layers),
    )
    trainer.losses = []
    return trainer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"), initializer_range=0.15)


@pytest.mark.parametrize(("last_layers", "max_grad_norm"), [(2, 1.0), (0, 0.1)])
def test_the_losses_of_a_round_follow_trls_step_by_step(
    model: Path, tmp_path: Path, last_layers: int, max_grad_norm: float
) -> None:
    run = plain_dpo(last_layers=last_layers, max_grad_norm=max_grad_norm, lora_lr=3e-3, beta=0.1)
    policy = tiny_policy(model, run)
    pairs = tiny_pairs(num=STEPS * BATCH)
    trainer = trl_trainer(model, pairs, run, tmp_path / "trl")
    SharedState.of(policy.peft_model).put_into(trainer.model)
    losses = own_losses(policy, pairs, run, tmp_path)
    trainer.train()
    assert len(losses) == len(trainer.losses) == STEPS
    assert losses == pytest.approx(trainer.losses, abs=1e-5)
    assert max(losses) - min(losses) > 0.1
    assert sum(norm > max_grad_norm for norm in trainer.norms) > STEPS / 4
    for own, other in zip(policy.lora(), lora_parameters(trainer.model), strict=True):
        assert float((own - other).detach().norm() / other.detach().norm()) < 1e-4
