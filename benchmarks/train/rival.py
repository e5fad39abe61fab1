"""One job of the benchmark by TRL's DPOTrainer: reference and epochs, timed.

As someone would run it for speed on a CPU: float32, no evaluation, no checkpoints, no logs on the
way, no recomputation (`gradient_checkpointing`, which TRL turns on, costs it a quarter more time).
What comes before training is not counted: tokenization, LoRA, the hash of the model.
"""

import tempfile
import time
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from clock import Clock, peak_mib, resident_mib
from job import Job, read_job, write_result


def main() -> None:
    """Read a job, train, write what was measured."""
    job = read_job()
    torch.set_num_threads(job.threads)
    disable_progress_bars()
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        trainer = trainer_for(job, model, folder)
        setup_s = time.perf_counter() - begun - trainer.precompute_s
        idle_mib = resident_mib()
        trainer.create_optimizer()
        clock = Clock()
        begun, used = time.perf_counter(), time.process_time()
        with clock.measuring(trainer.optimizer):
            found = trainer.train()
        wall_s = time.perf_counter() - begun + trainer.precompute_s
        cpu_s = time.process_time() - used + trainer.precompute_cpu_s
    reference_s = trainer.precompute_s + trainer.reference_s
    last_epoch = trainer.losses[-(len(trainer.losses) // job.epochs) :]
    write_result(
        {
            "wall_s": wall_s,
            "cpu_s": cpu_s,
            "reference_s": reference_s,
            "forward_s": wall_s - reference_s - clock.backward_s - clock.optimizer_s,
            "backward_s": clock.backward_s,
            "optimizer_s": clock.optimizer_s,
            "setup_s": setup_s,
            "peak_mib": peak_mib(),
            "idle_mib": idle_mib,
            "loss": float(torch.stack(last_epoch).mean()),
            "steps": found.global_step,
            "threads": torch.get_num_threads(),
        }
    )


class TimedTrainer(DPOTrainer):  # type: ignore[misc]
    """DPOTrainer for pairs that are token ids already; counts what the reference takes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.losses: list[torch.Tensor] = []
        self.precompute_s = 0.0
        self.precompute_cpu_s = 0.0
        self.reference_s = 0.0
        super().__init__(*args, **options)
        self.model.register_forward_pre_hook(self._begin)
        self.model.register_forward_hook(self._end)

    def _begin(self, *_: Any) -> None:
        self._begun = time.perf_counter()

    def _end(self, *_: Any) -> None:
        """Count a pass in training that needs no gradient: it is the reference's."""
        if not torch.is_grad_enabled():
            self.reference_s += time.perf_counter() - self._begun

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, *args: Any) -> Dataset:
        begun, used = time.perf_counter(), time.process_time()
        dataset = super()._precompute_ref_logps(*args)
        self.precompute_s = time.perf_counter() - begun
        self.precompute_cpu_s = time.process_time() - used
        return dataset

    def training_step(self, *args: Any, **options: Any) -> torch.Tensor:
        """One step; its loss is kept."""
        loss: torch.Tensor = super().training_step(*args, **options)
        self.losses.append(loss)
        return loss


def trainer_for(job: Job, model: Any, folder: str) -> TimedTrainer:
    """TRL's trainer with the job's settings, on the job's tokens as they are."""
    layers = model.config.num_hidden_layers
    lora = LoraConfig(
        r=job.lora_rank,
        lora_alpha=job.lora_alpha,
        lora_dropout=0.0,
        target_modules=["q_proj", "v_proj"],
        layers_to_transform=list(range(layers - job.last_layers, layers))
        if job.last_layers
        else None,
        task_type="CAUSAL_LM",
    )
    settings = DPOConfig(
        output_dir=folder,
        beta=job.beta,
        per_device_train_batch_size=job.batch_pairs,
        num_train_epochs=job.epochs,
        learning_rate=job.learning_rate,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=None,
        gradient_checkpointing=False,
        bf16=False,
        precompute_ref_log_probs=job.precompute,
        precompute_ref_batch_size=job.batch_pairs,
        logging_steps=1_000_000,
        report_to=[],
        eval_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=True,
    )
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [dict(zip(columns, pair, strict=True)) for pair in job.pairs]
    return TimedTrainer(
        model,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job.model),
        peft_config=lora,
    )


if __name__ == "__main__":
    main()
