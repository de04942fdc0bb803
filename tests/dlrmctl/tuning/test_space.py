"""Search spaces: TOML with the sections of run.toml, checked against the settings."""

import random
import tomllib

import pytest

from dlrmctl.errors import UserError
from dlrmctl.settings.config import Config
from dlrmctl.tuning.space import DEFAULT_SPACE, Parameter, SearchSpace, Value, default_space

CONFIG = Config.of(dataset="synthetic", qr_threshold=100).fitted(64_000, 1)


def space_of(text: str) -> SearchSpace:
    return SearchSpace.of(tomllib.loads(text), "space.toml")


def pick(parameter: Parameter) -> Value:
    if parameter.choices:
        return random.choice(parameter.choices)
    assert parameter.low is not None
    assert parameter.high is not None
    if parameter.whole:
        return random.randint(int(parameter.low), int(parameter.high))
    return random.uniform(parameter.low, parameter.high)


def test_the_default_space_contains_the_default_settings():
    space = default_space(CONFIG, 1000, ())
    values = space.defaults(CONFIG)
    assert values.keys() == {parameter.name for parameter in space.parameters}
    assert space.applied(CONFIG, values).to_dict() == CONFIG.to_dict()


def test_every_choice_of_the_default_space_is_a_model():
    random.seed(0)
    space = space_of(DEFAULT_SPACE)
    kinds = set()
    for _ in range(100):
        values = space.choose(CONFIG, pick)
        config = space.applied(CONFIG, values)
        assert config.model.bottom_mlp[-1] == config.embeddings.dim == values["dim"]
        assert ("collisions" in values) == ("qr_lr" in values) == (values["embedding"] == "qr")
        kinds.add(config.embeddings.embedding)
    assert kinds == {"full", "qr"}


def test_what_is_fixed_or_without_effect_is_not_searched():
    small = {parameter.name for parameter in default_space(CONFIG, 99, {"dim"}).parameters}
    assert not small & {"dim", "embedding", "collisions", "qr_lr"}
    adagrad = CONFIG.change(averaging="none")
    assert "averaging_horizon" not in default_space(adagrad, 1000, ()).choose(adagrad, pick)


def test_the_last_width_of_the_bottom_mlp_follows_the_dimension():
    space = space_of("[embeddings]\ndim = [8, 32]")
    assert space.applied(CONFIG, {"dim": 32}).model.bottom_mlp == (512, 256, 64, 32)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "no setting to try", "--show-space"),
        ("[optimiser]\ndense_lr = [1, 2]", "[optimiser] is not a section", "[optim]"),
        ("[train]\ndense_lr = [1, 2]", "in the wrong section", "[optim]"),
        ("[optim]\ndense_lrr = [1, 2]", "optim.dense_lrr is not a setting", "dense_lr"),
        ("[embeddings]\ntables = [1, 2]", "embeddings.tables is not a setting", ""),
        ("[train]\nseed = [1, 2]", "train.seed cannot be searched", "option"),
        ("[data]\nsynthetic_rows = [1000, 2000]", "cannot be searched", "option"),
        ("[optim]\ndense_lr = 0.1", "must be a list of values, or a range", "low"),
        ("[optim]\ndense_lr = [0.1]", "at least two values", ""),
        ("[optim]\ndense_lr = [0.1, 0.1]", "twice", ""),
        ("[optim]\ndense_lr = [0.1, -1]", "must be at least 0", ""),
        ("[optim]\ndense_lr = { low = 0.1 }", "dense_lr.high is missing", ""),
        ("[optim]\ndense_lr = { low = 1, high = 0.1 }", "must be below", ""),
        ("[optim]\ndense_lr = { low = 0, high = 1, log = true }", "must be above 0", ""),
        ("[optim]\ndense_lr = { low = 0.1, hihg = 1 }", "dense_lr.hihg", "'high'"),
        ("[optim]\naveraging = { low = 1, high = 2 }", "only numbers have ranges", ""),
        ("[embeddings]\nembedding = ['full', 'qrr']", "'qrr' must be one of", "'qr'"),
        ("[optim]\nqr_lr = { low = 0.1, high = 1, when = { embeding = 'qr' } }", "embeding", "embedding"),
        ("[model]\nbottom_mlp = ['64-16', '32-16']\n[embeddings]\ndim = [8, 16]", "must end in dim", "64-dim"),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, message: str, hint: str):
    with pytest.raises(UserError) as error:
        space_of(text)
    assert message in error.value.message
    assert hint in (error.value.hint or "")
