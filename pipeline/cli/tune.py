"""`pipeline tune`: a search for the settings of a recipe."""

from pathlib import Path

import click

from pipeline.cli.console import (
    check_in,
    json_option,
    out_option,
    path_type,
    print_result,
    set_option,
)


@click.command(
    epilog="Example: pipeline tune data/beauty --config configs/beauty.yaml --space space.yaml "
    "--trials 20 --out tuning"
)
@click.argument("data", type=path_type)
@click.option("--config", required=True, type=path_type, help="Recipe to start from.")
@click.option(
    "--space",
    "space_file",
    required=True,
    type=path_type,
    metavar="FILE",
    help="YAML: where to look for which setting, as in `train.learning_rate: {log: [1e-4, 1e-2]}`; "
    "also uniform, int and choice.",
)
@click.option(
    "--trials",
    required=True,
    type=click.IntRange(1),
    metavar="N",
    help="Trials in all; those that --out holds already are not run again.",
)
@click.option("--seed", default=0, show_default=True, help="Same seed, same trials.")
@out_option()
@set_option
@json_option
def tune(
    data: Path,
    config: Path,
    space_file: Path,
    trials: int,
    seed: int,
    out: Path,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train the recipe on DATA again and again, with other settings, and keep the best.

    Trials are compared by `train.metric` on the validation sessions; those that fall behind are
    stopped. --out gets best.yaml, the recipe with the best settings, trials.json and the runs. A
    search that was stopped goes on from there.
    """
    from pipeline.core.config import read_values
    from pipeline.recipe.preprocess import Recipe
    from pipeline.recipe.search_space import read_space

    values = read_values(config, overrides)
    Recipe.from_dict(values, str(config))
    space = read_space(space_file)
    check_in(data, "data")
    from pipeline.cli.results import tuning_text
    from pipeline.training.tune import tune as run

    facts = run(data, values, space, out, num_trials=trials, seed=seed)
    print_result(facts, as_json, tuning_text(facts, out))
