"""Requests served with noise, under masks, with pooled scores: what leaves a client, what comes of it."""

from pathlib import Path
from typing import Any

import federation as fed
import numpy as np
import pytest
import torch
from flwr.app import Message
from flwr.clientapp import ClientApp
from restarts import die, killed

from fl_unlearn import ForgetRequest, UnlearnSettings
from fl_unlearn.flower import attach, forget, records
from fl_unlearn.flower.own_privacy import SUM
from fl_unlearn.privacy import Privacy, epsilon
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import NotEnoughAnswersError, RequestError

THREE = ForgetRequest(classes=(3,))


class Watch:
    """Keeps the replies of one action; may drop a client's first one."""

    def __init__(self, drop: int | None = None) -> None:
        self.replies: list[tuple[str, int, Message]] = []
        self.drop = drop

    def __call__(self, request: Message, reply: Message) -> Message | None:
        action, node = request.metadata.message_type, request.metadata.dst_node_id
        self.replies.append((action, node, reply))
        if action == "query.unlearn_fisher" and node == self.drop:
            self.drop = None
            return None
        return reply

    def of(self, action: str) -> list[tuple[int, Message]]:
        return [(node, m) for a, node, m in self.replies if a == f"query.{action}"]


def served(folder: Path, privacy: Privacy, watch: Watch | None = None, **settings: Any) -> tuple[Any, Any]:
    strategy, network, _ = fed.trained(folder)
    network.tamper = watch
    settings = {"dampenings": (1.0,), **settings}
    return forget(
        network, THREE, strategy.store, settings=UnlearnSettings(privacy=privacy, **settings)
    ), strategy


def test_masked_sums_decide_as_open_ones_do(tmp_path: Path) -> None:
    plain, _ = served(tmp_path / "plain", Privacy(), merge_rule="mean")
    watch = Watch()
    masked, strategy = served(tmp_path / "masked", Privacy(masked=True), watch, merge_rule="mean")
    assert plain.committed
    assert masked.committed
    # Fixed point and float32 on the wire differ in the last digits only: the same values are chosen.
    assert masked.update.selected == plain.update.selected
    for name, tensor in plain.state.items():
        torch.testing.assert_close(masked.state[name], tensor, rtol=1e-4, atol=1e-6)
    assert [a.passed for a in masked.candidates] == [a.passed for a in plain.candidates]
    assert masked.after[0].accuracy() == plain.after[0].accuracy()
    assert masked.holders == {"all clients together": 30}  # who holds the class is not known any more
    assert not masked.outstanding
    # What the server saw of each client in either phase looks like fair bits.
    for action in (records.FISHER, records.SCORE):
        for _, reply in watch.of(action):
            (array,) = reply.content.array_records[SUM].values()
            assert array.dtype == "int64"
            said = set(reply.content.config_records[records.HEAD])
            assert said <= {"protocol", "client", "names", "num-classes", "seconds"}
    values = np.concatenate(
        [m.content.array_records[SUM]["values"].numpy() for _, m in watch.of(records.FISHER)]
    )
    assert abs(np.unpackbits(values.view(np.uint8)).mean() - 0.5) < 0.02
    assert strategy.store.operations.all()


def test_a_client_that_drops_out_of_a_masked_sum_is_done_without(tmp_path: Path) -> None:
    watch = Watch(drop=104)
    result, _ = served(tmp_path, Privacy(masked=True), watch)
    assert result.committed
    assert result.silent == ("4",)
    keys = [m.content.config_records[records.HEAD]["key"] for _, m in watch.of(records.KEYS)]
    assert len(set(keys)) == len(keys), "a key that is used for two sums would tell their difference"


def test_two_clients_are_too_few_for_a_masked_sum(tmp_path: Path) -> None:
    strategy, network, _ = fed.trained(tmp_path)
    network.away = {102, 103, 104}
    settings = UnlearnSettings(privacy=Privacy(masked=True))
    with pytest.raises(NotEnoughAnswersError, match="2 clients take part in a masked sum, 3 are needed"):
        forget(network, THREE, strategy.store, settings=settings)
    assert not strategy.store.operations.all()


def test_noise_is_in_what_leaves_and_its_epsilon_in_the_result(tmp_path: Path) -> None:
    watch = Watch()
    result, strategy = served(tmp_path, Privacy(noise=0.02, clip=0.5), watch, merge_rule="mean")
    assert result.committed, result.message
    assert result.after[0].accuracy() == 0.0
    assert result.privacy["multipliers"] == [0.02, 0.02]
    assert result.privacy["epsilon"] > 1000  # so little noise hides nothing, and it is said
    sums = {node: m.content.array_records[SUM]["values"].numpy() for node, m in watch.of(records.FISHER)}
    model = fed.build_model().head
    size = 1 + sum(p.numel() for p in model.parameters())
    for partition in range(fed.CLIENTS):
        got = sums[100 + partition]
        assert got.shape == (2 * size,)
        exact = 15 if partition in fed.HOLDERS_OF_3 else 0
        assert got[0] != exact, "the count of the class had no noise"
        assert abs(got[0] - exact) < 6 * 0.02
    again = forget(fed.grid(), ForgetRequest(classes=(1,)), strategy.store, settings=result.settings)
    assert again.privacy["epsilon_so_far"] > again.privacy["epsilon"]


def test_noise_has_the_deviation_that_was_asked_for(tmp_path: Path) -> None:
    watch = Watch()
    with pytest.raises(RequestError, match=r"counts of the classes \[3\] are lost in their noise"):
        served(tmp_path, Privacy(noise=50.0, clip=0.5), watch)
    values = np.concatenate(
        [m.content.array_records[SUM]["values"].numpy() for _, m in watch.of(records.FISHER)]
    )
    assert 0.9 < values.std() / (50.0 * 0.5) < 1.3  # 1,000 values; the ten counts have 50


def test_pooled_scores_tell_no_classes(tmp_path: Path) -> None:
    plain, _ = served(tmp_path / "plain", Privacy())
    watch = Watch()
    pooled, _ = served(tmp_path / "pooled", Privacy(pooled=True), watch)
    for _, reply in watch.of(records.SCORE):
        assert reply.content.config_records[records.HEAD]["labels"] == [-1, 3]
    assert pooled.update.digest == plain.update.digest
    assert pooled.before[1].accuracy() == plain.before[1].accuracy()


def test_score_noise_is_added_and_counted(tmp_path: Path) -> None:
    result, _ = served(tmp_path, Privacy(score_noise=0.001), threshold=2.0, calibration_models=1)
    assert result.committed, result.message
    assert result.privacy["multipliers"] == [0.001, 0.001]  # calibration and verification
    assert "the Fisher answers" in result.privacy["not_covered"]


def insisting() -> ClientApp:
    return attach(
        fed.plain_app(),
        model=fed.build_model,
        data=fed.data,
        device="cpu",
        privacy=Privacy(noise=1.0, clip=0.1),
    )


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (UnlearnSettings(), "noise 0, where at least 1 is wanted"),
        (UnlearnSettings(privacy=Privacy(noise=2.0)), "clip 1, where at most 0.1 is wanted"),
        (UnlearnSettings(erase="auto"), "statistics of hidden layers have neither"),
    ],
)
def test_clients_that_insist_refuse_what_protects_less(
    settings: UnlearnSettings, why: str, tmp_path: Path
) -> None:
    strategy, _, _ = fed.trained(tmp_path)
    with pytest.raises(RequestError, match=why):
        forget(fed.grid(make=insisting), THREE, strategy.store, settings=settings)
    assert not strategy.store.operations.all()


def test_nonsense_in_a_sum_is_not_added(tmp_path: Path) -> None:
    def tamper(request: Message, reply: Message) -> Message:
        if request.metadata.message_type == "query.unlearn_fisher" and request.metadata.dst_node_id == 100:
            array = reply.content.array_records[SUM]["values"]
            values = array.numpy().copy()
            values[3] = np.nan
            reply.content.array_records[SUM]["values"] = type(array)(values)
        return reply

    strategy, network, _ = fed.trained(tmp_path)
    network.tamper = tamper
    settings = UnlearnSettings(privacy=Privacy(noise=0.01), dampenings=(1.0,))
    result = forget(network, THREE, strategy.store, settings=settings)
    assert result.failed == {"0": "the sum has values that are not finite numbers"}


def test_what_a_request_that_failed_let_out_counts(tmp_path: Path) -> None:
    strategy, network, _ = fed.trained(tmp_path)
    lost = UnlearnSettings(privacy=Privacy(noise=50.0, clip=0.5), dampenings=(1.0,))
    with pytest.raises(RequestError, match="lost in their noise"):
        forget(network, THREE, strategy.store, settings=lost)
    quiet = UnlearnSettings(privacy=Privacy(noise=0.5, clip=0.5), dampenings=(1.0,), min_answers=1.0)
    network.tamper = Watch(drop=104)
    with pytest.raises(NotEnoughAnswersError):  # the other four have answered all the same
        forget(network, THREE, strategy.store, settings=quiet)
    settings = UnlearnSettings(privacy=Privacy(noise=0.02, clip=0.5), dampenings=(1.0,), merge_rule="mean")
    result = forget(network, THREE, strategy.store, settings=settings)
    assert result.privacy["multipliers"] == [0.02, 0.02]
    everything = (50.0, 50.0, 0.5, 0.5, 0.02, 0.02)
    assert result.privacy["epsilon_so_far"] == epsilon(everything, settings.privacy.delta)


def test_what_was_asked_for_before_a_request_begins_anew_counts(tmp_path: Path) -> None:
    def work() -> None:
        strategy, network, _ = fed.trained(tmp_path)
        network.tamper = lambda request, reply: die() if request.metadata.dst_node_id == 102 else reply
        forget(network, THREE, strategy.store, settings=settings)

    settings = UnlearnSettings(privacy=Privacy(noise=0.02, clip=0.5), dampenings=(1.0,), merge_rule="mean")
    assert killed(work)
    with RunStore(tmp_path) as store:
        result = forget(fed.grid(), THREE, store, settings=settings)
    assert result.privacy["multipliers"] == [0.02] * 4
