"""Checks that a GPU trains as the CPU does, within its share of the memory, and goes on from checkpoints.

Each check is a function of `Setting` that returns what it measured, or raises `CheckFailedError` or `SkippedError`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables import training
from trainables.accelerated.stack import train_stack
from trainables.architectures import ARCHITECTURES, build
from trainables.datasets import Dataset, load_dataset
from trainables.persistence.trial_folder import TrialFolder
from trainables.process import choose_device, compute_memory_fraction, is_out_of_memory
from trainables.training import State, Tensors
from trainables.trial import Trial

ROOT = Path(__file__).resolve().parent.parent
TRAIN_IMAGES, VAL_IMAGES = 110, 40  # of digits: an epoch has two batches of 50 and a smaller one
STEPS, STEPS_PER_RECORD = 12, 3
RECORDS = STEPS // STEPS_PER_RECORD
HALF = 7  # steps until a checkpoint, which is within an epoch
FEW = ("mlp_1", "cnn_3")
WAYS = ("single", "stacked", "compiled")
# The largest difference of the weights from those on the CPU, as a fraction of what training changed. In single
# precision, where rounding decides which of two pixels a pooling takes, a gradient changes as a whole. That is for SGD:
# Adam divides by the size of gradients, so that it also moves weights whose gradients are nothing but rounding. It is
# compared in double precision, and more loosely where checkpoints are checked.
TOLERANCE = {torch.float64: 1e-7, torch.float32: 5e-3}
ADAM_TOLERANCE = 0.03
OPTIMIZERS = {torch.float64: "adam", torch.float32: "sgd"}
KERNEL_TOLERANCE = 2e-6  # of float32 products and convolutions, relative to float64; with TF32 it is about 3e-4
QUARTER = 0.25
CHILD = "--child"  # the option of a process that shares the GPU with others


class CheckFailedError(Exception):
    """Something that a check found is wrong."""


class SkippedError(Exception):
    """A check cannot run here."""


@dataclass(frozen=True)
class Setting:
    """The device, data and extent of the checks.

    Attributes:
        device: The GPU, or the CPU if there is none.
        digits: A part of the data set that comes with scikit-learn.
        architectures: The architectures that are trained.
        compiled: Those whose steps are compiled as well.
        processes: The number of processes that share the GPU.
    """

    device: torch.device
    digits: Dataset
    architectures: Sequence[str]
    compiled: Sequence[str]
    processes: int


def make_setting(*, small: bool) -> Setting:
    """Return a setting with all architectures, or one that a CPU gets through in a minute."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    whole = load_dataset("digits", Path("unused"))
    digits = replace(
        whole,
        train_images=whole.train_images[:TRAIN_IMAGES],
        train_labels=whole.train_labels[:TRAIN_IMAGES],
        val_images=whole.val_images[:VAL_IMAGES],
        val_labels=whole.val_labels[:VAL_IMAGES],
    )
    if small:
        return Setting(device, digits, FEW, (), 2)
    return Setting(device, digits, tuple(ARCHITECTURES), FEW, 4)  # compiling all would take minutes


def require(condition: bool, text: str) -> None:
    """Raise `CheckFailedError` unless a condition holds."""
    if not condition:
        raise CheckFailedError(text)


def require_gpu(setting: Setting) -> None:
    """Raise `SkippedError` where there is no GPU."""
    if setting.device.type == "cpu":
        raise SkippedError("there is no GPU")


def make_trials(architecture: str, seeds: Sequence[int], optimizer: str = "adam") -> list[Trial]:
    """Return trials with two learning rates, one of which changes on the way."""
    scale = 0.001 if optimizer == "adam" else 0.05
    return [
        Trial(
            dataset="digits",
            architecture=architecture,
            learning_rate=scale * (1 + seed % 2),
            milestones=((8, 0.5 * scale),) if seed % 2 else (),
            optimizer=optimizer,
            epochs=STEPS,
            seed=seed,
            batch_size=50,
            record_every_steps=STEPS_PER_RECORD,
            quantities=("train_loss", "val_accuracy", "gradient_norm"),
        )
        for seed in seeds
    ]


def make_tensors(data: Dataset, device: torch.device, dtype: torch.dtype) -> Tensors:
    """Return a data set on a device with images of a floating-point type."""
    tensors = training.to_tensors(data, device)
    parts = ("train_images", "val_images", "test_images")
    return replace(tensors, **{part: getattr(tensors, part).to(dtype) for part in parts})


def train(trials: Sequence[Trial], data: Tensors, way: str, steps: int = STEPS) -> list[State]:
    """Train trials for some steps, each alone or all in a stack, and return their states."""
    torch.set_default_dtype(data.train_images.dtype)
    try:
        states = [training.start(trial, data) for trial in trials]
        go_on(trials, data, states, way, steps)
    finally:
        torch.set_default_dtype(torch.float32)
    return states


def go_on(trials: Sequence[Trial], data: Tensors, states: Sequence[State], way: str, steps: int) -> None:
    """Train trials for further steps."""
    if way == "single":
        for trial, state in zip(trials, states, strict=True):
            list(islice(training.train(trial, data, state), steps))
    else:
        list(islice(train_stack(trials, data, states, compiled=way == "compiled"), steps))


def measure_difference(trial: Trial, expected: State, actual: State, data: Tensors) -> float:
    """Return the distance of two networks, relative to how far the first is from where it started."""
    torch.set_default_dtype(data.train_images.dtype)
    try:
        start = flatten(training.start(trial, data))
    finally:
        torch.set_default_dtype(torch.float32)
    return float((flatten(expected) - flatten(actual)).norm() / (flatten(expected) - start).norm())


def flatten(state: State) -> Tensor:
    """Return all parameters of a network in a row, on the CPU in double precision."""
    return torch.cat([value.double().cpu().flatten() for value in training.copy_weights(state).values()])


def check_precision(setting: Setting) -> str:
    """Check that float32 is computed as such: without TF32, which the same measurement would notice."""
    require(not torch.backends.cuda.matmul.allow_tf32, "products of matrices may use TF32")
    require(not torch.backends.cudnn.allow_tf32, "convolutions may use TF32")
    error = measure_error(setting.device)
    require(error < KERNEL_TOLERANCE, f"float32 has a relative error of {error:.1e}")
    if setting.device.type == "cpu" or torch.cuda.get_device_capability() < (8, 0):
        return f"relative error {error:.1e}; there is no TF32 here"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        with_tf32 = measure_error(setting.device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    require(with_tf32 > KERNEL_TOLERANCE, f"TF32 would not be noticed: its relative error is {with_tf32:.1e}")
    return f"relative error {error:.1e}; with TF32 it would be {with_tf32:.1e}"


def measure_error(device: torch.device) -> float:
    """Return the larger relative error of a product of matrices and of a convolution in float32."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 512, 512, generator=generator)
    images, weights = torch.randn(50, 16, 26, 26, generator=generator), torch.randn(8, 16, 5, 5, generator=generator)
    pairs = [
        (left.to(device) @ right.to(device), left.double() @ right.double()),
        (
            functional.conv2d(images.to(device), weights.to(device)),
            functional.conv2d(images.double(), weights.double()),
        ),
    ]
    return max(float((actual.double().cpu() - exact).norm() / exact.norm()) for actual, exact in pairs)


def check_kernels(setting: Setting) -> str:
    """Check the convolutions of stacks, layer by layer and with their gradients, against float64 on the CPU."""
    require_gpu(setting)
    from trainables.accelerated import gpu_convolutions

    if not gpu_convolutions.is_usable():
        raise SkippedError("Triton does not work here, so stacks use cuDNN's grouped convolutions")
    generator = torch.Generator().manual_seed(0)
    worst, layers = 0.0, 0
    for architecture in ("cnn_3", "conv_pool"):  # all others are compared as a whole
        network = build(architecture, (1, 28, 28))
        shape: tuple[int, ...] = (2, 7, 1, 28, 28)  # members, images, …
        for module in network:
            inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
            after = module(inputs.flatten(0, 1).float())
            if isinstance(module, nn.Conv2d):
                layers += 1
                worst = max(worst, measure_layer(module, inputs, setting.device, generator))
            shape = (2, 7, *after.shape[1:])
            if after.ndim < 3:
                break
    require(worst < KERNEL_TOLERANCE, f"the largest relative error is {worst:.1e}")
    return f"{layers} layers, largest relative error {worst:.1e}"


def measure_layer(module: nn.Conv2d, inputs: Tensor, device: torch.device, generator: torch.Generator) -> float:
    """Return the largest relative error of a layer's outputs and gradients, with other weights for each member."""
    from trainables.accelerated import gpu_convolutions

    padding = int(module.padding[0])
    weights = torch.randn(2, *module.weight.shape, generator=generator, dtype=torch.float64)
    bias = torch.randn(2, module.out_channels, generator=generator, dtype=torch.float64)
    exact = [value.requires_grad_() for value in (inputs, weights, bias)]
    single = [value.detach().float().to(device).requires_grad_() for value in exact]
    members = zip(*exact, strict=True)
    expected = torch.stack([functional.conv2d(x, w, b, padding=padding) for x, w, b in members])
    actual = gpu_convolutions.apply_layer(single[0], single[1], single[2], padding)
    gradient = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    wanted = [expected, *torch.autograd.grad(expected, exact, gradient)]
    found = [actual, *torch.autograd.grad(actual, single, gradient.float().to(device))]
    pairs = ((f.detach().double().cpu(), w.detach()) for f, w in zip(found, wanted, strict=True))
    return max(float((f - w).norm() / w.norm()) for f, w in pairs)


def make_equality_check(
    architecture: str, dtype: torch.dtype, way: str, on_the_cpu: dict[tuple[str, torch.dtype], list[State]]
) -> Callable[[Setting], str]:
    """Return a check that one way of training an architecture equals that on the CPU, up to rounding.

    Args:
        architecture: The architecture.
        dtype: The precision.
        way: One of `WAYS`.
        on_the_cpu: What the CPU has trained already, to which the check adds.
    """

    def check(setting: Setting) -> str:
        trials = make_trials(architecture, range(2), OPTIMIZERS[dtype])
        on_cpu = make_tensors(setting.digits, torch.device("cpu"), dtype)
        if (architecture, dtype) not in on_the_cpu:
            on_the_cpu[architecture, dtype] = train(trials, on_cpu, "single")
        expected = on_the_cpu[architecture, dtype]
        actual = train(trials, make_tensors(setting.digits, setting.device, dtype), way)
        worst = 0.0
        for trial, one, other in zip(trials, expected, actual, strict=True):
            require(other.step == STEPS, f"a trial is at step {other.step} of {STEPS}")
            worst = max(worst, measure_difference(trial, one, other, on_cpu))
            wanted, losses = (state.curves[0, :RECORDS].cpu() for state in (one, other))
            require(bool(torch.isfinite(wanted).all()) and float(wanted.min()) > 0, "the CPU recorded no losses")
            require(torch.allclose(wanted, losses, rtol=10 * TOLERANCE[dtype]), f"losses differ: {wanted}, {losses}")
        require(worst < TOLERANCE[dtype], f"weights differ by {worst:.1e} of what training changed")
        return f"weights differ by {worst:.1e} of what training changed"

    return check


def check_memory_share(setting: Setting) -> str:
    """Check that a process can fill its share of the GPU's memory, and no more."""
    require_gpu(setting)
    total = torch.cuda.get_device_properties(0).total_memory
    kept: list[Tensor] = []
    piece = int(0.01 * total)
    try:
        device = choose_device(QUARTER)
        kept.extend(torch.empty(piece, dtype=torch.uint8, device=device) for _ in range(100))
    except torch.OutOfMemoryError as error:
        require(is_out_of_memory(error), "the error is not known as one of memory")
    held = len(kept) * piece / total
    kept.clear()
    choose_device(1)
    allowed = compute_memory_fraction(QUARTER, total)
    require(allowed - 0.02 <= held <= allowed, f"a process with {QUARTER} of the GPU held {held:.2f} of its memory")
    return f"{held:.2f} of the memory held with a share of {QUARTER}, and no more"


def check_out_of_memory(setting: Setting) -> str:
    """Check that training with too small a share ends with an error of memory, and with twice the share until it fits.

    This is what a worker and its driver do.
    """
    require_gpu(setting)
    trials, share, tries = make_trials("cnn_3", range(256), "sgd"), 0.001, 0
    while True:
        tries += 1
        try:
            data = make_tensors(setting.digits, choose_device(share), torch.float32)
            states = train(trials, data, "stacked", 6)
            break
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        require(share < 1, "a whole GPU is too little")
        share = min(1.0, 2 * share)
    data = make_tensors(setting.digits, choose_device(1), torch.float32)
    require(tries > 1, "the smallest share was enough")
    again = train(trials, data, "stacked", 6)
    same = all(torch.equal(flatten(one), flatten(other)) for one, other in zip(states, again, strict=True))
    worst = max(measure_difference(t, one, other, data) for t, one, other in zip(trials, again, states, strict=True))
    require(worst < TOLERANCE[torch.float32], f"with another share weights differ by {worst:.1e}")
    return f"{tries - 1} shares were too small, {share:g} was enough; {describe_equality(same, worst)}"


def describe_equality(same: bool, worst: float) -> str:
    """Return words for two ways that agree to the last bit, or up to rounding."""
    return "equal to the last bit" if same else f"weights differ by {worst:.1e} of what training changed"


def check_processes(setting: Setting) -> str:
    """Check that processes with a quarter of the GPU train at once what one trains, and each fill their quarter."""
    choose_device(setting.device.type == "cuda")  # frees what this process has used
    command = [sys.executable, "-m", "gpucheck.suite", CHILD]
    processes = [
        subprocess.Popen([*command, str(seed)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for seed in range(setting.processes)
    ]
    for process in processes:
        if process.stdout is not None:
            process.stdout.readline()  # it has trained once and waits
    answers = []
    for process in processes:
        if process.stdin is not None:
            process.stdin.write("go\n")
            process.stdin.flush()
    for process in processes:
        output, _ = process.communicate(timeout=120)
        require(process.returncode == 0, "a process failed")
        answers.append(json.loads(output))
    for seed, answer in enumerate(answers):
        trials = make_trials("cnn_3", (seed, seed + 10))
        data = make_tensors(setting.digits, setting.device, torch.float32)
        for state, losses in zip(train(trials, data, "stacked"), answer["losses"], strict=True):
            expected = state.curves[0, :RECORDS].cpu()
            require(torch.allclose(torch.tensor(losses), expected, rtol=ADAM_TOLERANCE), "losses differ")
    held = sum(answer["held"] for answer in answers)
    return f"{len(answers)} have the losses of one process; together they held {held:.2f} of the memory"


def run_child(seed: int) -> None:
    """Train as one of several processes when a line arrives, and print the losses and the share of memory held."""
    setting = make_setting(small=True)
    device = choose_device(QUARTER)
    data = make_tensors(setting.digits, device, torch.float32)
    trials = make_trials("cnn_3", (seed, seed + 10))
    train(trials, data, "stacked", 5)
    print("ready", flush=True)
    sys.stdin.readline()
    states = train(trials, data, "stacked")
    held = 0.0
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.empty_cache()
        size = int(0.9 * compute_memory_fraction(QUARTER, total) * total) - torch.cuda.memory_reserved()
        filling = torch.zeros(size, dtype=torch.uint8, device=device)
        torch.cuda.synchronize()
        held = (filling.numel() + torch.cuda.memory_reserved() - size) / total
    print(json.dumps({"losses": [state.curves[0, :RECORDS].tolist() for state in states], "held": held}))


def make_resume_check(architecture: str) -> Callable[[Setting], str]:
    """Return a check that trials go on from checkpoints in another stack, alone, and on the CPU."""

    def check(setting: Setting) -> str:
        half, trials = HALF, make_trials(architecture, range(4))
        data = make_tensors(setting.digits, setting.device, torch.float32)
        on_cpu = make_tensors(setting.digits, torch.device("cpu"), torch.float32)
        expected = train(trials, data, "stacked")
        with tempfile.TemporaryDirectory() as folder:
            folders = [TrialFolder(Path(folder), trial) for trial in trials]
            for trial_folder, state in zip(folders, train(trials, data, "stacked", half), strict=True):
                trial_folder.path.mkdir(parents=True)
                trial_folder.write_checkpoint(state.step, training.make_state_dict(state, half // STEPS_PER_RECORD))
            alone = train(trials[:1], data, "single", half)[0]
            lone_folder = TrialFolder(Path(folder) / "alone", trials[0])
            lone_folder.path.mkdir(parents=True)
            lone_folder.write_checkpoint(alone.step, training.make_state_dict(alone, half // STEPS_PER_RECORD))
            sizes = [sum(f.stat().st_size for f in one.path.glob("*.checkpoint")) for one in (folders[0], lone_folder)]
            require(sizes[0] < 1.1 * sizes[1], f"a checkpoint from a stack has {sizes[0]} bytes, alone {sizes[1]}")

            def resume(numbers: Sequence[int], data: Tensors, way: str) -> tuple[bool, float]:
                some = [trials[number] for number in numbers]
                states = [training.start(trial, data) for trial in some]
                for number, state in zip(numbers, states, strict=True):
                    saved = folders[number].read_newest_checkpoint()
                    if saved is None:
                        raise CheckFailedError("there is no checkpoint")
                    training.load_state_dict(state, saved)
                go_on(some, data, states, way, STEPS - half)
                pairs = [(trials[n], expected[n], state) for n, state in zip(numbers, states, strict=True)]
                same = all(torch.equal(flatten(one), flatten(other)) for _, one, other in pairs)
                return same, max(measure_difference(*pair, on_cpu) for pair in pairs)

            found = {
                "in the same stack": resume(range(4), data, "stacked"),
                "in a smaller one": resume((1, 3), data, "stacked"),
                "alone": resume((0,), data, "single"),
                "on the CPU": resume((2,), on_cpu, "single"),
            }
        for name, (_, worst) in found.items():
            require(worst < ADAM_TOLERANCE, f"{name}, weights differ by {worst:.1e} of what training changed")
        return "; ".join(f"{name}: {describe_equality(*result)}" for name, result in found.items())

    return check


def list_checks(setting: Setting) -> dict[str, Callable[[Setting], str]]:
    """Return all checks by name."""
    checks: dict[str, Callable[[Setting], str]] = {
        "float32 is not computed in TF32": check_precision,
        "convolutions of stacks equal those of the CPU in float64": check_kernels,
    }
    on_the_cpu: dict[tuple[str, torch.dtype], list[State]] = {}
    for dtype, precision in ((torch.float64, "double"), (torch.float32, "single")):
        for architecture in setting.architectures:
            for way in WAYS if architecture in setting.compiled and precision == "single" else WAYS[:2]:
                name = f"{architecture}, {way}, in {precision} precision equals the CPU"
                checks[name] = make_equality_check(architecture, dtype, way, on_the_cpu)
    checks["a process is bound to its share of the memory"] = check_memory_share
    checks["too little memory is noticed, and more helps"] = check_out_of_memory
    checks["processes with a quarter of the GPU each train at once"] = check_processes
    for architecture in ("mlp_1", "cnn_3"):
        checks[f"{architecture} goes on from checkpoints"] = make_resume_check(architecture)
    return checks
