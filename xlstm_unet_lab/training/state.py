"""What a run changes as it goes, and how all of it becomes tensors on disk and comes back."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from xlstm_unet_lab.ops.checks import number, whole_number
from xlstm_unet_lab.training.config import TrainConfig
from xlstm_unet_lab.training.machine import memory_format


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0  # optimiser steps done
    seconds: float = 0.0  # spent on them
    best: float | None = None  # the highest mean Dice of a validation so far

    def __post_init__(self) -> None:  # out of a file
        self.step = whole_number("step", self.step, at_least=0)
        self.seconds = number("seconds", self.seconds, at_least=0)
        self.best = None if self.best is None else number("best", self.best, at_least=0, at_most=1)


@dataclass
class TrainingState:
    """The network, its optimiser, the running mean of its weights, and the random numbers still to come."""

    fabric: Any  # Lightning's Fabric, which says of no result more than that it is a tensor or a collection
    model: nn.Module  # the caller's, on its device
    network: nn.Module  # the same one, wrapped for mixed precision and several processes
    optimizer: Any  # AdamW as Fabric wraps it, in a class that is private
    average: AveragedModel | None

    @classmethod
    def create(cls, fabric, model: nn.Module, config: TrainConfig) -> "TrainingState":
        """Lay out the weights, make AdamW for them, and hand both to Fabric."""
        for parameter in model.parameters():
            if parameter.ndim == len(config.patch_size) + 2:  # the weights of convolutions
                parameter.data = parameter.data.contiguous(memory_format=memory_format(config))
        vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
        matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
        network, optimizer = fabric.setup(torch.compile(model) if config.compile else model, optimizer)
        decay = config.ema_decay
        average = None if decay is None else AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        return cls(fabric, model, network, optimizer, average)

    @property
    def result(self) -> nn.Module:
        """The network to validate and keep: the running mean where there is one."""
        return self.model if self.average is None else self.average.module

    def release(self) -> None:
        """Leave the caller's model with the weights to keep, and without gradients."""
        if self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
        self.model.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """All that going on needs beside `result`'s weights; every process must call this."""
        moments = self.optimizer.optimizer.state_dict()["state"]
        named = {f"optimizer.{index}.{key}": value for index, state in moments.items() for key, value in state.items()}
        if self.average is not None:
            named |= {f"weights.{name}": value for name, value in self.model.state_dict().items()}
        generators = {"cpu": torch.get_rng_state()}
        if self.fabric.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        for name, state in generators.items():  # dropout differs between processes, so each has a row
            rows = state.new_zeros(self.fabric.world_size, len(state), device=self.fabric.device)
            rows[self.fabric.global_rank] = state.to(rows.device)
            named[f"random.{name}"] = self.fabric.all_reduce(rows, reduce_op="sum")
        return named

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave, once `result` has its weights; ValueError for another network's tensors."""
        if self.average is not None:
            weights = {name.removeprefix("weights."): x for name, x in tensors.items() if name.startswith("weights.")}
            self.model.load_state_dict(weights)
            self.average.n_averaged.fill_(1)  # more than none: the next step averages
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                moments.setdefault(int(index), {})[key] = value
        optimizer = self.optimizer.optimizer
        parameters = dict(enumerate(x for group in optimizer.param_groups for x in group["params"]))
        for place, state in moments.items():  # those without a gradient have none
            shape = getattr(parameters.get(place), "shape", None)
            fits = {key: x.shape for key, x in state.items()} == {"step": (), "exp_avg": shape, "exp_avg_sq": shape}
            finite = all(x.is_floating_point() and x.isfinite().all() for x in state.values())
            if not (fits and finite and state["step"] >= 0):
                raise ValueError(f"the optimiser's numbers for parameter {place} are spoilt, or another network's")
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        # Copies: PyTorch reads a state from the start of its storage, which holds all rows.
        torch.set_rng_state(tensors["random.cpu"][self.fabric.global_rank].clone())
        if "random.cuda" in tensors and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"][self.fabric.global_rank].clone(), self.fabric.device)
