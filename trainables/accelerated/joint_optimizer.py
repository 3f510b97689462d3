"""One optimiser for all members of a stack, which takes less time than one for each member.

The numbers are the same, as optimisers treat every number by itself, and the members' own optimisers stay up to date.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from trainables import training
from trainables.training import State
from trainables.trial import Trial

Members = Sequence[tuple[Trial, State]]
"""The members of a stack: each trial with its state."""


def get_schedule(member: tuple[Trial, State]) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Return the learning rates that a member has one after another, by which members can be sorted."""
    return member[0].learning_rate, member[0].milestones


def join_by_member(members: Members) -> torch.optim.Optimizer:
    """Return an optimiser that updates each parameter of each member separately.

    On the CPU, the last bits of a number depend on its place in a tensor, so only this keeps a member's numbers the
    same in every stack. It shares the state of the members' own optimisers.
    """
    groups = []
    for _, group in groupby(sorted(members, key=get_schedule), get_schedule):
        alike = list(group)
        parameters = [parameter for _, state in alike for parameter in state.model.parameters()]
        groups.append({"members": alike, "params": parameters})
    optimizer = training.OPTIMIZERS[members[0][0].optimizer](groups, lr=0.0, fused=True)
    for _, state in members:
        for parameter in state.model.parameters():
            optimizer.state[parameter] = state.optimizer.state[parameter]  # shared, not copied
    return optimizer


def join_by_schedule(
    members: Members, parameters: Mapping[str, Tensor], gradients: Sequence[Tensor]
) -> torch.optim.Optimizer:
    """Return an optimiser that updates a parameter of all members with the same learning rates at once.

    This is for GPUs, where a launch of the optimiser takes about 36 tensors. The state of the members' own optimisers
    becomes views into that of this one.

    Args:
        members: The members, those with the same learning rates side by side.
        parameters: Name → `(members, …)`.
        gradients: One for each of the parameters.
    """
    groups, first = [], 0
    for _, group in groupby(members, get_schedule):
        alike = list(group)
        last = first + len(alike)
        parts = []
        for stacked, gradient in zip(parameters.values(), gradients, strict=True):
            part = stacked.detach()[first:last]
            part.grad = gradient[first:last]
            parts.append(part)
        groups.append({"members": alike, "params": parts})
        first = last
    kind = members[0][0].optimizer
    on_gpu = gradients[0].is_cuda
    settings = {"capturable": True} if kind == "adam" and on_gpu else {}  # a CUDA graph may record it
    optimizer = training.OPTIMIZERS[kind](groups, lr=0.0, fused=True, **settings)
    if kind == "adam":
        for joined in optimizer.param_groups:
            for position, part in enumerate(joined["params"]):
                optimizer.state[part] = join_adam_states(joined["members"], position)
    return optimizer


def join_adam_states(members: Members, position: int) -> dict[str, Tensor]:
    """Return the state of Adam for one parameter of some members at once, and make theirs views into it.

    Args:
        members: The members, which have taken the same number of steps.
        position: The parameter's place among those of a member.
    """
    own: list[dict[str, Tensor]] = []
    for _, state in members:
        parameter = list(state.model.parameters())[position]
        own.append(state.optimizer.state[parameter])
        if not own[-1]:  # the member has taken no step
            own[-1]["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            own[-1].update({name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")})
    joined = {name: torch.stack([each[name] for each in own]) for name in ("exp_avg", "exp_avg_sq")}
    joined["step"] = own[0]["step"].clone()
    for place, each in enumerate(own):
        each.update(step=joined["step"], exp_avg=joined["exp_avg"][place], exp_avg_sq=joined["exp_avg_sq"][place])
    return joined
