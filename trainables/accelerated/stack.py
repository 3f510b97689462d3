"""Training several trials side by side: one batched step for all of them.

Members share everything but their seed and learning rates, so their networks have the same shape, and their parameters
fit along a leading axis. Every member keeps its own batches, its optimiser and its `State`, whose parameters are views
into the stacked ones: what a checkpoint or a result takes from a member, it takes as from a trial that trains alone.

On the CPU a member's numbers are the same to the last bit whoever else is in the stack, and in a stack of one, if its
network is fully connected; with convolutions that does not hold. From those of `training.train` they differ by
rounding: sums are taken in another order.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import functional_call, vmap
from torch.nn import functional

from trainables import training
from trainables.architectures import build
from trainables.training import State, StepOutput, Tensors
from trainables.trial import Trial

EVALUATION_BATCH = 1000  # images a forward pass outside training


# Parameters, images `(members, n, …)` and labels `(members, n)` → losses `(members,)`, logits `(members, n, classes)`
Losses = Callable[[Mapping[str, Tensor], Tensor, Tensor], tuple[Tensor, Tensor]]


def train_stack(
    trials: Sequence[Trial], data: Tensors, states: Sequence[State], *, compiled: bool = False
) -> Iterator[None]:
    """Train members that stand at the same step to the last epoch's end, yielding after every step of all.

    A member that diverges leaves the stack with that record; the others go on.

    Args:
        states: Made by `training.start`.
        compiled: Have forward and backward pass compiled, for GPUs, where each operation waits to be launched. That
            takes up to a minute for each kind and size of stack, once. The numbers are the same but for rounding.
    """
    images = len(data.train_images)
    per_epoch, interval = trials[0].steps_per_epoch(images), trials[0].record_interval(images)
    members = list(zip(trials, states, strict=True))
    while members := [(trial, state) for trial, state in members if not training.has_ended(trial, data, state)]:
        stack = Stack(members, data, compiled=compiled)
        epoch, taken = divmod(members[0][1].step, per_epoch)
        orders = torch.stack([training.draw_epoch_order(trial.seed, epoch, images) for trial, _ in members])
        for batch in training.move_order(orders, data.train_images.device).split(trials[0].batch_size, dim=1)[taken:]:
            moment = stack.take_step(batch)
            if members[0][1].step % interval == 0:
                training.record_quantities(
                    trials[0].quantities, moment, stack.curves, members[0][1].step // interval - 1
                )
                for (_, state), finite in zip(members, torch.isfinite(moment.loss).tolist(), strict=True):
                    state.diverged = not finite
            yield
            if any(state.diverged for _, state in members):
                break


class Linear(Function):
    """A fully connected layer of every member.

    What `torch.func.vmap` makes of `nn.Linear` computes the same, but has the weights' gradients transposed in memory:
    with that, a backward pass of five small networks on the CPU took 1.8 times as long.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`(members, n, inputs)`, `(members, features, inputs)`, `(members, features)` → `(members, n, features)`."""
        ctx.save_for_backward(inputs, weight)
        if bias is None:
            return torch.bmm(inputs, weight.mT)
        return torch.baddbmm(bias.unsqueeze(1), inputs, weight.mT)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Of the outputs `(members, n, features)` → of inputs, weight and bias."""
        inputs, weight = ctx.saved_tensors
        return (
            torch.bmm(gradient, weight) if ctx.needs_input_grad[0] else None,
            torch.bmm(gradient.mT, inputs),
            gradient.sum(dim=1) if ctx.needs_input_grad[2] else None,
        )


def forward_stack(network: nn.Sequential, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """What each member's network makes of its inputs: `(members, n, …)` → `(members, n, classes)`."""
    outputs = inputs
    for name, module in network.named_children():
        match module:
            case nn.Flatten():
                outputs = outputs.flatten(2)
            case nn.Linear():
                outputs = Linear.apply(outputs, parameters[f"{name}.weight"], parameters.get(f"{name}.bias"))
            case nn.Conv2d():
                own = {key: parameters[f"{name}.{key}"] for key, _ in module.named_parameters()}
                outputs = vmap(partial(functional_call, module))(own, (outputs,))
            case nn.MaxPool2d() | nn.AvgPool2d():
                outputs = module(outputs.flatten(0, 1)).unflatten(0, outputs.shape[:2])
            case _:  # an activation
                outputs = module(outputs)
    return outputs


def compute_losses(
    network: nn.Sequential, parameters: Mapping[str, Tensor], images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Each member's mean loss on a batch of its own, and its logits: see `Losses`."""
    logits = forward_stack(network, parameters, images)
    each = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return each.view(labels.shape).mean(dim=1), logits


class CompiledLosses:
    """`losses_of` compiled at its first call; where that cannot be done, a warning says so and it stays as it is.

    On a GPU the passes are CUDA graphs, whose memory the next step overwrites. That is safe here: parameters come in as
    plain tensors, not as a module's, so they are copied in at each step, and a new stack's may lie elsewhere; gradients
    are copied out to where the members' own are; losses and logits are looked at before the next step.
    """

    def __init__(self, network: nn.Sequential) -> None:
        self.plain: Losses = partial(compute_losses, network)
        self.tried: Losses | None = None

    def __call__(self, parameters: Mapping[str, Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.tried is None:
            self.tried = self.plain
            try:
                mode = "reduce-overhead" if images.is_cuda else None
                function: Losses = torch.compile(self.plain, fullgraph=True, dynamic=False, mode=mode)
                for _ in range(2):  # the first call compiles, the second records CUDA graphs
                    losses, _ = function(parameters, images, labels)
                    torch.autograd.grad(losses.sum(), list(parameters.values()))
                self.tried = function
            except Exception as error:  # Dynamo, Inductor, Triton and the compilers under them have each their own
                reason = str(error).strip().partition("\n")[0]
                warnings.warn(f"training goes on uncompiled: {type(error).__name__}: {reason}", stacklevel=2)
        return self.tried(parameters, images, labels)


@cache
def get_compiled_losses(
    members: int, batch_size: int, device: torch.device, architecture: str, **shape: Any
) -> CompiledLosses:
    """One for each kind and size of stack in a process, as a stack is made anew for every epoch.

    After eight in a process Dynamo compiles no more (`recompile_limit`), and further ones train uncompiled.
    """
    with torch.device("meta"):  # the layers alone: parameters come with each call
        return CompiledLosses(build(architecture, **shape))


def join_optimizers(members: Sequence[tuple[Trial, State]]) -> torch.optim.Optimizer:
    """One for the parameters of all members, on the state of their own, which takes less time than each by itself.

    It updates each parameter of each member by itself, so the numbers are the same.
    """
    groups: dict[Any, dict[str, Any]] = {}
    for trial, state in members:
        schedule = (trial.learning_rate, trial.milestones)
        group = groups.setdefault(schedule, {"trial": trial, "params": []})
        group["params"] += state.model.parameters()
    optimizer = training.OPTIMIZERS[members[0][0].optimizer](list(groups.values()), lr=0.0, fused=True)
    for _, state in members:
        for parameter in state.model.parameters():
            optimizer.state[parameter] = state.optimizer.state[parameter]  # the same dictionary
    return optimizer


class Stack:
    """Members' networks as one, until one of them leaves.

    Attributes:
        parameters: name → `(members, …)`; the members' own are views into these.
        gradients: In the same order; the members' own are views into these.
        curves: `(members, quantities, records)`; the members' own are views into these.
    """

    def __init__(self, members: Sequence[tuple[Trial, State]], data: Tensors, *, compiled: bool = False) -> None:
        self.members = members
        self.data = data
        models = [state.model for _, state in members]
        self.network = copy.deepcopy(models[0])
        self.parameters: dict[str, Tensor] = {}
        self.gradients: list[Tensor] = []
        for name, _ in self.network.named_parameters():
            own = [model.get_parameter(name) for model in models]
            stacked = torch.stack([parameter.detach() for parameter in own])
            gradients = torch.zeros_like(stacked)
            for parameter, values, gradient in zip(own, stacked, gradients, strict=True):
                parameter.data = values
                parameter.grad = gradient
            self.parameters[name] = stacked.detach().requires_grad_()
            self.gradients.append(gradients)
        self.curves = torch.stack([state.curves for _, state in members])
        for (_, state), curves in zip(members, self.curves, strict=True):
            state.curves = curves
        self.optimizer = join_optimizers(members)
        self.losses: Losses = partial(compute_losses, self.network)
        self.plain = self.losses
        if compiled:
            trial, device = members[0][0], data.train_images.device
            self.losses = get_compiled_losses(
                *(len(members), trial.batch_size, device, trial.architecture),
                input_shape=data.input_shape,
                classes=data.classes,
                activation=trial.activation,
                pooling=trial.pooling,
            )

    def take_step(self, batch: Tensor) -> StepOutput:
        """One optimiser step of every member on the images whose indices are `batch` `(members, batch size)`."""
        for trial, state in self.members:
            training.advance_step(trial, state)
        for group in self.optimizer.param_groups:
            group["lr"] = group["trial"].learning_rate_at(self.members[0][1].step)
        labels = self.data.train_labels.index_select(0, batch.flatten()).view(batch.shape)
        images = self.data.train_images.index_select(0, batch.flatten()).unflatten(0, batch.shape)
        # A smaller batch, the last of an epoch, would have to be compiled as well.
        whole = batch.shape[1] == self.members[0][0].batch_size
        losses, logits = (self.losses if whole else self.plain)(self.parameters, images, labels)
        gradients = torch.autograd.grad(losses.sum(), list(self.parameters.values()))
        torch._foreach_copy_(self.gradients, gradients)  # a launch for all, not one each
        self.optimizer.step()
        return StepOutput(losses, logits, labels, self.data, self.accuracies, self.gradient_norms)

    def gradient_norms(self) -> Tensor:
        """That of each member's first layer: `(members,)`."""
        return torch.stack([torch.linalg.vector_norm(gradient) for gradient in self.gradients[0]])

    def accuracies(self, images: Tensor, labels: Tensor) -> Tensor:
        """Each member's accuracy in percent on the same images: `(members,)`."""
        with torch.inference_mode():
            batches = zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True)
            total = torch.stack([training.count_correct(self.predict(x), y) for x, y in batches]).sum(dim=0)
        return 100 * total / len(labels)

    def predict(self, images: Tensor) -> Tensor:
        """Each member's logits for the same images: `(n, channels, height, width)` → `(members, n, classes)`.

        As all members see the same images, one matrix product does a fully connected first layer of all.
        """
        if not isinstance(self.network[0], nn.Flatten):
            return forward_stack(self.network, self.parameters, images.expand(len(self.members), *images.shape))
        weight, bias = self.parameters["1.weight"], self.parameters["1.bias"]  # (members, features, inputs)
        hidden = functional.linear(images.flatten(1), weight.flatten(0, 1), bias.flatten())  # (n, members · features)
        hidden = hidden.unflatten(1, bias.shape).transpose(0, 1)  # (members, n, features)
        return forward_stack(self.network[2:], self.parameters, hidden)
