"""A plan as tables: in minutes on this machine, or in GPU hours from declared sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Table = tuple[str, list[str], list[list[str]]]
"""Title, columns and rows."""

BUDGETS = {"tokens a pass": "micro_batch_tokens", "tokens kept": "keep_tokens"}
"""Column to the key of a phase's budget."""


def plan_tables(plan: Mapping[str, Any]) -> list[Table]:
    """Lay a plan out as tables: phases, batches by source, costs."""
    is_remote = "gpu" in plan
    phases = [_phase_row(name, phase) for name, phase in plan["phases"].items()]
    columns = ["phase", "steps", "batch", "tokens", "minutes", *BUDGETS]
    if is_remote:
        columns = ["phase", "steps", "batch", "tokens", "GPU hours", *BUDGETS, "GPU memory, GB"]
    sources = [
        [
            name,
            source["name"],
            f"{source['rows']:,}",
            f"{source['batches']:,}",
            f"{source['epochs']:.2f}",
        ]
        for name, phase in plan["phases"].items()
        for source in phase["sources"]
    ]
    costs = _remote_costs(plan) if is_remote else _local_costs(plan)
    return [
        ("Phases", columns, phases),
        ("Batches by source", ["phase", "source", "rows", "batches", "epochs"], sources),
        ("Costs", ["what", "how much"], [*costs, ["formula", plan["formula"]]]),
    ]


def _phase_row(name: str, phase: Mapping[str, Any]) -> list[str]:
    budget = phase.get("budget") or {}
    return [
        name,
        f"{phase['steps']:,}",
        str(phase["batch_size"]),
        f"{phase['tokens']:,}",
        f"{phase['minutes']:.1f}" if "minutes" in phase else f"{phase['gpu_hours']:,.1f}",
        *(f"{budget[key]:,}" if key in budget else "-" for key in BUDGETS.values()),
        *([f"{phase['gpu_memory_gigabytes']:,}"] if "gpu_memory_gigabytes" in phase else []),
    ]


def _local_costs(plan: Mapping[str, Any]) -> list[list[str]]:
    teacher, total, machine = plan["teacher"], plan["total"], plan["machine"]
    minutes = "unknown here" if teacher["minutes"] is None else f"{teacher['minutes']} minutes"
    return [
        [
            "teacher",
            (
                f"{teacher['texts']:,} distinct texts, {teacher['tokens']:,} tokens, {minutes}, "
                f"{teacher['disk_megabytes']} MB of vectors"
            ),
        ],
        ["training", f"{total['steps']:,} steps, {total['training_minutes']} minutes"],
        ["memory", f"about {total['memory_megabytes']:,} MB"],
        [
            "device",
            f"{machine['device']} ({machine['device_name']}), passes in {machine['precision']}",
        ],
        ["disk", f"about {total['disk_megabytes']:,} MB"],
        [
            "machine",
            f"{machine['cores']} cores, {machine['matrix_gflops']} GF/s of matrix multiplication",
        ],
    ]


def _remote_costs(plan: Mapping[str, Any]) -> list[list[str]]:
    teacher, total, gpu = plan["teacher"], plan["total"], plan["gpu"]
    hours = (
        "hours unknown here"
        if teacher["gpu_hours"] is None
        else f"{teacher['gpu_hours']:,} GPU hours"
    )
    return [
        ["teacher", f"{teacher['texts']:,} distinct texts, {teacher['tokens']:,} tokens, {hours}"],
        ["teacher store", f"{teacher['disk_megabytes'] / 1000:,.1f} GB"],
        ["training", f"{total['steps']:,} steps, {total['training_gpu_hours']:,} GPU hours"],
        [
            "in all",
            "unknown" if total["gpu_hours"] is None else f"{total['gpu_hours']:,} GPU hours",
        ],
        [
            "GPU",
            (
                f"{gpu['card']}: {gpu['tflops']:,.0f} TF/s in {gpu['precision']} by its data sheet,"
                f" {100 * gpu['share_reached']:.0f} % of it assumed"
            ),
        ],
        [
            "GPU memory",
            f"about {total['gpu_memory_gigabytes']:,} GB at most, of {gpu['memory_gigabytes']} GB",
        ],
        ["memory", f"about {total['memory_megabytes'] / 1000:,.0f} GB"],
        ["disk", f"about {total['disk_megabytes'] / 1000:,.0f} GB"],
    ]
