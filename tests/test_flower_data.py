"""Requests for whole clients and for single samples, through the plug-in."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import federation as fed
import federation_data as fd
import pytest
import torch
from federation_checks import unchanged
from federation_data import FORCED, Apps
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from restarts import after_phase, killed
from torch.utils.data import DataLoader, SubsetRandomSampler, WeightedRandomSampler

from fl_unlearn.evidence import lineage
from fl_unlearn.fisher.ledger import FisherLedger
from fl_unlearn.flower import UnlearningStrategy, data_scores, forget, legacy, records
from fl_unlearn.flower.forgotten import SAMPLES as TOLD
from fl_unlearn.flower.reporting import build_report
from fl_unlearn.flower.targets import LEFT_OUT, NAMED, Share
from fl_unlearn.report import write_report
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import (
    AnswerError,
    ForgetRequest,
    NotEnoughAnswersError,
    RequestError,
    SettingsError,
    UnlearnSettings,
)

ONE = ForgetRequest(clients=("1",))
ROWS = (0, 1, 30, 31, 50)
SAMPLES = ForgetRequest(samples={"1": ROWS})


def trained(folder: Path, make: Callable[[], ClientApp] | None = None, **kwargs: Any) -> tuple[Any, Any, Any]:
    random.seed(0)
    kwargs = {"settings": FORCED, **kwargs}
    strategy = UnlearningStrategy(fed.fedavg(), store=folder, deterministic=True, **kwargs)
    network = fd.grid(make)
    result = strategy.start(network, ArrayRecord(fed.build_model().state_dict()), num_rounds=2)
    return strategy, network, result


def served(
    folder: Path, request: ForgetRequest, make: Callable[[], ClientApp] | None = None, tamper: Any = None
) -> Any:
    """The request, served on the store in ``folder``, which is trained first."""
    if not folder.exists():
        trained(folder)[0].store.close()
    with RunStore(folder) as store:
        return forget(fd.grid(make, tamper), request, store, settings=FORCED)


# --------------------------------------------------------------------------- who is told what
@pytest.mark.parametrize("request_", [ONE, SAMPLES, ForgetRequest(samples={"1": ("patient-1-0",)})])
def test_only_the_client_itself_learns_what_of_its_data_is_to_be_forgotten(
    request_: ForgetRequest, tmp_path: Path
) -> None:
    asked: dict[tuple[str, int], list[str]] = {}

    def tamper(message: Message, reply: Message) -> Message:
        head = message.content.config_records[records.HEAD]
        text = json.dumps({k: v for k, v in head.items() if not isinstance(v, bytes)})
        asked.setdefault((message.metadata.message_type, message.metadata.dst_node_id), []).append(text)
        return reply

    result = served(tmp_path / "run", request_, tamper=tamper)
    assert result.committed, result.message
    assert list(result.holders) == ["1"]
    assert result.roots == ("r0001-client-1",)
    secret = ["patient-1", '\\"all\\"', "30, 31"]
    told = {node for (_, node), texts in asked.items() if any(s in t for s in secret for t in texts)}
    assert told == {101}
    fisher = f"query.{records.FISHER}"
    assert {n for k, n in asked if k == fisher} == {100 + i for i in range(fed.CLIENTS)}
    assert all(json.loads(asked[fisher, n][0])[NAMED] == "{}" for n in (100, 102, 103, 104))


def test_a_node_that_says_not_who_it_is_is_asked_nothing_about_the_request(tmp_path: Path) -> None:
    trained(tmp_path / "run")[0].store.close()

    def tamper(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id == 104 and message.metadata.message_type.endswith(records.IDENTITY):
            return records.failure(message, "4", "no")
        return reply

    network = fd.grid(tamper=tamper)
    with RunStore(tmp_path / "run") as store:
        result = forget(network, ONE, store, settings=FORCED)
    assert result.committed
    # Its name is remembered from the training, and still it is not asked.
    assert "did not say which client it is" in result.failed["4"]
    assert {kind for kind, node in network.log if node == 104} == {
        f"query.{a}" for a in (records.IDENTITY, records.APPLY)
    }


def test_a_client_that_was_not_named_cannot_add_to_the_forget_set(tmp_path: Path) -> None:
    plain = served(tmp_path / "plain", ONE)

    def tamper(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id == 103 and message.metadata.message_type.endswith(records.SCORE):
            head = reply.content[records.HEAD]
            head["total"], head["labels"] = [900], [0]
            head["correct"], head["loss"] = [900, 0] * (len(head["loss"]) or 2), [0.0, 0.0]
        return reply

    lied = served(tmp_path / "lied", ONE, tamper=tamper)
    assert sum(lied.before[0].total.values()) == sum(plain.before[0].total.values()) == 60
    assert lied.candidates[0].forget_accuracy == plain.candidates[0].forget_accuracy


# --------------------------------------------------------------------------- which samples
def test_keys_and_positions_name_the_same_samples(tmp_path: Path) -> None:
    by_row = served(tmp_path / "rows", ForgetRequest(samples={"1": (0, 1, 30, 31)}))
    keys = ForgetRequest(samples={"1": ("patient-1-0", "patient-1-15")})
    by_key = served(tmp_path / "keys", keys)
    assert by_row.holders == by_key.holders == {"1": 4}
    assert by_row.update.digest == by_key.update.digest
    assert sum(by_key.before[0].total.values()) == 4
    mapped = Apps(sample_keys=lambda c: {"a": 0, "b": 1, "c": 30, "d": 31})
    by_map = served(tmp_path / "map", ForgetRequest(samples={"1": tuple("abcd")}), mapped)
    assert by_map.update.digest == by_row.update.digest


@pytest.mark.parametrize(
    "loader",
    [
        lambda c: DataLoader(fd.training_set(c), batch_size=16, shuffle=True),
        lambda c: DataLoader(fd.training_set(c), batch_size=16, shuffle=True, drop_last=True),
        lambda c: iter(DataLoader(fd.training_set(c), batch_size=16)),
    ],
    ids=["shuffled", "a last batch dropped", "once only"],
)
def test_a_loader_is_gone_through_in_the_order_of_its_data_set(loader: Any, tmp_path: Path) -> None:
    plain = served(tmp_path / "plain", SAMPLES)
    other = served(tmp_path / "other", SAMPLES, Apps(lambda c: (loader(c), fd.held_out(c))))
    assert other.update.digest == plain.update.digest


def bare(context: Context) -> Any:
    return fd.data(context)[0]


def drawn(sampler: Callable[[Any], Any]) -> Callable[[Context], Any]:
    def data(context: Context) -> Any:
        samples = fd.training_set(context)
        return DataLoader(samples, batch_size=16, sampler=sampler(samples)), fd.held_out(context)

    return data


@pytest.mark.parametrize(
    ("request_", "make", "error", "said"),
    [
        (
            ForgetRequest(samples={"1": ("patient-1-0", "nobody", "no one")}),
            Apps(sample_keys=fd.keys_of),
            RequestError,
            "client '1' says: 2 of 3 keys that the request names are of no training sample of this client, "
            "the first of them 'no one'$",
        ),
        (
            ForgetRequest(samples={"1": ("a",)}),
            Apps(),
            RequestError,
            "nothing to look keys up in; give `sample_keys`",
        ),
        (
            ForgetRequest(samples={"1": ("a",)}),
            Apps(sample_keys=lambda c: ["a", "b"]),
            RequestError,
            "`sample_keys` gives 2 keys, and there are 60 training samples",
        ),
        (
            ForgetRequest(samples={"1": ("a",)}),
            Apps(sample_keys=lambda c: {"a": -1}),
            RequestError,
            "gives a position below 0",
        ),
        (
            ForgetRequest(samples={"1": (59, 60)}),
            Apps(),
            RequestError,
            "there are 60 training samples, 0 to 59, and sample 60 is named",
        ),
        (
            SAMPLES,
            Apps(drawn(lambda s: SubsetRandomSampler(range(40)))),
            RequestError,
            "draws them in an order of its own",
        ),
        (
            SAMPLES,
            Apps(drawn(lambda s: WeightedRandomSampler([1.0] * len(s), len(s)))),
            RequestError,
            "draws them in an order of its own",
        ),
        (ForgetRequest(clients=("1", "7")), Apps(), RequestError, r"unknown clients \['7'\]; known: 0, 1, 2"),
        (
            ForgetRequest(clients=tuple("01234")),
            Apps(),
            RequestError,
            "nothing would be retained",
        ),
    ],
)
def test_what_cannot_be_served_is_said_and_changes_nothing(
    request_: ForgetRequest, make: Apps, error: type[Exception], said: str, tmp_path: Path
) -> None:
    strategy, network, result = trained(tmp_path, make)
    with unchanged(strategy, result.arrays, error, said):
        strategy.forget(network, request_, result.arrays)
    assert not any(kind.endswith(records.SCORE) for kind, _ in network.log)


def test_a_named_client_that_is_away_is_waited_for_by_nobody(tmp_path: Path) -> None:
    strategy, network, result = trained(tmp_path)
    network.away = {101}
    with unchanged(strategy, result.arrays, NotEnoughAnswersError, r"named clients \['1'\] did not answer"):
        strategy.forget(network, ONE, result.arrays)
    assert not any(kind.endswith(records.FISHER) for kind, _ in network.log)


@pytest.mark.parametrize("phase", [records.FISHER, records.SCORE])
def test_without_the_named_clients_own_answer_nothing_is_decided(phase: str, tmp_path: Path) -> None:
    strategy, network, result = trained(tmp_path)

    def tamper(message: Message, reply: Message) -> Message | None:
        own = message.metadata.dst_node_id == 101 and message.metadata.message_type.endswith(phase)
        return None if own else reply

    network.tamper = tamper
    with unchanged(strategy, result.arrays, NotEnoughAnswersError, "client '1', whose data is to be forg"):
        strategy.forget(network, ONE, result.arrays)


def test_without_held_out_samples_it_is_refused_in_words(tmp_path: Path) -> None:
    strategy, network, result = trained(tmp_path, Apps(bare))
    outcome = strategy.forget(network, ONE, result.arrays)
    assert not outcome.committed
    assert outcome.message.startswith("refused: a client's data and single samples can only be judged")
    assert "let `data` return (training, held-out)" in outcome.message


def test_bounds_that_are_about_classes_say_nothing_of_a_clients_data(tmp_path: Path) -> None:
    strategy, network, _ = trained(tmp_path)
    settings = replace(FORCED, fisher_scope=" head")  # "head" itself is the default: "all" takes its place
    result = forget(network, ONE, strategy.store, settings=settings)
    assert result.committed
    assert result.failed == {}


def test_only_classes_can_be_erased(tmp_path: Path) -> None:
    strategy, network, _ = trained(tmp_path, settings=UnlearnSettings.preset("deep"))
    for ask in (lambda: strategy.submit(ONE), lambda: strategy.forget(network, SAMPLES)):
        with pytest.raises(SettingsError, match="only classes can be erased in hidden layers"):
            ask()
    assert strategy.store.runs.requests.interrupted() == []


def test_what_is_too_like_the_rest_is_refused_with_the_settings_for_data(tmp_path: Path) -> None:
    strategy, network, result = trained(tmp_path, settings=UnlearnSettings(candidates=(1e5,)))
    outcome = strategy.forget(network, ONE, result.arrays)
    assert not outcome.committed
    assert "on held-out samples of like labels" in outcome.message
    assert (outcome.settings.fisher_scope, outcome.settings.merge_rule) == ("all", "mean")
    assert (outcome.settings.candidates, outcome.settings.max_retain_drop) == ((1e5,), 0.01)


# --------------------------------------------------------------------------- afterwards
def test_what_was_done_is_told_as_it_is(tmp_path: Path) -> None:
    result = served(tmp_path / "run", SAMPLES)
    assert result.committed
    assert "(forced: this candidate did not pass calibration)" in result.message
    assert "on held-out samples of like labels, which nobody trained on)" in result.message
    assert result.message.endswith("earlier models were not scored")
    assert sum(result.after[0].total.values()) == len(ROWS)
    assert result.after[0].accuracy() == pytest.approx(result.candidates[0].forget_accuracy)
    with RunStore(tmp_path / "run") as store:
        (operation,) = store.operations.all()
        assert operation.request["samples"] == {"1": list(ROWS)}
        assert operation.request["settings"]["fisher_scope"] == "all"
        assert lineage(SAMPLES, store, [], [], all_affected=True)[0] == ("r0001-client-1",)
        names = [n.name for n in store.umig.nodes() if n.name.endswith("global")]
        report = build_report(result, store, before={}, after={names[-1]: result.after[1]})
        write_report(report, tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    assert "# Request to forget 5 samples of client 1\n" in page
    assert "forgotten classes" not in page
    assert "Such data is not to become unknown" in page


def test_what_the_verification_contradicts_is_said(tmp_path: Path) -> None:
    def lie(question: Message, reply: Message) -> Message:
        if question.metadata.message_type != "query.unlearn_score" or question.metadata.dst_node_id != 102:
            return reply
        if not records.list_of(question.content.config_records[records.HEAD], "thresholds"):
            held = reply.content.config_records[data_scores.HELD_OUT]
            held["correct"] = [0] * len(records.list_of(held, "correct"))
        return reply

    assert served(tmp_path / "honest", ONE).contradictions == ()
    result = served(tmp_path / "lied to", ONE, tamper=lie)
    assert result.committed
    assert any(
        text.startswith("client 2 said") and "on its held-out data before, and now 0.0%" in text
        for text in result.contradictions
    )
    assert "The verification contradicts" in result.message


def test_clients_leave_out_what_was_forgotten_when_training_goes_on(tmp_path: Path) -> None:
    make = Apps(sample_keys=fd.keys_of)
    strategy, network, result = trained(tmp_path, make)
    assert make.trained["1"] == [60, 60]
    seen = dict[int, Any]()

    def tamper(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train":
            (seen[message.metadata.dst_node_id],) = message.content.config_records.values()
        return reply

    network.tamper = tamper
    for request in (
        ForgetRequest((3,), ("2",)),
        SAMPLES,
        ForgetRequest(samples={"1": ("patient-1-3",)}),
        ForgetRequest(clients=("4",)),
    ):
        assert strategy.forget(network, request, result.arrays).committed
    strategy.start(network, result.arrays, num_rounds=1)
    assert {c: n[-1] for c, n in make.trained.items()} == {"0": 45, "1": 53, "2": 60, "3": 45, "4": 0}
    assert [len(seen[n].get(TOLD, [])) for n in sorted(seen)] == [0, 2, 0, 0, 1]
    assert all(seen[n][records.FORGOTTEN] == ['{"classes": [3], "clients": ["2"]}'] for n in seen)


def test_a_legacy_client_reads_what_it_is_to_leave_out() -> None:
    told = json.dumps([Share(positions=(3,)).to_text(), Share(keys=("a",)).to_text()])
    assert legacy.forgotten_samples({TOLD: told}) == Share(positions=(3,), keys=("a",))
    assert not legacy.forgotten_samples({})
    for bad in ("{", "3", '["x"]'):
        with pytest.raises(AnswerError, match="what the server says to leave out cannot be read"):
            legacy.forgotten_samples({TOLD: bad})


def test_later_requests_see_nothing_of_what_was_forgotten(tmp_path: Path) -> None:
    strategy, network, result = trained(tmp_path)
    for request in (ONE, ForgetRequest(samples={"2": (45, 46, 47)}), ForgetRequest((0,))):
        assert strategy.forget(network, request, result.arrays).committed
    told = dict[str, Any]()

    def tamper(message: Message, reply: Message) -> Message:
        kind, node = message.metadata.message_type, message.metadata.dst_node_id
        if kind.endswith(records.FISHER):
            head = reply.content[records.HEAD]
            told[head["client"]] = dict(zip(head["labels"], head["counts"], strict=True))
            assert (LEFT_OUT in message.content[records.HEAD]) == (node in (101, 102))
        return reply

    network.tamper = tamper
    three = strategy.forget(network, ForgetRequest((3,)), result.arrays)
    assert three.holders == {"2": 12}
    # Of client 1 nothing is left; of everybody, class 0 is not retained.
    assert told["1"] == {-1: 0, 3: 0}
    assert told["2"] == {-1: 30, 3: 12}
    assert told["0"] == {-1: 30, 3: 0}
    again = strategy.forget(network, ONE, result.arrays)
    assert again.holders == {"1": 30}, "named once more, it is asked for once more; classes 0 and 3 are gone"
    assert told["2"] == {-1: 30}


def test_ledgers_answer_for_what_is_kept_only(tmp_path: Path) -> None:
    plain = served(tmp_path / "plain", SAMPLES)
    loads: list[str] = []

    def data(context: Context) -> Any:
        loads.append(fd.name_of(context))
        return fd.data(context)

    def ledger(context: Context) -> FisherLedger:
        return FisherLedger(tmp_path / "ledgers" / fd.name_of(context), "same")

    make = Apps(data, ledger=ledger)
    trained(tmp_path / "run")[0].store.close()
    with RunStore(tmp_path / "run") as store:
        state = store.latest()[1].state
    for name in ("1", "2"):  # filled by an evaluation, say
        model = fed.build_model()
        model.load_state_dict(state)
        own = FisherLedger(tmp_path / "ledgers" / name, "same")
        with own.collect(model.eval(), scopes=("all",)) as forward:
            for x, y in fed.loader(int(name)):
                forward(x, y)
    result = served(tmp_path / "run", SAMPLES, make)
    assert result.holders == {"1": len(ROWS)}
    assert loads.count("1") == loads.count("0") == loads.count("2") + 1
    assert result.candidates[0].forget_accuracy == plain.candidates[0].forget_accuracy
    for name, tensor in plain.state.items():
        torch.testing.assert_close(result.state[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("phase", ["fisher", "calibrated", "told"])
def test_a_request_whose_server_died_goes_on(
    phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = served(tmp_path / "whole", SAMPLES)
    trained(tmp_path / "run")[0].store.close()
    with monkeypatch.context() as m:
        after_phase(phase)(m)
        assert killed(lambda: served(tmp_path / "run", SAMPLES))
    network = fd.grid()
    with RunStore(tmp_path / "run") as store:
        result = forget(network, SAMPLES, store, settings=FORCED)
    assert not any(kind.endswith(records.FISHER) for kind, _ in network.log)
    assert result.update.digest == whole.update.digest
    assert (result.message, result.like_labels) == (whole.message, whole.like_labels)
    assert (result.before, result.after) == (whole.before, whole.after)
    assert result.outstanding == ()


def test_a_client_without_the_plug_in_of_this_version_is_not_believed(tmp_path: Path) -> None:
    """It would answer as if nothing of it were named."""
    strategy, network, result = trained(tmp_path)

    def tamper(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id != 101 or not message.metadata.message_type.endswith(records.FISHER):
            return reply
        head = {k: v for k, v in message.content[records.HEAD].items() if k != NAMED}
        content = RecordDict({**message.content, records.HEAD: records.head(**head)})
        old = Message(content, 101, message.metadata.message_type)
        old.metadata.__dict__["_message_id"] = message.metadata.message_id
        return network.apps[101](old, network.contexts[101])

    network.tamper = tamper
    said = r"client '1', whose data is to be forgotten, .* asked for the groups \[-1, 0\], got \[-1\]"
    with unchanged(strategy, result.arrays, NotEnoughAnswersError, said):
        strategy.forget(network, SAMPLES, result.arrays)


def test_measures_are_of_the_named_samples(tmp_path: Path) -> None:
    settings = UnlearnSettings(threshold=1.5, force=True, measures=("accuracy", "membership-auc"))
    strategy, network, result = trained(tmp_path, settings=settings)
    outcome = strategy.forget(network, SAMPLES, result.arrays)
    assert outcome.committed
    assert outcome.measured["forget-accuracy"]["after"].samples == len(ROWS)
