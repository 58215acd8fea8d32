"""Cost of a training before it starts: memory, exchanged bytes and time for a number of ranks."""

from saefast.train.planning.machines import MACHINES, Machine, measured_machine
from saefast.train.planning.plan import StepSeconds, TrainPlan, plan_training

__all__ = ["MACHINES", "Machine", "StepSeconds", "TrainPlan", "measured_machine", "plan_training"]
