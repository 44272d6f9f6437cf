"""What one output of a network sees of its input, derived from the network's graph.

The network is recorded at two image sizes. Going forwards, each operation's rule says where rows and columns lie in
its result and from which rows of its operands they come; a number that grows with the image is told from one that
does not by the two sizes. Going backwards, the demand of every output row is followed to the image, on a map large
enough to have an inside, borders included.

A read gives the same result as the whole image where it holds (1) the rows that an output is computed from and
(2) enough rows for everything in between to exist: a row that a layer would find cut off at the read's edge, and
replace by padding, is as wrong as a missing one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import torch
from torch import nn

from pipeline.network import arranging, mixing, sliding  # noqa: F401  (they fill the table of operations)
from pipeline.network.graph import CaptureError, Graph, Node, capture
from pipeline.network.layouts import (
    AXES,
    Factor,
    NotLocal,
    Rows,
    Sizes,
    Tracked,
    Unknown,
    axes_of,
    plain,
)
from pipeline.network.operations import Call, Lost, rule_of
from pipeline.network.relations import Demand, demanded, unite
from pipeline.tiling.geometry import ReceptiveField
