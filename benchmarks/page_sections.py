"""Sections of docs/benchmarks.md whose text depends on what has been measured."""

from __future__ import annotations

from typing import Any

from page_tables import ABSENT, RATIOS, RESULTS, bench_rows, claims, grid, load, number, variants

GPU_TARGETS = (
    "Targets for the 7B shape in bfloat16 on an H100: block 8 at batch 1 at least 1,150 tokens/s, 70 % of the floor "
    "and 4 times the plain loop; batch 32 at least 12,000 tokens/s; at least 6 studies/s end to end; one step over "
    "autoregressive at least 8."
)


def comparison() -> str:
    """The method against its alternatives, or that it has not been measured."""
    result = load("variants")
    if result is None:
        return (
            "**Not measured yet.** The command has been run on a small scale only (it is part of the tests): three\n"
            "seeds take about five hours of two cores."
        )
    budget = result["budget"]
    head = (
        f"Small models of the demo model's kind ({budget['layers']} text layers, its frozen tower), all on the same\n"
        f"{budget['phantoms']:,} phantoms: {budget['ar']:,} samples left to right, {budget['rad']:,} of RAD,\n"
        f"{budget['answers']:,} answers of each teacher, {budget['student']:,} samples for each student;\n"
        f"{budget['measured']} held-out phantoms. Mean over seeds {', '.join(map(str, result['seeds']))} (lowest\n"
        "to highest). Perplexity is that of the same seed's left-to-right model. Speed is one report at a time,\n"
        "beside left-to-right decoding.\n"
        f"{'; '.join(result['machines'])}."
    )
    rule = (
        "A figure speaks for a claim when all seeds agree on its sign and the mean gain is larger than the spread of\n"
        "the gains; a claim is confirmed when some figure speaks for it and none against it, refuted the other way\n"
        'round, and else "not seen".'
    )
    return "\n\n".join([head, variants(result), rule, claims(result)])


def gpu() -> str:
    """What has been measured on a GPU, or that nothing was."""
    parts = []
    for shape in ("7b", "3b"):
        result = load(f"echo_model_cuda_{shape}")
        if result is None:
            continue
        limits = result["limits"]
        head = f"### {shape.upper()} shape, {result['machine']}, {result['dtype']}\n\n"
        floor = f"Measured: {limits['bandwidth_gb_s']:,.0f} GB/s, {limits['peak_tflop_s']:,.0f} TFLOP/s.\n\n"
        parts.append(head + floor + ratios_plain(result) + "\n\n" + bench_rows(result))
    if not parts:
        unmeasured = (
            "**Not measured: no GPU was at hand.** The script has been run on a CPU with the tiny shape, through the "
            "same code (CUDA graphs excepted): `benchmarks/gpu.sh --device cpu --shape tiny --out DIR`. On a machine "
            "with a GPU `benchmarks/gpu.sh` measures the 7B and the 3B shape with random weights (prompt of 2,928 "
            "tokens, 192 tokens decoded) and runs `tests/gpu`. It needs no network and ends in under ten minutes; "
            "the tables come here."
        )
        return f"{unmeasured}\n\n{GPU_TARGETS}"
    return "\n\n".join([GPU_TARGETS, *parts])


def ratios_plain(result: Any) -> str:
    """The ratios without the CPU's targets."""
    known = {name: ratio for name, ratio in result["ratios"].items() if ratio is not None}
    rows = [[RATIOS[name][0], f"{r['median']:.2f}", f"{r['min']:.1f} to {r['max']:.1f}"] for name, r in known.items()]
    return grid(["tokens a second", "median", "range"], rows)


def chaos() -> str:
    """Every run under faults, one a row, and the machine."""
    names = sorted((file.stem for file in RESULTS.glob("chaos_seed*.json")), key=lambda name: int(name[10:]))
    if not names:
        return ABSENT
    results = {name: load(name) for name in names}
    rows = []
    for name, result in results.items():
        kinds, took = result["faults_by_kind"], result["last_image_to_report_s"]
        rows.append(
            [
                f"[{result['seed']}](../benchmarks/results/{name}.json)",
                f"{result['minutes']:g}",
                *(str(kinds.get(kind, 0)) for kind in ("kill", "stop", "cut", "flush", "fill")),
                f"{result['acknowledged']} ({result['with_a_later_version']})",
                f"{result['refused_and_retried']} + {result['unanswered_and_retried']}",
                *(str(result[key]) for key in ("lost", "duplicated", "not_of_the_last_version")),
                " / ".join(number(took[key]) for key in ("median", "p95", "max")),
                "; ".join(result["problems"]) or "passed",
            ]
        )
    head = ["seed", "minutes", "killed", "stopped", "cut off", "flushed", "disk full", "studies (of several versions)"]
    head += ["refused + unanswered", "lost", "duplicated", "not of the last version"]
    head += ["s to report: p50 / p95 / max", "verdict"]
    machines = "; ".join(dict.fromkeys(result["machine"] for result in results.values()))
    return f"{grid(head, rows)}\n\nMachine: {machines}."
