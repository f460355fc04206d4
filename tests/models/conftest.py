"""Models of the tests are small: a second thread costs more than it brings, far more on a busy machine."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
