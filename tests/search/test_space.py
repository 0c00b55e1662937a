"""Spaces: what they may name, what they refuse, and what a strategy can vary of them."""

import pytest

from metakm.errors import UserError
from metakm.presets import preset_config
from metakm.search.space import (
    Choices,
    Range,
    active,
    check_space,
    named_spaces,
    read_space,
    split_for,
    with_values,
)


def space_file(tmp_path, text):
    path = tmp_path / "space.toml"
    path.write_text(text)
    return str(path)


def test_ranges_and_choices_are_read_with_what_others_need_first(tmp_path):
    text = (
        "inner_lr_per_step = [true, false]\nlearn_inner_lr = [true]\ngrad_clip = [0, 10.0]\nqueries = {low=1, high=5}\n"
    )
    space = read_space(space_file(tmp_path, text + "meta_lr = {low = 1e-3, high = 1e-2, log = true}\n"))
    assert space == {
        "learn_inner_lr": Choices((True,)),
        "grad_clip": Choices((0.0, 10.0)),
        "queries": Range(1, 5),
        "meta_lr": Range(1e-3, 1e-2, log=True),
        "inner_lr_per_step": Choices((True, False)),
    }
    assert [*space].index("learn_inner_lr") < [*space].index("inner_lr_per_step")


@pytest.mark.parametrize("name", named_spaces())
def test_the_spaces_of_metakm_fit_the_settings_they_are_named_for(name):
    dataset = "omniglot" if name.endswith("characters") else "mini-imagenet"
    for preset in ("quick", "paper"):
        for algo in ("km", "maml", "anil"):
            config = preset_config(preset, algo, dataset)
            space = read_space(name)
            check_space(space, config)
            assert split_for(algo, space, frozenset()) == (space, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("meta_lrr = [1e-3]", "did you mean 'meta_lr'?"),
        ("seed = [0, 1]", "got seed, which must be the same for all trials"),
        ('out = ["a"]', "got out, which"),
        ("iterations = [5, 10]", "got iterations, which"),
        ("test_inner_steps = [5, 10]", "got test_inner_steps, which"),
        ("meta_lr = 3", "to be {low=, high=, log=} or [choices], got 3"),
        ("meta_lr = []", "[choices], got []"),
        ("meta_lr = {low = 1, top = 2}", "{low=, high=, log=}"),
        ("meta_lr = {low = 2.0, high = 1.0}", "low < high"),
        ("meta_lr = {low = 0.0, high = 1.0, log = true}", "low > 0"),
        ("queries = {low = 0.5, high = 2}", "whole numbers"),
        ("zero_head = {low = 0, high = 1}", "choices, not a range"),
        ("queries = [5, 5]", "different choices"),
        ("queries = [5", "to be TOML"),
        ("", "at least one field"),
    ],
)
def test_what_is_no_space_is_refused_with_what_to_do(tmp_path, text, said):
    with pytest.raises(UserError) as error:
        read_space(space_file(tmp_path, text))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("queries = [5, 0]", "values of queries, got 0"),
        ('meta_lr = ["fast"]', "values of meta_lr, got 'fast'"),
        ('schedule = ["cosin"]', "did you mean 'cosine'?"),
        ("meta_lr = {low = -1.0, high = 1.0}", "values of meta_lr, got -1.0"),
    ],
)
def test_values_that_no_run_takes_are_refused(tmp_path, text, said):
    with pytest.raises(UserError) as error:
        check_space(read_space(space_file(tmp_path, text)), preset_config("quick", "km"))
    assert said in str(error.value)


def test_an_unknown_name_brings_the_nearest():
    with pytest.raises(UserError, match="did you mean 'table3-characters'"):
        read_space("table3-character")


def test_a_strategy_varies_what_it_has_options_for_and_no_flag_has_fixed():
    space = {
        field: Choices((False, True)) for field in ("learn_inner_lr", "nonnegative_inner_lr", "zero_head", "implicit")
    }
    own, dropped = split_for("protonet", {**space, "queries": Choices((1, 2))}, frozenset({"queries"}))
    assert own == {}
    assert dropped["queries"] == "fixed on the command line"
    assert set(dropped) == {*space, "queries"}
    assert set(split_for("anil", space, frozenset())[1]) == {"implicit"}
    assert split_for("km", space, frozenset())[1] == {}


def test_an_option_whose_need_is_off_goes_with_it():
    config = preset_config("quick", "km", learn_inner_lr=True, inner_lr_per_step=True, first_head_lr=1.0)
    changed = with_values(config, {"learn_inner_lr": False})
    assert (changed.shared.learn_inner_lr, changed.shared.inner_lr_per_step, changed.shared.first_head_lr) == (
        False,
        False,
        0.0,
    )
    assert not active("first_head_lr", {"learn_inner_lr": False, "inner_lr_per_step": True}, config)
    assert active("first_head_lr", {}, config)


def test_a_zero_head_takes_the_place_of_a_normal_one():
    config = preset_config("paper", "km", "omniglot")
    assert config.shared.normal_head
    assert not with_values(config, {"zero_head": True}).shared.normal_head
    assert with_values(config, {"zero_head": False}).shared.normal_head
