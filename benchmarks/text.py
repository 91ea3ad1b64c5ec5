"""What the commands print for people."""

from typing import Any

_ORIGINALS = {"shipped": "Transformers4Rec as shipped", "patient": "... without its busy wait"}
_HEAPS = {"default": "default allocator", "kept": "kept heap"}


def machine_line(machine: dict[str, Any], cores: int = 1) -> str:
    """Processor, cores of which so many were used, load and system."""
    used = "one" if cores == 1 else str(cores)
    return (
        f"{machine['processor']}, {used} of {machine['cores']} cores, load {machine['load']}; "
        f"{machine['system']}, Python {machine['python']}"
    )


def machine_text(result: dict[str, Any]) -> str:
    """What it ran on."""
    lines = [machine_line(result["machine"])]
    for side, found in result["versions"].items():
        lines.append(f"{side}: " + ", ".join(f"{name} {v}" for name, v in found.items()))
    return "\n".join(lines)


def speed_text(result: dict[str, Any]) -> str:
    """Rates, memory and ratios of each setting."""
    blocks = [machine_text(result)]
    for setting in result["settings"]:
        lines = [
            f"{setting['model']}, {setting['items']:,} items, D {setting['d_model']}: two layers, "
            f"batches of {result['batch_size']} sessions, L {result['longest']}"
        ]
        lines += _comparison_lines(setting.get("comparison", {}))
        for allocator, measured in setting["speed"].items():
            lines += ["", *_table(_HEAPS[allocator], measured)]
        if setting["left_out"]:
            lines.append(f"Not measured: {', '.join(setting['left_out'])}.")
        blocks.append("\n".join(lines))
    blocks.append(
        "times: sessions a second of ours over the original's, by the clock and by the time of the "
        "processor;\nMB: peak beyond what was resident after imports, and ours over the original's."
    )
    return "\n\n".join(blocks)


def _comparison_lines(comparison: dict[str, Any]) -> list[str]:
    return [
        f"Same weights, same batch, {name}: loss {found['loss']:.6f}, the original's "
        f"{found['original_loss']:.6f};\n  relative difference {found['loss_difference']:.1e}, of "
        f"the gradients of {found['parameters']} parameters at most "
        f"{found['gradient_difference']:.1e}"
        for name, found in comparison.items()
    ]


def _table(title: str, measured: dict[str, Any]) -> list[str]:
    originals = measured["original"]
    heads = [f"over {name}" for name in originals]
    lines = [
        f"{title:<28} {'sessions/s':>10} {'CPU s':>8} {'/CPU s':>8} {'MB':>7}"
        + "".join(f"  {head:>26}" for head in heads)
    ]
    for name, cost in originals.items():
        lines.append(f"{_ORIGINALS[name]:<28} {_cost(cost)}")
    for form, cost in measured["ours"].items():
        found = measured["ratios"][form]
        cells = [
            f"{r['speed']:.2f}, {r['cpu_speed']:.2f} times, {r['memory']:.2f}"
            for r in (found[name] for name in originals)
        ]
        lines.append(
            f"{'pipeline, ' + form:<28} {_cost(cost)}" + "".join(f"  {c:>26}" for c in cells)
        )
    return lines


def _cost(cost: dict[str, Any]) -> str:
    return (
        f"{cost['sessions_per_second']:>10,.0f} {cost['cpu_seconds']:>8.1f} "
        f"{cost['sessions_per_cpu_second']:>8,.0f} {cost['peak_bytes'] / 1e6:>7,.0f}"
    )


def accuracy_text(result: dict[str, Any]) -> str:
    """Metrics of both sides by seed, and the difference."""
    names = list(result["mean"]["pipeline"])
    lines = [
        machine_text(result),
        "",
        f"{result['data']}: {result['targets']:,} targets ({result['positions']} positions), "
        f"{result['catalogue_items']:,} items ranked; {result['model']}, D {result['d_model']}, "
        f"{result['epochs']} epochs each",
        f"{'':<30}" + "".join(f"{name:>12}" for name in names) + f"{'seconds':>10}",
    ]
    for run in result["runs"]:
        cells = "".join(f"{run['metrics'][name]:>12.4f}" for name in names)
        label = f"{run['side']}, seed {run['seed']}"
        lines.append(f"{label:<30}{cells}{run['seconds']:>10.1f}")
    for side, means in result["mean"].items():
        cells = "".join(f"{means[name]:>12.4f}" for name in names)
        lines.append(f"{side + ', mean':<30}{cells}")
    for label, values in (("difference", "difference"), ("95 % interval, +-", "half_width")):
        cells = "".join(f"{result[values][name]:>12.4f}" for name in names)
        lines.append(f"{label:<30}{cells}")
    return "\n".join(lines)


def evaluation_text(result: dict[str, Any]) -> str:
    """Rates and metrics of both evaluations."""
    lines = [
        machine_text(result),
        "",
        f"{result['model']}, {result['items']:,} items, D {result['d_model']}: the last item of "
        f"{result['sessions']:,} sessions, metrics at 10 and 20",
        f"{'':<28} {'sessions/s':>10} {'CPU s':>8} {'/CPU s':>8} {'MB':>7}",
    ]
    for name, cost in result["costs"].items():
        lines.append(f"{name:<28} {_cost(cost)}")
    for name, ratio in result["ratios"].items():
        lines.append(
            f"pipeline over {name}: {ratio['speed']:.2f} times, {ratio['cpu_speed']:.2f} by the "
            "time of the processor"
        )
    for name, values in result["metrics"].items():
        cells = "  ".join(f"{metric} {value:.6f}" for metric, value in values.items())
        lines.append(f"{name:<28} {cells}")
    lines.append(f"largest difference of a metric: {result['metric_difference']:.1e}")
    return "\n".join(lines)
