"""One thread: the tensors here are small, and threads that wait for each other on shared cores cost several times the work."""

import torch

torch.set_num_threads(1)
