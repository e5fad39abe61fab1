"""One job of the benchmark by FedPDPO's engine: trunk, reference and epochs, timed.

Loading the model, LoRA and the check at the start are not counted. `reference_s` holds what is
done once per data set: the frozen trunk's pass, where there is a trunk, and the reference's.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from clock import Clock, peak_mib, resident_mib
from fedpdpo.client.data.tokens import PairTokens
from fedpdpo.client.model.backbone import load_backbone
from fedpdpo.client.model.policy import Policy
from fedpdpo.client.outcome import TrainingReport
from fedpdpo.client.training.local_round import train_round
from fedpdpo.client.training.optimizer import LocalOptimizer
from fedpdpo.client.training.pairset import PairSet, keep_trunk, prepare
from fedpdpo.client.training.reference import ReferenceCache
from fedpdpo.client.training.trunk import TrunkCache
from fedpdpo.common.run import LoraSettings, MethodSettings, Run
from job import Job, read_job, write_result
from work import BOTTLENECK, HEAD_RANK, count, flops_of_job, tokens_of

TRUNK_CACHE_BYTES = 2**31


def main() -> None:
    """Read a job, train, write what was measured."""
    job = read_job()
    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    begun = time.perf_counter()
    pairs = tokens_of(job)
    policy, run = policy_for(job)
    policy.check(max(pairs, key=len))
    optimizer = LocalOptimizer(policy, run.method)
    setup_s = time.perf_counter() - begun
    idle_mib = resident_mib()
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        begun, used = time.perf_counter(), time.process_time()
        prepared = prepared_pairs(job, policy, pairs, Path(folder))
        reference_s = time.perf_counter() - begun
        with clock.measuring(optimizer):
            report = trained(policy, prepared, run, optimizer)
        wall_s, cpu_s = time.perf_counter() - begun, time.process_time() - used
    figures = {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "reference_s": reference_s,
        "forward_s": wall_s - reference_s - clock.backward_s - clock.optimizer_s,
        "backward_s": clock.backward_s,
        "optimizer_s": clock.optimizer_s,
        "setup_s": setup_s,
        "peak_mib": peak_mib(),
        "idle_mib": idle_mib,
        "loss": report.loss,
        "steps": report.num_steps,
        "threads": torch.get_num_threads(),
    }
    config = policy.peft_model.config
    once = count(pairs)
    write_result(
        figures
        | {
            "flops": flops_of_job(job, config),
            "flops_by_pair": flops_of_job(job, config, shared=False),
            "distinct_tokens": once.tokens,
            "path": policy.decoder.path,
        }
    )


def policy_for(job: Job) -> tuple[Policy, Run]:
    """The backbone with the job's trained parts, and the run that describes them."""
    backbone = load_backbone(job.model, device=torch.device("cpu"), dtype=torch.float32)
    method = MethodSettings(
        beta=job.beta,
        alpha=1.0 if job.private else 0.0,
        objective="combined",
        anchor=0.0,
        head=job.head,
        head_rank=HEAD_RANK,
        bottleneck=BOTTLENECK if job.private else 0,
        reward_head=job.private,
        local_epochs=job.epochs,
        batch_pairs=job.batch_pairs,
        lora_lr=job.learning_rate,
    )
    lora = LoraSettings(
        rank=job.lora_rank,
        alpha=job.lora_alpha,
        target_modules=("q_proj", "v_proj"),
        layers=f"last-{job.last_layers}" if job.last_layers else "all",
    )
    run = Run(run_id="0" * 32, model=job.model, lora=lora, method=method, num_rounds=1, seed=0)
    return Policy(backbone, run, private_seed=0), run


def prepared_pairs(job: Job, policy: Policy, pairs: Sequence[PairTokens], folder: Path) -> PairSet:
    """What is done once per data set, from nothing, as the client daemon does it."""
    trunk = None
    if policy.has_trunk:
        trunk = TrunkCache(
            folder / "trunk",
            key="",
            hidden=policy.hidden_size,
            dtype=policy.dtype,
        )
        keep_trunk(
            policy,
            pairs,
            trunk,
            tokens_per_step=job.tokens_per_step,
            budget_bytes=TRUNK_CACHE_BYTES,
            advance=lambda _: None,
        )
    reference = ReferenceCache(folder / "reference.safetensors", key="")
    return prepare(
        policy, pairs, tokens_per_step=job.tokens_per_step, reference=reference, trunk=trunk
    )


def trained(policy: Policy, pairs: PairSet, run: Run, optimizer: LocalOptimizer) -> TrainingReport:
    """The epochs: one local round."""
    return train_round(policy, pairs, run, optimizer, seed=0, round_number=1).report()


if __name__ == "__main__":
    main()
