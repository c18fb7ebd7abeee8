"""The list of planted bugs: each one line (or two) of a core, and which oracle is to find it."""

from forage_sim.planted.agent import AGENT_MUTANTS
from forage_sim.planted.client import CLIENT_MUTANTS
from forage_sim.planted.controller import CONTROLLER_MUTANTS
from forage_sim.planted.mutant import Mutant
from forage_sim.planted.pair import PAIR_MUTANTS
from forage_sim.planted.wire import WIRE_MUTANTS

__all__ = ["MUTANTS", "Mutant"]

MUTANTS = PAIR_MUTANTS + CONTROLLER_MUTANTS + AGENT_MUTANTS + CLIENT_MUTANTS + WIRE_MUTANTS
