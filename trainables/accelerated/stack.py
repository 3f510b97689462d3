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
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables import training
from trainables.accelerated.joint_optimizer import Members, get_schedule, join_by_member, join_by_schedule
from trainables.accelerated.stacked_network import LossFunction, compute_losses, forward_stack, get_compiled_losses
from trainables.accelerated.step_graph import StepGraph
from trainables.architectures import ARCHITECTURES, compute_output_shape
from trainables.training import State, StepOutput, Tensors
from trainables.trial import Trial

EVALUATION_BATCH = 1000  # images in a forward pass outside training on the CPU
EVALUATION_BYTES = 512 * 2**20  # outputs of the largest layer in a forward pass outside training on a GPU
DRAWING_THREADS = 4  # they draw the next epoch's orders while a GPU trains


def train_stack(
    trials: Sequence[Trial], data: Tensors, states: Sequence[State], *, compiled: bool = False
) -> Iterator[None]:
    """Train members from the same step to the last epoch's end, yielding after every step of all members.

    A member leaves the stack at the record at which it diverges; the others continue.

    Args:
        trials: The members' trials, which differ only in seeds and learning rates.
        states: The members' states, made by `training.start`, all at the same step.
        compiled: Compile the forward and backward pass. This is for GPUs, where it fuses passes over memory. It takes
            up to a minute, once in a process for each kind and size of stack. The numbers are the same up to rounding.
    """
    interval = trials[0].record_interval(len(data.train_images))
    members = list(zip(trials, states, strict=True))
    while members := [(trial, state) for trial, state in members if not training.has_ended(trial, data, state)]:
        stack = Stack(members, data, compiled=compiled)
        for batch in draw_batches(stack.members, data):
            output = stack.take_step(batch)
            record, remainder = divmod(members[0][1].step, interval)
            if remainder == 0:
                training.record_quantities(trials[0].quantities, output, stack.curves, record - 1)
                for (_, state), finite in zip(stack.members, torch.isfinite(output.loss).tolist(), strict=True):
                    state.diverged = not finite
            yield
            if any(state.diverged for _, state in members):
                break


def draw_batches(members: Members, data: Tensors) -> Iterator[Tensor]:
    """Yield the batches `(members, batch size)` of indices from the members' step to the end of their last epoch.

    For a GPU, the orders of the next epoch are drawn in threads while it trains, as drawing those of 64 members takes
    about as long as an epoch.
    """
    trial, state = members[0]
    images, device = len(data.train_images), data.train_images.device
    epoch, taken = divmod(state.step, trial.steps_per_epoch(images))

    def begin(epoch: int) -> tuple[Tensor, Iterable[None]]:
        """Return orders `(members, images)`, and what fills them when it is iterated over."""
        orders = torch.empty(len(members), images, dtype=torch.int64, pin_memory=device.type == "cuda")

        def fill(row: int) -> None:
            orders[row] = training.draw_epoch_order(members[row][0].seed, epoch, images)

        return orders, (pool.map if device.type == "cuda" else map)(fill, range(len(members)))

    with ThreadPoolExecutor(DRAWING_THREADS) as pool:
        orders, filling = begin(epoch)
        while epoch < trial.epochs:
            list(filling)
            batches = training.move_order(orders, device).split(trial.batch_size, dim=1)
            epoch += 1
            if epoch < trial.epochs:
                orders, filling = begin(epoch)
            yield from batches[taken:]
            taken = 0


def is_on_gpu(data: Tensors) -> bool:
    """Return whether a data set is on a GPU."""
    return data.train_images.is_cuda


class Stack:
    """Several members' networks as one network, whose tensors have a leading axis for the members.

    The members' own parameters, gradients and curves become views into those of the stack.

    Attributes:
        members: The members; on a GPU, those with the same learning rates side by side.
        parameters: Name → `(members, …)`.
        gradients: One `(members, …)` for each of the parameters, in the same order.
        curves: `(members, quantities, records)`.
    """

    def __init__(self, members: Members, data: Tensors, *, compiled: bool = False) -> None:
        on_gpu = is_on_gpu(data)
        self.members = sorted(members, key=get_schedule) if on_gpu else members
        self.data = data
        models = [state.model for _, state in self.members]
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
        self.curves = torch.stack([state.curves for _, state in self.members])
        for (_, state), curves in zip(self.members, self.curves, strict=True):
            state.curves = curves
        self.optimizer = (
            join_by_schedule(self.members, self.parameters, self.gradients) if on_gpu else join_by_member(self.members)
        )
        self.uncompiled_losses: LossFunction = partial(compute_losses, self.network)
        self.losses = self.get_compiled() if compiled else self.uncompiled_losses
        self.graph = StepGraph(self.compute_step, self.members[0][0].batch_size) if on_gpu else None

    def get_compiled(self) -> LossFunction:
        """Return the compiled loss function for the members' networks."""
        trial = self.members[0][0]
        return get_compiled_losses(
            *(len(self.members), trial.batch_size, self.data.train_images.device, trial.architecture),
            input_shape=self.data.input_shape,
            classes=self.data.classes,
            activation=trial.activation,
            pooling=trial.pooling,
        )

    def take_step(self, batch: Tensor) -> StepOutput:
        """Take one optimiser step with every member on the images whose indices are `batch` `(members, batch size)`."""
        self.advance()
        losses, logits, labels = self.graph.take(batch) if self.graph else self.compute_step(batch)
        return StepOutput(losses, logits, labels, self.data, self.compute_accuracies, self.compute_gradient_norms)

    def advance(self) -> None:
        """Increase the members' step counts by one, and set the learning rates of that step where they change."""
        for _, state in self.members:
            state.step += 1
        step = self.members[0][1].step
        for group in self.optimizer.param_groups:
            rate = group["members"][0][0].learning_rate_at(step)
            if rate == group["lr"]:
                continue
            group["lr"] = rate
            for _, state in group["members"]:
                for own in state.optimizer.param_groups:
                    own["lr"] = rate
            if self.graph:
                self.graph.forget()

    def compute_step(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute losses, logits and gradients of a batch, and update the parameters; return losses, logits, labels."""
        labels = self.data.train_labels.index_select(0, batch.flatten()).view(batch.shape)
        images = self.data.train_images.index_select(0, batch.flatten()).unflatten(0, batch.shape)
        # A smaller batch, the last of an epoch, is not worth another compilation.
        full = batch.shape[1] == self.members[0][0].batch_size
        losses, logits = (self.losses if full else self.uncompiled_losses)(self.parameters, images, labels)
        gradients = torch.autograd.grad(losses.sum(), list(self.parameters.values()))
        torch._foreach_copy_(self.gradients, gradients)  # one kernel launch instead of one per gradient
        self.optimizer.step()
        return losses.detach(), logits.detach(), labels

    def compute_gradient_norms(self) -> Tensor:
        """Compute the Euclidean norm of the gradient of each member's first layer: `(members,)`."""
        return torch.stack([torch.linalg.vector_norm(gradient) for gradient in self.gradients[0]])

    @cached_property
    def evaluation_batch(self) -> int:
        """The number of images in a forward pass outside training."""
        if not self.data.train_images.is_cuda:
            return EVALUATION_BATCH
        shape: tuple[int, ...] = self.data.input_shape
        largest = 1
        for layer in ARCHITECTURES[self.members[0][0].architecture]:
            shape = compute_output_shape(layer, shape)
            largest = max(largest, math.prod(shape))
        return max(1, EVALUATION_BYTES // (4 * largest * len(self.members)))

    def compute_accuracies(self, images: Tensor, labels: Tensor) -> Tensor:
        """Compute each member's accuracy in percent on the same images: `(members,)`."""
        with torch.inference_mode():
            batches = zip(images.split(self.evaluation_batch), labels.split(self.evaluation_batch), strict=True)
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
