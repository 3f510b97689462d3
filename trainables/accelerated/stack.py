"""Training of several trials side by side, as a stack: one batched step for all of them.

The members of a stack are its trials, each with its `State`: `(trial, state)` pairs. Members differ only in their seeds
and learning rates, so their networks have the same shapes, and their parameters fit along a leading axis. Every member
keeps its own order of images, its optimiser state and its `State`, whose parameters are views into the stacked ones.
Checkpoints and results are therefore made from a member's `State` as from that of a trial that trains alone.

If the network is fully connected, a member's numbers on the CPU are the same to the last bit whatever other members the
stack has, and also in a stack of one. With convolutions they are not. The numbers differ from those of `training.train`
by rounding, because sums are taken in another order.
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

EVALUATION_BATCH = 1000  # images in a forward pass outside training

# Parameters, images `(members, n, …)` and labels `(members, n)` → losses `(members,)`, logits `(members, n, classes)`
LossFunction = Callable[[Mapping[str, Tensor], Tensor, Tensor], tuple[Tensor, Tensor]]


def train_stack(
    trials: Sequence[Trial], data: Tensors, states: Sequence[State], *, compiled: bool = False
) -> Iterator[None]:
    """Train members from the same step to the last epoch's end, yielding after every step of all members.

    A member leaves the stack at the record at which it diverges; the others continue.

    Args:
        trials: The members' trials, which differ only in seeds and learning rates.
        states: The members' states, made by `training.start`, all at the same step.
        compiled: Compile the forward and backward pass. This is for GPUs, where every operation has to wait for
            its launch. It takes up to a minute, once in a process for each kind and size of stack. The numbers are the
            same up to rounding.
    """
    images = len(data.train_images)
    steps_per_epoch, interval = trials[0].steps_per_epoch(images), trials[0].record_interval(images)
    members = list(zip(trials, states, strict=True))
    while members := [(trial, state) for trial, state in members if not training.has_ended(trial, data, state)]:
        stack = Stack(members, data, compiled=compiled)
        epoch, taken = divmod(members[0][1].step, steps_per_epoch)
        orders = torch.stack([training.draw_epoch_order(trial.seed, epoch, images) for trial, _ in members])
        for batch in training.move_order(orders, data.train_images.device).split(trials[0].batch_size, dim=1)[taken:]:
            output = stack.take_step(batch)
            record, remainder = divmod(members[0][1].step, interval)
            if remainder == 0:
                training.record_quantities(trials[0].quantities, output, stack.curves, record - 1)
                for (_, state), finite in zip(members, torch.isfinite(output.loss).tolist(), strict=True):
                    state.diverged = not finite
            yield
            if any(state.diverged for _, state in members):
                break


class Linear(Function):
    """A fully connected layer of all members, as one batched product.

    `torch.func.vmap` of `nn.Linear` computes the same, but leaves the weights' gradients transposed in memory: with
    these, a backward pass of five small networks on the CPU took 1.8 times as long.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the outputs `(members, n, features)`.

        Args:
            ctx: Keeps what `backward` needs.
            inputs: `(members, n, inputs)`.
            weight: `(members, features, inputs)`.
            bias: `(members, features)`, or None.
        """
        ctx.save_for_backward(inputs, weight)
        if bias is None:
            return torch.bmm(inputs, weight.mT)
        return torch.baddbmm(bias.unsqueeze(1), inputs, weight.mT)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Compute the gradients for inputs, weight and bias from that for the outputs, `(members, n, features)`."""
        inputs, weight = ctx.saved_tensors
        return (
            torch.bmm(gradient, weight) if ctx.needs_input_grad[0] else None,
            torch.bmm(gradient.mT, inputs),
            gradient.sum(dim=1) if ctx.needs_input_grad[2] else None,
        )


def forward_stack(network: nn.Sequential, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Run each member's forward pass on its own inputs: `(members, n, …)` → `(members, n, classes)`.

    Args:
        network: A network of the members' shape, whose own parameters are not used.
        parameters: Name → `(members, …)`.
        inputs: Images, or the inputs of the first layer of `network`.
    """
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
    """Compute each member's mean loss on its own batch, and its logits; shapes as in `LossFunction`."""
    logits = forward_stack(network, parameters, images)
    each = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return each.view(labels.shape).mean(dim=1), logits


class CompiledLosses:
    """A loss function that compiles `compute_losses` at its first call; if that fails, it warns and runs it uncompiled.

    On a GPU, the passes are CUDA graphs, whose memory the next step overwrites. That is safe here. Parameters are plain
    tensors, not those of a module, so that each step copies them into the graph, and those of a new stack may lie
    elsewhere in memory. Gradients are copied out to the members' own. Losses and logits are used before the next step.
    """

    def __init__(self, network: nn.Sequential) -> None:
        self.uncompiled: LossFunction = partial(compute_losses, network)
        self.chosen: LossFunction | None = None  # after the first call: compiled if possible

    def __call__(self, parameters: Mapping[str, Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.chosen is None:
            self.chosen = self.uncompiled
            try:
                mode = "reduce-overhead" if images.is_cuda else None
                function: LossFunction = torch.compile(self.uncompiled, fullgraph=True, dynamic=False, mode=mode)
                for _ in range(2):  # the first call compiles, the second records CUDA graphs
                    losses, _ = function(parameters, images, labels)
                    torch.autograd.grad(losses.sum(), list(parameters.values()))
                self.chosen = function
            except Exception as error:  # Dynamo, Inductor, Triton and the compilers below them raise their own
                reason = str(error).strip().partition("\n")[0]
                warnings.warn(f"training continues uncompiled: {type(error).__name__}: {reason}", stacklevel=2)
        return self.chosen(parameters, images, labels)


@cache
def get_compiled_losses(
    members: int, batch_size: int, device: torch.device, architecture: str, **shape: Any
) -> CompiledLosses:
    """Return the compiled loss function for a kind and size of stack, the same one at every call in a process.

    It is kept because a new `Stack` is made for every epoch. Dynamo compiles eight of them in a process
    (`recompile_limit`); stacks of further kinds and sizes train uncompiled.

    Args:
        members: The number of members.
        shape: The keyword arguments of `architectures.build`.
    """
    with torch.device("meta"):  # layers without memory for parameters, which come with each call
        return CompiledLosses(build(architecture, **shape))


def join_optimizers(members: Sequence[tuple[Trial, State]]) -> torch.optim.Optimizer:
    """Return one optimiser for the parameters of all members, which takes less time than one for each member.

    It updates each parameter of each member separately, so that the numbers are the same. It uses the state of the
    members' own optimisers, which therefore stay up to date.
    """
    groups: dict[Any, dict[str, Any]] = {}
    for trial, state in members:
        schedule = (trial.learning_rate, trial.milestones)
        group = groups.setdefault(schedule, {"trial": trial, "params": []})
        group["params"] += state.model.parameters()
    optimizer = training.OPTIMIZERS[members[0][0].optimizer](list(groups.values()), lr=0.0, fused=True)
    for _, state in members:
        for parameter in state.model.parameters():
            optimizer.state[parameter] = state.optimizer.state[parameter]  # shared, not copied
    return optimizer


class Stack:
    """Several members' networks as one network, whose tensors have a leading axis for the members.

    The members' own parameters, gradients and curves become views into those of the stack.

    Attributes:
        parameters: Name → `(members, …)`.
        gradients: One `(members, …)` for each of the parameters, in the same order.
        curves: `(members, quantities, records)`.
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
        self.losses: LossFunction = partial(compute_losses, self.network)
        self.uncompiled_losses = self.losses
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
        """Take one optimiser step with every member on the images whose indices are `batch` `(members, batch size)`."""
        for trial, state in self.members:
            training.advance_step(trial, state)
        for group in self.optimizer.param_groups:
            group["lr"] = group["trial"].learning_rate_at(self.members[0][1].step)
        labels = self.data.train_labels.index_select(0, batch.flatten()).view(batch.shape)
        images = self.data.train_images.index_select(0, batch.flatten()).unflatten(0, batch.shape)
        # A smaller batch, the last of an epoch, is not worth another compilation.
        full = batch.shape[1] == self.members[0][0].batch_size
        losses, logits = (self.losses if full else self.uncompiled_losses)(self.parameters, images, labels)
        gradients = torch.autograd.grad(losses.sum(), list(self.parameters.values()))
        torch._foreach_copy_(self.gradients, gradients)  # one kernel launch instead of one per gradient
        self.optimizer.step()
        return StepOutput(losses, logits, labels, self.data, self.compute_accuracies, self.compute_gradient_norms)

    def compute_gradient_norms(self) -> Tensor:
        """Compute the Euclidean norm of the gradient of each member's first layer: `(members,)`."""
        return torch.stack([torch.linalg.vector_norm(gradient) for gradient in self.gradients[0]])

    def compute_accuracies(self, images: Tensor, labels: Tensor) -> Tensor:
        """Compute each member's accuracy in percent on the same images: `(members,)`."""
        with torch.inference_mode():
            batches = zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True)
            correct = torch.stack([training.count_correct(self.predict(x), y) for x, y in batches]).sum(dim=0)
        return 100 * correct / len(labels)

    def predict(self, images: Tensor) -> Tensor:
        """Compute each member's logits for the same images: `(n, channels, height, width)` → `(members, n, classes)`.

        As the images are the same for all members, one matrix product computes a fully connected first layer of all.
        """
        if not isinstance(self.network[0], nn.Flatten):
            return forward_stack(self.network, self.parameters, images.expand(len(self.members), *images.shape))
        weight, bias = self.parameters["1.weight"], self.parameters["1.bias"]  # (members, features, inputs)
        hidden = functional.linear(images.flatten(1), weight.flatten(0, 1), bias.flatten())  # (n, members · features)
        hidden = hidden.unflatten(1, bias.shape).transpose(0, 1)  # (members, n, features)
        return forward_stack(self.network[2:], self.parameters, hidden)
