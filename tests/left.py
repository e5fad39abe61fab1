"""What a client leaves behind when it has trained."""

from pathlib import Path

from fedpdpo.client.model.lora import SharedState, layout_of
from fedpdpo.client.model.policy import Policy, private_parameters
from fedpdpo.client.state import ClientState, PrivateState
from fedpdpo.client.training.local_round import train_round
from fedpdpo.client.training.optimizer import LocalOptimizer
from fedpdpo.common.run import Run, TensorSpec
from tiny import tiny_backbone, tiny_pairs, tiny_pairset, tiny_policy


def left_by(model: Path, folder: Path, run: Run) -> Policy:
    """The policy of a client after a round, whose state directory is then in `folder`."""
    policy = tiny_policy(model, run)
    start = SharedState.of(policy.peft_model)
    optimizer = LocalOptimizer(policy, run.method)
    pairs = tiny_pairset(policy, tiny_pairs(), folder)
    point = train_round(policy, pairs, run, optimizer, seed=0, round_number=1)
    state = ClientState(folder, client_id="ada")
    state.bind(_fixed(run, policy, model), model=str(model))
    shared = SharedState.of(policy.peft_model)
    state.save_round(
        1,
        private=PrivateState(private_parameters(policy), optimizer.moments(shared=False)),
        delta=shared.minus(start),
        num_pairs=len(pairs),
        report=point.report(),
    )
    state.adapter_path(1).parent.mkdir()
    shared.write(state.adapter_path(1))
    return policy


def _fixed(run: Run, policy: Policy, model: Path) -> Run:
    backbone = tiny_backbone(model)
    specs = tuple(
        TensorSpec(name=name, shape=shape) for name, shape in layout_of(policy.peft_model).shapes
    )
    return run.model_copy(
        update={
            "backbone_fingerprint": backbone.fingerprint,
            "tokenizer_fingerprint": backbone.tokenizer_fingerprint,
            "lora_layout": specs,
        }
    )
