"""One update for a whole graph: what it is made of, what is chosen, what it leaves alone."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fl_unlearn import ForgetRequest, UnlearnSettings
from fl_unlearn.audit_verify import verify_audit
from fl_unlearn.calibration import Candidate
from fl_unlearn.graph_unlearning import LocalOwners, choose_for, find, leaves, nearest, spread
from fl_unlearn.merge import FisherPart, merge
from fl_unlearn.model_graph import ModelGraph
from fl_unlearn.types import REST, RequestError, SettingsError
from fl_unlearn.verify import score_state
from tests.references import reference_fisher
