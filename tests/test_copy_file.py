"""One copy's file: what an update changes in it beside plain PyTorch, and what is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest
import safetensors.torch
import torch
from federation_erase import erasing_update
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_unlearn.copy_file import CopyError, ForeignCopyError, change_file, check_file, fit
from fl_unlearn.dampen import DampeningUpdate, Entry, apply_update
from fl_unlearn.types import TensorSpec, signature_of
