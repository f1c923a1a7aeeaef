"""One thread for every test: two threads on a shared machine are slower, and sums come out in another order."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
